"""What a refinement found, and what its weights allow to say about it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..support.tables import Shown, Table
from .autoguides import AutoFlowNormal
from .diagnostics import ImportanceDiagnostics
from .joint import Joint
from .posterior import GuideResults
from .start import Start
from .verdict import Verdict, judge


@dataclass(frozen=True)
class Origin:
    """Where a refinement began, and its options: what going on and loading need.

    :ivar start: the joint density and the Gaussian.
    :ivar covers: whether the guide is one for several modes.
    :ivar options: of :func:`refine`, from ``flow`` to ``tempering``.
    """

    start: Start
    covers: bool
    options: dict[str, Any]


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


@dataclass(frozen=True, repr=False)
class Refinement(GuideResults, Shown):
    """What :func:`refine` returns: the guide, how good it was and is, and what to do with it.

    ``draws`` are the guide's, ``resampled`` the posterior's by importance weights; ``summary``,
    ``to_dataframe``, ``to_arviz``, ``log_likelihood``, ``loo``, ``predictive`` and ``plot`` use the
    weights where k-hat allows it. ``save`` and ``load`` keep it in a file, :meth:`refine` goes on.

    :ivar guide: the refined guide.
    :ivar before: :class:`~pyro_naf.infer.ImportanceDiagnostics` of the fitted guide.
    :ivar after: the same of the refined one; ``elbo``, ``elbo_se``, ``khat``, ``ess`` and
        ``log_evidence`` are its.
    :ivar losses: negative ELBO of every step; where several modes are learnt from draws, the mean
        of log q - log p over those.
    :ivar skipped: number of steps skipped because loss or gradient was not finite.
    :ivar seconds: time until the end of training, from the call on.
    :ivar missed: the part of the posterior's mass, from 0 to 1, that the guide does not cover but
        the modes found at the start, the Gaussian there and one three times as wide do.
    :ivar density: how the model's log-density was evaluated in the end: "captured and compiled",
        "captured", "vmapped", "vmapped with help" or "one draw after another", the fastest first.
    :ivar joint: the model's log-density; None for one loaded without the model.
    :ivar origin: where it began, and its options, to go on with.
    :ivar ended: why it ended: "good" where the Gaussian fits so well that no flow was trained, "no
        further gain" where no flow was better than the Gaussian, which is returned, "interrupted"
        by Ctrl-C, or "budget".
    """

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

    @property
    def elbo(self) -> float:
        """ELBO after refinement."""
        return self.after.elbo

    @property
    def elbo_se(self) -> float:
        """Standard error of :attr:`elbo`."""
        return self.after.elbo_se

    @property
    def khat(self) -> float:
        """k-hat after refinement."""
        return self.after.khat

    @property
    def ess(self) -> float:
        """Effective sample size after refinement."""
        return self.after.ess

    @property
    def log_evidence(self) -> float:
        """Importance-sampled log evidence after refinement."""
        return self.after.log_evidence

    @property
    def judgement(self) -> Verdict:
        """What the weights allow; of modes that no start found they know nothing."""
        options = {} if self.origin is None else self.origin.options
        return judge(self.after, self.missed, self.losses, self.seconds, options)

    @property
    def verdict(self) -> str:
        """What the weights allow, in one line: one of four words, why, and what may help.

        The words are "trust", "trust, do not weight", "weight" and "do not trust".
        """
        return self.judgement.text()

    def refine(
        self,
        seconds: float | None = None,
        steps: int | None = None,
        *,
        seed: int | None = None,
        progress: bool = True,
    ) -> Refinement:
        """Go on from here, with the options of the first call; this result stays as it is.

        The guide is never worse than this one, by the noise of two ELBOs.

        :param seconds: time for the whole call. With neither, 60 seconds or 4000 steps.
        :param steps: at most so many further steps.
        :param seed: seeds torch's generators for the duration of the call.
        :param progress: show a progress bar.
        :return: a result whose losses, steps and seconds are those of both.
        :raises ValueError: for a result that was loaded without its model.
        """
        from .continuing import go_on

        self._known_joint()
        return go_on(self, seconds, steps, seed, progress)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result to a file of tensors, numbers and strings, without its model.

        An older file stands until the new one is whole.

        :raises OSError: when it cannot be written.
        """
        from .saving import save_refinement

        save_refinement(self, path)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Refinement:
        """The result that :meth:`save` wrote, for its model; no code in the file is run.

        :param model: the model that was refined.
        :param args: its arguments, as are ``kwargs``: the data is not in the file.
        :raises ModelFileError: when the file is truncated, foreign or of another version.
        :raises ValueError: for a model with other latents.
        :raises OSError: when it cannot be read.
        """
        from .saving import load_refinement

        return load_refinement(path, model, args, kwargs)

    def table(self) -> Table:
        """ELBO, k-hat and effective sample size before and after, and the verdict."""
        rows = [
            [
                name,
                f"{d.elbo:.3f} +- {d.elbo_se:.3f}",
                f"{d.khat:.2f} +- {d.khat_se:.2f}",
                f"{d.ess:.0f} of {d.num_particles}",
            ]
            for name, d in (("before", self.before), ("after", self.after))
        ]
        evidence = f"{self.log_evidence:.3f} +- {self.after.log_evidence_se:.3f}"
        spent = f"{self.steps} steps in {self.seconds:.0f} s, density {self.density}"
        notes = [f"log evidence {evidence}; {spent}; ended: {self.ended}"]
        return Table(["", "ELBO", "k-hat", "ESS"], rows, [*notes, f"verdict {self.verdict}"])
