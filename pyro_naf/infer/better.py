"""Which of two guides is better: whether a refinement ends early, and what it returns."""

from __future__ import annotations

import math

from .diagnostics import ImportanceDiagnostics
from .settings import DEFAULTS, RefineSettings

#: k-hat from which on weights have no mean; number of draws from which on an evidence counts.
_NO_MEAN, _FEWEST = 1.0, 200

#: Effective draws per draw from which on a Gaussian is good whatever k-hat is.
_EVEN = 0.9999


def is_good(found: ImportanceDiagnostics, settings: RefineSettings = DEFAULTS) -> bool:
    """Whether a Gaussian leaves nothing to a flow."""
    share = found.ess / found.num_particles
    # Of weights that are all but equal k-hat says how rounding is distributed.
    return share > _EVEN or (share > settings.good_ess and found.khat < settings.good_khat)


def is_worse(
    after: ImportanceDiagnostics,
    before: ImportanceDiagnostics,
    settings: RefineSettings = DEFAULTS,
) -> bool:
    """Whether the ELBO fell by more than the noise of its estimates, or the largest fall allowed.

    Of few draws whose weights have heavy tails the noise says that anything may be level.
    """
    if not math.isfinite(after.elbo):
        return math.isfinite(before.elbo)
    noise = 2 * math.hypot(after.elbo_se, before.elbo_se)
    return after.elbo < before.elbo - min(noise, settings.largest_fall)


def finds_more(after: ImportanceDiagnostics, before: ImportanceDiagnostics) -> bool:
    """Whether the estimate of the evidence rose, by more than its noise.

    Of weights without a mean, or of hardly any draws, the noise is not known.
    """
    if not after.khat < _NO_MEAN or after.num_particles < _FEWEST:
        return False
    noise = math.hypot(after.log_evidence_se, before.log_evidence_se)
    return after.log_evidence > before.log_evidence + 2 * noise


def is_better(
    after: ImportanceDiagnostics,
    before: ImportanceDiagnostics,
    settings: RefineSettings = DEFAULTS,
) -> bool:
    """Whether the ELBO rose by more than that noise, or is level and the weights are more even."""
    if is_worse(after, before, settings):
        return False
    is_level = not is_worse(before, after, settings)
    share = after.ess / after.num_particles - before.ess / before.num_particles
    return share > 0 if is_level else True
