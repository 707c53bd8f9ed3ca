"""Pyro's own autoregressive networks as conditioners."""

from __future__ import annotations

import torch
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn

from .protocol import Conditioner


class PyroConditioner(nn.Module):
    """Pyro's own MADE as a conditioner: ``(..., P, D)`` or a tuple in, ``(..., D, P)`` out.

    :param nn_: a :class:`pyro.nn.AutoRegressiveNN` or
        :class:`pyro.nn.ConditionalAutoRegressiveNN`; its weights are shared, not copied.

    >>> arn = AutoRegressiveNN(3, [16], param_dims=[4, 4, 4])
    >>> PyroConditioner(arn)(torch.randn(5, 3)).shape
    torch.Size([5, 3, 12])
    """

    def __init__(self, nn_: ConditionalAutoRegressiveNN) -> None:
        super().__init__()
        self.nn = nn_
        self.input_dim, self.num_params = nn_.input_dim, nn_.output_multiplier
        self.context_dim = 0 if isinstance(nn_, AutoRegressiveNN) else nn_.context_dim

    def get_permutation(self) -> Tensor:
        """Return the order: entry t is the dimension that comes t-th, shape ``(D,)``."""
        found: Tensor = self.nn.get_permutation()
        return found

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Pseudo-parameters ``(..., D, P)``."""
        dims = x.dim()
        if context is None:
            out = self.nn(x)
        else:
            batch = torch.broadcast_shapes(context.shape[:-1], x.shape[:-1])
            dims = len(batch) + 1
            out = self.nn(x.expand(*batch, -1), context.expand(*batch, -1))
        if not isinstance(out, tuple):
            out = (out,)
        # One-dimensional parameters come without their axis.
        rows = [p.unsqueeze(-2) if p.dim() == dims else p for p in out]
        return torch.cat(rows, -2).transpose(-1, -2).contiguous()


def as_conditioner(conditioner: Conditioner) -> Conditioner:
    """Wrap Pyro's autoregressive networks; return anything else as it is."""
    if isinstance(conditioner, ConditionalAutoRegressiveNN):
        return PyroConditioner(conditioner)
    return conditioner
