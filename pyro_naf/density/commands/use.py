"""``pyro-naf score`` and ``pyro-naf sample``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from .. import discrete, preparation, tables
from ..estimator import FlowDensity
from . import files, inputs


def run_score(options: argparse.Namespace) -> None:
    """``pyro-naf score``."""
    with inputs.one_line():
        if options.output:
            files.check_output(options.output)
        density = load(options.model).to(inputs.device(options.device))
        x, context = inputs.read(options, density)
        c = None if context is None else context.rows
        if density.noise:
            generator = torch.Generator().manual_seed(0)
            x.rows = discrete.dequantised(x.rows, density.noise, generator)
        rows = density.checked_rows(x.content(), c, options.data, "context")
        with torch.no_grad():
            values = density.log_prob(*rows).cpu().numpy()
        empty = rows[0].isnan().all(1).cpu().numpy()
        if empty.any():
            at = preparation.listed("row", np.flatnonzero(empty).tolist())
            inputs.note(f"{options.data} has no value in {at}, which do not count in the mean")
        mean, se = mean_and_se(values[~empty] if not empty.all() else values)
        if options.output:
            files.write_table(options.output, values[:, None], ["log_likelihood"])
        counted = len(values) - int(empty.sum())
        say = files.telling(options.output)
        say(f"log-likelihood {mean:.4f} ± {2 * se:.4f} nats (2 s.e.), {counted} rows")
        if options.output:
            say(f"Written to {options.output}")


def run_sample(options: argparse.Namespace) -> None:
    """``pyro-naf sample``."""
    with inputs.one_line():
        files.check_output(options.output)
        density = load(options.model).to(inputs.device(options.device))
        context, names, say = None, density.columns, files.telling(options.output)
        if options.context_file:
            table = files.read_table(options.context_file, inputs.reading(options, None))
            table = table.select(density.context_columns if table.columns is not None else None)
            preparation.check_finite(table.rows, table.path, table.lines)
            context = table.rows
        torch.manual_seed(options.seed)
        rows = density.sample(options.num_samples, context, as_table=False).cpu()
        told = not all(c.is_number for c in density.schema.columns)
        if context is None and told and density.from_table:
            files.write_columns(options.output, tables.columns_of(rows, density.schema))
            say(f"{len(rows)} rows written to {options.output}")
            return
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))  # numpy has no bfloat16
        if context is not None:
            # Every context with its draws: its columns first.
            each = context.to(rows).expand(options.num_samples, -1, -1)
            rows = torch.cat([each, rows], -1).transpose(0, 1).flatten(0, 1)
            known = density.context_columns or [f"c{i}" for i in range(density.context_dim)]
            names = [*known, *(density.columns or [f"x{i}" for i in range(density.width)])]
        files.write_table(options.output, rows.numpy(), names)
        say(f"{len(rows)} rows written to {options.output}")


def load(path: str) -> FlowDensity:
    """Load the density in a file, or in a folder of ``pyro-naf fit``.

    :raises ModelFileError: as :meth:`FlowDensity.load`.
    """
    folder = Path(path)
    return FlowDensity.load(folder / "model.pt" if folder.is_dir() else folder)


def mean_and_se(values: np.ndarray) -> tuple[float, float]:
    """Mean of the values, and its standard error."""
    values = np.asarray(values, np.float64)
    se = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(values.mean()), float(se)
