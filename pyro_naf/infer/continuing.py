"""A refinement that goes on from where an earlier one ended."""

from __future__ import annotations

import copy
import os
from dataclasses import replace

from ..support.seeding import seeded
from ..training.progress import Progress
from .arguments import check_arguments
from .autoguides import AutoFlowNormal
from .budget import Budget
from .capture import is_enabled
from .checkpoints import Checkpoint
from .effort import SECONDS, STEPS, capture
from .gaussian import free_name
from .plans import Call, refine_from
from .refined import Previous, Refined


def go_on(
    result: Refined,
    *,
    seconds: float | None,
    steps: int | None,
    seed: int | None,
    progress: bool,
    checkpoint: str | os.PathLike[str] | None,
    checkpoint_seconds: float,
) -> Refined:
    """Do what :meth:`~pyro_naf.infer.Refinement.refine` does."""
    assert result.origin is not None
    start, options, settings = result.origin.start, result.origin.options, result.origin.settings
    checked = {name: options[name] for name in _CHECKED}
    lr = options["learning_rate"]
    check_arguments(steps=steps, seconds=seconds, num_starts=1, lr=lr, settings=settings, **checked)
    if steps is None and seconds is None:
        steps, seconds = STEPS, SECONDS
    budget, file, found = Budget(steps, seconds, settings), None, None
    if checkpoint is not None:
        asked = {"steps": steps, "seconds": seconds, "seed": seed}
        gone_on_from = {"steps before": result.steps, "ELBO before": result.elbo}
        file = Checkpoint(checkpoint, checkpoint_seconds, asked | gone_on_from)
        found = file.found(start.joint)
    if isinstance(found, Refined):
        return found
    covers = result.origin.covers
    if found is not None:
        budget.spend(found.budget["spent"])
        covers = found.stage != "one mode"
    if is_enabled():
        capture(start.joint, options["num_particles"], seconds, settings)
    with seeded(seed), Progress(progress, seconds) as bar:
        previous = Previous(_copy(result.guide), result.guide, result.after, covers)
        call = Call(budget, options, settings, bar, checkpoint=file, previous=previous, found=found)
        more = refine_from(start, call)
    both = replace(
        more,
        before=result.before,
        losses=result.losses + more.losses,
        skipped=result.skipped + more.skipped,
        seconds=result.seconds + more.seconds,
    )
    if file is not None:
        file.finish(both)
    return both


#: Options that are checked with the budget.
_CHECKED = ("flow", "num_particles", "num_draws", "tempering")


def _copy(guide: AutoFlowNormal) -> AutoFlowNormal | None:
    """Copy to train, with a name of its own in the param store; None where there is no flow."""
    if type(guide) is AutoFlowNormal:
        return None
    new = copy.deepcopy(guide)
    new._pyro_name = free_name(f"{type(guide).__name__}_refined")
    return new
