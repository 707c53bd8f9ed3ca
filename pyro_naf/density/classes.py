"""Columns of classes: an autoregressive softmax, an exact probability of every combination."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

#: Width of the hidden layer in front of each softmax.
HIDDEN = 32


class SoftmaxHead(nn.Module):
    r"""The probability :math:`p(c_1, ..., c_M) = \prod_m p(c_m \mid c_{<m})` of M classes.

    The logits of class m are a constant, a linear map and a network of one hidden layer of the
    preceding classes (as zeros and ones) and a context; at the start only the constant.

    :param sizes: number of values of each class, M >= 1.
    :param context_dim: width C of a context.

    >>> head = SoftmaxHead([2, 3])
    >>> codes = torch.cartesian_prod(torch.arange(2), torch.arange(3))
    >>> round(float(head.log_prob(codes).detach().exp().sum()), 4)
    1.0
    """

    def __init__(self, sizes: Sequence[int], context_dim: int = 0) -> None:
        super().__init__()
        self.sizes, self.context_dim = list(sizes), context_dim
        self.constants = nn.ParameterList(torch.zeros(size) for size in sizes)
        self.networks = nn.ModuleList()
        width = context_dim
        for size in sizes:
            self.networks.append(_network(width, size))
            width += size

    @torch.no_grad()
    def start(self, codes: Tensor, weight: Tensor | None = None) -> None:
        """Set the constants to the shares of the values among rows ``(N, M)``, none of them 0."""
        weight = torch.ones(len(codes), device=codes.device) if weight is None else weight
        for m, constant in enumerate(self.constants):
            counts = torch.bincount(codes[:, m], weight.double(), minlength=len(constant))
            shares = counts * len(codes) / weight.sum() + 0.5
            constant.copy_((shares / shares.sum()).log())

    def forward(self, codes: Tensor, context: Tensor | None = None) -> Tensor:
        """:meth:`log_prob` of codes that may be of a floating-point dtype."""
        return self.log_prob(codes.long(), context)

    def log_prob(self, codes: Tensor, context: Tensor | None = None) -> Tensor:
        """Return log-probabilities ``(...)`` of codes ``(..., M)`` given contexts ``(..., C)``."""
        given, total = context, torch.zeros((), device=codes.device)
        for m, size in enumerate(self.sizes):
            logits = self._logits(m, given).log_softmax(-1)
            code = codes[..., m : m + 1]
            logits = logits.expand(*code.shape[:-1], size)
            total = total + logits.gather(-1, code).squeeze(-1)
            given = self._with(given, code.squeeze(-1), m)
        return total

    @torch.no_grad()
    def sample(self, rows: int, context: Tensor | None = None) -> Tensor:
        """Codes ``(rows, M)``, given contexts ``(rows, C)``."""
        given, codes = context, []
        for m, size in enumerate(self.sizes):
            shares = self._logits(m, given).softmax(-1).expand(rows, size)
            codes.append(torch.multinomial(shares, 1).squeeze(-1))
            given = self._with(given, codes[-1], m)
        return torch.stack(codes, -1)

    def _logits(self, m: int, given: Tensor | None) -> Tensor:
        constant = self.constants[m]
        if given is None:
            return constant
        hidden, last = cast(nn.ModuleList, self.networks[m])
        return constant + last(torch.cat([given, hidden(given)], -1))

    def _with(self, given: Tensor | None, code: Tensor, m: int) -> Tensor:
        seen = nn.functional.one_hot(code, self.sizes[m]).to(self.constants[m])
        if given is None:
            return seen
        return torch.cat([given.expand(*seen.shape[:-1], -1), seen], -1)


def _network(width: int, size: int) -> nn.ModuleList:
    """Make a hidden layer and one after it that starts at zero; empty without input."""
    if width == 0:
        return nn.ModuleList()
    last = nn.Linear(width + HIDDEN, size, bias=False)
    nn.init.zeros_(last.weight)
    return nn.ModuleList([nn.Sequential(nn.Linear(width, HIDDEN), nn.Tanh()), last])
