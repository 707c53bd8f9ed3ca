"""Curves of columns with bounds: the map of each under which its values are likeliest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .column import Column
from .discrete import present

#: Scales of nearly linear maps: beside one soft bound in units of the usual distance from it, and
#: between two in units of their distance.
NEARLY_LINEAR, BETWEEN = (0.25, 0.06), (0.2, 0.08)

#: Loss of log-likelihood, per row, at which a soft end is still kept.
TOLERATED = 0.03

#: Ridge on a regression of standardised columns: the square of the smallest noise between two that
#: is resolved.
RIDGE = 1e-6

#: Rows, at most, in which the dependence of columns is looked at.
REGRESSED = 5000


def curves_of(values: Tensor, column: Column) -> list[Column]:
    """List the maps of a column with bounds that are tried, for these values."""
    soft = max(column.soft) > 0
    if column.lower > -math.inf and column.upper < math.inf:
        length = column.upper - column.lower
        scales = [("softplus", part * length) for part in BETWEEN] if soft else []
        scales.append(("probit", 1.0))
    else:
        low = column.lower > -math.inf
        distances = values - column.lower if low else column.upper + column.step - values
        mean = float(distances.mean()) or 1.0
        usual = float(distances.median()) or mean
        parts = (1.0, *NEARLY_LINEAR) if soft else (1.0,)
        scales = [("softplus", part * usual) for part in parts]
        scales.append(("probit", mean))
    return [replace(column, curve=c, scale=scale) for c, scale in [("log", 1.0), *scales]]


def best_curve(values: Tensor, column: Column) -> Column:
    """Choose the map under which values of a column with bounds are likeliest to be normal."""
    return max(curves_of(values, column), key=lambda column: _likelihood(column, values, []))


def worth_their_ends(columns: Sequence[Column], rows: Tensor) -> list[Column]:
    """Choose the maps of columns with soft bounds anew, given the other columns, or leave them out.

    Columns that depend linearly on each other do so no longer behind a map of each. The law of a
    column given the others is a regression on their images; the likeliest map stays. One column at
    a time, the choice begins with all ends and, where there are any, with none: dependent columns
    would not give theirs up, or take them, alone.
    """
    rows = rows[:: max(1, len(rows) // REGRESSED)].double()
    soft = [i for i, c in enumerate(columns) if c.kind != "integer" and max(c.soft) > 0]
    plain = list(columns)
    for i in soft:
        plain[i] = _without_soft(columns[i], present(rows[:, i]))
    begins = [list(columns), plain] if soft else []
    found = [_chosen(begin, columns, rows, soft) for begin in begins]
    return max(found, key=lambda pair: pair[1])[0] if found else list(columns)


def _chosen(
    begin: Sequence[Column], columns: Sequence[Column], rows: Tensor, soft: Sequence[int]
) -> tuple[list[Column], float]:
    """Choose the maps of some columns in turn; return all columns and their joint likelihood."""
    found = list(begin)
    real = [i for i, c in enumerate(found) if c.is_real and not c.spikes]
    images = {i: _image(found[i], rows[:, i]) for i in real}
    for i in (i for i in soft if i in real):
        column, values = columns[i], rows[:, i]
        others = [images[j][0] for j in real if j != i] if len(rows) > 2 * len(real) else []
        tried = [_without_soft(column, present(values)), *curves_of(present(values), column)]
        worth = [_likelihood(c, values, others) for c in tried]
        worth[0] -= math.inf if column.unit == "%" else TOLERATED  # shares have ends
        found[i] = tried[worth.index(max(worth))]
        images[i] = _image(found[i], values)
    total = sum(float(mean) for _, mean in images.values() if bool(mean.isfinite()))
    if len(rows) > 2 * len(real):
        z = torch.stack([z for z, _ in images.values()], 1)
        gram = z.T @ z / len(z)
        gram.diagonal().add_(RIDGE)
        total -= 0.5 * float(torch.logdet(gram))
    kept = sum(max(column.soft) > 0 for column in found)
    return found, total + TOLERATED * kept


def _without_soft(column: Column, values: Tensor) -> Column:
    lower = -math.inf if column.soft[0] else column.lower
    upper = math.inf if column.soft[1] else column.upper
    if lower == -math.inf and upper == math.inf:
        kind = "date" if column.kind == "date" else "continuous"
        return Column(kind, column.name, step=column.step, unit=column.unit)
    hard = replace(column, kind="positive", lower=lower, upper=upper, soft=(0.0, 0.0))
    return best_curve(values, hard)


def _image(column: Column, values: Tensor) -> tuple[Tensor, Tensor]:
    """Standardised images ``(N,)``, 0 where a cell is missing, and the mean log-slope."""
    u, slope = column.to_real(values)
    centred = u - present(u).mean()
    spread = present(centred).square().mean().sqrt()  # NaN, without torch's warning, of no rows
    z = centred / spread.clamp(min=torch.finfo(u.dtype).tiny)
    return z.nan_to_num(0.0), present(slope).mean() - spread.log()


def _likelihood(column: Column, values: Tensor, others: list[Tensor]) -> float:
    """Mean log-likelihood of values, up to a constant, given the images of the other columns."""
    z, mean = _image(column, values)
    left = torch.ones_like(mean)
    if others:
        x = torch.stack(others, 1)
        gram = x.T @ x / len(x)
        gram.diagonal().add_(RIDGE)
        with_z = x.T @ z / len(x)
        left = 1 - with_z @ torch.linalg.solve(gram, with_z)
    found = float(mean - 0.5 * left.clamp(min=1e-12).log())
    return found if math.isfinite(found) else -math.inf
