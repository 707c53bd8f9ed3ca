"""What every transformer offers: value and log-slope together, a bracket, an inverse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..rootfinding import Increasing, attach_gradient, check_roots, find_root, search_once
from ..support.modes import needs_plain_operations, values_are_unknown
from ..support.overrides import parent, redefined, refuse
from ..support.precision import in_float32


class Transformer(nn.Module):
    r"""A monotone scalar map :math:`y_t = \tau(\phi_t, x_t)` with pseudo-parameters :math:`\phi_t`.

    A subclass sets :attr:`num_params` and defines :meth:`constrain`, :meth:`evaluate` and
    :meth:`bracket`. All maps act elementwise: ``x`` has any shape ``(...)`` and ``phi`` has shape
    ``(..., P)``. (Huang et al. 2018, section 3.)

    :ivar num_params: the number P of unconstrained pseudo-parameters of one dimension.
    """

    num_params: int

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        base = parent(cls, Transformer)
        if base.evaluate is not Transformer.evaluate:
            _check_directions(cls, base)

    def constrain(self, phi: Tensor) -> tuple[Tensor, ...]:
        """Map unconstrained pseudo-parameters ``(..., P)`` to those that the formula uses."""
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
        """Return the preimage of ``y`` ``(N,)`` under ``phi`` ``(N, P)``, once differentiable.

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
            search = cast("Callable[..., Tensor]", _as_function(self, "_found", list(held)))
            root = search_once(search, 2, y, phi, *held.values())
        else:
            root, error = self.root(y.detach(), phi.detach())
        f = cast("Increasing", _as_function(self, "__call__", list(own)))
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

    def forward(self, x: Tensor, phi: Tensor) -> object:
        return getattr(self.transformer, self.name)(x, phi)


def _as_function(
    transformer: Transformer, method: str, names: Sequence[str]
) -> Callable[..., object]:
    """``f(x, phi, *own)``: a method with these tensors in place of the transformer's own."""
    if not names:
        bound: Callable[..., object] = getattr(transformer, method)
        return bound
    module, names = _Method(transformer, method), [f"transformer.{name}" for name in names]

    def called(x: Tensor, phi: Tensor, *own: Tensor) -> object:
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
