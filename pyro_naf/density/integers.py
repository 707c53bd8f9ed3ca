"""Columns of integers: whether they are some, their grid and their ends."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from . import spikes
from .column import Column
from .curves import best_curve
from .discrete import present, values_of
from .ends import End, ends_of_integers
from .preparation import listed

#: Smallest step of integers, in units of the rounding of double precision, with which the noise
#: over a step is exact enough; and the range of a column, in these units, that resolves its law.
BLURRED, RESOLVED = 4.0, 1000.0

#: Golden ratio, whose multiples fill the steps of integers evenly.
GOLDEN = 0.6180339887498949


def are_integers(values: Tensor, where: str, given: tuple[str, list[float]] | None) -> bool:
    """Whether whole numbers ``(N,)`` have probabilities, and not a density.

    A constant has neither, and is refused as such. Double precision rounds integers beyond
    :math:`2^{52}`, and noise on them, unless they are multiples of a large step.

    :raises ValueError: when the numbers differ only in digits that rounding blurs.
    """
    if len(values) == 0:
        return False
    spacing = torch.finfo(values.dtype).eps * float(values.abs().max())
    step = grid(values)[1]
    if step > BLURRED * spacing:
        return bool((values != values[0]).any())
    if not float(values.max() - values.min()) > RESOLVED * spacing:
        raise ValueError(
            f"{where} holds integers near {float(values[0]):.0f}, whose differences double "
            "precision cannot tell apart: subtract the smallest from all of them"
        )
    exact = step > spacing
    if not exact and given is None:
        warnings.warn(
            f"{where} holds integers of too many digits for double precision, and is taken as "
            "continuous",
            stacklevel=5,
        )
    if not exact and given is not None and given[0] == "integer":
        raise ValueError(
            f"{where} holds integers of too many digits for double precision, and cannot be "
            "integer: subtract the smallest from all of them, or say 'continuous'"
        )
    return exact


def integer_between(
    values: Tensor, own: str | None, bounds: tuple[float, float], where: str
) -> Column:
    """Make a column of integers with bounds that were said, moved inwards to what rows can have."""
    low, high = bounds
    refuse_outside((values < low) | (values > high), where, f"from {low:g} to {high:g}")
    known, step = grid(values)
    first = float(known[0])
    lower = first - step * math.floor((first - low) / step + 1e-9) if low > -math.inf else low
    upper = first + step * math.floor((high - first) / step + 1e-9) if high < math.inf else high
    if not lower < upper:
        raise ValueError(
            f"{where} must have bounds with at least two of its values between them, got {low:g} "
            f"and {high:g}"
        )
    return _within_ends(values, own, step, End(lower), End(upper))


def integer(values: Tensor, own: str | None, at: Sequence[float] = ()) -> Column:
    """Make a column of integers with the ends that its values ``(N,)`` tell, and these spikes."""
    known, step = grid(values.double())
    if at:
        values = present(spikes.rest_of(values, at, step))
        known = grid(values)[0]
    if len(known) < 2:
        return Column("integer", own, step=step)
    lower, upper = ends_of_integers(values.double(), known, step)
    if not (lower.is_there or upper.is_there):  # multiples of the step, which no bound anchors
        step = float(math.gcd(round(step), round(float(known[0])))) if step >= 1 else step
    return _within_ends(values.double(), own, step, lower, upper)


def grid(values: Tensor) -> tuple[Tensor, float]:
    """Return values that integers can take, ascending, and their step: a common divisor."""
    known, step = values_of(values)
    if step >= 1 and step == round(step):
        divisor = np.gcd.reduce(known.diff().round().long().numpy())
        return known, float(divisor)
    return known, step or 1.0


def _within_ends(values: Tensor, own: str | None, step: float, lower: End, upper: End) -> Column:
    """Make a column of integers with these ends, either of which may be infinite."""
    soft = (lower.fading, upper.fading)
    column = Column("integer", own, lower.place, upper.place, step=step, soft=soft)
    if not (lower.is_there or upper.is_there):
        return column
    noise = torch.remainder(GOLDEN * torch.arange(1, len(values) + 1).to(values), 1)
    return best_curve(values + step * noise, column)


def refuse_outside(outside: Tensor, where: str, expected: str) -> None:
    """Refuse values of which any is outside ``(N,)``, and name their rows."""
    if outside.any():
        at = listed("row", outside.nonzero().squeeze(1).tolist())
        raise ValueError(f"{where} must be {expected}; it is not in {at}")
