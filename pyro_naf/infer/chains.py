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
from typing import TypedDict

import torch
from torch import Tensor

#: Number of values, in the draws of the entries that are worked on at once: a dozen copies take 200
#: MB.
_NUMBERS = 2**21

#: Levels of the quantiles that the effective sample size of the tails is about.
_TAILS = (0.05, 0.95)


class Counts(TypedDict, total=False):
    """What chains have cost, and how they went."""

    accept_rate: float
    evaluations: int
    divergences: int


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

    def columns(x: Tensor) -> Tensor:
        halves = _halves(x)
        ordered = halves.flatten(0, 1).sort(0)[0]
        n = len(ordered)
        median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
        scores = (_normal_scores(halves), _normal_scores((halves - median).abs()))
        return torch.maximum(*map(_rhat, scores))

    return _by_entry(columns, draws)


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
    return _by_entry(lambda x: _ess(_normal_scores(_halves(x))), draws)


def tail_ess(draws: Tensor) -> Tensor:
    """Effective sample size of the 5 % and 95 % quantiles: the smaller of the two.

    That of a quantile is the effective sample size of the indicator of draws below it.

    :param draws: shape ``(num_chains, num_samples, ...)``.

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> 3000 < tail_ess(torch.randn(4, 1000)) < 5000
    tensor(True)
    """

    def columns(x: Tensor) -> Tensor:
        ordered = x.flatten(0, 1).sort(0)[0]
        below = [(x <= _quantile(ordered, level)).double() for level in _TAILS]
        return torch.minimum(*(_ess(_halves(indicator)) for indicator in below))

    return _by_entry(columns, draws)


def mean_mcse(draws: Tensor) -> Tensor:
    """Monte Carlo standard error of the mean: the standard deviation over the root of the ESS.

    :param draws: shape ``(num_chains, num_samples, ...)``.

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> round(mean_mcse(torch.randn(4, 2500)).item(), 3)
    0.01
    """
    return _by_entry(lambda x: x.flatten(0, 1).std(0) / _ess(_halves(x)).sqrt(), draws)


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
    halves = _halves(draws)
    return (halves == halves[:, :1]).all(1).any(0)


def _by_entry(function: Callable[[Tensor], Tensor], draws: Tensor) -> Tensor:
    """Apply a function of ``(num_chains, num_samples, K)`` to a bounded number K of entries.

    It sees entries that vary and are not NaN; others get NaN.
    """
    if draws.dim() < 2:
        raise ValueError(
            f"draws must have shape (num_chains, num_samples, ...), got {tuple(draws.shape)}"
        )
    chains, samples, *shape = draws.shape
    columns = draws.detach().reshape(chains, samples, math.prod(shape))
    result = torch.full((columns.shape[-1],), math.nan, dtype=torch.double, device=draws.device)
    if samples < 4:
        return result.reshape(shape)
    width = max(1, _NUMBERS // (chains * samples))
    for part, places in zip(
        columns.split(width, -1), torch.arange(len(result)).split(width), strict=True
    ):
        x = part.double()
        # The halves of an odd number of draws leave out the one in the middle.
        halves = _halves(x)
        good = (halves != halves[:1, :1]).flatten(0, 1).any(0) & ~x.isnan().flatten(0, 1).any(0)
        if good.any():
            result[places.to(good.device)[good]] = function(x[..., good])
    return result.reshape(shape)


def _halves(x: Tensor) -> Tensor:
    """``(2 num_chains, num_samples // 2, ...)``, without the middle one of an odd number."""
    half = x.shape[1] // 2
    return torch.cat([x[:, :half], x[:, -half:]])


def _normal_scores(x: Tensor) -> Tensor:
    """Return normal scores of the ranks among all chains; ties share their mean rank."""
    columns = x.flatten(0, 1).T.contiguous()
    ordered = columns.sort(-1)[0]
    below = torch.searchsorted(ordered, columns)
    not_above = torch.searchsorted(ordered, columns, right=True)
    ranks = (below + not_above + 1).double() / 2
    return torch.special.ndtri((ranks - 3 / 8) / (columns.shape[-1] + 1 / 4)).T.reshape(x.shape)


def _quantile(ordered: Tensor, level: float) -> Tensor:
    """Interpolate a quantile of ordered rows ``(N, K)``; between ties it is exactly theirs."""
    place = level * (len(ordered) - 1)
    below = math.floor(place)
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    part = place - below
    return torch.where(low == high, low, torch.lerp(low, high, part))


def _rhat(x: Tensor) -> Tensor:
    n = x.shape[1]
    return (x.mean(1).var(0) / x.var(1).mean(0) + (n - 1) / n).sqrt()


def _ess(x: Tensor) -> Tensor:
    """Effective sample size ``(K,)`` of the mean of chains ``(num_chains, n, K)``, as they are."""
    chains, n, _ = x.shape
    length = 2 ** math.ceil(math.log2(2 * n))
    means = x.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(x - means, length, dim=1).abs().square().mean(0)
    covariance = torch.fft.irfft(spectrum, length, dim=0)[:n] / n
    within = covariance[0] * n / (n - 1)
    total = covariance[0] + (means[:, 0].var(0) if chains > 1 else 0)
    rho = 1 - (within - covariance) / total
    rho[0] = 1
    # Geyer: sums of pairs up to the first that is not positive, no pair above the one before it.
    pairs = max(1, (n - 1) // 2)
    even, pair = rho[: 2 * pairs : 2], rho[: 2 * pairs : 2] + rho[1 : 2 * pairs : 2]
    counted = (pair > 0).cumprod(0).bool()
    counted[-1] = False
    last = counted.sum(0, keepdim=True)
    rest = even.gather(0, last)[0]
    rest = torch.where(pair.gather(0, last)[0] < 0, rest.clamp(min=0), rest)
    tau = -1 + 2 * torch.where(counted, pair.cummin(0)[0], 0.0).sum(0) + rest
    size = chains * n
    ess = size / tau.clamp(min=1 / math.log10(size))
    # An indicator of a quantile, unlike draws, may be constant.
    return torch.where((x == x[:1, :1]).flatten(0, 1).all(0), float(size), ess)
