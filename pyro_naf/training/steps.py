"""Steps of Adam: none that is not finite, and the learning rate of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: Number of steps in a row without a finite loss and gradient after which training gives up.
MAX_BAD_STEPS = 50


def guarded_step(
    adam: torch.optim.Adam,
    weights: Sequence[Tensor],
    loss: Tensor,
    clip: float,
    agreed: Callable[[Tensor], Tensor] = lambda bad: bad,
) -> Tensor:
    """Let fused Adam make a step, unless the loss or a gradient is not finite.

    Nothing is read out of a tensor, so that a device need not be waited for.

    :param clip: gradients are scaled down to this norm.
    :param agreed: makes of a process's answer that of all processes.
    :return: whether the step was skipped.
    """
    norm = torch.nn.utils.clip_grad_norm_(weights, clip)
    bad = agreed(~(norm.isfinite() & loss.isfinite()))
    # As torch's GradScaler does it: fused kernels look at this number and leave all as it is.
    adam.found_inf = bad.float()  # type: ignore[attr-defined]
    adam.step()
    return bad


def refuse_bad_steps(in_a_row: int, at: str, remedy: str) -> None:
    """Raise RuntimeError where too many steps in a row had no finite loss and gradient."""
    if in_a_row >= MAX_BAD_STEPS:
        raise RuntimeError(
            f"{MAX_BAD_STEPS} steps in a row without a finite loss and gradient ({at}): {remedy}"
        )


def warm_up(steps: int, length: int) -> float:
    """Part of the learning rate: Adam's first steps, in units of the rate, are of full length."""
    return min(1.0, (steps + 1) / length)


def cosine(part: float) -> float:
    """Fall of the learning rate from 1 at part 0 of a descent to 0 at part 1."""
    return 0.5 * (1 + math.cos(math.pi * min(max(part, 0.0), 1.0)))
