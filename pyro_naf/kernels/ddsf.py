r"""DDSF in linear space, layer by layer, with gradients derived by hand.

A dense sigmoidal layer takes units :math:`v` with tangents :math:`t = dv/dx`. With
:math:`E = \mathrm{softmax}(e)`, :math:`A = e^W`, :math:`s = \sigma(v)` and :math:`n = \sigma(-v)`,

.. math::
    L = A (E s), \quad R = A (E n), \quad S = A (E s n t), \quad
    h = \log (L/R), \quad \tau = dh/dx = S (1/L + 1/R)

and the mix that leads to the next layer's units is, with :math:`F = \mathrm{softmax}(e')` and
:math:`B = e^U`,

.. math::
    Z = B F, \quad m = B (F h) / Z, \quad \dot m = B (F \tau) / Z, \quad
    v = a m + b, \quad t = a \dot m .

Each backward function below is the transpose of the line it stands under.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .dsf import Linear


class Dense(NamedTuple):
    """A dense sigmoidal layer, evaluated: what its gradient needs."""

    s: Tensor
    n: Tensor
    #: E s, E n and E s n t, side by side for one matrix product, and what it makes of them.
    factors: Tensor
    left: Tensor
    right: Tensor
    slope: Tensor
    h: Tensor
    tau: Tensor


class Mix(NamedTuple):
    """A mix, evaluated."""

    f: Tensor
    #: F, F h and F tau
    factors: Tensor
    by_z: Tensor
    m: Tensor
    dm: Tensor


class State(NamedTuple):
    """All layers, evaluated: what the gradient needs."""

    dense: list[Dense]
    mixes: list[Mix]
    slopes: list[Tensor]
    raws: list[Tensor]
    matrices: list[Tensor]


class LinearDDSF(Linear):
    """The evaluations of a DDSF of L layers, as :class:`~.eager.Formula`.

    The shared tensors are the matrices W of the L layers, then the L - 1 matrices U.
    """

    temporaries = 20

    def forward(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        dense = state.dense
        lowest = [t.amin(1) for layer in dense for t in (layer.left, layer.right, layer.slope)]
        y, log_slope = dense[-1].h.squeeze(1), dense[-1].tau.squeeze(1).log()
        # A slope that is infinite has met an overflow before.
        return y, log_slope, torch.stack(lowest).amin(0).log_() - torch.clamp(log_slope, min=0)

    def state(self, x: Tensor, phi: Tensor, *shared: Tensor) -> State:
        matrices, layers = _exponentials(shared), (len(shared) + 1) // 2
        raw = phi.chunk(4 * layers - 1, 1)
        dense: list[Dense] = []
        mixes: list[Mix] = []
        slopes: list[Tensor] = []
        raws: list[Tensor] = []
        m, dm = x.unsqueeze(1), None
        for i in range(layers):
            softplus_of, a = self.slopes(raw[3 * i])
            v = torch.addcmul(raw[3 * i + 1] + self.biases, a, m)
            dense.append(_dense(v, a if dm is None else a * dm, raw[3 * i + 2], matrices[i]))
            slopes.append(a)
            raws.append(softplus_of)
            if i < layers - 1:
                mix = _mix(dense[i], raw[3 * layers + i], matrices[layers + i])
                mixes.append(mix)
                m, dm = mix.m, mix.dm
        return State(dense, mixes, slopes, raws, matrices)

    def backward(
        self, state: State, x: Tensor, grad_y: Tensor, grad_l: Tensor, *shared: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        dense, mixes, slopes, raws, matrices = state
        layers = len(dense)
        outs: list[Tensor] = [x] * (4 * layers - 1)
        grads: list[Tensor] = [x] * len(shared)
        g_h, g_tau = grad_y.unsqueeze(1), grad_l.unsqueeze(1) / dense[-1].tau
        for i in reversed(range(layers)):
            g_v, g_t, g_e, grads[i] = _dense_backward(dense[i], g_h, g_tau, matrices[i])
            a = slopes[i]
            m, dm = (mixes[i - 1].m, mixes[i - 1].dm) if i else (x.unsqueeze(1), None)
            g_a = torch.addcmul(g_t if dm is None else g_t * dm, g_v, m)
            g_raw = raws[i].sigmoid_().mul_(g_a)
            outs[3 * i : 3 * i + 3] = g_raw, g_v, g_e
            g_m = g_v * a
            if i:
                j = layers + i - 1
                g_h, g_tau, outs[j + 2 * layers], grads[j] = _mix_backward(
                    mixes[i - 1], g_m, g_t.mul_(a), matrices[j]
                )
        return g_m.sum(1), outs, grads


def _dense(v: Tensor, t: Tensor, e: Tensor, matrix: Tensor) -> Dense:
    s, n, e = torch.sigmoid(v), v.neg_().sigmoid_(), torch.softmax(e, 1)
    factors, (p, q, d) = _three(e)
    torch.mul(e, s, out=p)
    torch.mul(e, n, out=q)
    torch.mul(p, n, out=d).mul_(t)
    left, right, slope = _times(matrix, factors).unbind(2)
    h, tau = (left / right).log_(), slope / left + slope / right
    return Dense(s, n, factors, left, right, slope, h, tau)


def _dense_backward(
    layer: Dense, g_h: Tensor, g_tau: Tensor, matrix: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of v, t, the logits e and the logits of the matrix."""
    s, n, factors, left, right, slope, _, _ = layer
    by_left, by_right = left.reciprocal(), right.reciprocal()
    grads, (g_left, g_right, g_slope) = _three(left)
    of_slope = g_tau * slope
    torch.mul(torch.addcmul(g_h, of_slope, by_left, value=-1), by_left, out=g_left)
    torch.mul(torch.addcmul(g_h, of_slope, by_right), by_right, out=g_right).neg_()
    torch.mul(by_left.add_(by_right), g_tau, out=g_slope)
    of_factors = _times(matrix.T, grads)
    g_t = factors[:, :, 0] * n * of_factors[:, :, 2]
    p, q, d = of_factors.mul_(factors).unbind(2)
    # ds/dv = s n, dn/dv = -s n, d(s n)/dv = s n (n - s)
    g_v = (p * n).addcmul_(q, s, value=-1).addcmul_(d, n - s)
    # The scale of E cancels in h and tau: of softmax's gradient nothing is to be taken off.
    return g_v, g_t, p.add_(q).add_(d), _outer(grads, factors, matrix)


def _mix(layer: Dense, logits: Tensor, matrix: Tensor) -> Mix:
    f = torch.softmax(logits, 1)
    factors, (by_one, by_h, by_tau) = _three(f)
    by_one.copy_(f)
    torch.mul(f, layer.h, out=by_h)
    torch.mul(f, layer.tau, out=by_tau)
    z, m, dm = _times(matrix, factors).unbind(2)
    by_z = z.reciprocal()
    return Mix(f, factors, by_z, m * by_z, dm * by_z)


def _mix_backward(
    mix: Mix, g_m: Tensor, g_dm: Tensor, matrix: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of h, tau, the logits and the logits of the matrix."""
    f, factors, by_z, m, dm = mix
    grads, (of_z, of_m, of_dm) = _three(by_z)
    torch.mul(g_m, by_z, out=of_m)
    torch.mul(g_dm, by_z, out=of_dm)
    torch.mul(of_m, m, out=of_z).addcmul_(of_dm, dm).neg_()
    of_factors = _times(matrix.T, grads)
    g_h, g_tau = f * of_factors[:, :, 1], f * of_factors[:, :, 2]
    by_one, by_h, by_tau = of_factors.mul_(factors).unbind(2)
    return g_h, g_tau, by_one.add_(by_h).add_(by_tau), _outer(grads, factors, matrix)


def _three(like: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Room for three tensors of this shape ``(D, K, B)``: together ``(D, K, 3, B)``, and each."""
    together = like.new_empty(*like.shape[:2], 3, like.shape[2])
    return together, together.unbind(2)


def _exponentials(logits: Sequence[Tensor]) -> list[Tensor]:
    """A row's scale cancels in everything that is made of it: its largest entry becomes one."""
    return [torch.exp(m - m.amax(1, keepdim=True)) for m in logits]


def _times(matrix: Tensor, v: Tensor) -> Tensor:
    """``(M, K)`` times ``(D, K, 3, B)``: ``(D, M, 3, B)``."""
    return torch.bmm(matrix.expand(len(v), -1, -1), v.flatten(2)).unflatten(2, v.shape[2:])


def _outer(grads: Tensor, factors: Tensor, matrix: Tensor) -> Tensor:
    """The gradient of the matrix's logits: outer products ``(M, K)``, summed over lanes."""
    return torch.bmm(grads.flatten(2), factors.flatten(2).mT).sum(0) * matrix
