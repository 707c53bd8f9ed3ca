"""The eager kernel's formulas through torch.compile, or as they are where there is no compiler."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch

from .eager import Formula


def compiled(formula: Formula) -> Formula:
    """The same formula with its two evaluations compiled: once a process for each of its kinds."""
    return _Compiled(formula)


class _Compiled:
    def __init__(self, formula: Formula) -> None:
        self.plain = formula.plain
        self.hidden_units, self.temporaries = formula.hidden_units, formula.temporaries
        kind: Any = type(formula)
        self.state = functools.partial(_run, kind.state, formula)
        self.forward = formula.forward
        self.backward = functools.partial(_run, kind.backward, formula)


def _run(function: Any, *args: Any) -> Any:
    if function not in _failed:
        try:
            return _compile(function)(*args)
        except Exception as error:  # whatever a compiler may raise; the eager call decides
            result = function(*args)
            _failed.add(function)
            warnings.warn(
                f"torch.compile failed ({type(error).__name__}: {str(error).splitlines()[0]}); "
                "kernel 'compiled' runs eagerly from now on",
                stacklevel=2,
            )
            return result
    return function(*args)


@functools.cache
def _compile(function: Any) -> Any:
    return torch.compile(function, dynamic=True)


_failed: set[Any] = set()
