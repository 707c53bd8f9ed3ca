"""The deep sigmoidal transformer, DSF (Huang et al. 2018, eq. 8; slides eq. 28)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels.dsf import LinearDSF
from ..kernels.eager import Formula
from .base import SigmoidalTransformer, log_sigmoids, log_sum_exp, positive


class DeepSigmoidal(SigmoidalTransformer):
    r"""The logit of a mixture of sigmoids, :math:`y = \sigma^{-1}(w^T \sigma(a x + b))`.

    With :math:`u_h = a_h x + b_h` and logits :math:`w_h` of the mixture weights it is computed as

    .. math::
        y &= \mathrm{LSE}_h(w_h + \log\sigma(u_h)) - \mathrm{LSE}_h(w_h + \log\sigma(-u_h)) \\
        dy/dx &= \textstyle\sum_h a_h (p_h \sigma(-u_h) + q_h \sigma(u_h))

    where p and q are the softmaxes of the two sets of exponents: no clipping, no cancellation, so
    value and slope are right on all of R, and the range is all of R. One unit alone is the affine
    map :math:`a x + b`; far out the map is affine too, with slope :math:`\min_h a_h`.

    The pseudo-parameters are the raw :math:`(a, b, w)`, K of each. At zero they give nearly the
    identity, with the symmetry between the hidden units broken by their biases.

    :param hidden_units: K >= 1, the number of sigmoids.
    :param min_slope: a floor under every :math:`a_h`; keeps the tails of the inverse from
        exploding.
    :param spread: at zero pseudo-parameters the biases lie evenly over ``[-spread, spread]``.
    :param kernel: how it is evaluated: "auto", "plain", "eager", "compiled" or "triton"; see
        :mod:`pyro_naf.kernels`.
    :raises ValueError: when an argument is out of its range.

    Source: Huang et al. 2018 [arXiv:1804.00779], eq. 8.

    >>> transformer = DeepSigmoidal(hidden_units=8)
    >>> y, log_slope = transformer(torch.tensor([-1e6, 0.0, 1e6]), torch.zeros(3, 24))
    >>> y.shape, bool(torch.isfinite(y).all()), bool(log_slope.abs().max() < 0.1)
    (torch.Size([3]), True, True)
    """

    name = "dsf"

    def __init__(
        self,
        hidden_units: int = 16,
        min_slope: float = 1e-3,
        spread: float = 0.25,
        kernel: str = "auto",
    ) -> None:
        super().__init__(hidden_units, min_slope, spread, kernel)
        self.num_params = 3 * hidden_units

    def formula(self) -> Formula:
        return LinearDSF(self.plain, self.initial_biases, *self.softplus_constants())

    def constrain(self, phi: Tensor) -> tuple[Tensor, ...]:
        """Slopes ``a > min_slope``, biases b and weight logits w, each ``(..., K)``."""
        a, b, w = phi.unflatten(-1, (3, self.hidden_units)).unbind(-2)
        # The softmax normaliser of w cancels; without its maximum, logits of +-10 would cost
        # digits of y.
        w = w - w.amax(-1, keepdim=True).detach()
        return positive(a, self.initial_slope, self.min_slope), b + self.initial_biases, w

    def evaluate(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``."""
        return sigmoidal(x, *params)

    def bracket(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """A mixture lies between its components: so does the root between theirs."""
        a, b, _ = params
        return ((y.unsqueeze(-1) - b) / a).aminmax(dim=-1)


def sigmoidal(x: Tensor, a: Tensor, b: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 28 in log space: value and log-slope, each ``(...)``; a, b, w are ``(..., K)``."""
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
