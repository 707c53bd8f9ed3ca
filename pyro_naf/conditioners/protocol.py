"""What a conditioner is: pseudo-parameters of all dimensions at once, or one after another."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

#: Yields the pseudo-parameters ``(N, P)`` of one dimension after another, in autoregressive
#: order; is sent the value ``(N,)`` of that dimension.
Sweep = Generator[Tensor, Tensor, None]


def sweep(conditioner: Any, batch: int, context: Tensor | None, like: Tensor) -> Sweep:
    """The conditioner's own sweep, or D passes through one that has none.

    ``like`` gives dtype and device of the samples; the rest as in :meth:`MADE.sweep`.
    """
    if hasattr(conditioner, "sweep"):
        return conditioner.sweep(batch, context)
    return _sweep_by_passes(conditioner, batch, context, like)


def _sweep_by_passes(conditioner: Any, batch: int, context: Tensor | None, like: Tensor) -> Sweep:
    columns = [like.new_zeros(batch)] * conditioner.input_dim
    for v in conditioner.get_permutation().tolist():
        x = torch.stack(columns, -1)
        phi = conditioner(x) if context is None else conditioner(x, context)
        columns[v] = yield phi[:, v]
