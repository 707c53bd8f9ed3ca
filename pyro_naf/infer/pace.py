"""What a log-density costs: all that has a time limit decides by it what it can afford."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node

#: Number of points in the batch that tells what a further point costs.
_BATCH = 8

#: Smallest cost of a point, in seconds: clocks are coarse.
_TICK = 1e-6

#: Rough cost of a value without the gradient, as a part of the cost of both.
_VALUE = 0.4


class Pace(NamedTuple):
    """Seconds that a log-density and its gradient take.

    :ivar one: seconds at a single point, which are mostly overhead.
    :ivar further: seconds for each further point of the same batch.
    :ivar operations: number of operations that a gradient goes back through.

    >>> pace = Pace(one=0.25, further=0.125)
    >>> pace.seconds(5), pace.points(0.75)
    (0.75, 5)
    """

    one: float
    further: float
    operations: int = 0

    @classmethod
    def of(cls, target: Callable[[Tensor], Tensor], point: Tensor) -> Pace:
        """Measure it at a point ``(D,)``."""

        def seconds(count: int) -> float:
            begin = time.monotonic()
            with torch.enable_grad():
                z, value = evaluated(count)
                torch.autograd.grad(value, z)
            return time.monotonic() - begin

        def evaluated(count: int) -> tuple[Tensor, Tensor]:
            z = point.detach().expand(count, -1).clone().requires_grad_()
            return z, target(z).sum()

        with torch.enable_grad():
            operations = _operations(evaluated(1)[1])  # this run warms up
        one = max(seconds(1), _TICK)
        further = max(seconds(_BATCH) - one, 0.0) / (_BATCH - 1)
        return cls(one, further, operations)

    def seconds(self, points: int) -> float:
        """Seconds of value and gradient at a batch of points."""
        return self.one + max(points - 1, 0) * self.further

    def points(self, seconds: float) -> int:
        """Return how many points take this time, with gradients, in batches of any size."""
        if seconds == float("inf"):
            return 2**31
        if seconds < self.one:
            return 0
        return min(1 + int((seconds - self.one) / max(self.further, self.one / 1000)), 2**31)

    def values(self, seconds: float) -> int:
        """Return how many points take this time without gradients."""
        return self.points(seconds / _VALUE)


def _operations(value: Tensor) -> int:
    """Count the operations between a value and what it is differentiated by."""
    seen: set[Node] = set()
    left = [value.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [before for before, _ in node.next_functions]
    return len(seen)
