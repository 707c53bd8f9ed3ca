"""Step size, trajectory length and scales of Hamiltonian Monte Carlo, learnt from all chains."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .leapfrog import Move

#: Most leapfrog steps of a trajectory.
MOST_STEPS = 256

#: Parts of the warm-up after which the scales are set anew from the states since the last time.
RESCALED = (0.1, 0.25, 0.5, 0.75)

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

#: Transitions after a restart of the step size from which on its average is settled; the scales are
#: not set anew earlier.
_SETTLED = 10


class StepSize:
    """A step size that dual averaging adapts (Hoffman & Gelman 2014, section 3.2).

    :ivar value: for the next transition.
    """

    def __init__(self, value: float, target_accept: float) -> None:
        self.value, self.average, self.target_accept = value, value, target_accept
        self.restart()

    def restart(self) -> None:
        """Begin anew from the present step size."""
        self.before, self.centre = self.value, math.log(10 * self.value)
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

    def settle(self) -> None:
        """Take the average; soon after a restart, which tries ten times as long a step, no longer.

        A warm-up may end there, when its time is over.
        """
        is_settled = self.steps >= _SETTLED
        self.value = self.average if is_settled else min(self.average, self.before)


class Tuner:
    """Step size, trajectory length and scales, learnt from what all chains do in the warm-up."""

    def __init__(self, dim: int, target_accept: float) -> None:
        self.step, self.length = StepSize(0.5 * dim**-0.25, target_accept), 1.0
        self.scale = torch.ones(dim, dtype=torch.double)
        self.rescalings = list(RESCALED)
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

    def learn(self, move: Move, part: float) -> None:
        """Take a transition of the warm-up into account.

        :param part: part of the warm-up that is over with it, in (0, 1].
        """
        self.count += 1
        self.step.learn(1 / float(move.accept.clamp(min=_HOPELESS).reciprocal().mean()))
        self._ascend(move, part)
        self.window.append(move.state.double().cpu())
        if self.rescalings and part >= self.rescalings[0] and len(self.window) >= _SETTLED:
            self.rescalings = [p for p in self.rescalings if p > part]
            self._rescale(torch.cat(self.window))
            self.window = []

    def be_careful(self, target_accept: float) -> None:
        """Begin to adapt the step size to another acceptance rate, with the scales as they are."""
        self.step.target_accept = target_accept
        self.step.restart()
        self.lengths = []

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
        self.step.settle()
        self.step.restart()

    def finish(self) -> None:
        """Take the averages of what was learnt in the last part of the warm-up."""
        self.step.settle()
        self.window = []
        if self.lengths:
            last = self.lengths[len(self.lengths) // 2 :]
            self.length = math.exp(sum(map(math.log, last)) / len(last))

    def _ascend(self, move: Move, part: float) -> None:
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
            rate = first * (last / first) ** part
            gain = self.slope / self.chees - _PRICE
            self.length *= math.exp(rate * min(max(gain, -1.0), 1.0))
        longest = min(self.longest, MOST_STEPS * self.step_size)
        self.length = min(max(self.length, self.step_size), longest)
        self.lengths.append(self.length)


def halton(index: int) -> float:
    """Compute number ``index`` >= 1 of the Halton sequence: its binary digits mirrored.

    >>> [halton(i) for i in range(1, 5)]
    [0.5, 0.25, 0.75, 0.125]
    """
    return int(f"{index:b}"[::-1], 2) / 2 ** index.bit_length()
