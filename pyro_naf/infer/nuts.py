r"""The no-U-turn sampler with several chains at once, which share the price of a gradient.

A trajectory doubles, forwards or backwards in time, until its ends or those of one of its halves
turn towards each other; a state of it is chosen in proportion to :math:`e^{-H}`, with
:math:`H = -\log p(x) + \tfrac12 v^2`. A doubling is built leaf by leaf, without recursion: of its
halves only those momenta are kept that a later leaf is compared with. So all chains follow the same
instructions, each until its own tree is complete. Step size and scales are learnt from all chains.

Sources: Hoffman & Gelman 2014 [arXiv:1111.4246]; Betancourt 2017 [arXiv:1701.02434] for the choice
by weights; Phan, Pradhan & Jankowiak 2019 [arXiv:1912.11554] for trees without recursion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .hmc import Chains
from .leapfrog import DIVERGENT, LogDensityAndGrad, Phase
from .tuning import RESCALED, StepSize

#: Doublings of a trajectory at most.
_DEEPEST = 10

#: Acceptance rate that the step size is adapted to.
_TARGET = 0.8

#: Weight, in states, of unit scales beside the pooled states, and the fewest states that count.
_PRIOR_STATES, _FEWEST_STATES = 5, 20


def sample_nuts(
    log_density_and_grad: LogDensityAndGrad,
    start: Tensor,
    num_samples: int,
    warmup_steps: int,
    progress: bool = False,
) -> Chains:
    """Draw from a density by NUTS, all chains at once.

    :param log_density_and_grad: maps positions ``(N, D)`` to log-densities ``(N,)``, up to a
        constant, and their gradients ``(N, D)``.
    :param start: positions of the chains ``(num_chains, D)``, where both are finite.
    :return: ``Chains`` as of HMC, whose gradients are those after the warm-up.

    >>> torch.manual_seed(0)
    <torch._C.Generator object at ...>
    >>> def normal(x):
    ...     return -0.5 * x.square().sum(-1), -x
    >>> chains = sample_nuts(normal, torch.randn(4, 2), 200, 100)
    >>> chains.states.shape, chains.divergences
    (torch.Size([4, 200, 2]), 0)
    """
    step = StepSize(0.5 * start.shape[-1] ** -0.25, _TARGET)
    scale = torch.ones_like(start[0])
    rescaled = {round(part * warmup_steps) for part in RESCALED}
    log_density, gradient = log_density_and_grad(start)
    phase = Phase(start, log_density, gradient, torch.zeros_like(start))
    window, states = list[Tensor](), list[Tensor]()
    accepted, gradients, divergences = 0.0, 0, 0
    bar = tqdm(range(warmup_steps + num_samples), disable=not progress, desc="nuts", unit="step")
    for i in bar:
        tree = _Tree(log_density_and_grad, phase, step.value, scale)
        phase = tree.grow()
        rate = float((tree.accepted / tree.leaves).mean())
        if i >= warmup_steps:
            states.append(phase.position)
            accepted += rate / num_samples
            gradients += int(tree.leaves.sum())
            divergences += int(tree.diverged.sum())
            continue
        step.learn(rate)
        window.append(phase.position)
        if i + 1 in rescaled and len(window) * len(start) >= _FEWEST_STATES:
            scale = _scale(torch.cat(window))
            window = []
            step.restart()
        if i + 1 == warmup_steps:
            step.settle()
    found = torch.stack(states, 1)
    return Chains(found, accepted, gradients, divergences, step.value, float("nan"), scale)


def _scale(states: Tensor) -> Tensor:
    """Estimate the deviations ``(D,)`` of states ``(N, D)``, drawn a little towards one."""
    count = len(states)
    variance = (count * states.double().var(0) + _PRIOR_STATES) / (count + _PRIOR_STATES)
    return variance.sqrt().to(states)


@dataclass
class _Half:
    """The part that a trajectory is doubled by, while it is built: sums over its leaves.

    :ivar end: its outermost phase; ``chosen`` the one drawn in proportion to the weights.
    :ivar log_weight: logarithm of the sum of the weights ``(C,)``.
    :ivar velocity: sum of the velocities ``(C, D)``.
    """

    end: Phase
    chosen: Phase
    log_weight: Tensor
    velocity: Tensor


class _Tree:
    """One transition of all chains.

    :ivar accepted: sum over leaves of the probability to accept each, from the start ``(C,)``.
    :ivar leaves: number of leapfrog steps of each chain ``(C,)``.
    :ivar diverged: whether a chain's trajectory diverged ``(C,)``.
    """

    def __init__(
        self, target: LogDensityAndGrad, phase: Phase, step_size: float, scale: Tensor
    ) -> None:
        self.target, self.step_size, self.scale = target, step_size, scale
        self.begin = phase._replace(velocity=torch.randn_like(phase.position))
        self.energy = self.begin.energy
        self.leaves = torch.zeros_like(self.energy)
        self.accepted = torch.zeros_like(self.energy)
        self.diverged = torch.zeros_like(self.energy, dtype=torch.bool)

    def grow(self) -> Phase:
        """Double the trajectories until they turn; the state that is chosen of each."""
        begin = self.begin
        left = right = chosen = begin
        log_weight, velocity = torch.zeros_like(self.energy), begin.velocity
        growing = ~self.diverged
        for depth in range(_DEEPEST):
            forwards = torch.rand_like(self.energy) < 0.5
            half, growing = self._half(depth, _where(forwards, right, left), forwards, growing)
            is_taken = torch.rand_like(log_weight).log() < half.log_weight - log_weight
            chosen = _where(growing & is_taken, half.chosen, chosen)
            right = _where(growing & forwards, half.end, right)
            left = _where(growing & ~forwards, half.end, left)
            log_weight = torch.logaddexp(log_weight, half.log_weight)
            velocity = velocity + half.velocity
            growing = growing & ~_turns(left.velocity, right.velocity, velocity)
            if not growing.any():
                break
        return chosen

    def _half(
        self, depth: int, edge: Phase, forwards: Tensor, growing: Tensor
    ) -> tuple[_Half, Tensor]:
        """Build ``2^depth`` leaves beyond the edge, and say whose half is complete."""
        half = _Half(edge, edge, torch.full_like(self.energy, -torch.inf), 0 * edge.velocity)
        step = torch.where(forwards, self.step_size, -self.step_size).to(edge.position)[:, None]
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        for leaf in range(2**depth):
            half.end = self._leapfrog(half.end, step, growing)
            growing = self._add(half, growing)
            velocity = half.end.velocity
            place = (leaf >> 1).bit_count()
            if leaf % 2 == 0:
                kept[place] = velocity, half.velocity
            # The halves that this leaf completes: as many as it has ones at its end.
            for i in range(place, place - (leaf ^ (leaf + 1)).bit_length() + 1, -1):
                first, before = kept[i]
                growing = growing & ~_turns(first, velocity, half.velocity - before + first)
            if not growing.any():
                break
        return half, growing

    def _leapfrog(self, phase: Phase, step: Tensor, growing: Tensor) -> Phase:
        """Make a step of the chains that are growing; the others rest."""
        velocity = phase.velocity + 0.5 * step * self.scale * phase.gradient
        position = phase.position + step * self.scale * velocity
        usable = growing & position.isfinite().all(-1)
        position = torch.where(usable[:, None], position, phase.position)
        log_density, gradient = self.target(position)
        velocity = velocity + 0.5 * step * self.scale * gradient
        log_density = torch.where(usable, log_density, -torch.inf)
        return _where(growing, Phase(position, log_density, gradient, velocity), phase)

    def _add(self, half: _Half, growing: Tensor) -> Tensor:
        """Count the newest leaf, and say who is still growing."""
        log_weight = (self.energy - half.end.energy).nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        log_weight = torch.where(growing, log_weight, -torch.inf)
        self.leaves += growing
        self.accepted += log_weight.clamp(max=0).exp()
        is_far = growing & (log_weight < -DIVERGENT)
        self.diverged |= is_far
        half.log_weight = torch.logaddexp(half.log_weight, log_weight)
        is_taken = torch.rand_like(log_weight).log() < log_weight - half.log_weight
        half.chosen = _where(growing & ~is_far & is_taken, half.end, half.chosen)
        half.velocity = half.velocity + torch.where(growing[:, None], half.end.velocity, 0.0)
        return growing & ~is_far


def _where(mask: Tensor, a: Phase, b: Phase) -> Phase:
    """Of each chain the one phase or the other."""
    pairs = zip(a, b, strict=True)
    return Phase(*(torch.where(mask if x.dim() == 1 else mask[:, None], x, y) for x, y in pairs))


def _turns(first: Tensor, last: Tensor, total: Tensor) -> Tensor:
    """Whether the ends of a trajectory turn towards its middle, from the sum of its velocities."""
    middle = total - (first + last) / 2
    return ((first * middle).sum(-1) <= 0) | ((last * middle).sum(-1) <= 0)
