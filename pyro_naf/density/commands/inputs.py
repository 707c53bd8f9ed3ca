"""What the commands read, and how they say what is wrong with it."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...support.command_line import CommandError
from ...training import parallel
from .. import preparation
from ..architectures import parse
from ..closed_form import CLOSED
from ..estimator import FlowDensity
from . import files
from .files import Reading, Table


def reading(options: argparse.Namespace, density: FlowDensity | None) -> Reading:
    """How the options say that a file is to be read, for this density, if it is fitted."""
    as_text = {
        name.strip()
        for text in getattr(options, "categorical", None) or ()
        for name in (text, *text.split(","))
    }
    if density is not None:
        columns = density.schema.columns
        as_text = {c.name for c in columns if c.name and isinstance((*c.values, 0)[0], str)}
    return Reading(options.header, options.decimal, options.sheet, as_text)


def read(options: argparse.Namespace, density: FlowDensity | None) -> tuple[Table, Table | None]:
    """Read rows and contexts of a file, leaving those out that are not finite where asked.

    A fitted density finds its columns by their names, unless others are named. Missing cells of
    rows stay where the density takes them.
    """
    table = files.read_table(options.data, reading(options, density))
    if table.note is not None:
        note(table.note)
    columns = table.listed(options.columns) if options.columns else None
    context = table.listed(options.context) if options.context else None
    excluded = table.listed(options.exclude) if options.exclude else []
    table.positions([*(columns or ()), *excluded])  # none is named twice
    if density is not None and table.columns is not None:
        columns = columns or density.columns
        context = context or density.context_columns
    if columns is None and (context is not None or excluded):
        columns = table.without([*(context or ()), *excluded])
        if not columns:
            option = "--context" if not excluded else "--exclude"
            raise CommandError(f"{option} names every column of {options.data}: none is left")
    table.positions([*(columns or ()), *(context or ())])
    x = table.select(columns)
    c = None if context is None else table.select(context)
    if c is not None and c.cells:
        name = c.columns[min(c.cells)] if c.columns else min(c.cells)
        raise CommandError(
            f"{options.data} holds text or classes in column {name}, which is no context"
        )
    if options.drop_missing:
        finite = ~(x.missing() | x.rows.isinf()).any(1)
        if c is not None:
            finite &= torch.isfinite(c.rows).all(1)
        if not finite.all():
            note(f"left out {int((~finite).sum())} of {len(finite)} rows with missing values")
        x.keep(finite)
        if c is not None:
            c.keep(finite)
    else:
        _check_missing(x, c, _takes_gaps(options, density, c))
    return x, c


def _takes_gaps(
    options: argparse.Namespace, density: FlowDensity | None, context: Table | None
) -> bool:
    if density is not None:
        return density.takes_gaps
    return context is None and parse(options.model)[0] in ("auto", *CLOSED)


def _check_missing(x: Table, context: Table | None, takes: bool) -> None:
    gone = x.missing()
    both = torch.where(gone, torch.nan, x.rows.double())
    if context is not None:
        both = torch.cat([both, context.rows], 1)
    try:
        preparation.check_finite(both, x.path, x.lines, gaps=takes)
    except ValueError as error:
        raise CommandError(f"{error}; --drop-missing leaves them out") from None
    if gone.any():
        at = gone.any(0).nonzero().squeeze(1).tolist()
        named = preparation.listed("column", [x.columns[i] if x.columns else i for i in at])
        number = int(gone.sum())
        note(f"{x.path} has {number} missing cell{'s' if number > 1 else ''} in {named}")


def best_device() -> str:
    """Name of the device that is taken by default."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def device(name: str) -> torch.device:
    """Turn a name into a device that is there."""
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CommandError(f"--device {name} cannot be used: {reason}") from None
    return found


def note(message: str) -> None:
    """Print a message, in one of several processes."""
    if parallel.rank() == 0:
        warnings.warn(message, stacklevel=2)


@contextmanager
def one_line() -> Iterator[None]:
    """Warnings as one line each; what the user can put right as a CommandError."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        if parallel.rank() == 0:
            print(f"pyro-naf: note: {' '.join(str(message).splitlines())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        try:
            yield
        except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            raise CommandError((str(error).strip().splitlines() or [""])[0]) from error
