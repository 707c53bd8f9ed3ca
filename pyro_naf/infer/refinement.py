"""refine: a fitted Gaussian guide, a flow put inside its affine map, and training."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
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
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor
from tqdm.auto import tqdm

from ..checks import check_integers
from .autoguides import AutoDDSFNormal, AutoDSFNormal, AutoFlowNormal
from .diagnostics import ImportanceDiagnostics, importance_diagnostics, max_plate_nesting
from .gaussian import Gaussian, fit_gaussian, free_name, missed_mass
from .path_gradient import path_log_prob

_FLOWS = {"dsf": AutoDSFNormal, "ddsf": AutoDDSFNormal}

#: Budget where none is given: so many steps, unless so many seconds are over before.
_STEPS, _SECONDS = 4000, 50.0

#: Steps over which the ELBO is averaged to see whether it still rises.
_WINDOW = 250

#: Steps in a row without a finite loss and gradient after which training gives up.
_MAX_BAD_STEPS = 50


@dataclass(frozen=True)
class Refinement:
    """What :func:`refine` returns: the guide, and how good it was and is.

    :ivar guide: the refined guide.
    :ivar before: :class:`~pyro_naf.infer.ImportanceDiagnostics` of the fitted guide.
    :ivar after: the same of the refined one; ``elbo``, ``elbo_se``, ``khat``, ``ess`` and
        ``log_evidence`` are its.
    :ivar losses: negative ELBO of every step.
    :ivar skipped: number of steps skipped because loss or gradient was not finite.
    :ivar seconds: time spent on the Gaussian and on training.
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
                "tempering=0.02, more steps, flow='ddsf'"
            )
        if self.khat < 0.5:
            return "trust: the guide's draws are close to the posterior where it has mass"
        if self._efficiency > 0.95:
            even = f"trust the guide's draws: their weights are even (ESS {self._efficiency:.1%})"
            return even if self.khat < 0.7 else f"{even}; do not weigh them (k-hat above 0.7)"
        if self.khat < 0.7:
            return "use importance-weighted draws: k-hat is below 0.7, but not by much"
        return (
            "do not trust: k-hat is above 0.7; try more steps, flow='ddsf', a full-rank Gaussian "
            "to start from, or a non-centred model"
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
    num_starts: int = 4,
    seed: int | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> Refinement:
    r"""Puts a flow inside a Gaussian guide's affine map and trains the whole.

    Given a model, it first finds a full-rank Gaussian for it
    (:func:`~pyro_naf.infer.fit_gaussian`); given a fitted Gaussian guide, it starts from that. The
    new guide starts as the Gaussian, its flow near the identity, and is trained in units of the
    Gaussian's width. The ELBO is maximised by Adam with clipped gradients, at a constant rate
    until it has stopped rising, at the latest after half of the budget; then by its path gradient
    (sticking the landing) while the rate falls to zero and the weights are averaged (Polyak). The
    fitted guide and the model's own parameters are left as they are; the new guide's weights enter
    the param store under a name of their own.

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
    :param seconds: at most so long, the Gaussian's time included. With neither, 4000 steps or 50
        seconds, whichever is first.
    :param num_particles: draws for each gradient.
    :param num_draws: draws for the diagnostics before and after.
    :param learning_rate: Adam's, at the start.
    :param tempering: below 1, training starts with the posterior to this power, and the Gaussian
        as wide as that, so that separate modes are covered (0.02, say); the power rises to 1 in the
        first 60 % of the budget. More particles help here.
    :param num_starts: starts of the search for modes, when a model is given.
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
    _check_arguments(flow, steps, seconds, num_particles, learning_rate, tempering, num_starts)
    if steps is None and seconds is None:
        steps, seconds = _STEPS, _SECONDS
    budget = _Budget(steps, seconds, fraction_tempered=0.6 if tempering < 1 else 0.0)
    with _seeded(seed):
        modes: list[Gaussian] = []
        if not isinstance(guide, AutoGuide):
            if not callable(guide):
                raise TypeError(f"guide must be a model or a fitted Gaussian guide, got {guide!r}")
            guide, modes = fit_gaussian(
                guide, *args, num_starts=num_starts, temperature=1 / tempering, **kwargs
            )
        guide = _gaussian(guide, *args, **kwargs)
        loc, factor = affine_of(guide)
        before = importance_diagnostics(
            guide.model, guide, *args, num_particles=num_draws, **kwargs
        )
        refined = _FLOWS[flow](
            guide.model,
            num_transforms=num_transforms,
            hidden_dims=hidden_dims,
            hidden_units=hidden_units,
            full_rank=factor.dim() == 2,
        )
        refined._pyro_name = free_name(f"{type(refined).__name__}_refined")
        refined._setup_prototype(*args, **kwargs)
        refined.set_affine(loc, factor)
        # The diagnostics have validated the model; in training a NaN must reach the loss.
        with pyro.validation_enabled(False):
            training = _Training(refined, learning_rate, num_particles, tempering)
            training.run(budget, progress, args, kwargs)
        after = importance_diagnostics(
            guide.model, refined, *args, num_particles=num_draws, **kwargs
        )
        wide = [Gaussian(loc, width * _matrix(factor), math.nan) for width in (1.0, 3.0)]
        missed = missed_mass(refined, after.log_evidence, modes + wide, *args, **kwargs)
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


def _matrix(factor: Tensor) -> Tensor:
    return torch.diag(factor) if factor.dim() == 1 else factor


class _Training:
    """Stochastic ascent of a guide's ELBO, and what became of it."""

    def __init__(
        self, guide: AutoFlowNormal, learning_rate: float, num_particles: int, tempering: float
    ) -> None:
        self.guide, self.num_particles, self.tempering = guide, num_particles, tempering
        self.weights = list(guide.parameters())
        self.adam = torch.optim.Adam(self.weights, lr=learning_rate, betas=(0.9, 0.99))
        self.learning_rate = learning_rate
        self.losses: list[float] = []
        self.skipped = self.skipped_in_a_row = 0
        self.average: list[Tensor] = []

    def run(
        self, budget: _Budget, progress: bool, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        nesting = max_plate_nesting(self.guide.model, self.guide, *args, **kwargs)
        kwargs = {**kwargs, "num_samples": self.num_particles, "max_plate_nesting": nesting}
        with tqdm(total=budget.steps, disable=not progress, desc="refine", unit="step") as bar:
            for _ in budget:
                warm_up = min(1.0, (len(self.losses) + 1) / 50)
                self.adam.param_groups[0]["lr"] = self.learning_rate * budget.rate * warm_up
                self._step(budget, args, kwargs)
                if budget.landing is None and budget.tempered == 1 and self._plateau(budget):
                    budget.land()
                bar.update()
                if len(self.losses) % 20 == 0:
                    bar.set_postfix(ELBO=f"{-statistics.fmean(self.losses[-50:]):.2f}")
        with torch.no_grad():
            for weight, mean in zip(self.weights, self.average, strict=False):
                weight.copy_(mean)
        for weight in self.weights:
            weight.grad = None

    def _step(self, budget: _Budget, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        log_weights, _, trace = vectorized_importance_weights(
            self.guide.model, self.guide, *args, **kwargs
        )
        loss = -log_weights.mean()
        site = trace.nodes[f"_{self.guide._pyro_name}_latent"]
        if budget.landing is not None:
            surrogate = loss - (site["log_prob"] - path_log_prob(self.guide, site)).mean()
        else:
            # p^power / q, up to a factor: the entropy weighs more while the posterior is tempered.
            power = self.tempering ** (1 - budget.tempered)
            log_q = _density(trace, len(log_weights))
            surrogate = power * loss + (1 - power) * log_q.mean()
        self.losses.append(loss.item())
        # Not backward(): the model's own parameters must not collect gradients.
        grads = torch.autograd.grad(surrogate, self.weights, allow_unused=True)
        for weight, grad in zip(self.weights, grads, strict=True):
            weight.grad = grad
        norm = torch.nn.utils.clip_grad_norm_(self.weights, 10.0)
        if math.isfinite(self.losses[-1]) and math.isfinite(norm):
            self.adam.step()
            self.skipped_in_a_row = 0
            if budget.landing is not None:
                self._add_to_average()
            return
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        if self.skipped_in_a_row == _MAX_BAD_STEPS:
            raise RuntimeError(
                f"{_MAX_BAD_STEPS} steps in a row without a finite loss and gradient (last loss "
                f"{self.losses[-1]}); the model's log-density is not finite near the guide"
            )

    @torch.no_grad()
    def _add_to_average(self) -> None:
        if not self.average:
            self.average = [weight.clone() for weight in self.weights]
        # The last hundred steps or so.
        torch._foreach_lerp_(self.average, self.weights, 0.01)

    def _plateau(self, budget: _Budget) -> bool:
        """Whether the last window's mean ELBO is not above the one's before by its noise."""
        if len(self.losses) % _WINDOW or budget.steps_untempered < 4 * _WINDOW:
            return False
        recent, earlier = (
            [v for v in self.losses[-2 * _WINDOW :][part] if math.isfinite(v)]
            for part in (slice(_WINDOW, None), slice(_WINDOW))
        )
        if min(len(recent), len(earlier)) < 2:
            return False
        noise = math.hypot(statistics.stdev(recent), statistics.stdev(earlier)) / _WINDOW**0.5
        return statistics.fmean(earlier) - statistics.fmean(recent) < noise


def _density(trace: Any, particles: int) -> Tensor:
    """log q of every particle, Jacobians of the constraints included: ``(particles,)``."""
    total = torch.zeros(())
    for site in trace.nodes.values():
        if site["type"] == "sample" and "log_prob" in site:
            total = total + site["log_prob"].reshape(particles, -1).sum(-1)
    return total


class _Budget:
    """Steps and seconds; tempering, full rate and landing each have their part.

    Iterating goes on until the budget is spent. ``tempered`` rises to 1 first; ``rate`` is 1 until
    the landing and falls to 0 there.
    """

    def __init__(
        self, steps: int | None, seconds: float | None, fraction_tempered: float = 0.0
    ) -> None:
        self.steps, self.seconds, self.elapsed = steps, seconds, 0.0
        self.start = time.monotonic()
        self.fraction_tempered = fraction_tempered
        self.landing: float | None = None
        self.end, self.fraction, self.steps_untempered = 1.0, 0.0, 0

    def __iter__(self) -> Iterator[float]:
        step = 0
        while True:
            self.elapsed = time.monotonic() - self.start
            self.fraction = max(
                step / self.steps if self.steps is not None else 0.0,
                self.elapsed / self.seconds if self.seconds is not None else 0.0,
            )
            if self.fraction >= self.end:
                return
            if self.landing is None and self.fraction >= (1 + self.fraction_tempered) / 2:
                self.landing = self.fraction
            self.steps_untempered += self.tempered == 1
            yield self.fraction
            step += 1

    def land(self) -> None:
        """Starts the landing, which takes as long as the way to it did."""
        self.landing = self.fraction
        self.end = min(1.0, max(2 * self.fraction - self.fraction_tempered, self.fraction + 0.1))

    @property
    def tempered(self) -> float:
        """How much of the tempering is over, from 0 to 1."""
        if self.fraction_tempered == 0:
            return 1.0
        return min(1.0, self.fraction / self.fraction_tempered)

    @property
    def rate(self) -> float:
        if self.landing is None:
            return 1.0
        part = (self.fraction - self.landing) / max(self.end - self.landing, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))


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
    learning_rate: float,
    tempering: float,
    num_starts: int,
) -> None:
    if flow not in _FLOWS:
        raise ValueError(f"flow must be one of {sorted(_FLOWS)}, got {flow!r}")
    check_integers(
        steps=(1 if steps is None else steps, 1),
        num_particles=(num_particles, 2),
        num_starts=(num_starts, 1),
    )
    for name, value in {"seconds": seconds, "learning_rate": learning_rate}.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if not 0 < tempering <= 1:
        raise ValueError(f"tempering must lie in (0, 1], got {tempering}")
