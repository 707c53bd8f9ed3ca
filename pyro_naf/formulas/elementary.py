"""Functions that the formulas are made of, right to rounding for arguments of any size."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: Argument beyond which softplus is the identity to rounding, also in float64; torch's own
#: threshold of 20 leaves an error of 2e-9.
SOFTPLUS_THRESHOLD = 50.0


def log_sigmoids(u: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\log\sigma(u)` and :math:`\log\sigma(-u)`, from one exponential and one log1p."""
    # minimum, not clamp: its gradient at a tie is a half, so the gradient of log s(0) is exact.
    log_p = torch.minimum(u, torch.zeros_like(u)) - torch.log1p(torch.exp(-u.abs()))
    return log_p, log_p - u


def log_sum_exp(terms: Tensor) -> Tensor:
    """``logsumexp`` over the last axis, kept; for finite terms, at half the price of torch's."""
    top = terms.amax(-1, keepdim=True).detach()
    return (terms - top).exp().sum(-1, keepdim=True).log() + top


def log_matvec(log_matrix: Tensor, log_vector: Tensor) -> Tensor:
    """``log(exp(log_matrix) @ exp(log_vector))``: (M, K) and ``(..., K)`` to ``(..., M)``."""
    row_top = log_matrix.amax(-1, keepdim=True).detach()
    top = log_vector.amax(-1, keepdim=True).detach()
    product = torch.exp(log_vector - top) @ torch.exp(log_matrix - row_top).T
    # Zero only when a row's logits differ by more than the exponent range (87 in float32).
    tiny = torch.finfo(product.dtype).tiny
    return product.clamp(min=tiny).log() + top + row_top.squeeze(-1)


def softplus(raw: Tensor) -> Tensor:
    """``log(1 + exp(raw))``, to rounding of float64 too."""
    return F.softplus(raw, threshold=SOFTPLUS_THRESHOLD)


def softplus_inverse(value: float) -> float:
    """Return the number whose softplus is ``value > 0``."""
    return value + math.log(-math.expm1(-value))


def positive(raw: Tensor, at_zero: float, floor: float) -> Tensor:
    """Compute a positive slope, ``floor + softplus``, shifted to be ``at_zero`` for ``raw = 0``."""
    return floor + softplus(raw + softplus_inverse(at_zero - floor))
