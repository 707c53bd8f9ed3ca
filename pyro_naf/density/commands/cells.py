"""Columns of written cells: numbers with either decimal mark, dates, and classes."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import numpy as np

from .. import numerals
from ..column import MANY_CLASSES
from ..numerals import CODE, MINUS, MISSING, NUMBERS, numbers

if TYPE_CHECKING:
    from pandas import Series

INTEGER = re.compile(r"[+-]?\d+")

#: Largest integer up to which all integers are exact in double precision.
EXACT = 2**53

#: Ways to write a date, beside that of ISO 8601; a time of day may follow.
DATES = (
    "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d %b %Y", "%b %d, %Y",
    "%d-%b-%Y", "%d %B %Y", "%B %d, %Y",
)  # fmt: skip
WRITE_DATES = "; write dates as 2020-12-31"
TIMES = ("", " %H:%M", " %H:%M:%S", "T%H:%M:%S")


@dataclass
class Parsed:
    """What a file of written cells holds.

    :ivar rows: ``(N, W)``, with NaN where a cell is missing, and 0 where ``cells`` has the column.
    :ivar columns: their names, where the file has any.
    :ivar lines: the line, from 1, of each row.
    :ivar text: what the file holds in columns that cannot be modelled, and where.
    :ivar cells: columns of text, with None for a missing cell, and of dates, with NaT; a pandas
        Series of classes that have an order of their own.
    :ivar whole: columns whose numbers are written as integers.
    :ivar note: what the user should know of the reading.
    """

    rows: np.ndarray
    columns: list[str] | None
    lines: Sequence[int]
    text: dict[int, str] = field(default_factory=dict)
    cells: dict[int, np.ndarray | Series] = field(default_factory=dict)
    whole: list[int] = field(default_factory=list)
    note: str | None = None


@dataclass
class Written:
    """A column as it is written: its name, its cells without blanks around, and their lines."""

    name: str
    cells: list[str]
    lines: Sequence[int]

    def __post_init__(self) -> None:
        self.cells = [cell.strip().replace(MINUS, "-") for cell in self.cells]
        self.missing = np.array([cell.lower() in MISSING for cell in self.cells], bool)
        gone = self.missing.tolist()
        self.seen = [c for c, missing in zip(self.cells, gone, strict=True) if not missing]

    def named(self, cell: str, more: str = "") -> str:
        """Say what is wrong with a cell, and where that is first."""
        line = self.lines[self.cells.index(cell)]
        return f"column {self.name} ({cell[:20]!r} in line {line}{more})"

    def placed(self, values: Sequence[float]) -> np.ndarray:
        """Values of the cells seen, and NaN for the others."""
        found = np.full(len(self.cells), np.nan)
        found[~self.missing] = values
        return found

    def as_objects(self, seen: Sequence[str]) -> np.ndarray:
        """Text in place of the cells seen, and None for the others."""
        found = np.full(len(self.cells), None, object)
        found[~self.missing] = seen
        return found

    def read_by(self, mark: str) -> np.ndarray | None:
        """Read numbers that are written with this decimal mark; None where a cell is none."""
        found = numerals.read_by(self.seen, mark)
        return None if found is None else self.placed(found)


def parse(
    records: Sequence[Sequence[str]],
    names: Sequence[str],
    lines: Sequence[int],
    decimal: str | None = None,
    as_text: Collection[str] = (),
) -> Parsed:
    """Parse rows of written cells, each with as many cells as there are names.

    The decimal mark of a column is the one by which all its cells are numbers. Where that is either
    (1,234), it is the mark that the other columns tell, or the one given.

    :param as_text: names of columns that stay text, whatever they hold.
    """
    columns = [
        Written(name, list(cells), lines)
        for name, cells in zip(names, zip(*records, strict=True), strict=True)
    ]
    found = Parsed(np.zeros((len(records), len(names))), None, lines)
    readings = {
        i: {mark: column.read_by(mark) for mark in NUMBERS}
        for i, column in enumerate(columns)
        if column.name not in as_text
    }
    told = {
        mark
        for marks in readings.values()
        for mark, other in ((".", ","), (",", "."))
        if marks[mark] is not None and marks[other] is None
    }
    for i, column in enumerate(columns):
        number = _chosen(column, readings[i], decimal, told) if i in readings else None
        if number is None or any(map(CODE.fullmatch, column.seen)):
            is_code, is_text = number is not None, column.name in as_text
            kept = _classes_or_dates(column, is_code, is_text, decimal)
        else:
            kept = number if isinstance(number, str) else _exact(column, number)
        if isinstance(kept, str):
            found.text[i] = kept
        elif kept is number:
            found.rows[:, i] = kept
            if all(map(INTEGER.fullmatch, column.seen)):
                found.whole.append(i)
        else:
            found.cells[i] = kept
    return found


def _chosen(
    column: Written, read: dict[str, np.ndarray | None], decimal: str | None, told: set[str]
) -> np.ndarray | str | None:
    """Return the numbers of a column, what is wrong with them, or None where a cell is none."""
    point, comma = read["."], read[","]
    if point is None or comma is None:
        return point if comma is None else comma
    if np.array_equal(point, comma, equal_nan=True):
        return point
    plain = numbers(column.seen) is not None
    if decimal is None and len(told) < 2 and (told or plain):
        decimal = next(iter(told), ".")
    if decimal is None:
        at = int(np.flatnonzero((point != comma) & ~column.missing)[0])
        where = column.named(column.cells[at], f", {point[at]:.15g} or {comma[at]:.15g}")
        return f"an unclear decimal mark in {where}; say --decimal . or --decimal ,"
    return read[decimal]


def _exact(column: Written, found: np.ndarray) -> np.ndarray | str:
    """Return the numbers, unless an integer is another number in double precision."""
    for at in np.flatnonzero(np.abs(found) >= EXACT).tolist():
        cell = column.cells[at].lstrip("+")
        if cell.lstrip("-").isdigit() and int(cell) != int(found[at]):
            return (
                f"an integer of too many digits in {column.named(column.cells[at])}; leave it out "
                f"with --exclude {column.name}"
            )
    return found


def _classes_or_dates(
    column: Written, is_code: bool, kept_as_text: bool, decimal: str | None
) -> np.ndarray | str:
    """Read a column of text, as dates, quantities or classes, or what is wrong with it."""
    first = (column.seen or column.cells)[0]
    first = next((cell for cell in column.seen if numbers([cell]) is None), first)
    wrong = f"text in {column.named(first)}"
    if not (is_code or kept_as_text):
        if any(numbers([cell]) is not None for cell in column.seen):
            remedy = f"correct it, or leave the column out with --exclude {column.name}"
            return f"{wrong} among numbers; {remedy}"
        dates = _dates(column)
        if dates is not None:
            return dates
        quantities = numerals.measured(column.seen, decimal)
        if quantities is not None:
            unit = quantities.unit
            return column.as_objects([numerals.written(value, unit) for value in quantities.values])
    number = len(set(column.seen))
    if kept_as_text or 1 < number <= min(MANY_CLASSES, len(column.seen) // 2):
        return column.as_objects(column.seen)
    values = f"{number} value{'s' if number > 1 else ''} in {len(column.seen)} rows"
    return f"{wrong}, {values}; leave it out with --exclude {column.name}"


def _dates(column: Written) -> np.ndarray | str | None:
    """Dates without a time zone, those with one in UTC; None where there is none."""
    with suppress(ValueError):
        return _placed(column, [_naive(datetime.fromisoformat(cell)) for cell in column.seen])
    if not any(map(str.isdigit, column.seen[0])):
        return None
    read = [found for form in DATES if (found := _read(column, form)) is not None]
    if len(read) > 1 and read[0] != read[1]:
        at = next(i for i, (a, b) in enumerate(zip(*read[:2], strict=True)) if a != b)
        days = " or ".join(f"{days[at]:%Y-%m-%d}" for days in read[:2])
        return f"dates in {column.named(column.seen[at], f', which is {days}')}{WRITE_DATES}"
    if read:
        return _placed(column, read[0])
    kinds = {_kind(cell) for cell in column.seen}
    if None in kinds:
        return None
    other = next(cell for cell in column.seen if _kind(cell) != _kind(column.seen[0]))
    where = column.named(column.seen[0], f", and {other!r} further down")
    return f"dates of two kinds in {where}{WRITE_DATES}"


def _naive(moment: datetime) -> datetime:
    """Convert a moment to UTC and drop its time zone."""
    return moment.astimezone(timezone.utc).replace(tzinfo=None) if moment.tzinfo else moment


def _placed(column: Written, dates: Sequence[datetime]) -> np.ndarray:
    found = np.full(len(column.cells), "NaT", "datetime64[us]")
    found[~column.missing] = np.array(dates, "datetime64[us]")
    return found


def _read(column: Written, form: str) -> list[datetime] | None:
    """Read the dates that are written so, all with a time of day or all without one."""
    for time in TIMES:
        with suppress(ValueError):
            return [datetime.strptime(cell, form + time) for cell in column.seen]
    return None


def _kind(cell: str) -> str | None:
    """How a single date is written; None where it is none."""
    with suppress(ValueError):
        datetime.fromisoformat(cell)
        return "ISO"
    for form in DATES:
        for time in TIMES:
            with suppress(ValueError):
                datetime.strptime(cell, form + time)
                return form
    return None
