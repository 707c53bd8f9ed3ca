"""What every transformer offers: value and log-slope together, a bracket, an inverse."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..rootfinding import implicit_root


class Transformer(nn.Module):
    r"""A monotone scalar map :math:`y_t = \tau(\phi_t, x_t)` with pseudo-parameters :math:`\phi_t`.

    A subclass sets :attr:`num_params` and defines :meth:`constrain`, :meth:`evaluate` and
    :meth:`bracket`. All maps act elementwise: ``x`` has any shape ``(...)`` and ``phi`` has shape
    ``(..., P)``. (Huang et al. 2018, section 3; slides eq. 27.)

    :ivar num_params: the number P of unconstrained pseudo-parameters of one dimension.
    """

    num_params: int

    def constrain(self, phi: Tensor) -> tuple[Tensor, ...]:
        """Maps unconstrained pseudo-parameters ``(..., P)`` to those that the formula uses."""
        raise NotImplementedError

    def evaluate(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        r"""Value and log-slope :math:`\log \partial\tau/\partial x`, each ``(...)``."""
        raise NotImplementedError

    def bracket(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Two points, each ``(...)``, between which the preimage of ``y`` lies: no search."""
        raise NotImplementedError

    def forward(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``, of ``x`` ``(...)`` under ``phi`` ``(..., P)``."""
        return self.evaluate(x, *self.constrain(phi))

    def inverse(self, y: Tensor, phi: Tensor) -> Tensor:
        """The preimage of ``y`` ``(N,)`` under ``phi`` ``(N, P)``, once differentiable.

        :raises ~pyro_naf.rootfinding.RootNotFoundError: when the root finder does not converge.
        """
        params = self.constrain(phi)
        with torch.no_grad():
            lo, hi = self.bracket(y, *params)
        return implicit_root(self.evaluate, y, params, lo, hi)


def log_sigmoids(u: Tensor) -> tuple[Tensor, Tensor]:
    r""":math:`\log\sigma(u)` and :math:`\log\sigma(-u)`, from one exponential and one log1p."""
    # minimum, not clamp: its gradient at a tie is a half, which makes that of log s(0) exact.
    log_p = torch.minimum(u, torch.zeros_like(u)) - torch.log1p(torch.exp(-u.abs()))
    return log_p, log_p - u


def log_sum_exp(terms: Tensor) -> Tensor:
    """``logsumexp`` over the last axis, kept; for finite terms, at half the price of torch's."""
    top = terms.amax(-1, keepdim=True).detach()
    return (terms - top).exp().sum(-1, keepdim=True).log() + top


def positive(raw: Tensor, at_zero: float, floor: float) -> Tensor:
    """A positive slope: ``floor + softplus``, shifted so that ``raw = 0`` gives ``at_zero``."""
    return floor + F.softplus(raw + softplus_inverse(at_zero - floor))


def softplus_inverse(value: float) -> float:
    """The number whose softplus is ``value > 0``."""
    return value + math.log(-math.expm1(-value))


def spread_biases(hidden_units: int, spread: float) -> tuple[list[float], float]:
    r"""Biases evenly over ``[-spread, spread]``, and the slope that undoes their widening.

    Hidden units that start alike stay alike for long; with spread biases they differ from the
    first step. A mean of shifted sigmoids is flatter than one sigmoid, so the common slope is
    chosen to make :math:`dy/dx = 1` at zero: :math:`a = (4\, \mathrm{mean}_h \sigma'(b_h))^{-1}`.
    """
    if hidden_units == 1:
        return [0.0], 1.0
    b = torch.linspace(-spread, spread, hidden_units, dtype=torch.double)
    slope = torch.sigmoid(b) * torch.sigmoid(-b)
    return b.tolist(), float(1 / (4 * slope.mean()))
