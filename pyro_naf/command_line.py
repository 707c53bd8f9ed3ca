"""What the commands share: arguments, and errors that are one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


class CommandError(Exception):
    """What the user can put right; its message is the one line they see."""


def at_least(minimum: int) -> Callable[[str], int]:
    """The type of an argument that is an integer from ``minimum`` to 2^32 - 1."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be an integer, not {text!r}") from None
        if not minimum <= value < 2**32:
            raise argparse.ArgumentTypeError(f"must be from {minimum} to 2^32 - 1, not {value}")
        return value

    return integer


def positive(text: str) -> float:
    """The type of an argument that is a positive number."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive and finite, not {text}")
    return value


def widths(text: str) -> tuple[int, ...]:
    """The type of an argument that lists positive integers, with commas between."""
    return tuple(at_least(1)(part) for part in text.split(","))
