"""Columns of few values: which they are, their steps, and noise that makes them continuous."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

#: A column with this many rows for each of its values is called discrete.
ROWS_EACH = 10

#: Number of rows that are looked at to find discrete columns.
LOOKED_AT = 50_000

#: Difference, as a part of the usual step, below which two values are one value computed in two
#: ways.
ROUNDING = 1e-6


def discrete_columns(rows: Tensor) -> list[int]:
    """Columns with at least ten rows for each of their values."""
    n = len(rows)
    looked_at = rows[:: max(1, n // LOOKED_AT)]
    seen = [present(column) for column in looked_at.unbind(1)]
    return [i for i, c in enumerate(seen) if len(c.unique()) * ROWS_EACH <= len(c)]


def present(column: Tensor) -> Tensor:
    """Return the cells of a column ``(N,)`` that are not missing."""
    missing = column.isnan()
    return column[~missing] if missing.any() else column


def values_of(column: Tensor) -> tuple[Tensor, float]:
    """Return the values that a discrete column can take, ascending ``(M,)``, and their step.

    They are the grid of the values seen, from the smallest to the largest, where most of it is
    seen; otherwise (coins, logarithms of counts) the values seen, whose step is the smallest.

    >>> values_of(torch.tensor([0.3, 0.1, 0.2, 0.5]).double())
    (tensor([0.1000, 0.2000, 0.3000, 0.4000, 0.5000], dtype=torch.float64), 0.1)
    """
    seen = column.double().unique()
    precise = torch.finfo(column.dtype).eps
    if bool((seen.float().double() == seen).all()):  # float32 numbers in double precision
        precise = max(precise, torch.finfo(torch.float32).eps)
    gaps = seen.diff()
    if len(gaps) == 0:
        return seen, 0.0
    usual = float(gaps.sort().values[(9 * (len(gaps) - 1)) // 10])
    error = 2 * precise * float(seen.abs().max())  # of a difference of two rounded numbers
    if bool((seen == seen.round()).all()):
        error = 1e-3
    elif error < 0.1 * usual:  # one value, computed in two ways, differs by its rounding error
        seen = seen[torch.cat([gaps.new_ones(1), gaps]) > max(error, ROUNDING * usual)]
    else:
        return seen, float(gaps.min())
    step = _common_step(seen - seen[0], error)
    number = 0 if step is None else round(float(seen[-1] - seen[0]) / step)
    if step is None or number >= 2 * len(seen):
        return seen, float(seen.diff().min())
    values = seen[0] + step * torch.arange(number + 1, dtype=torch.double)
    values = torch.from_numpy(values.numpy().round(_decimals(step, float(seen[0]))))
    values[((seen - seen[0]) / step).round().long()] = seen
    return values, step


def _common_step(places: Tensor, error: float) -> float | None:
    """Return the largest number that all places ``(M,)``, from 0, are multiples of, up to an error.

    Euclid's algorithm; the step is fitted to more and more of the places, since the error of a
    single difference would add up.
    """
    step, count = float(places.diff().min()), 2
    while step > 4 * error:
        near = places[:count]
        multiples = (near / step).round()
        fitted = float(multiples @ near / (multiples @ multiples))
        if bool(((near - multiples * fitted).abs() > 2 * error).any()):
            step, count = float((near - multiples * step).abs().max()), 2  # at most half of it
        elif count == len(places):
            for digits in range(1, 7):  # 0.01 and not 0.010000001, where both fit
                short = float(f"{fitted:.{digits}g}")
                if abs(short - fitted) * float(multiples[-1]) <= error:
                    return short
            return fitted
        else:
            step = fitted
            count = max(count + 1, int((places <= 2 * near[-1]).sum()))
    return None


def _decimals(*numbers: float) -> int:
    """Decimals that all the numbers can be written with; 300 where there are too many."""
    for decimals in range(12):
        scaled = [number * 10**decimals for number in numbers]
        if all(abs(x - round(x)) <= 1e-9 * max(abs(x), 1) for x in scaled):
            return decimals
    return 300


def dequantised(rows: Tensor, steps: Mapping[int, float], generator: torch.Generator) -> Tensor:
    """Add uniform noise over a step in these columns of rows, in double precision.

    The density of the result, averaged over a step, is the probability of a value over the step.
    """
    rows = rows.double()
    for i, step in steps.items():
        noise = torch.rand(len(rows), generator=generator, dtype=torch.double)
        rows = rows.index_add(1, torch.tensor([i]), (step * noise).unsqueeze(1))
    return rows


def quantised(rows: Tensor, steps: Mapping[int, float], values: Mapping[int, Tensor]) -> Tensor:
    """Make columns of rows ``(..., D)`` values again: undo :func:`dequantised`.

    :param values: of each column, ascending, as :func:`values_of` gives them.
    """
    rows = rows.clone()
    for i, known in values.items():
        known = known.to(rows.device)
        middles = (known[1:] + known[:-1] + steps[i]) / 2
        column = rows[..., i].contiguous()
        rows[..., i] = known[torch.bucketize(column, middles, right=True)].to(rows.dtype)
    return rows
