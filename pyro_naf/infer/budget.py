"""What a refinement may take, and in which phase of its training it is."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..training.limits import Limits
from ..training.steps import cosine
from .settings import DEFAULTS, RefineSettings

#: Largest share of the seconds that is kept for diagnostics of an expensive density.
_MOST_KEPT = 0.4

#: Attributes of a budget that a checkpoint holds, beside the limits, the steps and the start.
_STATE = ("kept", "several", "landing", "end", "fraction", "steps_climbing", "top", "middle")


class Budget(Limits):
    """Steps and seconds: iterating gives the phase of every step until they are spent.

    A second iteration goes on where the first was broken off.

    ``rate`` is 1 until the landing and falls to 0 there. The landing begins when :meth:`land` is
    called, or when the time for climbing is over, ``climb_share`` of the settings. At its end the
    phase is "landed", which is no step; :meth:`land_again` goes on from there. With ``several``
    modes the rate falls from the first step on: the phase is "learn" while it is above a half, and
    then "balance".

    Without a time limit all steps are made. With one, no step begins that would end after training
    should, if it takes as long as the preceding step.

    :param steps: training steps at most.
    :param seconds: time for the whole call, which began when the budget was made.
    :param settings: the shares of its parts.
    """

    def __init__(
        self, steps: int | None, seconds: float | None, settings: RefineSettings = DEFAULTS
    ) -> None:
        super().__init__(steps, seconds)
        self.settings, self.elapsed = settings, 0.0
        self.kept = settings.kept_share
        #: Whether the guide is one for several modes; set when that is known.
        self.several = False
        self.landing: float | None = None
        self.end, self.fraction, self.steps_climbing, self.top = 1.0, 0.0, 0, 1.0
        self.step, self.middle = 0, settings.climb_share
        #: Fraction and number of the step with which the phase began.
        self.began = (0.0, 0)

    def keep(self, seconds: float) -> None:
        """Keep at least these seconds for what follows training, as far as that is possible."""
        if self.seconds is not None:
            self.kept = max(min(seconds / self.seconds, _MOST_KEPT), self.settings.kept_share)

    def left_for_training(self) -> float:
        """Seconds until the end of training; infinite without a limit."""
        if self.seconds is None:
            return math.inf
        return max(self.left() - self.kept * self.seconds, 0.0)

    def begin_training(self) -> None:
        """Note that the search before training is over."""
        self.middle = self.part_of_rest(self.settings.climb_share)

    def part_of_rest(self, part: float) -> float:
        """Fraction of the budget that is spent once this part of the remaining time is over."""
        if self.seconds is None:
            return part
        return 1 - (1 - part) * self.left_for_training() / ((1 - self.kept) * self.seconds)

    def __iter__(self) -> Iterator[str]:
        phase = "landed"
        while True:
            before, self.elapsed = self.elapsed, self.passed()
            last = 0.0 if phase == "landed" else self.elapsed - before
            is_short = self.seconds is None or last < 0.01 * self.seconds
            ends = self.elapsed + (0.0 if is_short else last)
            self.fraction = self.part(self.step, ends / (1 - self.kept))
            if self.fraction >= self.end and (self.step or self.seconds is not None):
                end, phase = self.end, "landed"
                yield phase
                if self.end == end:
                    return
                continue
            if self.landing is None and self.fraction >= (0.0 if self.several else self.middle):
                self.landing = self.fraction
            phase, last_phase = "climb" if self.landing is None else "land", phase
            if self.several:
                phase = "learn" if self.rate > 0.5 else "balance"
            if phase != last_phase:
                self.began = self.fraction, self.step
            self.steps_climbing += phase == "climb"
            yield phase
            self.step += 1

    def steps_left(self) -> float:
        """Estimate how many steps are left to climb, or to land, from how many there have been."""
        fraction, step = self.began
        end = self.middle if self.landing is None else self.end
        passed = self.fraction - fraction
        return math.inf if passed <= 0 else (end - self.fraction) * (self.step - step) / passed

    def state(self) -> dict[str, object]:
        """Return what a checkpoint needs, in a step that has just been made."""
        spent = {name: getattr(self, name) for name in _STATE}
        return spent | {"step": self.step + 1, "spent": self.passed()}

    def load_state(self, state: dict[str, object]) -> None:
        """Take over the steps and the phase of an earlier process."""
        for name in ("step", *_STATE):
            setattr(self, name, state[name])

    def land(self) -> None:
        """Start the landing, which takes as long as the climb did."""
        self.landing = self.fraction
        self.end = min(1.0, max(2 * self.fraction, self.fraction + 0.1))

    def land_again(self) -> None:
        """Start another landing as long as the last, from half its rate, if the budget allows."""
        if self.landing is None or self.end >= 1:
            return
        length, self.landing, self.top = self.end - self.landing, self.end, 0.5 * self.top
        self.end = min(1.0, self.end + length)

    @property
    def rate(self) -> float:
        """Learning rate now, in units of the first one."""
        if self.landing is None:
            return 1.0
        part = (self.fraction - self.landing) / max(self.end - self.landing, 1e-9)
        return self.top * cosine(part)
