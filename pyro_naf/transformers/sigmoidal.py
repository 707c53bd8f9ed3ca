"""The deep sigmoidal transformer, DSF (Huang et al. 2018, eq. 8)."""

from __future__ import annotations

from .sigmoids import SigmoidalTransformer


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
    :param kernel: how it is evaluated: "auto", "ready", "plain", "compiled" or "triton"; see
        :mod:`pyro_naf.kernels`.
    :raises ValueError: when an argument is out of its range.

    Source: Huang et al. 2018 [arXiv:1804.00779], eq. 8.

    >>> import torch
    >>> transformer = DeepSigmoidal(hidden_units=8)
    >>> y, log_slope = transformer(torch.tensor([-1e6, 0.0, 1e6]), torch.zeros(3, 24))
    >>> y.shape, bool(torch.isfinite(y).all()), bool(log_slope.abs().max() < 0.1)
    (torch.Size([3]), True, True)
    """
