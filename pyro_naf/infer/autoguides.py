"""Autoguides: a flow on a standard normal, behind a trainable loc and scale."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.conditional import ConditionalComposeTransformModule
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.infer.autoguide.initialization import init_to_median
from pyro.nn.module import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.distributions.transforms import AffineTransform, ComposeTransform, Transform

from ..conditioners import Structure
from ..flows.heavy_tails import START as TAIL_INDEX
from ..flows.heavy_tails import TukeyH
from ..flows.linear import factor_of
from ..support.checks import check_integers
from ..support.tables import Shown, Table
from ..transforms import (
    DeepDenseSigmoidalFlow,
    DeepSigmoidalFlow,
    conditional_deep_dense_sigmoidal_flow,
    conditional_deep_sigmoidal_flow,
    deep_dense_sigmoidal_flow,
    deep_sigmoidal_flow,
)
from .contexts import (
    ContextAffine,
    align,
    check_broadcast,
    check_context,
    check_context_arguments,
    row_plates,
    rows_of,
    warn_of_raw,
    warn_of_untrained,
)
from .flat_priors import start_flat_priors
from .graph import check_structure
from .guide_table import guide_table
from .joint import Joint
from .layout import Layout
from .quantiles import NUMBERS, marginal_quantiles, normal_points, slope_sign
from .sites import Angles, VectorizedPlates, site_log_probs
from .special import SpecialSites
from .structured import StructuredAffineMap, structured_flows


class AutoFlowNormal(Shown, StructuredAffineMap, AutoContinuous):
    r"""The posterior approximated by :math:`z = \mathrm{loc} + S f(\epsilon)`, f any flow.

    :math:`\epsilon \sim N(0, I)`; S is diagonal, or lower triangular with ``full_rank``. A flow
    that starts near the identity makes the guide start as an
    :class:`~pyro.infer.autoguide.AutoDiagonalNormal` (``AutoMultivariateNormal``) with the same
    loc and scale. Sampling, and scoring one's own samples, is one pass; scoring anything else
    runs the flow's inverse.

    With ``inverse`` the flow maps latents to :math:`\epsilon`: :math:`z = \mathrm{loc} + S
    f^{-1}(\epsilon)`. Then scoring anything is one pass, and drawing runs the inverse. An
    autoregressive flow's conditionals are mixtures then, with as little as one likes between their
    parts: this is for several modes, and for :class:`~pyro_naf.infer.ForwardKL`.

    A flow of sigmoids is linear far out, so that the guide's tails are a normal's. With
    ``heavy_tails`` each entry of :math:`\epsilon` passes Tukey's h map first
    (:class:`~pyro_naf.flows.heavy_tails.TukeyH`): :math:`z = \mathrm{loc} + S f(\epsilon\,
    e^{h \epsilon^2 / 2})`, whose tails are those of Student's t with 1/h degrees of freedom. The
    tail indices h in (0, 1) are trained, as ``tail_index``, from about zero on.

    With a ``context_fn``, the flow, loc and S depend on the data: what it returns for the arguments
    is the context c of a conditional flow, :math:`z = \mathrm{loc} + m(c) + \mathrm{diag}(e^{s(c)})
    S f(\epsilon; c)`, and the guide is the posterior for any data set that it was trained on the
    likes of (Trace_ELBO, or :class:`~pyro_naf.infer.ForwardKL` on simulated data). The context has
    shape ``(C,)``, or an axis for each of the outermost plates around all latents, such as
    ``(B, C)``: then the latents of each element have a density of their own, D counts those of one
    element, and B may change from call to call. The rows are those of the arguments: all elements
    of the plate, of which the guide takes a subsample, or only those that the subsample has, as
    when the arguments are a minibatch.

    All parameters exist after ``_setup_prototype``, with dtype and device of the model's latents.
    A value in Pyro's param store wins over the module's, as for all of Pyro's guides; whichever it
    is, it is trained.

    :param model: a Pyro model with continuous latents of fixed shape.
    :param transform_fn: called with the latent dimension D, returns a transform of R^D.
    :param full_rank: a lower triangular S instead of a diagonal one.
    :param inverse: the flow maps latents to base, and not base to latents.
    :param heavy_tails: tails as heavy as those of Student's t.
    :param init_loc_fn: a per-site initialisation function of Pyro's. Where it would have to sample
        an ``ImproperUniform`` prior, the site starts at zero, unconstrained.
    :param init_scale: initial scale > 0 of every unconstrained latent.
    :param context_fn: maps the model's arguments to a context ``(..., C)``; best standardised. A
        module is trained with the guide.
    :param context_dim: C. With a context, ``transform_fn(D, C)`` returns a conditional transform.
    :param create_plates: as for Pyro's guides: maps the model's arguments to the plates of this
        call. Without it a new number of rows makes the guide run the model for its plates' sizes.
    :raises ValueError: when ``init_scale`` is not positive, or only one of ``context_fn`` and
        ``context_dim`` is given; when called, for a start that is not inside of the support, for a
        context that is not finite, or whose shape does not fit ``context_dim`` and the plates
        around the latents.
    :warns UserWarning: when the model's log-density is not finite at the start, naming the sites.
    :raises NotImplementedError: for latents local to a subsampled plate, whose number changes,
        unless the context has an axis for it.

    >>> from pyro_naf import deep_sigmoidal_flow
    >>> def model():
    ...     return pyro.sample("x", dist.Gamma(2.0, 1.0))
    >>> guide = AutoFlowNormal(model, deep_sigmoidal_flow)
    >>> sorted(guide())
    ['x']

    A posterior for each row y of any number of them:

    >>> pyro.clear_param_store()  # of the guide before, which has the same name
    >>> from pyro_naf import conditional_deep_sigmoidal_flow
    >>> def model(y):
    ...     with pyro.plate("sets", len(y)):
    ...         x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...         pyro.sample("y", dist.Normal(x.unsqueeze(-1), 1.0).to_event(1), obs=y)
    >>> guide = AutoFlowNormal(
    ...     model, conditional_deep_sigmoidal_flow, context_fn=lambda y: y, context_dim=3
    ... )
    >>> guide(torch.randn(5, 3))["x"].shape, guide(torch.randn(7, 3))["x"].shape
    (torch.Size([5]), torch.Size([7]))
    """

    #: Found at set-up where one was asked for; None for a full guide.
    structure: Structure | None = None
    _asked_structure: Any = "full"
    heavy_tails = False
    tail_index: Any  # a PyroParam when set, a tensor when read
    loc: Tensor
    centre: Tensor
    frame: Tensor
    scale: Any  # a PyroParam when set, a tensor when read
    scale_tril: Any
    scale_constraint = constraints.softplus_positive
    scale_tril_constraint = constraints.unit_lower_cholesky

    def __init__(
        self,
        model: Callable[..., Any],
        transform_fn: Callable[..., Any],
        *,
        full_rank: bool = False,
        inverse: bool = False,
        heavy_tails: bool = False,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        context_fn: Callable[..., Tensor] | None = None,
        context_dim: int = 0,
        create_plates: Callable[..., Any] | None = None,
    ) -> None:
        if not init_scale > 0:
            raise ValueError(f"init_scale must be positive, got {init_scale}")
        check_context_arguments(context_fn, context_dim)
        self._init_scale, self.full_rank, self.inverse = init_scale, full_rank, inverse
        self.heavy_tails = heavy_tails
        self._transform_fn = transform_fn
        handled = Angles()(VectorizedPlates()(model))
        super().__init__(handled, init_loc_fn=start_flat_priors(init_loc_fn))
        self.context_fn, self.context_dim = context_fn, context_dim
        self.create_plates = create_plates

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self._set_up_rows(*args, **kwargs)
        self._refuse_local_latents()
        self.loc = nn.Parameter(self._init_loc())
        self._warn_of_start(*args, **kwargs)
        self._special = SpecialSites.of(self, args, kwargs)
        self.scale = PyroParam(torch.full_like(self.loc, self._init_scale), self.scale_constraint)
        if self.heavy_tails:
            start = torch.full_like(self.loc, TAIL_INDEX)
            self.tail_index = PyroParam(start, constraints.unit_interval)
        with poutine.block():  # the first call may be traced
            self.structure = self._find_structure(
                self._asked_structure, lambda: Joint(self.model, args, kwargs)
            )
        frame = torch.ones_like(self.loc)
        if self.structure is not None:
            frame = torch.diag(frame)
            self._set_up_coupling(self.structure)
        elif self.full_rank:
            frame = torch.diag(frame)
            self.scale_tril = PyroParam(frame.clone(), self.scale_tril_constraint)
        self.register_buffer("centre", torch.zeros_like(self.loc))
        self.register_buffer("frame", frame)
        context_dim = (self.context_dim,) if self.context_dim else ()
        flow = self._make_flow(*context_dim)
        if self.context_dim and not hasattr(flow, "condition"):
            raise TypeError(
                "transform_fn must return a conditional transform for a guide with a context, got "
                f"{type(flow).__name__}"
            )
        self.flow = flow.to(self.loc.device, self.loc.dtype)
        if self.context_dim:
            affine = ContextAffine(self.context_dim, self.latent_dim)
            self.context_affine = affine.to(self.loc.device, self.loc.dtype)

    def table(self) -> Table:
        """The latents, the flows and the number of weights."""
        return guide_table(self)

    @staticmethod
    def _prototype_hide_fn(msg: Any) -> bool:
        """Finite discrete latents are no latents of the guide: TraceEnum_ELBO sums them out."""
        if AutoContinuous._prototype_hide_fn(msg):
            return True
        return bool(msg["fn"].support.is_discrete and msg["fn"].has_enumerate_support)

    def _make_flow(self, *context_dim: int) -> Any:
        return self._transform_fn(self.latent_dim, *context_dim)

    def _set_up_rows(self, *args: Any, **kwargs: Any) -> None:
        """Tells the plates whose elements have contexts of their own; D counts one element's."""
        self._row_frames: tuple[Any, ...] = ()
        if self.context_dim:
            context = self._context(*args, **kwargs)
            warn_of_raw(context)
            warn_of_untrained(self.context_fn, args, kwargs)
            self._row_frames = row_plates(self._cond_indep_stacks, context)
            self._num_rows = context.shape[:-1]
        self._layout = Layout(
            [site for _, site in self.prototype_trace.iter_stochastic_nodes()],
            self._unconstrained_shapes,
            [frame.dim for frame in self._row_frames],
        )
        self.latent_dim = self._layout.latent_dim

    def _refuse_local_latents(self) -> None:
        for name, frames in self._cond_indep_stacks.items():
            for frame in frames:
                if frame in self._row_frames:
                    continue
                if frame.full_size is not None and frame.full_size != frame.size:
                    raise NotImplementedError(
                        f"site {name!r} is local to plate {frame.name!r}, which is subsampled "
                        f"({frame.size} of {frame.full_size}); use {type(self).__name__} for the "
                        "global latents and AutoNormal for this site, joined in an AutoGuideList"
                    )

    def _warn_of_start(self, *args: Any, **kwargs: Any) -> None:
        """Names the sites, data among them, that make training hopeless from here."""
        if torch._C._get_tracing_state():
            return
        point = {name: place.site["value"] for name, place in self._layout.places.items()}
        try:
            with poutine.block(), pyro.validation_enabled(False):
                conditioned = poutine.condition(self.model, data=point)
                trace = poutine.trace(conditioned).get_trace(*args, **kwargs)
                found = site_log_probs(trace)
        except NotImplementedError:  # a simulator, for ForwardKL
            return
        except (RuntimeError, ValueError) as error:
            with poutine.block():
                nodes = poutine.trace(self.model).get_trace(*args, **kwargs).nodes
            changed = [
                name
                for name, value in point.items()
                if name not in nodes or nodes[name]["value"].shape != value.shape
            ]
            raise ValueError(
                f"the model cannot be run again with its first latents ({error}): latents must "
                f"have a fixed shape, see {changed or sorted(point)}; pad those that have not, and "
                "mask"
            ) from error
        if bad := [name for name, value in found.items() if not bool(value.isfinite().all())]:
            warnings.warn(
                f"the model's log-density is not finite where the guide starts, because of {bad}; "
                "look for NaN or impossible values in their data, or try another init_loc_fn",
                stacklevel=2,
            )

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw all latents: a dict of site to constrained value."""
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
        self._follow_store()
        if not self._special:
            return super().forward(*args, **kwargs)
        latent = self.sample_latent(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        free = {site["name"]: value for site, value in self._unpack_latent(latent)}
        result = {}
        for name, (value, log_density) in self._special.deltas(free, self, args, kwargs).items():
            event_dim = self._layout.places[name].site["fn"].event_dim
            with ExitStack() as stack:
                for frame in self._cond_indep_stacks[name]:
                    stack.enter_context(plates[frame.name])
                delta = dist.Delta(value, log_density=log_density, event_dim=event_dim)
                result[name] = pyro.sample(name, delta)
        return result

    def get_base_dist(self) -> dist.TorchDistribution:
        """The standard normal on R^D."""
        return dist.Normal(torch.zeros_like(self.loc), torch.ones_like(self.loc)).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> ComposeTransform:
        """Heavy tails if any, flow, then affine map, for the context of these arguments.

        Without ``context_fn`` independent of them, as NeuTra needs it; with it, NeuTra takes a
        copy of the guide whose ``context_fn`` ignores its arguments.
        """
        self._check_set_up()
        return self._transform(self._aligned_context(*args, **kwargs))

    def _transform(self, context: Tensor | None) -> ComposeTransform:
        flow: Any = self._registered("flow")
        flow = flow if context is None else flow.condition(context)
        flows = getattr(flow, "parts", [flow])
        if self.inverse:
            flows = [part.inv for part in reversed(flows)]
        tails = [TukeyH(self.tail_index, cache_size=1)] if self.heavy_tails else []
        return _Composed([*tails, *flows, *self._outer(context)])

    def _outer(self, context: Tensor | None) -> list[Transform]:
        """The affine map, in parts; cached, so that the flow recognises its own samples."""
        if context is not None:
            shift, log_scale = self._registered("context_affine")(context)
            loc, scale = self.loc + shift, self.scale * log_scale.exp()
            outer = AffineTransform(loc, scale, event_dim=1, cache_size=1)
            if not self.full_rank:
                return [outer]
            origin = torch.zeros_like(self.loc)
            inner = dist.transforms.LowerCholeskyAffine(origin, self.scale_tril, cache_size=1)
            return [inner, outer]
        if self.structure is not None:
            return self._structured_outer(self.structure)
        loc, factor = self.affine()
        if self.full_rank:
            return [dist.transforms.LowerCholeskyAffine(loc, factor, cache_size=1)]
        return [AffineTransform(loc, factor, event_dim=1, cache_size=1)]

    def _check_set_up(self) -> None:
        if self.prototype_trace is None:
            raise RuntimeError(self._not_set_up())

    def _not_set_up(self) -> str:
        return (
            f"this {type(self).__name__} has no parameters yet: call it once with the model's "
            "arguments"
        )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Loads this guide's own tensors; of a guide that was never run, says that it cannot."""
        if self.prototype_trace is None and any(key.startswith(prefix) for key in state_dict):
            error_msgs: list[str] = args[-1]
            error_msgs.append(f"{self._not_set_up()} first, then load the state")
            return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _context(self, *args: Any, **kwargs: Any) -> Tensor:
        """The context of these arguments, ``(..., C)``, with the dtype of the latents."""
        module = "context_fn" in self._modules
        context_fn: Any = self._registered("context_fn") if module else self.context_fn
        context = check_context(context_fn(*args, **kwargs), self.context_dim)
        like = next(site["value"] for _, site in self.prototype_trace.iter_stochastic_nodes())
        return context.to(like.device, like.dtype)

    def _aligned_context(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """The same with its axes where the plates are; None for a guide without context."""
        if not self.context_dim:
            return None
        return align(self._context(*args, **kwargs), self._layout.row_dims)

    def sample_latent(self, *args: Any, **kwargs: Any) -> Tensor:
        """Samples the latent vector, one for each row of the context."""
        if not self.context_dim:
            return super().sample_latent(*args, **kwargs)
        context = self._context(*args, **kwargs)
        self._follow_plates(context, *args, **kwargs)
        plates = super()._create_plates(*args, **kwargs)
        for i, frame in enumerate(self._row_frames):
            context = rows_of(context, i, plates[frame.name])
        context = align(context, self._layout.row_dims)
        posterior = dist.TransformedDistribution(self.get_base_dist(), self._transform(context))
        with ExitStack() as stack:
            for frame in self._row_frames:
                stack.enter_context(plates[frame.name])
            name = f"_{self._pyro_name}_latent"
            return pyro.sample(name, posterior, infer={"is_auxiliary": True})

    def _create_plates(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not self.context_dim:
            return super()._create_plates(*args, **kwargs)
        return self.plates  # of this call: sample_latent comes first

    def _follow_plates(self, context: Tensor, *args: Any, **kwargs: Any) -> None:
        """Learns the plates' sizes, and how they are subsampled, when there are other rows."""
        rows = context.shape[:-1]
        if len(rows) != len(self._row_frames):
            names = [frame.name for frame in self._row_frames]
            raise ValueError(
                f"context_fn must return shape ({'n, ' * len(names)}{self.context_dim}), an axis "
                f"for each of the plates {names}, got {tuple(context.shape)}"
            )
        if rows == self._num_rows or self.master is not None or self.create_plates is not None:
            return
        self._num_rows = rows
        if self._model is not None:
            model = poutine.block(self.model, self._prototype_hide_fn)
            # The model's draws are thrown away: a call draws the same, whatever rows came before.
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                trace = poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)
            frames = [
                f for _, site in trace.iter_stochastic_nodes() for f in site["cond_indep_stack"]
            ]
            self._prototype_frames |= {
                f.name: f for f in frames if f.name in self._prototype_frames
            }
            return
        # Pickled without its model: a plate that was whole is taken to be so again.
        for frame, n in zip(self._row_frames, rows, strict=True):
            old = self._prototype_frames[frame.name]
            whole = old.size == (old.full_size or old.size)
            self._prototype_frames[frame.name] = old._replace(
                size=n, full_size=n if whole else old.full_size
            )

    def log_prob(self, latents: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        r"""Log-density of the guide at given latents, in their own (constrained) space.

        .. math:: \log q(z) = \log q(u) - \sum_i \log|\det \partial z_i / \partial u_i|

        with u the unconstrained latents of the sites i; one pass through the flow's inverse.

        :param latents: site to values ``(..., *site shape)``, with the same leading axes ``...``.
        :param args: the model's arguments, as are ``kwargs``: for the context, which may have
            the same leading axes.
        :return: ``(...)``, and behind it an axis for each plate that the context has one for.
        :raises ValueError: when sites are missing or unknown, or a value's shape does not fit.

        >>> pyro.clear_param_store()
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
            check_broadcast(posterior.batch_shape, z.shape[:-1])
            return posterior.log_prob(z) - log_det

    def _init_loc(self) -> Tensor:
        """The initial latent vector, a mean over the rows."""
        values = {name: place.site["value"] for name, place in self._layout.places.items()}
        start = self._layout.pack(values)[0].detach().reshape(-1, self.latent_dim)
        for site, value in self._unpack_latent(start.mean(0)):
            if not bool(value.isfinite().all()):
                raise ValueError(
                    f"init_loc_fn must start site {site['name']!r} inside of its support, got "
                    f"{site['value']}; try another, such as init_to_median or init_to_feasible"
                )
        return start.mean(0)

    def _unpack_latent(self, latent: Tensor) -> Iterator[tuple[dict[str, Any], Tensor]]:
        return self._layout.unpack(latent)

    def affine(self) -> tuple[Tensor, Tensor]:
        """The outermost map: its loc ``(D,)``, and its scale ``(D,)`` or factor ``(D, D)``."""
        if self.structure is not None:
            return self._structured_affine(self.structure)
        if not self.full_rank:
            return self.centre + self.frame * self.loc, self.frame * self.scale
        factor = self.frame @ (self.scale[:, None] * self.scale_tril)
        return self.centre + self.frame @ self.loc, factor

    @torch.no_grad()
    def set_affine(
        self, loc: Tensor, factor: Tensor | None = None, *, precision: Tensor | None = None
    ) -> None:
        """Makes this the outermost map, and the unit in which it is trained from now on.

        An optimiser's step is then the same part of the posterior's width in every direction,
        however badly scaled and correlated the latents are. For guides without a context.

        :param loc: shape ``(D,)``.
        :param factor: scale ``(D,)``, or lower triangular factor ``(D, D)`` with ``full_rank``. A
            guide with a structure takes both, and of any other factor the Gaussian of the
            structure that is closest.
        :param precision: instead of a factor, for a guide with a structure: the inverse ``(D, D)``
            of the covariance.
        :raises ValueError: when not exactly one of the two is given, or for a precision without a
            structure.
        """
        if precision is not None and factor is None and self.structure is not None:
            factor = factor_of(self.structure, precision=precision)
        elif precision is not None or factor is None:
            raise ValueError(
                "set_affine takes a factor, or for a guide with a structure a precision instead"
            )
        if self.structure is not None:
            self._set_structured_affine(self.structure, loc, factor)
            return
        self.centre.copy_(loc)
        self.frame.copy_(factor)
        self.loc.zero_()
        self.scale = torch.ones_like(self.loc)
        if self.full_rank:
            self.scale_tril = torch.eye(self.latent_dim).to(self.loc)

    def _follow_store(self) -> None:
        """Exchange own parameters for those put into Pyro's param store since the last call.

        Reading a plain parameter from a PyroModule gives the module's own, though the store may
        hold another one, such as one loaded from a file, and that is what the optimiser moves.
        Setting it takes the store's.
        """
        if not self._pyro_context.active or pyro.settings.get("module_local_params"):
            return
        store = pyro.get_param_store()
        for name, own in list(self._parameters.items()):
            full_name = self._pyro_get_fullname(name)  # a PyroParam's is none of the store's
            if full_name in store and store[full_name] is not own:
                del self._parameters[name]
                setattr(self, name, own)

    def _registered(self, name: str) -> Any:
        """A module of this one's, its weights in step with Pyro's param store.

        Reading a plain module from a PyroModule registers its weights but leaves the module
        with its own where the store already has others: a guide created a second time would
        compute with weights that no optimiser sees.
        """
        module: Any = self._modules[name]
        if not any(weight.requires_grad for weight in module.parameters()):
            return module  # frozen, or without weights: nothing to register
        if (
            self._pyro_context.active
            and not isinstance(module, PyroModule)
            and not pyro.settings.get("module_local_params")
        ):
            full_name = self._pyro_get_fullname(name)
            self._check_store(full_name, module)
            pyro.module(full_name, module, update_module_params=True)
            return module
        return getattr(self, name)

    @staticmethod
    def _check_store(name: str, flow: nn.Module) -> None:
        store = pyro.get_param_store()
        for key, weight in flow.named_parameters():
            full_name = pyro.params.param_store.param_with_module_name(name, key)
            if full_name in store and store[full_name] is weight:
                return  # registered before, and all the others with it
            if full_name in store and store[full_name].shape != weight.shape:
                raise ValueError(
                    f"the param store holds {full_name!r} with shape "
                    f"{tuple(store[full_name].shape)}, this guide's has {tuple(weight.shape)}: it "
                    "is left from another guide of the same name; call pyro.clear_param_store()"
                )

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The median of each latent, site to tensor; see :meth:`quantiles`."""
        return {name: q[0] for name, q in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Sequence[float] | Tensor, *args: Any, **kwargs: Any
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
        context = self._aligned_context(*args, **kwargs)
        # A decreasing constraint (less_than) has its lower quantile from the upper one.
        both = torch.cat([levels, 1 - levels])
        points = normal_points(levels, self.loc)
        if self._special.dependent:
            latents = self._transform(None)(points)
        if context is None:
            latent = marginal_quantiles(self._transform(None), points, both)
        else:
            rows = context.flatten(0, -2) if context.dim() > 1 else context[None]
            parts = rows.split(max(1, NUMBERS // points.numel()))
            latent = torch.cat(
                [marginal_quantiles(self._transform(p), points[:, None], both) for p in parts], 1
            )
            latent = latent.reshape(-1, *context.shape[:-1], self.latent_dim)
        result: dict[str, list[Tensor]] = {}
        for below, above in zip(*latent.chunk(2), strict=True):
            pairs = zip(self._unpack_latent(below), self._unpack_latent(above), strict=True)
            for (site, value), (_, mirrored) in pairs:
                transform = biject_to(site["fn"].support)
                value = mirrored if slope_sign(transform) < 0 else value
                result.setdefault(site["name"], []).append(transform(value))
        found = {name: torch.stack(values) for name, values in result.items()}
        if self._special.dependent:
            found |= self._special.quantiles(latents, levels, self, args, kwargs)
        return found

    def __getstate__(self) -> dict[str, Any]:
        # Pyro's version drops the model from the guide itself, not only from its copy.
        kept = {name: self.__dict__[name] for name in ("_model", "master")}
        try:
            return super().__getstate__()
        finally:
            self.__dict__.update(kept)

    def __deepcopy__(self, memo: dict[int, Any]) -> AutoFlowNormal:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        new._model = self._model
        return new


class _AutoStackNormal(AutoFlowNormal):
    """A stack of flows, in natural and reversed order by turns."""

    _factory: Callable[..., Any]
    _conditional_factory: Callable[..., Any]
    _flow: type[DeepSigmoidalFlow] | type[DeepDenseSigmoidalFlow]

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        structure: Any = "full",
        num_transforms: int = 2,
        hidden_dims: Sequence[int] | None = None,
        hidden_units: int = 16,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        full_rank: bool = False,
        inverse: bool = False,
        heavy_tails: bool = False,
        affine: bool = True,
        context_fn: Callable[..., Tensor] | None = None,
        context_dim: int = 0,
        create_plates: Callable[..., Any] | None = None,
        **kw: Any,
    ) -> None:
        if context_dim and not (isinstance(structure, str) and structure == "full"):
            raise ValueError("structure must be 'full' for a guide with a context")
        self._asked_structure = check_structure(structure)
        factory = type(self)._conditional_factory if context_dim else type(self)._factory
        # With a context its affine map does that, and holds for contexts far from those seen.
        affine = affine and not context_dim
        options = dict(hidden_dims=hidden_dims, hidden_units=hidden_units, affine=affine, **kw)
        self._options = dict(options, num_transforms=num_transforms, inverse=inverse)
        factory = partial(factory, **options)
        super().__init__(
            model,
            _Stack(factory, num_transforms),
            init_loc_fn=init_loc_fn,
            init_scale=init_scale,
            full_rank=full_rank,
            inverse=inverse,
            heavy_tails=heavy_tails,
            context_fn=context_fn,
            context_dim=context_dim,
            create_plates=create_plates,
        )

    def _make_flow(self, *context_dim: int) -> Any:
        if self.structure is None:
            return super()._make_flow(*context_dim)
        return structured_flows(type(self)._flow, self.structure, **self._options)


class AutoDSFNormal(_AutoStackNormal):
    """A stack of deep sigmoidal flows behind a trainable loc and scale.

    The flows run through the latents in natural and reversed order by turns. With a structure they
    run in its order, each latent reads its ancestors only, and the affine map has this pattern too:
    nothing is lost, and hundreds of latents are no obstacle (see
    :class:`~pyro_naf.conditioners.Structure`).

    :param model: as in :class:`AutoFlowNormal`.
    :param structure: "full"; "auto", which looks for the structure of the model's log-density at
        set-up and takes it where it pays, from 30 latents on; an adjacency ``(D, D)`` of the
        unconstrained latents, in the order of the latent vector; or a
        :class:`~pyro_naf.conditioners.Structure`. Not for a guide with a context.
    :param num_transforms: number of flows >= 1.
    :param hidden_dims: hidden widths of the conditioners, see
        :func:`~pyro_naf.transforms.deep_sigmoidal_flow`.
    :param hidden_units: K, the number of sigmoids.
    :param init_loc_fn: as in :class:`AutoFlowNormal`.
    :param init_scale: as there.
    :param full_rank: as there, as are ``inverse``, ``heavy_tails``, ``context_fn``,
        ``context_dim`` and ``create_plates``.
    :param affine: each conditioner gives an affine map around the sigmoids too, which funnels need.
    :param kw: further arguments of :func:`~pyro_naf.transforms.deep_sigmoidal_flow`, such as
        ``conditioner="attention"``.
    :raises ValueError: as there, when ``num_transforms`` is below 1, for a structure that is no
        adjacency, and at set-up for one of another size than the model's latents.

    >>> from pyro.infer import SVI, Trace_ELBO
    >>> from pyro.optim import Adam
    >>> def model():
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(x.abs(), 0.3), obs=torch.tensor(1.0))
    >>> guide = AutoDSFNormal(model)
    >>> svi = SVI(model, guide, Adam({"lr": 1e-2}), Trace_ELBO())
    >>> loss = svi.step()
    >>> sorted(guide.median())
    ['x']
    """

    _flow = DeepSigmoidalFlow
    _factory = staticmethod(deep_sigmoidal_flow)
    _conditional_factory = staticmethod(conditional_deep_sigmoidal_flow)


class AutoDDSFNormal(_AutoStackNormal):
    """A stack of deep dense sigmoidal flows; arguments of :class:`AutoDSFNormal`.

    :param kw: further arguments of :func:`~pyro_naf.transforms.deep_dense_sigmoidal_flow`, such as
        ``num_layers``, the dense layers of each transformer.

    >>> guide = AutoDDSFNormal(lambda: pyro.sample("x", dist.Gamma(2.0, 1.0)), num_layers=2)
    >>> sorted(guide())
    ['x']
    """

    _flow = DeepDenseSigmoidalFlow
    _factory = staticmethod(deep_dense_sigmoidal_flow)
    _conditional_factory = staticmethod(conditional_deep_dense_sigmoidal_flow)


class _Composed(ComposeTransform):
    """Transforms of R^D one after another; torch asks each for its domain a dozen times a step."""

    bijective = True
    domain = codomain = constraints.real_vector

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        total = x.new_zeros(())
        for i, part in enumerate(self.parts):
            image = part(x) if i < len(self.parts) - 1 else y
            log_det = part.log_abs_det_jacobian(x, image)
            total = total + (log_det if part.domain.event_dim else log_det.sum(-1))
            x = image
        return total


class _Stack:
    """Flows in natural and reversed order by turns; a class, so that guides can be pickled."""

    def __init__(self, factory: Callable[..., Any], num_transforms: int) -> None:
        check_integers(num_transforms=(num_transforms, 1))
        self.factory, self.num_transforms = factory, num_transforms

    def __call__(self, dim: int, *context_dim: int) -> nn.Module:
        orders = [("natural", "reversed")[i % 2] for i in range(self.num_transforms)]
        flows = [self.factory(dim, *context_dim, order=order) for order in orders]
        if context_dim:
            return ConditionalComposeTransformModule(flows)
        return ComposeTransformModule(flows)
