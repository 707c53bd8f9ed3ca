"""The commands ``pyro-naf fit``, ``score`` and ``sample``."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pyro_naf

from ..atomic import ReplacedFolder
from ..command_line import CommandError, at_least, positive, widths
from . import datasets, files, parallel, preparation
from .architectures import NAMES
from .estimator import FlowDensity
from .files import Table
from .published import published
from .training import PRECISIONS, SCHEDULES

#: All the files that a fit may write into its folder.
FILES = ("model.pt", "summary.json", "checkpoint.pt")

#: Options of ``fit`` that describe the density, by their names in Options.
OVERRIDES = ("hidden_dims", "hidden_units", "num_layers", "linear", "dropout", "residual")


# --------------------------------------------------------------------------------------- arguments


def add_commands(commands: Any) -> None:
    """Adds the three to the subparsers of ``pyro-naf``."""
    _add_fit(commands)
    score = _command(
        commands, "score", run_score, "log-likelihood of rows under a fitted density",
        "Print the mean log-likelihood of rows under a fitted density, in nats.",
    )  # fmt: skip
    score.add_argument("model", metavar="MODEL", help="a model.pt, or the folder that it is in")
    _add_data(score)
    score.add_argument("--output", metavar="FILE", help="write each row's log-likelihood there")
    score.add_argument("--device", metavar="NAME", default="cpu", help="default: %(default)s")
    sample = _command(
        commands, "sample", run_sample, "rows drawn from a fitted density",
        "Draw rows from a fitted density.",
    )  # fmt: skip
    add = sample.add_argument
    add("model", metavar="MODEL", help="a model.pt, or the folder that it is in")
    add("-n", type=at_least(1), metavar="N", default=1000, help="rows; default: %(default)s")
    add("--context-file", metavar="DATA", help="contexts, for each of which N rows are drawn")
    add("--output", metavar="FILE", required=True, help="a .npy, .npz, .csv or .pt file")
    add("--seed", type=at_least(0), metavar="N", default=0, help="default: %(default)s")
    add("--device", metavar="NAME", default="cpu", help="default: %(default)s")


def _command(commands: Any, name: str, run: Any, short: str, long: str) -> Any:
    parser = commands.add_parser(name, help=short, description=long, allow_abbrev=False)
    parser.set_defaults(run=run)
    return parser


def _add_data(parser: Any, nargs: str | None = None) -> None:
    add = parser.add_argument
    add("data", nargs=nargs, metavar="DATA", help="rows: a .npy, .npz, .csv or .pt file")
    add("--columns", metavar="A,B", help="names or numbers (from 0) of the columns; default: all")
    add("--context", metavar="A,B", help="columns that the density is conditioned on")
    add("--drop-missing", action="store_true", help="leave out rows with NaN or infinity")


def _add_fit(commands: Any) -> None:
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
        default="maf-ddsf-5",
        help=f"one of {names}; default: %(default)s",
    )
    add("--output", metavar="DIR", default="pyro-naf-density", help="default: %(default)s")
    add("--dequantise", action="store_true", help="add noise to columns of few values")
    add("--validation", type=float, metavar="PART", default=0.1, help="default: %(default)s")
    add("--epochs", type=at_least(1), metavar="N", help="default: 100, but 2000 steps at least")
    add("--steps", type=at_least(1), metavar="N", help="at most so many steps")
    add("--seconds", type=positive, metavar="S", help="at most so long")
    add("--batch-size", type=at_least(1), metavar="N", default=256, help="default: %(default)s")
    add("--lr", type=positive, metavar="RATE", default=3e-3, help="default: %(default)s")
    add("--schedule", choices=SCHEDULES, default="cosine", help="default: %(default)s")
    add("--patience", type=at_least(1), metavar="N", default=30,
        help="evaluations without progress after which to stop; default: %(default)s")  # fmt: skip
    add("--precision", choices=PRECISIONS, default="float32", help="default: %(default)s")
    add("--hidden", dest="hidden_dims", type=widths, metavar="H,H", help="hidden layers")
    add("--hidden-units", type=at_least(1), metavar="K", help="sigmoids of a dimension")
    add("--num-layers", type=at_least(1), metavar="L", help="layers of a DDSF")
    add("--linear", choices=["reversal", "lu"], help="what lies between the layers")
    add("--dropout", type=float, metavar="P", help="probability with which units are dropped")
    add("--residual", action="store_const", const=True, help="residual conditioners")
    add("--seed", type=at_least(0), metavar="N", default=0, help="default: %(default)s")
    add("--device", metavar="NAME", help="default: a GPU where there is one")
    add("--resume", action="store_true", help="go on with a run that was interrupted")
    add("--checkpoint-seconds", type=float, metavar="S", default=30.0,
        help="time between two checkpoints; default: %(default)s")  # fmt: skip
    add("--no-progress", action="store_true", help="show no progress bar")


# --------------------------------------------------------------------------------------------- fit


def run_fit(options: argparse.Namespace) -> None:
    """``pyro-naf fit``."""
    parallel.start()
    try:
        with _one_line():
            _fit(options)
    finally:
        parallel.stop()


def _fit(options: argparse.Namespace) -> None:
    device = _device(options.device or _best_device())
    data = _published(options) if options.dataset else _from_file(options)
    torch.manual_seed(options.seed)
    chosen = {
        name: getattr(options, name) for name in OVERRIDES if getattr(options, name) is not None
    }
    density = FlowDensity(data.x.shape[1], data.width, options.model, **chosen).to(device)
    if density.flow.no_inverse is not None and density.flow.sampling:
        raise CommandError(density.flow.no_inverse)
    density.columns, density.context_columns = data.columns, data.context_columns

    first = parallel.rank() == 0
    output = ReplacedFolder(options.output, FILES)
    if first:
        output.check()
        output.path.mkdir(exist_ok=True)
    checkpoint = output.path / "checkpoint.pt"
    if checkpoint.exists() and not options.resume:
        raise CommandError(
            f"{options.output} holds the checkpoint of a run that was interrupted: go on with "
            "--resume, or name another folder"
        )
    density.fit(
        data.x,
        data.context,
        validation=options.validation if data.validation is None else data.validation,
        max_epochs=options.epochs,
        max_steps=options.steps,
        max_seconds=options.seconds,
        batch_size=options.batch_size,
        lr=options.lr,
        schedule=options.schedule,
        patience=options.patience,
        precision=options.precision,
        seed=options.seed,
        progress=not options.no_progress,
        checkpoint=checkpoint,
        checkpoint_seconds=options.checkpoint_seconds,
        resume=options.resume,
    )
    if not first:
        return
    summary = _summary(density, data, options)

    def write(folder: Path) -> None:
        density.save(folder / "model.pt")
        text = json.dumps(summary, indent=1)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")

    output.replace(write)
    _print_summary(summary)
    print(f"Written to {output.path}")


class _Data:
    """What a density is fitted to, validated and tested on."""

    def __init__(self, x: Any, context: Tensor | None = None) -> None:
        self.x, self.context = x, context
        self.validation: Any = None
        self.test: Any = None
        self.columns: list[str] | None = None
        self.context_columns: list[str] | None = None

    @property
    def width(self) -> int:
        return 0 if self.context is None else self.context.shape[1]


def _published(options: argparse.Namespace) -> _Data:
    if options.data is not None:
        raise CommandError("name either DATA or --dataset, not both")
    if options.data_root is None:
        raise CommandError("--dataset needs --data-root, the folder of its owner's files")
    split = datasets.load(options.dataset, options.data_root)
    data = _Data(split.train)
    data.validation, data.test = split.validation, split.test
    return data


def _from_file(options: argparse.Namespace) -> _Data:
    if options.data is None:
        raise CommandError("name a file of rows, or a published set with --dataset")
    x, context = _read(options, None)
    data = _Data(x.rows, None if context is None else context.rows)
    data.columns = x.columns
    data.context_columns = None if context is None else context.columns
    if options.dequantise:
        discrete = preparation.discrete_columns(data.x)
        generator = torch.Generator().manual_seed(options.seed)
        data.x = preparation.dequantised(data.x.double(), discrete, generator)
        names = [str(i) if data.columns is None else data.columns[i] for i in discrete]
        noted = preparation.listed("column", names) if names else "no column: none takes few values"
        _note(f"dequantised {noted}")
    return data


def _read(options: argparse.Namespace, density: FlowDensity | None) -> tuple[Table, Table | None]:
    """The rows and contexts of a file, those that are not finite left out where it is asked for.

    A fitted density finds its columns by their names, unless others are named.
    """
    table = files.read_table(options.data)
    columns = options.columns.split(",") if options.columns else None
    context = options.context.split(",") if options.context else None
    if density is not None and table.columns is not None:
        columns = columns or density.columns
        context = context or density.context_columns
    if columns is None and context is not None:
        columns = table.without(context)
    x = table.select(columns)
    c = None if context is None else table.select(context)
    if options.drop_missing:
        finite = torch.isfinite(x.rows).all(1)
        if c is not None:
            finite &= torch.isfinite(c.rows).all(1)
        if not finite.all():
            _note(f"left out {int((~finite).sum())} of {len(finite)} rows with missing values")
        x.rows = x.rows[finite]
        if c is not None:
            c.rows = c.rows[finite]
    elif not (torch.isfinite(x.rows).all() and (c is None or torch.isfinite(c.rows).all())):
        _refuse_missing(x, c, options.data)
    return x, c


def _refuse_missing(x: Table, context: Table | None, path: str) -> None:
    both = x.rows if context is None else torch.cat([x.rows, context.rows], 1)
    try:
        preparation.check_finite(both, path)
    except ValueError as error:
        raise CommandError(f"{error}; --drop-missing leaves them out") from None


def _summary(density: FlowDensity, data: _Data, options: argparse.Namespace) -> dict[str, Any]:
    history = density.history
    assert history is not None
    best = next(e for e in history.evaluations if e["step"] == history.best_step)
    summary: dict[str, Any] = {
        "pyro_naf": pyro_naf.__version__,
        "data": options.data or options.dataset,
        "model": options.model,
        "rows": len(data.x),
        "columns": data.columns or data.x.shape[1],
        "parameters": sum(p.numel() for p in density.parameters()),
        "validation": best["validation"],
        "steps": history.steps,
        "seconds": history.seconds,
        "skipped": history.skipped,
        "stopped": history.stopped,
    }
    if data.test is not None:
        mean, se = _mean_and_se(density.log_prob(data.test))
        summary |= {"test": mean, "test_2se": 2 * se}
        summary["published"] = published(options.model, options.dataset)
    return {**summary, "evaluations": history.evaluations}


def _print_summary(summary: dict[str, Any]) -> None:
    print(f"{summary['model']}, {summary['parameters']:,} parameters")
    print(f"{summary['steps']} steps in {summary['seconds']:.0f} s, {summary['skipped']} skipped")
    if summary["validation"] is not None:
        print(f"validation log-likelihood {summary['validation']:.4f} nats")
    if "test" in summary:
        print(
            f"test log-likelihood {summary['test']:.3f} ± {summary['test_2se']:.3f} nats (2 s.e.)"
        )
        print(f"published {summary['published'] or 'nothing for this model'}")


# --------------------------------------------------------------------------------- score and sample


def run_score(options: argparse.Namespace) -> None:
    """``pyro-naf score``."""
    with _one_line():
        if options.output:
            files.check_suffix(options.output)
        density = _load(options.model).to(_device(options.device))
        x, context = _read(options, density)
        c = None if context is None else context.rows
        rows = density._rows(x.rows, c, options.data, "context")
        values = density.log_prob(*(t.cpu().numpy() for t in rows))
        mean, se = _mean_and_se(values)
        if options.output:
            files.write_table(options.output, values[:, None], ["log_likelihood"])
        print(f"log-likelihood {mean:.4f} ± {2 * se:.4f} nats (2 s.e.), {len(values)} rows")
        if options.output:
            print(f"Written to {options.output}")


def run_sample(options: argparse.Namespace) -> None:
    """``pyro-naf sample``."""
    with _one_line():
        files.check_suffix(options.output)
        density = _load(options.model).to(_device(options.device))
        context, names = None, density.columns
        if options.context_file:
            table = files.read_table(options.context_file)
            table = table.select(density.context_columns if table.columns is not None else None)
            preparation.check_finite(table.rows, options.context_file)
            context = table.rows
        torch.manual_seed(options.seed)
        rows = density.sample(options.n, context).cpu()
        if context is not None:
            # Every context with its draws: its columns first.
            each = context.to(rows).expand(options.n, -1, -1)
            rows = torch.cat([each, rows], -1).transpose(0, 1).flatten(0, 1)
            known = density.context_columns or [f"c{i}" for i in range(density.context_dim)]
            names = [*known, *(density.columns or [f"x{i}" for i in range(density.input_dim)])]
        files.write_table(options.output, rows.numpy(), names)
        print(f"{len(rows)} rows written to {options.output}")


def _load(path: str) -> FlowDensity:
    folder = Path(path)
    return FlowDensity.load(folder / "model.pt" if folder.is_dir() else folder)


def _mean_and_se(values: np.ndarray) -> tuple[float, float]:
    values = np.asarray(values, np.float64)
    se = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(values.mean()), float(se)


# ----------------------------------------------------------------------------------------- messages


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CommandError(f"--device {name} cannot be used: {reason}") from None
    return device


def _note(message: str) -> None:
    if parallel.rank() == 0:
        warnings.warn(message, stacklevel=2)


@contextmanager
def _one_line() -> Iterator[None]:
    """Warnings as one line each; what the user can put right as a CommandError."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        if parallel.rank() == 0:
            print(f"pyro-naf: note: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        try:
            yield
        except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            raise CommandError((str(error).strip().splitlines() or [""])[0]) from error
