"""What makes a guide depend on data: contexts, the plates they have rows for, and an affine map."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import pyro
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor, nn

from ..support.calls import Args, Kwargs
from ..support.checks import check_integers
from ..support.modes import values_are_unknown

#: Root mean square of a context's column above which tanh units are saturated and see the sign
#: alone.
_RAW = 30.0


class ContextAffine(nn.Module):
    r"""Shift and log-scale that depend on the context c, both zero at the start.

    .. math:: m(c) = A c + B \tanh(U c + u), \qquad s(c) = V \tanh(U c + u)

    The shift is linear far out, where bounded conditioners have nothing more to say; the log-scale
    stays bounded.

    :param context_dim: width C of the context.
    :param dim: number D of latents.
    :param hidden_dim: number of tanh units.

    Shapes: context ``(..., C)``; shift and log-scale ``(..., D)`` each.

    >>> shift, log_scale = ContextAffine(3, 2)(torch.randn(5, 3))
    >>> shift.shape, log_scale.abs().max().item()
    (torch.Size([5, 2]), 0.0)
    """

    def __init__(self, context_dim: int, dim: int, hidden_dim: int = 64) -> None:
        super().__init__()
        self.hidden = nn.Linear(context_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, 2 * dim, bias=False)
        self.linear = nn.Linear(context_dim, dim, bias=False)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.linear.weight)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and log-scale ``(..., D)`` for contexts ``(..., C)``."""
        shift, log_scale = self.output(self.hidden(context).tanh()).chunk(2, -1)
        return shift + self.linear(context), log_scale


def check_context_arguments(context_fn: Callable[..., Tensor] | None, context_dim: int) -> None:
    """Raise ValueError when one of the two is given without the other."""
    check_integers(context_dim=(context_dim, 0))
    if context_fn is None and context_dim:
        raise ValueError(f"context_dim={context_dim} needs a context_fn, got None")
    if context_fn is not None and not context_dim:
        raise ValueError("context_fn needs context_dim, the width of what it returns, got 0")


def check_context(context: object, width: int) -> Tensor:
    """Check that the context is a finite tensor ``(..., width)``."""
    if not isinstance(context, Tensor):
        raise TypeError(f"context_fn must return a tensor, got {type(context).__name__}")
    if context.dim() == 0 or context.shape[-1] != width:
        raise ValueError(
            f"context_fn must return shape (..., {width}), context_dim last, got "
            f"{tuple(context.shape)}"
        )
    if not values_are_unknown() and (bad := int((~context.isfinite()).any(-1).sum())):
        raise ValueError(
            f"context_fn must return finite values, got NaN or infinity in {bad} of "
            f"{context[..., 0].numel()} rows"
        )
    return context


def check_broadcast(context_rows: Sequence[int], latent_rows: Sequence[int]) -> None:
    """Raise ValueError where there are other rows of contexts than of latents."""
    try:
        torch.broadcast_shapes(context_rows, latent_rows)
    except RuntimeError:
        raise ValueError(
            "context_fn must return a batch shape that broadcasts with that of the latents, got "
            f"{tuple(context_rows)} and {tuple(latent_rows)}"
        ) from None


def warn_of_raw(context: Tensor) -> None:
    """Warn of columns far from unit scale, where tanh units see only the sign."""
    size = context.detach().double().pow(2).reshape(-1, context.shape[-1]).mean(0).sqrt()
    if bool((size > _RAW).any()):
        warnings.warn(
            f"context_fn returns columns of root mean square up to {size.max():.3g}; standardise "
            "them in context_fn, to mean 0 and deviation 1 over the data sets you expect",
            stacklevel=2,
        )


def warn_of_untrained(context_fn: Callable[..., Tensor] | None, args: Args, kwargs: Kwargs) -> None:
    """Warn of a function around a module, whose weights the guide does not see or train.

    No warning is given for a function that registers the module itself, by ``pyro.module``.
    """
    if context_fn is None or isinstance(context_fn, nn.Module):
        return
    with torch.enable_grad(), poutine.block(), poutine.trace(param_only=True) as tracer:
        context = context_fn(*args, **kwargs)
    if context.requires_grad and not tracer.trace.nodes:
        warnings.warn(
            "context_fn depends on weights that are not part of the guide, and that no optimiser "
            "will see: give the nn.Module itself, in place of a function that calls it",
            stacklevel=2,
        )


def row_plates(
    stacks: Mapping[str, Sequence[CondIndepStackFrame]], context: Tensor
) -> tuple[CondIndepStackFrame, ...]:
    """Frames of the plates that the axes of ``context`` ``(..., C)`` stand for, from the left.

    They are the outermost plates around all latents.

    :param stacks: site to its plates' frames, outermost first.
    :raises ValueError: when the latents have fewer plates in common, naming those outside.
    """
    number = context.dim() - 1
    common = [f for f in next(iter(stacks.values())) if all(f in s for s in stacks.values())]
    if len(common) < number:
        names = {frame.name for stack in stacks.values() for frame in stack}
        inside = {name for name, stack in stacks.items() if names & {f.name for f in stack}}
        raise ValueError(
            f"context_fn returned shape {tuple(context.shape)}, with {number} axes for plates, "
            f"but the latents have only {len(common)} in common: {sorted(stacks.keys() - inside)} "
            f"lie in none, {sorted(inside)} in {sorted(names)}; use an AutoGuideList of two "
            "guides, one for the latents in the plate and one for those outside, each of "
            "poutine.block(model, hide=[...])"
        )
    return tuple(sorted(common[:number], key=lambda frame: frame.dim))


def align(context: Tensor, dims: Sequence[int]) -> Tensor:
    """Put the axes of ``context`` ``(..., n_1, ..., n_k, C)`` where plates of ``dims`` lie."""
    for dim in range(-1, min(dims, default=0), -1):
        if dim not in dims:
            context = context.unsqueeze(dim - 1)
    return context


def rows_of(context: Tensor, axis: int, plate: pyro.plate) -> Tensor:
    """Pick the rows of ``context`` in the plate's subsample; it may hold all or only those."""
    rows = context.shape[axis]
    if rows == plate.subsample_size:
        return context
    if rows == plate.size:
        return context.index_select(axis, plate.indices.to(context.device))
    sizes = f"{plate.subsample_size} rows"
    if plate.size != plate.subsample_size:
        sizes += f", or all {plate.size},"
    raise ValueError(
        f"context_fn must return {sizes} on axis {axis} for plate {plate.name!r}, got shape "
        f"{tuple(context.shape)}; where the number changes from call to call within an "
        "AutoGuideList, give that create_plates"
    )
