"""Tests of ranks in [0, 1]: whether they are uniform, or at least symmetric.

Source: Säilynoja, Bürkner & Vehtari 2022 [arXiv:2103.10522].
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

#: Simulated sets of uniform ranks behind a p-value.
_NULL = 2000

#: Places at which the distribution of ranks is compared with the uniform one.
_PLACES = 100


def uniformity(ranks: Tensor) -> float:
    """p-value of uniform ranks ``(S,)`` in [0, 1], by the whole of their distribution.

    The statistic is the least binomial tail probability of the number of ranks below any of a
    hundred places, whose distribution is simulated.

    >>> uniformity(torch.linspace(0, 1, 50)) > 0.5, uniformity(torch.full((50,), 0.4)) < 0.01
    (True, True)
    """
    tails, null = _null(len(ranks))
    return float((1 + (null <= _least(ranks[None].double(), tails)).sum()) / (1 + _NULL))


def symmetry(ranks: Tensor) -> float:
    """p-value of ranks ``(S,)`` that are symmetric about a half.

    The statistic is the largest difference between the distributions of the ranks and of their
    mirror images; under symmetry each rank is as probable as its image, which is simulated.

    >>> symmetry(torch.linspace(0, 1, 50)) > 0.5, symmetry(torch.full((50,), 0.4)) < 0.01
    (True, True)
    """
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (_NULL, len(ranks)), generator=generator).double() * 2 - 1
    places = (ranks.double() - 0.5).abs().argsort(descending=True)
    sides = (ranks.double() - 0.5).sign()[places]
    null = (signs * sides.abs()).cumsum(1).abs().amax(1)
    found = sides.cumsum(0).abs().max()
    return float((1 + (null >= found).sum()) / (1 + _NULL))


@functools.lru_cache(maxsize=8)
def _null(size: int) -> tuple[Tensor, Tensor]:
    """:func:`_tails`, and the statistic of simulated sets of uniform ranks ``(_NULL,)``."""
    ranks = torch.rand(_NULL, size, generator=torch.Generator().manual_seed(0)).double()
    tails = _tails(size)
    return tails, _least(ranks, tails)


def _tails(size: int) -> Tensor:
    """Twice the smaller binomial tail probability of each count at places ``(size + 1, P)``."""
    places = torch.arange(1, _PLACES).double() / _PLACES
    counts = torch.arange(size + 1).double()
    binomial = torch.distributions.Binomial(size, places)
    mass = binomial.log_prob(counts[:, None]).exp()
    below = mass.cumsum(0)
    return 2 * torch.minimum(below, 1 - below + mass).clamp(max=0.5)


def _counts(ranks: Tensor) -> Tensor:
    """Count the ranks ``(..., S)`` below each place, ``(..., P)``."""
    places = torch.arange(1, _PLACES).double() / _PLACES
    ordered = ranks.sort(-1)[0].contiguous()
    return torch.searchsorted(ordered, places.expand(*ranks.shape[:-1], -1).contiguous())


def _least(ranks: Tensor, tails: Tensor) -> Tensor:
    """Return the least tail probability over the places, for sets of ranks ``(N, S)``."""
    return tails.gather(0, _counts(ranks)).amin(-1)


def band(size: int, level: float = 0.95) -> tuple[Tensor, Tensor, Tensor]:
    """Places, and the least and largest share of uniform ranks below each, with this probability.

    :param size: number S of ranks.
    """
    tails, null = _null(size)
    limit = null.quantile(1 - level)
    inside = tails >= limit
    counts = torch.arange(size + 1).double()[:, None]
    low = torch.where(inside, counts, float(size)).amin(0) / size
    high = torch.where(inside, counts, 0.0).amax(0) / size
    return torch.arange(1, _PLACES).double() / _PLACES, low, high
