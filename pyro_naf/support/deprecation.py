"""Warnings of what the next version no longer takes, at the user's line."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from itertools import count
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def warn_deprecated(message: str) -> None:
    """Warn of deprecation at the first line outside this package: Python shows no others."""
    for level in count(2):
        try:
            name = sys._getframe(level - 1).f_globals.get("__name__", "")
        except ValueError:  # nothing but the package's own lines
            break
        if name.partition(".")[0] != __name__.partition(".")[0]:
            break
    warnings.warn(message, DeprecationWarning, stacklevel=level)


def renamed(**names: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a function take keywords by their old names too, with a DeprecationWarning.

    :param names: old name to new name.
    :raises TypeError: when called with both names of one argument.

    >>> @renamed(seconds="max_seconds")
    ... def search(*, max_seconds=60.0):
    ...     return max_seconds
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     found = search(seconds=2.0)
    >>> found, str(caught[0].message)
    (2.0, "search takes max_seconds now; 'seconds' ends with the next version")
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def with_old_names(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(
                        f"{function.__name__} got both {new!r} and {old!r}, its old name"
                    )
                warn_deprecated(
                    f"{function.__name__} takes {new} now; {old!r} ends with the next version"
                )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return with_old_names

    return decorate
