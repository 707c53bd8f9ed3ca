r"""Pareto-smoothed importance sampling: whether importance weights can be relied on.

The largest of N weights follow a generalised Pareto distribution, whose density is

.. math:: \frac1\sigma \left(1 + k \frac{w - \mu}{\sigma}\right)^{-1/k - 1}, \qquad w > \mu

Moments of the weights up to 1/k exist. k-hat is the estimate of k from the M = min(N / 5, 3 sqrt N)
largest. Everything is computed from logarithms: weights may differ by thousands of nats.

Sources: Vehtari et al. 2024 [arXiv:1507.02646]; the fit, Zhang & Stephens 2009, *A New and
Efficient Estimation Method for the Generalized Pareto Distribution*.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

#: Least number of weights that a Pareto distribution is fitted to, as in ArviZ and R's loo.
_FEWEST = 5

#: Logarithm of the smallest weight of a tail, relative to the largest weight, as in ArviZ: smaller
#: ones cannot tell anything from zero in double precision.
_SMALLEST = math.log(torch.finfo(torch.double).tiny)

#: Relative difference of weights that is rounding error.
_ROUNDING = 1e-10

#: Relative difference of tied weights that is harmless even when no distribution can be fitted.
_HARMLESS = 0.1

#: The prior of k, as a number of weights in the tail, and its mean (Vehtari et al., appendix C).
_PRIOR_WEIGHTS, _PRIOR_MEAN = 10, 0.5


def pareto_khat(log_weights: Tensor) -> float:
    """Shape k-hat of the Pareto distribution fitted to the largest weights.

    The result agrees with ArviZ's ``psislw``. In particular it is infinite when fewer than five
    weights are above both the tail's threshold and 1e-308 times the largest weight: a few draws
    dominate, or there are not 21 draws. Two exceptions: weights that are equal up to rounding
    error, and tails with such ties that only weights within 10 % of the largest remain, are
    bounded, with k-hat 0.

    :param log_weights: shape ``(N,)``; -inf for a weight of zero.
    :raises ValueError: for another shape, no weights, or NaN.

    >>> pareto_khat(-0.5 * torch.linspace(1e-4, 1, 4000).log())  # w = u^(-k), u uniform
    0.5...
    >>> pareto_khat(torch.zeros(1000)), pareto_khat(1e6 * torch.linspace(0, 1, 1000))
    (0.0, inf)
    """
    return _tail(_relative(log_weights)).khat


def smooth(log_weights: Tensor) -> Tensor:
    """Normalised log-weights with the tail replaced by the quantiles of its Pareto distribution.

    The M largest weights become the quantiles at (i - 1/2) / M of the fitted distribution, in their
    order, none above the largest raw weight. Without a fit (k-hat 0 or infinite, see
    :func:`pareto_khat`) they are only normalised.

    :param log_weights: shape ``(N,)``; -inf for a weight of zero.
    :return: shape ``(N,)``, in double precision; the exponentials sum to one.
    :raises ValueError: for another shape, no weights, NaN, or when all weights are zero.

    >>> smooth(torch.tensor([0.0, 0.0, -math.inf])).exp()
    tensor([0.5000, 0.5000, 0.0000], dtype=torch.float64)
    """
    relative = _relative(log_weights)
    if not relative.max() > -math.inf:
        raise ValueError("log_weights must have a finite entry, got -inf in every one")
    tail = _tail(relative)
    if tail.places.numel():
        levels = (torch.arange(len(tail.places)).to(relative) + 0.5) / len(tail.places)
        exponents = -(-levels).log1p()  # quantiles for k = 0
        if abs(tail.khat) > torch.finfo(torch.double).eps:
            exponents = (tail.khat * exponents).expm1() / tail.khat
        threshold = relative.new_tensor(tail.threshold)
        smoothed = torch.logaddexp(threshold, tail.log_scale + exponents.log())
        relative[tail.places] = smoothed.clamp(max=0)
    return relative - relative.logsumexp(0)


def khat_threshold(num_draws: int) -> float:
    """Return the largest k-hat of reliable weights of N draws: min(1 - 1 / log10 N, 0.7).

    Source: Vehtari et al. 2024 [arXiv:1507.02646], section 3.2.4.

    >>> round(khat_threshold(100), 3), round(khat_threshold(2000), 3), khat_threshold(20_000)
    (0.5, 0.697, 0.7)
    """
    return min(1 - 1 / math.log10(max(num_draws, 2)), 0.7)


def khat_standard_error(khat: float, num_draws: int) -> float:
    r"""Return the standard error of a k-hat that was fitted to N independent weights.

    .. math:: \frac{\max(1 + k, 0.8)}{\sqrt M} \frac{M}{M + 10}

    The former factor is the asymptotic deviation of the maximum-likelihood estimate, where that
    exists; for k below -0.2 simulated deviations stay at 0.8. The latter comes from the prior of k,
    which counts as 10 weights of M. The bias of a threshold that is too low is not part of it. An
    infinite k-hat has an infinite error.

    >>> round(khat_standard_error(0.5, 4000), 3)
    0.103
    """
    size = _tail_size(num_draws)
    raw = khat + _PRIOR_WEIGHTS / size * (khat - _PRIOR_MEAN)  # without the prior's pull
    return max(1 + raw, 0.8) / math.sqrt(size) * size / (size + _PRIOR_WEIGHTS)


class _Tail(NamedTuple):
    """The largest weights and their distribution, in units of the largest weight.

    ``places`` are the indices of the weights in the tail, in rising order; none without a fit.
    """

    khat: float
    log_scale: float
    threshold: float
    places: Tensor


def _relative(log_weights: Tensor) -> Tensor:
    """Log-weights with maximum 0, in double precision; infinite weights leave zero to others."""
    if log_weights.dim() != 1 or not len(log_weights):
        raise ValueError(f"log_weights must have shape (N,), got {tuple(log_weights.shape)}")
    if bad := int(log_weights.isnan().sum()):
        raise ValueError(f"log_weights must not be NaN, got {bad} of {len(log_weights)}")
    log_weights = log_weights.detach().double()
    largest = log_weights.max()
    if largest.isinf():
        return torch.where(log_weights == math.inf, 0.0, -math.inf).to(log_weights)
    return log_weights - largest


def _tail_size(num_draws: int) -> int:
    return math.ceil(min(num_draws / 5, 3 * math.sqrt(num_draws)))


def _tail(relative: Tensor) -> _Tail:
    """Fit a Pareto distribution, if possible, to the tail of log-weights with maximum 0."""
    size = _tail_size(len(relative))
    values, places = relative.sort()
    beyond = float(values[-size - 1]) if size < len(values) else -math.inf
    threshold = max(beyond, _SMALLEST)
    above = values > threshold
    spread = -math.expm1(threshold)
    count = int(above.sum())
    if spread < _ROUNDING or (size >= _FEWEST > count and spread < _HARMLESS):
        return _Tail(0.0, -math.inf, threshold, places[:0])
    if count < _FEWEST:
        return _Tail(math.inf, -math.inf, threshold, places[:0])
    values, places = values[above], places[above]
    # log(w - mu) without a difference of rounded exponentials
    khat, log_scale = _fit_pareto(values + (-(threshold - values).expm1()).log())
    return _Tail(khat, log_scale, threshold, places)


def _fit_pareto(log_excess: Tensor) -> tuple[float, float]:
    """Shape, with its prior, and log-scale of a generalised Pareto distribution with threshold 0.

    The likelihood of x = exp(log_excess), in rising order, is profiled over theta = k / sigma: for
    each theta the best k is the mean of log(1 + theta x). theta is averaged over a grid of
    quantiles of its prior with the profile likelihood as weight. Here x is in units of its first
    quartile, so that nothing overflows.
    """
    count = len(log_excess)
    quartile = log_excess[int(count / 4 + 0.5) - 1]
    log_x = log_excess - quartile
    nodes = 30 + int(math.sqrt(count))
    levels = (torch.arange(nodes).to(log_x) + 0.5) / nodes
    theta = (levels.rsqrt() - 1) / 3 - (-log_x[-1]).exp()
    shape = _mean_log1p(theta, log_x)
    profile = count * ((theta / shape).log() - shape - 1)
    weights = profile.softmax(0)
    weights = torch.where(weights < 10 * torch.finfo(torch.double).eps, 0.0, weights)
    theta = (weights * theta).sum(0, keepdim=True) / weights.sum()
    shape = _mean_log1p(theta, log_x)
    log_scale = float(quartile + (shape / theta).log())
    khat = (count * float(shape) + _PRIOR_WEIGHTS * _PRIOR_MEAN) / (count + _PRIOR_WEIGHTS)
    return khat, log_scale


def _mean_log1p(theta: Tensor, log_x: Tensor) -> Tensor:
    """Return the mean over x of log(1 + theta x), for each theta."""
    column = theta[:, None]
    large = torch.logaddexp(log_x.new_zeros(()), column.abs().log() + log_x)
    # theta < 0 means a bounded tail: theta x > -1 for all x, so that x is no large number.
    return torch.where(column > 0, large, (column * log_x.exp()).log1p()).mean(-1)
