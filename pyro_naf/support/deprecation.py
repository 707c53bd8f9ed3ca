"""Warnings of what the next version no longer takes, at the user's line."""

from __future__ import annotations

import sys
import warnings
from itertools import count


def warn_deprecated(message: str) -> None:
    """A DeprecationWarning at the first line outside of this package: Python shows no others."""
    for level in count(2):
        try:
            name = sys._getframe(level - 1).f_globals.get("__name__", "")
        except ValueError:  # nothing but the package's own lines
            break
        if name.partition(".")[0] != __name__.partition(".")[0]:
            break
    warnings.warn(message, DeprecationWarning, stacklevel=level)
