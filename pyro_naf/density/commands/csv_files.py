"""Text with commas, semicolons, tabs, bars or blanks between its cells: rows, names, comments.

pandas is not asked for it: it fills short rows with missing cells without a word, has to be told
the delimiter, the decimal mark and the encoding, reads a column with one mistyped number as text,
and counts the lines of its messages without comments and blank lines.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from ...support.command_line import CommandError
from ..numerals import MISSING
from .cells import CODE, EXACT, INTEGER, NUMBERS, Parsed, numbers, parse
from .text_files import read_text

#: What may stand between cells, from the most certain to the least; None are runs of blanks.
DELIMITERS = ("\t", ";", "|", ",")

#: Lines that are looked at to find the delimiter.
HEAD = 20

#: Number of characters of a first line beyond which a quote in it does not begin a cell of several
#: lines.
LONGEST = 2**16

#: Names of a column that may only count the rows.
COUNTERS = ("", "Unnamed: 0")

#: A code, or what may be one, as a cell.
CODE_CELL = re.compile(rf"(?:^|[\s,;|]){CODE.pattern}(?:$|[\s,;|])")


def read_csv(
    path: str,
    header: bool | None,
    decimal: str | None = None,
    as_text: Collection[str] = (),
) -> Parsed:
    """Read the cells of a text file.

    :param header: whether the first line names the columns; by default it does where it holds no
        number.
    :param decimal: the decimal mark; by default found out.
    :param as_text: names of columns that stay text, whatever they hold.
    :raises CommandError: when it is no table.
    :raises OSError: when it cannot be read.
    """
    text, note = read_text(path)
    try:
        found = _Layout(list(io.StringIO(text, newline="")), path, header).parsed(decimal, as_text)
    except csv.Error as error:
        raise CommandError(f"{path} is no table of text: {error}") from None
    found.note = note if found.note is None else found.note
    return found


class _Layout:
    """Where a table begins in the lines of a text, what its columns are called, and its delimiter.

    Lines with "#" in front are comments, but for the last of them before the rows, where it has as
    many cells as they.
    """

    def __init__(self, lines: list[str], path: str, header: bool | None) -> None:
        self.lines, self.path = lines, path
        self.begin, self.delimiter = 0, ""
        filled = (i for i, line in enumerate(lines) if line.strip())
        self.begin = next(filled, len(lines))
        if self.begin < len(lines) and re.fullmatch(r"sep=.\s*", lines[self.begin]):  # of Excel
            self.delimiter = lines[self.begin][4]
            self.begin = next(filled, len(lines))
        self._skip_comments()
        first = self._first_record()
        self.delimiter = self.delimiter or _delimiter(self.lines[self.begin :], first)
        cells = next(iter(self._reader(first)), list[str]())
        after = self.begin + len(first)
        self.cells = [cell.strip() for cell in cells]
        if header is None:
            second = "".join(self.lines[after : after + 1])
            header = self._quoted(first, second) or are_names(self.cells)
        self.columns = different(self.cells) if header else None
        self.start = after if header else self.begin

    def _skip_comments(self) -> None:
        at = self.begin
        while at < len(self.lines) and self.lines[at].startswith(("#", "\n", "\r")):
            at += 1
        comments = [i for i in range(self.begin, at) if self.lines[i].startswith("#")]
        if not comments or at == len(self.lines):
            return
        self.begin, last = at, self.lines[comments[-1]].lstrip("#").strip()
        plain = _delimiter(self.lines[at:], self.lines[at : at + 1])
        widths = [len(_split(line.strip(), plain)) for line in (last, self.lines[at])]
        if widths[0] == widths[1] > 1:
            # "# a,b" are names, and so are "#,a,b".
            keep = plain != " " and self.lines[comments[-1]].startswith(f"#{plain}")
            self.lines[at - 1] = self.lines[comments[-1]] if keep else f"{last}\n"
            self.begin = at - 1

    def _first_record(self) -> list[str]:
        """Read the lines of the first record: a cell of several lines is quoted."""
        lines = self.lines[self.begin : self.begin + 1]
        # Without a second quote in the next lines, the first one is part of a name: 5" pipe.
        for line in self.lines[self.begin + 1 :]:
            if sum(map(len, lines)) >= LONGEST:
                break
            if sum(line.count('"') for line in lines) % 2 == 0:
                return lines
            lines.append(line)
        even = sum(line.count('"') for line in lines) % 2 == 0
        return lines if even else lines[:1]

    def _quoted(self, first: list[str], second: str) -> bool:
        """Whether quoted cells stand above plain ones: names, even where they are numbers."""
        plain = re.sub('"[^"]*"', "", "".join(first)).strip(f" {self.delimiter}\r\n")
        return bool(first) and '"' in first[0] and not plain and '"' not in second

    def _reader(self, lines: Iterable[str]) -> csv._reader:  # type: ignore[name-defined]
        if self.delimiter == " ":
            lines = (line.replace("\t", " ").strip() for line in lines)
        return csv.reader(lines, delimiter=self.delimiter, skipinitialspace=self.delimiter == " ")

    def parsed(self, decimal: str | None, as_text: Collection[str]) -> Parsed:
        """Parse the columns of the table."""
        found = None if decimal == "," or as_text else self._numbers()
        if found is None:
            # Missing values, text, quotes or a ragged row: slower, and to the point.
            records, lines = self._records()
            note = self._without_units(records, lines) or self._without_counter(records)
            names = self.columns or [str(i) for i in range(len(self.cells))]
            if not records:
                raise CommandError(f"{self.path} holds no rows")
            found = parse(records, names, lines, decimal, as_text)
            found.note = note
            if self.columns is None:
                remedy = "; say --header where the first line names the columns"
                found.text = {i: wrong + remedy for i, wrong in found.text.items()}
        found.columns = self.columns
        return found

    def _numbers(self) -> Parsed | None:
        """Read the rows of a file that holds nothing but plain numbers."""
        body = self.lines[self.start :]
        counted = self.columns is not None and self.cells[0] in COUNTERS
        if counted or any(map(CODE_CELL.search, body)):
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of no rows: said later
                delimiter = None if self.delimiter == " " else self.delimiter
                rows = np.loadtxt(body, delimiter=delimiter, ndmin=2, comments=None)
        except ValueError:
            return None
        lines = [i for i, line in enumerate(body, self.start + 1) if line.strip()]
        exact = rows.size and not (np.abs(rows[np.isfinite(rows)]) >= EXACT).any()
        if not exact or rows.shape != (len(lines), len(self.cells)):
            return None
        first = next(iter(self._reader(body[lines[0] - self.start - 1 :])))
        whole = [
            i
            for i, cell in enumerate(first)
            if INTEGER.fullmatch(cell.strip()) and bool((rows[:, i] == rows[:, i].round()).all())
        ]
        return Parsed(rows, None, lines, whole=whole)

    def _records(self) -> tuple[list[list[str]], list[int]]:
        """Rows of cells, all as long as the first, and the line, from 1, that each begins in."""
        reader, records, lines = self._reader(self.lines[self.start :]), [], []
        width, line = len(self.cells), self.start + 1
        for cells in reader:
            end = self.start + reader.line_num
            # Only the last record can have a quote that is not closed.
            if end == len(self.lines) and self._is_open(line, end):
                raise CommandError(f"{self.path} has a quote in line {line} that is not closed")
            filled = any(cell.strip() for cell in cells)
            if filled and not (cells[0].startswith("#") and len(cells) != width):
                records.append(cells)
                lines.append(line)
            line = end + 1
        self._trim(records)
        for cells, line in zip(records, lines, strict=True):
            if len(cells) != len(self.cells):
                raise CommandError(
                    f"{self.path} has {len(cells)} cells in line {line}, {len(self.cells)} in the "
                    "first"
                )
        return records, lines

    def _is_open(self, line: int, end: int) -> bool:
        """Whether a record from one line to a later one has an odd number of quotes."""
        return end > line and sum(t.count('"') for t in self.lines[line - 1 : end]) % 2 == 1

    def _trim(self, records: list[list[str]]) -> None:
        """Drop what a delimiter at the end of lines begins, where it is always empty."""
        width = len(self.cells)
        nameless = self.columns is not None and width > 1 and not self.cells[-1]
        if nameless and all(len(c) == width - 1 or not c[-1].strip() for c in records):
            self.cells.pop()
            assert self.columns is not None
            self.columns.pop()
            width -= 1
        fits = records and all(len(c) in (width, width + 1) for c in records)
        if fits and not any(cell.strip() for cells in records for cell in cells[width:]):
            for cells in records:
                del cells[width:]

    def _without_units(self, records: list[list[str]], lines: list[int]) -> str | None:
        """Leave out a first row of units: text above nothing but numbers in some column."""
        if self.columns is None or len(records) < 3 or numbers_in(records[0]):
            return None
        for column in zip(*records, strict=True):
            cells = [cell.strip() for cell in column if cell.strip().lower() not in MISSING]
            is_text = len(cells) > 2 and cells[0] == column[0].strip() and not numbers_in(cells[:1])
            if is_text and numbers_in(cells[1:]) == len(cells) - 1:
                units = ", ".join(cell.strip() for cell in records.pop(0))
                return f"{self.path} has units in line {lines.pop(0)}, left out: {units[:60]}"
        return None

    def _without_counter(self, records: list[list[str]]) -> str | None:
        """Leave out a first column that has no name and counts the rows, as pandas writes it."""
        if self.columns is None or self.cells[0] not in COUNTERS or len(self.cells) < 2:
            return None
        first = [cells[0].strip() for cells in records]
        if not any(first == [*map(str, range(k, k + len(first)))] for k in (0, 1)):
            return None
        for cells in [self.cells, self.columns, *records]:
            del cells[0]
        return f"{self.path} counts its rows in the first column, which was left out"


def _split(line: str, delimiter: str) -> list[str]:
    return line.split() if delimiter == " " else line.split(delimiter)


def _delimiter(lines: Sequence[str], first: Sequence[str]) -> str:
    """Find the separator: in each of the first lines equally often, or most often in the first."""
    head = re.sub('"[^"]*"', "", "".join(lines[:HEAD])).splitlines()
    head = [line.strip(" \r\n") for line in head if line.strip() and not line.startswith("#")]
    if len(head) > 1:
        for delimiter in DELIMITERS:
            if len({line.count(delimiter) for line in head}) == 1 and delimiter in head[0]:
                return delimiter
    plain = re.sub('"[^"]*"', "", "".join(first)).strip(" \r\n")
    for delimiter in DELIMITERS[:-1]:
        cells = plain.split(delimiter)
        if len(cells) > 1 and all(NUMBERS[","].fullmatch(cell.strip()) for cell in cells):
            return delimiter
    most = max(reversed(DELIMITERS), key=plain.count)
    widths = {len(line.split()) for line in head}
    if most not in plain and len(widths) == 1 and len(head) > 1 and widths != {1}:
        return " "
    return most


def numbers_in(cells: Sequence[str]) -> int:
    """Count the cells that hold a number, with either decimal mark."""
    return sum(
        (
            any(form.fullmatch(cell.strip()) for form in NUMBERS.values())
            and any(map(str.isdigit, cell))
        )
        or numbers([cell]) is not None
        for cell in cells
    )


def are_names(cells: Sequence[str]) -> bool:
    """Whether cells of a first line are names of columns: none is a number, not all are missing."""
    return not numbers_in(cells) and any(cell.strip().lower() not in MISSING for cell in cells)


def different(names: Sequence[str]) -> list[str]:
    """Make names different as pandas does: "a", "a.1"; an empty one is its place, "x0"."""
    found = list[str]()
    for i, name in enumerate(names):
        name = unique = name or f"x{i}"
        number = 0
        while unique in found or (number and unique in names):
            number += 1
            unique = f"{name}.{number}"
        found.append(unique)
    return found
