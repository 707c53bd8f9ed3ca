"""A Gaussian for a log-density too expensive for a search: one climb of its ELBO."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from .climbs import climb
from .graph import hessian
from .laplace import Gaussian, LogDensity, cholesky
from .pace import Pace

#: Standard deviation of every latent where the climb begins.
_FIRST_SCALE = 0.15

#: Share of the time for the climb.
_CLIMBING = 0.5

#: Largest and smallest number of draws behind the ELBO that is climbed. A batch of draws may cost
#: ``_DEARER`` times as much as a single point, or more where there is time for ``_CLIMB_STEPS``.
_MOST_DRAWS, _FEWEST_DRAWS, _DEARER, _CLIMB_STEPS = 16, 4, 1.5, 60

#: Largest number of climbs at once.
_MOST_CLIMBS = 12

#: Largest and smallest number of draws behind a Gaussian's ELBO, and their share of the time.
_MOST_JUDGES, _FEWEST_JUDGES, _JUDGING = 64, 8, 0.1

#: Largest number of latents for which a full covariance is computed.
_LARGEST = 1000


def independent_gaussians(
    target: LogDensity,
    origins: Tensor,
    normal: Tensor,
    max_iter: int = 100,
    deadline: float = math.inf,
    scales: Tensor | None = None,
) -> list[tuple[Tensor, Tensor]]:
    r"""Find the best Gaussians with independent latents, from each origin, for fixed draws.

    With the draws held fixed the ELBO is a function like any other, which L-BFGS climbs. It finds
    the mass of a funnel, whose mode has none.

    :param target: a log-density ``(N, D)`` to ``(N,)``.
    :param origins: where the climbs begin ``(S, D)``.
    :param normal: standard normal draws ``(M, D)``.
    :param deadline: value of :func:`time.monotonic` at which all climbs end where they are.
    :param scales: standard deviations to begin with ``(S, D)``; 0.15 by default.
    :return: locations ``(D,)`` and scales ``(D,)``; none of a climb with no finite ELBO.

    Source: Giordano, Ingram & Broderick 2024 [arXiv:2304.05527].

    >>> normal = torch.tensor([[-1.0], [1.0]])
    >>> [(loc, scale)] = independent_gaussians(
    ...     lambda z: -2 * (z - 3).square().sum(-1), torch.zeros(1, 1), normal)
    >>> loc, scale
    (tensor([3.]), tensor([0.5000]))
    """
    dim = origins.shape[1]

    def elbo(parameters: Tensor) -> Tensor:
        loc, log_scale = parameters.split(dim, 1)
        z = loc[:, None] + log_scale.exp()[:, None] * normal
        values = target(z.flatten(0, 1)).unflatten(0, (-1, len(normal)))
        return values.mean(1) + log_scale.sum(1)

    scales = torch.full_like(origins, _FIRST_SCALE) if scales is None else scales
    paths = climb(elbo, torch.cat([origins, scales.log()], 1), max_iter, deadline)
    ends = [path[-1].split(dim) for path in paths if len(path)]
    return [(loc, log_scale.exp()) for loc, log_scale in ends]


def fit_roughly(target: LogDensity, middle: Tensor, seconds: float, pace: Pace) -> list[Gaussian]:
    """Gaussians from a few climbs at once, the best first; none where no draw has a density.

    Latents are independent; of the best one, where D products with the Hessian are affordable and
    the ELBO is the larger for it, the precision is the negative Hessian at the mean. Where a batch
    costs hardly more than a point, several climbs begin at points of [-2, 2], for other modes.

    :param target: a log-density ``(N, D)`` to ``(N,)``.
    :param middle: the point ``(D,)`` to climb from.
    :param seconds: time for all of it; one climbing step and one Gaussian are made in any case.
    :param pace: what the log-density costs.

    >>> _ = torch.manual_seed(0)
    >>> def target(z):
    ...     return -(z - 3).square().sum(-1)
    >>> gaussian, *_ = fit_roughly(target, torch.zeros(2), 1.0, Pace(1e-4, 1e-5))
    >>> torch.allclose(gaussian.loc, torch.tensor([3.0, 3.0]), atol=1e-3)
    True
    """
    begin = time.monotonic()
    affordable = pace.points(max(_DEARER * pace.one, _CLIMBING * seconds / _CLIMB_STEPS))
    normal = _normal(max(min(affordable, _MOST_DRAWS), _FEWEST_DRAWS), middle)
    origins = _origins(target, middle, min(affordable // len(normal), _MOST_CLIMBS))
    deadline = begin + _CLIMBING * seconds
    ends = independent_gaussians(target, origins, normal, deadline=deadline)
    judges = min(pace.values(_JUDGING * seconds), _MOST_JUDGES)
    normal = _normal(max(judges, _FEWEST_JUDGES), middle)
    found = [_scored(target, loc, scale, normal) for loc, scale in ends]
    found.sort(key=lambda gaussian: -gaussian.elbo)
    left = seconds - (time.monotonic() - begin)
    if found and len(middle) <= _LARGEST and pace.points(left / 2) >= 3 * len(middle):
        factor = _laplace(target, found[0].loc)
        if factor is not None:
            full = _scored(target, found[0].loc, factor, normal)
            found[0] = max(full, found[0], key=lambda gaussian: gaussian.elbo)
    return found


@torch.no_grad()
def _origins(target: LogDensity, middle: Tensor, count: int) -> Tensor:
    """Return the origin and the likeliest of some points of [-2, 2]: ``(count, D)``."""
    if count < 2:
        return middle[None]
    box = 4 * torch.rand(8 * count, len(middle)).to(middle) - 2
    best = target(box).nan_to_num(nan=-torch.inf, posinf=-torch.inf).topk(count - 1).indices
    return torch.cat([middle[None], box[best]])


def _normal(count: int, like: Tensor) -> Tensor:
    """Draw standard normal points ``(count, D)`` in opposite pairs, with unit variances."""
    half = torch.randn(count // 2, len(like)).to(like)
    half = half / half.square().mean(0).sqrt()
    return torch.cat([half, -half])


def _laplace(target: LogDensity, z: Tensor) -> Tensor | None:
    """Lower triangular factor ``(D, D)`` of the inverse of the negative Hessian."""
    precision = -hessian(target, z)
    if not bool(precision.isfinite().all()):
        return None
    values, vectors = torch.linalg.eigh((precision + precision.mT) / 2)
    # Where the density curves upwards a width of that curvature is still the best guess.
    root = vectors * values.abs().clamp(min=1e-8).rsqrt()
    (factor,) = cholesky((root @ root.mT)[None])
    return factor


@torch.no_grad()
def _scored(target: LogDensity, loc: Tensor, factor: Tensor, normal: Tensor) -> Gaussian:
    energy = float(target(Gaussian(loc, factor, math.nan).draw(normal)).double().mean())
    scale = factor if factor.dim() == 1 else factor.diagonal()
    elbo = energy + float(scale.double().log().sum())
    return Gaussian(loc, factor, elbo if math.isfinite(elbo) else -math.inf)
