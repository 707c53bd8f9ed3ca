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
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..support.checks import check_integers
from .leapfrog import LogDensityAndGrad, Move, Phase, leapfrog
from .tuning import MOST_STEPS, Tuner

#: Share of a time limit that the warm-up takes at most.
_WARM_UP = 0.5

#: Share of jumps that have to be taken in the second half of the warm-up for chains to go on with
#: them.
_RARE_JUMPS = 0.02

#: Which trajectories have short steps, where some have: every fourth; and how much shorter.
_NARROW, _NARROWER = 4, 8


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
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds must be positive, got {seconds}")
    began, limit = time.monotonic(), math.inf if seconds is None else seconds
    with tqdm(total=warmup_steps + num_samples, disable=not progress, desc="hmc") as bar:
        chains = Hamiltonian(log_density_and_grad, start, target_accept, generator, bar)
        chains.warm_up(warmup_steps, began + _WARM_UP * limit)
        chains.draw(num_samples, began + limit)
    return chains.result()


class Hamiltonian:
    """Chains of Hamiltonian Monte Carlo that may be stopped at any time, and go on.

    :param log_density_and_grad: as of :func:`sample_hmc`, as are the others.
    :param bar: shows the transitions.
    :param near_normal: whether the density is near that of N(0, I). Then chains jump to draws of
        that after each trajectory, unless hardly a jump of the warm-up was taken; and some
        trajectories have short steps, which lead out of places much narrower than N(0, I).
    :ivar gradients: number of gradients, each of one chain, since the start.
    :ivar divergences: number of divergent trajectories among the draws.
    """

    def __init__(
        self,
        log_density_and_grad: LogDensityAndGrad,
        start: Tensor,
        target_accept: float = 0.65,
        generator: torch.Generator | None = None,
        bar: tqdm[None] | None = None,
        near_normal: bool = False,
    ) -> None:
        if start.dim() != 2 or len(start) < 2 or not start.is_floating_point():
            raise ValueError(
                "start must be floating-point positions (num_chains, D) of two chains or more, got "
                f"{start.dtype} of shape {tuple(start.shape)}"
            )
        if not 0 < target_accept < 1:
            raise ValueError(f"target_accept must lie in (0, 1), got {target_accept}")
        self.target, self.generator, self.bar = log_density_and_grad, generator, bar
        start = start.detach()
        log_density, gradient = log_density_and_grad(start)
        finite = log_density.isfinite() & gradient.isfinite().all(-1)
        if not finite.all():
            raise ValueError(
                "start must have a finite log-density and gradient, got others for "
                f"{int((~finite).sum())} of {len(start)} chains"
            )
        self.phase = Phase(start, log_density, gradient, torch.zeros_like(start))
        self.tuner = Tuner(start.shape[-1], target_accept)
        self.near_normal, self.jumps, self._jumped = near_normal, near_normal, list[float]()
        self.gradients = len(start)
        self._forget()

    def _forget(self) -> None:
        self._states: list[Tensor] = []
        self._accepted, self._seconds, self.divergences = 0.0, 0.0, 0

    @property
    def count(self) -> int:
        """Number of draws of each chain."""
        return len(self._states)

    @property
    def pace(self) -> float:
        """Seconds that a draw of all chains takes on average; NaN without draws."""
        return self._seconds / self.count if self.count else math.nan

    @property
    def states(self) -> Tensor:
        """Draws ``(num_chains, count, D)``."""
        return torch.stack(self._states, 1)

    def warm_up(self, steps: int, until: float = math.inf) -> None:
        """Adapt step size, trajectory length and scales.

        :param steps: number of transitions at most.
        :param until: when it ends, a value of :func:`time.monotonic`.
        """
        began = now = time.monotonic()
        for step in range(1, steps + 1):
            if now >= until:
                break
            move = self._move()
            now = time.monotonic()
            self.tuner.learn(move, min(max(step / steps, (now - began) / (until - began)), 1.0))
        self.tuner.finish()
        if late := self._jumped[len(self._jumped) // 2 :]:
            self.jumps = sum(late) > _RARE_JUMPS * len(late)
            self._jumped = []

    def be_careful(self, target_accept: float, steps: int, until: float = math.inf) -> None:
        """Leave out the draws, and adapt the step size to a higher acceptance rate.

        That is what divergences ask for. The arguments are those of :meth:`warm_up`.
        """
        self._forget()
        self.tuner.be_careful(target_accept)
        self.warm_up(steps, until)

    def draw(self, count: int, until: float = math.inf) -> None:
        """Make further draws of each chain; when time is over, as many as there are, at least one.

        :param count: their number.
        :param until: as for :meth:`warm_up`.
        """
        begin = now = time.monotonic()
        for _ in range(count):
            if self._states and now > until:
                break
            made = self._move()
            self._states.append(made.state)
            self._accepted += float(made.accept.mean())
            self.divergences += int(made.divergent.sum())
            now = time.monotonic()
        self._seconds += now - begin

    def result(self) -> Chains:
        """Return the draws, and what they have cost."""
        return Chains(
            self.states,
            self._accepted / self.count,
            self.gradients,
            self.divergences,
            self.tuner.step_size,
            self.tuner.length,
            self.tuner.scale.to(self.phase.position),
        )

    def _move(self) -> Move:
        """Make one transition of all chains, of the same length."""
        position, generator, tuner = self.phase.position, self.generator, self.tuner
        velocity = torch.empty_like(position).normal_(generator=generator)
        begin = self.phase._replace(velocity=velocity)
        step_size = tuner.step_size
        num_steps = min(max(1, math.ceil(tuner.jittered() / step_size)), MOST_STEPS)
        if self.near_normal and tuner.transitions % _NARROW == 0:
            step_size /= _NARROWER
        scale = tuner.scale.to(position)
        end, divergent, gradients = leapfrog(self.target, begin, step_size, num_steps, scale)
        self.gradients += gradients
        accept = (begin.energy - end.energy).clamp(max=0).exp()
        accept = torch.where(divergent, 0.0, accept)
        self._take(end, begin, accept)
        if self.jumps:
            self._jump()
        if self.bar is not None:
            self.bar.update()
        return Move(begin, end, accept, divergent, num_steps * step_size, self.phase.position)

    def _jump(self) -> None:
        r"""Try a draw of N(0, I) for each chain, which is taken with probability min(1, w'/w).

        w is the density relative to that of N(0, I).
        """
        old = self.phase
        position = torch.empty_like(old.position).normal_(generator=self.generator)
        new = Phase(position, *self.target(position), torch.zeros_like(position))
        self.gradients += len(position)
        gain = _log_weight(new) - _log_weight(old)
        usable = gain.isfinite() & new.gradient.isfinite().all(-1)
        accept = torch.where(usable, gain.clamp(max=0).exp(), 0.0)
        self._take(new, old, accept)
        self._jumped.append(float(accept.mean()))

    def _take(self, new: Phase, old: Phase, accept: Tensor) -> None:
        """Put each chain to its new place with a probability ``(N,)``, else to the old one."""
        taken = torch.empty_like(accept).uniform_(generator=self.generator) < accept
        chosen = [
            torch.where(taken.reshape(-1, *[1] * (a.dim() - 1)), a, b)
            for a, b in zip(new, old, strict=True)
        ]
        self.phase = Phase(*chosen)


def _log_weight(phase: Phase) -> Tensor:
    """Log-density relative to that of N(0, I), up to a constant, ``(N,)``."""
    return phase.log_density.double() + 0.5 * phase.position.double().square().sum(-1)
