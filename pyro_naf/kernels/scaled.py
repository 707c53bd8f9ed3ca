r"""An affine map around another formula: :math:`y = e^s \tau(x) + m`, with (m, s) last in phi.

The log-slope is that of :math:`\tau` plus s, and the gradients are

.. math::
    g_\tau = e^s g_y, \qquad g_m = g_y, \qquad g_s = e^s \tau g_y + g_\ell
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .eager import Formula


class ScaledFormula:
    """The evaluations of a scaled transformer, as :class:`~.eager.Formula`.

    :param plain: the plain formula of the whole.
    :param inner: that of what stands within the affine map.
    """

    def __init__(self, plain: Callable[..., tuple[Tensor, Tensor]], inner: Formula) -> None:
        self.plain, self.inner = plain, inner
        self.hidden_units, self.temporaries = inner.hidden_units, inner.temporaries

    def state(self, x: Tensor, phi: Tensor, *shared: Tensor) -> Any:
        phi, last = phi.split([phi.shape[1] - 2, 2], 1)
        return self.inner.state(x, phi, *shared), *last.unbind(1)

    def forward(self, state: Any) -> tuple[Tensor, Tensor, Tensor]:
        inner, m, s = state
        y, log_slope, margin = self.inner.forward(inner)
        return torch.addcmul(m, s.exp(), y), log_slope + s, margin

    def backward(
        self, state: Any, x: Tensor, grad_y: Tensor, grad_l: Tensor, *shared: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        inner, _, s = state
        y = self.inner.forward(inner)[0]
        grad_inner = grad_y * s.exp()
        g_s = torch.addcmul(grad_l, grad_inner, y).unsqueeze(1)
        grad_x, rows, totals = self.inner.backward(inner, x, grad_inner, grad_l, *shared)
        return grad_x, [*rows, grad_y.unsqueeze(1), g_s], totals
