"""Which kind each column of a table is: as the user says, or as its values tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from . import spikes
from .column import MANY_CLASSES, Column
from .columns import Schema
from .discrete import LOOKED_AT, discrete_columns, present, values_of
from .preparation import listed
from .said import SPIKED, Said, kinds_said

#: Probability that a Gaussian of a column's moments has no value beyond a bound, below which the
#: bound is taken to be real.
CHANCE = 0.01

#: The smallest value, in units of the median, up to which values are said to come near zero.
NEAR_ZERO = 0.25

#: The intervals that a column of shares or percentages fills, and the part of it at each end that
#: must hold one row in a hundred.
INTERVALS = ((0.0, 1.0), (0.0, 100.0))
END = 0.05
AT_END = 0.01

#: Rows below which no bound is inferred.
FEW_ROWS = 30

#: Bins in which the emptiest part of a period is looked for.
BINS = 64

#: Golden ratio, whose multiples fill the steps of integers evenly.
GOLDEN = 0.6180339887498949

#: Groups of neighbouring values in which integers are counted to find their bounds.
ENDS = 12

#: Probability that no row lies beyond the last integer, below which that is a bound; and where the
#: other end of a scale is one.
CHANCES_OF_ENDS = (1e-3, 0.05)

#: Number of rows at a bound, as a part of the largest group's, for values that are counted by
#: themselves and in groups.
SHARES_OF_ENDS = (0.1, 0.25)

#: Number of values for each row below which a column of an integer dtype is one of integers.
TIED = 0.9


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
        if given is None and known is not None:
            column = known
        elif given is None:
            at = _spikes_found(values, whole[i]) if finds_spikes else ()
            if finds_spikes and _are_two_classes(values):
                classes = values.unique().double().tolist()
                column = Column("categorical", own, values=tuple(classes))
            else:
                column = _spiked(values, own, at, whole[i])
        elif given[0] in SPIKED:
            column = _spiked(values, own, _spikes(given, values, known, where), whole[i])
        else:
            column = _of_kind(given, cells, own, known, where)
        found.append(replace(column, unit=units[i]) if units else column)
    schema = Schema(found)
    _check_classes(schema, name, len(rows))
    return schema


def _are_two_classes(values: Tensor) -> bool:
    """Whether a column takes two values, that are whole numbers or recur both."""
    distinct, counts = values.unique(return_counts=True)
    recur = bool((distinct == distinct.round()).all()) or int(counts.min()) >= spikes.FEW
    return len(values) >= FEW_ROWS and len(distinct) == 2 and recur


def _tied(values: Tensor) -> bool:
    """Whether values of a column recur so often that it has no density."""
    few = len(values) > 0 and bool(discrete_columns(values.unsqueeze(1)))
    return few or 1 < len(values.unique()) < TIED * len(values)


def _spiked(values: Tensor, own: str | None, at: Sequence[float], whole: bool) -> Column:
    """Make a column with these spikes, or none, whose rest is what its values tell.

    :param whole: the values are of an integer dtype.
    """
    values, at = values.double(), tuple(sorted(at))
    rest = values[spikes.places(values, at) == 0]
    if whole and _tied(rest):
        return replace(_integer(values, own, at), spikes=at)
    if not at or len(rest) == 0:
        return replace(_inferred(rest, own), spikes=at)
    # A spike at an end of the column may be a bound of the rest: no rain, a limit of detection.
    low = at[0] if bool(rest.min() > at[0]) and _is_bound(rest - at[0]) else -math.inf
    high = at[-1] if bool(rest.max() < at[-1]) and _is_bound(at[-1] - rest) else math.inf
    if low == -math.inf and high == math.inf:
        return replace(_inferred(rest, own), spikes=at)
    return replace(_bounded(rest, own, low, high, ""), spikes=at)


def _spikes_found(values: Tensor, whole: bool) -> Sequence[float]:
    """Find the spikes of values; none where the rest takes few values too, and is not whole."""
    if len(values) < FEW_ROWS:
        return ()
    values = values[:: max(1, len(values) // LOOKED_AT)]
    found = spikes.spikes_of(values, spikes.OF_INTEGERS if whole else spikes.RATIO)
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
            return _integer(values, own)
        lower, upper = numbers
        _refuse_outside((values < lower) | (values > upper), where, f"from {lower:g} to {upper:g}")
        step = values_of(values.double())[1] or 1.0
        return _integer_within(values.double(), own, step, lower, upper)
    if kind == "positive":
        return _positive(values, own, where)
    if kind == "bounded":
        lower, upper = numbers or _interval_of(values, where)
        return _bounded(values, own, lower, upper, where)
    if kind == "periodic":
        return _periodic(present(values), own, numbers[0], where)
    return Column(kind, own)


def _inferred(values: Tensor, own: str | None) -> Column:
    """Continuous, positive or within a usual interval, as the values tell."""
    values = values.double()
    if len(values) < FEW_ROWS or not bool(values.min() >= 0) or not bool(values.max() > 0):
        return Column("continuous", own)
    for lower, upper in INTERVALS:
        if bool(values.max() <= upper):
            edge, inner = END * (upper - lower), (values > lower) & (values < upper)
            if not inner.any():
                break
            low, high = (values < lower + edge).double(), (values > upper - edge).double()
            if min(float(low.mean()), float(high.mean())) >= AT_END:
                return _bounded(values, own, lower, upper, "")
    return _positive(values, own, "") if _is_bound(values) else Column("continuous", own)


def _is_bound(distances: Tensor) -> bool:
    """Whether distances ``(N,)`` from a bound, at least 0, say that there is one."""
    spread = float(distances.std(correction=0))
    beyond = 0.5 * math.erfc(float(distances.mean()) / max(spread, 1e-300) / math.sqrt(2))
    felt = len(distances) * math.log1p(-beyond) < math.log(CHANCE)
    return felt and bool(distances.min() <= NEAR_ZERO * distances.median())


def _positive(values: Tensor, own: str | None, where: str) -> Column:
    values = values.double()
    _refuse_outside(values < 0, where, "at least 0, to be positive")
    values = present(values)
    positive = values[values > 0]
    slack = 0.5 * float(positive.min()) if len(positive) < len(values) and len(positive) else 0.0
    return _best_curve(values, Column("positive", own, lower=0.0, slack=slack))


def _best_curve(values: Tensor, column: Column) -> Column:
    """Choose the map under which values of a column with bounds are likeliest to be normal."""
    scales = {"log": 1.0, "probit": 1.0}
    if column.lower == -math.inf or column.upper == math.inf:
        low = column.lower > -math.inf
        distances = values - column.lower if low else column.upper + column.step - values
        mean = float(distances.mean()) or 1.0
        scales = {"log": 1.0, "softplus": float(distances.median()) or mean, "probit": mean}
    tried = [replace(column, curve=curve, scale=scale) for curve, scale in scales.items()]
    return max(tried, key=lambda column: _profile(column, values))


def _profile(column: Column, values: Tensor) -> float:
    """Mean log-likelihood of values under a Gaussian of their images, up to a constant."""
    u, slope = column.to_real(values)
    found = float(slope.mean() - u.std(correction=0).log())
    return found if math.isfinite(found) else -math.inf


def _bounded(values: Tensor, own: str | None, lower: float, upper: float, where: str) -> Column:
    values = values.double()
    if not lower < upper:
        raise ValueError(f"{where} must have a lower bound below the upper, got {lower}, {upper}")
    _refuse_outside(
        (values < lower) | (values > upper), where, f"from {lower:g} to {upper:g}, its bounds"
    )
    values = present(values)
    inner = values[(values > lower) & (values < upper)]
    gaps = torch.minimum(inner - lower, upper - inner)
    slack = 0.5 * float(gaps.min()) if len(inner) < len(values) and len(inner) else 0.0
    if len(values) and not len(inner):  # nothing but bounds
        slack = 0.5 * min(upper - lower, 1.0)
    if lower == -math.inf and upper == math.inf:
        return Column("continuous", own)
    kind = "bounded" if lower > -math.inf and upper < math.inf else "positive"
    return _best_curve(values, Column(kind, own, lower, upper, slack))


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


def _integer(values: Tensor, own: str | None, at: Sequence[float] = ()) -> Column:
    known, step = values_of(values.double())
    step = step or 1.0
    if at:
        values = present(spikes.rest_of(values, at, step))
        known = values_of(values)[0]
    if len(known) < 2:
        return Column("integer", own, step=step)
    lower, upper = _ends_felt(values.double(), known, step)
    if lower == -math.inf and upper == math.inf:  # multiples of the step, which no bound anchors
        step = float(math.gcd(round(step), round(float(known[0])))) if step >= 1 else step
    return _integer_within(values.double(), own, step, lower, upper)


def _integer_within(
    values: Tensor, own: str | None, step: float, lower: float, upper: float
) -> Column:
    """Make a column of integers with these bounds, which may be infinite."""
    column = Column("integer", own, lower, upper, step=step)
    if lower == -math.inf and upper == math.inf:
        return column
    noise = torch.remainder(GOLDEN * torch.arange(1, len(values) + 1).to(values), 1)
    return _best_curve(values + step * noise, column)


def _ends_felt(values: Tensor, known: Tensor, step: float) -> tuple[float, float]:
    """Bounds of integers that their numbers of rows tell; counts have the lower bound 0.

    Numbers far from 0, such as years, are given none: the next one is only not there yet.

    :param known: the values that the column can take, ascending.
    """
    lower, upper = float(known[0]), float(known[-1])
    zero = lower % step if lower >= 0 else -math.inf
    count = torch.bincount(((values - lower) / step).round().long())
    if len(count) < 3 or min(abs(lower), abs(upper)) > upper - lower:
        return zero, math.inf
    width = max(1, len(count) // ENDS)
    beyond = [_expected_beyond(c, width) for c in (count, count.flip(0))]
    alone, other = (-math.log(chance) for chance in CHANCES_OF_ENDS)
    both = width == 1 and max(beyond) > alone
    below, above = (b > (other if both else alone) for b in beyond)
    return (lower if below else zero), (upper if above else math.inf)


def _expected_beyond(count: Tensor, width: int) -> float:
    """Extrapolate how many rows lie just before the first value, where no bound is.

    The logarithm of three numbers of rows, the first half a standard error lower and the second one
    higher, is continued as a parabola that does not rise. It is 0 where the first number is small.

    :param count: rows with each value ``(M,)``, from the end on.
    :param width: number of values that are counted together.
    """
    groups = [float(group.sum()) for group in count.split(width)]
    first, second, third = groups[:3]
    if first < SHARES_OF_ENDS[width > 1] * max(groups) or not second:
        return 0.0
    first = first - 0.5 * first**0.5
    ratio = min(first / (second + 0.5 * second**0.5), 1.0)
    return first * ratio * min(ratio * third / second, 1.0)


def _refuse_outside(outside: Tensor, where: str, expected: str) -> None:
    if outside.any():
        at = listed("row", outside.nonzero().squeeze(1).tolist())
        raise ValueError(f"{where} must be {expected}; it is not in {at}")


def _check_classes(schema: Schema, name: str, rows: int) -> None:
    for i in schema.classes:
        number = len(schema.columns[i].values)
        if number > MANY_CLASSES or 2 * number > rows:
            raise ValueError(
                f"{name} has {number} different values in {rows} rows of column "
                f"{schema.called(i)}, too many for classes: leave the column out"
            )
