"""Autoregressive orders, and the degrees of hidden units that keep them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..support.autograd import Context
from ..support.checks import check_integers
from ..support.modes import calls_are_recorded, needs_plain_operations


class Ordered(nn.Module):
    """A conditioner that computes with the dimensions sorted by their places in the order.

    :param input_dim: D >= 1.
    :param context_dim: width C of a context, 0 for none.
    :param order: as in :class:`~pyro_naf.conditioners.MADE`.
    """

    permutation: Tensor
    places: Tensor

    def __init__(
        self, input_dim: int, context_dim: int, order: str | Sequence[int] | Tensor
    ) -> None:
        super().__init__()
        check_integers(input_dim=(input_dim, 1), context_dim=(context_dim, 0))
        self.input_dim, self.context_dim = input_dim, context_dim
        self.register_buffer("permutation", permutation_of(order, input_dim))
        self.register_buffer("places", self.permutation.clone())
        self._order_changed()

    def get_permutation(self) -> Tensor:
        """Return the order: entry t is the dimension that comes t-th, shape ``(D,)``."""
        return self.permutation

    @property
    def is_natural(self) -> bool:
        """Whether the dimensions come in their own order, and sorting changes nothing.

        False as well for an order put in place of the module's own, by ``functional_call`` say.
        """
        return self._natural is self.permutation

    def sort(self, x: Tensor, back: bool = False) -> Tensor:
        """Bring the last axis of x ``(..., D)`` into autoregressive order; or ``back`` from it."""
        indices = (self.places, self.permutation) if back else (self.permutation, self.places)
        if needs_plain_operations(x) and not calls_are_recorded():
            return x.index_select(-1, indices[0])
        found: Tensor = _Sorted.apply(x, *indices)
        return found

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object, **kwargs: object
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._order_changed()

    def _apply(self, *args: object, **kwargs: object) -> Ordered:
        super()._apply(*args, **kwargs)
        self._order_changed()
        return self

    def _order_changed(self) -> None:
        if not self.permutation.is_meta:
            self.places.copy_(torch.argsort(self.permutation))
            natural = self.permutation.tolist() == list(range(self.input_dim))
            self._natural = self.permutation if natural else None

    def _check_context(self, context: Tensor | None) -> Tensor | None:
        width = 0 if context is None else context.shape[-1]
        if width != self.context_dim:
            raise ValueError(
                f"context must have shape (..., {self.context_dim}), got "
                f"{None if context is None else tuple(context.shape)}"
            )
        return context


class _Sorted(torch.autograd.Function):
    """``index_select`` whose gradient knows that the index is a permutation: no scattering."""

    @staticmethod
    def forward(ctx: Context, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x.index_select(-1, there)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        (back,) = ctx.saved_tensors
        return grad.index_select(-1, back), None, None


def hidden_degrees(width: int, input_dim: int, has_context: bool) -> Tensor:
    """Degrees spread evenly, in rising order; 0 (sees the context only) is of use with one."""
    lowest = 0 if has_context or input_dim == 1 else 1
    # From above, so that a single unit gets the highest degree and sees all it may.
    spread = torch.linspace(input_dim - 1, lowest, width, dtype=torch.double)
    return spread.round().long().flip(0)


def cumulative(degrees: Tensor, input_dim: int) -> list[int]:
    """Count the units whose degree is at most t, for t from 0 to D - 1."""
    return torch.searchsorted(degrees, torch.arange(input_dim), right=True).tolist()


def permutation_of(order: str | Sequence[int] | Tensor, input_dim: int) -> Tensor:
    """Turn the name of an order, or a permutation, into a permutation ``(D,)``."""
    if isinstance(order, str):
        if order not in ("random", "natural", "reversed"):
            raise ValueError(
                f"order must be 'random', 'natural', 'reversed' or a permutation, got {order!r}"
            )
        if order == "random":
            return torch.randperm(input_dim)
        natural = torch.arange(input_dim)
        return natural if order == "natural" else natural.flip(0)
    if order is None:
        raise TypeError("order must be a name or a permutation, got None")
    permutation = torch.as_tensor(order).cpu()
    if not torch.equal(permutation.sort().values, torch.arange(input_dim)):
        raise ValueError(f"order must be a permutation of 0..{input_dim - 1}, got {order}")
    return permutation.long().clone()
