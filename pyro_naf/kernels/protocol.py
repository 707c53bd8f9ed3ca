"""What a kernel is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from ..formulas import SigmoidSpec

#: A function of a spec, x ``(B, D)`` and phi ``(B, D, P)`` to two tensors ``(B, D)``.
OnLanes = Callable[[SigmoidSpec, Tensor, Tensor], tuple[Tensor, Tensor]]


class Kernel(Protocol):
    """An evaluation of the formula of a :class:`~pyro_naf.formulas.SigmoidSpec`."""

    name: str
    #: Whether pseudo-parameters of 16 bits are read as they are, and computed with in float32.
    reads_half: bool

    def supports(self, spec: SigmoidSpec, x: Tensor, phi: Tensor) -> bool:
        """Whether the other two methods take these tensors, in the modes that torch is in."""
        ...

    def evaluate(self, spec: SigmoidSpec, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``, of x ``(...)`` under phi ``(..., P)``."""
        ...

    def root(self, spec: SigmoidSpec, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the preimage of y ``(N,)`` under phi ``(N, P)``, and its error.

        The search follows :func:`~pyro_naf.rootfinding.find_root`. The error is 0 where it ended
        well, and otherwise the residual ``|f(x) - y|`` or not a number; None stands for zeros.
        """
        ...


def on_lanes(function: OnLanes, spec: SigmoidSpec, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Apply ``function`` to tensors that broadcast, x ``(...)`` and phi ``(..., P)``."""
    if x.shape != phi.shape[:-1]:
        shape = torch.broadcast_shapes(x.shape, phi.shape[:-1])
        x, phi = x.expand(shape), phi.expand(*shape, -1)
    lanes = x.shape[-1] if x.dim() > 1 else 1  # one axis: many values of one dimension
    batch = x.shape[:-1].numel() if x.dim() > 1 else x.numel()
    first, second = function(
        spec, x.reshape(batch, lanes), phi.reshape(batch, lanes, phi.shape[-1])
    )
    return first.view(x.shape), second.view(x.shape)


def column(function: OnLanes, spec: SigmoidSpec, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Apply ``function`` to y ``(N,)`` and phi ``(N, P)``, as one dimension."""
    first, second = function(spec, y.unsqueeze(-1), phi.unsqueeze(-2))
    return first.squeeze(-1), second.squeeze(-1)
