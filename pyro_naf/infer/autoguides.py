"""Autoguides: a flow on a standard normal, behind a trainable loc and scale."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.infer.autoguide.initialization import init_to_median
from pyro.nn.module import PyroParam
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.distributions.transforms import AffineTransform, ComposeTransform, Transform

from ..checks import check_integers
from ..transforms import AutoregressiveFlow, deep_dense_sigmoidal_flow, deep_sigmoidal_flow

#: Points of the Sobol sequence behind medians and quantiles.
_QUANTILE_POINTS = 2**14


class AutoFlowNormal(AutoContinuous):
    r"""The posterior approximated by :math:`z = \mathrm{loc} + S f(\epsilon)`, f any flow.

    :math:`\epsilon \sim N(0, I)`; S is diagonal, or lower triangular with ``full_rank``. A flow
    that starts near the identity makes the guide start as an
    :class:`~pyro.infer.autoguide.AutoDiagonalNormal` (``AutoMultivariateNormal``) with the same
    loc and scale. Sampling, and scoring one's own samples, is one pass; scoring anything else
    runs the flow's inverse.

    All parameters exist after ``_setup_prototype``, with dtype and device of the model's latents.
    A value in Pyro's param store wins over the module's, as for all of Pyro's guides; whichever it
    is, it is trained.

    :param model: a Pyro model with continuous latents of fixed shape.
    :param transform_fn: called with the latent dimension D, returns a transform of R^D.
    :param full_rank: a lower triangular S instead of a diagonal one.
    :param init_loc_fn: a per-site initialisation function of Pyro's.
    :param init_scale: initial scale > 0 of every unconstrained latent.
    :raises ValueError: when ``init_scale`` is not positive.
    :raises NotImplementedError: for latents local to a subsampled plate, whose number changes.

    >>> from pyro_naf import deep_sigmoidal_flow
    >>> def model():
    ...     return pyro.sample("x", dist.Gamma(2.0, 1.0))
    >>> guide = AutoFlowNormal(model, deep_sigmoidal_flow)
    >>> sorted(guide())
    ['x']
    """

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
        transform_fn: Callable[[int], Any],
        *,
        full_rank: bool = False,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
    ) -> None:
        if not init_scale > 0:
            raise ValueError(f"init_scale must be positive, got {init_scale}")
        self._init_scale, self.full_rank = init_scale, full_rank
        self._transform_fn = transform_fn
        super().__init__(model, init_loc_fn=init_loc_fn)

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self._refuse_local_latents()
        self.loc = nn.Parameter(self._init_loc())
        self.scale = PyroParam(torch.full_like(self.loc, self._init_scale), self.scale_constraint)
        frame = torch.ones_like(self.loc)
        if self.full_rank:
            frame = torch.diag(frame)
            self.scale_tril = PyroParam(frame.clone(), self.scale_tril_constraint)
        self.register_buffer("centre", torch.zeros_like(self.loc))
        self.register_buffer("frame", frame)
        self.flow = self._transform_fn(self.latent_dim).to(self.loc.device, self.loc.dtype)

    def _refuse_local_latents(self) -> None:
        for name, frames in self._cond_indep_stacks.items():
            for frame in frames:
                if frame.full_size is not None and frame.full_size != frame.size:
                    raise NotImplementedError(
                        f"site {name!r} is local to plate {frame.name!r}, which is subsampled "
                        f"({frame.size} of {frame.full_size}); use {type(self).__name__} for the "
                        "global latents and AutoNormal for this site, joined in an AutoGuideList"
                    )

    def get_base_dist(self) -> dist.TorchDistribution:
        """The standard normal on R^D."""
        return dist.Normal(torch.zeros_like(self.loc), torch.ones_like(self.loc)).to_event(1)

    def get_transform(self, *args: Any, **kwargs: Any) -> ComposeTransform:
        """Flow, then affine map; independent of the arguments, as NeuTra needs it."""
        if self.prototype_trace is None:
            raise RuntimeError(
                f"this {type(self).__name__} has no parameters yet: call it once with the model's "
                "arguments"
            )
        # Cached, so that the flow recognises its own samples.
        loc, factor = self.affine()
        affine = (
            dist.transforms.LowerCholeskyAffine(loc, factor, cache_size=1)
            if self.full_rank
            else AffineTransform(loc, factor, event_dim=1, cache_size=1)
        )
        flow: Any = self._registered_flow()
        return _Composed([*getattr(flow, "parts", [flow]), affine])

    def affine(self) -> tuple[Tensor, Tensor]:
        """The outermost map: its loc ``(D,)``, and its scale ``(D,)`` or factor ``(D, D)``."""
        if not self.full_rank:
            return self.centre + self.frame * self.loc, self.frame * self.scale
        factor = self.frame @ (self.scale[:, None] * self.scale_tril)
        return self.centre + self.frame @ self.loc, factor

    @torch.no_grad()
    def set_affine(self, loc: Tensor, factor: Tensor) -> None:
        """Makes this the outermost map, and the unit in which it is trained from now on.

        An optimiser's step is then the same part of the posterior's width in every direction,
        however badly scaled and correlated the latents are.

        :param loc: shape ``(D,)``.
        :param factor: scale ``(D,)``, or lower triangular factor ``(D, D)`` with ``full_rank``.
        """
        self.centre.copy_(loc)
        self.frame.copy_(factor)
        self.loc.zero_()
        self.scale = torch.ones_like(self.loc)
        if self.full_rank:
            self.scale_tril = torch.eye(self.latent_dim).to(self.loc)

    def _registered_flow(self) -> Transform:
        """The flow, its weights in step with Pyro's param store.

        Reading a plain module from a PyroModule registers its weights but leaves the module
        with its own where the store already has others: a guide created a second time would
        compute with weights that no optimiser sees.
        """
        flow: Any = self._modules["flow"]
        if self._pyro_context.active and not pyro.settings.get("module_local_params"):
            name = self._pyro_get_fullname("flow")
            self._check_store(name, flow)
            pyro.module(name, flow, update_module_params=True)
            return flow
        return self.flow

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
        """Marginal quantiles of each latent, from 16,384 points of a scrambled Sobol sequence.

        The sequence is fixed: the result is deterministic and leaves random generators alone.

        :param quantiles: numbers in (0, 1), shape ``(Q,)``.
        :return: site to tensor ``(Q, ...)``.
        """
        transform = self.get_transform(*args, **kwargs)
        # In parts: a point costs D P numbers on its way through a flow.
        normal = sobol_normal(_QUANTILE_POINTS, self.loc).split(1024)
        latent = torch.cat([transform(part) for part in normal])
        levels = torch.as_tensor(quantiles, dtype=latent.dtype, device=latent.device)
        result: dict[str, list[Tensor]] = {}
        for row in torch.quantile(latent, levels, dim=0):
            for site, value in self._unpack_latent(row):
                value = biject_to(site["fn"].support)(value)
                result.setdefault(site["name"], []).append(value)
        return {name: torch.stack(values) for name, values in result.items()}

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

    _factory: Callable[..., AutoregressiveFlow]

    def __init__(
        self,
        model: Callable[..., Any],
        *,
        num_transforms: int = 2,
        hidden_dims: Sequence[int] | None = None,
        hidden_units: int = 16,
        init_loc_fn: Callable[..., Any] = init_to_median,
        init_scale: float = 0.1,
        full_rank: bool = False,
        affine: bool = True,
        **kw: Any,
    ) -> None:
        options = dict(hidden_dims=hidden_dims, hidden_units=hidden_units, affine=affine, **kw)
        factory = partial(type(self)._factory, **options)
        super().__init__(
            model,
            _Stack(factory, num_transforms),
            init_loc_fn=init_loc_fn,
            init_scale=init_scale,
            full_rank=full_rank,
        )


class AutoDSFNormal(_AutoStackNormal):
    """A stack of deep sigmoidal flows behind a trainable loc and scale.

    The flows run through the latents in natural and reversed order by turns.

    :param model: as in :class:`AutoFlowNormal`.
    :param num_transforms: number of flows >= 1.
    :param hidden_dims: hidden widths of the conditioners, see
        :func:`~pyro_naf.transforms.deep_sigmoidal_flow`.
    :param hidden_units: K, the number of sigmoids.
    :param init_loc_fn: as in :class:`AutoFlowNormal`.
    :param init_scale: as there.
    :param full_rank: as there.
    :param affine: each conditioner gives an affine map around the sigmoids too, which funnels need.
    :param kw: further arguments of :func:`~pyro_naf.transforms.deep_sigmoidal_flow`.
    :raises ValueError: as there, and when ``num_transforms`` is below 1.

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

    _factory = staticmethod(deep_sigmoidal_flow)


class AutoDDSFNormal(_AutoStackNormal):
    """A stack of deep dense sigmoidal flows; arguments of :class:`AutoDSFNormal`.

    :param kw: further arguments of :func:`~pyro_naf.transforms.deep_dense_sigmoidal_flow`, such as
        ``num_layers``, the dense layers of each transformer.

    >>> guide = AutoDDSFNormal(lambda: pyro.sample("x", dist.Gamma(2.0, 1.0)), num_layers=2)
    >>> sorted(guide())
    ['x']
    """

    _factory = staticmethod(deep_dense_sigmoidal_flow)


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

    def __init__(self, factory: Callable[..., AutoregressiveFlow], num_transforms: int) -> None:
        check_integers(num_transforms=(num_transforms, 1))
        self.factory, self.num_transforms = factory, num_transforms

    def __call__(self, dim: int) -> ComposeTransformModule:
        orders = ("natural", "reversed")
        return ComposeTransformModule(
            [self.factory(dim, order=orders[i % 2]) for i in range(self.num_transforms)]
        )


def sobol_normal(points: int, like: Tensor) -> Tensor:
    """Standard normal points ``(points, D)`` from a scrambled Sobol sequence, always the same."""
    engine = torch.quasirandom.SobolEngine(like.shape[-1], scramble=True, seed=0)
    uniform = engine.draw(points, dtype=torch.double)
    eps = torch.finfo(torch.double).eps
    return torch.special.ndtri(uniform.clamp(eps, 1 - eps)).to(like.device, like.dtype)
