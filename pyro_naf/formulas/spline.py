"""The rational-quadratic spline (Durkan et al. 2019 [arXiv:1906.04032], eq. 4 to 8).

The knots x and y and the slopes there are ``(..., K + 1)``; outside of [-B, B], from the first to
the last knot, the map is the identity.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .elementary import positive

#: Floors under widths and heights (as parts of the whole) and under the slopes at the knots.
MIN_BIN, MIN_SLOPE = 1e-3, 1e-3


def constrain(phi: Tensor, bins: int, bound: float) -> tuple[Tensor, Tensor, Tensor]:
    """Knots x and y and slopes there, of pseudo-parameters ``(..., 3 K - 1)`` for K bins."""
    widths, heights, slopes = phi.split([bins, bins, bins - 1], -1)
    slopes = F.pad(positive(slopes, 1.0, MIN_SLOPE), (1, 1), value=1.0)
    return _knots(widths, bound), _knots(heights, bound), slopes


def _knots(raw: Tensor, bound: float) -> Tensor:
    parts = MIN_BIN + (1 - MIN_BIN * raw.shape[-1]) * raw.softmax(-1)
    inside = 2 * parts[..., :-1].cumsum(-1) - 1
    # The ends exactly: where the spline meets the identity nothing may be lost to rounding.
    ends = torch.ones_like(inside[..., :1])
    return bound * torch.cat([-ends, inside, ends], -1)


def evaluate(
    x: Tensor, bound: float, knots_x: Tensor, knots_y: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and log-slope, each ``(...)``."""
    inside = x.abs() < bound
    at = torch.where(inside, x, 0.0)
    x0, x1, y0, y1, d0, d1 = _bin(at, knots_x, knots_x, knots_y, slopes)
    width, height = x1 - x0, y1 - y0
    s, left = height / width, (at - x0) / width
    right = (x1 - at) / width
    both = left * right
    below = s + (d0 + d1 - 2 * s) * both
    y = y0 + height * left * (s * left + d0 * right) / below
    slope = s.square() * (d1 * left.square() + 2 * s * both + d0 * right.square())
    log_slope = slope.log() - 2 * below.log()
    return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)


def bracket(
    y: Tensor, bound: float, knots_x: Tensor, knots_y: Tensor, slopes: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the ends of the bin that y lies in; y itself, twice, outside."""
    inside = y.abs() < bound
    x0, x1, *_ = _bin(torch.where(inside, y, 0.0), knots_y, knots_x, knots_y, slopes)
    return torch.where(inside, x0, y), torch.where(inside, x1, y)


def inverse(y: Tensor, bound: float, knots_x: Tensor, knots_y: Tensor, slopes: Tensor) -> Tensor:
    r"""Return the preimage of y ``(...)`` in closed form.

    With v and w the parts of the bin below and above y, the odds :math:`q = \xi / (1 - \xi)`
    are the positive root of :math:`w q^2 + (w \delta_k - v \delta_{k+1}) q / s - v = 0`. Its
    discriminant is a sum of positive terms: nothing cancels, and the root stays in its bin.
    """
    inside = y.abs() < bound
    at = torch.where(inside, y, 0.0)
    x0, x1, y0, y1, d0, d1 = _bin(at, knots_y, knots_x, knots_y, slopes)
    height, width = y1 - y0, x1 - x0
    v, w, by_s = (at - y0) / height, (y1 - at) / height, width / height
    b = by_s * (w * d0 - v * d1)
    larger = b.abs() + (b.square() + 4 * v * w).sqrt()
    below = torch.where(b < 0, larger, 2 * v)
    above = torch.where(b < 0, 2 * w, larger)
    return torch.where(inside, x0 + width * (below / (below + above)), y)


def _bin(
    at: Tensor, where: Tensor, knots_x: Tensor, knots_y: Tensor, slopes: Tensor
) -> list[Tensor]:
    """x, y and slope at both ends of the bin of ``where`` that holds ``at``: x0 x1 y0 y1 d0 d1."""
    k = (at.unsqueeze(-1) >= where[..., 1:-1]).sum(-1, keepdim=True)
    return [
        knots.gather(-1, k + end).squeeze(-1)
        for knots in (knots_x, knots_y, slopes)
        for end in (0, 1)
    ]
