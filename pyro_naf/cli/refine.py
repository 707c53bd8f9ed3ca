"""``pyro-naf refine``: Pyro's Gaussian before, a flow after, and how good both are."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_naf.cli.report import OWNED, RefinementReport
from pyro_naf.files.atomic import ReplacedFolder
from pyro_naf.infer import Correction, Refinement, mcmc_correct, refine
from pyro_naf.infer.diagnostics import ImportanceDiagnostics, diagnose
from pyro_naf.infer.joint import Joint
from pyro_naf.infer.laplace import Gaussian
from pyro_naf.infer.mean_field import fit_mean_field
from pyro_naf.infer.pointwise import deterministic
from pyro_naf.infer.proposals import GaussianProposal
from pyro_naf.support.command_line import (
    CommandError,
    Commands,
    add_renamed,
    at_least,
    describe,
    positive,
)
from pyro_naf.support.seeding import seeded

from .models import Problem, load_problem

#: Number of draws for each gradient of the Gaussian, and for its diagnostics.
_PARTICLES, _DIAGNOSING = 64, 10_000

#: Options that are written down beside the results.
SETTINGS = (
    "flow", "steps", "seconds", "fit_steps", "full_rank", "seed", "draws", "dtype", "data", "load",
    "correct", "num_starts", "tempering",
)  # fmt: skip


def add_refine(commands: Commands) -> None:
    """Add the command to the subparsers of ``pyro-naf``."""
    parser = commands.add_parser(
        "refine",
        help="approximate a posterior by a flow, and say how good it is",
        description="Fit a model's posterior with a Gaussian by SVI, then with a neural "
        "autoregressive flow as pyro_naf.infer.refine does, and show both. Without a model: the "
        "centred eight schools. Ctrl-C while the flow is trained keeps the best so far.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="module:function or file.py:function")
    add(
        "--data",
        metavar="FILE",
        help="the model's arguments by name: arrays of an .npz file, or columns of a table (.csv, "
        ".parquet, .xlsx and others), whole numbers as integers, text as the numbers of its levels",
    )
    add("--flow", choices=["dsf", "ddsf"], default="dsf", help="default: %(default)s")
    add("--steps", type=at_least(1), metavar="N", help="largest number of training steps")
    add("--seconds", type=positive, metavar="S", help="time for the flow; default: 60 or less")
    add("--num-starts", type=at_least(1), metavar="N", default=16,
        help="starts without a new mode that end the search; default: %(default)s")  # fmt: skip
    add("--tempering", type=positive, metavar="T", default=1.0,
        help="below 1, cover Gaussians as wide as the posterior to this power too")  # fmt: skip
    add("--fit-steps", type=at_least(1), metavar="N", default=2000,
        help="steps of the mean-field Gaussian; default: %(default)s")  # fmt: skip
    add("--full-rank", action="store_true", help="show the full-rank Gaussian before instead")
    add("--load", metavar="FILE", help="a refinement.pt to show; with --seconds, to go on from")
    add("--checkpoint", metavar="FILE",
        help="written while training; after a kill the same command goes on from it")  # fmt: skip
    add("--correct", action="store_true", help="also draw from the posterior itself, by MCMC")
    add("--seed", type=at_least(0), metavar="N", default=0, help="default: %(default)s")
    add("--output", metavar="DIR", default="pyro-naf-output", help="default: %(default)s")
    add_renamed(parser, "--num-samples", "--draws", "draws that are written; default: %(default)s",
        type=at_least(2), metavar="N", default=4000)  # fmt: skip
    add("--dtype", choices=["float32", "float64"], default="float32", help="default: %(default)s")
    add("--no-progress", action="store_true", help="show no progress bar")
    parser.set_defaults(run=run_refine)


def run_refine(options: argparse.Namespace) -> int:
    """Fit, refine, write and show; the exit status."""
    dtype = getattr(torch, options.dtype)
    torch.set_default_dtype(dtype)
    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    problem = load_problem(options, dtype)
    joint = _joint(problem.model)
    output = ReplacedFolder(options.output, OWNED)
    output.check()

    gaussian = None if options.full_rank else _fit(joint, options)
    result = _refined(problem, options)
    if gaussian is None:
        assert result.origin is not None
        start = result.origin.start
        gaussian = GaussianProposal(joint, Gaussian(start.loc, start.factor, math.nan))
    correction = _corrected(problem, result, options) if options.correct else None
    stages = _stages(gaussian, result, correction, options)
    with seeded(options.seed):
        before = diagnose(gaussian, _DIAGNOSING)
    report = _report(problem, result, correction, stages, before, options)
    output.replace(report.write)
    print(report.table())
    print(f"\nWritten to {output.path}")
    for missing in report.left_out:
        print(missing)
    if result.ended == "interrupted":
        print("pyro-naf: interrupted; these are the best so far", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _reported(what: str) -> Iterator[None]:
    try:
        yield
    except CommandError:
        raise
    except (Exception, SystemExit) as error:
        raise CommandError(f"{what}: {describe(error)}") from error


def _joint(model: Callable[[], object]) -> Joint:
    """Return the model's joint density, which finds out whether the model can be refined."""
    with _reported("the model cannot be refined"):
        joint = Joint(model)
    if not bool(joint(joint.start[None]).isfinite()):
        point = {name: value[0] for name, value in joint.constrained(joint.start[None]).items()}
        for name, found in joint.culprits(point).items():
            raise CommandError(f"the log-density of {name} is {found} at the starting values")
    return joint


def _fit(joint: Joint, options: argparse.Namespace) -> GaussianProposal:
    """Pyro's mean-field Gaussian, by SVI."""
    steps = options.fit_steps
    # The rate falls a hundredfold: large steps first, since a posterior may lie far from its prior.
    with tqdm(range(steps), desc="fit", unit="step", disable=options.no_progress) as bar:

        def report(elbo: float) -> None:
            bar.set_postfix_str(f"ELBO {elbo:.2f}", refresh=False)

        decay = 0.01 ** (1 / steps)
        with _reported("the fit broke down"):
            rates = (decay**step for step in bar)
            loc, scale, _ = fit_mean_field(joint, rates, _PARTICLES, report=report)
    return GaussianProposal(joint, Gaussian(loc, scale, math.nan))


def _refined(problem: Problem, options: argparse.Namespace) -> Refinement:
    """Return a new refinement, or the one of a file, which goes on where there is time for it."""
    budget = {"steps": options.steps, "seconds": options.seconds}
    budget |= {"checkpoint": options.checkpoint}
    shown = {"seed": options.seed, "progress": not options.no_progress}
    if options.load is None:
        with _reported("the refinement broke down"):
            search = {"num_starts": options.num_starts, "tempering": options.tempering}
            return refine(problem.model, flow=options.flow, **search, **budget, **shown)
    with _reported("the refinement cannot be loaded"):
        result = Refinement.load(options.load, problem.model)
    if options.steps is None and options.seconds is None:
        return result
    with _reported("the refinement broke down"):
        return result.refine(**budget, **shown)


def _corrected(problem: Problem, result: Refinement, options: argparse.Namespace) -> Correction:
    progress = not options.no_progress
    with _reported("the correction broke down"):
        return mcmc_correct(problem.model, result.guide, seed=options.seed, progress=progress)


def _stages(
    gaussian: GaussianProposal,
    result: Refinement,
    correction: Correction | None,
    options: argparse.Namespace,
) -> dict[str, dict[str, Tensor]]:
    """Draws before and after, and of the chains."""
    with seeded(options.seed):
        values = gaussian.draw(options.num_samples).values
        before = values | deterministic(gaussian.joint, values)
        stages = {"before": before, "after": result.draws(options.num_samples)}
    if correction is not None:
        stages["exact"] = correction.get_samples()
    return stages


def _report(
    problem: Problem,
    result: Refinement,
    correction: Correction | None,
    stages: dict[str, dict[str, Tensor]],
    before: ImportanceDiagnostics,
    options: argparse.Namespace,
) -> RefinementReport:
    return RefinementReport(
        title=problem.name,
        refinement=result,
        stages=stages,
        gaussian=before,
        correction=correction,
        reference=problem.reference,
        panels=problem.panels,
        settings={key: value for key, value in vars(options).items() if key in SETTINGS},
    )
