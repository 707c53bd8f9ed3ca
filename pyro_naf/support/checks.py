"""Checks of arguments that several modules make."""

from __future__ import annotations

import operator


def check_integers(**arguments: tuple[int, int]) -> None:
    """``name=(value, minimum)``: raises TypeError or ValueError, naming the argument."""
    for name, (value, minimum) in arguments.items():
        try:
            operator.index(value)
        except TypeError:
            raise TypeError(f"{name} must be an integer, got {value!r}") from None
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")
