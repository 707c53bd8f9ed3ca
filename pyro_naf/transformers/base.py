"""What every transformer offers: value and log-slope together, a bracket, an inverse."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..checks import check_integers
from ..kernels.dsf import SOFTPLUS_THRESHOLD
from ..kernels.eager import Formula
from ..kernels.precision import in_float32
from ..rootfinding import attach_gradient, check_roots, find_root


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

    def plain(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope by the formula itself, which defines every other evaluation."""
        return self.evaluate(x, *self.constrain(phi))

    @in_float32
    def forward(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``, of ``x`` ``(...)`` under ``phi`` ``(..., P)``."""
        return self.plain(x, phi)

    def reads_half(self, x: Tensor, phi: Tensor) -> bool:
        """Whether the kernel for these tensors reads 16 bits and computes in float32."""
        return False

    def inverse(self, y: Tensor, phi: Tensor) -> Tensor:
        """The preimage of ``y`` ``(N,)`` under ``phi`` ``(N, P)``, once differentiable.

        :raises ~pyro_naf.rootfinding.RootNotFoundError: when the root finder does not converge.
        """
        x, error = self.preimage(y, phi)
        check_roots([error])
        return x

    @in_float32
    def preimage(self, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor | None]:
        """:meth:`inverse`, which leaves it to the caller to look at the error of each lane.

        The error ``(N,)`` is zero where the root was found; None says that it was everywhere.
        Looking makes the host wait for the device: once for a whole flow, not once a dimension.
        """
        root, error = self.root(y.detach(), phi.detach())
        if torch.is_grad_enabled() and any(t.requires_grad for t in (y, phi, *self.parameters())):
            root = attach_gradient(root, y, *self(root, phi))
        return root, error

    @torch.no_grad()
    def root(self, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor | None]:
        """:meth:`preimage` without gradients."""
        params = self.constrain(phi)
        return find_root(self.evaluate, y, params, *self.bracket(y, *params)), None


class SigmoidalTransformer(Transformer):
    """What DSF and DDSF share: hidden units with spread biases and positive slopes, kernels.

    :ivar name: which of the Triton operators are its own.
    """

    name: str
    initial_biases: Tensor

    def __init__(self, hidden_units: int, min_slope: float, spread: float, kernel: str) -> None:
        super().__init__()
        check_integers(hidden_units=(hidden_units, 1))
        if not 0 < min_slope < 0.5:
            raise ValueError(f"min_slope must lie in (0, 0.5), got {min_slope}")
        if not 0 <= spread <= 10:
            raise ValueError(f"spread must lie in [0, 10], got {spread}")
        self.hidden_units, self.min_slope = hidden_units, min_slope
        self.kernel = kernels.check_kernel(kernel)
        biases, self.initial_slope = spread_biases(hidden_units, spread)
        self.register_buffer("initial_biases", torch.tensor(biases), persistent=False)

    @in_float32
    def forward(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``, of ``x`` ``(...)`` under ``phi`` ``(..., P)``."""
        return kernels.evaluate(self, x, phi)

    def reads_half(self, x: Tensor, phi: Tensor) -> bool:
        return kernels.choose(self, x, phi) == "triton"

    @torch.no_grad()
    def root(self, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor | None]:
        return kernels.root(self, y, phi) or super().root(y, phi)

    def shared(self) -> tuple[Tensor, ...]:
        """The tensors, parameters of the transformer's own, that all samples share."""
        return ()

    def formula(self) -> Formula:
        """The same map in linear space, with gradients by hand."""
        raise NotImplementedError

    def softplus_constants(self) -> tuple[float, float]:
        """What :func:`positive` adds to the raw slopes before and after the softplus."""
        return softplus_inverse(self.initial_slope - self.min_slope), self.min_slope

    def extra_repr(self) -> str:
        return f"hidden_units={self.hidden_units}, min_slope={self.min_slope}"


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
    shifted = raw + softplus_inverse(at_zero - floor)
    return floor + F.softplus(shifted, threshold=SOFTPLUS_THRESHOLD)


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
