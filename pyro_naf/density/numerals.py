"""Numbers as people write them: either decimal mark, grouped digits, money, percent, durations."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import SupportsFloat, cast

#: Characters, beside the other decimal mark, that stand between groups of three digits.
GROUPING = " '\u00a0\u202f\u2019"

#: The minus sign of typographers.
MINUS = "\u2212"

#: Numbers by their decimal mark; digits before it may be in groups of three.
NUMBERS = {
    mark: re.compile(
        rf"[+-]?(\d{{1,3}}([{other}{GROUPING}]\d{{3}})+|\d*)([{mark}]\d*)?([eE][+-]?\d+)?"
    )
    for mark, other in ((".", ","), (",", "."))
}

#: The code of a place or thing, whose zeros in front are part of it.
CODE = re.compile(r"0\d{2,}")

#: A number between a sign, a unit in front, a unit behind, and the brackets of accountants.
UNIT = r"[^\W\d]+|[^\w\s.,'()+-]"
QUANTITY = re.compile(
    rf"(?P<open>\()?\s*(?P<sign>[+-])?\s*(?P<before>{UNIT})?\s*(?P<inner>[+-])?"
    rf"(?P<number>\d[\d.,{GROUPING}]*?)\s*(?P<after>{UNIT})?\s*(?P<close>\))?"
)

#: Codes of currencies (ISO 4217) and short names that are written for them.
CURRENCIES = frozenset(
    "AUD BRL CAD CHF CNY CZK DKK EUR GBP HKD HUF IDR ILS INR JPY KRW MXN MYR NOK NZD PHP PLN RON "
    "RUB SEK SGD THB TRY TWD UAH USD ZAR Fr kr Kč zł Ft".split()
)

#: What a cell without a value may hold, in lower case.
MISSING = frozenset(
    ("", "?", "-", "--", ".", "na", "n/a", "#n/a", "<na>", "nan", "nat", "null", "none")
)

#: Days, if there are any, and hours, minutes and seconds.
DURATION = re.compile(
    r"(?P<sign>-)?((?P<days>-?\d+) days?,? *)?\+?(?P<h>\d+):(?P<m>[0-5]\d):(?P<s>[0-5]\d(\.\d+)?)"
)

#: The unit of a duration: seconds.
SECONDS = "s"


@dataclass
class Measured:
    """Cells with one unit.

    :ivar unit: "%", a currency, "s" for durations, "" for numbers without a unit.
    """

    unit: str
    values: list[float]


def numbers(cells: Sequence[str]) -> list[float] | None:
    """Return the numbers that cells hold, written as Python's are; None where one is none."""
    try:
        # Python's "1_000" is no number elsewhere.
        return None if any("_" in cell for cell in cells) else [float(cell) for cell in cells]
    except ValueError:
        return None


def in_order(texts: Iterable[str]) -> tuple[str, ...]:
    """Sort texts: by size where all are numbers.

    >>> in_order(["10", "9"]), in_order(["b", "10", "9"])
    (('9', '10'), ('10', '9', 'b'))
    """
    found = sorted(texts)
    sizes = numbers(found)
    return tuple(found if sizes is None else sorted(found, key=float))


def read_by(cells: Sequence[str], mark: str) -> list[float] | None:
    """Return the numbers that cells hold, written with this decimal mark; None where one is none.

    >>> read_by(["1.234,5", "-7"], ","), read_by(["1.234,5"], ".")
    ([1234.5, -7.0], None)
    """
    if mark == "." and (plain := numbers(cells)) is not None:
        return plain
    if not all(NUMBERS[mark].fullmatch(cell) for cell in cells):
        return None
    other = "," if mark == "." else "."
    drop = str.maketrans({c: None for c in other + GROUPING} | {"+": ""})
    return numbers([cell.translate(drop).replace(mark, ".") for cell in cells])


def among_numbers(cells: Iterable[object], rows: Iterable[int], where: str) -> list[float]:
    """Read cells that are numbers or text; NaN for a text that stands for a missing one.

    :param rows: where the cells are, for the message.
    :raises ValueError: for another text.

    >>> among_numbers([1, "n/a", " 2.5"], range(3), "x in column a")
    [1.0, nan, 2.5]
    """
    found = list[float]()
    for cell, row in zip(cells, rows, strict=True):
        text = str(cell).strip()
        read = numbers([text]) if isinstance(cell, str) else [float(cast(SupportsFloat, cell))]
        if read is None and text.lower() not in MISSING:
            raise ValueError(
                f"{where} holds {text!r} in row {row} among numbers: correct it, make it missing "
                "(None), or leave the column out"
            )
        found += read or [math.nan]
    return found


def measured(cells: Sequence[str], decimal: str | None = None) -> Measured | None:
    """Read cells that are all money of one currency, percentages or durations; else None.

    :param decimal: the mark, where both are possible; by default a point.

    >>> measured(["$1,250.50", "($3)"])
    Measured(unit='$', values=[1250.5, -3.0])
    >>> measured(["3,5 %"]), measured(["1:00:01"]), measured(["3 m"])
    (Measured(unit='%', values=[3.5]), Measured(unit='s', values=[3601.0]), None)
    """
    if not cells or not any(map(str.isdigit, cells[0])):
        return None
    cells = [cell.strip().replace(MINUS, "-") for cell in cells]
    spans = [DURATION.fullmatch(cell) for cell in cells]
    if all(spans):
        return Measured(SECONDS, [_seconds(found) for found in spans if found])
    split = [_split(cell) for cell in cells]
    units = {found and found[0] for found in split}
    if len(units) != 1 or None in units:
        return None
    written = [found[1] for found in split if found]
    marks = (decimal or ".", "," if (decimal or ".") == "." else ".")
    values = next((v for mark in marks if (v := read_by(written, mark)) is not None), None)
    return None if values is None else Measured(split[0][0] if split[0] else "", values)


def written(value: float, unit: str) -> str:
    """Return a quantity, so that :func:`measured` reads it, whatever the decimal mark of a table.

    >>> measured([written(-1250.5, "s")]), written(1250.5, "EUR")
    (Measured(unit='s', values=[-1250.5]), '1250.5 EUR')
    """
    if unit != SECONDS:
        return f"{value:.15f}".rstrip("0").rstrip(".") + f" {unit}"
    sign, (minutes, seconds) = "-" if value < 0 else "", divmod(abs(value), 60)
    return f"{sign}{int(minutes // 60)}:{int(minutes % 60):02d}:{seconds:09.6f}"


def _split(cell: str) -> tuple[str, str] | None:
    """Return a cell's unit, and its number as it is written; None where it has no known unit."""
    found = QUANTITY.fullmatch(cell)
    if found is None or (found["before"] is None) == (found["after"] is None):
        return None
    if (found["open"] is None) != (found["close"] is None):
        return None
    unit = found["before"] or found["after"]
    known = unit in CURRENCIES or unicodedata.category(unit[0]) == "Sc"
    if not (known or (unit == "%" and found["after"])):
        return None
    signs = [found["sign"], found["inner"], "-" if found["open"] else None]
    if sum(sign is not None for sign in signs) > 1:
        return None
    return unit, ("-" if "-" in signs else "") + found["number"].strip()


def _seconds(found: re.Match[str]) -> float:
    """Return the length of what :data:`DURATION` has matched."""
    parts = float(found["s"]) + 60 * int(found["m"]) + 3600 * int(found["h"])
    return (-parts if found["sign"] else parts) + 86400 * int(found["days"] or 0)
