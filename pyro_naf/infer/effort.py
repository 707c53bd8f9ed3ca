"""What a budget of steps and seconds is worth: draws, captured graphs, compiled kernels."""

from __future__ import annotations

import os
import sys

from .budget import Budget
from .joint import Joint
from .settings import RefineSettings

#: Number of steps, and seconds, where no budget is given; whichever is over first.
STEPS, SECONDS = 4000, 60.0

#: Seconds that capturing takes for each operation of the density, and those that torch takes to
#: load what it needs for the first capture of a process.
_OPERATION, _LOADING = 0.004, 2.0

#: Cost of a step with half the draws, relative to a step with all, above which draws are not
#: halved; and the rough cost of a step in gradients.
_CHEAPER, _GRADIENTS = 0.8, 1.5


def affordable_particles(joint: Joint, budget: Budget) -> int:
    """Draws for each gradient: fewer where that makes a step cheaper and steps are few."""
    settings, left = budget.settings, budget.left_for_training()
    count = settings.most_particles
    while count // 2 >= settings.fewest_particles:
        step, half = (joint.pace.seconds(round(_GRADIENTS * n)) for n in (count, count // 2))
        if left >= settings.many_steps * step or half > _CHEAPER * step:
            break
        count //= 2
    return count


def capture(
    joint: Joint, num_particles: int, seconds: float | None, settings: RefineSettings
) -> None:
    """Capture a joint density as a graph for training, where the time allows it."""
    if joint.subsampled or joint.graph is not None:
        return
    if seconds is None or capture_seconds(joint) < settings.capturing_share * seconds:
        joint.capture(num_particles + max(num_particles // 2, 2))


def capture_seconds(joint: Joint) -> float:
    """Predict the seconds that capturing a joint density takes."""
    loading = 0.0 if "torch._dynamo" in sys.modules else _LOADING
    return loading + _OPERATION * joint.pace.operations


def num_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_worth_compiling(steps: int | None, seconds: float | None, settings: RefineSettings) -> bool:
    """Whether a budget outlasts the compiling by far; that takes a core, the fit another."""
    if seconds is None:
        return steps is not None and steps >= STEPS
    return seconds >= (1 if num_cores() > 1 else 4) * settings.compiling_seconds
