"""Averages of weights over the last steps of training, which are better than the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def newest(decay: float, steps: int) -> float:
    """Share of the newest weights in an average that grows to its length: no bias to the start."""
    return 1 - min(decay, steps / (steps + 9))


class Average:
    """An exponential average of weights (Polyak's), which begins with the present ones."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = list(weights)
        self.values = copies(weights)

    @torch.no_grad()
    def add(self, share: float) -> None:
        """Move the average to the present weights by this share of the way."""
        torch._foreach_lerp_(self.values, self.weights, share)

    @torch.no_grad()
    def take(self) -> None:
        """Copy the average into the weights."""
        torch._foreach_copy_(self.weights, self.values)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the place of the weights, inside of the block."""
        present = copies(self.weights)
        self.take()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.weights, present)


def copies(weights: Sequence[Tensor]) -> list[Tensor]:
    """Copy weights, without their gradients."""
    return [weight.detach().clone() for weight in weights]
