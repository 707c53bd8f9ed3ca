"""A Gaussian for a log-density that is too dear for a search: one climb, and its curvature."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from .climbs import climb
from .gaussian import Gaussian, LogDensity, cholesky
from .graph import hessian
from .pace import Pace

#: Share of the time for the climb.
_CLIMBING = 0.5

#: Probes of the Hessian's diagonal at least, where the whole Hessian is too dear.
_PROBES = 2

#: Most latents whose whole covariance is computed.
_LARGEST = 1000

#: Draws behind an ELBO: at most, and at least.
_MOST_DRAWS, _FEWEST_DRAWS = 64, 4

#: Smallest and largest variance, in squares of the unconstrained latents' unit, that a curvature
#: estimated from probes may give.
_VARIANCES = (1e-8, 1.0)


def fit_roughly(target: LogDensity, middle: Tensor, seconds: float, pace: Pace) -> Gaussian | None:
    """A Gaussian from one climb of L-BFGS, or None where the density has no finite value.

    Its precision is the negative Hessian where the climb ends, or halfway, whichever has the larger
    ELBO; where D products with the Hessian take too long, its diagonal from random probes
    (Bekas, Kokiopoulou & Saad 2007).

    :param target: a log-density ``(N, D)`` to ``(N,)``.
    :param middle: the point ``(D,)`` to climb from.
    :param seconds: time for all of it; one climbing step and one Gaussian are made in any case.
    :param pace: what the log-density costs.

    >>> def target(z):
    ...     return -(z - 3).square().sum(-1)
    >>> gaussian = fit_roughly(target, torch.zeros(2), 1.0, Pace(1e-4, 1e-5))
    >>> gaussian.loc, gaussian.factor.square()
    (tensor([3., 3.]), tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]]))
    """
    deadline = time.monotonic() + seconds
    (path,) = climb(target, middle[None], deadline=deadline - (1 - _CLIMBING) * seconds)
    if not len(path):
        return None
    places = dict.fromkeys((len(path) - 1, len(path) // 2))
    draws = max(_FEWEST_DRAWS, min(pace.values(0.1 * seconds), _MOST_DRAWS))
    normal = torch.randn(draws // 2, len(middle)).to(middle)
    normal = torch.cat([normal, -normal])
    found: list[Gaussian] = []
    for place in places:
        left = deadline - time.monotonic()
        if found and left < seconds / 3:
            break
        affordable = pace.points(left / 2) // 3
        factor = _factor(target, path[place], affordable)
        found.append(_scored(target, path[place], factor, normal))
    return max(found, key=lambda gaussian: gaussian.elbo)


def _factor(target: LogDensity, z: Tensor, affordable: int) -> Tensor:
    """Factor ``(D, D)`` of the covariance, or its diagonal's root ``(D,)`` where products are few.

    :param affordable: number of products with the Hessian.
    """
    dim = len(z)
    if affordable >= dim and dim <= _LARGEST:
        precision = -hessian(target, z)
        if bool(precision.isfinite().all()):
            values, vectors = torch.linalg.eigh((precision + precision.mT) / 2)
            # Where the density curves upwards a width of that curvature is still the best guess.
            root = vectors * values.abs().clamp(min=1e-8).rsqrt()
            (factor,) = cholesky((root @ root.mT)[None])
            return factor
    probes = torch.randint(2, (max(affordable, _PROBES), dim)).to(z) * 2 - 1
    products = hessian(target, z, probes).nan_to_num(0.0, 0.0, 0.0)
    curvature = -(probes * products).mean(0)
    low, high = _VARIANCES
    variance = (1 / curvature.clamp(min=1 / high)).clamp(low, high)
    return variance.sqrt()


@torch.no_grad()
def _scored(target: LogDensity, loc: Tensor, factor: Tensor, normal: Tensor) -> Gaussian:
    energy = float(target(Gaussian(loc, factor, math.nan).draw(normal)).double().mean())
    scale = factor if factor.dim() == 1 else factor.diagonal()
    elbo = energy + float(scale.double().log().sum())
    return Gaussian(loc, factor, elbo if math.isfinite(elbo) else -math.inf)
