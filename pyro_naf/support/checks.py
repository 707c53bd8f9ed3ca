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


def check_callable(**arguments: tuple[object, str]) -> None:
    """``name=(value, what it must be)``: raises TypeError for what cannot be called."""
    for name, (value, what) in arguments.items():
        if not callable(value):
            raise TypeError(f"{name} must be {what}, got {value!r}")
