r"""DSF in linear space, with the gradients of eq. 28 derived by hand.

With :math:`s_h = \sigma(u_h)`, :math:`n_h = \sigma(-u_h)` and normalised weights :math:`w_h`,

.. math::
    L = \sum_h w_h s_h, \quad R = \sum_h w_h n_h, \quad S = \sum_h a_h w_h s_h n_h, \quad
    y = \log (L/R), \quad \ell = \log \frac{dy}{dx} = \log \frac{S}{L R}

and for gradients :math:`g_y, g_\ell` of the two

.. math::
    g_{u_h} &= w_h s_h n_h \left(g_y \left(\tfrac1L + \tfrac1R\right)
        + g_\ell \left(\tfrac1R - \tfrac1L\right) + \tfrac{g_\ell}{S} a_h (n_h - s_h)\right) \\
    g_{\log w_h} &= w_h \left(s_h \frac{g_y - R g_\ell}{L} - n_h \frac{g_y + L g_\ell}{R}
        + \tfrac{g_\ell}{S} a_h s_h n_h\right) \\
    g_{a_h} &= g_{u_h} x + \tfrac{g_\ell}{S} w_h s_h n_h, \qquad g_{b_h} = g_{u_h}, \qquad
    g_x = \textstyle\sum_h a_h g_{u_h}
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

#: Beyond it softplus is the identity to rounding, also in float64; torch's own is 2e-9 off there.
SOFTPLUS_THRESHOLD = 50.0


class LinearDSF:
    """The evaluations of a DSF, as :class:`~.eager.Formula`.

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

    def forward(self, x: Tensor, phi: Tensor, *shared: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raw, b, w = phi.chunk(3, 1)
        a = F.softplus(raw + self.shift, threshold=SOFTPLUS_THRESHOLD).add_(self.floor)
        s, n = sigmoids(a, b + self.biases, x)
        w = torch.softmax(w, 1)
        q = w * n
        slope = (q * s).mul_(a).sum(1)
        left, right = w.mul_(s).sum(1), q.sum(1)
        good = torch.minimum(torch.minimum(left, right), slope) > smallest(x)
        return (left / right).log_(), (slope / (left * right)).log_(), good

    def backward(
        self, x: Tensor, phi: Tensor, grad_y: Tensor, grad_l: Tensor, *shared: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        raw, b, w = phi.chunk(3, 1)
        raw = raw + self.shift
        a = F.softplus(raw, threshold=SOFTPLUS_THRESHOLD).add_(self.floor)
        s, n = sigmoids(a, b + self.biases, x)
        w = torch.softmax(w, 1)
        q = w * n
        p = w.mul_(s)
        pn = p * n
        left, right, slope = p.sum(1), q.sum(1), (pn * a).sum(1)
        by_left, by_right, of_slope = left.reciprocal(), right.reciprocal(), grad_l / slope
        of_u = grad_y * (by_left + by_right) + grad_l * (by_right - by_left)
        of_p, of_q = (grad_y - grad_l * right) * by_left, (grad_y + grad_l * left) * by_right

        def rows(t: Tensor) -> Tensor:
            return t.unsqueeze(1)

        g_u = n.sub_(s).mul_(a).mul_(rows(of_slope)).add_(rows(of_u)).mul_(pn)
        g_slope = pn.mul_(rows(of_slope))
        g_raw = raw.sigmoid_().mul_(torch.addcmul(g_slope, g_u, rows(x)))
        g_w = g_slope.mul_(a).addcmul_(p, rows(of_p)).addcmul_(q, rows(of_q), value=-1)
        return a.mul_(g_u).sum(1), [g_raw, g_u, g_w], []


def sigmoids(a: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\sigma(u)` and :math:`\sigma(-u)`, each to full relative precision; overwrites b."""
    u = b.addcmul_(a, x.unsqueeze(1))
    return torch.sigmoid(u), u.neg_().sigmoid_()


def smallest(x: Tensor) -> float:
    """Sums above this have lost nothing to underflow, which takes less than ``tiny`` a term."""
    return torch.finfo(x.dtype).tiny ** 0.75
