"""refine: a fitted Gaussian guide, a flow put inside its affine map, and training."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuide,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor

from ..checks import check_integers
from ..starts import sigmoids_at
from ..transformers import Scaled
from .autoguides import AutoDDSFNormal, AutoDSFNormal, AutoFlowNormal
from .diagnostics import FEWEST, MIN_PARTICLES, ImportanceDiagnostics, diagnose
from .gaussian import Gaussian, fit_gaussian, free_name, log_density
from .mixture import DRAWS, Pool, Pushed, missed_mass, several, widened
from .training import Budget, Training

_FLOWS = {"dsf": AutoDSFNormal, "ddsf": AutoDDSFNormal}

#: Budget where none is given: so many steps, unless so many seconds are over before.
_STEPS, _SECONDS = 4000, 48.0

#: Of a guide for several modes, whose conditionals are mixtures. Nothing holds those where no mode
#: is: the few draws there must not lie far beyond.
_SEVERAL: dict[str, Any] = {"inverse": True, "min_slope": 0.2}

#: Draws whose marginals such a guide starts with.
_PLACING = 4000

#: The part of the seconds for the search for modes, at most.
_SEARCH = 0.1

#: The part of the seconds after which the diagnostics before, and those after, weigh no more draws.
_DIAGNOSING = 0.1


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
    :ivar seconds: time until the end of training, from the search for modes on.
    :ivar missed: the part of the posterior's mass, from 0 to 1, that the guide does not cover but
        the modes found at the start, the Gaussian there and one three times as wide do.
    """

    guide: AutoFlowNormal
    before: ImportanceDiagnostics
    after: ImportanceDiagnostics
    losses: list[float] = field(repr=False)
    skipped: int
    seconds: float
    missed: float = 0.0

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
            return even if self.khat < 0.7 else f"{even}; do not weigh them (k-hat above 0.7)"
        if self.khat < 0.5:
            return (
                f"use importance-weighted draws: their weights differ (ESS {self._efficiency:.0%})"
            )
        if self.khat < 0.7:
            return "use importance-weighted draws: k-hat is below 0.7, but not by much"
        return (
            "do not trust: k-hat is above 0.7; try more steps, flow='ddsf', a full-rank Gaussian "
            "to start from, or a non-centred model; mcmc_correct gives exact draws"
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
        rows.append(f"log evidence {evidence}; {self.steps} steps in {self.seconds:.0f} s")
        return "\n".join([*rows, f"verdict {self.verdict}"])


def refine(
    guide: AutoGuide | Callable[..., Any],
    *args: Any,
    flow: str = "dsf",
    num_transforms: int = 2,
    hidden_dims: Sequence[int] | None = None,
    hidden_units: int = 16,
    steps: int | None = None,
    seconds: float | None = None,
    num_particles: int = 64,
    num_draws: int = 50_000,
    learning_rate: float = 1e-2,
    tempering: float = 1.0,
    num_starts: int = 16,
    seed: int | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> Refinement:
    r"""Puts a flow inside a Gaussian guide's affine map and trains the whole.

    Given a model, it first looks for modes and finds a full-rank Gaussian
    (:func:`~pyro_naf.infer.fit_gaussian`). Given a fitted Gaussian guide, it starts from that. The
    new guide starts as the Gaussian, its flow near the identity, and is trained in units of the
    Gaussian's width by Adam with clipped gradients.

    The ELBO is maximised at a constant rate until it has stopped rising, at the latest after half
    the budget; then by its path gradient (sticking the landing) while the rate falls to zero and
    the weights are averaged (Polyak). To this last part the log-variance divergence is added, under
    draws wider than the guide's, so that the tails fit too, on which k-hat depends; while k-hat is
    above 0.6 and there is time it is repeated, and of guides level in their ELBO the one with the
    smallest k-hat is kept.

    Where there are several modes the flow runs the other way (``inverse``), so that its
    conditionals are mixtures, and the ELBO, which loses modes, is not used. The guide starts with
    the mean, covariance and marginals of draws of the posterior, found by weighing Gaussians at the
    modes, and learns from them for half the budget; then the log-variance divergence under these
    and its own draws makes it exact (:class:`~pyro_naf.infer.training.Training`). Its draws cost
    the flow's inverse.

    The fitted guide and the model's own parameters are left as they are; the new guide's weights
    enter the param store under a name of their own.

    The diagnostics weigh ``guide.model``: that of a guide for a part of the latents
    (``poutine.block``) draws the others from their prior, and ELBO and k-hat say so.

    :param guide: a model, or a fitted :class:`~pyro.infer.autoguide.AutoNormal`,
        ``AutoDiagonalNormal``, ``AutoMultivariateNormal``, ``AutoLowRankMultivariateNormal`` or
        ``AutoLaplaceApproximation``.
    :param args: the model's arguments, as are ``kwargs``.
    :param flow: "dsf" or "ddsf".
    :param num_transforms: number of flows.
    :param hidden_dims: as in :class:`~pyro_naf.infer.AutoDSFNormal`, as is ``hidden_units``.
    :param steps: at most so many steps.
    :param seconds: at most so long, the Gaussian's time included; the diagnostics after come on
        top. With neither, 4000 steps or 48 seconds, whichever is first.
    :param num_particles: draws for each gradient.
    :param num_draws: draws for the diagnostics before and after; fewer, but 5000 at least, where
        they would take longer than a tenth of ``seconds``.
    :param learning_rate: Adam's, at the start.
    :param tempering: below 1, Gaussians as wide as the posterior to this power (0.02, say) are
        weighed too, and what they find is covered as several modes are: for modes that no start
        finds, or a guide that is given.
    :param num_starts: the search for modes, when a model is given, ends when so many starts in a
        row have found no new one, or after a tenth of ``seconds``.
    :param seed: seeds torch's generators for the duration of the call, which are put back after.
    :param progress: show a progress bar.
    :raises TypeError: for a guide of another kind.
    :raises ValueError: for a guide that was never run, an argument out of range, or a model that
        has no continuous latents, no finite density at its starts, or an improper posterior.
    :raises RuntimeError: when 50 steps in a row have no finite loss and gradient.

    >>> import pyro.distributions as dist
    >>> def model():
    ...     pyro.sample("x", dist.Gamma(2.0, 1.0))
    >>> result = refine(model, steps=200, num_draws=2000, seed=0, progress=False)
    >>> result.elbo > -0.1, result.steps
    (True, 200)
    """
    _check_arguments(
        flow, steps, seconds, num_particles, num_draws, learning_rate, tempering, num_starts
    )
    if steps is None and seconds is None:
        steps, seconds = _STEPS, _SECONDS
    budget = Budget(steps, seconds)
    with _seeded(seed):
        modes: list[Gaussian] = []
        widths = [tempering ** (-power / 4) for power in range(3)]  # the Gaussian's own the first
        if not isinstance(guide, AutoGuide):
            if not callable(guide):
                raise TypeError(f"guide must be a model or a fitted Gaussian guide, got {guide!r}")
            guide, modes = fit_gaussian(
                guide,
                *args,
                num_starts=num_starts,
                temperature=1 / tempering,
                seconds=None if seconds is None else _SEARCH * seconds,
                **kwargs,
            )
            widths = [1.0]  # that of the tempered posterior
        guide = _gaussian(guide, *args, **kwargs)
        loc, factor = affine_of(guide)
        limit = math.inf if seconds is None else _DIAGNOSING * seconds
        # How many draws that takes must not change what training does.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            before = diagnose(guide.model, guide, num_draws, limit, args, kwargs)
        covers = tempering < 1 or (
            len(modes) > 1 and several(log_density(guide, *args, **kwargs), modes)
        )
        options = _SEVERAL if covers else {}
        refined = _FLOWS[flow](
            guide.model,
            num_transforms=num_transforms,
            hidden_dims=hidden_dims,
            hidden_units=hidden_units,
            full_rank=factor.dim() == 2,
            **options,
        )
        refined._pyro_name = free_name(f"{type(refined).__name__}_refined")
        refined._setup_prototype(*args, **kwargs)
        target = log_density(refined, *args, **kwargs)
        pool, proposals = None, widened(modes)
        if tempering < 1:
            proposals += _around(loc, factor, widths)
        if covers:
            budget.several = True
            pool = Pool(target, proposals)
            start = pool.around
            loc, factor = start.loc, start.factor if factor.dim() == 2 else start.scale
        for part in refined.modules():
            if isinstance(part, Scaled):  # many draws a step: no caution is needed
                part.set_slope(1.0)
        refined.set_affine(loc, factor)
        if pool is not None:
            _start_at(refined, pool.draw(_PLACING)[0])
        # The diagnostics have validated the model; in training a NaN must reach the loss.
        with pyro.validation_enabled(False):
            training = Training(refined, target, learning_rate, num_particles, pool)
            training.run(budget, progress)
        after = diagnose(guide.model, refined, num_draws, limit, args, kwargs)
        others = modes + _around(loc, factor, (1.0, 3.0))
        posterior = Pushed(refined.get_posterior())
        # Where the density is too dear for all draws it is for these as well.
        count = max(round(DRAWS * after.num_particles / num_draws), FEWEST)
        missed = missed_mass(target, posterior, after.log_evidence, others, count)
    return Refinement(
        refined, before, after, training.losses, training.skipped, budget.elapsed, missed
    )


def _gaussian(guide: Any, *args: Any, **kwargs: Any) -> AutoGuide:
    """The guide, if it was fitted; of a Laplace guide, the Gaussian at its mode."""
    if not isinstance(guide, AutoGuide) or getattr(guide, "_model", None) is None:
        raise TypeError(f"guide must be a fitted Gaussian autoguide, got {guide!r}")
    if guide.prototype_trace is None:
        raise ValueError(f"guide must be fitted first: this {type(guide).__name__} was never run")
    if not isinstance(guide, AutoLaplaceApproximation):
        return guide
    try:
        return guide.laplace_approximation(*args, **kwargs)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            "guide must be an AutoLaplaceApproximation at a mode, but the Hessian is not positive "
            f"definite where this one is; train it for longer ({error})"
        ) from None


@torch.no_grad()
def affine_of(guide: AutoGuide) -> tuple[Tensor, Tensor]:
    """A Gaussian guide's loc ``(D,)``, and its scale ``(D,)`` or lower factor ``(D, D)``."""
    if isinstance(guide, AutoNormal):
        trace: Any = guide.prototype_trace
        names = [name for name, _ in trace.iter_stochastic_nodes()]
        pairs: list[Any] = [guide._get_loc_and_scale(name) for name in names]
        loc, scale = (torch.cat([t.reshape(-1) for t in ts]) for ts in zip(*pairs, strict=True))
        return loc.clone(), scale.clone()
    if isinstance(guide, AutoDiagonalNormal):
        loc, scale = guide._loc_scale()
        return loc.clone(), scale.clone()
    if isinstance(guide, AutoMultivariateNormal):
        posterior = guide.get_posterior()
        return posterior.mean.clone(), posterior.scale_tril.clone()
    if isinstance(guide, AutoLowRankMultivariateNormal):
        posterior = guide.get_posterior()
        return posterior.mean.clone(), torch.linalg.cholesky(posterior.covariance_matrix)
    raise TypeError(
        "guide must be an AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, "
        f"AutoLowRankMultivariateNormal or AutoLaplaceApproximation, got {type(guide).__name__}"
    )


@torch.no_grad()
def _start_at(guide: AutoFlowNormal, z: Tensor) -> None:
    """Gives the first flow, from latents to base, the marginals of draws ``(N, D)``."""
    for outer in reversed(guide._outer(None)):
        z = outer.inv(z)
    first: Any = guide.flow.parts[0]
    sigmoids_at(first.arn, first.transformer, z)


def _around(loc: Tensor, factor: Tensor, widths: Sequence[float]) -> list[Gaussian]:
    """The Gaussian of a guide's affine map, so many times as wide."""
    matrix = torch.diag(factor) if factor.dim() == 1 else factor
    return [Gaussian(loc, width * matrix, math.nan) for width in widths]


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _check_arguments(
    flow: str,
    steps: int | None,
    seconds: float | None,
    num_particles: int,
    num_draws: int,
    learning_rate: float,
    tempering: float,
    num_starts: int,
) -> None:
    if flow not in _FLOWS:
        raise ValueError(f"flow must be one of {sorted(_FLOWS)}, got {flow!r}")
    check_integers(
        steps=(1 if steps is None else steps, 1),
        num_particles=(num_particles, 2),
        num_draws=(num_draws, MIN_PARTICLES),
        num_starts=(num_starts, 1),
    )
    for name, value in {"seconds": seconds, "learning_rate": learning_rate}.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if not 0 < tempering <= 1:
        raise ValueError(f"tempering must lie in (0, 1], got {tempering}")
