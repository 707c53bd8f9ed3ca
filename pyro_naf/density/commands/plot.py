"""``pyro-naf plot``, and the picture that ``pyro-naf fit`` leaves beside a model."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
from contextlib import suppress
from pathlib import Path

from ...files.atomic import check_file, replace_file
from ...support.command_line import CommandError
from ..arrays import RowsLike, TableLike
from ..estimator import FlowDensity
from ..pictures import plot_density
from . import inputs
from .use import load

#: The picture's name, in the folder of the model.
PICTURE = "fit.png"

#: Endings of pictures.
SUFFIXES = (".png", ".pdf", ".svg")

#: Dots per inch.
DPI = 120


def run_plot(options: argparse.Namespace) -> None:
    """``pyro-naf plot``."""
    with inputs.one_line():
        folder = Path(options.model) if Path(options.model).is_dir() else Path(options.model).parent
        output = Path(options.output or folder / PICTURE)
        if output.suffix.lower() not in SUFFIXES:
            raise CommandError(f"{output} must be one of {', '.join(SUFFIXES)}")
        check_file(output)
        density = load(options.model)
        options.data = options.data or _data_of(folder)
        x, c = None, None
        if options.data is None:
            inputs.note("no data to compare with: name a file of rows")
        else:
            table, context = inputs.read(options, density)
            x, c = table.content(), None if context is None else context.rows
        try:
            figure = plot_density(density, x, c, seed=options.seed)
        except ImportError as error:
            raise CommandError(str(error)) from None
        content = io.BytesIO()
        figure.savefig(content, dpi=DPI, format=output.suffix[1:].lower())
        replace_file(output, content.getvalue())
        print(f"Written to {output}")


def _data_of(folder: Path) -> str | None:
    """Find the file that a fit was made from, if it is still there."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        path = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["data"]
        return path if Path(path).is_file() else None
    return None


def drawn(density: FlowDensity, x: TableLike, context: RowsLike | None, seed: int) -> bytes | None:
    """Draw the picture of a density that was just fitted; None where it cannot be drawn.

    A fit must not be lost because of its picture: that it failed is noted.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return None
    content = io.BytesIO()
    try:
        plot_density(density, x, context, seed=seed).savefig(content, dpi=DPI)
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        inputs.note(f"the picture was left out: {error}")
        return None
    return content.getvalue()
