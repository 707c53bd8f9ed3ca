"""refine: a fitted Gaussian guide, a flow put inside its affine map, and training."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    init_to_value,
)
from torch import Tensor
from torch.distributions import biject_to

from ..checks import check_integers
from ..guides.pyro_internals import without_block, without_start
from ..starts import sigmoids_at
from ..transformers import Scaled
from .autoguides import AutoDDSFNormal, AutoDSFNormal, AutoFlowNormal
from .capture import is_enabled
from .diagnostics import FEWEST, MIN_PARTICLES, ImportanceDiagnostics, diagnose
from .gaussian import Gaussian, cholesky, find_gaussian, free_name
from .joint import Joint
from .mixture import DRAWS, Pool, Pushed, missed_mass, several, widened
from .proposals import GaussianProposal, GuideProposal
from .training import Budget, Training

_FLOWS = {"dsf": AutoDSFNormal, "ddsf": AutoDDSFNormal}

#: Budget where none is given: so many steps, unless so many seconds are over before.
_STEPS, _SECONDS = 4000, 48.0

#: Of a guide for several modes, whose conditionals are mixtures. Nothing holds those where no mode
#: is: the few draws there must not lie far beyond.
_SEVERAL: dict[str, Any] = {"inverse": True, "min_slope": 0.2}

#: Draws whose marginals such a guide starts with.
_PLACING = 4000

#: Seconds of a budget from which on the density is compiled; compiling takes 10 to 20.
_COMPILING = 30.0

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
    :ivar density: how the model's log-density was evaluated in the end: "captured and compiled",
        "captured", "vmapped", "vmapped with help" or "one draw after another", the fastest first.
    """

    guide: AutoFlowNormal
    before: ImportanceDiagnostics
    after: ImportanceDiagnostics
    losses: list[float] = field(repr=False)
    skipped: int
    seconds: float
    missed: float = 0.0
    density: str = "vmapped"

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
        spent = f"{self.steps} steps in {self.seconds:.0f} s, density {self.density}"
        rows.append(f"log evidence {evidence}; {spent}")
        return "\n".join([*rows, f"verdict {self.verdict}"])


@dataclass(frozen=True)
class Start:
    """A joint density and a Gaussian near it, from which refinement begins.

    :ivar joint: the joint density.
    :ivar loc: mean ``(D,)``.
    :ivar factor: standard deviation ``(D,)``, or lower triangular factor ``(D, D)``.
    :ivar modes: a Gaussian at every mode that was found.
    :ivar widths: with tempering, widths in multiples of this Gaussian's that are to be covered.
    """

    joint: Joint
    loc: Tensor
    factor: Tensor
    modes: list[Gaussian] = field(default_factory=list)
    widths: list[float] = field(default_factory=lambda: [1.0])


def refine(
    guide: AutoGuide | Callable[..., Any] | Start,
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
    compile: bool = True,
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

    Any model that Pyro's NUTS takes can be given, as it is (:class:`~pyro_naf.infer.joint.Joint`):
    it is run for one draw, and :func:`torch.vmap` makes the batch; finite discrete latents are
    summed out; a point that the model refuses has no density. Where a plate is subsampled, training
    takes new subsamples and everything else the whole data. The log-density is captured as a graph
    and, where the budget outlasts it, compiled in another process (:attr:`Refinement.density`).

    The diagnostics weight draws by ``guide.model``: that of a guide for a part of the latents
    (``poutine.block``) draws the others from their prior, and ELBO and k-hat say so.

    :param guide: a model, or a fitted :class:`~pyro.infer.autoguide.AutoNormal`,
        ``AutoDiagonalNormal``, ``AutoMultivariateNormal``, ``AutoLowRankMultivariateNormal`` or
        ``AutoLaplaceApproximation``; or a :class:`Start`, which has arguments of its own.
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
    :param compile: capture the log-density as a graph and compile that in another process, where
        the budget makes it worth while; PYRO_NAF_COMPILE=0 in the environment turns it off as well.
    :param seed: seeds torch's generators for the duration of the call, which are put back after.
    :param progress: show a progress bar.
    :raises TypeError: for a guide of another kind, and where an argument of the model has the name
        of an option.
    :raises ValueError: for a guide that was never run, an argument out of range, or a model that
        has no continuous latents, infinitely many values of a discrete one, latents of changing
        shape, NaN in its data, no finite density at its starts, or an improper posterior.
    :raises RuntimeError: when 50 steps in a row have no finite loss and gradient.

    >>> import pyro.distributions as dist
    >>> def model():
    ...     pyro.sample("x", dist.Gamma(2.0, 1.0))
    >>> result = refine(model, steps=200, num_draws=2000, seed=0, progress=False)
    >>> result.elbo > -0.1, result.steps
    (True, 200)
    """
    if not isinstance(guide, AutoGuide) and callable(guide):
        own = inspect.signature(refine).parameters
        options = {name: value for name, value in locals().items() if name in own}
        _refuse_swallowed(guide, args, options)
    _check_arguments(
        flow, steps, seconds, num_particles, num_draws, learning_rate, tempering, num_starts
    )
    if steps is None and seconds is None:
        steps, seconds = _STEPS, _SECONDS
    budget = Budget(steps, seconds)
    with _seeded(seed):
        joint, gaussian = _density_of(guide, args, kwargs)
        if compile and is_enabled() and not joint.subsampled:
            joint.capture(num_particles + max(num_particles // 2, 2))
            if joint.graph is not None and _is_worth_compiling(steps, seconds):
                joint.graph.compile()
        start = _find_start(guide, joint, gaussian, tempering, num_starts, seconds)
        return refine_from(
            start,
            budget,
            flow=flow,
            num_transforms=num_transforms,
            hidden_dims=hidden_dims,
            hidden_units=hidden_units,
            num_particles=num_particles,
            num_draws=num_draws,
            learning_rate=learning_rate,
            tempering=tempering,
            progress=progress,
        )


def refine_from(
    start: Start,
    budget: Budget,
    *,
    flow: str,
    num_transforms: int,
    hidden_dims: Sequence[int] | None,
    hidden_units: int,
    num_particles: int,
    num_draws: int,
    learning_rate: float,
    tempering: float,
    progress: bool,
) -> Refinement:
    """:func:`refine` from a Gaussian that is known; its options have no defaults here."""
    joint, loc, factor, modes = start.joint, start.loc, start.factor, start.modes
    limit = math.inf if budget.seconds is None else _DIAGNOSING * budget.seconds
    # How many draws that takes must not change what training does.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        before = diagnose(GaussianProposal(joint, loc, _matrix(factor)), num_draws, limit)
    covers = tempering < 1 or (len(modes) > 1 and several(joint, modes))
    refined = _flow_guide(
        joint,
        flow,
        num_transforms=num_transforms,
        hidden_dims=hidden_dims,
        hidden_units=hidden_units,
        full_rank=factor.dim() == 2,
        **(_SEVERAL if covers else {}),
    )
    pool, proposals = None, widened(modes)
    if tempering < 1:
        proposals += _around(loc, factor, start.widths)
    if covers:
        budget.several = True
        pool = Pool(joint, proposals)
        around = pool.around
        loc, factor = around.loc, around.factor if factor.dim() == 2 else around.scale
    for part in refined.modules():
        if isinstance(part, Scaled):  # many draws a step: no caution is needed
            part.set_slope(1.0)
    refined.set_affine(loc, factor)
    if pool is not None:
        _start_at(refined, pool.draw(_PLACING)[0])
    # In training a NaN must reach the loss.
    with pyro.validation_enabled(False):
        training = Training(refined, joint, learning_rate, num_particles, pool)
        training.run(budget, progress)
    after = diagnose(GuideProposal(joint, refined, joint.args, joint.kwargs), num_draws, limit)
    others = modes + _around(loc, factor, (1.0, 3.0))
    posterior = Pushed(refined.get_posterior())
    # Where the density is too dear for all draws it is for these as well.
    count = max(round(DRAWS * after.num_particles / num_draws), FEWEST)
    missed = missed_mass(joint, posterior, after.log_evidence, others, count)
    return Refinement(
        refined,
        before,
        after,
        training.losses,
        training.skipped,
        budget.elapsed,
        missed,
        joint.way,
    )


def _is_worth_compiling(steps: int | None, seconds: float | None) -> bool:
    """Whether a budget outlasts the compiling by far; that takes a core, the fit another."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if seconds is None:
        return steps is not None and steps >= _STEPS
    return seconds >= (_COMPILING if cores and cores > 1 else 4 * _COMPILING)


def _density_of(
    guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Joint, AutoGuide | None]:
    """The joint density of a model, or of a fitted guide's model; and that guide."""
    if isinstance(guide, Start):
        return guide.joint, None
    if isinstance(guide, AutoGuide):
        guide = _gaussian(guide, *args, **kwargs)
        return _density_of_guide(guide, args, kwargs), guide
    if not callable(guide):
        raise TypeError(f"guide must be a model or a fitted Gaussian guide, got {guide!r}")
    return Joint(guide, args, kwargs), None


def _density_of_guide(guide: AutoGuide, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Joint:
    """The joint density of a guide's model; discrete latents blocked from the guide are summed out.

    A model whose continuous latents are blocked is taken as it is: it draws them from their prior.
    """
    inner = without_block(guide.model)
    if inner is not without_start(guide.model):
        joint = Joint(inner, args, kwargs)
        trace: Any = guide.prototype_trace
        if joint.sites.keys() == {name for name, _ in trace.iter_stochastic_nodes()}:
            return joint
    return Joint(guide.model, args, kwargs)


def _find_start(
    given: Any,
    joint: Joint,
    guide: AutoGuide | None,
    tempering: float,
    num_starts: int,
    seconds: float | None,
) -> Start:
    """The Gaussian of a fitted guide, or one found for a model."""
    if isinstance(given, Start):
        return given
    if guide is not None:
        loc, factor = _in_order(joint, guide, *affine_of(guide))
        widths = [tempering ** (-power / 4) for power in range(3)]  # the Gaussian's own the first
        return Start(joint, loc, factor, widths=widths)
    search_seconds = None if seconds is None else _SEARCH * seconds
    best, modes = find_gaussian(joint, num_starts, 1 / tempering, search_seconds)
    return Start(joint, best.loc, best.factor, modes)  # the Gaussian is as wide as p^tempering


def _refuse_swallowed(
    model: Callable[..., Any], args: tuple[Any, ...], options: Mapping[str, Any]
) -> None:
    """Raises TypeError when an option of refine took what may be meant for the model.

    :param options: the options of refine by name, with their values.
    """
    try:
        parameters = list(inspect.signature(model).parameters.values())
    except (TypeError, ValueError):  # a callable without a signature
        return
    defaults = {name: p.default for name, p in inspect.signature(refine).parameters.items()}
    for parameter in parameters[len(args) :]:
        name = parameter.name
        if name not in options or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.default is parameter.empty or options[name] != defaults[name]:
            raise TypeError(
                f"{name!r} is an argument of the model and an option of refine, which takes it; "
                f"bind the model's first, as in refine(functools.partial(model, {name}=...), ...)"
            )


def _in_order(joint: Joint, guide: AutoGuide, loc: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """A guide's Gaussian with its entries in the order of the joint density."""
    trace: Any = guide.prototype_trace
    places, start = {}, 0
    for name, site in trace.iter_stochastic_nodes():
        size = biject_to(site["fn"].support).inv(site["value"]).numel()
        places[name] = torch.arange(start, start + size)
        start += size
    if places.keys() != joint.sites.keys() or start != joint.dim:
        raise ValueError(
            f"the guide was fitted to the latents {sorted(places)} of {start} entries, the model "
            f"has {sorted(joint.sites)} of {joint.dim}; fit it again"
        )
    order = torch.cat([places[name] for name in joint.sites]).to(loc.device)
    if torch.equal(order, torch.arange(start, device=loc.device)):
        return loc, factor
    if factor.dim() == 1:
        return loc[order], factor[order]
    (factor,) = cholesky((factor @ factor.T)[order][:, order][None])
    return loc[order], factor


def _flow_guide(joint: Joint, flow: str, **options: Any) -> AutoFlowNormal:
    """A flow guide for all the latents of a joint density, set up."""
    start = {name: value[0] for name, value in joint.constrained(joint.start[None]).items()}
    guide = _FLOWS[flow](joint.model, init_loc_fn=init_to_value(values=start), **options)
    guide._pyro_name = free_name(f"{type(guide).__name__}_refined")
    with joint.in_full():
        guide._setup_prototype(*joint.args, **joint.kwargs)
    return guide


def _matrix(factor: Tensor) -> Tensor:
    return torch.diag(factor) if factor.dim() == 1 else factor


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
    return [Gaussian(loc, width * _matrix(factor), math.nan) for width in widths]


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
