"""A refinement that goes on from where an earlier one ended."""

from __future__ import annotations

import copy
from dataclasses import replace

from ..support.seeding import seeded
from .arguments import check_arguments
from .autoguides import AutoFlowNormal
from .budget import Budget
from .capture import is_enabled
from .effort import SECONDS, STEPS, capture, chosen_kernel
from .gaussian import free_name
from .plans import refine_from
from .progress import Progress
from .refined import Previous, Refined


def go_on(
    result: Refined,
    seconds: float | None,
    steps: int | None,
    seed: int | None,
    progress: bool,
) -> Refined:
    """Do what :meth:`~pyro_naf.infer.Refinement.refine` does."""
    assert result.origin is not None
    start, options = result.origin.start, result.origin.options
    check_arguments(
        steps=steps, seconds=seconds, num_starts=1, **{name: options[name] for name in _CHECKED}
    )
    if steps is None and seconds is None:
        steps, seconds = STEPS, SECONDS
    budget = Budget(steps, seconds)
    if is_enabled():
        capture(start.joint, options["num_particles"], seconds)
    covers = result.origin.covers
    with seeded(seed), Progress(progress, seconds) as bar:
        found = refine_from(
            start,
            budget,
            options,
            good_ends=False,
            kernel=chosen_kernel(),
            bar=bar,
            previous=Previous(_copy(result.guide), result.guide, result.after, covers),
        )
    return replace(
        found,
        before=result.before,
        losses=result.losses + found.losses,
        skipped=result.skipped + found.skipped,
        seconds=result.seconds + found.seconds,
    )


#: Options that are checked with the budget.
_CHECKED = ("flow", "num_particles", "num_draws", "learning_rate", "tempering")


def _copy(guide: AutoFlowNormal) -> AutoFlowNormal | None:
    """A copy to train, with a name of its own in the param store; None where there is no flow."""
    if type(guide) is AutoFlowNormal:
        return None
    new = copy.deepcopy(guide)
    new._pyro_name = free_name(f"{type(guide).__name__}_refined")
    return new
