"""Rows of numbers in files: .npy, .npz, .csv and .pt, read without running any code."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from ... import archive
from ...atomic import check_file, open_file, replace_file
from ...command_line import CommandError, member, numpy_file
from .. import preparation
from ..kinds import MANY_CLASSES

#: What a cell without a value may hold, in lower case.
MISSING = ("", "?", "na", "n/a", "nan", "null", "none")

#: Characters of a first line beyond which a quote in it begins no cell of several lines.
LONGEST = 2**16

SUFFIXES = (".npy", ".npz", ".csv", ".pt")


@dataclass
class Table:
    """Rows ``(N, W)`` of a file, and the names of their columns, where it has any.

    :ivar text: what is wrong with each column that holds text.
    :ivar cells: the text, or dates, of columns that hold nothing else; their ``rows`` are 0.
    """

    path: str
    rows: Tensor
    columns: list[str] | None = None
    text: dict[int, str] = field(default_factory=dict)
    cells: dict[int, np.ndarray] = field(default_factory=dict)

    def select(self, chosen: Sequence[str] | None) -> Table:
        """These columns, each a name, or a number from 0; None for all.

        :raises CommandError: as :meth:`positions`, or when a column holds text.
        """
        names = self.columns or []
        at = list(range(self.rows.shape[1])) if chosen is None else self.positions(chosen)
        for i in at:
            if i in self.text:
                raise CommandError(f"{self.path} holds text in {self.text[i]}")
        cells = {place: self.cells[i] for place, i in enumerate(at) if i in self.cells}
        kept = [names[i] for i in at] if names else None
        return Table(self.path, self.rows[:, at], kept, cells=cells)

    def content(self) -> Tensor | dict[str, Any]:
        """The rows, or where there is text, the columns by name."""
        if not self.cells:
            return self.rows
        names = self.columns or [str(i) for i in range(self.rows.shape[1])]
        numbers = self.rows.numpy()
        return {name: self.cells.get(i, numbers[:, i]) for i, name in enumerate(names)}

    def keep(self, kept: Tensor) -> None:
        """Leaves out the other rows."""
        self.rows = self.rows[kept]
        self.cells = {i: cells[kept.numpy()] for i, cells in self.cells.items()}

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
        """The columns that an argument lists, with commas between; names may hold commas too.

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
        """The names, or numbers, of all columns but these."""
        names = self.columns or [str(i) for i in range(self.rows.shape[1])]
        numbers = {str(names.index(name)) if name in names else name for name in left_out}
        return [name for i, name in enumerate(names) if str(i) not in numbers]


def read_table(path: str, header: bool | None = None) -> Table:
    """The rows of a file; a vector is one column. Of an .npz or .pt with several arrays, ``x``.

    :param header: whether the first line of a .csv names the columns; by default it does where it
        holds no number.
    :raises CommandError: when it is no table of numbers.
    :raises OSError: when it cannot be read.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        return _read_csv(path, header)
    if header is not None:
        raise CommandError(f"--header and --no-header are for .csv files, not {path}")
    if suffix not in SUFFIXES:
        raise CommandError(f"{path} must be one of {', '.join(SUFFIXES)}")
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


# --------------------------------------------------------------------------------------------- csv


def lines_of(table: Table) -> list[int] | None:
    """The line, from 1, that each row of a .csv file is in; None where that is not so."""
    if Path(table.path).suffix.lower() != ".csv":
        return None
    with open(table.path, encoding="utf-8-sig", newline="") as file:
        filled = [i for i, line in enumerate(file, 1) if line.strip(" ,;\t\r\n")]
    # Without that of the names; None where a cell of text goes over several lines.
    names = 0 if table.columns is None else 1
    return filled[names:] if len(filled) == len(table.rows) + names else None


def _read_csv(path: str, header: bool | None) -> Table:
    try:
        with io.TextIOWrapper(open_file(path), encoding="utf-8-sig", newline="") as file:
            return _parse_csv(file, path, header)
    except (UnicodeDecodeError, csv.Error):
        raise CommandError(f"{path} is not a text file of numbers, in UTF-8") from None


def _parse_csv(file: TextIO, path: str, header: bool | None) -> Table:
    first, before = _first_record(file)
    plain = re.sub('"[^"]*"', "", "".join(first))
    delimiter = max(",;\t", key=plain.count)
    cells = [cell.strip() for cell in next(csv.reader(first, delimiter=delimiter), [])]
    after = file.tell()
    if header is None:
        # Quoted cells above plain ones are names, even where they are numbers.
        quoted = first != [] and not plain.strip(f" {delimiter}\r\n") and '"' in first[0]
        header = (quoted and '"' not in file.readline()) or _are_names(cells)
    columns = _different(cells) if header else None
    start = (after, before + len(first)) if header else (0, 0)
    file.seek(start[0])
    text, kept = dict[int, str](), dict[int, np.ndarray]()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of no rows: said below
            rows = np.loadtxt(file, delimiter=delimiter, ndmin=2, comments=None)
    except ValueError:
        # Missing values, text, quotes or a ragged row: slower, and to the point.
        file.seek(start[0])
        names = columns or [str(i) for i in range(len(cells))]
        rows, text, kept = _parse_cells(file, path, delimiter, names, start[1])
    if rows.size == 0:
        raise CommandError(f"{path} holds no rows")
    if len(cells) != rows.shape[1]:
        raise CommandError(f"{path} names {len(cells)} columns, but has {rows.shape[1]}")
    return Table(path, torch.from_numpy(rows), columns, text, kept)


def _first_record(file: TextIO) -> tuple[list[str], int]:
    """The lines of the first record that is not blank, and the number of lines before it."""
    before, line = 0, file.readline()
    while line and not line.strip():
        before, line = before + 1, file.readline()
    lines, after = [line], file.tell()
    # A cell of several lines is quoted. Without a second quote in the next lines, the first one is
    # part of a name, as in 5" pipe.
    while sum(map(len, lines)) < LONGEST and sum(line.count('"') for line in lines) % 2:
        if not (line := file.readline()):
            break
        lines.append(line)
    else:
        if sum(map(len, lines)) < LONGEST:
            return lines, before
    file.seek(after)
    return lines[:1], before


def _are_names(cells: Sequence[str]) -> bool:
    """Whether cells of a first line are names of columns: none is a number, not all are missing."""
    numbers = any(_number(cell) is not None for cell in cells)
    return not numbers and any(cell.lower() not in MISSING for cell in cells)


def _different(names: Sequence[str]) -> list[str]:
    """The names, made different as pandas does: "a", "a.1"; an empty one is its place, "x0"."""
    found = list[str]()
    for i, name in enumerate(names):
        name = unique = name or f"x{i}"
        number = 0
        while unique in found or (number and unique in names):
            number += 1
            unique = f"{name}.{number}"
        found.append(unique)
    return found


def _parse_cells(
    file: TextIO, path: str, delimiter: str, names: Sequence[str], before: int
) -> tuple[np.ndarray, dict[int, str], dict[int, np.ndarray]]:
    """The rows, with NaN where there is no number; what is wrong with columns of text; and the text
    of columns that can be modelled as classes or dates."""
    rows, text, records = [], dict[int, str](), []
    reader = csv.reader(file, delimiter=delimiter)
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        line = before + reader.line_num
        if len(cells) != len(names):
            raise CommandError(
                f"{path} has {len(cells)} cells in line {line}, {len(names)} in the first"
            )
        numbers = [_number(cell) for cell in cells]
        for i, cell in enumerate(cells):
            if numbers[i] is None and cell.strip().lower() not in MISSING and i not in text:
                text[i] = f"column {names[i]} ({cell[:20]!r} in line {line}); choose with --columns"
        rows.append([np.nan if n is None else n for n in numbers])
        records.append(cells)
    found = np.array(rows, np.float64)
    kept = dict[int, np.ndarray]()
    for i in list(text):
        column = _classes_or_dates([cells[i].strip() for cells in records])
        if column is not None:
            kept[i] = column
            found[:, i] = 0
            del text[i]
    return found, text, kept


def _classes_or_dates(cells: list[str]) -> np.ndarray | None:
    """A column of text alone, as dates in ISO form or as it is; None where it is neither."""
    if any(cell.lower() in MISSING or _number(cell) is not None for cell in cells):
        return None
    with suppress(ValueError):
        dates = [datetime.fromisoformat(cell).replace(tzinfo=None) for cell in cells]
        return np.array(dates, "datetime64[us]")
    number = len(set(cells))
    return np.array(cells) if 1 < number <= min(MANY_CLASSES, len(cells) // 2) else None


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # Python's "1_000" is no number elsewhere
    except ValueError:
        return None


# ----------------------------------------------------------------------------------------- writing


def write_columns(path: str, columns: Mapping[str, np.ndarray]) -> None:
    """Writes columns, of text and dates too, to a .csv file.

    :raises CommandError: for another kind of file.
    :raises OSError: when it cannot be written.
    """
    if check_output(path) != ".csv":
        raise CommandError(f"{path} must be a .csv file: the model has columns of text or dates")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    replace_file(path, text.getvalue().encode())


def write_table(path: str, rows: np.ndarray, columns: Sequence[str] | None = None) -> None:
    """Writes rows to a .npy, .npz, .csv or .pt file; an older one stands until all is there.

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
        quotes: Any = csv.QUOTE_MINIMAL if _are_names(names) else csv.QUOTE_ALL
        csv.writer(header, quoting=quotes, lineterminator="\n").writerow(names)
        buffer.write(header.getvalue().encode())
        digits = 17 if rows.dtype == np.float64 else 9  # as many as bring the number back
        np.savetxt(buffer, rows, delimiter=",", fmt=f"%.{digits}g")
    replace_file(path, buffer.getbuffer())


def check_output(path: str) -> str:
    """The suffix of a file which :func:`write_table` can write.

    :raises CommandError: for another suffix.
    :raises OSError: for what is no file.
    """
    check_file(path)
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise CommandError(f"{path} must be one of {', '.join(SUFFIXES)}")
    return suffix
