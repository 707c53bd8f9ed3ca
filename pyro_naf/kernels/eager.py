"""Hand-derived gradients on the CPU: saves only inputs, and goes through them in chunks.

The formulas (:mod:`.dsf`, :mod:`.ddsf`) work in linear space, with a fraction of the plain
formula's work; they hold wherever no sum of theirs comes near underflow. The few lanes (elements
of x) where one does, far in the tails or on deep plateaus, are evaluated by the plain formula.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .modes import needs_plain_backward, plain_gradients

#: Elements of one temporary, units times lanes: half a megabyte in float32 stays in a core's cache.
CHUNK = 1 << 17

#: At so few the time goes into calling operations: intermediate results are kept for backward.
SMALL = 1 << 14


class Formula(Protocol):
    """One transformer's evaluations.

    ``plain`` takes x ``(...)`` and phi ``(..., P)``. The others take x ``(D, B)`` and phi
    ``(D, P, B)``: the lanes of one dimension lie side by side, and a sum over hidden units adds
    rows. ``shared`` are the tensors that all lanes share.
    """

    @property
    def hidden_units(self) -> int:
        """K, which sets the size of the temporaries."""
        ...

    @property
    def plain(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """Value and log-slope by the plain formula, each ``(...)``."""
        ...

    def forward(
        self, x: Tensor, phi: Tensor, *shared: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Value, log-slope and log of the smallest sum, each ``(D, B)``; what backward needs."""
        ...

    def backward(
        self, state: Any, x: Tensor, grad_y: Tensor, grad_l: Tensor, *shared: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Gradients of x, of the rows of phi, some at a time, and of the shared tensors.

        Overwrites the state.
        """
        ...


def evaluate(formula: Formula, x: Tensor, phi: Tensor, *shared: Tensor) -> tuple[Tensor, Tensor]:
    """Value and log-slope, each ``(..., D)``, of x ``(..., D)`` under phi ``(..., D, P)``."""
    return _Evaluation.apply(formula, x, phi, *shared)


class _Evaluation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, formula: Formula, x: Tensor, phi: Tensor, *shared: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.formula = formula
        ctx.save_for_backward(x, phi, *shared)
        run = _forward_at_once if x.numel() * formula.hidden_units <= SMALL else _forward
        y, log_slope, ctx.lost, ctx.state = run(
            formula, _by_dimension(x), _by_parameter(phi), shared
        )
        return _by_sample(y, x), _by_sample(log_slope, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, phi, *shared = ctx.saved_tensors
        if needs_plain_backward(*grads):
            return None, *plain_gradients(ctx.formula.plain, ctx.saved_tensors, grads)
        inputs = (_by_dimension(x), _by_parameter(phi), *(_by_dimension(g) for g in grads))
        state, ctx.state = ctx.state, None  # overwritten: a second backward pass makes it anew
        if state is not None:
            grad_x, rows, grad_shared = ctx.formula.backward(state, inputs[0], *inputs[2:], *shared)
            grad_phi = torch.cat(rows, 1)
        else:
            grad_x, grad_phi, grad_shared = _backward(ctx.formula, inputs, ctx.lost, shared)
        grad_phi = grad_phi.permute(2, 0, 1).reshape(phi.shape)
        return None, _by_sample(grad_x, x), grad_phi, *grad_shared


@functools.cache
def _keep_freed_memory() -> None:
    """Lets the allocator reuse the temporaries of one chunk for the next.

    glibc hands freed memory back to the system, to fetch it anew page by page, unless a larger
    block has been freed before. This is one; it is never written to.
    """
    torch.empty(1 << 24, dtype=torch.uint8)


Span = tuple[slice, slice]
Evaluated = tuple[Tensor, Tensor, dict[int, Tensor], Any]


def _forward_at_once(
    formula: Formula, x: Tensor, phi: Tensor, shared: Sequence[Tensor]
) -> Evaluated:
    """Like :func:`_forward`, for little: then the state is kept, and operations are what counts."""
    y, log_slope, margin, state = formula.forward(x, _adjacent(phi), *shared)
    if x.numel() and not float(margin.amin()) > lowest_margin(x):
        return _forward(formula, x, phi, shared)
    return y, log_slope, {}, state


def _forward(formula: Formula, x: Tensor, phi: Tensor, shared: Sequence[Tensor]) -> Evaluated:
    """Value and log-slope, and the lanes of each chunk that took the plain formula."""
    _keep_freed_memory()
    lost = {}
    y, log_slope = torch.empty_like(x), torch.empty_like(x)
    for i, (d, b) in enumerate(_spans(x, formula)):
        x_i, phi_i = x[d, b], _adjacent(phi[d, :, b])
        y_i, l_i, margin, _ = formula.forward(x_i, phi_i, *shared)
        if not float(margin.amin()) > lowest_margin(x):
            lost[i] = here = ~(margin > lowest_margin(x))
            y_i[here], l_i[here] = formula.plain(x_i[here], phi_i.mT[here], *shared)
        y[d, b], log_slope[d, b] = y_i, l_i
    return y, log_slope, lost, None


def lowest_margin(x: Tensor) -> float:
    """Log of what no sum may fall below: a term loses less than ``tiny`` to underflow."""
    return 0.65 * math.log(torch.finfo(x.dtype).tiny)


def _backward(
    formula: Formula,
    inputs: Sequence[Tensor],
    lost: dict[int, Tensor],
    shared: Sequence[Tensor],
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Gradients of x, phi and the shared tensors; the inputs are x, phi and those of the two."""
    x, phi = inputs[:2]
    grad_x, grad_phi = torch.empty_like(x), phi.new_empty(phi.shape)
    totals = [torch.zeros_like(t) for t in shared]
    for i, (d, b) in enumerate(_spans(x, formula)):
        here = lost.get(i)
        some = [_adjacent(t[d, ..., b]) for t in inputs]
        # Zeros do not disturb the sums over lanes.
        clean = some if here is None else [_without(t, here) for t in some]
        state = formula.forward(*clean[:2], *shared)[-1]
        grad_x[d, b], rows, parts = formula.backward(state, clean[0], *clean[2:], *shared)
        out = grad_phi[d, :, b]
        for to, row in zip(out.split([r.shape[1] for r in rows], 1), rows, strict=True):
            to.copy_(row)
        if here is not None:
            grad_x[d, b][here], out.mT[here], *rest = _plain_backward(formula, here, some, shared)
            parts = [*parts, *rest]
        for total, part in zip(totals * 2, parts, strict=False):
            total += part
    return grad_x, grad_phi, totals


def _without(t: Tensor, lanes: Tensor) -> Tensor:
    return t.masked_fill(lanes if t.dim() == 2 else lanes.unsqueeze(1), 0)


def _plain_backward(
    formula: Formula, lanes: Tensor, inputs: Sequence[Tensor], shared: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The gradients of x, phi and the shared tensors, from these lanes alone."""
    x, phi, *grads = (t[lanes] if t.dim() == 2 else t.mT[lanes] for t in inputs)
    wanted = [t.detach().requires_grad_() for t in (x, phi, *shared)]
    with torch.enable_grad():
        outputs = formula.plain(*wanted)
    return torch.autograd.grad(outputs, wanted, grads)


def _spans(x: Tensor, formula: Formula) -> list[Span]:
    """Rows and columns of x ``(D, B)``, in chunks of about ``CHUNK`` temporaries."""
    dims, batch = x.shape
    lanes = max(CHUNK // formula.hidden_units, 1)
    rows = max(lanes // max(batch, 1), 1)
    return [
        (slice(d, d + rows), slice(b, b + lanes))
        for d in range(0, dims, rows)
        for b in range(0, batch, lanes)
    ]


def _by_dimension(x: Tensor) -> Tensor:
    """``(..., D)`` to ``(D, B)``, contiguous; what has one axis is many values of one dimension."""
    if x.dim() < 2:
        return x.reshape(1, -1)
    return x.reshape(x.shape[:-1].numel(), x.shape[-1]).t().contiguous()


def _by_parameter(phi: Tensor) -> Tensor:
    """``(..., D, P)`` to ``(D, P, B)``: a view, and contiguous, of what MADE returns."""
    if phi.dim() < 3:
        return phi.reshape(1, -1, phi.shape[-1]).transpose(1, 2)
    return phi.reshape(phi.shape[:-2].numel(), *phi.shape[-2:]).permute(1, 2, 0)


def _by_sample(x: Tensor, like: Tensor) -> Tensor:
    """``(D, B)`` back to ``(..., D)``, contiguous."""
    return x.t().contiguous().view(like.shape)


def _adjacent(phi: Tensor) -> Tensor:
    """The same with the lanes of a dimension side by side; a conditioner of others may not."""
    return phi if phi.stride(-1) == 1 else phi.contiguous()
