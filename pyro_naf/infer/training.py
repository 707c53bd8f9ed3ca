"""Training of a flow guide within a budget: it climbs, or learns from draws, and lands."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..support.seeding import kept
from ..training.averages import Average, copies
from ..training.progress import Progress
from ..training.steps import guarded_step, refuse_bad_steps, warm_up
from .autoguides import AutoFlowNormal
from .budget import Budget
from .diagnostics import growing, pareto_khat
from .objective import FASTER, Loss, Objective
from .path_gradient import FlowPath

#: Largest norm of a gradient, and the number of steps in which the learning rate rises.
_CLIP, _WARM_UP = 10.0, 50

#: Share of the newest weights in the average of a landing: the last hundred steps or so.
_NEWEST = 0.01

#: Width of a layer up to which its learning rate is the whole one.
_WIDE = 32

#: Seconds that a budget of steps alone is taken to have in judging.
_SECONDS = 100.0

#: What is kept of training as it is.
_STATE = ("losses", "skipped", "skipped_in_a_row")

#: What the progress bar calls a phase.
_PHASES = {"climb": "climbing", "land": "landing", "learn": "learning", "balance": "balancing"}


class _Candidate(NamedTuple):
    """Weights of the guide, and how good they are."""

    elbo: float
    khat: float
    weights: list[Tensor]


class Training:
    r"""Stochastic ascent of a guide's ELBO by the phases of its objective, and what became of it.

    While k-hat is above ``landing_khat`` of the settings and there is time, the guide lands again,
    from half the rate (warm restarts, Loshchilov & Hutter 2016 [arXiv:1608.03983]).

    The start and the ends of the landings are candidates. Of those whose ELBO is within
    ``level_elbo`` nats of the best the one with the smallest k-hat is kept, so that a flow that has
    nothing to add stays as it was. Of several modes the end is kept, whatever its ELBO: a guide
    with all modes can have a lower ELBO than a guide with one.

    :param objective: whose guide is trained in place.
    """

    def __init__(self, objective: Objective, learning_rate: float) -> None:
        self.objective, self.guide = objective, objective.guide
        self.learning_rate = learning_rate
        self.weights = list(self.guide.parameters())
        self.average: Average | None = None
        self._begin()
        self.candidates: list[_Candidate] = []

    def _begin(self) -> None:
        self.rates, groups = _by_rate(self.guide)
        self.adam = torch.optim.Adam(groups, lr=self.learning_rate, betas=(0.9, 0.99), fused=True)
        self.losses: list[float] = []
        self.skipped = self.skipped_in_a_row = 0
        self.objective.own = ()

    def seconds_of_a_step(self, most: float = math.inf) -> float:
        """Time a step, as the mean of its phases; nothing else is changed by it.

        :param most: seconds of a first step, which warms up, from which on it is not made again.
        """
        took = []
        for group in self.adam.param_groups:
            group["lr"] = 0.0
        with kept():
            for phase in self.objective.phases:
                took.append(self._seconds_of(phase))  # it warms up
                if took[-1] < most:
                    took[-1] = self._seconds_of(phase)
                else:
                    break
        self._begin()
        return max(statistics.fmean(took), 1e-6)

    def _seconds_of(self, phase: str) -> float:
        begin = time.monotonic()
        self._step(self.objective.of(phase, len(self.losses)))
        return time.monotonic() - begin

    def run(
        self,
        budget: Budget,
        progress: Progress,
        until: float = 1.0,
        after_step: Callable[[Training], None] = lambda training: None,
    ) -> None:
        """Train until the guide is good, or the budget is spent.

        :param until: the fraction of the budget after which training is broken off; a further call
            goes on.
        :param after_step: called with this after each step.
        """
        pool = self.objective.pool
        faster = 1.0 if pool is None else FASTER
        if pool is None and not self.candidates:
            self.candidates = [self._judged(budget)]
        for phase in budget:
            if phase != "landed" and until <= budget.fraction < 1:
                return
            if phase == "landed":
                self._take_average()
                if pool is None:
                    self.candidates.append(self._judged(budget))
                    if self.candidates[-1].khat > budget.settings.landing_khat:
                        budget.land_again()
                continue
            self._set_rate(faster * budget.rate)
            loss = self.objective.of(phase, len(self.losses), budget.steps_left())
            if self._step(loss) and phase != "climb":
                self.average = self.average or Average(self.weights)
                self.average.add(_NEWEST)
            if phase == "climb" and self._plateau(budget):
                budget.land()
            if len(self.losses) % 20 == 1:
                self._show(phase, budget, progress)
            after_step(self)
        self._keep_best(budget.settings.level_elbo)

    def state(self) -> dict[str, object]:
        """Weights, optimiser and candidates, for a checkpoint."""
        return {
            "guide": {name: t.detach() for name, t in self.guide.state_dict().items()},
            "adam": self.adam.state_dict(),
            "candidates": [c._asdict() for c in self.candidates],
            "average": [] if self.average is None else self.average.values,
            "own": self.objective.own,
            **{name: getattr(self, name) for name in _STATE},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`; weights and draws return to the device of the guide."""
        like = self.guide.loc
        self.guide.load_state_dict(state["guide"])
        self.adam.load_state_dict(state["adam"])
        for name in _STATE:
            setattr(self, name, state[name])
        if state["average"]:
            self.average = Average(self.weights)
            torch._foreach_copy_(self.average.values, state["average"])
        self.objective.own = tuple(t.to(like) for t in state["own"])
        self.candidates = [
            _Candidate(c["elbo"], c["khat"], [t.to(like.device) for t in c["weights"]])
            for c in state["candidates"]
        ]

    def _set_rate(self, part: float) -> None:
        """Give every group of weights its part of the learning rate, which rises at first."""
        rate = self.learning_rate * part * warm_up(len(self.losses), _WARM_UP)
        for share, group in zip(self.rates, self.adam.param_groups, strict=True):
            group["lr"] = share * rate

    def _show(self, phase: str, budget: Budget, progress: Progress) -> None:
        # Under draws of the posterior the mean of log p - log q bounds from above.
        bound = "EUBO" if phase == "learn" else "ELBO"
        shown = {
            "step": str(len(self.losses)),
            bound: f"{-statistics.fmean(self.losses[-50:]):.2f}",
        }
        if way := getattr(self.objective.target, "way", None):
            shown["density"] = way
        progress.at(_PHASES[phase], budget.fraction, shown)

    def stop(self, budget: Budget) -> None:
        """Keep the best so far, after a run that Ctrl-C has ended."""
        self._take_average()
        if self.objective.pool is None:
            self.candidates.append(self._judged(budget))
        self._keep_best(budget.settings.level_elbo)

    @torch.no_grad()
    def _keep_best(self, difference: float) -> None:
        for weight in self.weights:
            weight.grad = None
        if self.candidates:
            best = max(c.elbo for c in self.candidates)
            level = [c for c in self.candidates if c.elbo >= best - difference]
            torch._foreach_copy_(self.weights, min(level, key=lambda c: c.khat).weights)

    def _take_average(self) -> None:
        if self.average is not None:
            self.average.take()
            self.average = None

    @torch.no_grad()
    def _judged(self, budget: Budget) -> _Candidate:
        transform, found = self.guide.get_transform(), []
        settings, start = budget.settings, time.monotonic()
        limit = settings.judging_share * (budget.seconds or _SECONDS)
        with kept():  # looking must not change what training does next
            for count in growing(settings.judging_draws):
                path = FlowPath(transform, self.objective.normal(count))
                found.append((self.objective.target(path.z) - path.log_q).double().cpu())
                if time.monotonic() - start > limit:
                    break
        log_w = torch.cat(found).nan_to_num(nan=-math.inf, posinf=-math.inf)
        khat = pareto_khat(log_w) if log_w.isfinite().any() else math.inf
        return _Candidate(float(log_w.mean()), khat, copies(self.weights))

    def _step(self, loss: Loss) -> bool:
        """Whether the loss and its gradient were finite, and the step was taken."""
        self.losses.append(loss.value)
        for weight, grad in zip(self.weights, loss.gradients(self.weights), strict=True):
            # Fused Adam takes gradients to lie in memory as their weights do.
            weight.grad = None if grad is None else grad.contiguous()
        is_bad = bool(guarded_step(self.adam, self.weights, torch.tensor(loss.value), _CLIP))
        self.skipped += is_bad
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if is_bad else 0
        refuse_bad_steps(
            self.skipped_in_a_row,
            f"last loss {loss.value}",
            "the model's log-density is not finite near the guide",
        )
        return not is_bad

    def _plateau(self, budget: Budget) -> bool:
        """Whether the last window's mean ELBO is not above the one's before by its noise."""
        window = budget.settings.plateau_steps
        if len(self.losses) % window or budget.steps_climbing < 4 * window:
            return False
        recent, earlier = (
            [v for v in self.losses[-2 * window :][part] if math.isfinite(v)]
            for part in (slice(window, None), slice(window))
        )
        if min(len(recent), len(earlier)) < 2:
            return False
        noise = math.hypot(statistics.stdev(recent), statistics.stdev(earlier)) / window**0.5
        return statistics.fmean(earlier) - statistics.fmean(recent) < noise


def _by_rate(guide: AutoFlowNormal) -> tuple[list[float], list[dict[str, object]]]:
    """Learning rates, as parts of the whole, and the weights that have each.

    A step of Adam moves all weights alike, and what they add up to by as much as there are inputs:
    the rate of a wide layer falls with its width (Yang et al. 2022 [arXiv:2203.03466], section 3).
    """
    groups: dict[float, list[Tensor]] = {}
    for name, weight in guide.named_parameters():
        is_layer = name.startswith("flow.") and "weight" in name and weight.dim() > 1
        width = weight.shape[-1] if is_layer else 1
        groups.setdefault(min(1.0, _WIDE / width), []).append(weight)
    return list(groups), [{"params": weights} for weights in groups.values()]
