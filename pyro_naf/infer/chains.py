r"""Whether Markov chains agree: rank-normalised split R-hat and effective sample sizes.

Every chain is split into halves. Draws are replaced by the normal scores of their ranks among all
draws, :math:`z = \Phi^{-1}((r - 3/8) / (N + 1/4))`, so that no moment of the draws has to exist.
All functions take draws of shape ``(num_chains, num_samples, ...)``, return a number in double
precision for each entry, shape ``(...)``, and equal ArviZ's. The exceptions: an entry that never
varies has NaN throughout (ArviZ gives it the number of draws as effective sample size), and R-hat
of a single chain compares its halves (ArviZ: NaN). An entry with a NaN, and fewer than 4 draws in a
chain, give NaN.

Source: Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021 [arXiv:1903.08008].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor

#: Number of values, in the draws of the entries that are worked on at once: larger batches leave
#: the processor's cache, and are slower.
_NUMBERS = 2**18

#: Levels of the quantiles that the effective sample size of the tails is about.
_TAILS = (0.05, 0.95)


class Counts(TypedDict, total=False):
    """What chains have cost, and how they went."""

    accept_rate: float
    evaluations: int
    divergences: int
    out_of_time: bool


class Convergence(NamedTuple):
    """What :func:`convergence` returns, a number for each entry: R-hat, bulk and tail ESS."""

    rhat: Tensor
    ess: Tensor
    ess_tail: Tensor


def convergence(draws: Tensor) -> Convergence:
    """Compute :func:`rank_rhat`, :func:`bulk_ess` and :func:`tail_ess` by one sort of the draws.

    :param draws: shape ``(num_chains, num_samples, ...)``.

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> [value.shape for value in convergence(torch.randn(4, 100, 2, 3))]
    [torch.Size([2, 3]), torch.Size([2, 3]), torch.Size([2, 3])]
    """

    def rows(x: Tensor) -> Tensor:
        ranked = _Ranked(x)
        return torch.stack([ranked.rhat(), ranked.bulk(), _tail(x)])

    return Convergence(*_by_entry(rows, draws, numbers=3))


def rank_rhat(draws: Tensor) -> Tensor:
    r"""R-hat of ranks: the larger of those for location and for scale.

    .. math:: \hat R = \sqrt{\frac{n - 1}{n} + \frac{B}{n W}}

    with n draws in each half-chain, B / n the variance of the half-chains' means, W the mean of
    their variances. It is computed from the normal scores of the draws and of their distances from
    the median. Chains that have converged have at most 1.01.

    :param draws: shape ``(num_chains, num_samples, ...)``.

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> draws = torch.randn(4, 500, 2) + torch.tensor([0.0, 1.0]) * torch.arange(4.0)[:, None, None]
    >>> [round(rhat, 1) for rhat in rank_rhat(draws).tolist()]
    [1.0, 1.5]
    """
    return _by_entry(lambda x: _Ranked(x).rhat(), draws)


def bulk_ess(draws: Tensor) -> Tensor:
    r"""Effective sample size of the normal scores of the draws: how well the bulk is known.

    .. math:: \frac{N}{-1 + 2 \sum_t P_t}

    for N draws, where :math:`P_t` are the sums of adjacent autocorrelations of the half-chains, as
    long as they are positive, and made monotone (Geyer 1992). It is at most N log10 N.

    :param draws: shape ``(num_chains, num_samples, ...)``.

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> 3000 < bulk_ess(torch.randn(4, 1000)) < 5000
    tensor(True)
    """
    return _by_entry(lambda x: _Ranked(x).bulk(), draws)


def tail_ess(draws: Tensor) -> Tensor:
    """Effective sample size of the 5 % and 95 % quantiles: the smaller of the two.

    That of a quantile is the effective sample size of the indicator of draws below it.

    :param draws: shape ``(num_chains, num_samples, ...)``.

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> 3000 < tail_ess(torch.randn(4, 1000)) < 5000
    tensor(True)
    """
    return _by_entry(_tail, draws)


def mean_mcse(draws: Tensor) -> Tensor:
    """Monte Carlo standard error of the mean: the standard deviation over the root of the ESS.

    :param draws: shape ``(num_chains, num_samples, ...)``.

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> round(mean_mcse(torch.randn(4, 2500)).item(), 3)
    0.01
    """
    return _by_entry(lambda x: x.flatten(1).std(1) / _ess(_halves(x)).sqrt(), draws)


def stood_still(draws: Tensor) -> Tensor:
    """Whether an entry does not move within some half of a chain.

    R-hat may overlook that: among 64 chains one that stands still hardly adds to the variance of
    the means.

    :param draws: shape ``(num_chains, num_samples, ...)``.
    :return: booleans of shape ``(...)``.

    >>> draws = torch.randn(2, 100, 3)
    >>> draws[1, 50:, 2] = 0.3
    >>> stood_still(draws)
    tensor([False, False,  True])
    """
    if draws.shape[1] < 4:  # halves of one draw
        return (draws == draws[:, :1]).flatten(0, 1).all(0)
    half = draws.shape[1] // 2
    halves = torch.cat([draws[:, :half], draws[:, -half:]])
    return (halves == halves[:, :1]).all(1).any(0)


def _by_entry(
    function: Callable[[Tensor], Tensor], draws: Tensor, numbers: int | None = None
) -> Tensor:
    """Apply a function of rows ``(K, num_chains, num_samples)`` to a bounded number K of entries.

    It sees entries that vary and are not NaN; others get NaN.

    :param function: returns shape ``(K,)``, or with ``numbers`` ``(numbers, K)``.
    """
    if draws.dim() < 2:
        raise ValueError(
            f"draws must have shape (num_chains, num_samples, ...), got {tuple(draws.shape)}"
        )
    chains, samples, *shape = draws.shape
    columns = draws.detach().reshape(chains, samples, math.prod(shape))
    several = [] if numbers is None else [numbers]
    count = columns.shape[-1]
    result = torch.full((*several, count), math.nan, dtype=torch.double, device=draws.device)
    if samples < 4:
        return result.reshape([*several, *shape])
    width = max(1, _NUMBERS // (chains * samples))
    for first in range(0, count, width):
        x = columns[..., first : first + width].permute(2, 0, 1).contiguous().double()
        # The halves of an odd number of draws leave out the one in the middle.
        halves = _halves(x).flatten(1)
        good = (halves != halves[:, :1]).any(1) & ~x.isnan().flatten(1).any(1)
        if good.any():
            places = first + good.nonzero()[:, 0]
            result[..., places] = function(x if good.all() else x[good])
    return result.reshape([*several, *shape])


def _halves(x: Tensor) -> Tensor:
    """``(K, 2 num_chains, num_samples // 2)``, without the middle one of an odd number."""
    half = x.shape[-1] // 2
    if x.shape[-1] % 2:
        x = torch.cat([x[..., :half], x[..., -half:]], -1)
    return x.reshape(len(x), -1, half)


class _Ranked:
    """Half-chains of rows ``(K, num_chains, num_samples)``, and the order of all their draws."""

    def __init__(self, x: Tensor) -> None:
        self.halves = _halves(x)
        rows = self.halves.flatten(1)
        self.order = _argsort(rows)
        self.ordered = rows.gather(1, self.order)
        self.scores = _normal_scores(self.ordered, self.order).view_as(self.halves)

    def rhat(self) -> Tensor:
        """R-hat of location or scale, the larger."""
        n = self.ordered.shape[1]
        median = (self.ordered[:, (n - 1) // 2] + self.ordered[:, n // 2]) / 2
        away = (self.ordered - median[:, None]).abs()
        order = _argsort(away, kind="stable")  # a falling and a rising run, which are merged
        folded = _normal_scores(away.gather(1, order), self.order.gather(1, order))
        return torch.maximum(_rhat(self.scores), _rhat(folded.view_as(self.halves)))

    def bulk(self) -> Tensor:
        """Effective sample size of the scores."""
        return _ess(self.scores)


def _argsort(rows: Tensor, kind: Literal["quicksort", "stable"] = "quicksort") -> Tensor:
    """Order each row; on the CPU by NumPy, which is three times as fast as torch."""
    if rows.device.type != "cpu":
        return rows.argsort(-1)
    return torch.from_numpy(rows.numpy().argsort(-1, kind=kind))


def _normal_scores(ordered: Tensor, order: Tensor) -> Tensor:
    """Return normal scores of ranks, in the places of the draws; ties share their mean rank.

    :param ordered: rows ``(K, N)`` in their order.
    :param order: the place that each entry of ``ordered`` has in its row.
    """
    count = ordered.shape[1]
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[:, 1:], ordered[:, :-1], out=is_first[:, 1:])
    first = is_first.flatten().nonzero()[:, 0]
    size = torch.diff(first, append=first.new_tensor([ordered.numel()]))
    # Ranks from 1 on: twice the mean of the first and the last of equal ones.
    doubled = 2 * (first % count) + size + 1
    scores = _scores_of_ranks(count, ordered.device)[doubled].repeat_interleave(size)
    return torch.empty_like(ordered).scatter_(1, order, scores.view_as(ordered))


@lru_cache(maxsize=2)
def _scores_of_ranks(count: int, device: torch.device) -> Tensor:
    """Compute normal scores of the ranks 0, 1/2, 1, ..., N among N draws."""
    ranks = torch.arange(2 * count + 1, dtype=torch.double, device=device) / 2
    return torch.special.ndtri((ranks - 3 / 8) / (count + 1 / 4))


def _tail(x: Tensor) -> Tensor:
    """Effective sample size of the quantiles of rows ``(K, num_chains, num_samples)``."""
    rows = x.flatten(1)
    if x.device.type == "cpu":
        ordered = torch.from_numpy(np.sort(rows.numpy()))
    else:
        ordered = rows.sort(-1)[0]
    below = [(x <= _quantile(ordered, level)[:, None, None]).double() for level in _TAILS]
    return torch.minimum(*(_ess(_halves(indicator)) for indicator in below))


def _quantile(ordered: Tensor, level: float) -> Tensor:
    """Interpolate a quantile of ordered rows ``(K, N)``; between ties it is exactly theirs."""
    place = level * (ordered.shape[1] - 1)
    below = math.floor(place)
    low, high = ordered[:, below], ordered[:, min(below + 1, ordered.shape[1] - 1)]
    part = place - below
    return torch.where(low == high, low, torch.lerp(low, high, part))


def _rhat(x: Tensor) -> Tensor:
    n = x.shape[-1]
    variance, mean = torch.var_mean(x, -1)
    return (mean.var(1) / variance.mean(1) + (n - 1) / n).sqrt()


def _ess(x: Tensor) -> Tensor:
    """Effective sample size ``(K,)`` of the mean of chains ``(K, num_chains, n)``, as they are."""
    _, chains, n = x.shape
    length = _fast_length(2 * n)
    means = x.mean(-1, keepdim=True)
    spectrum = torch.view_as_real(torch.fft.rfft(x - means, length))
    power = spectrum.flatten(2).square().mean(1).unflatten(-1, (-1, 2)).sum(-1)
    covariance = torch.fft.irfft(power, length)[:, :n] / n
    within = covariance[:, :1] * n / (n - 1)
    total = covariance[:, :1] + (means.var(1) if chains > 1 else 0)
    rho = 1 - (within - covariance) / total
    rho[:, 0] = 1
    # Geyer: sums of pairs up to the first that is not positive, no pair above the one before it.
    pairs = max(1, (n - 1) // 2)
    even = rho[:, : 2 * pairs : 2]
    pair = even + rho[:, 1 : 2 * pairs : 2]
    counted = (pair > 0).cumprod(1).bool()
    counted[:, -1] = False
    last = counted.sum(1, keepdim=True)
    rest = even.gather(1, last)[:, 0]
    rest = torch.where(pair.gather(1, last)[:, 0] < 0, rest.clamp(min=0), rest)
    tau = -1 + 2 * torch.where(counted, pair.cummin(1)[0], 0.0).sum(1) + rest
    size = chains * n
    ess = size / tau.clamp(min=1 / math.log10(size))
    # An indicator of a quantile, unlike draws, may be constant.
    return torch.where((x == x[:, :1, :1]).flatten(1).all(1), float(size), ess)


def _fast_length(least: int) -> int:
    """Smallest length from ``least`` on that a fast Fourier transform has only small factors of.

    >>> _fast_length(1201)
    1280
    """
    # Powers of two times a few odd numbers.
    odd = (1, 3, 5, 9, 15, 25, 45)
    return min(factor * 2 ** math.ceil(math.log2(least / factor)) for factor in odd)
