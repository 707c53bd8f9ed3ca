"""L-BFGS from many points at once: a step evaluates one batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

#: Pairs of steps and changes of the gradient that a direction is made of.
_MEMORY = 10

#: The weak Wolfe conditions: the smallest rise of a step in units of what the slope predicts, and
#: the largest slope after it in units of the slope before.
_RISE, _FALL = 1e-4, 0.9

#: A climb ends where the entries of the gradient, the entries of a step, or the rise of a step are
#: below these.
_LEAST_GRADIENT, _LEAST_STEP, _LEAST_RISE = 1e-7, 1e-9, 1e-9

#: Number of trial steps without a rise after which a climb ends. A step that rises is taken even
#: late: it leads far away.
_TRIALS = 25


def climb(
    target: Callable[[Tensor], Tensor],
    starts: Tensor,
    max_iter: int = 100,
    deadline: float = math.inf,
) -> list[Tensor]:
    """Climb by L-BFGS from each start: points ``(N, D)``, ever higher; empty if lost.

    Each climb has its own line search, by bisection (Lewis & Overton 2013); all are evaluated in
    one batch. A line search turns back from points where density or gradient are not finite.

    :param target: a log-density, ``(S, D)`` to ``(S,)``, of each row on its own.
    :param starts: shape ``(S, D)``.
    :param max_iter: steps of each climb at most.
    :param deadline: value of :func:`time.monotonic` at which all climbs end where they are.

    >>> (path,) = climb(lambda z: -(z - 3).square().sum(-1), torch.zeros(1, 2))
    >>> path[0], path[-1]
    (tensor([0., 0.]), tensor([3., 3.]))
    """
    z = starts.clone()
    value, grad = _evaluated(target, z)
    steps, changes = (z.new_zeros(len(z), _MEMORY, z.shape[-1]) for _ in range(2))
    direction, length = grad.clone(), (1 / grad.abs().sum(-1)).clamp(max=1)
    low, high = torch.zeros_like(value), torch.full_like(value, torch.inf)
    trials = torch.zeros_like(value)
    running = value.isfinite() & (grad.abs().amax(-1) > _LEAST_GRADIENT)
    paths = [[row] if ok else [] for row, ok in zip(starts, value.isfinite().tolist(), strict=True)]
    for _ in range(max_iter * 5 // 4):
        (i,) = running.nonzero(as_tuple=True)
        if not len(i) or time.monotonic() > deadline:
            break
        move = length[i, None] * direction[i]
        new_value, new_grad = _evaluated(target, z[i] + move)
        promised = (grad[i] * direction[i]).sum(-1)
        rises = new_value >= value[i] + _RISE * length[i] * promised
        falls = (new_grad * direction[i]).sum(-1) <= _FALL * promised
        low[i] = torch.where(rises & ~falls, length[i], low[i])
        high[i] = torch.where(rises, high[i], length[i])
        middle = (low[i] + high[i]) / 2
        length[i] = torch.where(high[i].isfinite(), middle, 2 * length[i])
        trials[i] += 1
        last = trials[i] == _TRIALS
        good = rises & (falls | last)
        running[i] &= good | (~last & (move.abs().amax(-1) > _LEAST_STEP))
        j = i[good]
        if not len(j):
            continue
        move, gain = move[good], new_value[good] - value[j]
        _remember(steps, changes, j, move, grad[j] - new_grad[good])
        z[j], value[j], grad[j] = z[j] + move, new_value[good], new_grad[good]
        direction[j] = _direction(grad[j], steps[j], changes[j])
        length[j], low[j], high[j], trials[j] = 1.0, 0.0, torch.inf, 0.0
        running[j] &= (gain > _LEAST_RISE) & (grad[j].abs().amax(-1) > _LEAST_GRADIENT)
        for row, point in zip(j.tolist(), z[j], strict=True):
            paths[row].append(point)
    return [torch.stack(path) if path else starts[:0] for path in paths]


def _remember(steps: Tensor, changes: Tensor, rows: Tensor, step: Tensor, change: Tensor) -> None:
    """Store the newest pair last; a pair without curvature says nothing and is dropped."""
    curved = (step * change).sum(-1) > 1e-10 * change.square().sum(-1)
    rows, step, change = rows[curved], step[curved], change[curved]
    steps[rows] = torch.cat([steps[rows, 1:], step[:, None]], 1)
    changes[rows] = torch.cat([changes[rows, 1:], change[:, None]], 1)


def _direction(grad: Tensor, steps: Tensor, changes: Tensor) -> Tensor:
    """Return the gradient times the inverse Hessian that the pairs tell of (Nocedal 1980)."""
    products = (steps * changes).sum(-1)
    inverses = torch.where(products > 0, 1 / products, 0.0)  # zero where there is no pair yet
    q, parts = grad, []
    for k in reversed(range(_MEMORY)):
        parts.append(inverses[:, k, None] * (steps[:, k] * q).sum(-1, keepdim=True))
        q = q - parts[-1] * changes[:, k]
    scale = products[:, -1] / changes[:, -1].square().sum(-1)
    q = q * torch.where(products[:, -1] > 0, scale, 1.0)[:, None]
    for k in range(_MEMORY):
        part = inverses[:, k, None] * (changes[:, k] * q).sum(-1, keepdim=True)
        q = q + (parts.pop() - part) * steps[:, k]
    upwards = (q * grad).sum(-1, keepdim=True) > 0
    return torch.where(upwards, q, grad)


def _evaluated(target: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """Values ``(S,)`` and gradients ``(S, D)``; minus infinity and zero where not usable."""
    z = z.detach().requires_grad_()
    try:
        with torch.enable_grad():
            value = target(z)
        (grad,) = torch.autograd.grad(value.sum(), z)
    except (RuntimeError, ValueError):
        # Far out a scale may be 0 or a matrix singular. The error it raises is one for all rows.
        if len(z) == 1:
            return z.new_full((1,), -torch.inf), torch.zeros_like(z)
        rows = [_evaluated(target, row[None]) for row in z.detach()]
        return torch.cat([v for v, _ in rows]), torch.cat([g for _, g in rows])
    usable = value.isfinite() & grad.isfinite().all(-1)
    value = torch.where(usable, value.detach(), -torch.inf)
    return value, torch.where(usable[:, None], grad, 0.0)
