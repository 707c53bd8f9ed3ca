"""``pyro-naf fit``."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

import pyro_naf

from ...files.atomic import ReplacedFolder
from ...support.command_line import CommandError
from ...training import parallel
from .. import datasets, discrete, preparation
from ..architectures import unused_options
from ..estimator import FlowDensity
from ..options import Options
from ..published import published, published_of
from ..said import Kind
from . import inputs
from .files import Table
from .plot import PICTURE, drawn
from .use import mean_and_se

#: Kinds of columns without parameters that are options of the command line, with their help.
KINDS = {
    "continuous": "columns of any numbers; by default found out",
    "positive": "columns of positive numbers",
    "integer": "columns of integers, or steps: probabilities of their values",
    "categorical": "columns of classes, as all columns of text are",
}

#: Kinds of columns that were said, by name, or by number where there are no names.
Kinds: TypeAlias = dict[str | int, Kind]

#: All the files that a fit may write into its folder.
FILES = ("summary.json", PICTURE, "model.pt", "checkpoint.pt")

#: Options of the training, by their names in Training; None where they were not said.
SETTINGS = ("batch_size", "lr", "weight_decay", "schedule", "patience", "precision")

#: Options that describe the density, by their names in Options.
OVERRIDES = [field.name for field in fields(Options) if field.name not in ("kernel", "prior_rows")]

#: What the command line calls them, where that is something else.
OPTIONS = {"hidden_dims": "hidden"}

#: Exit status after Ctrl-C.
INTERRUPTED = 130


def run_fit(options: argparse.Namespace) -> int:
    """``pyro-naf fit``."""
    parallel.start()
    try:
        with inputs.one_line():
            return _fit(options)
    finally:
        parallel.stop()


def _fit(options: argparse.Namespace) -> int:
    device = inputs.device(options.device or inputs.best_device())
    data = _published(options) if options.dataset else _from_file(options)
    torch.manual_seed(options.seed)
    chosen = _said(options, OVERRIDES)
    unused = unused_options(options.model, chosen)
    if unused:
        option = OPTIONS.get(unused[0], unused[0])
        raise CommandError(
            f"--{option.replace('_', '-')} is not for --model {options.model}, which makes no use "
            "of it"
        )
    density = FlowDensity(data.input_dim, data.width, options.model, **chosen).to(device)
    flow = density.flow
    if flow is not None and flow.no_inverse is not None and flow.sampling:
        raise CommandError(flow.no_inverse)
    density.names = options.data or options.dataset, "context"
    density.columns, density.context_columns = data.columns, data.context_columns
    density.noise, density.values = data.noise, data.values

    first = parallel.rank() == 0
    output = ReplacedFolder(options.output, FILES)
    if first:
        output.check()
    checkpoint = output.path / "checkpoint.pt"
    _check_output(options, output.path)
    status, settings = 0, _said(options, SETTINGS)
    try:
        density.fit(
            data.x,
            data.context,
            validation=options.validation if data.validation is None else data.validation,
            max_epochs=options.max_epochs,
            max_steps=options.max_steps,
            max_seconds=options.max_seconds,
            **settings,
            columns=data.kinds,
            seed=options.seed,
            progress=not options.no_progress,
            checkpoint=checkpoint,
            checkpoint_seconds=options.checkpoint_seconds,
            resume=options.resume,
        )
    except KeyboardInterrupt:
        if density.history is None:  # nothing was evaluated yet
            raise
        status, density.history.stopped = INTERRUPTED, "interrupted"
        inputs.note("interrupted: the best density so far is kept")
    density.data_dtype = data.dtype
    if density.note is not None:
        inputs.note(
            density.note.replace("columns={name: kind}", "--continuous NAME, or another kind")
        )
    if first:
        _write(density, data, options, output)
    return status


def _check_output(options: argparse.Namespace, folder: Path) -> None:
    """Refuse to begin where there is a model, or a run that was interrupted."""
    checkpoint, model = (folder / f"{name}.pt" for name in ("checkpoint", "model"))
    if checkpoint.exists():
        if not options.resume and not options.force:
            raise CommandError(
                f"{options.output} holds the checkpoint of a run that was interrupted: go on with "
                "--resume, begin anew with --force, or name another folder"
            )
        return
    if model.exists() and not options.force:
        raise CommandError(
            f"{options.output} holds a model: replace it with --force, or name another folder with "
            "--output"
        )
    if options.resume:
        inputs.note(f"{options.output} holds no run that was interrupted: this one starts anew")


def _write(
    density: FlowDensity, data: _Data, options: argparse.Namespace, output: ReplacedFolder
) -> None:
    """Write the model, its picture and its summary; what is needed to go on stays."""
    summary, picture = _summary(density, data, options), None
    if not options.no_picture:
        x = data.x if data.validation is None else data.validation
        picture = drawn(density, x, data.context, options.seed)
    checkpoint = output.path / "checkpoint.pt"

    def write(folder: Path) -> None:
        density.save(folder / "model.pt")
        if picture is not None:
            (folder / PICTURE).write_bytes(picture)
        if summary["stopped"] == "interrupted" and checkpoint.exists():
            shutil.copyfile(checkpoint, folder / checkpoint.name)
        text = json.dumps(summary, indent=1, allow_nan=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")

    output.replace(write)
    _print_summary(summary)
    print(f"Written to {output.path}")


def _said(options: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Pick the options of these names that were given."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


class _Data:
    """What a density is fitted to, validated and tested on."""

    def __init__(
        self, x: np.ndarray | Tensor | dict[str, np.ndarray], context: Tensor | None = None
    ) -> None:
        self.x, self.context = x, context
        if isinstance(x, dict):
            self.input_dim, self.rows, self.dtype = (
                len(x),
                len(next(iter(x.values()))),
                torch.double,
            )
        else:
            self.rows, self.input_dim = x.shape
            self.dtype = preparation.as_tensor(x[:1], "x").dtype
        self.kinds: Kinds | None = None
        self.validation: np.ndarray | None = None
        self.test: np.ndarray | None = None
        self.columns: list[str] | None = None
        self.context_columns: list[str] | None = None
        self.noise: dict[int, float] = {}
        self.values: dict[int, Tensor] = {}

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
    x, context = inputs.read(options, None)
    content = x.rows if options.dequantise else x.content()
    data = _Data(content, None if context is None else context.rows)
    data.columns = x.columns
    data.kinds = _kinds(options, x)
    data.context_columns = None if context is None else context.columns
    if options.dequantise and x.rows.isnan().any():
        raise CommandError("--dequantise is for whole tables: name columns with --integer")
    if options.dequantise and x.cells:
        raise CommandError("--dequantise is for numbers alone: name columns with --integer")
    if options.dequantise:
        few = discrete.discrete_columns(x.rows)
        for i in few:
            values, step = discrete.values_of(x.rows[:, i])
            if step > 0:  # else it is constant, which is refused below
                data.values[i], data.noise[i] = values, step
        generator = torch.Generator().manual_seed(options.seed)
        data.x = discrete.dequantised(x.rows, data.noise, generator)
        names = [str(i) if data.columns is None else data.columns[i] for i in few]
        noted = preparation.listed("column", names) if names else "no column: none takes few values"
        inputs.note(f"dequantised {noted}")
    return data


def _kinds(options: argparse.Namespace, table: Table) -> Kinds | None:
    """Read the kinds of columns that were said, by name or number."""
    found: Kinds = {}

    def say(text: str, kind: Kind) -> None:
        for name in table.listed(text):
            (at,) = table.positions([name])
            found[at if table.columns is None else table.columns[at]] = kind

    for kind in KINDS:
        for text in getattr(options, kind) or ():
            say(text, kind)
    for kind, number in (("bounded", 2), ("periodic", 1), ("spiked", 0)):
        for text in getattr(options, kind) or ():
            name, _, numbers = text.rpartition("=")
            try:
                values = tuple(float(part) for part in numbers.split(":"))
            except ValueError:
                values = ()
            if not name or not values or number not in (0, len(values)):
                example = {2: "share=0:1", 1: "angle=360"}.get(number, "rain=0")
                raise CommandError(f"--{kind} must be like {example}, not {text!r}")
            say(name, (kind, *values))
    return found or None


def _summary(density: FlowDensity, data: _Data, options: argparse.Namespace) -> dict[str, Any]:
    history = density.history
    assert history is not None
    summary = {
        "pyro_naf": pyro_naf.__version__,
        "data": options.data or options.dataset,
        "model": options.model,
        "rows": data.rows,
        "columns": data.columns or data.input_dim,
        "kinds": [column.kind for column in density.schema.columns],
        "parameters": sum(p.numel() for p in density.parameters()),
        "validation": history.best["validation"],
        "steps": history.steps,
        "seconds": history.seconds,
        "skipped": history.skipped,
        "stopped": history.stopped,
        "comparison": history.comparison,
        "overfit": history.overfit,
    }
    if data.test is not None:
        mean, se = mean_and_se(density.score_samples(data.test))
        summary |= {"test": mean, "test_2se": 2 * se}
        summary["published"] = published(options.model, options.dataset)
        summary["published_all"] = published_of(options.dataset)
    # JSON has no infinity.
    evaluations = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in history.evaluations
    ]
    return {**summary, "evaluations": evaluations}


def _print_summary(summary: dict[str, Any]) -> None:
    print(f"{summary['model']}, {summary['parameters']:,} parameters")
    print(f"{summary['steps']} steps in {summary['seconds']:.0f} s, {summary['skipped']} skipped")
    for row in summary["comparison"]:
        error = "" if row["2se"] is None else f" ± {row['2se']:.3f}"
        print(f"{row['name']:>14}: {row['mean']:.3f}{error} nats (2 s.e.), held out")
    if summary["overfit"]:
        print(summary["overfit"])
    if summary["validation"] is not None:
        print(f"validation log-likelihood {summary['validation']:.4f} nats")
    if "test" in summary:
        print(
            f"test log-likelihood {summary['test']:.3f} ± {summary['test_2se']:.3f} nats (2 s.e.)"
        )
        print(f"published {summary['published'] or 'nothing for this model'}")
        others = ", ".join(f"{name} {value}" for name, value in summary["published_all"].items())
        print(f"all that are published: {others}")
