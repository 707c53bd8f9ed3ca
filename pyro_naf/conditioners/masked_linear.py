"""A masked linear layer whose mask is a staircase: half of its products need not be made."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..support.autograd import Context
from ..support.modes import needs_plain_backward, needs_plain_operations
from ..support.pages import in_large_pages

#: Number of steps that a layer is cut into: with 8 steps 9/16 of the products remain.
STEPS = 8

#: Number of multiplications that the steps must save in a call to be worth their own cost: measured
#: on a CPU; on a GPU estimated from eight launches in place of one.
WORTH = {"cpu": 1 << 24, "cuda": 1 << 31}


class Step(NamedTuple):
    """Rows ``start`` to ``stop`` have nonzero weights in the first ``width`` columns only."""

    start: int
    stop: int
    width: int


def staircase(widths: Tensor) -> list[Step]:
    """Cut the rows into steps; ``widths[r]``, nondecreasing, is how many columns row r sees.

    >>> staircase(torch.arange(16))[-1]
    Step(start=14, stop=16, width=15)
    """
    rows = len(widths)
    cuts = [rows * i // STEPS for i in range(STEPS + 1)]
    return [Step(a, b, int(widths[b - 1])) for a, b in pairwise(cuts) if b > a]


def masked_linear(
    z: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, steps: list[Step]
) -> Tensor:
    """``(weight * mask) @ z + bias``: z ``(C, B)``, weight and mask ``(R, C)``, bias ``(R,)``."""
    saved = weight.numel() - sum((s.stop - s.start) * s.width for s in steps)
    if saved * z.shape[1] < WORTH.get(z.device.type, 1 << 31) or needs_plain_operations(z):
        return _plain(z, weight, mask, bias)
    found: Tensor = _Staircase.apply(z, weight, mask, bias, steps)
    return found


def _plain(z: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> Tensor:
    product = (weight * mask) @ z
    # addmm would be one operation, but torch.jit's symbolic derivative of it fails under a trace.
    return product if bias is None else product + bias.unsqueeze(-1)


class _StaircaseContext(Context, Protocol):
    steps: list[Step]
    has_bias: bool


class _Staircase(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _StaircaseContext,
        z: Tensor,
        weight: Tensor,
        mask: Tensor,
        bias: Tensor | None,
        steps: list[Step],
    ) -> Tensor:
        ctx.steps, ctx.has_bias = steps, bias is not None
        ctx.save_for_backward(z, weight, mask)
        masked = weight * mask
        out = in_large_pages(z.new_empty(len(weight), z.shape[1]))
        for start, stop, width in steps:
            factors = masked[start:stop, :width], z[:width]
            if bias is None:
                torch.mm(*factors, out=out[start:stop])
            else:
                torch.addmm(bias[start:stop, None], *factors, out=out[start:stop])
        return out

    @staticmethod
    def backward(ctx: _StaircaseContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, mask = ctx.saved_tensors
        grad_bias = grad.sum(1) if ctx.has_bias else None
        if needs_plain_backward(grad):
            return (weight * mask).T @ grad, (grad @ z.T) * mask, None, grad_bias, None
        masked = weight * mask
        grad_weight = torch.zeros_like(weight)
        grad_z = torch.zeros_like(z) if ctx.needs_input_grad[0] else None
        for start, stop, width in ctx.steps:
            rows = grad[start:stop]
            torch.mm(rows, z[:width].T, out=grad_weight[start:stop, :width])
            if grad_z is not None:
                grad_z[:width].addmm_(masked[start:stop, :width].T, rows)
        return grad_z, grad_weight.mul_(mask), None, grad_bias, None
