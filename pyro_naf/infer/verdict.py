"""What importance weights allow to say about a guide, in one line with its remedy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .diagnostics import ImportanceDiagnostics
from .psis import khat_threshold
from .settings import DEFAULTS, RefineSettings

#: k-hat above which weights have no finite mean and say nothing, unless they are nearly even.
_NO_MEAN = 1.0

#: Number of training steps below which training has hardly begun, whatever the losses say.
_HARDLY = 100

#: Number of steps at the end of training whose mean ELBO is compared with the steps before them.
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
    *,
    options: Mapping[str, object] | None = None,
    search: Search | None = None,
    settings: RefineSettings = DEFAULTS,
) -> Verdict:
    """Judge a guide by the importance weights of its draws.

    ==================== ======================================================================
    trust                k-hat is below its threshold, the weights are even, and they move no
                         latent far
    trust, do not weight the weights are even or move hardly anything, but k-hat is too large
    weight               k-hat is below its threshold, and the effective draws are many
    do not trust         all else, and whenever modes with much mass are missed
    ==================== ======================================================================

    The threshold of k-hat is :func:`~pyro_naf.infer.psis.khat_threshold`; what is even, far, many
    and much, the settings say.

    :param after: diagnostics of the guide's draws.
    :param missed: share of the posterior's mass that other proposals find and the guide does not.
    :param losses: negative ELBO of every training step; None where there was nothing to train.
    :param seconds: time that the refinement took.
    :param options: options that the refinement was given, which are not proposed again.
    :param search: how modes were looked for.
    :param settings: the bounds of the four words.
    """
    if missed > settings.largest_missed_mass:
        return _missing(missed, seconds, options or {}, search)
    verdict = _by_weights(after, settings)
    if verdict is None:
        return _refused(after, losses, seconds, options or {}, settings)
    return verdict if search is None else _with_search(verdict, seconds, search)


def _missing(
    missed: float, seconds: float, options: Mapping[str, object], search: Search | None
) -> Verdict:
    """Say that modes are missed, and what may find them or give time to learn them."""
    reason, advice = f"the guide misses modes with {missed:.0%} of the mass", ""
    remedies = _unused(options, num_starts="64", tempering="0.02")
    if search is not None and search.modes > 1:
        remedies = _more_time(seconds)
    elif search is not None and search.given:
        remedies = tuple(pair for pair in remedies if pair[0] != "num_starts")
        advice = "or refine the model itself, which covers the modes found"
    return Verdict("do not trust", reason, remedies, advice)


def _with_search(verdict: Verdict, seconds: float, search: Search) -> Verdict:
    """Add that modes were looked for in too short a time, where that is so."""
    if search.climbs is None:
        return verdict
    reason = f"{verdict.reason}{cut_short(search.climbs)}"
    options_left = (
        verdict.options if search.climbs == 0 else (*verdict.options, *_more_time(seconds))
    )
    return verdict._replace(reason=reason, options=options_left)


def cut_short(climbs: int | None) -> str:
    """Say of a search for modes that it was cut short after that number of climbs, if it was.

    >>> cut_short(1), cut_short(None)
    (', but other modes were looked for by one climb only', '')
    """
    if climbs is None:
        return ""
    if climbs == 0:
        return ", but other modes were not looked for"
    count = "one climb" if climbs == 1 else f"{climbs} climbs"
    return f", but other modes were looked for by {count} only"


def _by_weights(after: ImportanceDiagnostics, settings: RefineSettings) -> Verdict | None:
    """Find what the weights allow: the guide's draws, or weighted ones; None for neither."""
    count, khat = after.num_particles, after.khat
    even, threshold = after.ess / count, khat_threshold(count)
    shift = 0.0 if math.isnan(after.doubt) else after.doubt
    is_right, is_even = shift <= settings.largest_shift, even > settings.even_ess
    if khat < threshold and is_right and is_even:
        reason = f"the guide's draws are close to the posterior where it has mass (ESS {even:.0%})"
        return Verdict("trust", reason)
    if khat < threshold and after.ess >= settings.weighted_ess:
        return Verdict(
            "weight",
            "take importance-weighted draws; they differ from the guide's "
            f"(ESS {even:.0%}, {_khat(after)}, below {threshold:.2f})",
        )
    if khat < threshold:
        return None
    # Without a finite mean the weights tell nothing, unless they are nearly even.
    is_close = even > settings.uneven_ess and shift <= settings.uneven_shift
    has_mean = khat < _NO_MEAN and ((is_right and is_even) or is_close)
    if has_mean or (is_right and even > settings.nearly_even_ess):
        return Verdict(
            "trust, do not weight",
            f"the weights hardly move the guide's draws (ESS {even:.0%}), but a few are too large "
            f"to be weighted by ({_khat(after)}, above {threshold:.2f})",
        )
    return None


def _refused(
    after: ImportanceDiagnostics,
    losses: Sequence[float] | None,
    seconds: float,
    options: Mapping[str, object],
    settings: RefineSettings,
) -> Verdict:
    """Say why a guide is not trusted, and whether time or another guide may help."""
    threshold = khat_threshold(after.num_particles)
    reason = f"{_khat(after)}, above {threshold:.2f}"
    if after.khat < threshold:
        fewest = settings.weighted_ess
        reason = f"the weights are worth {after.ess:.0f} draws, fewer than {fewest:g}"
    if losses is not None and _is_rising(losses):
        reason += f", and {_trained(len(losses))}"
        return Verdict("do not trust", reason, _more_time(seconds))
    advice = "write the model non-centred (poutine.reparam), or take exact draws by mcmc_correct"
    return Verdict("do not trust", reason, _unused(options, flow="'ddsf'"), advice)


def _khat(after: ImportanceDiagnostics) -> str:
    return f"k-hat {after.khat:.2f} +- {after.khat_se:.2f}"


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


def _more_time(seconds: float) -> tuple[tuple[str, str], ...]:
    """Propose four times the seconds, in a round number."""
    more = 4 * max(seconds, 1.0)
    scale = 10 ** math.floor(math.log10(more))
    return (("seconds", f"{math.ceil(more / scale) * scale:g}"),)
