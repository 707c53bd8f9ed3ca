"""What importance weights allow to say about a guide, in one line with its remedy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .diagnostics import ImportanceDiagnostics
from .psis import khat_threshold

#: Posterior mass that a guide may lack.
MISSED = 0.05

#: Effective number of draws that weighted draws are recommended from.
_ENOUGH = 400

#: Largest distance, in standard deviations, that the weights may move a latent of a guide whose own
#: draws are trusted; and the smaller one where the weights are less even.
_MOVED, _MOVED_LESS = 0.1, 0.05

#: Effective draws per draw from which on weights are nearly even, rather even, and not uneven.
_NEARLY_EVEN, _EVEN, _NOT_UNEVEN = 0.95, 0.8, 0.5

#: k-hat above which weights have no finite mean: nothing is told from them unless nearly even.
_NO_MEAN = 1.0

#: Number of training steps that say nothing yet.
_HARDLY = 100

#: Steps at the end of training that are compared with as many before.
_WINDOW = 200


class Search(NamedTuple):
    """How modes were looked for.

    :ivar modes: number of modes found.
    :ivar climbs: number of climbs after which the time was over; None where it was enough.
    :ivar given: whether a guide was given, beside which modes were looked for.
    """

    modes: int
    climbs: int | None
    given: bool = False


class Verdict(NamedTuple):
    """One of "trust", "trust, do not weight", "weight", "do not trust"; why, and what to do.

    ``options`` are those of :func:`~pyro_naf.infer.refine` that may help, with values.
    """

    kind: str
    reason: str
    options: tuple[tuple[str, str], ...] = ()
    advice: str = ""

    def text(self, command_line: bool = False) -> str:
        """Write the verdict in one line, with options as Python or the command line writes them.

        >>> verdict = Verdict("do not trust", "k-hat is 0.9", (("num_starts", "64"),))
        >>> verdict.text()
        'do not trust: k-hat is 0.9; try num_starts=64'
        >>> verdict.text(command_line=True)
        'do not trust: k-hat is 0.9; try --num-starts 64'
        """
        shown = [
            f"--{name.replace('_', '-')} {value.strip(chr(39))}"
            if command_line
            else f"{name}={value}"
            for name, value in self.options
        ]
        tried = f"; try {' or '.join(shown)}" if shown else ""
        return f"{self.kind}: {self.reason}{tried}{self.advice and '; ' + self.advice}"


def judge(
    after: ImportanceDiagnostics,
    missed: float,
    losses: Sequence[float] | None = None,
    seconds: float = 60.0,
    options: Mapping[str, object] | None = None,
    search: Search | None = None,
) -> Verdict:
    """Judge a guide by its weights.

    :param after: diagnostics of its draws.
    :param missed: share of the posterior's mass that other proposals find and it does not.
    :param losses: negative ELBO of every training step; None where there was nothing to train.
    :param seconds: what the refinement took.
    :param options: those that it was given.
    :param search: how modes were looked for.
    """
    verdict = _judged(after, missed, losses, seconds, options or {})
    more = ("seconds", f"{_more(seconds):g}")
    if search is None:
        return verdict
    if missed > MISSED and search.modes > 1:  # they are known: there was no time to learn them
        return verdict._replace(options=(more,))
    if missed > MISSED and search.given:
        options_left = tuple(o for o in verdict.options if o[0] != "num_starts")
        advice = "or refine the model itself, which covers the modes found"
        return verdict._replace(options=options_left, advice=advice)
    if search.climbs is None or verdict.kind == "do not trust":
        return verdict
    reason = f"{verdict.reason}, but other modes were not looked for"
    if search.climbs == 0:
        return verdict._replace(reason=reason)
    count = "one climb" if search.climbs == 1 else f"{search.climbs} climbs"
    reason = f"{verdict.reason}, but other modes were looked for by {count} only"
    return verdict._replace(reason=reason, options=(*verdict.options, more))


def _judged(
    after: ImportanceDiagnostics,
    missed: float,
    losses: Sequence[float] | None,
    seconds: float,
    options: Mapping[str, object],
) -> Verdict:
    count, khat = after.num_particles, after.khat
    even, threshold = after.ess / count, khat_threshold(count)
    moved = 0.0 if math.isnan(after.doubt) else after.doubt
    shown = f"k-hat {khat:.2f} +- {after.khat_se:.2f}"
    if missed > MISSED:
        return Verdict(
            "do not trust",
            f"the guide misses modes with {missed:.0%} of the mass",
            _unused(options, num_starts="64", tempering="0.02"),
        )
    good = khat < threshold
    if moved <= _MOVED and even > _EVEN and good:
        reason = f"the guide's draws are close to the posterior where it has mass (ESS {even:.0%})"
        return Verdict("trust", reason)
    less_even = even > _NOT_UNEVEN and moved <= _MOVED_LESS
    if not good and (
        (moved <= _MOVED and even > _NEARLY_EVEN)
        or (khat < _NO_MEAN and (less_even or (moved <= _MOVED and even > _EVEN)))
    ):
        reason = (
            f"the weights hardly move the guide's draws (ESS {even:.0%}), but a few are too large "
            f"to be weighted by ({shown}, above {threshold:.2f})"
        )
        return Verdict("trust, do not weight", reason)
    if good and after.ess >= _ENOUGH:
        reason = f"take importance-weighted draws; they differ from the guide's (ESS {even:.0%}, "
        return Verdict("weight", f"{reason}{shown}, below {threshold:.2f})")
    reason = f"{shown}, above {threshold:.2f}"
    if good:
        reason = f"the weights are worth {after.ess:.0f} draws, fewer than {_ENOUGH}"
    if losses is not None and _is_rising(losses):
        reason += f", and {_trained(len(losses))}"
        return Verdict("do not trust", reason, (("seconds", f"{_more(seconds):g}"),))
    advice = "write the model non-centred (poutine.reparam), or take exact draws by mcmc_correct"
    return Verdict("do not trust", reason, _unused(options, flow="'ddsf'"), advice)


def _unused(options: Mapping[str, object], **proposed: str) -> tuple[tuple[str, str], ...]:
    """Pick the proposed options that the refinement was not given already."""
    return tuple(
        (name, value)
        for name, value in proposed.items()
        if str(options.get(name)) != value.strip("'")
    )


def _is_rising(losses: Sequence[float]) -> bool:
    """Whether the mean ELBO of the last steps is above the one before by more than its noise."""
    if len(losses) < _HARDLY:
        return True
    window = min(_WINDOW, len(losses) // 2)
    recent, earlier = losses[-window:], losses[-2 * window : -window]
    if not all(map(math.isfinite, [*recent, *earlier])):
        return False
    gain = statistics.fmean(earlier) - statistics.fmean(recent)
    noise = math.hypot(statistics.stdev(recent), statistics.stdev(earlier)) / window**0.5
    return gain > 3 * noise


def _trained(steps: int) -> str:
    if steps == 0:
        return "there was no time to train"
    return f"only {steps} steps were made" if steps < _HARDLY else "the ELBO was still rising"


def _more(seconds: float) -> float:
    """Four times the seconds, in a round number."""
    more = 4 * max(seconds, 1.0)
    scale = 10 ** math.floor(math.log10(more))
    return math.ceil(more / scale) * scale
