r"""Marginal quantiles of z = T(eps), eps ~ N(0, I), from quasi-random points or exactly."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.transforms import AffineTransform, ComposeTransform, Transform

from ..flows.heavy_tails import TukeyH
from ..transforms import AutoregressiveFlow

#: Smallest and largest number of points, and the number of points beyond an extreme level.
_MIN_POINTS, _MAX_POINTS, _TAIL_POINTS = 2**14, 2**20, 100

#: Number of values that are mapped or sorted at once.
NUMBERS = 2**23


def normal_points(levels: Tensor, like: Tensor) -> Tensor:
    """Draw standard normal points ``(N, D)``, as many as the most extreme of the levels needs.

    They come from a scrambled Sobol sequence that is always the same.

    >>> normal_points(torch.tensor([0.5]), torch.zeros(3)).shape
    torch.Size([16384, 3])
    """
    beyond = float(torch.minimum(levels, 1 - levels).min())
    wanted = 2 ** math.ceil(math.log2(_TAIL_POINTS / beyond))
    engine = torch.quasirandom.SobolEngine(like.shape[-1], scramble=True, seed=0)
    uniform = engine.draw(min(max(wanted, _MIN_POINTS), _MAX_POINTS), dtype=torch.double)
    eps = torch.finfo(torch.double).eps
    return torch.special.ndtri(uniform.clamp(eps, 1 - eps)).to(like.device, like.dtype)


def marginal_quantiles(transform: ComposeTransform, points: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of each entry of T(eps): exact where it rises with one entry of eps alone.

    Shapes: points ``(N, ..., D)`` and levels ``(Q,)``; result ``(Q, ..., D)``, the axes between
    are the axes of T(points).
    """
    # In parts: a point costs D P numbers on its way through a flow.
    latent = torch.cat([transform(part) for part in points.split(1024)])
    columns = latent.flatten(1).split(max(1, NUMBERS // len(latent)), 1)
    quantiles = torch.cat([sorted_quantiles(part, levels) for part in columns], 1)
    quantiles = quantiles.reshape(-1, *latent.shape[1:])
    eps = points.new_zeros(len(levels), *points.shape[1:])
    for i in _lone_dims(transform, points.shape[-1]):
        eps[..., i] = torch.special.ndtri(levels).reshape(-1, *[1] * (eps.dim() - 2))
        quantiles[..., i] = transform(eps)[..., i]
    return quantiles


def sorted_quantiles(x: Tensor, levels: Tensor) -> Tensor:
    """Quantiles ``(Q, D)`` of columns ``(N, D)``; torch.quantile takes 16 million numbers only."""
    places = levels * len(x) - 0.5
    below = places.floor().clamp(0, len(x) - 2)
    part = (places - below).clamp(0, 1).to(x)[:, None]
    ordered = x.sort(0).values
    return torch.lerp(ordered[below.long()], ordered[below.long() + 1], part)


def _lone_dims(transform: ComposeTransform, dim: int) -> set[int]:
    """Dimensions of a composed transform that depend on nothing but themselves, and rise."""
    lone = set(range(dim))
    for part in transform.parts:
        if isinstance(part, ComposeTransform):
            lone &= _lone_dims(part, dim)
        elif isinstance(part, AutoregressiveFlow):
            lone &= {int(part.arn.get_permutation()[0])}
        elif isinstance(part.inv, AutoregressiveFlow):
            lone &= {int(part.inv.arn.get_permutation()[0])}
        elif isinstance(part, dist.transforms.LowerCholeskyAffine):
            lone &= {0}
        elif not isinstance(part, TukeyH) and not (
            isinstance(part, AffineTransform) and slope_sign(part) > 0
        ):
            return set()
    return lone


def slope_sign(transform: Transform) -> float:
    """Return the sign of the slope; NaN for a transform of several entries together."""
    try:
        return float(torch.as_tensor(transform.sign).double().mean())
    except NotImplementedError:
        return math.nan
