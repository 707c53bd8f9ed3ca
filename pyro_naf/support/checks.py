"""Checks of arguments that several modules make."""

from __future__ import annotations

import operator
from collections.abc import Sequence


def check_integers(**arguments: tuple[int, int]) -> None:
    """``name=(value, minimum)``: raises TypeError or ValueError, naming the argument."""
    for name, (value, minimum) in arguments.items():
        try:
            operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {value!r}") from None
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def check_callable(**arguments: tuple[object, str]) -> None:
    """``name=(value, what it must be)``: raises TypeError for what cannot be called."""
    for name, (value, what) in arguments.items():
        if not callable(value):
            raise TypeError(f"{name} must be {what}, got {value!r}")


def check_widths(hidden_dims: Sequence[int]) -> tuple[int, ...]:
    """Return the widths of hidden layers; raises TypeError for what is no sequence of integers.

    >>> check_widths([64, 32])
    (64, 32)
    """
    try:
        return tuple(operator.index(width) for width in hidden_dims)
    except TypeError:
        raise TypeError(f"hidden_dims must be a sequence of widths, got {hidden_dims!r}") from None
