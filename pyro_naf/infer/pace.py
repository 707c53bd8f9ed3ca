"""What a log-density costs: all that has a time limit decides by it what it can afford."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

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

    >>> pace = Pace(one=0.25, further=0.125)
    >>> pace.seconds(5), pace.points(0.75)
    (0.75, 5)
    """

    one: float
    further: float

    @classmethod
    def of(cls, target: Callable[[Tensor], Tensor], point: Tensor) -> Pace:
        """Measure it at a point ``(D,)``."""

        def seconds(count: int) -> float:
            z = point.detach().expand(count, -1).clone().requires_grad_()
            begin = time.monotonic()
            with torch.enable_grad():
                torch.autograd.grad(target(z).sum(), z)
            return time.monotonic() - begin

        one = max(min(seconds(1), seconds(1)), _TICK)  # the first run warms up
        return cls(one, max(seconds(_BATCH) - one, 0.0) / (_BATCH - 1))

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
