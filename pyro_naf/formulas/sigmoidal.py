r"""DSF and DDSF, eq. 8 and 9 of Huang et al. 2018 [arXiv:1804.00779], in logarithms.

.. math::
    y = \sigma^{-1}(w^T \sigma(a x + b)), \qquad
    h^{l+1} = \sigma^{-1}(w\,\sigma(a \odot u\,h^l + b))

Value and log-slope come together; every sum has positive terms alone. The kernels in
:mod:`pyro_naf.kernels` evaluate these formulas faster, and the tests compare them with these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import affine
from .elementary import log_matvec, log_sigmoids, log_sum_exp
from .spec import SigmoidSpec


def evaluate(spec: SigmoidSpec, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Value and log-slope, each ``(...)``, of x ``(...)`` under phi ``(..., P)``."""
    if spec.limits is None:
        return sigmoids(x, spec.constrain(phi), spec.matrices)
    phi, shift, log_scale = spec.split(phi)
    y, log_slope = sigmoids(x, spec.constrain(phi), spec.matrices)
    return affine.evaluate(y, shift, log_scale), log_slope + log_scale


def sigmoids(
    x: Tensor, params: Sequence[Tensor], matrices: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Value and log-slope, each ``(...)``, from what :meth:`SigmoidSpec.constrain` returns."""
    return deep_dense_sigmoid(x, params, matrices) if matrices else deep_sigmoid(x, *params)


def bracket(y: Tensor, params: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Two points, each ``(...)``, between which the preimage of ``y`` lies.

    :param params: as in :func:`deep_dense_sigmoid`; of eq. 8 they are a, b and w.

    A mixture lies between its components, and so does the root between theirs. From the last layer
    down: all units must lie below (above) what the next layer needs.
    """
    lo = hi = y
    layers = (len(params) + 1) // 4
    for layer in reversed(range(layers)):
        a, b, _ = params[3 * layer : 3 * layer + 3]
        lo = ((lo.unsqueeze(-1) - b) / a).amin(-1)
        hi = ((hi.unsqueeze(-1) - b) / a).amax(-1)
    return lo, hi


def deep_sigmoid(x: Tensor, a: Tensor, b: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 8: value and log-slope, each ``(...)``, of slopes, biases and logits ``(..., K)``."""
    log_s, log_s_neg = log_sigmoids(a * x.unsqueeze(-1) + b)
    log_p, log_q = w + log_s, w + log_s_neg
    # Subtracting the maxima before anything is added keeps tails exact: far out both log_q and its
    # sum are huge and only their difference matters.
    top_p, top_q = (t.amax(-1, keepdim=True).detach() for t in (log_p, log_q))
    log_p, log_q = log_p - top_p, log_q - top_q
    log_left, log_right = (t.exp().sum(-1, keepdim=True).log() for t in (log_p, log_q))
    y = ((top_p - top_q) + (log_left - log_right)).squeeze(-1)
    # p_h s(-u_h) = exp(-y) q_h s(u_h): one of the two sums is enough. Taking the larger, and in
    # log space, keeps far tails and deep plateaus (slopes far below the smallest float) exact.
    positive_y = y.unsqueeze(-1) >= 0
    terms = torch.where(positive_y, (log_q - log_right) + log_s, (log_p - log_left) + log_s_neg)
    log_slope = log_sum_exp(terms + a.log()).squeeze(-1)
    log_s_y, log_s_neg_y = log_sigmoids(y)
    return y, log_slope - torch.where(y >= 0, log_s_y, log_s_neg_y)


def deep_dense_sigmoid(
    x: Tensor, params: Sequence[Tensor], matrices: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    r"""Eq. 9: value and log-slope, each ``(...)``.

    The matrices are conditioned with low rank, :math:`w = \mathrm{softmax}(W + e)` with W shared by
    all samples and e a pseudo-parameter vector on the softmax axis, so that

    .. math:: \mathrm{softmax}(W + e)\, v = (e^W (e^e \odot v)) / (e^W e^e)

    is a product with one K x K matrix: memory O(K) a sample, never O(K^2). As x is a scalar, the
    log-determinant needs one tangent carried forward, all of whose entries are positive.

    :param params: for each of the L layers a, b and the e of w, then the e of u between layers:
        4 L - 1 tensors ``(..., K)``.
    :param matrices: the W of each layer, ``(K, K)`` and at last ``(1, K)``, then the U between
        layers, ``(K, K)``: 2 L - 1 of them.
    """
    layers = (len(matrices) + 1) // 2
    mixed, log_tangent = x.unsqueeze(-1), x.new_zeros(())
    for i in range(layers):
        a, b, e = params[3 * i : 3 * i + 3]
        h, log_tangent = dense_sigmoid(a * mixed + b, a.log() + log_tangent, e, matrices[i])
        if i < layers - 1:
            mix = params[3 * layers + i], matrices[layers + i]
            mixed, log_tangent = softmax_mix(h, log_tangent, *mix)
    return h.squeeze(-1), log_tangent.squeeze(-1)


def dense_sigmoid(v: Tensor, log_dv: Tensor, e: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`h = \sigma^{-1}(\mathrm{softmax}(w + e)\,\sigma(v))` and :math:`\log dh/dx`.

    ``v``, its log-tangent ``log_dv`` and ``e`` are ``(..., K)``, ``w`` is ``(M, K)``, the results
    ``(..., M)``. The steps are explained in :func:`deep_sigmoid`.
    """
    log_s, log_s_neg = log_sigmoids(v)
    e = e - e.amax(-1, keepdim=True).detach()
    log_p, log_q = e + log_s, e + log_s_neg
    top_p = log_p.amax(-1, keepdim=True).detach()
    top_q = log_q.amax(-1, keepdim=True).detach()
    log_p, log_q = log_p - top_p, log_q - top_q
    log_left, log_right = log_matvec(w, log_p), log_matvec(w, log_q)
    h = (top_p - top_q) + (log_left - log_right)
    log_dh = torch.where(
        h >= 0,
        log_matvec(w, log_q + log_s + log_dv) - log_right,
        log_matvec(w, log_p + log_s_neg + log_dv) - log_left,
    )
    log_s_h, log_s_neg_h = log_sigmoids(h)
    return h, log_dh - torch.where(h >= 0, log_s_h, log_s_neg_h)


def softmax_mix(h: Tensor, log_dh: Tensor, e: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\mathrm{softmax}(u + e)\,h` and its log-tangent, each ``(..., M)``; u is (M, K)."""
    e = e - e.amax(-1, keepdim=True).detach()
    log_normaliser = log_matvec(u, e)
    # The row maxima of u cancel between the two products, as in log_matvec.
    weights = torch.exp(u - u.amax(-1, keepdim=True))
    mixed = ((e.exp() * h) @ weights.T) / (e.exp() @ weights.T)
    return mixed, log_matvec(u, e + log_dh) - log_normaliser
