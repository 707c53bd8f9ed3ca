"""The command line: ``pyro-naf refine`` approximates a posterior by SVI and refines it with a flow.

The commands of densities are in :mod:`pyro_naf.density.commands`. Whatever the user got wrong ends
in one line on the standard error and exit status 2.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import operator
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import pyro
import torch
from tqdm import tqdm

import pyro_naf
from pyro_naf import eight_schools
from pyro_naf.atomic import ReplacedFolder
from pyro_naf.command_line import CommandError, at_least, member, numpy_file
from pyro_naf.density.commands import add_commands
from pyro_naf.infer import draws, refine
from pyro_naf.infer.joint import Joint
from pyro_naf.infer.mean_field import fit_mean_field
from pyro_naf.infer.refinement import Start
from pyro_naf.report import FILES, RefinementReport, first_four

FIT_PARTICLES = 64
SETTINGS = ("flow", "steps", "fit_steps", "seed", "draws", "dtype", "data")


# ---------------------------------------------------------------------------------------- arguments


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="pyro-naf", description="Neural autoregressive flows for Pyro.")
    parser.add_argument("--version", action="version", version=f"pyro-naf {pyro_naf.__version__}")
    commands = parser.add_subparsers(metavar="command", required=True)
    refine = commands.add_parser(
        "refine",
        help="approximate a posterior by SVI, then refine the approximation with a flow",
        description="Fit a model's posterior with a mean-field Gaussian by SVI, refine it with a "
        "neural autoregressive flow, and show both. Without a model: the centred eight schools.",
        allow_abbrev=False,
    )
    add = refine.add_argument
    add("model", nargs="?", metavar="module:function", help="your own Pyro model")
    add("--data", metavar="FILE.npz", help="the model's keyword arguments, one array each")
    add("--flow", choices=["dsf", "ddsf"], default="dsf", help="default: %(default)s")
    add("--steps", type=at_least(1), metavar="N", help="steps of refinement; default: as needed")
    add("--fit-steps", type=at_least(1), metavar="N", default=2000, help="default: %(default)s")
    add("--seed", type=at_least(0), metavar="N", default=0, help="default: %(default)s")
    add("--output", metavar="DIR", default="pyro-naf-output", help="default: %(default)s")
    add("--draws", type=at_least(2), metavar="N", default=4000, help="default: %(default)s")
    add("--dtype", choices=["float32", "float64"], default="float32", help="default: %(default)s")
    add("--no-progress", action="store_true", help="show no progress bar")
    refine.set_defaults(run=_run_refine)
    add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    :param arguments: the arguments after the program's name; by default those of the process.
    :returns: the exit status: 0, 2 after an error, 130 after an interrupt.
    """
    try:
        options = _parser().parse_args(arguments)
        options.run(options)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        print("pyro-naf: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the table has seen enough; there is nobody to tell, and nothing to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except CommandError as error:
        message = str(error)
    except OSError as error:
        message = _first_line(error)
    except Exception as error:
        message = _describe(error)
    print(f"pyro-naf: error: {' '.join(message.splitlines())}", file=sys.stderr)
    return 2


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:500].rstrip(": ") if lines else ""


def _describe(error: BaseException) -> str:
    """The error's kind, the first line of its message, and the user's line that it comes from."""
    text = f"{type(error).__name__}: {_first_line(error)}".rstrip(": ")
    if error.__cause__ is not None and (cause := _first_line(error.__cause__)) not in text:
        text += f": {cause}"  # Pyro names the site, and torch the trouble
    paths = sysconfig.get_paths()
    libraries = (paths["stdlib"], paths["purelib"], paths["platlib"], os.path.dirname(__file__))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*libraries, "<")):
            return f"{text} ({os.path.basename(frame.filename)}, line {frame.lineno})"
    return text


# --------------------------------------------------------------------------------- model and data


@dataclass
class Problem:
    """A model with its data bound to it, and what is known of its posterior."""

    name: str
    model: Callable[[], Any]
    reference: Mapping[str, eight_schools.Summary] = field(default_factory=dict)
    panels: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] = first_four


def _load_problem(options: argparse.Namespace, dtype: torch.dtype) -> Problem:
    if options.model is None:
        if options.data is not None:
            raise CommandError("--data needs a model of your own: pyro-naf refine module:function")
        return Problem(
            "centred eight schools",
            eight_schools.model,
            eight_schools.REFERENCE,
            eight_schools.funnel,
        )
    model = _import_model(options.model)
    data = _load_data(options.data, dtype) if options.data is not None else {}
    try:
        inspect.signature(model).bind(**data)
    except TypeError as error:
        raise CommandError(f"{options.model} does not fit its data: {error}") from None
    except ValueError:
        pass  # a callable that has no signature to be found
    # Bound, so that no argument of the model can be mistaken for an option of a guide.
    return Problem(options.model, functools.partial(model, **data))


def _import_model(spec: str) -> Callable[..., Any]:
    name, _, attribute = spec.partition(":")
    if not name or not attribute:
        raise CommandError(f"name the model as module:function, not {spec!r}")
    if name.endswith(".py"):
        hint = f"{name[:-3].replace('/', '.')}:{attribute}"
        raise CommandError(f"{name} is a file; name the module: {hint}")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise CommandError(f"no module named {error.name!r} here or among Python's") from None
        raise CommandError(f"cannot import {name!r}: {_describe(error)}") from None
    except (Exception, SystemExit) as error:
        raise CommandError(f"cannot import {name!r}: {_describe(error)}") from None
    try:
        model = operator.attrgetter(attribute)(module)
    except AttributeError:
        where = getattr(module, "__file__", None) or "built in"
        raise CommandError(f"module {name!r} ({where}) has no {attribute!r}") from None
    if not callable(model):
        raise CommandError(f"{spec} is not a function but {type(model).__name__}")
    return model


def _load_data(path: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    data: dict[str, torch.Tensor] = {}
    reading = None
    try:
        with numpy_file(path) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise CommandError(f"{path} is not an .npz file but a single array")
            for reading in archive.files:
                array = member(archive, reading)
                data[reading] = _to_tensor(array, f"{reading!r} in {path}", dtype)
    except (OSError, CommandError):
        raise
    except Exception as error:  # what a reader of foreign bytes may raise is written nowhere
        if reading is None:
            raise CommandError(f"{path} is not a whole .npz file") from None
        raise CommandError(f"cannot read {reading!r} in {path}: {_first_line(error)}") from None
    return data


def _to_tensor(array: Any, what: str, dtype: torch.dtype) -> torch.Tensor:
    kind = array.dtype.kind if isinstance(array, np.ndarray) else "?"
    if kind not in "fiub":
        named = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise CommandError(f"{what} must hold real numbers, integers or booleans, not {named}")
    if array.size == 0:
        raise CommandError(f"{what} is empty, of shape {array.shape}")
    if kind == "b":
        return torch.from_numpy(np.ascontiguousarray(array))
    if kind in "iu":
        if array.max() > np.iinfo(np.int64).max:
            raise CommandError(f"{what} holds integers beyond 64 bits")
        return torch.from_numpy(array.astype(np.int64))
    nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    if nan or infinite:
        raise CommandError(f"{what} holds {nan} NaN and {infinite} infinite values")
    tensor = torch.from_numpy(array.astype(np.float64)).to(dtype)
    if not tensor.isfinite().all():
        raise CommandError(f"{what} holds values too large for {dtype}; try --dtype float64")
    return tensor


# -------------------------------------------------------------------------------------------- fit


@contextmanager
def _reported(what: str) -> Iterator[None]:
    try:
        yield
    except CommandError:
        raise
    except (Exception, SystemExit) as error:
        raise CommandError(f"{what}: {_describe(error)}") from error


def _joint(model: Callable[[], Any]) -> Joint:
    """The model's joint density, which finds out whether the model can be refined."""
    with _reported("the model cannot be refined"):
        joint = Joint(model)
    if not bool(joint(joint.start[None]).isfinite()):
        point = {name: value[0] for name, value in joint.constrained(joint.start[None]).items()}
        for name, found in joint.culprits(point).items():
            raise CommandError(f"the log-density of {name} is {found} at the starting values")
    return joint


def _fit(joint: Joint, steps: int, progress: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A mean-field Gaussian: its mean and standard deviation."""
    # The rate falls a hundredfold: large steps first, since a posterior may lie far from its prior.
    with tqdm(range(steps), desc="fit", unit="step", disable=not progress) as bar:

        def report(elbo: float) -> None:
            bar.set_postfix_str(f"ELBO {elbo:.2f}", refresh=False)

        decay = 0.01 ** (1 / steps)
        with _reported("the fit broke down"):
            loc, scale, _ = fit_mean_field(joint, bar, FIT_PARTICLES, decay=decay, report=report)
    return loc, scale


def _run_refine(options: argparse.Namespace) -> None:
    dtype = getattr(torch, options.dtype)
    torch.set_default_dtype(dtype)
    pyro.clear_param_store()
    pyro.set_rng_seed(options.seed)
    problem = _load_problem(options, dtype)
    joint = _joint(problem.model)
    output = ReplacedFolder(options.output, FILES)
    output.check()

    progress = not options.no_progress
    loc, scale = _fit(joint, options.fit_steps, progress)
    normal = torch.randn(options.draws, joint.dim).to(loc)
    with _reported("the refinement broke down"):
        refinement = refine(
            Start(joint, loc, scale),
            flow=options.flow,
            steps=options.steps,
            seed=options.seed,
            progress=progress,
        )
    report = RefinementReport(
        title=problem.name,
        refinement=refinement,
        before=joint.constrained(loc + scale * normal),
        after=draws(refinement.guide, num_samples=options.draws),
        reference=problem.reference,
        panels=problem.panels,
        settings={key: value for key, value in vars(options).items() if key in SETTINGS},
    )
    output.replace(report.write)
    print(report.table())
    print(f"\nWritten to {output.path}")
    if not report.has_picture:
        print("The picture was left out; it needs matplotlib: pip install 'pyro_naf[plots]'")
