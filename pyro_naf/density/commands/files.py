"""Rows of numbers in files: .npy, .npz, .csv and .pt, read without running any code."""

from __future__ import annotations

import csv
import io
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import Tensor

from ...atomic import replace_file
from ...command_line import CommandError
from .. import preparation

#: What a cell without a value may hold, in lower case.
MISSING = ("", "?", "na", "n/a", "nan", "null", "none")

SUFFIXES = (".npy", ".npz", ".csv", ".pt")


@dataclass
class Table:
    """Rows ``(N, W)`` of a file, and the names of their columns, where it has any.

    :ivar text: what is wrong with each column that holds text.
    """

    path: str
    rows: Tensor
    columns: list[str] | None = None
    text: dict[int, str] = field(default_factory=dict)

    def select(self, chosen: Sequence[str] | None) -> Table:
        """These columns, each a name, or a number from 0; None for all.

        :raises CommandError: as :meth:`positions`, or when a column holds text.
        """
        names = self.columns or []
        at = list(range(self.rows.shape[1])) if chosen is None else self.positions(chosen)
        for i in at:
            if i in self.text:
                raise CommandError(f"{self.path} holds text in {self.text[i]}")
        return Table(self.path, self.rows[:, at], [names[i] for i in at] if names else None)

    def positions(self, chosen: Sequence[str]) -> list[int]:
        """Where these columns are.

        :raises CommandError: when there is no such column, or one is named twice.
        """
        names, at = self.columns or [], list[int]()
        for name in chosen:
            if name in names:
                at.append(names.index(name))
            elif name.isdigit() and int(name) < self.rows.shape[1]:
                at.append(int(name))
            else:
                known = ", ".join(names) or f"0 to {self.rows.shape[1] - 1}"
                raise CommandError(f"{self.path} has no column {name!r}; there are {known}")
            if at[-1] in at[:-1]:
                raise CommandError(f"column {name} of {self.path} is named twice")
        return at

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
    unreadable = (EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)
    with open(path, "rb") as file:
        try:
            found = np.load(file, allow_pickle=False)
            if not isinstance(found, np.lib.npyio.NpzFile):
                return np.asarray(found)
            name = _only_or_x(found.files, path)
            return np.asarray(found[name])
        except unreadable as error:
            reason = (str(error).splitlines() or [""])[0]
            raise CommandError(f"{path} cannot be read: {reason}") from None


def _read_torch(path: str) -> Tensor:
    data = Path(path).read_bytes()
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # what a reader of foreign bytes may raise is written nowhere
        raise CommandError(f"{path} is not a whole file of tensors") from None
    if isinstance(found, dict):
        found = found[_only_or_x(list(found), path)]
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
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _parse_csv(file, path, header)
    except (UnicodeDecodeError, csv.Error):
        raise CommandError(f"{path} is not a text file of numbers") from None


def _parse_csv(file: TextIO, path: str, header: bool | None) -> Table:
    first = file.readline()
    delimiter = max(",;\t", key=first.count)
    cells = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
    if header is None:
        header = all(_number(cell) is None for cell in cells)
    columns = cells if header else None
    file.seek(0)
    if columns is not None:
        file.readline()
    start, text = file.tell(), dict[int, str]()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of no rows: said below
            rows = np.loadtxt(file, delimiter=delimiter, ndmin=2, comments=None)
    except ValueError:
        # Missing values, text or a ragged row: slower, and to the point.
        file.seek(start)
        rows, text = _parse_cells(file, path, delimiter, cells, columns is not None)
    if rows.size == 0:
        raise CommandError(f"{path} holds no rows")
    if len(cells) != rows.shape[1]:
        raise CommandError(f"{path} names {len(cells)} columns, but has {rows.shape[1]}")
    return Table(path, torch.from_numpy(rows), columns, text)


def _parse_cells(
    file: TextIO, path: str, delimiter: str, first: list[str], header: bool
) -> tuple[np.ndarray, dict[int, str]]:
    """The rows, with NaN where there is no number; and what is wrong with columns of text."""
    rows, text = [], {}
    for line, cells in enumerate(csv.reader(file, delimiter=delimiter), 2 if header else 1):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(first):
            raise CommandError(
                f"{path} has {len(cells)} cells in line {line}, {len(first)} in the first"
            )
        numbers = [_number(cell) for cell in cells]
        for i, cell in enumerate(cells):
            if numbers[i] is None and cell.strip().lower() not in MISSING and i not in text:
                name = first[i] if header else str(i)
                text[i] = f"column {name} ({cell[:20]!r} in line {line}); choose with --columns"
        rows.append([np.nan if n is None else n for n in numbers])
    return np.array(rows, np.float64), text


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


# ----------------------------------------------------------------------------------------- writing


def write_table(path: str, rows: np.ndarray, columns: Sequence[str] | None = None) -> None:
    """Writes rows to a .npy, .npz, .csv or .pt file; an older one stands until all is there.

    :raises CommandError: for another kind of file.
    :raises OSError: when it cannot be written.
    """
    suffix, buffer = check_suffix(path), io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, rows)
    elif suffix == ".npz":
        np.savez_compressed(buffer, x=rows)
    elif suffix == ".pt":
        torch.save(torch.from_numpy(rows), buffer)
    else:
        names = columns or [f"x{i}" for i in range(rows.shape[1])]
        buffer.write((",".join(names) + "\n").encode())
        digits = 17 if rows.dtype == np.float64 else 9  # as many as bring the number back
        np.savetxt(buffer, rows, delimiter=",", fmt=f"%.{digits}g")
    replace_file(path, buffer.getbuffer())


def check_suffix(path: str) -> str:
    """That of a file which :func:`write_table` can write.

    :raises CommandError: for another.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise CommandError(f"{path} must be one of {', '.join(SUFFIXES)}")
    return suffix
