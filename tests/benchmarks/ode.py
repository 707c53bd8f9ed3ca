"""Two ordinary differential equations, solved for many rows at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: Steps between two outputs.
_STEPS = 60


def solve(slope: Callable[[Tensor], Tensor], state: Tensor, interval: float, count: int) -> Tensor:
    """States ``(N, count, S)`` at times 0, interval, ...: Runge-Kutta's method of fourth order."""
    h, found = interval / _STEPS, [state]
    for _ in range((count - 1) * _STEPS):
        a = slope(state)
        b = slope(state + h / 2 * a)
        c = slope(state + h / 2 * b)
        d = slope(state + h * c)
        state = state + h / 6 * (a + 2 * b + 2 * c + d)
        found.append(state)
    return torch.stack(found[::_STEPS], -2)


def sir_infected(theta: Tensor) -> Tensor:
    """Share of a million people that are infected on days 0, 17, ... 153, shape ``(N, 10)``.

    :param theta: rates of contact and of recovery, shape ``(N, 2)``.
    """
    contact, recovery = theta.double().unbind(-1)

    def slope(state: Tensor) -> Tensor:  # of log susceptible, log infected
        healthy, ill = state.exp().unbind(-1)
        return torch.stack([-contact * ill, contact * healthy - recovery], -1)

    start = torch.tensor([1 - 1e-6, 1e-6]).double().log().expand(len(theta), 2)
    return solve(slope, start, 17.0, 10)[..., 1].exp().float()


def lotka_volterra_sizes(theta: Tensor) -> Tensor:
    """Prey, then predators, at times 0, 2.1, ... 18.9, shape ``(N, 20)``.

    :param theta: growth, predation, death, reproduction, shape ``(N, 4)``.
    """
    growth, predation, death, reproduction = theta.double().unbind(-1)

    def slope(state: Tensor) -> Tensor:  # of log prey, log predators
        prey, predators = state.exp().unbind(-1)
        return torch.stack([growth - predation * predators, reproduction * prey - death], -1)

    start = torch.tensor([30.0, 1.0]).double().log().expand(len(theta), 2)
    return solve(slope, start, 2.1, 10).mT.flatten(1).exp().float()
