"""Rows of tables in files, read without running any code, and written whole."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ...files import archive
from ...files.atomic import check_file, replace_file
from ...support.command_line import CommandError, member, numpy_file
from .. import preparation
from . import data_files, text_files
from .cells import Parsed
from .csv_files import are_names, read_csv
from .text_files import STANDARD

if TYPE_CHECKING:
    from pandas import Series

#: What the names of files of numbers end with, which are written too.
SUFFIXES = (".npy", ".npz", ".csv", ".pt")

#: Further endings of files that are read, but not written.
READ = (".tsv", ".txt", ".gz", ".zip", *data_files.SUFFIXES)


@dataclass(frozen=True)
class Reading:
    """How a file is to be read.

    :ivar header: whether the first line of a text file, or of a sheet, names the columns; by
        default it does where it holds no number.
    :ivar decimal: the decimal mark; by default found out.
    :ivar sheet: of an .xlsx file; by default the first.
    :ivar as_text: names of columns that stay text, whatever they hold.
    """

    header: bool | None = None
    decimal: str | None = None
    sheet: str | None = None
    as_text: Collection[str] = ()


@dataclass
class Table:
    """Rows ``(N, W)`` of a file, and the names of their columns, where it has any.

    :ivar text: what it holds in columns that cannot be modelled, and where.
    :ivar cells: the text, booleans or dates of columns that hold such, None or NaT where a cell is
        missing; their ``rows`` are 0.
    :ivar whole: columns whose numbers are written as integers.
    :ivar lines: the line, from 1, that each row of a text file is in; None for other files.
    :ivar note: what the user should know of how the file was read.
    """

    path: str
    rows: Tensor
    columns: list[str] | None = None
    text: dict[int, str] = field(default_factory=dict)
    cells: dict[int, np.ndarray | Series] = field(default_factory=dict)
    whole: Collection[int] = ()
    lines: Sequence[int] | None = None
    note: str | None = None

    @classmethod
    def of(cls, path: str, found: Parsed) -> Table:
        """Return what was read of a file."""
        rows = torch.from_numpy(found.rows)
        told = found.text, found.cells, found.whole
        return cls(path, rows, found.columns, *told, found.lines, found.note)

    def missing(self) -> Tensor:
        """Which cells have no value, ``(N, W)``."""
        gone = self.rows.isnan()
        for i, cells in self.cells.items():
            if not isinstance(cells, np.ndarray):
                empty = cells.isna().to_numpy()
            else:
                empty = np.isnat(cells) if cells.dtype.kind == "M" else cells == np.array(None)
            gone[:, i] = torch.from_numpy(empty.astype(bool))
        return gone

    def select(self, chosen: Sequence[str] | None) -> Table:
        """Select columns, each a name, or a number from 0; None for all.

        :raises CommandError: as :meth:`positions`, or when a column holds text.
        """
        names = self.columns or []
        at = list(range(self.rows.shape[1])) if chosen is None else self.positions(chosen)
        wrong = [i for i in at if i in self.text]
        if wrong:
            others = [names[i] if names else str(i) for i in wrong[1:]]
            more = f"; likewise {preparation.listed('column', others)}" if others else ""
            raise CommandError(f"{self.path} holds {self.text[wrong[0]]}{more}")
        cells = {place: self.cells[i] for place, i in enumerate(at) if i in self.cells}
        kept = [names[i] for i in at] if names else None
        whole = [place for place, i in enumerate(at) if i in self.whole]
        return Table(self.path, self.rows[:, at], kept, {}, cells, whole, self.lines)

    def content(self) -> Tensor | dict[str, np.ndarray | Series]:
        """Return the rows, or the columns by name where one is more than numbers."""
        if not self.cells and not (self.columns and self.whole):
            return self.rows
        names = self.columns or [str(i) for i in range(self.rows.shape[1])]
        found: dict[str, np.ndarray | Series] = {}
        for i, name in enumerate(names):
            numbers = self.rows[:, i].numpy()
            whole = i in self.whole and bool(np.isfinite(numbers).all())
            found[name] = self.cells.get(i, numbers.astype(np.int64) if whole else numbers)
        return found

    def keep(self, kept: Tensor) -> None:
        """Leave out the other rows."""
        self.rows = self.rows[kept]
        self.cells = {i: cells[kept.numpy()] for i, cells in self.cells.items()}
        if self.lines is not None:
            at = kept.nonzero().squeeze(1).tolist()
            self.lines = [self.lines[i] for i in at]

    def positions(self, chosen: Sequence[str]) -> list[int]:
        """Where these columns are.

        :raises CommandError: when there is no such column, or one is named twice.
        """
        names, at = self.columns or [], list[int]()
        for name in chosen:
            if name in names:
                at.append(names.index(name))
            elif name.isascii() and name.isdigit() and int(name) < self.rows.shape[1]:
                at.append(int(name))
            else:
                known = ", ".join(names) or f"0 to {self.rows.shape[1] - 1}"
                raise CommandError(f"{self.path} has no column {name!r}; there are {known}")
            if at[-1] in at[:-1]:
                raise CommandError(f"column {name} of {self.path} is named twice")
        return at

    def listed(self, text: str) -> list[str]:
        """Read the columns that an argument lists, with commas between and perhaps in names.

        >>> Table("", torch.zeros(1, 2), ["Height, cm", "Weight"]).listed("Weight,Height, cm")
        ['Weight', 'Height, cm']
        """
        known = {*(self.columns or ()), *map(str, range(self.rows.shape[1]))}
        with suppress(csv.Error):
            quoted = next(csv.reader(text.splitlines(True), skipinitialspace=True), [])
            if known.issuperset(quoted):
                return quoted
        parts, found = text.split(","), list[str]()
        while parts:
            sizes = (n for n in range(len(parts), 0, -1) if ",".join(parts[:n]) in known)
            size = next(sizes, 1)
            found.append(",".join(parts[:size]))
            del parts[:size]
        return found

    def without(self, left_out: Sequence[str]) -> list[str]:
        """Return the names, or numbers, of all columns but these."""
        names = self.columns or [str(i) for i in range(self.rows.shape[1])]
        numbers = {str(names.index(name)) if name in names else name for name in left_out}
        return [name for i, name in enumerate(names) if str(i) not in numbers]


def read_table(path: str, how: Reading = Reading()) -> Table:
    """Read rows; a vector is one column. An .npz or .pt with several arrays must name one ``x``.

    :raises CommandError: when it is no table of numbers.
    :raises OSError: when it cannot be read.
    """
    suffix = Path(path).suffix.lower()
    if how.sheet is not None and suffix != ".xlsx":
        raise CommandError(f"--sheet is for .xlsx files, not {path}")
    if text_files.is_text(path):
        return Table.of(path, read_csv(path, how.header, how.decimal, how.as_text))
    if how.header is not None and suffix != ".xlsx":
        raise CommandError(f"--header and --no-header are for .csv files, not {path}")
    if suffix in data_files.SUFFIXES:
        read = data_files.read_data(path, how.header, how.sheet, how.decimal, how.as_text)
        return Table.of(path, read)
    if suffix not in SUFFIXES:
        raise CommandError(f"{path} must be one of {', '.join((*SUFFIXES, *READ))}")
    value = _read_torch(path) if suffix == ".pt" else _read_numpy(path)
    try:
        rows = preparation.as_tensor(value, path)
    except TypeError as error:
        raise CommandError(str(error)) from None
    if rows.dim() == 1:
        rows = rows.unsqueeze(1)
    if rows.dim() != 2 or rows.numel() == 0:
        raise CommandError(f"{path} must hold rows and columns, got shape {tuple(rows.shape)}")
    return Table(path, rows)


def _read_numpy(path: str) -> np.ndarray:
    try:
        with numpy_file(path) as found:
            if not isinstance(found, np.lib.npyio.NpzFile):
                return np.asarray(found)
            return np.asarray(member(found, _only_or_x(found.files, path)))
    except (OSError, CommandError):
        raise
    except Exception as error:  # what a reader of foreign bytes may raise is written nowhere
        reason = (str(error).splitlines() or [""])[0][:300]
        raise CommandError(f"{path} cannot be read: {reason}") from None


def _read_torch(path: str) -> Tensor:
    try:
        found = archive.read(path)
    except archive.NotTensorsError as error:
        raise CommandError(f"{path} is not a whole file of tensors: {error}") from None
    if isinstance(found, dict):
        names = {str(name): name for name in found}
        found = found[names[_only_or_x(list(names), path)]]
    if not isinstance(found, Tensor):
        raise CommandError(f"{path} must hold a tensor, got {type(found).__name__}")
    return found


def _only_or_x(names: Sequence[str], path: str) -> str:
    if len(names) == 1:
        return names[0]
    if "x" in names:
        return "x"
    raise CommandError(f"{path} must hold one array, or one named x; it holds {', '.join(names)}")


# ----------------------------------------------------------------------------------------- writing


def write_columns(path: str, columns: Mapping[str, np.ndarray]) -> None:
    """Write columns, of text and dates too, to a .csv file or to standard output.

    :raises CommandError: for another kind of file.
    :raises OSError: when it cannot be written.
    """
    if check_output(path) not in (".csv", STANDARD):
        raise CommandError(f"{path} must be a .csv file: the model has columns of text or dates")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    _written(path, text.getvalue().encode())


def write_table(path: str, rows: np.ndarray, columns: Sequence[str] | None = None) -> None:
    """Write rows to a .npy, .npz, .csv or .pt file; an older one stands until all is there.

    Standard output is given the text of a .csv file.

    :raises CommandError: for another kind of file.
    :raises OSError: when it cannot be written.
    """
    suffix, buffer = check_output(path), io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, rows)
    elif suffix == ".npz":
        np.savez_compressed(buffer, x=rows)
    elif suffix == ".pt":
        torch.save(torch.from_numpy(rows), buffer)
    else:
        names = columns or [f"x{i}" for i in range(rows.shape[1])]
        header = io.StringIO()
        # Names that could be taken for numbers are told from them by their quotes.
        quotes: Literal[0, 1] = csv.QUOTE_MINIMAL if are_names(names) else csv.QUOTE_ALL
        csv.writer(header, quoting=quotes, lineterminator="\n").writerow(names)
        buffer.write(header.getvalue().encode())
        digits = 17 if rows.dtype == np.float64 else 9  # as many as bring the number back
        np.savetxt(buffer, rows, delimiter=",", fmt=f"%.{digits}g")
    _written(path, buffer.getvalue())


def _written(path: str, content: bytes) -> None:
    if path == STANDARD:
        sys.stdout.write(content.decode())
    else:
        replace_file(path, content)


def telling(path: str | None) -> Callable[[str], None]:
    """How to say what was done: beside the table, where that is on standard output."""
    return partial(print, file=sys.stderr) if path == STANDARD else print


def check_output(path: str) -> str:
    """Check the suffix of a file for :func:`write_table`; "-" is standard output.

    :raises CommandError: for another suffix.
    :raises OSError: for what is no file.
    """
    if path == STANDARD:
        return path
    check_file(path)
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise CommandError(f"{path} must be one of {', '.join(SUFFIXES)}")
    return suffix
