"""The deep dense sigmoidal transformer, DDSF (Huang et al. 2018, eq. 9; slides eq. 29 and 30)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import check_integers
from ..kernels.ddsf import LinearDDSF
from ..kernels.eager import Formula
from ..kernels.precision import at_least_float32
from .base import SigmoidalTransformer, log_sigmoids, positive


class DeepDenseSigmoidal(SigmoidalTransformer):
    r"""Dense layers of sigmoids, :math:`h^{l+1} = \sigma^{-1}(w\,\sigma(a \odot u\,h^l + b))`.

    :math:`h^0 = x` and :math:`y = h^L` are scalars, every layer between has K units; the rows of w
    and u are softmax-weighted (slides eq. 29). The matrices are conditioned with low rank:
    :math:`w = \mathrm{softmax}(W + e)`, with W learned and shared by all samples and e a
    pseudo-parameter vector on the softmax axis, so that

    .. math:: \mathrm{softmax}(W + e)\, v = (e^W (e^e \odot v)) / (e^W e^e)

    is a product with one K x K matrix: memory O(K) a sample, never O(K^2). Everything runs in log
    space. As x is a scalar, the log-determinant (slides eq. 30) needs one tangent carried forward,
    all of whose entries are positive.

    The pseudo-parameters are, layer by layer, the raw a, b and e of w (K each), and from the
    second layer on the e of u (K).

    :param hidden_units: K >= 1.
    :param num_layers: L >= 1; one layer is DSF.
    :param min_slope: a floor under every a, as in
        :class:`~pyro_naf.transformers.DeepSigmoidal`.
    :param spread: at zero pseudo-parameters the biases lie evenly over ``[-spread, spread]``.
    :param kernel: as in :class:`~pyro_naf.transformers.DeepSigmoidal`.
    :raises ValueError: when an argument is out of its range.

    Source: Huang et al. 2018 [arXiv:1804.00779], eq. 9 and appendix C.

    >>> transformer = DeepDenseSigmoidal(hidden_units=8, num_layers=2)
    >>> y, log_slope = transformer(torch.tensor([-1e6, 0.0, 1e6]), torch.zeros(3, 56))
    >>> y.shape, bool(torch.isfinite(y).all()), bool(log_slope.abs().max() < 0.5)
    (torch.Size([3]), True, True)
    """

    name = "ddsf"

    def __init__(
        self,
        hidden_units: int = 16,
        num_layers: int = 2,
        min_slope: float = 1e-3,
        spread: float = 0.25,
        kernel: str = "auto",
    ) -> None:
        super().__init__(hidden_units, min_slope, spread, kernel)
        check_integers(num_layers=(num_layers, 1))
        self.num_layers = num_layers
        self.num_params = (4 * num_layers - 1) * hidden_units
        widths = [hidden_units] * (num_layers - 1)
        self.w = nn.ParameterList(torch.randn(out, hidden_units) / 2 for out in [*widths, 1])
        self.u = nn.ParameterList(torch.randn(hidden_units, width) / 2 for width in widths)

    def constrain(self, phi: Tensor) -> tuple[Tensor, ...]:
        """a, b and the logits e of w of every layer, then the logits e of u, each ``(..., K)``."""
        raw = phi.unflatten(-1, (4 * self.num_layers - 1, self.hidden_units)).unbind(-2)
        params: list[Tensor] = []
        for layer in range(self.num_layers):
            a, b, e = raw[3 * layer : 3 * layer + 3]
            a = positive(a, self.initial_slope, self.min_slope)
            params += [a, b + self.initial_biases, e]
        return (*params, *raw[3 * self.num_layers :])

    def shared(self) -> tuple[Tensor, ...]:
        """The matrices W of all layers, then the matrices U between them, in float32 at least."""
        # By index: torch.compile cannot iterate a ParameterList before torch 2.13.
        w = [self.w[i] for i in range(self.num_layers)]
        u = [self.u[i] for i in range(self.num_layers - 1)]
        return tuple(at_least_float32(matrix) for matrix in (*w, *u))

    def plain(self, x: Tensor, phi: Tensor, *shared: Tensor) -> tuple[Tensor, Tensor]:
        return dense_sigmoidal(x, self.constrain(phi), shared or self.shared())

    def formula(self) -> Formula:
        return LinearDDSF(self.plain, self.initial_biases, *self.softplus_constants())

    def evaluate(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``."""
        return dense_sigmoidal(x, params, self.shared())

    def bracket(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """From the last layer down: all units must lie below (above) what the next one needs."""
        lo = hi = y
        for layer in reversed(range(self.num_layers)):
            a, b, _ = params[3 * layer : 3 * layer + 3]
            lo = ((lo.unsqueeze(-1) - b) / a).amin(-1)
            hi = ((hi.unsqueeze(-1) - b) / a).amax(-1)
        return lo, hi

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_layers={self.num_layers}"


def dense_sigmoidal(
    x: Tensor, params: Sequence[Tensor], matrices: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Eq. 29 in log space: value and log-slope, each ``(...)``; see :class:`DeepDenseSigmoidal`."""
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
    ``(..., M)``. The formulas are those of :func:`~pyro_naf.transformers.sigmoidal.sigmoidal`.
    """
    log_s, log_s_neg = log_sigmoids(v)
    e = e - e.amax(-1, keepdim=True).detach()
    log_p, log_q = e + log_s, e + log_s_neg
    # Subtracting the maxima here, before anything is added, keeps tails exact: far out both
    # log_q and its sum are huge and only their difference matters.
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


def log_matvec(log_matrix: Tensor, log_vector: Tensor) -> Tensor:
    """``log(exp(log_matrix) @ exp(log_vector))``: (M, K) and ``(..., K)`` to ``(..., M)``."""
    row_top = log_matrix.amax(-1, keepdim=True).detach()
    top = log_vector.amax(-1, keepdim=True).detach()
    product = torch.exp(log_vector - top) @ torch.exp(log_matrix - row_top).T
    # Zero only when a row's logits differ by more than the exponent range (87 in float32).
    tiny = torch.finfo(product.dtype).tiny
    return product.clamp(min=tiny).log() + top + row_top.squeeze(-1)
