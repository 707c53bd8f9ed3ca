"""The rational-quadratic spline transformer of NSF (Durkan et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..formulas import spline
from ..support.checks import check_integers
from ..support.precision import in_float32
from .base import Transformer


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
        return spline.constrain(phi, self.bins, self.bound)

    def evaluate(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``."""
        return spline.evaluate(x, self.bound, *params)

    def bracket(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of the bin that y lies in."""
        return spline.bracket(y, self.bound, *params)

    @in_float32
    def preimage(self, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor | None]:
        """Invert at ``y`` in closed form; the error is the residual where that is too large."""
        params = self.constrain(phi)
        x = spline.inverse(y, self.bound, *params)
        return x, self._error(*(t.detach() for t in (x, y, *params)))

    def _error(self, x: Tensor, y: Tensor, *params: Tensor) -> Tensor:
        """Zero where ``|f(x) - y|`` is at rounding level, else that residual."""
        value, log_slope = self.evaluate(x, *params)
        # x is a difference from the ends of its bin, of which the larger in magnitude counts.
        far = torch.maximum(*(end.abs() for end in self.bracket(y, *params)))
        eps = torch.finfo(y.dtype).eps
        size = y.abs().clamp(min=1)
        rounding = 32 * eps * size + 8 * eps * far * log_slope.exp()
        residual = (value - y).abs()
        return torch.where(residual <= rounding.minimum(4 * eps**0.5 * size), 0.0, residual)

    def extra_repr(self) -> str:
        """Describe the options, for ``repr``."""
        return f"bins={self.bins}, bound={self.bound}"
