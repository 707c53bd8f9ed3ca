"""A guide that is a flow on a standard normal, behind a trainable loc and scale."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import NamedTuple, cast

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.torch_transform import TransformModule
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.nn.module import PyroParam
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.transforms import ComposeTransform, Transform

from ..conditioners import Structure
from ..flows.heavy_tails import START as TAIL_INDEX
from ..flows.heavy_tails import TukeyH
from ..support.calls import Args, Kwargs, Model
from ..support.tables import Shown, Table
from .affine_map import AffineMap
from .composed import Composed
from .flat_priors import start_flat_priors
from .layout import Layout
from .param_store import InStepWithStore
from .quantiles import marginal_quantiles, normal_points, slope_sign
from .sites import Angles, Deltas, VectorizedPlates
from .special import JointDensity, SpecialSites
from .start_checks import refuse_local_latents, warn_of_start
from .table import guide_table


class Form(NamedTuple):
    """How the flow is put together with loc, scale and a normal."""

    full_rank: bool
    inverse: bool
    heavy_tails: bool


class FlowNormal(Shown, AffineMap, InStepWithStore, AutoContinuous):
    r"""The posterior approximated by :math:`z = \mathrm{loc} + S f(\epsilon)`, f any flow.

    What :class:`~pyro_naf.infer.AutoFlowNormal` is without a context; its arguments are explained
    there. :class:`~pyro_naf.guides.amortised.AmortisedFlowNormal` lets f, loc and S depend on data.
    """

    heavy_tails = False
    tail_index: Tensor  # set as a PyroParam
    #: Width of the context.
    context_dim = 0
    _row_frames: tuple[CondIndepStackFrame, ...] = ()

    def __init__(
        self,
        model: Model,
        transform_fn: Callable[..., TransformModule],
        form: Form,
        init_loc_fn: Callable[..., Tensor],
        init_scale: float,
    ) -> None:
        if not init_scale > 0:
            raise ValueError(f"init_scale must be positive, got {init_scale}")
        self._init_scale = init_scale
        self.full_rank, self.inverse, self.heavy_tails = form
        self._transform_fn = transform_fn
        handled = Angles()(Deltas()(VectorizedPlates()(model)))
        super().__init__(handled, init_loc_fn=start_flat_priors(init_loc_fn))

    def _setup_prototype(self, *args: object, **kwargs: object) -> None:
        super()._setup_prototype(*args, **kwargs)
        self._set_up_layout(*args, **kwargs)
        refuse_local_latents(self._cond_indep_stacks, self._row_frames, type(self).__name__)
        self._set_up_affine(self._init_loc(), self._init_scale)
        point = {name: place.site["value"] for name, place in self._layout.places.items()}
        warn_of_start(self.model, point, args, kwargs)
        self._special = self._find_special(args, kwargs)
        if self.heavy_tails:
            start = torch.full_like(self.loc, TAIL_INDEX)
            self.tail_index = PyroParam(start, constraints.unit_interval)
        with poutine.block():  # the first call may be traced
            self.structure = self._find_structure(args, kwargs)
        self._set_up_factor()
        self.flow = self._make_flow().to(self.loc.device, self.loc.dtype)

    # What is found out, or made, at the first call.

    @property
    def row_frames(self) -> tuple[CondIndepStackFrame, ...]:
        """Frames of the plates whose elements have latent vectors, and contexts, of their own."""
        return self._row_frames

    @staticmethod
    def _prototype_hide_fn(msg: Message) -> bool:
        """Finite discrete latents are no latents of the guide: TraceEnum_ELBO sums them out."""
        if AutoContinuous._prototype_hide_fn(msg):
            return True
        return bool(msg["fn"].support.is_discrete and msg["fn"].has_enumerate_support)

    def _set_up_layout(self, *args: object, **kwargs: object) -> None:
        """Find the places of the latents in the vector, and its length D."""
        self._layout = Layout(
            [site for _, site in self.prototype_trace.iter_stochastic_nodes()],
            self._unconstrained_shapes,
            [frame.dim for frame in self._row_frames],
        )
        self.latent_dim = self._layout.latent_dim

    def _joint(self, args: Args, kwargs: Kwargs) -> JointDensity:
        """Return the model's joint density; inference knows it, which stands above the guides."""
        raise NotImplementedError

    def _find_special(self, args: Args, kwargs: Kwargs) -> SpecialSites:
        sites = [place.site for place in self._layout.places.values()]
        return SpecialSites.of(sites, lambda: self._joint(args, kwargs))

    def _find_structure(self, args: Args, kwargs: Kwargs) -> Structure | None:
        """Return the structure of flow and affine map; None for a full guide."""
        return None

    def _make_flow(self) -> TransformModule:
        return self._transform_fn(self.latent_dim)

    def latent_vectors(self, values: Mapping[str, Tensor]) -> Tensor:
        """Latent vectors ``(N, D)`` of the sites' values, each with the same leading axes."""
        return self._layout.pack(values)[0].reshape(-1, self.latent_dim)

    def _init_loc(self) -> Tensor:
        """Return the initial latent vector, a mean over the rows."""
        values = {name: place.site["value"] for name, place in self._layout.places.items()}
        start = self.latent_vectors(values).detach()
        for site, value in self._unpack_latent(start.mean(0)):
            if not bool(value.isfinite().all()):
                raise ValueError(
                    f"init_loc_fn must start site {site['name']!r} inside of its support, got "
                    f"{site['value']}; try another, such as init_to_median or init_to_feasible"
                )
        return start.mean(0)

    def _check_set_up(self) -> None:
        if self.prototype_trace is None:
            raise RuntimeError(self._not_set_up())

    def _not_set_up(self) -> str:
        return (
            f"this {type(self).__name__} has no parameters yet: call it once with the model's "
            "arguments"
        )

    # Draws and densities.

    def forward(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """Draw all latents: a dict of site to constrained value."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        self._follow_store()
        if not self._special:
            return super().forward(*args, **kwargs)
        latent = self.sample_latent(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        free = {site["name"]: value for site, value in self._unpack_latent(latent)}
        model = None if self._model is None else self.model  # lost by a pickle
        result = {}
        for name, (value, log_density) in self._special.deltas(free, model, args, kwargs).items():
            event_dim = self._layout.places[name].site["fn"].event_dim
            with ExitStack() as stack:
                for frame in self._cond_indep_stacks[name]:
                    stack.enter_context(plates[frame.name])
                delta = dist.Delta(value, log_density=log_density, event_dim=event_dim)
                result[name] = pyro.sample(name, delta)
        return result

    def _unpack_latent(self, latent: Tensor) -> Iterator[tuple[Message, Tensor]]:
        return self._layout.unpack(latent)

    def get_base_dist(self) -> dist.TorchDistribution:
        """Return the standard normal on R^D."""
        return dist.Normal(torch.zeros_like(self.loc), torch.ones_like(self.loc)).to_event(1)

    def get_transform(self, *args: object, **kwargs: object) -> ComposeTransform:
        """Heavy tails if any, flow, then affine map; independent of the arguments."""
        self._check_set_up()
        return self._composed(self._registered("flow"), self.affine_parts())

    def _composed(self, flow: TransformModule, affine: Sequence[Transform]) -> ComposeTransform:
        flows = getattr(flow, "parts", [flow])
        if self.inverse:
            flows = [part.inv for part in reversed(flows)]
        tails = [TukeyH(self.tail_index, cache_size=1)] if self.heavy_tails else []
        return Composed([*tails, *flows, *affine])

    def log_prob(self, latents: Mapping[str, Tensor], *args: object, **kwargs: object) -> Tensor:
        r"""Log-density of the guide at given latents, in their own (constrained) space.

        .. math:: \log q(z) = \log q(u) - \sum_i \log|\det \partial z_i / \partial u_i|

        with u the unconstrained latents of the sites i; one pass through the flow's inverse.

        :param latents: site to values ``(..., *site shape)``, with the same leading axes ``...``.
        :param args: the model's arguments, as are ``kwargs``: for the context, which may have
            the same leading axes.
        :return: ``(...)``, and behind it an axis for each plate that the context has one for.
        :raises ValueError: when sites are missing or unknown, or a value's shape does not fit.

        >>> from pyro_naf.infer import AutoDSFNormal
        >>> guide = AutoDSFNormal(lambda: pyro.sample("x", dist.Gamma(2.0, 1.0)))
        >>> draw = guide()
        >>> guide.log_prob({"x": torch.ones(5)}).shape
        torch.Size([5])
        """
        with self._pyro_context:  # as in a call: the weights are registered with the param store
            self._check_set_up()
            self._special.refuse_log_prob()
            z, log_det = self._layout.pack(latents)
            posterior = self.get_posterior(*args, **kwargs)
            self._check_rows(posterior, z)
            return posterior.log_prob(z) - log_det

    def _check_rows(self, posterior: dist.TorchDistribution, z: Tensor) -> None:
        """Raise ValueError where there are other rows of contexts than of latent vectors z."""

    # Quantiles.

    @torch.no_grad()
    def median(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """Return the median of each latent, site to tensor; see :meth:`quantiles`."""
        return {name: q[0] for name, q in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: object, **kwargs: object
    ) -> dict[str, Tensor]:
        r"""Marginal quantiles of each latent.

        They are exact where a latent moves with one entry of :math:`\epsilon` alone (D = 1, or the
        first of a single flow's order). Others come from N points of a scrambled Sobol sequence:
        at level p the guide's mass below the result has a standard error of at most
        :math:`\sqrt{p (1 - p) / N}`. N is 16,384, and more for extreme levels, so that 100 points
        lie beyond them, up to :math:`2^{20}`. The sequence is fixed: the result is deterministic
        and leaves random generators alone.

        As in Pyro's guides a latent of several entries that are constrained together, such as a
        simplex, has its unconstrained entries' quantiles mapped into its support.

        :param quantiles: numbers in (0, 1), shape ``(Q,)``.
        :return: site to tensor ``(Q, ...)``.
        :raises ValueError: for a level that is not between 0 and 1.
        """
        self._check_set_up()
        levels = torch.as_tensor(quantiles, dtype=torch.double, device=self.loc.device)
        if levels.dim() != 1 or not bool(((levels > 0) & (levels < 1)).all()):
            raise ValueError(f"quantiles must be a list of numbers in (0, 1), got {quantiles}")
        points = normal_points(levels, self.loc)
        # A decreasing constraint (less_than) has its lower quantile from the upper one.
        both = torch.cat([levels, 1 - levels])
        latent = self._latent_quantiles(points, both, args, kwargs)
        result: dict[str, list[Tensor]] = {}
        for below, above in zip(*latent.chunk(2), strict=True):
            pairs = zip(self._unpack_latent(below), self._unpack_latent(above), strict=True)
            for (site, value), (_, mirrored) in pairs:
                transform = biject_to(site["fn"].support)
                value = mirrored if slope_sign(transform) < 0 else value
                result.setdefault(site["name"], []).append(transform(value))
        found = {name: torch.stack(values) for name, values in result.items()}
        if self._special.dependent:
            values = self._joint(args, kwargs).constrained(self.get_transform()(points))
            found |= self._special.quantiles(values, levels)
        return found

    def _latent_quantiles(
        self, points: Tensor, levels: Tensor, args: Args, kwargs: Kwargs
    ) -> Tensor:
        """Marginal quantiles of the latent vector, ``(Q, D)``, from standard normal points."""
        return marginal_quantiles(self.get_transform(), points, levels)

    # Its looks, copies and files.

    def table(self) -> Table:
        """Return the latents, the flows and the number of weights."""
        places = None if self.prototype_trace is None else self._layout.places
        return guide_table(self, places)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, object], prefix: str, *args: object
    ) -> None:
        """Load this guide's own tensors; of a guide that was never run, say that it cannot."""
        if self.prototype_trace is None and any(key.startswith(prefix) for key in state_dict):
            cast("list[str]", args[-1]).append(f"{self._not_set_up()} first, then load the state")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, object]:
        # Pyro's version drops the model from the guide itself, not only from its copy.
        kept = {name: self.__dict__[name] for name in ("_model", "master")}
        try:
            return super().__getstate__()
        finally:
            self.__dict__.update(kept)

    def __deepcopy__(self, memo: dict[int, object]) -> FlowNormal:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        new._model = self._model
        return new
