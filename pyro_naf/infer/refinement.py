"""refine: a fitted Gaussian guide, a flow put inside its affine map, and training."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
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
from .path_gradient import path_log_prob

_FLOWS = {"dsf": AutoDSFNormal, "ddsf": AutoDDSFNormal}

#: Fraction of the budget after which the path gradient takes over: far from the posterior its
#: variance is the larger, close to it the smaller.
_PATH_FROM = 0.5

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
    :ivar seconds: time spent training.
    """

    guide: AutoFlowNormal
    before: ImportanceDiagnostics
    after: ImportanceDiagnostics
    losses: list[float] = field(repr=False)
    skipped: int
    seconds: float

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
        """What the weights allow, in one line. They say nothing of modes that the guide lost."""
        if self.khat < 0.5:
            return "trust: the guide's draws are close to the posterior where it has mass"
        if self.khat < 0.7:
            return "use importance-weighted draws: k-hat is below 0.7, but not by much"
        return (
            "do not trust: k-hat is above 0.7; try more steps, flow='ddsf', a full-rank Gaussian "
            "to start from, or a non-centred model"
        )

    def __str__(self) -> str:
        rows = [
            f"{name:7s} ELBO {d.elbo:.3f} +- {d.elbo_se:.3f}, k-hat {d.khat:.2f}, "
            f"ESS {d.ess:.0f} of {d.num_particles}"
            for name, d in (("before", self.before), ("after", self.after))
        ]
        return "\n".join([*rows, f"verdict {self.verdict}"])


def refine(
    guide: AutoGuide,
    *args: Any,
    flow: str = "dsf",
    num_transforms: int = 1,
    hidden_dims: Sequence[int] | None = None,
    hidden_units: int = 16,
    steps: int | None = None,
    seconds: float | None = None,
    num_particles: int = 64,
    num_draws: int = 50_000,
    learning_rate: float = 2e-2,
    seed: int | None = None,
    progress: bool = True,
    **kwargs: Any,
) -> Refinement:
    """Puts a flow inside a fitted Gaussian guide's affine map and trains the whole.

    The new guide starts as the fitted one (loc and scale, or Cholesky factor, are taken over, and
    the flow starts near the identity); then the ELBO is maximised by Adam with clipped gradients
    and a cosine decay to zero, in the second half by its path gradient (sticking the landing). The
    fitted guide and the model's own parameters are left as they are; the new guide's weights enter
    the param store under a name of their own.

    The diagnostics weigh ``guide.model``: that of a guide for a part of the latents
    (``poutine.block``) draws the others from their prior, and ELBO and k-hat say so.

    :param guide: a fitted :class:`~pyro.infer.autoguide.AutoNormal`, ``AutoDiagonalNormal``,
        ``AutoMultivariateNormal``, ``AutoLowRankMultivariateNormal`` or
        ``AutoLaplaceApproximation``.
    :param args: the model's arguments, as are ``kwargs``.
    :param flow: "dsf" or "ddsf".
    :param num_transforms: number of flows. One is enough behind a fitted Gaussian; a second gains
        a little ELBO on funnels and cuts their necks more sharply, which k-hat shows.
    :param hidden_dims: as in :class:`~pyro_naf.infer.AutoDSFNormal`, as is ``hidden_units``.
    :param steps: number of steps; 2000 unless ``seconds`` is given.
    :param seconds: stops after this time; the decay follows the clock.
    :param num_particles: draws for each gradient.
    :param num_draws: draws for the diagnostics before and after.
    :param learning_rate: Adam's, at the start.
    :param seed: seeds torch's generators for the duration of the call, which are put back after.
    :param progress: show a progress bar.
    :raises TypeError: for a guide of another kind.
    :raises ValueError: for a guide that was never run, or an argument out of range.
    :raises RuntimeError: when 50 steps in a row have no finite loss and gradient.

    >>> import pyro.distributions as dist
    >>> def model():
    ...     pyro.sample("x", dist.Gamma(2.0, 1.0))
    >>> guide = AutoNormal(model)
    >>> _ = guide()  # fit it with SVI
    >>> result = refine(guide, steps=20, seed=0, progress=False)
    >>> result.elbo > result.before.elbo, result.steps
    (True, 20)
    """
    _check_arguments(flow, steps, seconds, num_particles, learning_rate)
    guide = _gaussian(guide, *args, **kwargs)
    loc, scale, scale_tril = affine_of(guide)
    with _seeded(seed, loc.device):
        before = importance_diagnostics(
            guide.model, guide, *args, num_particles=num_draws, **kwargs
        )
        refined = _FLOWS[flow](
            guide.model,
            num_transforms=num_transforms,
            hidden_dims=hidden_dims,
            hidden_units=hidden_units,
            full_rank=scale_tril is not None,
        )
        refined._pyro_name = _free_name(f"{type(refined).__name__}_refined")
        refined._setup_prototype(*args, **kwargs)
        _set_affine(refined, loc, scale, scale_tril)
        budget = _Budget(2000 if steps is None and seconds is None else steps, seconds)
        # The diagnostics have validated the model; in training a NaN must reach the loss.
        with pyro.validation_enabled(False):
            losses, skipped = _train(
                refined, budget, num_particles, learning_rate, progress, args, kwargs
            )
        after = importance_diagnostics(
            guide.model, refined, *args, num_particles=num_draws, **kwargs
        )
    return Refinement(refined, before, after, losses, skipped, budget.elapsed)


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
def affine_of(guide: AutoGuide) -> tuple[Tensor, Tensor, Tensor | None]:
    """A Gaussian guide's loc ``(D,)``, scale ``(D,)`` and unit-diagonal factor or None.

    The guide's law in unconstrained space is that of ``loc + scale * (scale_tril @ eps)``.
    """
    if isinstance(guide, AutoNormal):
        trace: Any = guide.prototype_trace
        names = [name for name, _ in trace.iter_stochastic_nodes()]
        pairs: list[Any] = [guide._get_loc_and_scale(name) for name in names]
        loc, scale = (torch.cat([t.reshape(-1) for t in ts]) for ts in zip(*pairs, strict=True))
        return loc.clone(), scale.clone(), None
    if isinstance(guide, AutoDiagonalNormal):
        loc, scale = guide._loc_scale()
        return loc.clone(), scale.clone(), None
    if isinstance(guide, AutoMultivariateNormal | AutoLowRankMultivariateNormal):
        posterior = guide.get_posterior()
        factor = torch.linalg.cholesky(posterior.covariance_matrix)
        scale = factor.diagonal().clone()
        return posterior.mean.clone(), scale, factor / scale[:, None]
    raise TypeError(
        "guide must be an AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, "
        f"AutoLowRankMultivariateNormal or AutoLaplaceApproximation, got {type(guide).__name__}"
    )


def _set_affine(guide: Any, loc: Tensor, scale: Tensor, scale_tril: Tensor | None) -> None:
    with torch.no_grad():
        guide.loc.copy_(loc)
    guide.scale = scale
    if scale_tril is not None:
        guide.scale_tril = scale_tril


def _train(
    guide: AutoFlowNormal,
    budget: _Budget,
    num_particles: int,
    learning_rate: float,
    progress: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[list[float], int]:
    nesting = max_plate_nesting(guide.model, guide, *args, **kwargs)
    weights = list(guide.parameters())
    adam = torch.optim.Adam(weights, lr=learning_rate, betas=(0.9, 0.99))
    losses: list[float] = []
    skipped = bad = 0
    smooth = math.nan
    with tqdm(total=budget.steps, disable=not progress, desc="refine", unit="step") as bar:
        for fraction in budget:
            adam.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * fraction))
            log_weights, _, trace = vectorized_importance_weights(
                guide.model,
                guide,
                *args,
                num_samples=num_particles,
                max_plate_nesting=nesting,
                **kwargs,
            )
            loss = surrogate = -log_weights.mean()
            if fraction >= _PATH_FROM:
                site = trace.nodes[f"_{guide._pyro_name}_latent"]
                surrogate = loss - (site["log_prob"] - path_log_prob(guide, site)).mean()
            # Not backward(): the model's own parameters must not collect gradients.
            grads = torch.autograd.grad(surrogate, weights, allow_unused=True)
            losses.append(loss.item())
            for weight, grad in zip(weights, grads, strict=True):
                weight.grad = grad
            norm = torch.nn.utils.clip_grad_norm_(weights, 10.0)
            if math.isfinite(losses[-1]) and math.isfinite(norm):
                adam.step()
                bad = 0
                smooth = losses[-1] if math.isnan(smooth) else 0.98 * smooth + 0.02 * losses[-1]
            else:
                skipped, bad = skipped + 1, bad + 1
                if bad == _MAX_BAD_STEPS:
                    raise RuntimeError(
                        f"{bad} steps in a row without a finite loss and gradient (last loss "
                        f"{losses[-1]}); the model's log-density is not finite near the guide"
                    )
            bar.update()
            bar.set_postfix(ELBO=f"{-smooth:.2f}", refresh=False)
    for weight in weights:
        weight.grad = None
    return losses, skipped


class _Budget:
    """Counts steps or seconds; iterating yields the fraction spent, until it is spent."""

    def __init__(self, steps: int | None, seconds: float | None) -> None:
        self.steps, self.seconds, self.elapsed = steps, seconds, 0.0

    def __iter__(self) -> Iterator[float]:
        start, step = time.monotonic(), 0
        while True:
            self.elapsed = time.monotonic() - start
            fraction = max(
                step / self.steps if self.steps is not None else 0.0,
                self.elapsed / self.seconds if self.seconds is not None else 0.0,
            )
            if fraction >= 1:
                return
            yield fraction
            step += 1


def _free_name(name: str) -> str:
    """A guide name that the param store does not know yet."""
    taken = {key.split("$$$")[0].split(".")[0] for key in pyro.get_param_store().keys()}
    candidates = (name if i == 1 else f"{name}_{i}" for i in range(1, len(taken) + 2))
    return next(c for c in candidates if c not in taken)


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _check_arguments(
    flow: str, steps: int | None, seconds: float | None, num_particles: int, learning_rate: float
) -> None:
    if flow not in _FLOWS:
        raise ValueError(f"flow must be one of {sorted(_FLOWS)}, got {flow!r}")
    check_integers(steps=(1 if steps is None else steps, 1), num_particles=(num_particles, 2))
    for name, value in {"seconds": seconds, "learning_rate": learning_rate}.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
