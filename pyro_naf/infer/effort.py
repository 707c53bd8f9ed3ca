"""What a budget of steps and seconds is worth: draws, captured graphs, compiled kernels."""

from __future__ import annotations

import os

from .budget import Budget
from .joint import Joint

#: Number of steps, and seconds, where no budget is given; whichever is over first.
STEPS, SECONDS = 4000, 60.0

#: Seconds of a budget from which on the density is compiled; compiling takes 10 to 20.
_COMPILING = 30.0

#: Share of the seconds that capturing the density may take, and the price of capturing in gradients
#: at one point; both are mostly Python for each operation.
_CAPTURING, _CAPTURE = 0.15, 120

#: Smallest number of training steps for which the number of draws is kept: with fewer steps the
#: draws are halved, as long as that makes a step cheaper by a fifth.
_WORTH_STEPS, _CHEAPER = 1000, 0.8

#: Smallest number of draws for each gradient where the time is short.
FEWEST_PARTICLES = 8

#: Number of draws for each gradient where the budget allows it, and the rough cost of a step in
#: gradients.
_PARTICLES, _GRADIENTS = 64, 1.5


def affordable_particles(joint: Joint, budget: Budget) -> int:
    """Draws for each gradient: 64, or fewer where that makes a step cheaper and steps are few."""
    count, left = _PARTICLES, budget.left_for_training()
    while count > FEWEST_PARTICLES:
        step, half = (joint.pace.seconds(round(_GRADIENTS * n)) for n in (count, count // 2))
        if left >= _WORTH_STEPS * step or half > _CHEAPER * step:
            break
        count //= 2
    return count


def capture(joint: Joint, num_particles: int, seconds: float | None) -> None:
    """Capture a joint density as a graph for training, where the time allows it."""
    if joint.subsampled or joint.graph is not None:
        return
    if seconds is None or _CAPTURE * joint.pace.one < _CAPTURING * seconds:
        joint.capture(num_particles + max(num_particles // 2, 2))


def num_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_worth_compiling(steps: int | None, seconds: float | None) -> bool:
    """Whether a budget outlasts the compiling by far; that takes a core, the fit another."""
    if seconds is None:
        return steps is not None and steps >= STEPS
    return seconds >= (_COMPILING if num_cores() > 1 else 4 * _COMPILING)
