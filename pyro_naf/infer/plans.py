"""The plan of a refinement: which guide is trained, on what, and which one is kept.

A posterior with one mode is climbed. One with several is learnt from draws of Gaussians at its
modes, where those draws are worth something; where they are worth little, a guide first climbs from
one mode, as modes may be connected, and keeps climbing if it has lost none of the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from torch import Tensor

from ..support.seeding import kept
from ..training.progress import Progress
from .autoguides import AutoFlowNormal
from .better import finds_more, is_better, is_good, is_worse
from .budget import Budget
from .checkpoints import Checkpoint, Found
from .diagnostics import ImportanceDiagnostics, diagnose
from .graph import LEAST_DIM
from .laplace import Gaussian
from .mixture import Pool, Pushed, missed_mass, several, widened
from .objective import Objective
from .proposals import GaussianProposal, GuideProposal
from .refined import Origin, Previous, Refined
from .refined_guides import flow_guide, forget, gaussian_guide, sizes, start_at
from .settings import RefineSettings
from .start import Start
from .training import Training
from .unvisited import modes_beside

#: Number of draws whose marginals the first flow of a guide for several modes starts with.
_PLACING = 4000

#: Seconds after which a diagnosis weights no further draws where the time has no limit, and where
#: Ctrl-C was pressed.
_PATIENCE, _IMPATIENCE = 10.0, 2.0

#: Share of the time left for a further search for modes, where a Gaussian leaves nothing to train.
_FURTHER = 0.3

#: Number of training steps below which fewer draws a step do not help.
_HOPELESS = 50

#: Number of draws of each diagnosis that time is always kept for.
_FEWEST = 200

#: Effective draws per draw of a pool from which on a guide learns from the pool at once, as it does
#: with fewer latents than the second number; the effective number of draws below which it never
#: does; and the number of draws that judge a guide that climbs from one mode instead.
_EVEN_POOL, _FEW, _POOR_POOL, _JUDGES = 0.1, 10, 100, 20_000


@dataclass(frozen=True)
class Call:
    """A call of :func:`~pyro_naf.infer.refine`, or one that goes on from its result.

    :ivar budget: what it may take.
    :ivar options: those of :func:`~pyro_naf.infer.refine` from ``flow`` to ``tempering``, all.
    :ivar settings: the numbers that it decides by.
    :ivar bar: the progress bar.
    :ivar good_ends: whether a Gaussian that fits already is returned at once.
    :ivar fewest_particles: draws of a step are halved down to these, twice at most, where steps
        would be few; by default to those of the settings.
    :ivar checkpoint: what the state of training is written to.
    :ivar previous: an earlier refinement, whose guide is trained further.
    :ivar found: what a killed process had reached.
    """

    budget: Budget
    options: dict[str, Any]
    settings: RefineSettings
    bar: Progress
    good_ends: bool = False
    fewest_particles: int | None = None
    checkpoint: Checkpoint | None = None
    previous: Previous | None = None
    found: Found | None = None


def refine_from(start: Start, call: Call) -> Refined:
    """:func:`~pyro_naf.infer.refine` from a Gaussian that is known."""
    plan, budget = _Plan(start, call), call.budget
    if call.good_ends and not plan.origin.covers and is_good(plan.before, call.settings):
        plan = _searched_further(plan, start, call)
        if not plan.origin.covers:
            budget.elapsed = time.monotonic() - budget.start
            return plan.result(plan.gaussian(), plan.before, ended="good")
    budget.begin_training()
    training = plan.several_modes() if plan.origin.covers else plan.one_mode()
    return plan.finish(training)


def _searched_further(plan: _Plan, start: Start, call: Call) -> _Plan:
    """Look further for modes, where time had cut that short and no training needs what is left."""
    left = call.budget.left()
    if start.climbs is None or start.others is not None or not math.isfinite(left):
        return plan
    call.bar.phase("looking for other modes")
    factor = start.factor if start.factor.dim() == 2 else start.factor.diag()
    known = Gaussian(start.loc, factor, math.nan)
    most = call.settings.independent_latents
    modes, climbs = modes_beside(start.joint, known, _FURTHER * left, most, fewest=2)
    if climbs == 0:  # too many latents
        return plan
    if len(modes) > 1:
        return _Plan(replace(start, modes=modes, climbs=climbs), call)
    plan.origin = replace(plan.origin, start=replace(start, climbs=climbs))
    return plan


class _Plan:
    """One refinement: diagnostics of its start, and the training from there."""

    def __init__(self, start: Start, call: Call) -> None:
        self.start, self.joint, self.call = start, start.joint, call
        self.budget, self.options, self.settings = call.budget, call.options, call.settings
        self.previous, self.found = call.previous, call.found
        self.stage, self.generator = "one mode", torch.get_rng_state()
        self.count, self.limit = self._mixture_draws(), self._time_for_a_diagnosis()
        self.ended = "budget"
        budget, options, previous, found = self.budget, self.options, self.previous, self.found
        budget.keep(self.joint.pace.seconds(2 * _FEWEST))
        call.bar.phase("weighting the start")
        if previous is not None:
            covers, self.before = previous.covers, previous.after
        elif found is not None:
            covers, self.before = found.stage != "one mode", found.before
        else:
            # How many draws that takes must not change what training does.
            with kept():
                gaussian = GaussianProposal(self.joint, Gaussian(start.loc, start.factor, math.nan))
                self.before = diagnose(gaussian, options["num_draws"], self.limit)
            has_several = len(start.modes) > 1 and several(
                self.joint, start.modes, self.count, self.settings.second_mode_mass
            )
            covers = options["tempering"] < 1 or has_several
        self.origin = Origin(start, covers, options, self.settings)
        self.others = self._others(start.loc, start.factor)
        if found is not None:
            self.others, self.generator = found.others, found.generators[1]
            self.options = found.options

    def _mixture_draws(self) -> int:
        """Draws of the Gaussians at all modes, as many as a share of the time is worth."""
        most = self.settings.mixture_draws
        if self.budget.seconds is None:
            return most
        affordable = self.joint.pace.values(self._time_for_a_diagnosis())
        return max(_FEWEST, min(affordable, most))

    def _time_for_a_diagnosis(self) -> float:
        """Seconds after which a diagnosis weights no further draws."""
        seconds = self.budget.seconds
        return _PATIENCE if seconds is None else self.settings.diagnosis_share * seconds

    def _others(self, loc: Tensor, factor: Tensor) -> list[Gaussian]:
        """Gaussians that may find what the guide lacks."""
        known = self.start.modes + (self.start.others or [])
        return known + _around(loc, factor, (1.0, 3.0))

    def gaussian(self) -> AutoFlowNormal:
        """Make the guide that is the start's Gaussian."""
        return gaussian_guide(self.joint, self.start.loc, self.start.factor)

    def one_mode(self) -> Training:
        """Train a guide that climbs from the start."""
        start = self.start
        if self.found is not None:
            return self._resumed(self.found)
        if self.previous is not None and self.previous.guide is not None:
            return self._training(self.previous.guide)
        origins = sizes(self.origin, self._shortest())
        for origin in origins:
            guide = flow_guide(origin)
            pattern = start.pattern if guide.structure is not None else None
            guide.set_affine(start.loc, start.factor if pattern is None else pattern)
            training = self._affordable(guide, origin, is_last=origin is origins[-1])
            if training is not None:
                return training
            forget(guide)
        return self._training(self.gaussian())

    def _affordable(self, guide: AutoFlowNormal, origin: Origin, is_last: bool) -> Training | None:
        """Prepare a training of this guide; None where the time is too short.

        The last guide of several has fewer draws a step where that is what the time allows. The
        flow of a structure is trained in any case: its Gaussian is the best one already.
        """
        training, count = self._training(guide), origin.options["num_particles"]
        if self.budget.seconds is not None:
            wanted = self._wanted(is_last)
            asked = self.call.fewest_particles or self.settings.fewest_particles
            fewest = max(asked, count // 4) if is_last else count
            while True:
                steps = self._steps(training)
                fewer = training.objective.num_particles // 2
                if not _HOPELESS < steps < wanted or fewer < fewest:
                    break
                training.objective.num_particles = fewer
            if steps < wanted and guide.structure is None:
                return None
        options = origin.options | {"num_particles": training.objective.num_particles}
        self.origin = replace(origin, options=options)
        return training

    def _wanted(self, is_last: bool) -> int:
        if is_last or self.joint.dim < LEAST_DIM:
            return self.settings.fewest_steps
        return self.settings.fewest_steps_large

    def _shortest(self) -> float:
        """Seconds of a step from which on there is hardly time for any."""
        if self.joint.start.device.type != "cpu":
            return math.inf
        return self.budget.left_for_training() / _HOPELESS

    def _steps(self, training: Training) -> float:
        """Return the number of steps that there is time for; infinite without a limit."""
        if self.budget.seconds is None:
            return math.inf
        left = self.budget.left_for_training()
        return left / training.seconds_of_a_step(left / _HOPELESS)

    def several_modes(self) -> Training:
        """Return a guide that learns from draws at all modes, or one that climbs and loses none."""
        start, tempering = self.start, self.origin.options["tempering"]
        proposals = widened(start.modes)
        if tempering < 1:
            proposals += _around(start.loc, start.factor, start.widths)
        if self.found is not None:  # the draws that it had
            torch.set_rng_state(self.generator)
        self.generator = torch.get_rng_state()
        pool = Pool(self.joint, proposals, self.count)
        around = pool.around
        self.others = self._others(around.loc, around.factor)
        trained = None if self.previous is None else self.previous.guide
        is_poor = self.joint.dim >= _FEW and pool.ess < _EVEN_POOL * len(pool.z)
        is_new = self.found is None or self.found.stage == "trial"
        if trained is None and tempering == 1 and is_poor and is_new:
            if (training := self._trial(pool)) is not None:
                return training
        self.budget.several, self.stage = True, "learning"
        if self.found is not None:
            return self._resumed(self.found, pool)
        if trained is not None:
            return self._training(trained, pool)
        return self._learning(pool)

    def _learning(self, pool: Pool) -> Training:
        """Set up the training of the largest guide for several modes that there is time for."""
        around, is_full = pool.around, self.start.factor.dim() == 2
        *larger, smallest = sizes(self.origin, self._shortest())
        for origin in [*larger, smallest]:
            guide = flow_guide(origin)
            guide.set_affine(around.loc, around.factor if is_full else around.scale)
            start_at(guide, pool.draw(_PLACING)[0])
            training = self._training(guide, pool)
            if origin is smallest or self._steps(training) >= self._wanted(is_last=False):
                break
            forget(guide)
        self.origin = origin
        return training

    def _trial(self, pool: Pool) -> Training | None:
        """Climb from one mode; None where that guide does not go on, with time left to learn."""
        several_modes, self.origin = self.origin, replace(self.origin, covers=False)
        self.stage = "trial"
        training = self.one_mode()
        self.found = None
        self.run(training, self.budget.part_of_rest(self.settings.trial_share))
        if self.ended == "interrupted" or pool.ess < _POOR_POOL:
            self.stage = "one mode"
            return training
        with kept():
            found = self._diagnosed(training.guide, _JUDGES, self.limit)
            law = Pushed(training.guide.get_posterior())
            missed = missed_mass(
                self.joint, law, found.log_evidence, self.others, _JUDGES, self.limit
            )
        if missed <= self.settings.largest_missed_mass:
            self.stage = "one mode"
            return training
        forget(training.guide)
        self.origin = several_modes
        return None

    def _resumed(self, found: Found, pool: Pool | None = None) -> Training:
        """Resume the training that a killed process was in."""
        self.origin = replace(self.origin, options=found.sized)
        guide = flow_guide(self.origin) if found.has_flow else self.gaussian()
        training = self._training(guide, pool)
        training.load_state(found.training)
        self.budget.load_state(found.budget)
        torch.set_rng_state(found.generators[0])
        return training

    def _training(self, guide: AutoFlowNormal, pool: Pool | None = None) -> Training:
        joint, options = self.joint, self.origin.options
        estimate = joint.minibatch if joint.subsampled else joint
        rate, particles = options["learning_rate"], options["num_particles"]
        return Training(Objective(guide, joint, particles, pool, estimate), rate)

    def run(self, training: Training, until: float = 1.0) -> None:
        """Train for a part of the budget, or until Ctrl-C."""
        # In training a NaN must reach the loss.
        with pyro.validation_enabled(False):
            try:
                training.run(self.budget, self.call.bar, until, self._write)
            except KeyboardInterrupt:
                training.stop(self.budget)
                self.ended, self.limit = "interrupted", min(self.limit, _IMPATIENCE)

    def _write(self, training: Training) -> None:
        if self.call.checkpoint is not None:
            self.call.checkpoint.write(self, training)

    def finish(self, training: Training) -> Refined:
        """Train for the rest of the budget, and keep the better of the guide and its start."""
        if self.ended != "interrupted":
            self.run(training)
        guide, previous = training.guide, self.previous
        self.call.bar.phase("weighting draws")
        limit = min(self.limit, max(self.budget.left() / 2, 0.0))
        after = self._diagnosed(guide, self.origin.options["num_draws"], limit)
        if previous is None:
            no_gain = is_worse(after, self.before, self.settings)
            # A few draws between modes cost the ELBO much, and the evidence little.
            no_gain &= not (self.origin.covers and finds_more(after, self.before))
        else:
            no_gain = not is_better(after, self.before, self.settings)
        if no_gain:
            forget(guide)
            guide = self.gaussian() if previous is None else previous.kept
            after = self.before
            if self.ended == "budget" and training.losses:
                self.ended = "no further gain"
        return self.result(guide, after, training, self.ended)

    def _diagnosed(
        self, guide: AutoFlowNormal, count: int, seconds: float
    ) -> ImportanceDiagnostics:
        joint = self.joint
        return diagnose(GuideProposal(joint, guide, joint.args, joint.kwargs), count, seconds)

    def result(
        self,
        guide: AutoFlowNormal,
        after: ImportanceDiagnostics,
        training: Training | None = None,
        ended: str = "budget",
    ) -> Refined:
        """Return the result: the guide, and what it lacks of the posterior's mass."""
        joint, budget = self.joint, self.budget
        # A density too expensive for all draws of the diagnostics is too expensive for these too.
        count = min(self.settings.mixture_draws, round(0.4 * after.num_particles))
        law = Pushed(guide.get_posterior())
        patience = min(budget.left(), self._time_for_a_diagnosis())
        missed = missed_mass(joint, law, after.log_evidence, self.others, count, patience)
        losses = [] if training is None else training.losses
        skipped = 0 if training is None else training.skipped
        way, elapsed = joint.way, budget.elapsed
        return Refined(
            guide,
            self.before,
            after,
            losses,
            skipped,
            elapsed,
            missed,
            way,
            ended,
            joint,
            self.origin,
        )


def _around(loc: Tensor, factor: Tensor, widths: Sequence[float]) -> list[Gaussian]:
    """Return the Gaussian of a guide's affine map, multiplied in width by each of the numbers."""
    return [Gaussian(loc, width * factor, math.nan) for width in widths]
