"""Codes for "no answer", such as 99 or -1, in columns of numbers: found, and named."""

from __future__ import annotations

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
    low, rest, high = distinct[:first], distinct[first:last], distinct[last:]
    often, least = counts[first:last], counts[:first]
    if len(rest) < 2 or float(often.sum()) < (1 - MOST) * total:
        return []
    widest, found = float(rest.diff().max()), list[float]()
    if len(high) and float(high[0] - rest[-1]) >= APART * widest:
        found = high.tolist()
    if len(low) == 0:
        return found
    gap, alone = float(rest[0] - low[-1]), float(low[-1]) < 0 <= float(rest[0])
    dip = len(rest) >= MANY and bool(often[0] < torch.minimum(least.min(), often.max()))
    apart = gap >= (APART_NEGATIVE if alone else APART) * widest
    return (low.tolist() if apart or (alone and (dip or not whole)) else []) + found


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
