"""The rational-quadratic spline transformer of NSF (Durkan et al. 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_integers
from ..kernels.precision import in_float32
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

    @in_float32
    def preimage(self, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor | None]:
        r"""The preimage of ``y`` in closed form; the error is the residual where it is too large.

        With v and w the parts of the bin below and above y, the odds :math:`q = \xi / (1 - \xi)`
        are the positive root of :math:`w q^2 + (w \delta_k - v \delta_{k+1}) q / s - v = 0`. Its
        discriminant is a sum of positive terms: nothing cancels, and the root stays in its bin.
        """
        params = knots_x, knots_y, slopes = self.constrain(phi)
        inside = y.abs() < self.bound
        at = torch.where(inside, y, 0.0)
        x0, x1, y0, y1, d0, d1 = _bin(at, knots_y, knots_x, knots_y, slopes)
        height, width = y1 - y0, x1 - x0
        v, w, by_s = (at - y0) / height, (y1 - at) / height, width / height
        b = by_s * (w * d0 - v * d1)
        larger = b.abs() + (b.square() + 4 * v * w).sqrt()
        below = torch.where(b < 0, larger, 2 * v)
        above = torch.where(b < 0, 2 * w, larger)
        x = torch.where(inside, x0 + width * (below / (below + above)), y)
        far = torch.where(inside, torch.maximum(x0.abs(), x1.abs()), y.abs())
        return x, self._error(*(t.detach() for t in (x, y, far, *params)))

    def _error(self, x: Tensor, y: Tensor, far: Tensor, *params: Tensor) -> Tensor:
        """Zero where ``|f(x) - y|`` is at rounding level, else that residual.

        x is a difference from the ends of its bin, of which the larger in magnitude is ``far``.
        """
        value, log_slope = self.evaluate(x, *params)
        eps = torch.finfo(y.dtype).eps
        size = y.abs().clamp(min=1)
        rounding = 32 * eps * size + 8 * eps * far * log_slope.exp()
        residual = (value - y).abs()
        return torch.where(residual <= rounding.minimum(4 * eps**0.5 * size), 0.0, residual)

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
