"""refine: from a model, or a fitted Gaussian guide, to a trained flow that says how good it is."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ..conditioners import Structure
from ..kernels import library
from ..support.checks import check_integers
from ..support.seeding import seeded
from .budget import Budget
from .capture import is_enabled
from .diagnostics import MIN_PARTICLES, diagnose
from .gaussian import fit_gaussian
from .graph import check_structure
from .joint import Joint
from .mixture import missed_mass, several
from .plans import FEWEST_PARTICLES, refine_from
from .progress import Progress
from .refined_guides import FLOWS
from .results import Refinement
from .start import Start, affine_of, density_of, find_start

#: Names that were importable from here before.
__all__ = [
    "Refinement",
    "Start",
    "affine_of",
    "diagnose",
    "fit_gaussian",
    "missed_mass",
    "refine",
    "several",
]

#: Number of steps, and seconds, where no budget is given; whichever is over first.
_STEPS, _SECONDS = 4000, 60.0

#: Seconds of a budget from which on the density is compiled; compiling takes 10 to 20.
_COMPILING = 30.0

#: Cores from which on the flows' loops are compiled at the same time, for the next refinement.
_CORES = 4

#: Share of the seconds that capturing the density may take, and the price of capturing in gradients
#: at one point; both are mostly Python for each operation.
_CAPTURING, _CAPTURE = 0.15, 80

#: Fewest training steps that draws are worth: with fewer, half as many draws are taken, as long as
#: a step is the cheaper for it by a fifth.
_WORTH_STEPS, _CHEAPER = 1000, 0.8

#: Draws for each gradient where a budget allows them, and gradients that a step costs, roughly.
_PARTICLES, _GRADIENTS = 64, 1.5


def refine(
    guide: AutoGuide | Callable[..., Any] | Start,
    *args: Any,
    flow: str = "dsf",
    num_transforms: int | None = None,
    hidden_dims: Sequence[int] | None = None,
    hidden_units: int | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    num_particles: int | None = None,
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
    :param steps: largest number of training steps.
    :param seconds: time for the whole call: search, training, diagnostics. With neither, 4000
        steps or 60 seconds, whichever is first. Without a number of steps, a Gaussian that fits
        already is returned at once. Of a density that is very dear the start may be all that there
        is time for.
    :param num_particles: draws for each gradient; by default 64, and fewer where ``seconds`` would
        be over before a thousand steps and fewer draws make a step cheaper.
    :param num_draws: draws for the diagnostics before and after; fewer, but 64 at least, where
        each would take longer than a sixteenth of ``seconds``, or than ten seconds without.
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
        compile that in another process. PYRO_NAF_COMPILE=0 in the environment turns both off as
        well. The flows' loops in C++ are used where an earlier call has compiled them; with four
        cores they are compiled beside a refinement, for the next.
    :param seed: seeds torch's generators for the duration of the call, which are put back after.
    :param progress: show a progress bar.
    :raises TypeError: for a guide of another kind, and where an argument of the model has the name
        of an option.
    :raises ValueError: for a guide that was never run, an argument out of range, or a model that
        has no continuous latents, infinitely many values of a discrete one, latents of changing
        shape, NaN in its data, no finite density at its starts, or an improper posterior.
    :raises RuntimeError: when 50 steps in a row have no finite loss and gradient.

    >>> import pyro, pyro.distributions as dist
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
    budget = Budget(steps, seconds)
    compiles = compile and is_enabled() and _is_worth_compiling(steps, seconds)
    with seeded(seed), Progress(progress, seconds) as bar:
        bar.phase("running the model")
        joint, gaussian = density_of(guide, args, kwargs)
        fewest = num_particles or FEWEST_PARTICLES
        num_particles = num_particles or affordable_particles(joint, budget)
        if compile and is_enabled():
            capture(joint, num_particles, seconds)
            if joint.graph is not None and compiles:
                joint.graph.compile()
        if compiles and _num_cores() >= _CORES and not library.is_built():
            library.build_beside()
        start = find_start(guide, joint, gaussian, tempering, num_starts, seconds, asked, bar)
        options = dict(
            flow=flow,
            num_transforms=num_transforms,
            hidden_dims=hidden_dims,
            hidden_units=hidden_units,
            num_particles=num_particles,
            num_draws=num_draws,
            learning_rate=learning_rate,
            tempering=tempering,
        )
        kernel = chosen_kernel()
        return refine_from(
            start,
            budget,
            options,
            good_ends=good_ends,
            kernel=kernel,
            bar=bar,
            fewest_particles=fewest,
        )


def affordable_particles(joint: Joint, budget: Budget) -> int:
    """Draws for each gradient: 64, or fewer where that makes a step cheaper and steps are few."""
    count, left = _PARTICLES, budget.left_for_training()
    while count > FEWEST_PARTICLES:
        step, half = (joint.pace.seconds(round(_GRADIENTS * n)) for n in (count, count // 2))
        if left >= _WORTH_STEPS * step or half > _CHEAPER * step:
            break
        count //= 2
    return count


def capture(joint: Joint, num_particles: int, seconds: float | None) -> None:
    """Capture a joint density as a graph for training, where the time allows it."""
    if joint.subsampled or joint.graph is not None:
        return
    if seconds is None or _CAPTURE * joint.pace.one < _CAPTURING * seconds:
        joint.capture(num_particles + max(num_particles // 2, 2))


def chosen_kernel() -> str:
    """The flows' kernel: no part of a budget is spent on waiting for a compiler."""
    return "auto" if library.is_built() else "plain"


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _is_worth_compiling(steps: int | None, seconds: float | None) -> bool:
    """Whether a budget outlasts the compiling by far; that takes a core, the fit another."""
    if seconds is None:
        return steps is not None and steps >= _STEPS
    return seconds >= (_COMPILING if _num_cores() > 1 else 4 * _COMPILING)


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


def _check_arguments(
    flow: str,
    steps: int | None,
    seconds: float | None,
    num_particles: int | None,
    num_draws: int,
    learning_rate: float,
    tempering: float,
    num_starts: int,
) -> None:
    if flow not in FLOWS:
        raise ValueError(f"flow must be one of {sorted(FLOWS)}, got {flow!r}")
    check_integers(
        steps=(1 if steps is None else steps, 1),
        num_particles=(2 if num_particles is None else num_particles, 2),
        num_draws=(num_draws, MIN_PARTICLES),
        num_starts=(num_starts, 1),
    )
    for name, value in {"seconds": seconds, "learning_rate": learning_rate}.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if not 0 < tempering <= 1:
        raise ValueError(f"tempering must lie in (0, 1], got {tempering}")
