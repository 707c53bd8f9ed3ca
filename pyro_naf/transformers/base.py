"""What every transformer offers: value and log-slope together, a bracket, an inverse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from .. import kernels
from ..checks import check_integers
from ..implicit import attach_gradient, search_once
from ..kernels.dsf import SOFTPLUS_THRESHOLD
from ..kernels.eager import Formula
from ..kernels.modes import needs_plain_operations, values_are_unknown
from ..kernels.precision import in_float32
from ..overrides import parent, redefined, refuse
from ..rootfinding import check_roots, find_root


class Transformer(nn.Module):
    r"""A monotone scalar map :math:`y_t = \tau(\phi_t, x_t)` with pseudo-parameters :math:`\phi_t`.

    A subclass sets :attr:`num_params` and defines :meth:`constrain`, :meth:`evaluate` and
    :meth:`bracket`. All maps act elementwise: ``x`` has any shape ``(...)`` and ``phi`` has shape
    ``(..., P)``. (Huang et al. 2018, section 3; slides eq. 27.)

    :ivar num_params: the number P of unconstrained pseudo-parameters of one dimension.
    """

    num_params: int

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        base = parent(cls, Transformer)
        if base.evaluate is not Transformer.evaluate:
            _check_directions(cls, base)

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

        :raises InverseTracedError: where the search would be recorded for other inputs.
        """
        if values_are_unknown():
            raise InverseTracedError(self)
        own, error = dict(self.named_parameters()), None
        if needs_plain_operations(y, autocast=False):
            held = own | dict(self.named_buffers())
            search = _as_function(self, "_found", list(held))
            root = search_once(search, 2, y, phi, *held.values())
        else:
            root, error = self.root(y.detach(), phi.detach())
        f = _as_function(self, "__call__", list(own))
        return attach_gradient(f, root, y, phi, *own.values()), error

    def _found(self, y: Tensor, phi: Tensor) -> Tensor:
        root, error = self.root(y, phi)
        check_roots([error])
        return root

    @torch.no_grad()
    def root(self, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor | None]:
        """:meth:`preimage` without gradients."""
        params = self.constrain(phi)
        return find_root(self.evaluate, y, params, *self.bracket(y, *params)), None


class InverseTracedError(NotImplementedError):
    """A numerical inverse that torch.jit, make_fx or torch.export were to record."""

    def __init__(self, transformer: Transformer) -> None:
        super().__init__(
            f"the inverse of {type(transformer).__name__} searches for as many steps as the values "
            "need, so it cannot be traced or exported; trace the direction that is one pass: the "
            "log_prob of a density [flow.inv], or draws of a guide [flow] and their own log_prob, "
            "which needs no inverse where the transforms around the flow have cache_size=1"
        )


class _Method(nn.Module):
    def __init__(self, transformer: Transformer, name: str) -> None:
        super().__init__()
        self.transformer, self.name = transformer, name

    def forward(self, x: Tensor, phi: Tensor) -> Any:
        return getattr(self.transformer, self.name)(x, phi)


def _as_function(transformer: Transformer, method: str, names: Sequence[str]) -> Callable[..., Any]:
    """``f(x, phi, *own)``: a method with these tensors in place of the transformer's own."""
    if not names:
        return getattr(transformer, method)
    module, names = _Method(transformer, method), [f"transformer.{name}" for name in names]

    def called(x: Tensor, phi: Tensor, *own: Tensor) -> Any:
        return functional_call(module, dict(zip(names, own, strict=True)), (x, phi))

    return called


def _check_directions(cls: type, base: type[Transformer]) -> None:
    """Refuse a subclass that changes a map without its inverse, or the inverse without the map.

    The search for a root follows ``evaluate`` and ``constrain``; a closed form does not follow
    ``evaluate``, and what has a ``plain`` of its own follows neither.
    """
    new = redefined(cls, Transformer)
    inverse = new & {"preimage", "root", "inverse"}
    value = new & {"forward", "plain"}
    formula = new & {"evaluate"}
    if base.plain is not Transformer.plain:
        formula |= new & {"constrain"}
        if formula and "plain" not in new:
            raise refuse(cls, formula, "plain and preimage")
    if base.preimage is not Transformer.preimage:
        value, inverse = value | formula, inverse | (new & {"bracket"})
    if value and not inverse & {"preimage", "root"}:
        raise refuse(cls, value, "preimage")
    if inverse and not value | formula:
        raise refuse(cls, inverse, "forward or evaluate")


class SigmoidalTransformer(Transformer):
    """What DSF and DDSF share: hidden units with spread biases and positive slopes, kernels.

    :ivar name: which of the Triton operators are its own.
    """

    name: str
    initial_biases: Tensor
    #: Whether the kernels evaluate this class: not one that puts another formula in their place.
    has_kernels = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        formula = {"constrain", "evaluate", "plain", "softplus_constants", "shared"}
        if parent(cls, SigmoidalTransformer).evaluate is not Transformer.evaluate:
            cls.has_kernels &= formula.isdisjoint(redefined(cls, SigmoidalTransformer))

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
