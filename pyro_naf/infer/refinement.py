"""refine: from a model, or a fitted Gaussian guide, to a trained flow that says how good it is."""

from __future__ import annotations

import inspect
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.infer.autoguide import AutoGuide, init_to_value
from torch import Tensor

from ..checks import check_integers
from ..conditioners import Structure
from ..seeding import seeded
from ..starts import sigmoids_at
from ..transformers import Scaled
from .autoguides import AutoDDSFNormal, AutoDSFNormal, AutoFlowNormal
from .capture import is_enabled
from .diagnostics import MIN_PARTICLES, ImportanceDiagnostics, diagnose
from .gaussian import Gaussian, fit_gaussian, free_name
from .graph import check_structure
from .joint import Joint
from .mixture import DRAWS, Pool, Pushed, missed_mass, several, widened
from .proposals import GaussianProposal, GuideProposal
from .results import Origin, Previous, Refinement
from .start import Start, affine_of, density_of, find_start
from .training import Budget, Training

#: Names that were importable from here before.
__all__ = ["Refinement", "Start", "affine_of", "fit_gaussian", "refine"]

_FLOWS = {"dsf": AutoDSFNormal, "ddsf": AutoDDSFNormal}

#: Number of steps, and seconds, where no budget is given; whichever is over first.
_STEPS, _SECONDS = 4000, 60.0

#: Guide options for multimodal posteriors. ``min_slope`` bounds the tails of the conditionals: no
#: training data lies between modes, and a draw that lands there must not be thrown far away.
_SEVERAL: dict[str, Any] = {"inverse": True, "min_slope": 0.2}

#: Flows, and sigmoids of each, where none are asked for: a posterior with a structure has many
#: latents, and simple conditionals.
_FULL = {"num_transforms": 2, "hidden_units": 16}
_STRUCTURED = {"num_transforms": 1, "hidden_units": 8}

#: Number of draws whose marginals a guide for several modes starts with.
_PLACING = 4000

#: Seconds of a budget from which on the density is compiled; compiling takes 10 to 20.
_COMPILING = 30.0

#: Share of the seconds at which training ends; diagnostics and the search for missed mass follow.
_TRAINING = 0.85

#: Share of the seconds after which each of the two diagnostics weights no more draws.
_DIAGNOSING = 0.08

#: Seconds after which each of them weights no more draws where no seconds are given.
_PATIENCE = 10.0

#: The same for who has pressed Ctrl-C.
_IMPATIENCE = 2.0

#: Minimum number of draws of a diagnosis, whatever it takes: k-hat needs some.
_FEWEST = 1000


def refine(
    guide: AutoGuide | Callable[..., Any] | Start,
    *args: Any,
    flow: str = "dsf",
    num_transforms: int | None = None,
    hidden_dims: Sequence[int] | None = None,
    hidden_units: int | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    num_particles: int = 64,
    num_draws: int = 50_000,
    learning_rate: float = 1e-2,
    tempering: float = 1.0,
    num_starts: int = 16,
    structure: str | Structure | Tensor = "auto",
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

    Ctrl-C ends training, and the best guide so far is returned; :meth:`Refinement.refine` goes on.

    The diagnostics weight draws by ``guide.model``: that of a guide for a part of the latents
    (``poutine.block``) draws the others from their prior, and ELBO and k-hat say so.

    :param guide: a model, or a fitted :class:`~pyro.infer.autoguide.AutoNormal`,
        ``AutoDiagonalNormal``, ``AutoMultivariateNormal``, ``AutoLowRankMultivariateNormal`` or
        ``AutoLaplaceApproximation``; or a :class:`Start`, which has arguments of its own.
    :param args: the model's arguments, as are ``kwargs``.
    :param flow: "dsf" or "ddsf".
    :param num_transforms: number of flows; by default 2, and 1 for a guide with a structure.
    :param hidden_dims: as in :class:`~pyro_naf.infer.AutoDSFNormal`.
    :param hidden_units: number of sigmoids; by default 16, and 8 for a guide with a structure.
    :param steps: at most so many steps.
    :param seconds: time for the whole call. With neither, 4000 steps or 60 seconds, whichever is
        first. Without a number of steps, a Gaussian that fits already is returned at once.
    :param num_particles: draws for each gradient.
    :param num_draws: draws for the diagnostics before and after; fewer, but 1000 at least, where
        each would take longer than a twelfth of ``seconds``, or than ten seconds without.
    :param learning_rate: Adam's, at the start.
    :param tempering: below 1, Gaussians as wide as the posterior to this power (0.02, say) are
        weighed too, and what they find is covered as several modes are: for modes that no start
        finds, or a guide that is given.
    :param num_starts: the search for modes, when a model is given, ends when so many starts in a
        row have found no new one, or after a tenth of ``seconds``.
    :param structure: the guide's: "auto", which looks for it in the model where there are at least
        30 latents, "full", an adjacency or a :class:`~pyro_naf.conditioners.Structure`, as in
        :class:`~pyro_naf.infer.AutoDSFNormal`. From 60 latents on one Gaussian takes the place of
        the search for modes.
    :param compile: capture the log-density as a graph and, where the budget makes it worth while,
        compile that in another process and take the flows' compiled kernel. PYRO_NAF_COMPILE=0 in
        the environment turns both off as well.
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
    # A number of steps that was asked for is made.
    good_ends, asked = steps is None, check_structure(structure)
    if steps is None and seconds is None:
        steps, seconds = _STEPS, _SECONDS
    # What follows training takes part of the time too.
    budget = Budget(steps, None if seconds is None else _TRAINING * seconds)
    compiles = compile and is_enabled() and _is_worth_compiling(steps, seconds)
    with seeded(seed):
        joint, gaussian = density_of(guide, args, kwargs)
        if compile and is_enabled() and not joint.subsampled:
            joint.capture(num_particles + max(num_particles // 2, 2))
            if joint.graph is not None and compiles:
                joint.graph.compile()
        start = find_start(guide, joint, gaussian, tempering, num_starts, seconds, asked)
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
            good_ends=good_ends,
            kernel="compiled" if compiles else "auto",
            seconds=seconds,
            progress=progress,
        )


def refine_from(
    start: Start,
    budget: Budget,
    *,
    flow: str,
    num_transforms: int | None,
    hidden_dims: Sequence[int] | None,
    hidden_units: int | None,
    num_particles: int,
    num_draws: int,
    learning_rate: float,
    tempering: float,
    good_ends: bool,
    kernel: str,
    seconds: float | None,
    progress: bool,
    previous: Previous | None = None,
) -> Refinement:
    """:func:`refine` from a Gaussian that is known; its options have no defaults here.

    :param previous: an earlier refinement, whose guide is trained further.
    """
    joint, loc, factor, modes = start.joint, start.loc, start.factor, start.modes
    limit = _PATIENCE if seconds is None else _DIAGNOSING * seconds
    if previous is not None:
        before = previous.after
    else:
        # How many draws that takes must not change what training does.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            gaussian = GaussianProposal(joint, loc, _matrix(factor))
            before = diagnose(gaussian, num_draws, limit, _FEWEST)
    if previous is not None:
        covers = previous.covers
    else:
        covers = tempering < 1 or (len(modes) > 1 and several(joint, modes))
    others = modes + _around(loc, factor, (1.0, 3.0))
    origin = Origin(
        start,
        covers,
        dict(
            flow=flow,
            num_transforms=num_transforms,
            hidden_dims=hidden_dims,
            hidden_units=hidden_units,
            num_particles=num_particles,
            num_draws=num_draws,
            learning_rate=learning_rate,
            tempering=tempering,
        ),
    )
    if good_ends and not covers and _is_good(before):
        budget.elapsed = time.monotonic() - budget.start
        guide = gaussian_guide(joint, loc, factor)
        return _result(origin, guide, before, before, others, budget, ended="good")
    trained = None if previous is None else previous.guide
    refined = flow_guide(origin, kernel) if trained is None else trained
    pool, proposals = None, widened(modes)
    if tempering < 1:
        proposals += _around(loc, factor, start.widths)
    if covers:
        budget.several = True
        pool = Pool(joint, proposals)
        around = pool.around
        others = modes + _around(around.loc, around.factor, (1.0, 3.0))
        if trained is None:
            refined.set_affine(around.loc, around.factor if factor.dim() == 2 else around.scale)
            _start_at(refined, pool.draw(_PLACING)[0])
    elif trained is None:
        refined.set_affine(loc, factor if start.pattern is None else start.pattern)
    ended = "budget"
    # In training a NaN must reach the loss.
    with pyro.validation_enabled(False):
        estimate = joint.minibatch if joint.subsampled else joint
        training = Training(refined, joint, learning_rate, num_particles, pool, estimate)
        try:
            training.run(budget, progress)
        except KeyboardInterrupt:
            training.stop(budget)
            ended, limit = "interrupted", min(limit, _IMPATIENCE)
    proposal = GuideProposal(joint, refined, joint.args, joint.kwargs)
    after = diagnose(proposal, num_draws, limit, _FEWEST)
    no_gain = not covers and _is_worse(after, before)
    if no_gain if previous is None else not _is_better(after, before):
        _forget(refined)
        refined = gaussian_guide(joint, loc, factor) if previous is None else previous.kept
        after = before
        ended = "no further gain" if ended == "budget" else ended
    return _result(origin, refined, before, after, others, budget, training, ended)


def flow_guide(origin: Origin, kernel: str = "auto") -> AutoFlowNormal:
    """A flow guide with the options of a refinement, set up and not trained."""
    start, options = origin.start, origin.options
    structured = start.structure is not None and not origin.covers
    usual = _STRUCTURED if structured else _FULL
    return _flow_guide(
        start.joint,
        options["flow"],
        num_transforms=options["num_transforms"] or usual["num_transforms"],
        hidden_dims=options["hidden_dims"],
        hidden_units=options["hidden_units"] or usual["hidden_units"],
        full_rank=start.factor.dim() == 2,
        kernel=kernel,
        **({"structure": start.structure} if structured else {}),
        **(_SEVERAL if origin.covers else {}),
    )


def _result(
    origin: Origin,
    guide: AutoFlowNormal,
    before: ImportanceDiagnostics,
    after: ImportanceDiagnostics,
    others: list[Gaussian],
    budget: Budget,
    training: Training | None = None,
    ended: str = "budget",
) -> Refinement:
    joint = origin.start.joint
    # Where the density is too dear for all draws of the diagnostics it is for these as well.
    count = max(min(DRAWS, round(0.4 * after.num_particles)), _FEWEST)
    missed = missed_mass(joint, Pushed(guide.get_posterior()), after.log_evidence, others, count)
    losses = [] if training is None else training.losses
    skipped = 0 if training is None else training.skipped
    way, elapsed = joint.way, budget.elapsed
    return Refinement(
        guide, before, after, losses, skipped, elapsed, missed, way, ended, joint, origin
    )


def _is_good(found: ImportanceDiagnostics) -> bool:
    """Whether a Gaussian leaves nothing to a flow."""
    return found.khat < 0.5 and found.ess > 0.95 * found.num_particles


def _is_worse(after: ImportanceDiagnostics, before: ImportanceDiagnostics) -> bool:
    """Whether the ELBO fell, by more than the noise of its two estimates."""
    if not math.isfinite(after.elbo):
        return math.isfinite(before.elbo)
    return after.elbo < before.elbo - 2 * math.hypot(after.elbo_se, before.elbo_se)


def _is_better(after: ImportanceDiagnostics, before: ImportanceDiagnostics) -> bool:
    """Whether the ELBO rose by more than that noise, or is level and the weights are more even."""
    if _is_worse(after, before):
        return False
    is_level = not _is_worse(before, after)
    share = after.ess / after.num_particles - before.ess / before.num_particles
    return share > 0 if is_level else True


def _is_worth_compiling(steps: int | None, seconds: float | None) -> bool:
    """Whether a budget outlasts the compiling by far; that takes a core, the fit another."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if seconds is None:
        return steps is not None and steps >= _STEPS
    return seconds >= (_COMPILING if cores and cores > 1 else 4 * _COMPILING)


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
    bound = getattr(model, "keywords", {})  # of a functools.partial
    for parameter in parameters[len(args) :]:
        name = parameter.name
        if name not in options or name in bound or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.default is parameter.empty or options[name] != defaults[name]:
            raise TypeError(
                f"{name!r} is an argument of the model and an option of refine, which takes it; "
                f"bind the model's first, as in refine(functools.partial(model, {name}=...), ...)"
            )


def _flow_guide(joint: Joint, flow: str, **options: Any) -> AutoFlowNormal:
    """A flow guide for all the latents of a joint density, set up."""
    guide = _set_up(joint, _FLOWS[flow], **options)
    for part in guide.modules():
        if isinstance(part, Scaled):  # many draws a step: no caution is needed
            part.set_slope(1.0)
    return guide


def _set_up(joint: Joint, kind: Callable[..., Any], *args: Any, **options: Any) -> Any:
    start = {name: value[0] for name, value in joint.constrained(joint.start[None]).items()}
    guide = kind(joint.model, *args, init_loc_fn=init_to_value(values=start), **options)
    guide._pyro_name = free_name(f"{type(guide).__name__}_refined")
    with joint.in_full():
        guide._setup_prototype(*joint.args, **joint.kwargs)
    return guide


def gaussian_guide(joint: Joint, loc: Tensor, factor: Tensor) -> AutoFlowNormal:
    """A guide that is this Gaussian: an affine map around no flow."""
    options: dict[str, Any] = {"full_rank": factor.dim() == 2}
    guide = _set_up(joint, AutoFlowNormal, _no_flow, **options)
    guide.set_affine(loc, factor)
    return guide


def _forget(guide: AutoFlowNormal) -> None:
    """Take a guide that is not returned out of Pyro's param store."""
    store = pyro.get_param_store()
    for key in [key for key in store.keys() if key.partition(".")[0] == guide._pyro_name]:
        del store[key]


def _no_flow(dim: int) -> ComposeTransformModule:
    return ComposeTransformModule([])


def _matrix(factor: Tensor) -> Tensor:
    return torch.diag(factor) if factor.dim() == 1 else factor


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
