"""Codes for "no answer", such as 99 or -1, in columns of numbers: found, and named."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from .discrete import LOOKED_AT, present

#: Numbers that people write for an answer that is not there.
CODES = (
    7, 8, 9, 77, 88, 97, 98, 99, 777, 888, 997, 998, 999, 8888, 9998, 9999, 99_999, 999_999,
    9_999_999, -1, -2, -7, -8, -9, -77, -88, -97, -98, -99, -777, -888, -997, -998, -999, -8888,
    -9999, -99_999, -999_999,
)  # fmt: skip

#: Smallest number, and share, of rows that hold a code; largest share of all codes of a column.
FEWEST, SHARE, MOST = 3, 0.005, 0.5

#: Smallest distance of a code from the other values, in units of the largest distance between
#: neighbours among these: of any code, and of the only negative one.
APART, APART_NEGATIVE = 3.0, 2.0

#: Number of other values from which on the only negative one may be a code next to them.
MANY = 6


def codes_of(values: Tensor) -> list[float]:
    """Find the codes among a column's values ``(N,)``: recurring numbers apart from the others.

    >>> codes_of(torch.tensor([1.0, 2, 2, 3, 4, 4, 5, 9, 9, 9]))
    [9.0]
    >>> codes_of(torch.arange(100.0).repeat(4))
    []
    """
    distinct, counts = values.double().unique(return_counts=True)
    total = float(counts.sum())
    whole = bool((distinct == distinct.round()).all())
    may_be = [
        value in CODES and (whole or not 0 < value < 10) and count >= max(FEWEST, SHARE * total)
        for value, count in zip(distinct.tolist(), counts.tolist(), strict=True)
    ]
    if all(may_be):
        return []
    first, last = may_be.index(False), len(may_be) - may_be[::-1].index(False)
    ends = [
        k
        for k in range(last, len(may_be))
        if _gap(distinct, k) >= APART * _widest(distinct[first:k])
    ]
    high = ends[0] if ends else len(may_be)
    starts = [k for k in range(first, 0, -1) if _is_low(distinct[:high], counts[:high], k, whole)]
    low = starts[0] if starts else 0
    if float(counts[low:high].sum()) < (1 - MOST) * total:
        return []
    return [*distinct[:low].tolist(), *distinct[high:].tolist()]


def _is_low(distinct: Tensor, counts: Tensor, number: int, whole: bool) -> bool:
    """Whether this number of the smallest values lies apart, or below zero beside counts."""
    rest, often = distinct[number:], counts[number:]
    gap, widest = _gap(distinct, number), _widest(rest)
    if not float(distinct[number - 1]) < 0 <= float(rest[0]):
        return gap >= APART * widest
    dip = bool(often[0] < torch.minimum(counts[:number].min(), often.max()))
    beside = len(rest) >= MANY and (dip or not whole)
    return gap >= APART_NEGATIVE * widest or beside


def _gap(distinct: Tensor, at: int) -> float:
    return float(distinct[at] - distinct[at - 1])


def _widest(values: Tensor) -> float:
    """Return the largest distance of neighbours; infinity where there are none."""
    return float(values.diff().max()) if len(values) > 1 else math.inf


def warn_of_codes(rows: Tensor, name: str, columns: Sequence[str], at: Sequence[int]) -> None:
    """Name the codes for "no answer" in these columns of rows ``(N, P)``."""
    rows = rows[:: max(1, len(rows) // LOOKED_AT)]
    for i in at:
        seen = present(rows[:, i])
        for code in codes_of(seen):
            warnings.warn(
                f"{name} in column {columns[i]} is {code:g} in {int((seen == code).sum())} of "
                f"{len(seen)} rows, apart from the other values: if that stands for no answer, "
                "make these cells missing (NaN)",
                stacklevel=4,
            )
