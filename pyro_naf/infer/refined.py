"""What a refinement found, and what its weights allow to say about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..support.tables import Shown, Table
from .autoguides import AutoFlowNormal
from .diagnostics import ImportanceDiagnostics
from .joint import Joint
from .posterior import GuideResults
from .settings import DEFAULTS, RefineSettings
from .start import Start
from .verdict import Search, Verdict, judge


@dataclass(frozen=True)
class Origin:
    """Where a refinement began, and its options: what going on and loading need.

    :ivar start: the joint density and the Gaussian.
    :ivar covers: whether the guide is one for several modes.
    :ivar options: of :func:`refine`, from ``flow`` to ``tempering``.
    :ivar settings: the numbers that it decides by.
    """

    start: Start
    covers: bool
    options: dict[str, Any]
    settings: RefineSettings = DEFAULTS


@dataclass(frozen=True)
class Previous:
    """An earlier refinement, for one that goes on.

    :ivar guide: a copy of its guide, to be trained; None where it has no flow.
    :ivar kept: the guide itself, for where nothing better is found.
    :ivar after: its diagnostics.
    :ivar covers: whether the guide is one for several modes.
    """

    guide: AutoFlowNormal | None
    kept: AutoFlowNormal
    after: ImportanceDiagnostics
    covers: bool


class _After:
    """A number of the diagnostics after refinement, under its name there."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, result: Refined | None, owner: type) -> float:
        if result is None:  # of the class, as help() asks for it
            return self  # type: ignore[return-value]
        found: float = getattr(result.after, self.name)
        return found


@dataclass(frozen=True, repr=False)
class Refined(GuideResults, Shown):
    """What was found, with what its weights say of it; :class:`Refinement` explains the fields."""

    guide: AutoFlowNormal
    before: ImportanceDiagnostics
    after: ImportanceDiagnostics
    losses: list[float] = field(repr=False)
    skipped: int
    seconds: float
    missed: float = 0.0
    density: str = "vmapped"
    ended: str = "budget"
    joint: Joint | None = field(default=None, repr=False)
    origin: Origin | None = field(default=None, repr=False)

    @property
    def steps(self) -> int:
        """Number of training steps."""
        return len(self.losses)

    elbo = _After("ELBO after refinement.")
    elbo_se = _After("Standard error of :attr:`elbo`.")
    khat = _After("k-hat after refinement.")
    ess = _After("Effective sample size after refinement.")
    log_evidence = _After("Importance-sampled log evidence after refinement.")

    @property
    def judgement(self) -> Verdict:
        """What the weights allow; of modes that no start found they know nothing."""
        losses = None if self.ended == "good" else self.losses
        if self.origin is None:
            return judge(self.after, self.missed, losses, self.seconds)
        start = self.origin.start
        return judge(
            self.after,
            self.missed,
            losses,
            self.seconds,
            options=self.origin.options,
            search=Search(len(start.modes), start.climbs, start.others is not None),
            settings=self.origin.settings,
        )

    @property
    def verdict(self) -> str:
        """What the weights allow, in one line: one of four words, why, and what may help.

        The words are "trust", "trust, do not weight", "weight" and "do not trust".
        """
        return self.judgement.text()

    def table(self) -> Table:
        """ELBO, k-hat and effective sample size before and after, and the verdict."""
        rows = [
            [
                name,
                d.shown_elbo(),
                f"{d.khat:.2f} +- {d.khat_se:.2f}",
                f"{d.ess:.0f} of {d.num_particles}",
            ]
            for name, d in (("before", self.before), ("after", self.after))
        ]
        evidence = f"{self.log_evidence:.3f} +- {self.after.log_evidence_se:.3f}"
        spent = f"{self.steps} steps in {self.seconds:.0f} s, density {self.density}"
        notes = [f"log evidence {evidence}; {spent}; ended: {self.ended}"]
        return Table(["", "ELBO", "k-hat", "ESS"], rows, [*notes, f"verdict {self.verdict}"])
