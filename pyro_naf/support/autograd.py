"""What torch hands to the methods of an autograd function."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Context(Protocol):
    """The ``ctx`` of a :class:`torch.autograd.Function`; a function's own attributes are added."""

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """The tensors of :meth:`save_for_backward`."""

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        """Whether the gradient of each input is asked for."""

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors for the backward pass."""
