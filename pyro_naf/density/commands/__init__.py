"""The commands ``pyro-naf fit``, ``score``, ``sample`` and ``plot``."""

from __future__ import annotations

from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable

from ...conditioners.choice import CONDITIONERS
from ...support.command_line import Commands, add_renamed, at_least, positive, widths
from .. import datasets
from ..architectures import NAMES
from ..options import ACTIVATIONS, BASES
from ..settings import PRECISIONS, SCHEDULES, Training
from .fit import KINDS, run_fit
from .plot import run_plot
from .use import run_sample, run_score


def add_commands(commands: Commands) -> None:
    """Add the four to the subparsers of ``pyro-naf``."""
    _add_fit(commands)
    score = _command(
        commands, "score", run_score, "log-likelihood of rows under a fitted density",
        "Print the mean log-likelihood of rows under a fitted density, in nats.",
    )  # fmt: skip
    score.add_argument("model", metavar="MODEL", help="a model.pt, or the folder that it is in")
    _add_data(score)
    score.add_argument(
        "--output",
        metavar="FILE",
        help="write each row's log-likelihood there, - to standard output",
    )
    score.add_argument("--device", metavar="NAME", default="cpu", help="default: %(default)s")
    sample = _command(
        commands, "sample", run_sample, "rows drawn from a fitted density",
        "Draw rows from a fitted density.",
    )  # fmt: skip
    add = sample.add_argument
    add("model", metavar="MODEL", help="a model.pt, or the folder that it is in")
    add(
        "-n",
        "--num-samples",
        type=at_least(1),
        metavar="N",
        default=1000,
        help="rows; default: %(default)s",
    )
    add("--context-file", metavar="DATA", help="contexts, for each of which N rows are drawn")
    _add_header(sample)
    add(
        "--output",
        metavar="FILE",
        required=True,
        help="a .npy, .npz, .csv or .pt file, or - for standard output",
    )
    add("--seed", type=at_least(0), metavar="N", default=0, help="default: %(default)s")
    add("--device", metavar="NAME", default="cpu", help="default: %(default)s")
    plot = _command(
        commands, "plot", run_plot, "a picture of a fitted density",
        "Draw a fitted density beside data, and how it was trained. Needs matplotlib.",
    )  # fmt: skip
    plot.add_argument("model", metavar="MODEL", help="a model.pt, or the folder that it is in")
    _add_data(plot, "?")
    output = "a .png, .pdf or .svg file; default: fit.png beside the model"
    plot.add_argument("--output", metavar="FILE", help=output)
    plot.add_argument("--seed", type=at_least(0), metavar="N", default=0, help="of the draws")


def _command(
    commands: Commands, name: str, run: Callable[[Namespace], int | None], short: str, long: str
) -> ArgumentParser:
    parser = commands.add_parser(name, help=short, description=long, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _add_data(parser: ArgumentParser, nargs: str | None = None) -> None:
    add = parser.add_argument
    kinds = "text (.csv, .tsv, .txt, .gz, .zip), .parquet, .feather, .xlsx, .npy, .npz or .pt"
    add("data", nargs=nargs, metavar="DATA", help=f"rows: {kinds}; - is text on standard input")
    add("--columns", metavar="A,B", help="names or numbers (from 0) of the columns; default: all")
    add("--exclude", metavar="A,B", help="columns to leave out")
    add("--context", metavar="A,B", help="columns that the density is conditioned on")
    add(
        "--drop-missing",
        action="store_true",
        help="leave out rows with missing cells or infinity; default: the model is fitted to the "
        "cells seen, and scores them, where it can",
    )
    _add_header(parser)


def _add_header(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--header",
        action=BooleanOptionalAction,
        help="the first line of a .csv names the columns; default: where it holds no number",
    )
    parser.add_argument("--decimal", choices=(".", ","), help="decimal mark; default: found out")
    parser.add_argument("--sheet", metavar="NAME", help="of an .xlsx file; default: the first")


def _add_fit(commands: Commands) -> None:
    fit = _command(
        commands, "fit", run_fit, "fit a density to rows of numbers",
        "Fit a normalizing flow to rows of numbers by maximum likelihood.",
    )  # fmt: skip
    _add_data(fit, "?")
    add = fit.add_argument
    add("--dataset", choices=list(datasets.LOADERS), help="a published set instead of DATA")
    add("--data-root", metavar="DIR", help="the folder of its owner's files")
    names = ", ".join(name if n is not None else f"{name}-K" for name, n in NAMES.items())
    add(
        "--model",
        metavar="NAME",
        default="auto",
        help=f"one of {names}; default: %(default)s, the best mixture of several",
    )
    add("--output", metavar="DIR", default="pyro-naf-density", help="default: %(default)s")
    add("--dequantise", action="store_true", help="add noise to columns of few values")
    for kind, what in KINDS.items():
        add(f"--{kind}", action="append", metavar="A,B", help=what)
    add("--bounded", action="append", metavar="A=0:1", help="a column between two bounds")
    add("--spiked", action="append", metavar="A=0:9", help="values that recur in a column, as zero")
    add("--periodic", action="append", metavar="A=360", help="a column of angles, say")
    add("--validation", type=float, metavar="PART", default=0.1, help="default: %(default)s")
    limits: tuple[tuple[str, str, Callable[[str], object], str], ...] = (
        ("epochs", "default: 100, but 2000 steps at least", at_least(1), "N"),
        ("steps", "largest number of steps", at_least(1), "N"),
        ("seconds", "time limit", positive, "S"),
    )
    for name, help, number, metavar in limits:
        add_renamed(fit, f"--max-{name}", f"--{name}", help, type=number, metavar=metavar)
    add(
        "--batch-size",
        type=at_least(1),
        metavar="N",
        help=f"default: {Training.batch_size}; fewer for auto on few rows",
    )
    add("--lr", type=positive, metavar="RATE", help=f"default: {Training.lr}")
    add("--weight-decay", type=float, metavar="W", help="default: 0; 0.01 for auto on few rows")
    add("--schedule", choices=SCHEDULES, help=f"default: {Training.schedule}")
    add("--patience", type=at_least(1), metavar="N",
        help=f"evaluations without progress to end it; default: {Training.patience}")  # fmt: skip
    add("--precision", choices=PRECISIONS, help=f"default: {Training.precision}")
    add("--hidden", dest="hidden_dims", type=widths, metavar="H,H", help="hidden layers")
    add("--hidden-units", type=at_least(1), metavar="K", help="sigmoids of a dimension")
    add("--num-layers", type=at_least(1), metavar="L", help="layers of a DDSF")
    add("--sharpness", type=positive, metavar="S", help="slope at which sigmoids start")
    add("--affine", action="store_const", const=True, help="an affine map around the sigmoids")
    add("--bins", type=at_least(1), metavar="N", help="bins of a spline")
    add("--bound", type=positive, metavar="B", help="its bins lie on [-B, B]")
    add("--components", type=at_least(1), metavar="N", help="Gaussians of a mixture")
    add("--activation", choices=list(ACTIVATIONS), help="of the hidden layers")
    add("--conditioner", choices=list(CONDITIONERS), help="of the flows; default: made")
    add("--num-heads", type=at_least(1), metavar="N", help="heads of each attention")
    add("--base", choices=list(BASES), help="of a flow: student has heavy tails")
    add("--head-dim", type=at_least(1), metavar="N", help="factorise the last layer")
    add("--linear", choices=["reversal", "lu"], help="what lies between the layers")
    add("--whiten", action="store_const", const=True, help="the data's Gaussian in front")
    add("--dropout", type=float, metavar="P", help="probability with which units are dropped")
    add("--residual", action="store_const", const=True, help="residual conditioners")
    add("--seed", type=at_least(0), metavar="N", default=0, help="default: %(default)s")
    add("--device", metavar="NAME", help="default: a GPU where there is one")
    add("--resume", action="store_true",
        help="go on with a run that was interrupted; its budget may be another")  # fmt: skip
    add("--force", action="store_true", help="replace a model that is there")
    add("--checkpoint-seconds", type=float, metavar="S", default=30.0,
        help="time between two checkpoints; default: %(default)s")  # fmt: skip
    add("--no-progress", action="store_true", help="show no progress bar")
    add("--no-picture", action="store_true", help="draw no fit.png")
