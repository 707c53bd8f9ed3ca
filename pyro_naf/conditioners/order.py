"""Autoregressive orders, and the degrees of hidden units that keep them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def hidden_degrees(width: int, input_dim: int, has_context: bool) -> Tensor:
    """Degrees spread evenly, in rising order; 0 (sees the context only) is of use with one."""
    lowest = 0 if has_context or input_dim == 1 else 1
    # From above, so that a single unit gets the highest degree and sees all it may.
    spread = torch.linspace(input_dim - 1, lowest, width, dtype=torch.double)
    return spread.round().long().flip(0)


def cumulative(degrees: Tensor, input_dim: int) -> list[int]:
    return torch.searchsorted(degrees, torch.arange(input_dim), right=True).tolist()


def permutation_of(order: str | Sequence[int] | Tensor, input_dim: int) -> Tensor:
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
