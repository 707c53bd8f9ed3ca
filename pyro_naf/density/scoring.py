"""Log-densities of held-out rows, averaged over the noise on integers as those of any rows are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .training import Rows, log_probs

#: Rows with one point of the noise, and what is added to their log-densities, ``(N,)``.
Scored: TypeAlias = tuple[Rows, Tensor]


@torch.no_grad()
def averaged(flow: nn.Module, scored: Sequence[Scored], at: Tensor | None = None) -> Tensor:
    r"""Return :math:`\log \tfrac1S \sum_s p(x_s) e^{a_s}` of rows ``(N,)`` with S points of noise.

    :param scored: the rows :math:`x_s`, and :math:`a_s`, for each point.
    :param at: which of the rows are to be scored; by default all.
    """
    each = []
    for rows, shift in scored:
        own = rows if at is None else [t[at] for t in rows]
        found = torch.cat(list(log_probs(flow, own))).double()
        each.append(found + (shift if at is None else shift[at]))
    return torch.stack(each).logsumexp(0) - math.log(len(each))
