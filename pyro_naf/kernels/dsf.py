r"""DSF in linear space, with the gradients of eq. 28 derived by hand.

With :math:`s_h = \sigma(u_h)`, :math:`n_h = \sigma(-u_h)` and normalised weights :math:`w_h`,

.. math::
    L = \sum_h w_h s_h, \quad R = \sum_h w_h n_h = 1 - L, \quad
    S = \sum_h a_h w_h s_h n_h, \quad
    y = \log (L/R), \quad \ell = \log \frac{dy}{dx} = \log \frac{S}{L R}

and for gradients :math:`g_y, g_\ell` of the two, with :math:`g_L = (g_y - R g_\ell) / L`,
:math:`g_R = (g_y + L g_\ell) / R` and :math:`g_S = g_\ell / S`,

.. math::
    g_{u_h} &= w_h s_h n_h \left(g_L + g_R + g_S a_h (n_h - s_h)\right) \\
    g_{\log w_h} &= w_h \left(g_L s_h - g_R n_h + g_S a_h s_h n_h\right) \\
    g_{a_h} &= g_{u_h} x + g_S w_h s_h n_h, \qquad g_{b_h} = g_{u_h}, \qquad
    g_x = \textstyle\sum_h a_h g_{u_h}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Beyond it softplus is the identity to rounding, also in float64; torch's own is 2e-9 off there.
SOFTPLUS_THRESHOLD = 50.0


class State(NamedTuple):
    """What the gradient needs, ``(D, K, B)``; then the sums, ``(D, 1, B)``."""

    raw: Tensor
    a: Tensor
    s: Tensor
    n: Tensor
    #: w s and w n
    p: Tensor
    q: Tensor
    left: Tensor
    right: Tensor
    slope: Tensor


class Linear:
    """What the linear-space formulas of DSF and DDSF share.

    :param plain: the plain formula.
    :param biases: the initial biases, ``(K,)``.
    :param shift: added to the raw slopes before the softplus.
    :param floor: added to the slopes after it.
    """

    def __init__(
        self,
        plain: Callable[..., tuple[Tensor, Tensor]],
        biases: Tensor,
        shift: float,
        floor: float,
    ) -> None:
        self.plain = plain
        self.hidden_units = len(biases)
        self.biases, self.shift, self.floor = biases.unsqueeze(-1), shift, floor

    def slopes(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """The argument of the softplus, and the slopes a."""
        raw = raw + self.shift
        return raw, F.softplus(raw, threshold=SOFTPLUS_THRESHOLD).add_(self.floor)


class LinearDSF(Linear):
    """The evaluations of a DSF, as :class:`~.eager.Formula`."""

    temporaries = 10

    def state(self, x: Tensor, phi: Tensor, *shared: Tensor) -> State:
        raw, b, w = phi.chunk(3, 1)
        raw, a = self.slopes(raw)
        u = (b + self.biases).addcmul_(a, x.unsqueeze(1))
        s, n = torch.sigmoid(u), u.neg_().sigmoid_()
        w = torch.softmax(w, 1)
        q = w * n
        p = w.mul_(s)
        left, right = p.sum(1, keepdim=True), q.sum(1, keepdim=True)
        slope = (p * n).mul_(a).sum(1, keepdim=True)
        return State(raw, a, s, n, p, q, left, right, slope)

    def forward(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        left, right, slope = (t.squeeze(1) for t in state[-3:])
        y, log_slope = (left / right).log_(), (slope / (left * right)).log_()
        # L and R are at least exp(-|y|) / 2, and S a quarter of exp(log_slope - |y|).
        return y, log_slope, log_slope - y.abs()

    def backward(
        self, state: State, x: Tensor, grad_y: Tensor, grad_l: Tensor, *shared: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        raw, a, s, n, p, q, left, right, slope = state
        x, grad_y, grad_l = x.unsqueeze(1), grad_y.unsqueeze(1), grad_l.unsqueeze(1)
        g_left = torch.addcmul(grad_y, grad_l, right, value=-1).div_(left)
        g_right = torch.addcmul(grad_y, grad_l, left).div_(right)
        g_slope = grad_l / slope
        pn = p * n
        g_u = n.sub_(s).mul_(a).mul_(g_slope).add_(g_left + g_right).mul_(pn)
        pn.mul_(g_slope)
        g_raw = raw.sigmoid_().mul_(torch.addcmul(pn, g_u, x))
        g_w = pn.mul_(a).addcmul_(p, g_left).addcmul_(q, g_right, value=-1)
        return a.mul_(g_u).sum(1), [g_raw, g_u, g_w], []
