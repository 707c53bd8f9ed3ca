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
from .gaussian import LogDensity
from .mixture import Pool, Pushed
from .path_gradient import FlowPath

#: Steps over which the ELBO is averaged to see whether it still rises.
_WINDOW = 250

#: In the landing some draws are wider than the guide, by up to so much over the root of D. Their
#: radius exceeds the root of D, that of the guide's own, by up to so many units of its base.
_WIDER = 1.5

#: With a pool, draws of it and of the guide, each in multiples of those for climbing; and the rate,
#: in multiples of that: there is less noise, as no draw depends on the weights.
_FROM_POOL, _FASTER = 2, 3.0

#: How far below and above the median of the pool's the log-weights of draws are taken to be at most
#: in balancing. Below are the guide's own draws between modes, which cost the ELBO more than that;
#: above are those of a mode that it lacks, for which a bound makes this the forward divergence.
_UNEVEN = (-10.0, 1.0)

#: The weight, in learning, of draws of the Gaussian with the moments of all modes. Where x_1 lies
#: between modes nothing else holds the conditional of x_2, and the few draws there fly off.
_AROUND = 0.05

#: Largest norm of a gradient, and the number of steps in which the learning rate rises.
_CLIP, _WARM_UP = 10.0, 50

#: Share of the newest weights in the average of a landing: the last hundred steps or so.
_NEWEST = 0.01

#: Width of a layer up to which its learning rate is the whole one.
_WIDE = 32

#: Relative error of the scores that the landing takes, far below their noise.
_TOLERANCE = 1e-3

#: How far below and above the median the log-weight of a wider draw is taken to be at most; k-hat
#: depends on the large weights alone.
_OUTLYING = (-0.1, 1.0)

#: From this variance of the log-weights on, the wider draws count the less the larger it is: where
#: a part of the posterior is beyond the guide, as the neck of a funnel, it must not govern the fit.
_CLOSE = 1e-3

#: After a landing with a k-hat above this, another follows where the budget allows it.
_GOOD = 0.6

#: Draws that a candidate is judged by, and the share of the seconds after which no more are made.
_JUDGING, _PART_JUDGING = 50_000, 0.03

#: Seconds that a budget of steps alone is taken to have in judging.
_SECONDS = 100.0

#: ELBOs this near, in nats, are level: of such candidates that of the smallest k-hat is kept.
_LEVEL = 0.005


#: What is kept of training as it is.
_STATE = ("losses", "skipped", "skipped_in_a_row", "own")

#: What the progress bar calls a phase.
_PHASES = {"climb": "climbing", "land": "landing", "learn": "learning", "balance": "balancing"}


class _Candidate(NamedTuple):
    """Weights of the guide, and how good they are."""

    elbo: float
    khat: float
    weights: list[Tensor]


class Training:
    r"""Stochastic ascent of a guide's ELBO, and what became of it.

    Where the posterior has one mode, two phases follow one another, as the budget says:

    * *climb*: ascends the ELBO.
    * *land*: ascends it by its path gradient (sticking the landing), while the rate falls to zero
      and the weights are averaged. Added is the log-variance divergence
      :math:`\tfrac12 \mathrm{Var}_r[\log p(z) - \log q(z)]`, which is zero, with a gradient of no
      variance, at q = p for every distribution r (Richter et al. 2020 [arXiv:2010.10436]). Here r
      is the guide with a wider base. The ELBO sees the tails only as often as the guide's draws
      fall there; where they do not, the flow is arbitrary, and a few weights that are off make
      k-hat large. Deviations are bounded (Huber's loss), and it counts in full only where the fit
      is close already. While k-hat is above 0.6 and there is time, the guide lands again, from half
      the rate (warm restarts, Loshchilov & Hutter 2016 [arXiv:1608.03983]).

    Where it has several, the ELBO is no guide: once they are apart, only draws that pass between
    them tell it how their weights should change, and its gradient loses one. Then two other phases
    take their place, of a guide whose density is one pass (``inverse``), so that each of its
    conditionals is a mixture:

    * *learn*: maximises the likelihood of a pool of draws of the posterior, which are found by
      weighing Gaussians at its modes, and a little that of draws around all of them.
    * *balance*: descends the log-variance divergence, r being half that pool and half the guide
      with a wider base. Its gradient holds draws fixed, so that a mode's weight is set by all that
      lie in it. As any r will do, the guide's draws serve several steps: the next ones are made
      after 1 + D / 2, as the price of an inverse grows with D.

    Of the start and the ends of the landings the one with the smallest k-hat is kept, among those
    whose ELBO is within 0.005 nats of the best: a flow that has nothing to add stays as it was. Of
    several modes the end is kept, whatever its ELBO: that of a guide with all of them can be below
    that of a guide with one.

    :param guide: trained in place.
    :param target: the log-density p of its latent vectors, of the posterior up to a factor.
    :param pool: draws of the posterior, where it has several modes; the guide must be ``inverse``.
    :param estimate: unbiased estimates of the log-density for the gradients, by default itself.
    """

    def __init__(
        self,
        guide: AutoFlowNormal,
        target: LogDensity,
        learning_rate: float,
        num_particles: int,
        pool: Pool | None = None,
        estimate: LogDensity | None = None,
    ) -> None:
        self.guide, self.target, self.pool = guide, target, pool
        self.estimate = estimate or target
        self.num_particles, self.learning_rate = num_particles, learning_rate
        self.weights = list(guide.parameters())
        self.average: Average | None = None
        self._begin()
        self.own: tuple[Tensor, ...] = ()
        self.candidates: list[_Candidate] = []

    def _begin(self) -> None:
        self.rates, groups = _by_rate(self.guide)
        self.adam = torch.optim.Adam(groups, lr=self.learning_rate, betas=(0.9, 0.99), fused=True)
        self.losses: list[float] = []
        self.skipped = self.skipped_in_a_row = 0

    def seconds_of_a_step(self, most: float = math.inf) -> float:
        """Time a step, as the mean of its phases; nothing else is changed by it.

        :param most: seconds of a first step, which warms up, from which on it is not made again.
        """
        phases = (self._climb, self._land) if self.pool is None else (self._learn, self._balance)
        took = []
        for group in self.adam.param_groups:
            group["lr"] = 0.0
        with kept():
            for phase in phases:
                took.append(self._seconds_of(phase))  # it warms up
                if took[-1] < most:
                    took[-1] = self._seconds_of(phase)
                else:
                    break
        self._begin()
        self.own = ()
        return max(statistics.fmean(took), 1e-6)

    def _seconds_of(self, phase: Callable[[], Tensor]) -> float:
        begin = time.monotonic()
        self._step(phase())
        return time.monotonic() - begin

    def run(
        self,
        budget: Budget,
        progress: Progress,
        until: float = 1.0,
        after_step: Callable[[Training], None] = lambda training: None,
    ) -> None:
        """Trains until the guide is good, or the budget is spent.

        :param until: the fraction of the budget after which training is broken off; a further call
            goes on.
        :param after_step: called with this after each step.
        """
        losses = {
            "climb": self._climb,
            "land": self._land,
            "learn": self._learn,
            "balance": self._balance,
        }
        faster = 1.0 if self.pool is None else _FASTER
        if self.pool is None and not self.candidates:
            self.candidates = [self._judged(budget)]
        for phase in budget:
            if phase != "landed" and until <= budget.fraction < 1:
                return
            if phase == "landed":
                self._take_average()
                if self.pool is None:
                    self.candidates.append(self._judged(budget))
                    if self.candidates[-1].khat > _GOOD:
                        budget.land_again()
                continue
            self._set_rate(faster * budget.rate)
            if self._step(losses[phase]()) and phase != "climb":
                self.average = self.average or Average(self.weights)
                self.average.add(_NEWEST)
            if phase == "climb" and self._plateau(budget):
                budget.land()
            if len(self.losses) % 20 == 1:
                self._show(phase, budget, progress)
            after_step(self)
        self._keep_best()

    def state(self) -> dict[str, object]:
        """Weights, optimiser and candidates, for a checkpoint."""
        return {
            "guide": {name: t.detach() for name, t in self.guide.state_dict().items()},
            "adam": self.adam.state_dict(),
            "candidates": [c._asdict() for c in self.candidates],
            "average": [] if self.average is None else self.average.values,
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
        self.own = tuple(t.to(like) for t in self.own)
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
        if way := getattr(self.target, "way", None):
            shown["density"] = way
        progress.at(_PHASES[phase], budget.fraction, shown)

    def stop(self, budget: Budget) -> None:
        """Keep the best so far, after a run that Ctrl-C has ended."""
        self._take_average()
        if self.pool is None:
            self.candidates.append(self._judged(budget))
        self._keep_best()

    @torch.no_grad()
    def _keep_best(self) -> None:
        for weight in self.weights:
            weight.grad = None
        if self.candidates:
            best = max(c.elbo for c in self.candidates)
            level = [c for c in self.candidates if c.elbo >= best - _LEVEL]
            torch._foreach_copy_(self.weights, min(level, key=lambda c: c.khat).weights)

    def _take_average(self) -> None:
        if self.average is not None:
            self.average.take()
            self.average = None

    @torch.no_grad()
    def _judged(self, budget: Budget) -> _Candidate:
        transform, found = self.guide.get_transform(), []
        start, limit = time.monotonic(), _PART_JUDGING * (budget.seconds or _SECONDS)
        with kept():  # looking must not change what training does next
            for count in growing(_JUDGING):
                path = FlowPath(transform, self._normal(count))
                found.append((self.target(path.z) - path.log_q).double().cpu())
                if time.monotonic() - start > limit:
                    break
        log_w = torch.cat(found).nan_to_num(nan=-math.inf, posinf=-math.inf)
        khat = pareto_khat(log_w) if log_w.isfinite().any() else math.inf
        return _Candidate(float(log_w.mean()), khat, copies(self.weights))

    def _climb(self) -> Tensor:
        path = FlowPath(self.guide.get_transform(), self._normal(self.num_particles))
        loss = _mean(path.log_q - self.estimate(path.z))
        self.losses.append(loss.item())
        return loss

    def _learn(self) -> Tensor:
        """Minus the log-likelihood of draws of the pool, and of some around them."""
        assert self.pool is not None
        count = _FROM_POOL * self.num_particles
        z, log_p = self.pool.draw(count)
        around = self.pool.around.draw(self._normal(max(count // 16, 1)))
        log_q = self.guide.get_posterior().log_prob(torch.cat([z, around]))
        self.losses.append(_mean(log_q[:count].detach() - log_p).item())
        return -log_q[:count].mean() - _AROUND * log_q[count:].mean()

    def _balance(self) -> Tensor:
        """Return a stand-in with the gradient of the log-variance divergence at fixed draws."""
        assert self.pool is not None
        count = _FROM_POOL * self.num_particles
        posterior = self.guide.get_posterior()
        if len(self.losses) % (1 + self.guide.latent_dim // 2) == 0 or not self.own:
            with torch.no_grad():
                z = Pushed(posterior).draw(self._wide(count))
                self.own = z, self.target(z)
        pairs = zip(self.pool.draw(count), self.own, strict=True)
        z, log_p = (torch.cat(pair) for pair in pairs)
        log_q = posterior.log_prob(z)
        with torch.no_grad():
            log_w = log_p - log_q
            self.losses.append(_mean(-log_w[count:]).item())
            deviations = _huber(log_w, log_w[:count], _UNEVEN)
        return -((deviations - deviations.mean()) * log_q).mean()

    def _land(self) -> Tensor:
        count = self.num_particles
        base = torch.cat([self._normal(count), self._wide(max(count // 2, 2))])
        path = FlowPath(self.guide.get_transform(), base)
        z, log_q = path.z, path.log_q
        # At the wider draws, where the density may not be finite, it is not differentiated.
        log_p = self.estimate(torch.cat([z[:count], z[count:].detach()]))
        loss = _mean((log_q - log_p)[:count])
        self.losses.append(loss.item())
        # This stand-in has the gradient of log q(z) at fixed z.
        fixed = log_q - (path.score(_TOLERANCE) * z).sum(-1)
        log_w = (log_p - log_q).detach()
        part = (_CLOSE / log_w[:count].var()).clamp(max=1).nan_to_num(nan=0.0)
        outer = _huber(log_w[count:], log_w[count:], _OUTLYING)
        return loss - fixed[:count].mean() - part * (outer * fixed[count:]).mean()

    def _normal(self, count: int) -> Tensor:
        return torch.randn(count, self.guide.latent_dim).to(self.guide.loc)

    def _wide(self, count: int) -> Tensor:
        normal = self._normal(count)
        return normal * (1 + _WIDER / normal.shape[-1] ** 0.5 * torch.rand_like(normal[:, :1]))

    def _step(self, loss: Tensor) -> bool:
        """Whether the loss and its gradient were finite, and the step was taken."""
        # Not backward(): the model's own parameters must not collect gradients.
        grads = torch.autograd.grad(loss, self.weights, allow_unused=True)
        for weight, grad in zip(self.weights, grads, strict=True):
            weight.grad = grad
        is_bad = bool(guarded_step(self.adam, self.weights, torch.tensor(self.losses[-1]), _CLIP))
        self.skipped += is_bad
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if is_bad else 0
        refuse_bad_steps(
            self.skipped_in_a_row,
            f"last loss {self.losses[-1]}",
            "the model's log-density is not finite near the guide",
        )
        return not is_bad

    def _plateau(self, budget: Budget) -> bool:
        """Whether the last window's mean ELBO is not above the one's before by its noise."""
        if len(self.losses) % _WINDOW or budget.steps_climbing < 4 * _WINDOW:
            return False
        recent, earlier = (
            [v for v in self.losses[-2 * _WINDOW :][part] if math.isfinite(v)]
            for part in (slice(_WINDOW, None), slice(_WINDOW))
        )
        if min(len(recent), len(earlier)) < 2:
            return False
        noise = math.hypot(statistics.stdev(recent), statistics.stdev(earlier)) / _WINDOW**0.5
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


def _mean(losses: Tensor) -> Tensor:
    """Mean over the draws of finite density; infinite where fewer than half of them are.

    A draw where the model has no density has no gradient either. The other draws go on.
    """
    finite = losses.isfinite()
    if 2 * int(finite.sum()) < len(losses):
        return losses.mean()
    return torch.where(finite, losses, 0.0).sum() / finite.sum()


def _huber(log_weights: Tensor, typical: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Deviations ``(N,)`` from the median of the typical ones, bounded; zero where they are NaN."""
    finite = typical[typical.isfinite()]
    if not len(finite):
        return torch.zeros_like(log_weights)
    return (log_weights - finite.median()).clamp(*bounds).nan_to_num(nan=0.0)
