r"""Hamiltonian Monte Carlo with many short chains at once, which tune one another.

A chain at x draws a velocity :math:`v \sim N(0, I)` and follows

.. math:: \dot x = s v, \qquad \dot v = s \nabla \log p(x)

for a time t by leapfrog steps of size h. It moves to the end with probability
:math:`\min(1, e^{-\Delta H})`, :math:`H = -\log p(x) + \tfrac12 v^2`. What all chains tell together
sets the scales s (deviations of the pooled states), h (dual averaging of the mean acceptance
rate), and T, where t = u T with u from a Halton sequence on (0, 1): T ascends ChEES, the expected
squared change of the squared distance from the mean (each chain's relative to its own), so that a
trajectory is as long as a correlation is.

Sources: Hoffman, Radul & Sountsov 2021, *An Adaptive-MCMC Scheme for Setting Trajectory Lengths in
Hamiltonian Monte Carlo*; Hoffman & Gelman 2014 [arXiv:1111.4246] for dual averaging.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..support.checks import check_integers

#: Positions ``(N, D)`` to log-densities ``(N,)`` and their gradients ``(N, D)``.
LogDensityAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]

#: Change of the energy, in nats, from which a trajectory is divergent, as in Stan.
DIVERGENT = 1000.0

#: Most leapfrog steps of a trajectory.
_MOST_STEPS = 256

#: Parts of the warm-up after which the scales are set anew from the states since the last time.
RESCALED = (0.1, 0.25, 0.5, 0.75)

#: Share of a time limit that the warm-up takes at most.
_WARM_UP = 0.5

#: Draws of each chain after which it is first asked whether they are enough, and how many times as
#: many have been drawn each time after that.
_FIRST_ASKED, _LATER = 200, 1.25

#: Step of log T, in units of the slope, in the warm-up's first transition, and in its last.
_RATES = (0.1, 0.02)

#: Transitions over which ChEES and its slope are averaged.
_MEMORY = 16

#: Power of T that ChEES has to grow with for a longer trajectory to be worth its price: beyond the
#: best length ChEES is nearly flat, and noise would drive T up.
_PRICE = 0.5

#: Power iterations for the largest eigenvalue of the correlations of the pooled states.
_POWER_STEPS = 20

#: Acceptance probabilities below this count as this in their harmonic mean.
_HOPELESS = 0.03


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


@dataclass(frozen=True)
class Chains:
    """What :func:`sample_hmc` returns.

    :ivar states: shape ``(num_chains, num_samples, D)``; fewer samples where time was over.
    :ivar accept_rate: mean acceptance probability after the warm-up.
    :ivar gradients: number of gradients, each of one chain, in the warm-up and after it.
    :ivar divergences: number of divergent trajectories after the warm-up.
    :ivar step_size: step size h.
    :ivar trajectory_length: T; half of it is the mean time of a trajectory.
    :ivar scale: s, shape ``(D,)``.
    """

    states: Tensor = field(repr=False)
    accept_rate: float
    gradients: int
    divergences: int
    step_size: float
    trajectory_length: float
    scale: Tensor = field(repr=False)


def sample_hmc(
    log_density_and_grad: LogDensityAndGrad,
    start: Tensor,
    num_samples: int = 250,
    warmup_steps: int = 250,
    *,
    target_accept: float = 0.65,
    seconds: float | None = None,
    enough: Callable[[Tensor], bool] | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Chains:
    """Draw from a density by Hamiltonian Monte Carlo, all chains at once.

    :param log_density_and_grad: maps positions ``(N, D)`` to log-densities ``(N,)``, up to a
        constant, and their gradients ``(N, D)``. Where either is not finite a trajectory ends.
    :param start: positions of the chains, shape ``(num_chains, D)``, in float32 or float64, where
        both are finite; at least two chains, better 64, which should be spread over the density.
    :param num_samples: draws of each chain.
    :param warmup_steps: transitions of each chain before them; 0 keeps T = pi, h = D^(-1/4) / 2 and
        s = 1.
    :param target_accept: acceptance rate in (0, 1) that the step size is adapted to.
    :param seconds: time limit. The warm-up takes at most half of it, and what is drawn until then
        is returned, a draw of each chain at least.
    :param enough: whether states ``(num_chains, n, D)`` are enough, n <= ``num_samples``; it is
        asked now and then, and ends the chains.
    :param generator: for velocities and acceptance; torch's own by default.
    :param progress: show a progress bar.
    :raises ValueError: for an argument out of range, and for starts where density or gradient are
        not finite.

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> scale = torch.tensor([1.0, 10.0])
    >>> def normal(x):
    ...     return -0.5 * (x / scale).square().sum(-1), -x / scale**2
    >>> chains = sample_hmc(normal, torch.randn(64, 2), 100, 100)
    >>> chains.states.shape, chains.divergences
    (torch.Size([64, 100, 2]), 0)
    >>> (chains.states.std((0, 1)) / scale).round(decimals=1)
    tensor([1., 1.])
    """
    check_integers(num_samples=(num_samples, 1), warmup_steps=(warmup_steps, 0))
    if start.dim() != 2 or len(start) < 2 or not start.is_floating_point():
        raise ValueError(
            "start must be floating-point positions (num_chains, D) of two chains or more, got "
            f"{start.dtype} of shape {tuple(start.shape)}"
        )
    if not 0 < target_accept < 1:
        raise ValueError(f"target_accept must lie in (0, 1), got {target_accept}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    began, limit = time.monotonic(), math.inf if seconds is None else seconds
    sampler = _Sampler(log_density_and_grad, start.detach(), generator)
    tuner = _Tuner(start.shape[-1], warmup_steps, target_accept)
    states: list[Tensor] = []
    accepted, divergences, asked = 0.0, 0, _FIRST_ASKED

    def move() -> _Move:
        return sampler.step(tuner.step_size, tuner.jittered(), tuner.scale.to(start))

    total = warmup_steps + num_samples
    with tqdm(total=total, disable=not progress, desc="hmc", unit="step") as bar:
        while tuner.count < warmup_steps and time.monotonic() - began < _WARM_UP * limit:
            tuner.learn(move())
            bar.update()
        tuner.finish()
        while len(states) < num_samples and not (states and time.monotonic() - began > limit):
            made = move()
            states.append(made.state)
            accepted += float(made.accept.mean())
            divergences += int(made.divergent.sum())
            bar.update()
            if enough is not None and len(states) == asked:
                asked = math.ceil(_LATER * asked)
                if enough(torch.stack(states, 1)):
                    break
    return Chains(
        torch.stack(states, 1),
        accepted / len(states),
        sampler.gradients,
        divergences,
        tuner.step_size,
        tuner.length,
        tuner.scale.to(start),
    )


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


class _Move(NamedTuple):
    """A transition: phases before it and proposed, what became of it, and its time.

    ``accept`` are probabilities ``(N,)``; ``state`` is where the chains are after it.
    """

    begin: Phase
    end: Phase
    accept: Tensor
    divergent: Tensor
    time: float
    state: Tensor


class _Sampler:
    """The chains, and how they move."""

    def __init__(
        self, target: LogDensityAndGrad, start: Tensor, generator: torch.Generator | None
    ) -> None:
        self.target, self.generator = target, generator
        log_density, gradient = target(start)
        finite = log_density.isfinite() & gradient.isfinite().all(-1)
        if not finite.all():
            raise ValueError(
                "start must have a finite log-density and gradient, got others for "
                f"{int((~finite).sum())} of {len(start)} chains"
            )
        self.phase = Phase(start, log_density, gradient, torch.zeros_like(start))
        self.gradients = len(start)

    def step(self, step_size: float, length: float, scale: Tensor) -> _Move:
        """One transition of all chains, of the same length."""
        position, generator = self.phase.position, self.generator
        velocity = torch.empty_like(position).normal_(generator=generator)
        begin = self.phase._replace(velocity=velocity)
        num_steps = min(max(1, math.ceil(length / step_size)), _MOST_STEPS)
        end, divergent, gradients = leapfrog(self.target, begin, step_size, num_steps, scale)
        self.gradients += gradients
        accept = (begin.energy - end.energy).clamp(max=0).exp()
        accept = torch.where(divergent, 0.0, accept)
        taken = torch.empty_like(accept).uniform_(generator=generator) < accept
        chosen = [
            torch.where(taken.reshape(-1, *[1] * (new.dim() - 1)), new, old)
            for new, old in zip(end, begin, strict=True)
        ]
        self.phase = Phase(*chosen)
        return _Move(begin, end, accept, divergent, num_steps * step_size, self.phase.position)


class StepSize:
    """A step size that dual averaging adapts (Hoffman & Gelman 2014, section 3.2).

    :ivar value: for the next transition; ``average`` for when it is no longer adapted.
    """

    def __init__(self, value: float, target_accept: float) -> None:
        self.value, self.target_accept = value, target_accept
        self.restart()

    def restart(self) -> None:
        """Begin anew from the present step size."""
        self.centre = math.log(10 * self.value)
        self.error, self.steps, self.average = 0.0, 0, self.value

    def learn(self, accept: float) -> None:
        """Take the acceptance rate of a transition into account."""
        self.steps += 1
        weight = 1 / (self.steps + 10)
        self.error += weight * (self.target_accept - accept - self.error)
        log_step = self.centre - math.sqrt(self.steps) / 0.05 * self.error
        self.value = math.exp(log_step)
        weight = self.steps**-0.75
        self.average = math.exp(weight * log_step + (1 - weight) * math.log(self.average))


class _Tuner:
    """Step size, trajectory length and scales, learnt from what all chains do in the warm-up."""

    def __init__(self, dim: int, warmup_steps: int, target_accept: float) -> None:
        self.step, self.length = StepSize(0.5 * dim**-0.25, target_accept), 1.0
        self.scale = torch.ones(dim, dtype=torch.double)
        self.warmup_steps = warmup_steps
        self.rescaled = {round(part * warmup_steps) for part in RESCALED}
        self.count, self.transitions = 0, 0
        self.change = self.chees = self.slope = 0.0
        self.lengths: list[float] = []
        self.window: list[Tensor] = []
        self.longest = math.inf

    @property
    def step_size(self) -> float:
        """The step size h."""
        return self.step.value

    def jittered(self) -> float:
        """Return the time of the next trajectory."""
        self.transitions += 1
        return halton(self.transitions) * self.length

    def learn(self, move: _Move) -> None:
        """Take a transition of the warm-up into account."""
        self.count += 1
        self.step.learn(1 / float(move.accept.clamp(min=_HOPELESS).reciprocal().mean()))
        self._ascend(move)
        self.window.append(move.state.double().cpu())
        if self.count in self.rescaled:
            self._rescale(torch.cat(self.window))
            self.window = []

    def _rescale(self, states: Tensor) -> None:
        """Take the scales from pooled states ``(N, D)``, and a bound of T from correlations."""
        deviation = states.std(0)
        old, self.scale = self.scale, torch.where(deviation > 0, deviation, self.scale)
        # T was what it takes through the widest direction, in units of the old scales.
        self.length *= float((old / self.scale).min())
        x = (states - states.mean(0)) / self.scale
        direction = x[-1]
        for _ in range(_POWER_STEPS):
            direction = (x @ (direction / direction.norm().clamp(min=1e-30))) @ x / len(x)
        # Half the period of a Gaussian along its widest direction.
        self.longest = math.pi * max(1.0, math.sqrt(float(direction.norm())))
        self.step.value = self.step.average
        self.step.restart()

    def finish(self) -> None:
        """Take the averages of what was learnt in the last part of the warm-up."""
        if self.count:
            self.step.value = self.step.average
            last = self.lengths[len(self.lengths) // 2 :]
            self.length = math.exp(sum(map(math.log, last)) / len(last))

    def _ascend(self, move: _Move) -> None:
        """Make a step on log T along the gradient of log ChEES, less the price of longer ones."""
        weights = move.accept / move.accept.sum().clamp(min=1e-30)
        scale = self.scale.to(weights)
        begin, end = (phase.position.double() / scale for phase in (move.begin, move.end))
        begin, end = begin - begin.mean(0), end - weights @ end
        change = end.square().sum(-1) - begin.square().sum(-1)
        slope = 4 * move.time * change * (end * move.end.velocity.double()).sum(-1)
        keep = 1 - 1 / min(self.count, _MEMORY)
        self.change = keep * self.change + (1 - keep) * float(change.square().median())
        # Relative to what is usual and to each chain's own: those far out must not govern T.
        size = change.square() + self.change + 1e-30
        self.chees = keep * self.chees + (1 - keep) * float(weights @ (change.square() / size))
        self.slope = keep * self.slope + (1 - keep) * float(weights @ (slope / size))
        if self.chees > 0:
            first, last = _RATES
            rate = first * (last / first) ** (self.count / self.warmup_steps)
            gain = self.slope / self.chees - _PRICE
            self.length *= math.exp(rate * min(max(gain, -1.0), 1.0))
        longest = min(self.longest, _MOST_STEPS * self.step_size)
        self.length = min(max(self.length, self.step_size), longest)
        self.lengths.append(self.length)


def halton(index: int) -> float:
    """Compute number ``index`` >= 1 of the Halton sequence: its binary digits mirrored.

    >>> [halton(i) for i in range(1, 5)]
    [0.5, 0.25, 0.75, 0.125]
    """
    return int(f"{index:b}"[::-1], 2) / 2 ** index.bit_length()
