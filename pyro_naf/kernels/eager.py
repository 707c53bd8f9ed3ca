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
from .pages import in_large_pages

#: Elements of all temporaries of a chunk: ten megabytes in float32 stay in a processor's caches.
CHUNK = 10 << 18

#: The same on a device that has no caches worth the name, and launches to amortise.
CHUNK_ON_DEVICE = 10 << 25

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
        """K, which sets the size of a temporary."""
        ...

    @property
    def temporaries(self) -> int:
        """About how many tensors ``(D, K, B)`` share the caches; found by measurement."""
        ...

    @property
    def plain(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """Value and log-slope by the plain formula, each ``(...)``."""
        ...

    def state(self, x: Tensor, phi: Tensor, *shared: Tensor) -> Any:
        """Everything that value, log-slope and gradients need."""
        ...

    def forward(self, state: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Value, log-slope, and the log of the smallest sum behind them, each ``(D, B)``."""
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
        keep_state = x.numel() * formula.hidden_units <= SMALL
        y, log_slope, ctx.lost, state = _forward(
            formula, _by_dimension(x), _by_parameter(phi), shared
        )
        ctx.state = state if keep_state else None
        return _by_sample(y, x), _by_sample(log_slope, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, phi, *shared = ctx.saved_tensors
        if needs_plain_backward(*grads):
            return None, *plain_gradients(ctx.formula.plain, ctx.saved_tensors, grads)
        state, ctx.state = ctx.state, None  # overwritten: a second backward pass makes it anew
        inputs = (_by_dimension(x), _by_parameter(phi), *(_by_dimension(g) for g in grads))
        # A backward pass may run under the caller's autocast; the forward pass here did not.
        with torch.autocast(x.device.type, enabled=False):
            grad_x, grad_phi, grad_shared = _backward(ctx.formula, inputs, ctx.lost, shared, state)
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


def _forward(
    formula: Formula, x: Tensor, phi: Tensor, shared: Sequence[Tensor]
) -> tuple[Tensor, Tensor, dict[int, Tensor], Any]:
    """Value and log-slope, the lanes of each chunk that took the plain formula, and a state."""
    spans = _spans(x, formula)
    if len(spans) == 1:
        y, log_slope, lost, state = _forward_chunk(formula, x, _adjacent(phi), shared)
        return y, log_slope, {} if lost is None else {0: lost}, None if lost is not None else state
    _keep_freed_memory()
    all_lost = {}
    y, log_slope = torch.empty_like(x), torch.empty_like(x)
    for i, (d, b) in enumerate(spans):
        y[d, b], log_slope[d, b], lost, _ = _forward_chunk(
            formula, x[d, b], _adjacent(phi[d, :, b]), shared
        )
        if lost is not None:
            all_lost[i] = lost
    return y, log_slope, all_lost, None


def _forward_chunk(
    formula: Formula, x: Tensor, phi: Tensor, shared: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor | None, Any]:
    state = formula.state(x, phi, *shared)
    y, log_slope, margin = formula.forward(state)
    lowest = lowest_margin(x)
    if float(margin.amin()) > lowest:
        return y, log_slope, None, state
    lost = ~(margin > lowest)
    y[lost], log_slope[lost] = formula.plain(x[lost], phi.mT[lost], *shared)
    return y, log_slope, lost, None


def lowest_margin(x: Tensor) -> float:
    """Log of what no sum may fall below: a term loses less than ``tiny`` to underflow."""
    return 0.65 * math.log(torch.finfo(x.dtype).tiny)


def _backward(
    formula: Formula,
    inputs: Sequence[Tensor],
    lost: dict[int, Tensor],
    shared: Sequence[Tensor],
    state: Any,
) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
    """Gradients of x, phi and the shared tensors; the inputs are x, phi and those of the two."""
    x, phi = inputs[:2]
    spans = _spans(x, formula)
    if len(spans) == 1 and not lost:
        state = formula.state(x, _adjacent(phi), *shared) if state is None else state
        grad_x, rows, totals = formula.backward(state, x, *inputs[2:], *shared)
        return grad_x, torch.cat(rows, 1), totals
    grad_x, grad_phi = torch.empty_like(x), in_large_pages(phi.new_empty(phi.shape))
    totals = [torch.zeros_like(t) for t in shared]
    for i, (d, b) in enumerate(spans):
        some = [_adjacent(t[d, ..., b]) for t in inputs]
        # Zeros do not disturb the sums over lanes.
        clean = [_without(t, lost[i]) for t in some] if i in lost else some
        state = formula.state(*clean[:2], *shared)
        grad_x[d, b], rows, parts = formula.backward(state, clean[0], *clean[2:], *shared)
        out = grad_phi[d, :, b]
        for to, row in zip(out.split([r.shape[1] for r in rows], 1), rows, strict=True):
            to.copy_(row)
        if i in lost:
            here = lost[i]
            grad_x[d, b][here], out.mT[here], *rest = _plain_backward(formula, here, some, shared)
            parts = [p + r for p, r in zip(parts, rest, strict=True)]
        for total, part in zip(totals, parts, strict=True):
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
    """Rows and columns of x ``(D, B)``, in chunks of about ``CHUNK``."""
    dims, batch = x.shape
    chunk = CHUNK if x.device.type == "cpu" else CHUNK_ON_DEVICE
    lanes = max(chunk // (formula.hidden_units * formula.temporaries), 1)
    if 0 < x.numel() <= 2 * lanes:  # one chunk needs no copies
        lanes = x.numel()
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
