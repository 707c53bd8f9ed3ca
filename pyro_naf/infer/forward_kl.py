r"""The forward Kullback-Leibler divergence on simulated data: neural posterior estimation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import pyro
import torch
from pyro import poutine
from pyro.distributions import Unit
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from ..guides.flat_priors import FlatPriors, is_flat
from ..guides.wrapping import peel
from ..support.calls import Args, Model
from ..support.checks import check_integers
from .autoguides import AutoFlowNormal

#: Smallest standard deviation that a guide starts with.
_NARROWEST = 1e-6

Arguments = tuple[tuple[object, ...], dict[str, object]]


class ForwardKL:
    r"""Loss that fits a guide with a context to data sets simulated from the model.

    .. math:: L = -E_{p(z, y)} \log q(z; c(y)) = E_{p(y)} \mathrm{KL}(p(z | y) \,\|\, q(z; c(y)))
        + \mathrm{const}

    Each step simulates latents z and data y from the model's joint distribution and scores the
    latents, which runs the flow's inverse. The model is never scored: it need not be
    differentiable, and latents that the guide leaves out are integrated out by not looking at
    them. It must have proper priors. A model that is vectorised over simulations by plates, as for
    ``vectorize_particles=True``, is run once a step; any other once for each simulation. Only the
    guide is trained.

    ``context_fn`` gets the simulated data where the model's arguments have data, with one more
    leading axis: of length ``num_simulations``, unless that is 1. A guide that was never called is
    set up by the model's run on simulated data, and starts with the mean and the standard deviation
    of the simulated latents, in place of ``init_loc_fn`` and ``init_scale``.

    :param num_simulations: runs of the model in each step.
    :param arguments: maps a dict of all simulated sites but the guide's to arguments ``(args,
        kwargs)``. By default those given, each simulated site in place of the argument of its name.
    :raises TypeError: when called with a guide that is not an
        :class:`~pyro_naf.infer.AutoFlowNormal` with a ``context_fn``.
    :raises ValueError: when called, for an observed site that is no argument of the model's, for a
        ``pyro.factor``, which no simulation obeys, for an improper prior, or for a subsampled plate
        that the context has no axis for.

    Source: Papamakarios & Murray 2016 [arXiv:1605.06376]; Greenberg et al. 2019
    [arXiv:1905.07488], section 2.

    >>> import pyro.distributions as dist
    >>> from pyro_naf.infer import AutoDSFNormal
    >>> pyro.clear_param_store()
    >>> def model(y):
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", 3):
    ...         pyro.sample("y", dist.Normal(x, 1.0), obs=y)
    >>> guide = AutoDSFNormal(model, context_fn=lambda y: y, context_dim=3)
    >>> svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), ForwardKL())
    >>> y = torch.zeros(3)  # only its shape matters
    >>> loss = svi.step(y)
    >>> guide.log_prob({"x": torch.zeros(7)}, torch.randn(7, 3)).shape
    torch.Size([7])
    """

    def __init__(
        self,
        num_simulations: int = 64,
        arguments: Callable[[dict[str, Tensor]], Arguments] | None = None,
    ) -> None:
        check_integers(num_simulations=(num_simulations, 1))
        self.num_simulations, self.arguments = num_simulations, arguments
        self._is_vectorised = True

    def __call__(
        self, model: Model, guide: AutoFlowNormal, *args: object, **kwargs: object
    ) -> Tensor:
        """Compute the loss, a mean over simulations and rows; differentiable in the weights."""
        if not isinstance(guide, AutoFlowNormal) or not guide.context_dim:
            raise TypeError(
                "guide must be an AutoFlowNormal (or AutoDSFNormal, AutoDDSFNormal) with a "
                f"context_fn, got {type(guide).__name__}"
            )
        with torch.no_grad(), poutine.block():
            sites = _simulate(model, args, kwargs)
            values = {name: site["value"] for name, site in sites.items()}
            is_new = guide.prototype_trace is None
            if is_new:
                given = self._arguments(model, sites, values, args, kwargs)
                guide._setup_prototype(*given[0], **given[1])
            latents = {name for name, _ in guide.prototype_trace.iter_stochastic_nodes()}
            _refuse_subsampling(sites, {frame.name for frame in guide.row_frames})
            if self.num_simulations > 1:
                values = self._simulate_many(model, sites, args, kwargs)
                if is_new:
                    start_at(guide, {name: values[name] for name in latents})
        data = {name: value for name, value in values.items() if name not in latents}
        args, kwargs = self._arguments(model, sites, data, args, kwargs)
        return -guide.log_prob({name: values[name] for name in latents}, *args, **kwargs).mean()

    def _simulate_many(
        self, model: Model, one: dict[str, Message], args: Args, kwargs: dict[str, object]
    ) -> dict[str, Tensor]:
        """Site to values ``(num_simulations, *site shape)``, its shape in the run ``one``."""
        count, shapes = self.num_simulations, {n: site["value"].shape for n, site in one.items()}
        if self._is_vectorised:
            frames = [frame for site in one.values() for frame in site["cond_indep_stack"]]
            dims = [frame.dim for frame in frames if frame.vectorized]
            try:
                with pyro.plate("_simulations", count, dim=min(dims, default=0) - 1):
                    many = _simulate(model, args, kwargs)
                # A site inside fewer plates than the deepest has axes of length one between.
                return {n: many[n]["value"].reshape(count, *shapes[n]) for n in shapes}
            except (RuntimeError, ValueError, IndexError, KeyError):
                self._is_vectorised = False  # a matrix product with a sampled weight, say
        runs = [_simulate(model, args, kwargs) for _ in range(count)]
        return {n: torch.stack([run[n]["value"] for run in runs]) for n in shapes}

    def _arguments(
        self,
        model: Model,
        sites: dict[str, Message],
        data: dict[str, Tensor],
        args: Args,
        kwargs: dict[str, object],
    ) -> Arguments:
        if self.arguments is not None:
            return self.arguments(data)
        function = model.forward if isinstance(model, nn.Module) else model
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        found = data.keys() & bound.arguments.keys()
        observed = {name for name, site in sites.items() if "was_observed" in site["infer"]}
        if not found or observed - found:
            raise ValueError(
                f"the observed sites {sorted(observed)} must be arguments of the model's, which "
                f"has {sorted(bound.arguments)}; give ForwardKL a function arguments(sites) that "
                "returns (args, kwargs) with the simulated data in their place"
            )
        bound.arguments.update({name: data[name] for name in found})
        return bound.args, bound.kwargs


@torch.no_grad()
def start_at(guide: AutoFlowNormal, latents: Mapping[str, Tensor]) -> None:
    """Give a guide that is set up the mean and the standard deviation of simulated latents.

    :param latents: site to values ``(N, *site shape)``, N > 1.
    """
    z = guide.latent_vectors(latents)
    z = z[z.isfinite().all(-1)]
    if len(z) > 1:
        guide.loc.copy_(z.mean(0))
        guide.scale = z.std(0).clamp(min=_NARROWEST)


def _simulate(model: Model, args: Args, kwargs: dict[str, object]) -> dict[str, Message]:
    """Return the sample sites of one run of the model in which nothing is observed."""
    with FlatPriors():  # until they are refused by name
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*args, **kwargs)
    sites = {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }
    for name, site in sites.items():
        if isinstance(site["fn"], Unit):
            raise ValueError(f"{name!r} is a pyro.factor: the model cannot be simulated with it")
        if is_flat(site["fn"]) or peel(site["fn"])[1] is False:
            raise ValueError(
                f"site {name!r} has an improper prior, from which nothing can be simulated; give "
                "it a proper one"
            )
    return sites


def _refuse_subsampling(sites: dict[str, Message], row_plates: set[str]) -> None:
    for name, site in sites.items():
        for frame in site["cond_indep_stack"]:
            if frame.name not in row_plates and frame.size != (frame.full_size or frame.size):
                raise ValueError(
                    f"site {name!r} lies in plate {frame.name!r}, which is subsampled "
                    f"({frame.size} of {frame.full_size}): a simulation would lack data; give the "
                    "context an axis for the plate, or do not subsample"
                )
