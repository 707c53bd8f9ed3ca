r"""Hamiltonian Monte Carlo that chooses where its chains run, by predicting when they are done.

A gradient in units of a Gaussian costs a fraction of one through a guide's flows. Where the
posterior's widths differ too much from place to place, as in a funnel, chains diverge or mix slowly
there, and do better in the guide's base space. Draws of the guide tell beforehand which will be
done first (:class:`Prospect`), and where they were wrong the other chains take over. Either chains
can be stopped, and go on.

A prediction needs few draws: as the number n of draws grows, :math:`\hat R^2 - 1` falls like
:math:`1 / n`, and effective sample sizes grow like n.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .base_space import BaseSpace, GaussianSpace
from .chains import convergence
from .hmc import Hamiltonian
from .leapfrog import LogDensityAndGrad

#: Draws of each chain after which they are first looked at, and how many times as many have been
#: drawn each time after that.
_FIRST_LOOK, _LATER = 50, 1.5

#: Number of latents, those that need most draws, that are looked at until these are enough.
_WORST = 16

#: Acceptance rates that step sizes are adapted to in turn, as long as trajectories diverge: in
#: units of a Gaussian, and in the base space; and transitions for adapting to a higher rate.
FIRST_TARGETS, SECOND_TARGETS, _CARE_STEPS = (0.65, 0.9), (0.65, 0.9, 0.98), 75

#: Factor by which a higher rate makes a draw dearer, roughly.
_CARE = 1.5

#: Draws of each chain, and gradients for each of them, that chains need whose density is a standard
#: normal.
_BEST_DRAWS, _BEST_GRADIENTS = 400, 4

#: Smallest number of points for a prospect; power iterations for the curvature at each, and their
#: distance, in units of the density's width; and the part of all energies between two quantiles,
#: and their distance for a Gaussian, in standard deviations.
_PROBES, _POWER_STEPS, _NUDGE, _MIDDLE = 64, 5, 1e-3, (0.95, 3.92)

#: Share of the time left that the warm-up takes at most.
_WARM_UP = 0.15

#: Share of divergent trajectories above which draws are not to be relied on.
TORN = 1e-3


class Prospect(NamedTuple):
    r"""What chains in a space will cost, by draws of the guide there.

    A trajectory changes the energy :math:`E = -\log p(x)` by about as much as a velocity has,
    whose variance is D / 2. So a density with a larger variance of E, as that of a funnel, is
    crossed in as many more trajectories; and a trajectory needs as many more steps as the root of
    the curvature is larger.

    :ivar gradient: seconds of a gradient of all chains.
    :ivar energy: variance of E in units of D / 2, at least 1.
    :ivar roughness: root of the largest curvature of E, the median over the points, at least 1.
    """

    gradient: float
    energy: float
    roughness: float

    @classmethod
    def of(cls, density: LogDensityAndGrad, points: Tensor, num_chains: int) -> Prospect:
        """Measure it at draws of the guide ``(N, D)``.

        :param num_chains: number of points that a gradient is timed at.
        """
        value, grad = density(points)
        usable = value.isfinite() & grad.isfinite().all(-1)
        if 2 * int(usable.sum()) < len(points):
            return cls(0.0, math.inf, math.inf)
        points, grad, energies = points[usable], grad[usable], -value[usable].double()
        part, widths = _MIDDLE
        ends = torch.tensor([1 - part, 1 + part], dtype=torch.double, device=value.device) / 2
        low, high = energies.quantile(ends)
        variance = (float(high - low) / widths) ** 2
        began = time.monotonic()
        density(points[:num_chains])
        seconds = time.monotonic() - began
        direction = torch.randn_like(points)
        for _ in range(_POWER_STEPS):
            direction = direction / direction.norm(dim=-1, keepdim=True).clamp(min=1e-30)
            direction = (density(points + _NUDGE * direction)[1] - grad) / _NUDGE
        curvature = float(direction.norm(dim=-1).nan_to_num(math.inf).median())
        energy = variance / (0.5 * points.shape[1])
        return cls(seconds, max(energy, 1.0), max(math.sqrt(curvature), 1.0))

    def seconds(self, warmup_steps: int) -> float:
        """Predict the seconds of a warm-up, and of the draws to a common goal."""
        if math.isinf(self.energy):
            return math.inf
        transitions = warmup_steps + _BEST_DRAWS * self.energy
        return transitions * _BEST_GRADIENTS * self.roughness * self.gradient


def num_probes(num_chains: int) -> int:
    """Return the number of points that a prospect needs."""
    return max(num_chains, _PROBES)


class Goal(NamedTuple):
    """What draws have to be, in every latent.

    :ivar rhat: R-hat below which chains agree.
    :ivar ess: effective draws of bulk and tails.
    :ivar most: number of draws of each chain at most.
    :ivar ends: whether chains end as soon as they agree.
    """

    rhat: float
    ess: float
    most: int
    ends: bool


@dataclass
class Run:
    """Chains in one space.

    :ivar chains: the chains.
    :ivar space: the space that they run in.
    :ivar targets: acceptance rates that may still be tried.
    :ivar finish: seconds that each draw of all chains takes after the last.
    :ivar needed: predicted number of draws of each chain to the goal.
    """

    chains: Hamiltonian
    space: BaseSpace | GaussianSpace
    targets: list[float]
    finish: float
    needed: float = math.inf
    look_seconds: float = 0.0
    _worst: Tensor | None = field(default=None, repr=False)

    @property
    def ahead(self) -> float:
        """Predicted seconds to the goal."""
        if not math.isfinite(self.needed):
            return math.inf
        return max(self.needed - self.chains.count, 0) * self.chains.pace

    @property
    def divergent(self) -> float:
        """Share of divergent trajectories."""
        chains = self.chains
        return chains.divergences / (chains.count * len(chains.phase.position))

    @property
    def is_torn(self) -> bool:
        """Whether more trajectories diverge than is borne, beyond the noise of their number."""
        borne = TORN * self.chains.count * len(self.chains.phase.position)
        return self.chains.divergences > borne + 3 * math.sqrt(borne)

    def next_look(self, most: int) -> int:
        """Return the number of draws at which to look next."""
        count = self.chains.count
        usual = max(_FIRST_LOOK, math.ceil(_LATER * count))
        if count < self.needed < usual:
            usual = math.ceil(max(self.needed, 1.05 * count))
        return min(usual, most)

    def look(self, goal: Goal) -> None:
        """Predict from the draws how many are needed; of most latents only where all may be enough.

        The latents that need most tell early that they are not enough.
        """
        began, states = time.monotonic(), self.chains.states
        if self._worst is not None:
            self.needed = float(_needed(states[..., self._worst], goal).max())
        if self._worst is None or self.needed <= self.chains.count:
            needed = _needed(states, goal)
            self._worst = needed.topk(min(_WORST, len(needed)))[1]
            self.needed = float(needed.max())
            self.look_seconds = (time.monotonic() - began) / self.chains.count

    def is_done(self, goal: Goal) -> bool:
        """Whether no more draws are wanted."""
        count = self.chains.count
        return count >= goal.most or (goal.ends and self.needed <= count)

    def kept(self) -> Run:
        """Copy what there is, which beginning anew does not touch."""
        chains = copy.copy(self.chains)
        chains.tuner = copy.copy(chains.tuner)
        return replace(self, chains=chains)

    def be_careful(self, until: float) -> None:
        """Begin anew with a smaller step size."""
        self.chains.be_careful(self.targets.pop(0), _CARE_STEPS, until)
        self.needed, self._worst = math.inf, None


def _needed(states: Tensor, goal: Goal) -> Tensor:
    """Predict the number of draws of each chain that each latent needs ``(D,)``."""
    found = convergence(states)
    disagreement = (found.rhat.square() - 1) / (goal.rhat**2 - 1)
    scarcity = goal.ess / torch.minimum(found.ess, found.ess_tail)
    factor = torch.maximum(disagreement, scarcity).nan_to_num(math.inf, math.inf)
    return states.shape[1] * factor


class Choice:
    """Two kinds of chains, those that promise to be done earlier first; draws of the better ones.

    :param makers: make the chains of either kind.
    :param prospects: what either will cost.
    :param goal: what their draws have to be.
    :param warmup_steps: transitions of a warm-up.
    :param deadline: when everything is to be over, a value of :func:`time.monotonic`.
    """

    def __init__(
        self,
        makers: Sequence[Callable[[], Run]],
        prospects: Sequence[Prospect],
        goal: Goal,
        warmup_steps: int,
        deadline: float,
    ) -> None:
        seconds = [prospect.seconds(warmup_steps) for prospect in prospects]
        order = sorted(range(len(seconds)), key=seconds.__getitem__)
        self.makers = [makers[i] for i in order]
        #: Predicted seconds of the kind that is not the first.
        self.other_seconds = seconds[order[-1]]
        self.goal, self.warmup_steps = goal, warmup_steps
        self.deadline = deadline
        self.runs: list[Run] = []
        #: Draws of chains that have begun anew, which may turn out to be the best.
        self.before: list[Run] = []

    def best(self) -> Run:
        """Run chains until the goal or the deadline; those whose draws are the best."""
        first = self._start()
        for _ in self._rounds(first):
            if self._is_other_better(first):
                self._go_on_elsewhere(first)
                break
        return self.chosen()

    def chosen(self) -> Run:
        """Return the chains that come nearest to the goal."""
        runs = self.runs + self.before
        # Of chains that were to have a given length, those that have it.
        whole = [run for run in runs if not self.goal.ends and run.chains.count >= self.goal.most]
        return min(whole or runs, key=_shortfall)

    def _go_on_elsewhere(self, first: Run) -> None:
        """Run the second chains, and the first again where these are to be done earlier."""
        # Where the first would never be done the posterior has a neck.
        second = self._start(is_careful=first.needed > self.goal.most)
        for _ in self._rounds(second):
            is_slow = second.ahead > self._left(second)
            if is_slow and not first.chains.divergences and first.ahead < second.ahead:
                for _ in self._rounds(first):
                    pass
                break

    def _start(self, is_careful: bool = False) -> Run:
        run = self.makers[len(self.runs)]()
        if is_careful:
            run.chains.tuner.be_careful(run.targets.pop(0))
        self.runs.append(run)
        left = self.deadline - time.monotonic()
        run.chains.warm_up(self.warmup_steps, time.monotonic() + max(_WARM_UP * left, 0.0))
        return run

    def _rounds(self, run: Run) -> Iterator[None]:
        """Draw and look, until chains are done or time is over; yields after each look."""
        chains = run.chains
        while True:
            count = run.next_look(self.goal.most)
            chains.draw(count - chains.count, self._end(run, count))
            run.look(self.goal)
            is_over = chains.count < count or time.monotonic() > self._end(run, count)
            if not is_over and chains.divergences and self._can_care(run):
                self.before.append(run.kept())
                run.be_careful(self._end(run, 0))
                continue
            if is_over:
                return
            yield
            if run.is_done(self.goal):
                return

    def _end(self, run: Run, count: int) -> float:
        """Return when chains with this number of draws have to end to meet the deadline."""
        return self.deadline - count * (run.finish + run.look_seconds)

    def _left(self, run: Run) -> float:
        return self._end(run, run.chains.count) - time.monotonic()

    def _can_care(self, run: Run) -> bool:
        """Whether it pays, and there is time, to begin anew with a smaller step size."""
        left = self._left(run)
        is_near = run.needed <= self.goal.most and run.ahead <= left
        is_last = len(self.runs) == len(self.makers) or self.other_seconds > left
        if not run.targets or not (is_near or is_last):
            return False
        # Draws that will not reach the goal, or with many divergences, are worth few others.
        can_stay = is_near and not run.is_torn
        # A prediction from few draws may be half of what is needed.
        draws = 2 * min(run.needed, self.goal.most) if can_stay else 2 * _FIRST_LOOK
        return _CARE * (draws + _CARE_STEPS) * run.chains.pace < left

    def _is_other_better(self, run: Run) -> bool:
        """Whether the other chains promise more than the first."""
        left, goal, least = self._left(run), self.goal, self.other_seconds
        if run.divergent > TORN and least < left:
            return True
        if run.needed <= goal.most and run.ahead <= left:
            return False
        return math.isinf(self.deadline) or least < run.ahead


def _shortfall(run: Run) -> tuple[float, float, int]:
    """Return by which factor draws fall short, in number or by divergences; of equals, the most."""
    count = run.chains.count
    return max(run.needed / count, run.divergent / TORN, 1.0), run.divergent, -count
