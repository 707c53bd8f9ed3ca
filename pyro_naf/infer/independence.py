r"""Independence Metropolis mixed with random walks: exact chains whose densities come in batches.

For each draw a chain tries :data:`_TRIES` draws of the guide and then one step of a random walk.
The former do not depend on the chain, and are weighted in one batch. A random walk starts from the
chain's state, but where the guide is good nearly all states are known beforehand: whether the last
walk was taken or not, the next tries lead to one state. So a block of draws is followed as if no
walk were taken, the walks from the states on that path are weighted in one batch, and the path is
followed again with these. The first walk that was wrong is right after each round; when all are
right the path is the chain's, as if it had been made draw after draw.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .base_space import BaseSpace
from .chains import Counts

#: Draws of the guide that a chain tries for each step of its random walk.
_TRIES = 8

#: Number of draws of each chain that are made together.
_BLOCK = 50

#: Share of steps of the random walk to be taken, and the gain by which the logarithm of their
#: length follows in the first block of the warm-up.
_LOCAL_RATE, _GAIN = 0.4, 4.0

Rows = np.ndarray


def independence(
    space: BaseSpace, eps: Tensor, num_samples: int, warmup_steps: int, progress: bool
) -> tuple[Tensor, Counts]:
    """Run chains of independence Metropolis mixed with random walks."""
    log_weight = space.log_weight(eps).cpu().numpy()
    step, states, accepted, evaluations, updates = 0.5, list[Tensor](), 0.0, 0, 0
    with tqdm(total=warmup_steps + num_samples, disable=not progress, desc="mcmc") as bar:
        for left, is_warm_up in ((warmup_steps, True), (num_samples, False)):
            for done in range(0, left, _BLOCK):
                count = min(_BLOCK, left - done)
                block = _Block(space, eps, log_weight, step, count)
                path = block.run()
                eps, log_weight = path[-1], block.log_weight[block.after[-1]]
                if is_warm_up:
                    updates += 1
                    step *= math.exp(_GAIN * updates**-0.5 * (block.local_rate - _LOCAL_RATE))
                else:
                    states.append(path)
                    accepted += block.rate * count / num_samples
                    evaluations += block.evaluations
                bar.update(count)
    eps = torch.cat(states).transpose(0, 1)
    found = space.unconstrained(eps.flatten(0, 1)).unflatten(0, eps.shape[:2])
    return found, {"accept_rate": accepted, "evaluations": evaluations}


class _Block:
    """Consecutive draws of all chains. Points are known by their rows in one growing table.

    :param start: where the chains are ``(C, *rows, D)``; ``log_weight`` their log-weights ``(C,)``.
    :param step: length of a step of the random walk.
    :param count: number of draws T.
    :ivar before: states from which the random walks start, as rows ``(T, C)``.
    :ivar after: states after them, which are the draws.
    :ivar evaluations: number of points whose density was evaluated.
    """

    def __init__(
        self, space: BaseSpace, start: Tensor, log_weight: np.ndarray, step: float, count: int
    ) -> None:
        chains = len(start)
        self.space, self.evaluations = space, 0
        self.points = start
        self.log_weight = log_weight
        self.log_density = log_weight + _numbers(space.log_base(start))
        self.begin = np.arange(chains)
        tries = space.normal(count, _TRIES, chains)
        self.tries = self._add(tries.flatten(0, 2)).reshape(count, _TRIES, chains)
        self.moves = step * space.normal(count, chains)
        uniform = torch.rand(count, _TRIES + 1, chains, dtype=torch.double)
        self.thresholds = uniform.log().numpy()
        # Ends of the random walks, and the states that each was weighted for; none yet.
        self.walks = np.zeros((count, chains), int)
        self.parents = np.full((count, chains), -1)
        self.before, self.after = self.walks.copy(), self.walks.copy()
        self.ratios = np.zeros(self.thresholds.shape)

    def run(self) -> Tensor:
        """Return the draws ``(T, C, *rows, D)``."""
        while True:
            self._follow()
            unknown = self.parents != self.before
            if not unknown.any():
                return self.points[torch.as_tensor(self.after)]
            rows = self.before[unknown]
            start = self.points[torch.as_tensor(rows)]
            self.walks[unknown] = self._add(start + self.moves[torch.as_tensor(unknown)])
            self.parents[unknown] = rows

    def _add(self, eps: Tensor) -> Rows:
        """Evaluate points and add them to the table; their rows."""
        first = len(self.points)
        log_weight = _numbers(self.space.log_weight(eps))
        log_density = log_weight + _numbers(self.space.log_base(eps))
        self.points = torch.cat([self.points, eps])
        self.log_weight = np.concatenate([self.log_weight, log_weight])
        self.log_density = np.concatenate([self.log_density, log_density])
        self.evaluations += len(eps)
        return np.arange(first, len(self.points))

    def _follow(self) -> None:
        """Follow the path by what is known; a walk that is not weighted is not taken."""
        state, weight, density = self.begin, self.log_weight, self.log_density
        for t, (tries, thresholds) in enumerate(zip(self.tries, self.thresholds, strict=True)):
            ratios = self.ratios[t]
            for k, row in enumerate(tries):
                ratios[k] = weight[row] - weight[state]
                state = np.where(thresholds[k] < ratios[k], row, state)
            walk = self.walks[t]
            self.before[t] = state
            ratios[-1] = density[walk] - density[state]
            is_taken = (thresholds[-1] < ratios[-1]) & (self.parents[t] == state)
            self.after[t] = state = np.where(is_taken, walk, state)

    @property
    def rate(self) -> float:
        """Mean probability by which a draw of the guide was taken."""
        return float(np.exp(self.ratios[:, :-1].clip(max=0)).mean())

    @property
    def local_rate(self) -> float:
        """Mean probability by which a step of the random walk was taken."""
        return float(np.exp(self.ratios[:, -1].clip(max=0)).mean())


def _numbers(log_values: Tensor) -> np.ndarray:
    return log_values.double().cpu().numpy()
