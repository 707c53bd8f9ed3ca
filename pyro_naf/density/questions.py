"""What is asked of a density beside its values: missing cells, marginals and conditionals."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, SupportsFloat, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from . import closed_form, numerals, preparation
from .closed_form import Part
from .column import Column
from .columns import Encoded, Schema, beside
from .said import place_of
from .stacked import of_closed_form
from .table_density import TableDensity
from .tables import DAY, EPOCH, SECOND, naive

Density = TypeVar("Density", bound=TableDensity)


class Columns(Protocol):
    """What questions about columns are asked of."""

    schema: Schema
    columns: list[str] | None
    width: int


def closed_parts(density: TableDensity) -> list[Part] | None:
    """Return the Gaussians of a fitted density; None where it is none of Gaussians alone."""
    if density.head is None and density.context_dim == 0:
        return density.flow.closed_form()
    return None


def parts_of(density: TableDensity) -> list[Part]:
    """Check that a density is of Gaussians alone."""
    parts = closed_parts(density)
    assert parts is not None
    return parts


def encoded(density: TableDensity, rows: Tensor, s: Tensor | None) -> Encoded:
    """Rows ``(N, P)`` as the Gaussians have them, with this noise ``(I,)`` on integers."""
    schema = density.schema
    noise = None if s is None else s.expand(len(rows), -1)
    found = schema.encode(rows.double(), noise)
    found.real = (found.real - density.loc) / density.scale
    return found


def places(density: TableDensity, at: Sequence[int]) -> list[int]:
    """Where columns are among the numbers and, behind these, the classes, in their own order."""
    schema, own = density.schema, Schema([density.schema.columns[i] for i in at])
    real = [schema.real.index(at[j]) for j in own.real]
    return real + [len(schema.real) + schema.coded.index(at[j]) for j in own.coded]


def noises(density: TableDensity, rows: Tensor) -> list[Tensor | None]:
    """Return the points of the noise on the integers that rows ``(N, P)`` hold."""
    integers = rows[:, density.schema.integers]
    points = density.schema.noise(density.loc.device)
    return list(points) if not integers.isnan().all() else list(points[:1])


def imputed(density: TableDensity, rows: Tensor, number: int) -> Tensor:
    """Rows ``(S, N, P)`` with draws from their conditional law in the cells that are NaN.

    :param number: S, the draws of each row ``(N, P)``.
    """
    parts = parts_of(density)
    # The noise that makes an integer a real number has the law that the other cells leave.
    each = [encoded(density, rows, s) for s in noises(density, rows)]
    shifts = [torch.where(e.inside, e.log_slope, -math.inf) for e in each]
    if not torch.stack(shifts).isfinite().any(0).all():
        raise ValueError("x lies outside the bounds of its columns: nothing can be imputed there")
    found = closed_form.imputed(parts, [beside(e.real, e.codes) for e in each], shifts, number)
    dim = len(density.schema.real)
    real, codes = density.loc + density.scale * found[..., :dim], found[..., dim:].long()
    drawn = density.schema.decode(real, codes).to(rows)
    return torch.where(rows.isnan(), drawn, rows)


def marginal(density: Density, columns: Sequence[str | int]) -> Density:
    """Return the density of some of the columns."""
    at = positions(density, columns, "columns")
    if not at:
        raise ValueError("columns must name at least one column, got none")
    order = torch.tensor(places(density, at), device=density.loc.device)
    law = closed_form.marginal(parts_of(density), order)
    return made(density, at, law)


def condition(density: Density, given: Mapping[str, object] | Mapping[int, object]) -> Density:
    """Return the density of the other columns, where these have such values."""
    at, rest, row = given_row(density, given)
    parts, row = parts_of(density), row.to(density.loc.device)
    found: list[Part] = []
    for s in noises(density, row):
        e = encoded(density, row, s)
        if e.inside.all():
            shift = float(e.log_slope)
            whole = beside(e.real, e.codes)[0]
            own = closed_form.conditional(parts, whole)
            # Behind a spike that is given, an amount is open that there is none of.
            left = whole.isnan().nonzero().squeeze(1).tolist()
            order = torch.tensor([left.index(i) for i in places(density, rest)])
            own = closed_form.marginal(own, order.to(row.device))
            found += [replace(p, log_weight=p.log_weight + shift) for p in own]
    if not found:
        names = preparation.listed("column", [density.schema.called(i) for i in at])
        raise ValueError(f"given lies outside the bounds, or is none of the values, of {names}")
    if not max(part.log_weight for part in found) > -math.inf:
        raise ValueError("given is so far from all rows of the fit that its density is zero")
    return made(density, rest, found)


def given_row(
    density: Columns, given: Mapping[str, object] | Mapping[int, object]
) -> tuple[list[int], list[int], Tensor]:
    """Where the columns given are, where the others are, and a row ``(1, P)`` of their values.

    :raises ValueError: when there is no such column, or a value is none of a column.
    """
    at = positions(density, list(given), "given")
    rest = [i for i in range(density.width) if i not in at]
    if not at or not rest:
        raise ValueError(
            f"given must hold values of some but not all of the {density.width} columns, "
            f"got {len(at)}"
        )
    row = torch.full((1, density.width), math.nan, dtype=torch.double)
    for i, value in zip(at, given.values(), strict=True):
        row[0, i] = _number(value, density.schema.columns[i], density.schema.called(i))
    return at, rest, row


def _number(value: object, column: Column, name: str) -> float:
    """Return a number, a date in days, or the place of a text among the column's values."""
    if isinstance(value, str) and value.strip() in column.values:
        return float(column.values.index(value.strip()))
    if isinstance(column.values[:1] and column.values[0], str):
        known = ", ".join(map(str, column.values[:10]))
        raise ValueError(f"given[{name!r}] must be one of {known}, got {value!r}")
    try:
        if (
            isinstance(value, str)
            and column.kind != "date"
            and (read := numerals.measured([value])) is not None
        ):
            return read.values[0]
        if isinstance(value, datetime.timedelta | np.timedelta64):
            return float(np.asarray(value, "timedelta64[us]") / SECOND)
        if column.kind == "date" and isinstance(value, str):
            value = datetime.datetime.fromisoformat(value)
        if isinstance(value, datetime.date | np.datetime64):
            moment = np.asarray(naive(value), "datetime64[us]")
            return float((moment - EPOCH) / DAY)
        number = float(cast(SupportsFloat, value))
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"given[{name!r}] must be one finite number or date, got {value!r}")
    return number


def positions(density: Columns, columns: Sequence[str | int], argument: str) -> list[int]:
    """Where these columns are, each a name or a number from 0."""
    if isinstance(columns, str | int | np.integer):
        columns = [columns]
    names, at = density.columns, list[int]()
    for key in columns:
        place = place_of(key, names, density.width)
        if place is not None:
            at.append(place)
        else:
            known = ", ".join(names) if names is not None else f"0 to {density.width - 1}"
            raise ValueError(f"{argument} names {key!r}, but the density has the columns {known}")
    if len({*at}) < len(at):
        raise ValueError(f"{argument} must name every column once, got {list(columns)}")
    return at


def made(density: Density, at: list[int], parts: list[Part]) -> Density:
    """Return a density of these columns, with these Gaussians."""
    made = type(density)()
    made.to(density.loc.device, density.dtype)
    made.build_for(Schema([density.schema.columns[i] for i in at]), gaps=True)
    real = places(density, at)[: len(made.schema.real)]
    flow, made.parts = of_closed_form(parts)
    made.flow = flow.to(density.loc.device, density.dtype)
    made.loc.copy_(density.loc[real])
    made.scale.copy_(density.scale[real])
    made.data_dtype, made.from_table = density.data_dtype, density.from_table
    made.columns = None if density.columns is None else [density.columns[i] for i in at]
    made.noise = {j: density.noise[i] for j, i in enumerate(at) if i in density.noise}
    made.values = {j: density.values[i] for j, i in enumerate(at) if i in density.values}
    return made.eval()
