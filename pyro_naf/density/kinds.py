"""Which kind each column of a table is: as the user says, or as its values tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from . import spikes
from .codes import codes_of
from .column import MANY_CLASSES, Column
from .columns import Schema
from .curves import best_curve, worth_their_ends
from .discrete import LOOKED_AT, discrete_columns, present
from .ends import End, ends_of, ends_of_integers
from .integers import are_integers, grid, integer, integer_between, refuse_outside
from .said import SPIKED, Said, kinds_said

#: Probability that a Gaussian of a column's moments has no value beyond a bound, below which the
#: bound is taken to be real.
CHANCE = 0.01

#: The smallest value, in units of the median, up to which values are said to come near zero.
NEAR_ZERO = 0.25

#: Distance of an end from zero, in mean distances of the rows next to it, from which on the end is
#: not zero.
OFF_ZERO = 10.0

#: The intervals that a column of shares or percentages fills, and the part of it at each end that
#: must hold one row in a hundred.
INTERVALS = ((0.0, 1.0), (0.0, 100.0))
END = 0.05
AT_END = 0.01

#: Rows below which no bound is inferred.
FEW_ROWS = 30

#: Bins in which the emptiest part of a period is looked for.
BINS = 64


def infer(
    rows: Tensor,
    *,
    name: str,
    tables: Sequence[Column | None],
    whole: Sequence[bool],
    names: Sequence[str] | None = None,
    said: Said | None = None,
    units: Sequence[str] | None = None,
    finds_spikes: bool = False,
) -> Schema:
    """Return the schema of rows ``(N, P)``.

    :param rows: NaN where a cell is missing.
    :param name: what messages call the rows.
    :param tables: columns of which the table tells the kind: text, booleans, dates.
    :param whole: which columns are of an integer dtype.
    :param names: of the columns, where they are known.
    :param said: kinds by name or number, each one of :data:`~pyro_naf.density.column.KINDS`, or a
        pair such as ``("periodic", 360)`` or triple such as ``("bounded", 0, 5)``; or
        "zero-inflated", or ``("spiked", 0, 100)`` with the spikes; a single kind is that of all
        columns, and a list has one for each.
    :param units: of the columns' numbers, empty where there is none.
    :param finds_spikes: look for spikes where no kind was said.
    :raises ValueError: for a kind or column that is unknown, or values outside the bounds.
    """
    kinds, found = kinds_said(said, names, rows.shape[1], name), []
    for i, (cells, values) in enumerate((c, present(c)) for c in rows.unbind(1)):
        own = None if names is None else names[i]
        given, known = kinds.get(i), tables[i]
        where = f"{name} in column {own or i}"
        is_whole = whole[i] and are_integers(values.double(), where, given)
        if given is None and known is not None:
            column = known if known.kind != "date" else _dated(values.double(), known)
        elif given is None:
            at = _spikes_found(values, is_whole) if finds_spikes else ()
            if finds_spikes and _are_two_classes(values):
                classes = values.unique().double().tolist()
                column = Column("categorical", own, values=tuple(classes))
            else:
                column = _spiked(values, own, at, is_whole)
        elif given[0] in SPIKED:
            column = _spiked(values, own, _spikes(given, values, known, where), whole[i])
        else:
            column = _of_kind(given, cells, own, known, where, is_whole)
        open_ended = column.kind == "continuous" or (column.kind == "positive" and not column.lower)
        if given is None and open_ended and units and units[i] == "%":
            column = _percentages(values.double(), column)
        found.append(replace(column, unit=units[i]) if units else column)
    schema = Schema(worth_their_ends(found, rows))
    _check_classes(schema, name, len(rows))
    return schema


def _dated(values: Tensor, column: Column) -> Column:
    """Give dates, in days, the ends where their rows stop at once."""
    if len(values) < FEW_ROWS or not bool(values.max() > values.min()):
        return column
    first, last = float(values.min()), float(values.max())
    before = values - last - 1  # no day is zero, as that of counts is
    ends = ends_of_integers(before, *grid(before)) if column.step else ends_of(before)
    low, high = (end.is_there and end.fading > 0 for end in ends)
    if not (low or high):
        return column
    found = replace(
        column,
        lower=first if low else -math.inf,
        upper=last if high else math.inf,
        soft=(ends[0].fading if low else 0.0, ends[1].fading if high else 0.0),
    )
    return best_curve(values, found)


def _are_two_classes(values: Tensor) -> bool:
    """Whether a column takes two values, that are whole numbers or recur both."""
    distinct, counts = values.unique(return_counts=True)
    recur = bool((distinct == distinct.round()).all()) or int(counts.min()) >= spikes.FEW
    return len(values) >= FEW_ROWS and len(distinct) == 2 and recur


def _spiked(values: Tensor, own: str | None, at: Sequence[float], whole: bool) -> Column:
    """Make a column with these spikes, or none, whose rest is what its values tell.

    :param whole: the values are of an integer dtype.
    """
    values, at = values.double(), tuple(sorted(at))
    rest = values[spikes.places(values, at) == 0]
    if whole and len(rest) > 0:
        return replace(integer(values, own, at), spikes=at)
    if not at or len(rest) == 0:
        return replace(_inferred(rest, own), spikes=at)
    # A spike at an end of the column may be a bound of the rest: no rain, a limit of detection.
    low = at[0] if bool(rest.min() > at[0]) and _is_bound(rest - at[0]) else -math.inf
    high = at[-1] if bool(rest.max() < at[-1]) and _is_bound(at[-1] - rest) else math.inf
    if low == -math.inf and high == math.inf:
        return replace(_inferred(rest, own), spikes=at)
    return replace(_bounded(rest, own, End(low), End(high), ""), spikes=at)


def _spikes_found(values: Tensor, whole: bool) -> Sequence[float]:
    """Find the spikes of values; none where the rest takes few values too, and is not whole."""
    if len(values) < FEW_ROWS:
        return ()
    values = values[:: max(1, len(values) // LOOKED_AT)]
    found = spikes.spikes_of(values, spikes.OF_INTEGERS if whole else spikes.RATIO)
    found = found or tuple(codes_of(values))
    rest = values[spikes.places(values, found) == 0]
    return found if whole or not discrete_columns(rest.unsqueeze(1)) else ()


def _spikes(
    given: tuple[str, list[float]], values: Tensor, known: Column | None, where: str
) -> Sequence[float]:
    """Return the spikes that the user gave, or those that the values tell."""
    kind, numbers = given
    if known is not None:
        raise ValueError(f"{where} holds no plain numbers, and cannot be {kind}")
    found = (0.0,) if kind == "zero-inflated" else numbers or spikes.spikes_of(values)
    if not found:
        raise ValueError(f"{where} has no value that recurs: say ('spiked', value)")
    return found


def _of_kind(
    given: tuple[str, list[float]],
    values: Tensor,
    own: str | None,
    known: Column | None,
    where: str,
    whole: bool,
) -> Column:
    kind, numbers = given
    if known is not None and known.kind == "categorical" and kind not in ("categorical", "boolean"):
        raise ValueError(f"{where} holds text, and cannot be {kind}")
    if kind in ("categorical", "boolean"):
        if known is not None and known.values:
            return Column("categorical", own, values=known.values)
        classes = tuple(present(values).unique().tolist())
        return Column(kind, own, values=classes)
    if kind == "integer":
        values = present(values)
        if not numbers:
            return integer(values, own)
        return integer_between(values.double(), own, (numbers[0], numbers[1]), where)
    if kind in ("positive", "bounded"):
        if kind == "positive":
            refuse_outside(values < 0, where, "at least 0, to be positive")
        positive = (0.0, math.inf) if kind == "positive" else None
        lower, upper = positive or numbers or _interval_of(values, where)
        if whole and lower < upper:
            return integer_between(present(values).double(), own, (lower, upper), where)
        return _bounded(values, own, End(lower), End(upper), where)
    if kind == "periodic":
        return _periodic(present(values), own, numbers[0], where)
    return Column(kind, own)


def _inferred(values: Tensor, own: str | None) -> Column:
    """Continuous, positive or bounded, as the values tell."""
    values = values.double()
    if len(values) < FEW_ROWS or not bool(values.max() > values.min()):
        return Column("continuous", own)
    few = bool(discrete_columns(values.unsqueeze(1)))
    lower, upper = (End(-math.inf), End(math.inf)) if few else ends_of(values)
    if bool(values.min() >= 0):
        for low, high in INTERVALS:
            if bool(values.max() <= high) and _fills(values, low, high):
                return _bounded(values, own, End(low), End(high), "")
            if bool(values.min() == low) and bool(values.max() == high):  # scaled, perhaps
                return _within(values, own, low, high)
        if _is_bound(values) and not lower.place > OFF_ZERO * lower.gap:
            lower = End(0.0)
    elif bool(values.max() <= 0) and _is_bound(-values) and not -upper.place > OFF_ZERO * upper.gap:
        upper = End(0.0)
    return _bounded(values, own, lower, upper, "")


def _percentages(values: Tensor, column: Column) -> Column:
    """Make a column of numbers that are written with % one from 0 to 100, where all lie there."""
    low, high = INTERVALS[1]
    if (
        column.spikes
        or len(values) < FEW_ROWS
        or not bool(((values >= low) & (values <= high)).all())
    ):
        return column
    return _within(values, column.name, low, high)


def _within(values: Tensor, own: str | None, low: float, high: float) -> Column:
    """Make a column with these ends, which are soft."""
    gap = (high - low) / len(values)
    return _bounded(values, own, End(low, gap), End(high, gap), "")


def _fills(values: Tensor, low: float, high: float) -> bool:
    """Whether values within an interval lie near both of its ends."""
    edge = END * (high - low)
    parts = ((values < low + edge).double(), (values > high - edge).double())
    inner = bool(((values > low) & (values < high)).any())
    return inner and min(float(part.mean()) for part in parts) >= AT_END


def _is_bound(distances: Tensor) -> bool:
    """Whether distances ``(N,)`` from a bound, at least 0, say that there is one."""
    spread = float(distances.std(correction=0))
    beyond = 0.5 * math.erfc(float(distances.mean()) / max(spread, 1e-300) / math.sqrt(2))
    felt = len(distances) * math.log1p(-beyond) < math.log(CHANCE)
    return felt and bool(distances.min() <= NEAR_ZERO * distances.median())


def _bounded(values: Tensor, own: str | None, lower: End, upper: End, where: str) -> Column:
    """Make a column with these ends, either of which may be infinite."""
    values, low, high = values.double(), lower.place, upper.place
    if not low < high:
        raise ValueError(f"{where} must have a lower bound below the upper, got {low}, {high}")
    refuse_outside((values < low) | (values > high), where, f"from {low:g} to {high:g}, its bounds")
    if not (lower.is_there or upper.is_there):
        return Column("continuous", own)
    values = present(values)
    inner = values[(values > low) & (values < high)]
    gaps = torch.minimum(inner - low, high - inner)
    on_hard = ((values == low) & (lower.fading == 0)) | ((values == high) & (upper.fading == 0))
    slack = 0.5 * float(gaps.min()) if on_hard.any() and len(inner) else 0.0
    if len(values) and not len(inner):  # nothing but bounds
        slack = 0.5 * min(high - low, 1.0)
    kind = "bounded" if lower.is_there and upper.is_there else "positive"
    soft = (lower.fading, upper.fading)
    return best_curve(values, Column(kind, own, low, high, slack, soft=soft))


def _interval_of(values: Tensor, where: str) -> tuple[float, float]:
    values = present(values)
    for lower, upper in INTERVALS:
        if bool((values >= lower).all() and (values <= upper).all()):
            return lower, upper
    raise ValueError(f"{where} lies in neither [0, 1] nor [0, 100]: say ('bounded', lower, upper)")


def _periodic(values: Tensor, own: str | None, period: float, where: str) -> Column:
    """Return the period from the emptiest part of the circle on."""
    if not 0 < period < math.inf:
        raise ValueError(f"{where} must have a positive and finite period, got {period}")
    turns = torch.remainder(values.double(), period) / period
    count = torch.histc(turns, BINS, 0, 1)
    near = count + count.roll(1) + count.roll(-1)
    cut = (int(near.argmin()) + 0.5) / BINS * period
    return Column("periodic", own, cut, cut + period)


def _check_classes(schema: Schema, name: str, rows: int) -> None:
    for i in schema.classes:
        number = len(schema.columns[i].values)
        if number > MANY_CLASSES or 2 * number > rows:
            raise ValueError(
                f"{name} has {number} different values in {rows} rows of column "
                f"{schema.called(i)}, too many for classes: leave the column out"
            )
