r"""Ends of columns that nobody named: places where the rows stop at once.

Of the K rows nearest to the smallest value of a column, the distances from it say how the density
ends there: they are uniform where it stops at once, and rise where it falls to zero. The
end is taken to be real where a density that falls to zero linearly, from wherever it fits best, is
much less likely for K rows, and not likelier for half of them, a quarter, and so on: a normal,
t or lognormal law falls faster. The nearer half of the rows must share it: beyond the mode of a
narrow law, a gap or another mode, all rows are near the first. Integers are counted instead.

The ends that are found are soft: a later row beyond has a density, which falls with the
inverse square of its distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Probability, relative to a density that stops at once, of one that falls linearly, below which an
#: end is taken to be real; and where the other end of the column is one.
CHANCES = (1e-3, 0.05)

#: Logarithm of that ratio for the nearest of the rows, from which on they speak against the other
#: end; 0 where no end is known.
AGAINST = 1.0

#: Largest number of rows, and part of the rows, that an end is told by; the smallest, and the
#: number that is enough, where more say the opposite: the density rises or falls away from the end.
MOST, PART, FEWEST, ENOUGH = 200, 0.25, 8, 50

#: Largest part of the evidence, in terms of that of the nearer half of the rows: twice as much is
#: expected, and chance leaves less to the half.
SHARED = 2.5

#: Probability, for rows that are spread evenly, of the widest gap among them, below which the rows
#: beyond the gap belong to another mode.
GAP_CHANCE = 0.01

#: Places where the falling density is tried to reach zero, in units of the distance of row K.
REACHES = torch.logspace(-2, 0, 12, dtype=torch.double)

#: Mean distances of rows within which a round number beyond the last row is the end: 95 % of the
#: ends lie there. A round number is a multiple of a step; the step's least size, in mean distances.
BEYOND, ROUND = 3.0, 10.0

#: Distance over which the density fades beyond an end, in mean distances of the rows next to the
#: end. Of n rows, such a part of 1 / n has its probability beyond.
FADING = 1.0

#: Groups of neighbouring values in which integers are counted.
GROUPS = 12

#: Number of rows at an end, as a part of the largest group's, for integers that are counted by
#: themselves and in groups.
SHARES = (0.1, 0.25)


@dataclass(frozen=True)
class End:
    """One end of a column.

    :ivar place: minus or plus infinity where there is no end.
    :ivar fading: distance over which the density fades beyond; 0 where it does not.
    """

    place: float
    fading: float = 0.0

    @property
    def gap(self) -> float:
        """Mean distance of the rows next to the end."""
        return self.fading / FADING

    @property
    def is_there(self) -> bool:
        """Whether there is an end."""
        return math.isfinite(self.place)


def ends_of(values: Tensor) -> tuple[End, End]:
    """Find the lower and the upper end of real values ``(N,)``.

    >>> x = torch.rand(1000, generator=torch.Generator().manual_seed(0)).double()
    >>> lower, upper = ends_of(24 * x)
    >>> lower.place, upper.place
    (0.0, 24.0)
    >>> any(end.is_there for end in ends_of(torch.special.ndtri(x)))
    False
    """
    number = min(MOST, int(PART * len(values)))
    if number < FEWEST:
        return End(-math.inf), End(math.inf)
    near = [v.double().topk(number + 1, largest=False).values for v in (values, -values)]
    away = [n - n[0] for n in near]
    found = [_doubt(y, 0.0) < math.log(CHANCES[0]) for y in away]
    if any(found):
        found = [
            _doubt(y, AGAINST) < math.log(CHANCES[1]) or f for y, f in zip(away, found, strict=True)
        ]
    below, above = found
    lower = _end(float(near[0][0]), away[0]) if below else End(-math.inf)
    upper = _end(float(near[1][0]), away[1]) if above else End(-math.inf)
    return lower, End(0.0 - upper.place, upper.fading)  # not -0


def _doubt(away: Tensor, against: float) -> float:
    """Log-likelihood ratio of a density that falls to zero, to one that stops at once.

    :param away: distances ``(K + 1,)`` from the first row, ascending.
    :param against: the largest ratio that the nearest rows may have.
    """
    away = _first_mode(away)
    number, doubt, last = FEWEST, math.inf, len(away) - 1
    while number <= last:
        found = _ratio(away[: number + 1])
        if found > against or number >= min(ENOUGH, last):
            doubt = min(doubt, max(found, SHARED * _ratio(away[: number // 2 + 1])))
        if found > against or number == last:
            break
        number = min(2 * number, last)
    return doubt


def _first_mode(away: Tensor) -> Tensor:
    """Return the first of the distances ``(K + 1,)``, up to a gap that even rows hardly leave.

    >>> away = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 99.0, 100.0])
    >>> float(_first_mode(away)[-1])
    8.0
    """
    while len(away) > FEWEST and away[-1] > 0:
        gap, at = (away.diff() / away[-1]).max(0)
        number = int((away.diff() > 0).sum())
        if number * (1 - float(gap)) ** (number - 1) > GAP_CHANCE:
            break
        away = away[: int(at) + 1]
    return away


def _ratio(away: Tensor) -> float:
    if not away[-1] > 0:
        return -math.inf
    v = away[:-1] / away[-1]
    falling = 2 * (v + REACHES.unsqueeze(1)) / (1 + REACHES.unsqueeze(1)).square()
    return float(falling.log().sum(1).max())


def _end(last: float, away: Tensor) -> End:
    """Return the lower end beyond the last row; a round number where there is one."""
    ties = int((away == 0).sum())
    number = min(FEWEST, len(away) - ties)
    if number == 0:  # all these rows are at the end
        return End(last)
    distance = float(away[ties + number - 1]) / number
    place = round_number(last - BEYOND * distance, last, ROUND * distance)
    return End(last - distance if place is None else place, FADING * distance * ties)


def round_number(low: float, high: float, step: float) -> float | None:
    """Return the number from low to high with the fewest digits, if its grid has such a step.

    >>> round_number(23.97, 24.01, 0.1), round_number(3.13, 3.14, 0.1), round_number(-1, 1, 9)
    (24.0, None, 0.0)
    """
    if low <= 0 <= high:
        return 0.0
    digits = math.ceil(math.log10(max(abs(low), abs(high))))
    for exponent in range(digits, math.floor(math.log10(step)) - 1, -1):
        for factor in (5, 2, 1):
            grid = factor * 10.0**exponent
            found = math.ceil(low / grid) * grid
            if grid >= step and found <= high:
                rounded = float(f"{found:.12g}")  # .30000000000000004 is .3
                return rounded if low <= rounded <= high else found
    return None


# ---------------------------------------------------------------------------------------- integers


def ends_of_integers(values: Tensor, known: Tensor, step: float) -> tuple[End, End]:
    """Find the ends of integers, which their numbers of rows tell; counts have the lower end 0.

    :param known: the values that the column can take, ascending.
    """
    first, last = float(known[0]), float(known[-1])
    zero = End(first % step if first >= 0 else -math.inf)
    if last - first > step * len(values):  # most of them have no row
        lower, upper = (
            _on_grid(end, step, value)
            for end, value in zip(ends_of(values), (first, last), strict=True)
        )
    else:
        lower, upper = _counted(((values - first) / step).round().long(), first, last, step)
    if lower.is_there and lower.place > zero.place:
        return lower, upper
    far = upper.is_there and first - zero.place > last - first  # years, which are no counts
    return End(-math.inf) if far else zero, upper


def _on_grid(end: End, step: float, value: float) -> End:
    """Move an end towards a value, to a multiple of the step away from the value."""
    if not end.is_there:
        return end
    return End(value + step * math.trunc((end.place - value) / step + 1e-9), end.fading)


def _counted(places: Tensor, first: float, last: float, step: float) -> tuple[End, End]:
    """Find the ends by the number of rows with each value."""
    count = torch.bincount(places)
    if len(count) < 3:
        return End(-math.inf), End(math.inf)
    width = max(1, len(count) // GROUPS)
    expected = [expected_beyond(c, width) for c in (count, count.flip(0))]
    alone = -math.log(CHANCES[0])
    needed = -math.log(CHANCES[1]) if max(expected) > alone else alone
    below, above = (e > needed for e in expected)
    fading = [FADING * step * width / float(c[:width].sum()) for c in (count, count.flip(0))]
    lower = End(first, fading[0]) if below else End(-math.inf)
    return lower, End(last, fading[1]) if above else End(math.inf)


def expected_beyond(count: Tensor, width: int) -> float:
    """Extrapolate how many rows lie just before the first value, where no end is.

    The logarithm of three numbers of rows, the first half a standard error lower and the second one
    higher, is continued as a parabola that does not rise. It is 0 where the first number is small.

    :param count: rows with each value ``(M,)``, from the end on.
    :param width: number of values that are counted together.
    """
    groups = [float(group.sum()) for group in count.split(width)]
    first, second, third = groups[:3]
    if first < SHARES[width > 1] * max(groups) or not second:
        return 0.0
    first = first - 0.5 * first**0.5
    ratio = min(first / (second + 0.5 * second**0.5), 1.0)
    return first * ratio * min(ratio * third / second, 1.0)
