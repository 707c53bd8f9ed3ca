"""Text files with commas, semicolons or tabs between their cells: encodings, names, decimals."""

from __future__ import annotations

import csv
import gzip
import io
import os
import re
import warnings
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

import numpy as np

from ...files.atomic import open_file
from ...support.command_line import UNPACKED, CommandError
from ..kinds import MANY_CLASSES

#: What the names of text files end with, ".gz" left out.
SUFFIXES = (".csv", ".tsv")

#: What a cell without a value may hold, in lower case.
MISSING = ("", "?", "na", "n/a", "nan", "null", "none")

#: Characters of a first line beyond which a quote in it begins no cell of several lines.
LONGEST = 2**16

#: An integer, or a number with a decimal comma.
DECIMAL_COMMA = re.compile(r"[+-]?\d+(,\d+)?([eE][+-]?\d+)?")

#: Latin-1 with the quotes and dashes of Windows.
LATIN = "cp1252"

#: Characters that no text holds.
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


@dataclass
class Parsed:
    """What a text file holds.

    :ivar rows: ``(N, W)``, with NaN where there is no number.
    :ivar columns: their names, where the file has any.
    :ivar text: what is wrong with columns of text.
    :ivar cells: the text of columns that can be modelled as classes or dates.
    :ivar note: what the user should know of the reading.
    """

    rows: np.ndarray
    columns: list[str] | None
    text: dict[int, str]
    cells: dict[int, np.ndarray]
    note: str | None = None


def lines_of(path: str, rows: int, named: bool) -> list[int] | None:
    """The line, from 1, that each row of a text file is in; None where that is not so.

    :param named: whether the file names its columns.
    """
    if not is_text(path):
        return None
    with _opened(path, _encoding(path)) as file:
        filled = [i for i, line in enumerate(file, 1) if line.strip(" ,;\t\r\n")]
    # Without that of the names; None where a cell of text goes over several lines.
    names = 1 if named else 0
    return filled[names:] if len(filled) == rows + names else None


def is_text(path: str) -> bool:
    """Whether a file is named as one of text: .csv or .tsv, or such a file packed by gzip."""
    return Path(path.lower().removesuffix(".gz")).suffix in SUFFIXES


def read_csv(path: str, header: bool | None) -> Parsed:
    """The cells of a text file with commas, semicolons or tabs between.

    It is in UTF-8, or else in Windows' Latin-1, which the note says. Where decimals are written
    with a comma, numbers are read so.

    :param header: whether the first line names the columns; by default it does where it holds no
        number.
    :raises CommandError: when it is no table.
    :raises OSError: when it cannot be read.
    """
    try:
        encoding = _encoding(path)
        with _opened(path, encoding) as file:
            found = _parse_csv(file, path, header)
        if encoding == LATIN:
            found.note = f"{path} is not in UTF-8, and was read as Latin-1"
        return found
    except (UnicodeDecodeError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile):
        raise CommandError(f"{path} is not a text file of numbers, in UTF-8") from None


def _opened(path: str, encoding: str) -> TextIO:
    if not path.lower().endswith(".gz"):
        return io.TextIOWrapper(open_file(path), encoding=encoding, newline="")
    with open_file(path) as file:
        limit = max(UNPACKED, 100 * os.fstat(file.fileno()).st_size)
        content = gzip.GzipFile(fileobj=file).read(limit + 1)
    if len(content) > limit:
        raise CommandError(f"{path} would unpack to more than {limit} bytes")
    return io.TextIOWrapper(io.BytesIO(content), encoding=encoding, newline="")


def _encoding(path: str) -> str:
    """UTF-8, or Windows' Latin-1 where the file is no UTF-8 and holds no control characters."""
    try:
        with _opened(path, "utf-8-sig") as file:
            for _ in file:
                pass
    except UnicodeDecodeError:
        with _opened(path, "latin-1") as file:
            if any(CONTROL.search(line) for line in file):
                return "utf-8-sig"
        return LATIN
    return "utf-8-sig"


def _parse_csv(file: TextIO, path: str, header: bool | None) -> Parsed:
    first, before = _first_record(file)
    plain = re.sub('"[^"]*"', "", "".join(first))
    delimiter = _delimiter(plain)
    cells = [cell.strip() for cell in next(csv.reader(first, delimiter=delimiter), [])]
    after = file.tell()
    if header is None:
        # Quoted cells above plain ones are names, even where they are numbers.
        quoted = first != [] and not plain.strip(f" {delimiter}\r\n") and '"' in first[0]
        header = (quoted and '"' not in file.readline()) or are_names(
            cell.replace(",", ".") if DECIMAL_COMMA.fullmatch(cell) else cell for cell in cells
        )
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
    return Parsed(rows, columns, text, kept)


def _delimiter(line: str) -> str:
    """What stands between the cells of the first line: not the commas of decimals."""
    for delimiter in ";\t":
        cells = line.strip().split(delimiter)
        if len(cells) > 1 and all(DECIMAL_COMMA.fullmatch(cell.strip()) for cell in cells):
            return delimiter
    return max(",;\t", key=line.count)


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


def are_names(cells: Iterable[str]) -> bool:
    """Whether cells of a first line are names of columns: none is a number, not all are missing."""
    cells = list(cells)
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
    reader, records, lines = csv.reader(file, delimiter=delimiter), [], []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        line = before + reader.line_num
        if len(cells) != len(names):
            raise CommandError(
                f"{path} has {len(cells)} cells in line {line}, {len(names)} in the first"
            )
        records.append(cells)
        lines.append(line)
    read = _number
    if delimiter != "," and _has_decimal_commas(records):
        read = _number_with_comma
    rows, text = [], dict[int, str]()
    for line, cells in zip(lines, records, strict=True):
        numbers = [read(cell) for cell in cells]
        for i, cell in enumerate(cells):
            if numbers[i] is None and cell.strip().lower() not in MISSING and i not in text:
                text[i] = f"column {names[i]} ({cell[:20]!r} in line {line}); choose with --columns"
        rows.append([np.nan if n is None else n for n in numbers])
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


def _has_decimal_commas(records: list[list[str]]) -> bool:
    """Whether numbers are written as 1,5: some are, and none as 1.5."""
    cells = [cell.strip() for record in records for cell in record]
    commas = any("," in cell and DECIMAL_COMMA.fullmatch(cell) for cell in cells)
    return commas and not any("." in cell and _number(cell) is not None for cell in cells)


def _number_with_comma(cell: str) -> float | None:
    cell = cell.strip()
    return _number(cell.replace(",", ".")) if DECIMAL_COMMA.fullmatch(cell) else _number(cell)
