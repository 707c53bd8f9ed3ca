"""The rational-quadratic spline transformer of NSF (Durkan et al. 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_integers
from .base import Transformer, positive

#: Floors under widths and heights (as parts of the whole) and under the slopes at the knots.
MIN_BIN, MIN_SLOPE = 1e-3, 1e-3


class RationalQuadraticSpline(Transformer):
    r"""A monotone spline of K rational-quadratic pieces on [-B, B], the identity outside.

    In the bin between the knots :math:`(x_k, y_k)` and :math:`(x_{k+1}, y_{k+1})`, with slopes
    :math:`\delta_k` there, chord :math:`s` and :math:`\xi = (x - x_k) / (x_{k+1} - x_k)`,

    .. math:: y = y_k + \frac{(y_{k+1} - y_k)(s \xi^2 + \delta_k \xi (1 - \xi))}
                {s + (\delta_{k+1} + \delta_k - 2 s)\,\xi (1 - \xi)}

    Its inverse is the root of a quadratic. The pseudo-parameters are the raw widths and heights of
    the bins (K each) and the raw slopes at the K - 1 knots inside; at zero they give the identity.

    :param bins: K >= 2.
    :param bound: B > 0.
    :raises ValueError: when an argument is out of its range.

    Source: Durkan et al. 2019 [arXiv:1906.04032], eq. 4 to 8.

    >>> spline = RationalQuadraticSpline(bins=4)
    >>> y, log_slope = spline(torch.tensor([-9.0, 0.5]), torch.zeros(2, 11))
    >>> [round(v, 4) for v in y.tolist()], bool(log_slope.abs().max() < 1e-5)
    ([-9.0, 0.5], True)
    """

    def __init__(self, bins: int = 8, bound: float = 4.0) -> None:
        super().__init__()
        check_integers(bins=(bins, 2))
        if not 0 < bound < float("inf"):
            raise ValueError(f"bound must be positive and finite, got {bound}")
        self.bins, self.bound = bins, bound
        self.num_params = 3 * bins - 1

    def constrain(self, phi: Tensor) -> tuple[Tensor, ...]:
        """Knots x and y and slopes there, each ``(..., K + 1)``."""
        widths, heights, slopes = phi.split([self.bins, self.bins, self.bins - 1], -1)
        slopes = F.pad(positive(slopes, 1.0, MIN_SLOPE), (1, 1), value=1.0)
        return self._knots(widths), self._knots(heights), slopes

    def _knots(self, raw: Tensor) -> Tensor:
        parts = MIN_BIN + (1 - MIN_BIN * self.bins) * raw.softmax(-1)
        inside = 2 * parts[..., :-1].cumsum(-1) - 1
        # The ends exactly: where the spline meets the identity nothing may be lost to rounding.
        ends = torch.ones_like(inside[..., :1])
        return self.bound * torch.cat([-ends, inside, ends], -1)

    def evaluate(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``."""
        knots_x, knots_y, slopes = params
        inside = x.abs() < self.bound
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

    def bracket(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of the bin that y lies in."""
        knots_x, knots_y, slopes = params
        inside = y.abs() < self.bound
        x0, x1, *_ = _bin(torch.where(inside, y, 0.0), knots_y, knots_x, knots_y, slopes)
        return torch.where(inside, x0, y), torch.where(inside, x1, y)

    def preimage(self, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor | None]:
        """The preimage of ``y``, in closed form; the error is NaN where it is not finite."""
        knots_x, knots_y, slopes = self.constrain(phi)
        inside = y.abs() < self.bound
        at = torch.where(inside, y, 0.0)
        x0, x1, y0, y1, d0, d1 = _bin(at, knots_y, knots_x, knots_y, slopes)
        s, over = (y1 - y0) / (x1 - x0), at - y0
        bend = over * (d0 + d1 - 2 * s)
        a, b, c = (y1 - y0) * (s - d0) + bend, (y1 - y0) * d0 - bend, -s * over
        # The form of the root that stays right where a vanishes: a straight bin.
        root = -2 * c / (b + (b.square() - 4 * a * c).clamp(min=0).sqrt())
        x = torch.where(inside, x0 + root * (x1 - x0), y)
        return x, (x - x).detach()

    def extra_repr(self) -> str:
        return f"bins={self.bins}, bound={self.bound}"


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
