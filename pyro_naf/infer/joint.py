r"""The joint log-density of any model, at many points of its unconstrained latents at once.

.. math:: \log p(x, z(u)) + \log|\det \partial z/\partial u|

The model is run for one draw, as NUTS runs it, and :func:`torch.vmap` makes the batch. So no model
has to be vectorised, and no draw can see another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median, init_to_sample
from torch import Tensor

from ..guides.pyro_internals import (
    enumerated,
    is_subsample,
    log_prob_sum,
    plates_with,
    without_start,
)
from .capture import Graph
from .flat_priors import start_flat_priors
from .lanes import REFUSALS, RUNGS, Values, with_refusals
from .pace import Pace
from .sites import (
    Angles,
    Latents,
    Site,
    find_sites,
    latent_sites,
    masked_out,
    plate_nesting,
    sample_sites,
    site_log_probs,
)

#: Points that are evaluated at once, and how many numbers of the model they may hold together.
_CHUNK, _CHUNK_NUMBERS = 1000, 2**24

#: Runs of the model in search of one that it does not refuse.
_TRIES = 50


class Joint:
    r""":math:`\log p(x, z(u)) + \log|\det \partial z/\partial u|` of unconstrained latents u.

    Discrete latents with a finite support are summed out, as NUTS does it. Entries of u that no
    density depends on (the observed half of ``obs_mask``) get a standard normal of their own.
    Where the model refuses a point, or its density is not finite, that point's density is -inf and
    the others stand. Subsampled plates are run with all their elements.

    :param model: any model that Pyro's NUTS takes.
    :param args: the model's arguments, as are ``kwargs``.
    :param init_loc_fn: Pyro's initialisation function for the point :attr:`start`.
    :ivar sites: the continuous latent sites and their places in u.
    :ivar dim: D, the length of u.
    :ivar start: a point ``(D,)``, with the dtype and device of u.
    :ivar rung: how a batch is evaluated: "vmapped", "vmapped with help" or "one draw after
        another".
    :raises ValueError: when the model has no continuous latents, discrete ones that are not finite,
        latents whose shape changes from run to run, NaN in its data, or a subsampled plate that
        cannot be run with all its elements; naming the site or plate.

    Shapes: u ``(N, D)`` to ``(N,)``.

    >>> import pyro.distributions as dist
    >>> def model():
    ...     b = pyro.sample("b", dist.LogNormal(0.0, 1.0))
    ...     pyro.sample("x", dist.Uniform(0.0, b))
    >>> joint = Joint(model)
    >>> joint(torch.zeros(5, joint.dim)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        init_loc_fn: Callable[..., Tensor] = init_to_median,
    ) -> None:
        self.model = Angles()(without_start(model))
        self.args, self.kwargs = args, dict(kwargs or {})
        #: Dimensions that plates use, where discrete latents are enumerated; else None.
        self.nesting: int | None = None
        #: Whether the model cannot run without recording a graph.
        self.needs_gradients = False
        #: Finite discrete latents, which are summed out.
        self.discrete: list[str] = []
        #: Subsampled plate to its size and an example of its indices.
        self.subsampled: dict[str, tuple[int, Tensor]] = {}
        self.sites: dict[str, Site] = {}
        self.graph: Graph | None = None
        # What is found out about the model leaves the user's generators alone.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            self._explore(init_loc_fn)

    def _explore(self, init_loc_fn: Callable[..., Tensor]) -> None:
        """Run the model a few times: its sites, their supports, and the way to a batch."""
        trace = self._first_run(init_loc_fn)
        self._refuse_given_subsamples(trace)
        self._refuse_nan(trace)
        self.sites = find_sites(trace)
        if not self.sites:
            what = "observed or discrete" if self.discrete else "observed"
            raise ValueError(
                f"the model has no continuous latent variables: every sample statement is {what}"
            )
        self.dim = sum(site.size for site in self.sites.values())
        self.start = torch.cat(
            [s.transform.inv(trace.nodes[n]["value"]).reshape(-1) for n, s in self.sites.items()]
        ).detach()
        self.chunk = _chunk(trace)
        self._refuse_changing_shapes()
        self._find_dependent_supports()
        self._find_idle(trace)
        self.rung = self._find_rung()

    def __call__(self, u: Tensor) -> Tensor:
        """Log-density at points ``(N, D)``; -inf, with gradient 0, where the model has none."""
        if torch.is_grad_enabled() and u.requires_grad:
            return _Density.apply(u, self)
        if self.graph is not None and (self.graph.is_compiled or len(u) <= self.graph.count):
            return self.graph(u)[0]
        with torch.no_grad():  # the model may have parameters of its own
            return self.uncaptured(u)

    def uncaptured(self, u: Tensor) -> Tensor:
        """Log-density by runs of the model, differentiable as often as the model is."""
        function = self._over_lanes(self._log_density)
        parts = [function(self.split(part)) for part in u.split(self.chunk)]
        return self._finite(torch.cat(parts))

    def value_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density ``(N,)`` and gradient ``(N, D)``; -inf and 0 where one is not finite."""
        if self.graph is not None:
            return self.graph(u.detach())
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            value = self.uncaptured(u)
        return _usable(value.detach(), _gradient(value, u))

    def capture(self, count: int = 64) -> None:
        """Capture value and gradient at ``count`` points as a graph, where that is possible."""
        if self.graph is not None or self.rung == list(RUNGS)[-1]:
            return

        def function(u: Tensor) -> tuple[Tensor, Tensor]:
            over_lanes = RUNGS[self.rung](torch.func.grad_and_value(self._log_density))
            grads, value = over_lanes(self.split(u))
            grad = torch.cat([grads[name].reshape(len(u), -1) for name in self.sites], -1)
            return _usable(self._finite(value), grad)

        example = self._points(*[0.1] * count)  # the user's generators are left alone
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.graph = Graph(function, example)
        except Exception:  # noqa: BLE001 - what cannot be captured is run as before
            return

    @cached_property
    def pace(self) -> Pace:
        """What value and gradient cost without a graph, measured once."""
        return Pace.of(self.uncaptured, self.start)

    @property
    def way(self) -> str:
        """How the density is evaluated now: :attr:`rung`, or by a graph, captured or compiled."""
        if self.graph is None:
            return self.rung
        return "captured and compiled" if self.graph.is_compiled else "captured"

    def minibatch(self, u: Tensor) -> Tensor:
        """An unbiased estimate of the log-density, by a new subsample of the subsampled plates."""
        elements = {
            name: torch.randperm(size, device=some.device)[: len(some)]
            for name, (size, some) in self.subsampled.items()
        }
        function = self._over_lanes(lambda free: self._log_density(free, elements))
        return self._finite(function(self.split(u)))

    def log_prob(self, values: Mapping[str, Tensor]) -> Tensor:
        r""":math:`\log p(x, z)` ``(N,)`` at constrained latents, site to ``(N, *site shape)``.

        Idle elements have the density that a standard normal has in their support.
        """

        def density(z: Values) -> Tensor:
            latents = Latents(self.sites, z, constrained=True)
            return log_prob_sum(self._run(latents), self.nesting) + latents.log_det

        return self._finite(self._over_lanes(density)(values))

    def constrained(self, u: Tensor) -> dict[str, Tensor]:
        """Values of the latent sites at points ``(N, D)``, site to ``(N, *site shape)``."""
        if all(site.transform is not None for site in self.sites.values()):
            free = self.split(u)
            return {name: s.transform(free[name].to(s.dtype)) for name, s in self.sites.items()}

        def values(one: Values) -> dict[str, Tensor]:
            latents = Latents(self.sites, one)
            self._run(latents)
            return latents.values

        function = self._over_lanes(values)
        parts = [function(self.split(part)) for part in u.split(self.chunk)]
        return {name: torch.cat([part[name] for part in parts]) for name in self.sites}

    def trace(
        self, values: Values, handler: Callable[[Callable[..., Any]], Any] | None = None
    ) -> Any:
        """Trace of one run at one draw of constrained latents.

        :param handler: put around the model, inside the handler that sets the latents.
        """
        return self._run(Latents(self.sites, values, constrained=True), handler)

    def over_draws(
        self, function: Callable[[Values], dict[str, Tensor]], values: Values
    ) -> dict[str, Tensor]:
        """What a function of one draw, which may use :meth:`trace`, gives for many, stacked.

        :param values: latent site to ``(N, *site shape)``; further tensors ``(N, ...)`` may be
            among them.
        """
        values = {name: value.to(self.start.device) for name, value in values.items()}
        count = len(next(iter(values.values())))
        batched, parts = self._over_lanes(function), []
        with torch.no_grad():
            for start in range(0, count, self.chunk):
                part = {name: value[start : start + self.chunk] for name, value in values.items()}
                parts.append(batched(part))
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("the model can be run at none of the draws; fit the guide again")
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def split(self, u: Tensor) -> dict[str, Tensor]:
        """Unconstrained values of the sites from points ``(..., D)``."""
        parts = u.split([site.size for site in self.sites.values()], -1)
        return {
            name: part.reshape(u.shape[:-1] + site.free_shape)
            for (name, site), part in zip(self.sites.items(), parts, strict=True)
        }

    def culprits(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Sites whose log-density at one draw of constrained latents is not finite, with it."""
        with torch.no_grad():
            found = site_log_probs(self._run(Latents(self.sites, values, constrained=True)))
        sums = {name: float(value.sum()) for name, value in found.items()}
        return {name: value for name, value in sums.items() if not abs(value) < float("inf")}

    def _run(self, latents: Latents, handler: Callable[..., Any] | None = None) -> Any:
        """Trace of one run of the model with these latents."""
        graph = torch.enable_grad() if self.needs_gradients else nullcontext()
        plates = self._plates(latents.elements)
        with graph, pyro.validation_enabled(False), poutine.block(), plates:
            model = self._with_enumeration()
            handled = latents(model if handler is None else handler(model))
            return poutine.trace(handled).get_trace(*self.args, **self.kwargs)

    def _with_enumeration(self) -> Callable[..., Any]:
        return self.model if self.nesting is None else enumerated(self.model, self.nesting)

    def in_full(self) -> AbstractContextManager[None]:
        """Inside, subsampled plates take all their elements."""
        return self._plates({})

    def _plates(self, elements: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Subsampled plates take the given elements inside; by default, all of them."""
        if not self.subsampled:
            return nullcontext()

        def indices(name: str, size: int) -> Tensor | None:
            if name not in self.subsampled:
                return None
            if name in elements:
                return elements[name]
            return torch.arange(size, device=self.subsampled[name][1].device)

        return plates_with(indices)

    def _log_density(self, free: Values, elements: Mapping[str, Tensor] | None = None) -> Tensor:
        latents = Latents(self.sites, free, elements=elements)
        return log_prob_sum(self._run(latents), self.nesting) + latents.log_det

    def _over_lanes(self, function: Callable[[Values], Any]) -> Callable[[Values], Any]:
        return with_refusals(RUNGS[self.rung](function), function)

    def _finite(self, log_p: Tensor) -> Tensor:
        return torch.where(log_p.isfinite(), log_p, -torch.inf).to(self.start.dtype)

    # What is found out when a joint density is made.

    def _first_run(self, init_loc_fn: Callable[..., Tensor]) -> Any:
        """Trace of a run at the start, with whole plates, and discrete sites enumerated."""
        trace = self._try_to_run(init_loc_fn)
        for name, site in trace.nodes.items():
            fn = site.get("fn")
            if is_subsample(site) and fn.subsample_size is not None and fn.subsample_size < fn.size:
                self.subsampled[name] = (fn.size, site["value"])
        latents = latent_sites(trace)
        self.discrete = [n for n, site in latents.items() if site["fn"].support.is_discrete]
        if endless := [n for n in self.discrete if not latents[n]["fn"].has_enumerate_support]:
            raise ValueError(
                f"latents must be continuous or finite, but {endless} take infinitely many values; "
                "sum over them in the model, or put continuous ones in their place"
            )
        if self.discrete:
            self.nesting = plate_nesting(trace)
        if not self.discrete and not self.subsampled:
            return trace
        return self._run_in_full(init_loc_fn)

    def _without_gradients(self) -> AbstractContextManager[Any]:
        return torch.enable_grad() if self.needs_gradients else torch.no_grad()

    def _run_in_full(self, init_loc_fn: Callable[..., Tensor]) -> Any:
        """Trace of a run with all elements of the plates; its density must be computable."""
        try:
            trace = self._try_to_run(init_loc_fn)
            log_prob_sum(trace, self.nesting)  # Pyro says here what is wrong with an enumeration
            return trace
        except (*REFUSALS, IndexError) as error:
            if not self.subsampled:
                raise
            name, (size, some) = next(iter(self.subsampled.items()))
            count = len(some)
            raise ValueError(
                f"plate {name!r} is subsampled ({count} of {size}), and the model cannot be run "
                "with all of its elements; give the model the whole data and subsample it inside, "
                f"as in `with pyro.plate({name!r}, {size}, {count}) as i:` and y[i] ({error})"
            ) from error

    def _try_to_run(self, init_loc_fn: Callable[..., Tensor]) -> Any:
        """A run at the starting point, or else at a draw of the prior that is not refused."""
        failure: Exception | None = None
        for i in range(_TRIES):
            init = InitMessenger(start_flat_priors(init_to_sample if i else init_loc_fn))
            try:
                with self._without_gradients(), poutine.block(), self._plates({}), _lenient(i):
                    handled = init(self._with_enumeration())
                    trace = poutine.trace(handled).get_trace(*self.args, **self.kwargs)
                    if self.nesting is None:
                        trace.compute_log_prob()  # Pyro names the site where shapes do not fit
                    return trace
            except REFUSALS as error:
                failure = failure or error
                # A model may differentiate something itself.
                self.needs_gradients = i % 2 == 0
        assert failure is not None
        raise failure

    def _refuse_given_subsamples(self, trace: Any) -> None:
        for name, site in sample_sites(trace):
            for frame in site["cond_indep_stack"]:
                if frame.full_size is not None and frame.full_size != frame.size:
                    raise ValueError(
                        f"site {name!r} lies in plate {frame.name!r}, which has {frame.size} of "
                        f"{frame.full_size} elements because its subsample is given from outside; "
                        "give the model the whole data, and let the plate choose "
                        "(subsample_size=...)"
                    )

    def _refuse_nan(self, trace: Any) -> None:
        for name, site in sample_sites(trace):
            value = site["value"]
            if not site["is_observed"] or site["infer"].get("_deterministic"):
                continue
            if isinstance(value, Tensor) and (bad := int(value.isnan().sum())):
                raise ValueError(
                    f"the data of site {name!r} holds NaN in {bad} of {value.numel()} places; "
                    "leave them out, or put any number there and mask it, by obs_mask or "
                    "poutine.mask (behind a mask NaN would still spoil the gradient)"
                )

    def _refuse_changing_shapes(self) -> None:
        known = {name: site.shape for name, site in self.sites.items()}
        try:
            trace = self._try_to_run(init_to_sample)
        except (NotImplementedError, *REFUSALS):  # a prior that cannot be sampled
            return
        found = {name: site.shape for name, site in find_sites(trace).items()}
        if changed := [n for n in known | found if known.get(n) != found.get(n)]:
            raise ValueError(
                f"latents must have a fixed shape, but that of {changed} changes from one run to "
                "the next; pad them, and mask"
            )

    def _points(self, *scales: float) -> Tensor:
        """The start and points at these distances from it, the same at every call."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(len(scales), self.dim, generator=generator).to(self.start)
        return self.start + torch.tensor(scales).to(noise)[:, None] * noise

    def _find_dependent_supports(self) -> None:
        """Forget the transforms of sites whose support changes with other latents."""
        transforms = {name: site.transform for name, site in self.sites.items()}
        for point in self._points(0.1, 0.5, 0.01):
            latents = Latents(self.sites, self.split(point))
            try:
                with torch.no_grad():
                    self._run(latents)
            except REFUSALS:
                continue
            for name, transform in latents.transforms.items():
                site = self.sites[name]
                probe = torch.full(site.free_shape, 0.3).to(self.start)
                if not torch.equal(transform(probe), transforms[name](probe)):
                    self.sites[name] = replace(site, transform=None)

    def _find_idle(self, trace: Any) -> None:
        """Find elements behind a mask of their own that no other density depends on either."""
        masks = {name: masked_out(trace.nodes[name]) for name in self.sites}
        if not any(bool(mask.any()) for mask in masks.values()):
            return
        used = torch.zeros_like(self.start, dtype=torch.bool)
        for point in self._points(0.1, 0.5, 1.0):
            free = point.requires_grad_()
            log_p = log_prob_sum(self._run(Latents(self.sites, self.split(free))), self.nesting)
            if log_p.requires_grad:
                (grad,) = torch.autograd.grad(log_p, free, materialize_grads=True)
                used |= grad != 0
        for name, in_use in self.split(used).items():
            site = self.sites[name]
            in_use = in_use.reshape(*in_use.shape[: site.batch_dim], -1).any(-1)
            idle = masks[name].to(in_use.device) & ~in_use
            if bool(idle.any()):
                self.sites[name] = replace(site, idle=idle)

    def _find_rung(self) -> str:
        """The fastest way to a batch that agrees with single runs at two points."""
        points = self._points(0.0, 0.01)
        *faster, slowest = RUNGS
        truth, again = (RUNGS[slowest](self._log_density)(self.split(points)) for _ in range(2))
        repeats = torch.equal(truth.nan_to_num(), again.nan_to_num())
        if not repeats:
            warnings.warn(
                "the model's log-density changes from run to run at the same latents: it draws "
                "random numbers that are no latents, as a blocked site or dropout does",
                stacklevel=4,
            )
        for rung in faster:
            u = points.clone().requires_grad_()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found = RUNGS[rung](self._log_density)(self.split(u))
                    torch.autograd.grad(found.sum(), u, allow_unused=True)
            except Exception:  # noqa: BLE001 - what vmap cannot do, single runs can
                continue
            if not repeats or torch.allclose(found, truth, rtol=1e-3, atol=1e-3, equal_nan=True):
                return rung
        return slowest


def _lenient(tries: int) -> AbstractContextManager[None]:
    """Without Pyro's validation, as NUTS runs a model, where many tries with it were in vain."""
    return pyro.validation_enabled(False) if tries >= _TRIES // 2 else nullcontext()


def _chunk(trace: Any) -> int:
    """How many points may be evaluated at once, by the numbers that one run holds."""
    values = [site["value"] for _, site in sample_sites(trace)]
    numbers = sum(2 * value.numel() for value in values if isinstance(value, Tensor))
    return max(1, min(_CHUNK, _CHUNK_NUMBERS // max(numbers, 1)))


class _Density(torch.autograd.Function):
    """The log-density with a gradient that is known with it; second derivatives run the model."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, joint: Joint) -> Tensor:
        value, grad = joint.value_and_grad(u)
        ctx.save_for_backward(u, grad)
        ctx.joint = joint
        return value

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        u, grad = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph
            (grad,) = torch.autograd.grad(ctx.joint.uncaptured(u).sum(), u, create_graph=True)
        return cotangent[:, None] * grad, None


def _usable(value: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Values and gradients, -inf and 0 where one of the two is not finite."""
    usable = value.isfinite() & grad.isfinite().all(-1)
    return torch.where(usable, value, -torch.inf), torch.where(usable[:, None], grad, 0.0)


def _gradient(value: Tensor, u: Tensor) -> Tensor:
    """Gradients of the finite values ``(N,)`` at u ``(N, D)``, 0 where nothing depends on u."""
    if not value.requires_grad:
        return torch.zeros_like(u)
    finite = value.isfinite().to(value)
    return torch.autograd.grad(value, u, finite, materialize_grads=True)[0]
