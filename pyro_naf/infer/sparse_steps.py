"""Natural-gradient steps of a Gaussian of a structure, by regressions of the score."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from .pace import Pace
from .score_regression import ScoreRegression
from .sparse_family import Family, SparseGaussian

#: Largest and smallest number of screened starts whose ELBO is estimated with all draws, since few
#: draws miss a heavy tail; and the share of the time for these estimates.
_FINALISTS, _FEWEST_FINALISTS, _CHOOSING = 16, 2, 0.15

#: Number of draws of a regression: smallest at first, per number of a row, and largest. It is
#: doubled where a step gains fewer nats than the last value.
_FEWEST_DRAWS, _DRAWS_A_NUMBER, _MOST_DRAWS, _SMALL_GAIN = 256, 6, 2048, 0.05

#: Largest number of steps, largest number of halvings of a step, and the gain in nats below which a
#: step with the largest number of draws is the last one.
_MOST_STEPS, _HALVINGS, _LEAST_GAIN = 60, 6, 0.01


class Steps:
    """Steps that raise the ELBO, with as many draws as a regression needs, doubled near the end."""

    def __init__(self, family: Family, pace: Pace, seconds: float) -> None:
        self.family, self.pace = family, pace
        self.rows = ScoreRegression(family.structure.adjacency, family.middle.device)
        affordable = pace.values(_CHOOSING * seconds) // family.num_draws
        self.num_finalists = min(max(affordable, _FEWEST_FINALISTS), _FINALISTS)
        needed = _DRAWS_A_NUMBER * self.rows.most
        self.count = 2 * math.ceil(max(_FEWEST_DRAWS, needed) / 2)

    def best(self, starts: Iterable[SparseGaussian], deadline: float) -> SparseGaussian:
        """Return the best of the starts, after steps."""
        starts = sorted(starts, key=lambda g: -g.elbo)
        finalists = [self.family.scored(start, few=False) for start in starts[: self.num_finalists]]
        best = max(finalists, key=lambda g: g.elbo, default=None)
        if best is None or not math.isfinite(best.elbo):
            raise ValueError(
                "the model's log-density is finite nowhere around its start; look for NaN in its "
                "data and for impossible values, or try another init_loc_fn"
            )
        return self.risen(best, deadline)

    def risen(
        self, best: SparseGaussian, deadline: float, max_steps: int = _MOST_STEPS
    ) -> SparseGaussian:
        """Make steps as long as they gain."""
        for _ in range(max_steps):
            found = self.step(best, deadline)
            gain = found.elbo - best.elbo
            best = found
            if time.monotonic() + self.pace.seconds(self.count) > deadline:
                break
            if gain < _SMALL_GAIN:  # no more than noise of the regressions
                if gain < _LEAST_GAIN and self.count >= _MOST_DRAWS:
                    break
                self.count = min(2 * self.count, max(self.count, _MOST_DRAWS))
        return best

    def step(self, start: SparseGaussian, deadline: float) -> SparseGaussian:
        """Choose the best of a natural-gradient step and its halvings, or the start."""
        z = start.draw(self.family.draws(self.count))
        scores = self.family.scores(z)
        good = scores.isfinite().all(1)
        if int(good.sum()) < max(self.count // 2, self.rows.most + 2):
            return start
        centred, scores = z[good] - start.loc, scores[good]
        hessian_mean = self.rows.regress(centred, scores)
        mean_score = scores.mean(0) - hessian_mean @ centred.mean(0)
        rate = 1.0
        for _ in range(_HALVINGS):
            precision = torch.lerp(start.precision, -hessian_mean, rate)
            if found := self.family.gaussian(start.loc, precision):
                move = found.factor @ (found.factor.mT @ mean_score)
                moved = self._moved(found, rate * move)
                if moved.elbo > start.elbo:
                    return self._farther(moved, rate * move, deadline)
            if time.monotonic() > deadline:
                break
            rate /= 2
        return start

    def _moved(self, gaussian: SparseGaussian, move: Tensor) -> SparseGaussian:
        return self.family.scored(replace(gaussian, loc=gaussian.loc + move), few=False)

    def _farther(self, best: SparseGaussian, move: Tensor, deadline: float) -> SparseGaussian:
        """Move the Gaussian on by the same way, by twice, and so on, as long as that is better.

        Along a funnel the curvature falls, and each natural-gradient step is too short.
        """
        while time.monotonic() < deadline:
            found = self._moved(best, move)
            if not found.elbo > best.elbo:
                break
            best, move = found, 2 * move
        return best
