r"""An affine map around another formula: :math:`y = e^s \tau(x) + m`, with (m, raw s) last in phi.

The log-scale s is :func:`bounded`. The log-slope is :math:`\log\tau'(x) + s`, and the gradients are

.. math::
    g_\tau = e^s g_y, \qquad g_m = g_y, \qquad g_s = e^s \tau g_y + g_\ell
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .eager import Formula

#: Where the bound is reached to rounding: the square of a larger number could overflow.
_MOST = 1e9


def bounded(raw: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    r"""The log-scale :math:`s = B r / \sqrt{1 + r^2}` with :math:`r = g\,\mathrm{raw} / B`.

    Smooth, odd, of slope g at zero, and within :math:`\pm B`: the exponential of an unbounded
    output of a network is what a few steps of an optimiser make infinite. The derivative falls
    slowly, as :math:`|r|^{-3}`, so that training finds back from a far log-scale.

    :param raw: the pseudo-parameter, any shape.
    :param limits: B and g, shape ``(2,)``.
    :return: s and :math:`ds/d\mathrm{raw}`, of the shape of ``raw``.

    >>> bounded(torch.tensor([0.01, 4.0, 1e20]), torch.tensor([4.0, 1.0]))[0]
    tensor([0.0100, 2.8284, 4.0000])
    """
    bound, slope = limits.unbind()
    r = (raw * (slope / bound)).clamp(-_MOST, _MOST)
    by_root = (1 + r.square()).rsqrt()
    return bound * r * by_root, slope * by_root**3


def unbounded(log_scale: Tensor, limits: Tensor) -> Tensor:
    """The pseudo-parameter of a log-scale, which is brought within the bound.

    >>> limits = torch.tensor([4.0, 0.1])
    >>> bounded(unbounded(torch.tensor([-1.0, 2.0]), limits), limits)[0]
    tensor([-1.,  2.])
    """
    bound, slope = limits.unbind()
    part = (log_scale / bound).clamp(-0.99, 0.99)
    return bound / slope * part * (1 - part.square()).rsqrt()


class ScaledFormula:
    """The evaluations of a scaled transformer, as :class:`~.eager.Formula`.

    :param plain: the plain formula of the whole.
    :param inner: the formula of the transformer within the affine map.
    :param limits: B and g of :func:`bounded`.
    """

    def __init__(
        self, plain: Callable[..., tuple[Tensor, Tensor]], inner: Formula, limits: Tensor
    ) -> None:
        self.plain, self.inner, self.limits = plain, inner, limits
        self.hidden_units, self.temporaries = inner.hidden_units, inner.temporaries

    def state(self, x: Tensor, phi: Tensor, *shared: Tensor) -> Any:
        phi, last = phi.split([phi.shape[1] - 2, 2], 1)
        m, raw = last.unbind(1)
        return self.inner.state(x, phi, *shared), m, *bounded(raw, self.limits)

    def forward(self, state: Any) -> tuple[Tensor, Tensor, Tensor]:
        inner, m, s, _ = state
        y, log_slope, margin = self.inner.forward(inner)
        return torch.addcmul(m, s.exp(), y), log_slope + s, margin

    def backward(
        self, state: Any, x: Tensor, grad_y: Tensor, grad_l: Tensor, *shared: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        inner, _, s, derivative = state
        y = self.inner.forward(inner)[0]
        grad_inner = grad_y * s.exp()
        g_raw = (torch.addcmul(grad_l, grad_inner, y) * derivative).unsqueeze(1)
        grad_x, rows, totals = self.inner.backward(inner, x, grad_inner, grad_l, *shared)
        return grad_x, [*rows, grad_y.unsqueeze(1), g_raw], totals
