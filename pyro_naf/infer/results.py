"""What a refinement found, and what its weights allow to say about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from .autoguides import AutoFlowNormal
from .diagnostics import ImportanceDiagnostics
from .psis import khat_threshold

#: Minimum effective number of draws for weighted draws to be recommended.
_ENOUGH = 400


@dataclass(frozen=True)
class Refinement:
    """What :func:`refine` returns: the guide, and how good it was and is.

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
    :ivar ended: why it ended: "good" where the Gaussian fits so well that no flow was trained, "no
        further gain" where no flow was better than the Gaussian, which is returned, or "budget".
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
    def verdict(self) -> str:
        """What the weights allow, in one line; of modes that no start found they know nothing."""
        if self.missed > 0.05:
            return (
                f"do not trust: the guide misses modes with {self.missed:.0%} of the mass; try "
                "num_starts=64, tempering=0.02, more steps, flow='ddsf'"
            )
        if self.khat < 0.5 and self._efficiency > 0.8:
            return "trust: the guide's draws are close to the posterior where it has mass"
        if self._efficiency > 0.95:
            even = f"trust the guide's draws: their weights are even (ESS {self._efficiency:.1%})"
            return even if self.khat < 0.7 else f"{even}; do not weight them (k-hat above 0.7)"
        threshold = khat_threshold(self.after.num_particles)
        if self.khat < threshold and self.ess >= _ENOUGH:
            near = "" if self.khat < 0.5 else f", k-hat {self.khat:.2f} below {threshold:.2f}"
            return (
                "use importance-weighted draws: their weights differ "
                f"(ESS {self._efficiency:.0%}{near})"
            )
        reason = f"k-hat is {self.khat:.2f}, above {threshold:.2f}"
        if self.khat < threshold:
            reason = f"the weights are worth {self.ess:.0f} draws, fewer than {_ENOUGH}"
        return (
            f"do not trust: {reason}; try more seconds, flow='ddsf' or a non-centred model; "
            "mcmc_correct gives exact draws"
        )

    @property
    def _efficiency(self) -> float:
        return self.ess / self.after.num_particles

    def __str__(self) -> str:
        rows = [
            f"{name:7s} ELBO {d.elbo:.3f} +- {d.elbo_se:.3f}, k-hat {d.khat:.2f}, "
            f"ESS {d.ess:.0f} of {d.num_particles}"
            for name, d in (("before", self.before), ("after", self.after))
        ]
        evidence = f"{self.log_evidence:.3f} +- {self.after.log_evidence_se:.3f}"
        spent = f"{self.steps} steps in {self.seconds:.0f} s, density {self.density}"
        rows.append(f"log evidence {evidence}; {spent}; ended: {self.ended}")
        return "\n".join([*rows, f"verdict {self.verdict}"])
