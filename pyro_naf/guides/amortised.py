"""A guide for any data set: its flow, loc and scale depend on a context, made of the arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.torch_transform import TransformModule
from pyro.infer.autoguide.initialization import init_to_median
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor
from torch.distributions.transforms import AffineTransform, ComposeTransform, Transform

from ..support.calls import Args, Kwargs, Model
from ..support.seeding import kept
from .base import FlowNormal, Form
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
from .quantiles import NUMBERS, marginal_quantiles
from .special import SpecialSites


class AmortisedFlowNormal(FlowNormal):
    r"""A :class:`~pyro_naf.guides.base.FlowNormal` for the data that its context stands for.

    .. math:: z = \mathrm{loc} + m(c) + \mathrm{diag}(e^{s(c)}) S f(\epsilon; c)

    The context c is what ``context_fn`` returns for the model's arguments. Without ``context_fn``
    it is its parent class. Arguments and shapes are explained at
    :class:`~pyro_naf.infer.AutoFlowNormal`.
    """

    def __init__(
        self,
        model: Model,
        transform_fn: Callable[..., TransformModule],
        *,
        full_rank: bool = False,
        inverse: bool = False,
        heavy_tails: bool = False,
        init_loc_fn: Callable[..., Tensor] = init_to_median,
        init_scale: float = 0.1,
        context_fn: Callable[..., Tensor] | None = None,
        context_dim: int = 0,
        create_plates: Callable[..., pyro.plate | Sequence[pyro.plate]] | None = None,
    ) -> None:
        check_context_arguments(context_fn, context_dim)
        form = Form(full_rank, inverse, heavy_tails)
        super().__init__(model, transform_fn, form, init_loc_fn, init_scale)
        self.context_fn, self.context_dim = context_fn, context_dim
        self.create_plates = create_plates

    def _setup_prototype(self, *args: object, **kwargs: object) -> None:
        super()._setup_prototype(*args, **kwargs)
        if self.context_dim:
            affine = ContextAffine(self.context_dim, self.latent_dim)
            self.context_affine = affine.to(self.loc.device, self.loc.dtype)

    def _set_up_layout(self, *args: object, **kwargs: object) -> None:
        """Tell the plates whose elements have contexts of their own; D counts one element's."""
        self._row_frames = ()
        if self.context_dim:
            context = self._context(*args, **kwargs)
            warn_of_raw(context)
            warn_of_untrained(self.context_fn, args, kwargs)
            self._row_frames = row_plates(self._cond_indep_stacks, context)
            self._num_rows = context.shape[:-1]
        super()._set_up_layout(*args, **kwargs)

    def _find_special(self, args: Args, kwargs: Kwargs) -> SpecialSites:
        special = super()._find_special(args, kwargs)
        if special.dependent and self.context_dim:
            raise ValueError(
                f"the support of {special.dependent} depends on other latents, which a guide with "
                "a context_fn cannot follow; write x = lower + (upper - lower) * fraction with a "
                "latent fraction in (0, 1)"
            )
        return special

    def _make_flow(self) -> TransformModule:
        if not self.context_dim:
            return super()._make_flow()
        flow = self._transform_fn(self.latent_dim, self.context_dim)
        if not hasattr(flow, "condition"):
            raise TypeError(
                "transform_fn must return a conditional transform for a guide with a context, got "
                f"{type(flow).__name__}"
            )
        return flow

    # The context and what depends on it.

    def _context(self, *args: object, **kwargs: object) -> Tensor:
        """Return the context of these arguments, ``(..., C)``, with the dtype of the latents."""
        module = "context_fn" in self._modules
        context_fn = self._registered("context_fn") if module else self.context_fn
        assert context_fn is not None
        context = check_context(context_fn(*args, **kwargs), self.context_dim)
        like = next(site["value"] for _, site in self.prototype_trace.iter_stochastic_nodes())
        return context.to(like.device, like.dtype)

    def _aligned_context(self, *args: object, **kwargs: object) -> Tensor:
        """Return the context, with its axes where the plates are."""
        return align(self._context(*args, **kwargs), self._layout.row_dims)

    def get_transform(self, *args: object, **kwargs: object) -> ComposeTransform:
        """Heavy tails if any, flow, then affine map, for the context of these arguments.

        Without ``context_fn`` independent of them, as NeuTra needs it; with it, NeuTra takes a
        copy of the guide whose ``context_fn`` ignores its arguments.
        """
        if not self.context_dim:
            return super().get_transform(*args, **kwargs)
        self._check_set_up()
        return self._transform_for(self._aligned_context(*args, **kwargs))

    def _transform_for(self, context: Tensor) -> ComposeTransform:
        flow: ConditionalTransformModule = self._registered("flow")
        return self._composed(flow.condition(context), self._affine_parts_for(context))

    def _affine_parts_for(self, context: Tensor) -> list[Transform]:
        shift, log_scale = self._registered("context_affine")(context)
        loc, scale = self.loc + shift, self.scale * log_scale.exp()
        outer = AffineTransform(loc, scale, event_dim=1, cache_size=1)
        if not self.full_rank:
            return [outer]
        origin = torch.zeros_like(self.loc)
        inner = dist.transforms.LowerCholeskyAffine(origin, self.scale_tril, cache_size=1)
        return [inner, outer]

    def _check_rows(self, posterior: dist.TorchDistribution, z: Tensor) -> None:
        check_broadcast(posterior.batch_shape, z.shape[:-1])

    def _latent_quantiles(
        self, points: Tensor, levels: Tensor, args: Args, kwargs: Kwargs
    ) -> Tensor:
        """Marginal quantiles of the latent vectors, ``(Q, *rows, D)``."""
        if not self.context_dim:
            return super()._latent_quantiles(points, levels, args, kwargs)
        context = self._aligned_context(*args, **kwargs)
        rows = context.flatten(0, -2) if context.dim() > 1 else context[None]
        parts = rows.split(max(1, NUMBERS // points.numel()))
        points = points[:, None]
        found = [marginal_quantiles(self._transform_for(part), points, levels) for part in parts]
        return torch.cat(found, 1).reshape(-1, *context.shape[:-1], self.latent_dim)

    # Draws for the rows of the context, and their plates.

    def sample_latent(self, *args: object, **kwargs: object) -> Tensor:
        """Draw the latent vector, one for each row of the context."""
        if not self.context_dim:
            return super().sample_latent(*args, **kwargs)
        context = self._context(*args, **kwargs)
        self._follow_plates(context, *args, **kwargs)
        plates = super()._create_plates(*args, **kwargs)
        for i, frame in enumerate(self._row_frames):
            context = rows_of(context, i, plates[frame.name])
        transform = self._transform_for(align(context, self._layout.row_dims))
        posterior = dist.TransformedDistribution(self.get_base_dist(), transform)
        with ExitStack() as stack:
            for frame in self._row_frames:
                stack.enter_context(plates[frame.name])
            name = f"_{self._pyro_name}_latent"
            return pyro.sample(name, posterior, infer={"is_auxiliary": True})

    def _create_plates(self, *args: object, **kwargs: object) -> dict[str, pyro.plate]:
        if not self.context_dim:
            return super()._create_plates(*args, **kwargs)
        return self.plates  # of this call: sample_latent comes first

    def _follow_plates(self, context: Tensor, *args: object, **kwargs: object) -> None:
        """Learn the plates' sizes, and how they are subsampled, when there are other rows."""
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
            self._prototype_frames |= self._frames_of_a_run(*args, **kwargs)
            return
        # Pickled without its model: a plate that was whole is taken to be so again.
        for frame, n in zip(self._row_frames, rows, strict=True):
            old = self._prototype_frames[frame.name]
            whole = old.size == (old.full_size or old.size)
            self._prototype_frames[frame.name] = old._replace(
                size=n, full_size=n if whole else old.full_size
            )

    def _frames_of_a_run(self, *args: object, **kwargs: object) -> dict[str, CondIndepStackFrame]:
        """Frames of the latents' plates, as a run of the model with these arguments has them."""
        model = poutine.block(self.model, self._prototype_hide_fn)
        # The model's draws are thrown away, and the generator is put back: a call's draws do not
        # depend on which rows came in earlier calls.
        with kept():
            trace = poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)
        frames = [f for _, site in trace.iter_stochastic_nodes() for f in site["cond_indep_stack"]]
        return {f.name: f for f in frames if f.name in self._prototype_frames}
