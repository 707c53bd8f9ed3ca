r"""Trajectories of Hamiltonian Monte Carlo, of all chains at once, by leapfrog steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

#: Positions ``(N, D)`` to log-densities ``(N,)`` and their gradients ``(N, D)``.
LogDensityAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]

#: Change of the energy, in nats, from which a trajectory is divergent, as in Stan.
DIVERGENT = 1000.0


class Phase(NamedTuple):
    """Where chains are: positions ``(N, D)``, log-densities ``(N,)``, gradients, velocities."""

    position: Tensor
    log_density: Tensor
    gradient: Tensor
    velocity: Tensor

    @property
    def energy(self) -> Tensor:
        """H ``(N,)``, in double precision."""
        return 0.5 * self.velocity.double().square().sum(-1) - self.log_density.double()


class Move(NamedTuple):
    """A transition of all chains.

    :ivar begin: phases before it, and ``end`` those proposed.
    :ivar accept: probabilities ``(N,)`` to accept them.
    :ivar divergent: whether trajectories diverged ``(N,)``.
    :ivar time: length of the trajectories.
    :ivar state: where the chains are after it ``(N, D)``.
    """

    begin: Phase
    end: Phase
    accept: Tensor
    divergent: Tensor
    time: float
    state: Tensor


def leapfrog(
    log_density_and_grad: LogDensityAndGrad,
    phase: Phase,
    step_size: float,
    num_steps: int,
    scale: Tensor,
) -> tuple[Phase, Tensor, int]:
    """Follow trajectories by leapfrog steps; one that diverges ends where it began.

    :param num_steps: the same for all chains.
    :return: the ends, whether trajectories diverged ``(N,)``, and the number of gradients.
    """
    begin, energy = phase, phase.energy
    alive = torch.ones_like(energy, dtype=torch.bool)
    gradients = 0
    for _ in range(num_steps):
        velocity = phase.velocity + 0.5 * step_size * scale * phase.gradient
        position = phase.position + step_size * scale * velocity
        alive = alive & position.isfinite().all(-1)
        position = torch.where(alive[:, None], position, begin.position)
        log_density, gradient = log_density_and_grad(position)
        gradients += len(position)
        velocity = velocity + 0.5 * step_size * scale * gradient
        phase = Phase(position, log_density, gradient, velocity)
        alive = alive & ((phase.energy - energy).abs() <= DIVERGENT)
        # A chain without velocity and gradient rests: its density is evaluated where it is known.
        column = alive[:, None]
        phase = Phase(
            torch.where(column, position, begin.position),
            torch.where(alive, log_density, begin.log_density),
            torch.where(column, gradient, 0.0),
            torch.where(column, velocity, 0.0),
        )
        if not alive.any():
            break
    return phase, ~alive, gradients
