"""refine: from a model, or a fitted Gaussian guide, to a trained flow that says how good it is."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence

from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ..conditioners import Structure
from ..kernels import library
from ..support.deprecation import renamed
from ..support.seeding import seeded
from ..training.progress import Progress
from .arguments import check_arguments, refuse_swallowed
from .budget import Budget
from .capture import is_enabled
from .checkpoints import Checkpoint
from .diagnostics import diagnose
from .effort import (
    SECONDS,
    STEPS,
    affordable_particles,
    capture,
    is_worth_compiling,
    num_cores,
)
from .gaussian import fit_gaussian
from .given_guides import affine_of
from .graph import check_structure
from .mixture import missed_mass, several
from .plans import Call, refine_from
from .refined import Refined
from .results import Refinement
from .settings import DEFAULTS, RefineSettings
from .start import Start, StartFinder, density_of

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

#: Options that a call must repeat to go on from a checkpoint.
_CALL = (
    "flow num_transforms hidden_dims hidden_units steps seconds num_particles num_draws "
    "lr tempering num_starts structure settings seed"
).split()


@renamed(learning_rate="lr")
def refine(  # noqa: PLR0913
    guide: AutoGuide | Callable[..., object] | Start,
    *args: object,
    flow: str = "dsf",
    num_transforms: int | None = None,
    hidden_dims: Sequence[int] | None = None,
    hidden_units: int | None = None,
    steps: int | None = None,
    seconds: float | None = None,
    num_particles: int | None = None,
    num_draws: int = 50_000,
    lr: float = 1e-2,
    tempering: float = 1.0,
    num_starts: int = 16,
    structure: str | Structure | Tensor = "auto",
    compile: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 30.0,
    settings: RefineSettings | None = None,
    seed: int | None = None,
    progress: bool = True,
    **kwargs: object,
) -> Refinement:
    r"""Put a flow inside a Gaussian guide's affine map and train the whole.

    Given a model, it first looks for modes and finds a full-rank Gaussian
    (:func:`~pyro_naf.infer.fit_gaussian`). Given a fitted Gaussian guide, it starts from that, and
    looks for modes only to say what the guide lacks. The new guide starts as the Gaussian, its flow
    near the identity, and is trained in units of the Gaussian's width by Adam with clipped
    gradients.

    The ELBO is maximised at a constant rate until it has stopped rising, at the latest after half
    the time for training; then by its path gradient (sticking the landing) while the rate falls to
    zero and the weights are averaged (Polyak). To this last part the log-variance divergence is
    added, under draws wider than the guide's, so that the tails fit too, on which k-hat depends;
    while k-hat is above 0.6 and there is time it is repeated, and of guides level in their ELBO the
    one with the smallest k-hat is kept.

    Where there are several modes the flow runs the other way (``inverse``), so that its
    conditionals are mixtures, and the ELBO, which loses modes, is not used. The guide starts with
    the mean, covariance and marginals of draws of the posterior, found by weighting Gaussians at
    the modes, and learns from them for half the budget; then the log-variance divergence under
    these and its own draws makes it exact (:class:`~pyro_naf.infer.objective.Objective`). Its draws
    cost the flow's inverse.

    The fitted guide and the model's own parameters are left as they are; the new guide's weights
    enter the param store under a name of their own.

    Any model that Pyro's NUTS takes can be given, as it is (:class:`~pyro_naf.infer.joint.Joint`):
    it is run for one draw, and :func:`torch.vmap` makes the batch; finite discrete latents are
    summed out; a point that the model refuses has no density. Where a plate is subsampled, training
    takes new subsamples and everything else the whole data. The log-density is captured as a graph
    and, where the budget outlasts it, compiled in another process (:attr:`Refinement.density`).

    Ctrl-C ends training, and the best guide so far is returned; :meth:`Refinement.refine` goes on.
    With ``checkpoint`` a file is written while training goes on. When the process was killed, the
    same call goes on from there, with what was left of its budget; when it had ended, its result is
    returned at once.

    The diagnostics weight draws by ``guide.model``. For a guide of a part of the latents
    (``poutine.block``) it draws the others from their prior, and ELBO and k-hat say so.

    :param guide: a model, or a fitted :class:`~pyro.infer.autoguide.AutoNormal`,
        ``AutoDiagonalNormal``, ``AutoMultivariateNormal``, ``AutoLowRankMultivariateNormal`` or
        ``AutoLaplaceApproximation``; or a :class:`Start`, which has arguments of its own.
    :param args: the model's arguments, as are ``kwargs``.
    :param flow: "dsf" or "ddsf".
    :param num_transforms: number of flows; by default 2, and 1 for a guide with a structure or,
        from 30 latents on, where ``seconds`` would be over before 2000 steps: a step of each size
        is timed. Where they are over before 300 of the smallest, the Gaussian alone is trained.
    :param hidden_dims: as in :class:`~pyro_naf.infer.AutoDSFNormal`.
    :param hidden_units: number of sigmoids; by default 16, and 8 for a guide with a structure or
        where the time is short, as above.
    :param steps: largest number of training steps.
    :param seconds: time for the whole call: search, training, diagnostics. With neither, 4000
        steps or 60 seconds, whichever is first. Without a number of steps, a Gaussian that fits
        already is returned at once. For a very expensive density there may be time for
        the start alone.
    :param num_particles: draws for each gradient; by default 64, and fewer where ``seconds`` would
        be over before a thousand steps and fewer draws make a step cheaper, or before 300 steps.
    :param num_draws: draws for the diagnostics before and after; fewer, but 64 at least, where
        each would take longer than a sixteenth of ``seconds``, or than ten seconds without.
    :param lr: learning rate of Adam, at the start.
    :param tempering: below 1, Gaussians as wide as the posterior to this power (0.02, say) are
        weighted too, and what they find is covered as several modes are: for modes that no
        start finds, or a guide that is given.
    :param num_starts: the search for modes, when a model is given, ends when this number of
        starts in a row has found no new one, or after a tenth of ``seconds``.
    :param structure: the guide's: "auto", which looks for it in the model where there are at least
        30 latents, "full", an adjacency or a :class:`~pyro_naf.conditioners.Structure`, as in
        :class:`~pyro_naf.infer.AutoDSFNormal`. From 60 latents on modes are
        the ends of the climbs, eight at most, that precede the Gaussian.
    :param compile: capture the log-density as a graph and, where the budget makes it worthwhile,
        compile that in another process. PYRO_NAF_COMPILE=0 in the environment turns both off as
        well. The flows' loops in C++ are used as soon as they are there: where no earlier call has
        compiled them they are compiled at the same time, if there is more than one core.
    :param checkpoint: file for the state of training and, at the end, the result, which
        :meth:`Refinement.load` reads. An older one stands until the new one is whole, and no code
        in it is run.
    :param checkpoint_seconds: time between two checkpoints, at least; with 0 one follows each step.
    :param settings: the numbers that the search, training and the verdict decide by, as shares of
        the time and thresholds.
    :param seed: seeds torch's generators for the duration of the call, which are put back after.
    :param progress: show a progress bar.
    :raises TypeError: for a guide of another kind, and where an argument of the model has the name
        of an option.
    :raises ValueError: for a guide that was never run, an argument out of range, or a model that
        has no continuous latents, infinitely many values of a discrete one, latents of changing
        shape, NaN in its data, no finite density at its starts, or an improper posterior; for a
        checkpoint of a call with other options, of another model or of other data.
    :raises OSError: when the checkpoint cannot be read or written.
    :raises RuntimeError: when 50 steps in a row have no finite loss and gradient.

    >>> import pyro, pyro.distributions as dist
    >>> def model():
    ...     pyro.sample("x", dist.Gamma(2.0, 1.0))
    >>> result = refine(model, steps=200, num_draws=2000, seed=0, progress=False)
    >>> result.elbo > -0.1, result.steps
    (True, 200)
    """
    if not isinstance(guide, AutoGuide) and callable(guide):
        own = {name: p.default for name, p in inspect.signature(refine).parameters.items()}
        options = {name: value for name, value in locals().items() if name in own}
        refuse_swallowed(guide, args, options, own)
    settings = DEFAULTS if settings is None else settings
    check_arguments(
        flow=flow,
        steps=steps,
        seconds=seconds,
        num_particles=num_particles,
        num_draws=num_draws,
        lr=lr,
        tempering=tempering,
        num_starts=num_starts,
        settings=settings,
    )
    # A number of steps that was asked for is made.
    good_ends, asked = steps is None, check_structure(structure)
    if steps is None and seconds is None:
        steps, seconds = STEPS, SECONDS
    budget, file = Budget(steps, seconds, settings), None
    if checkpoint is not None:
        call = locals()
        file = Checkpoint(checkpoint, checkpoint_seconds, {name: call[name] for name in _CALL})
    compiles = compile and is_enabled() and is_worth_compiling(steps, seconds, settings)
    with seeded(seed), Progress(progress, seconds) as bar:
        bar.phase("running the model")
        joint, gaussian = density_of(guide, args, kwargs)
        fewest = num_particles
        found = None if file is None else file.found(joint)
        if isinstance(found, Refined):
            return Refinement.of(found)
        if found is not None:
            budget.spend(found.budget["spent"])
            num_particles = found.options["num_particles"]
        num_particles = num_particles or affordable_particles(joint, budget)
        if compile and is_enabled():
            capture(joint, num_particles, seconds, settings)
            if joint.graph is not None and compiles:
                joint.graph.compile()
        if compiles and num_cores() > 1:
            library.build_beside()
        begin = guide if found is None else found.start
        finder = StartFinder(joint, tempering, num_starts, seconds, asked, settings, bar)
        start = _start(begin, gaussian, finder)
        options = dict(
            flow=flow,
            num_transforms=num_transforms,
            hidden_dims=hidden_dims,
            hidden_units=hidden_units,
            num_particles=num_particles,
            num_draws=num_draws,
            learning_rate=lr,
            tempering=tempering,
        )
        asked_for = Call(
            budget,
            options,
            settings,
            bar,
            good_ends=good_ends and found is None,
            fewest_particles=fewest,
            checkpoint=file,
            found=found,
        )
        result = refine_from(start, asked_for)
        if file is not None:
            file.finish(result)
        return Refinement.of(result)


def _start(given: object, gaussian: AutoGuide | None, finder: StartFinder) -> Start:
    """Take the start that is given, or find one for a fitted guide or a model."""
    if isinstance(given, Start):
        return given
    return finder.of_model() if gaussian is None else finder.of_guide(gaussian)
