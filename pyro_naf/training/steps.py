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
    grads = [weight.grad for weight in weights if weight.grad is not None]
    if not grads:
        return agreed(~loss.isfinite())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    torch._foreach_mul_(grads, (clip / (norm + 1e-6)).clamp(max=1.0))
    bad = agreed(~(norm.isfinite() & loss.isfinite()))
    _step(adam, bad.float())
    return bad


@torch.no_grad()
def _step(adam: torch.optim.Adam, skips: Tensor) -> None:
    """Move the weights as ``adam.step()`` does, whose Python takes as long as a captured flow.

    :param skips: 1 where all stays as it is, else 0. As torch's GradScaler does it, the fused
        kernels look at this number.
    """
    trained = [[p for p in group["params"] if p.grad is not None] for group in adam.param_groups]
    if not all(adam.state[p] for params in trained for p in params):
        adam.found_inf = skips  # type: ignore[attr-defined]
        adam.step()  # the first of a weight, which makes its state
        return
    is_decoupled = isinstance(adam, torch.optim.AdamW)
    update = torch._fused_adamw_ if is_decoupled else torch._fused_adam_
    for group, params in zip(adam.param_groups, trained, strict=True):
        if not params:
            continue
        states = [adam.state[p] for p in params]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        update(
            params,
            [p.grad for p in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            found_inf=skips,
        )
        torch._foreach_sub_(steps, [skips] * len(steps))


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
