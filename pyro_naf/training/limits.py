"""What a call may take: steps, seconds, or both."""

from __future__ import annotations

import math
import time


class Limits:
    """Steps and seconds at most, counted from the moment that this is made; None for no limit."""

    def __init__(self, steps: int | None, seconds: float | None) -> None:
        self.steps, self.seconds, self.start = steps, seconds, time.monotonic()

    def passed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def left(self) -> float:
        """Seconds until the time limit; infinite without one."""
        return math.inf if self.seconds is None else max(self.seconds - self.passed(), 0.0)

    def part(self, steps: int, seconds: float) -> float:
        """Part of the limits that these steps and seconds are: the larger of the two."""
        parts = ((steps, self.steps), (seconds, self.seconds))
        return max((spent / most for spent, most in parts if most is not None), default=0.0)

    def spend(self, seconds: float) -> None:
        """Count the seconds of an earlier process too."""
        self.start -= seconds
