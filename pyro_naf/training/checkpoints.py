"""When the state of training is written to a file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

#: Smallest time between two checkpoints, in multiples of what writing the last one took: at most
#: a twentieth of the time goes into files.
_PRICE = 20.0


class Interval:
    """Time between two checkpoints.

    :param seconds: between two writes, at least; with 0 one is always due.
    :param last: when the last was written, or training began; by default one is due at once.
    """

    def __init__(self, seconds: float, last: float = float("-inf")) -> None:
        self.seconds, self.last, self.price = seconds, last, 0.0

    def is_over(self) -> bool:
        """Whether a checkpoint is due."""
        wait = max(self.seconds, _PRICE * self.price)
        return not self.seconds or time.monotonic() - self.last >= wait

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Time the writing of a checkpoint, and begin the next interval after it."""
        begin = time.monotonic()
        yield
        self.last = time.monotonic()
        self.price = self.last - begin
