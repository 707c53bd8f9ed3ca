"""The eager kernel's formulas through torch.compile, or as they are where there is no compiler."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor

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
        # To dynamo the graph behind an input is no concern, and a reason to warn.
        args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
        try:
            return _compile(function)(*args)
        except Exception as error:
            # What compiling raises comes before anything has run; the rest is no compiler's.
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            _failed.add(function)
            warnings.warn(
                f"torch.compile failed ({type(error).__name__}: {str(error).splitlines()[0]}); "
                "kernel 'compiled' runs eagerly from now on",
                stacklevel=2,
            )
    return function(*args)


@functools.cache
def _compile(function: Any) -> Any:
    # Whole, so that more kinds than torch recompiles for are reported and not run eagerly unseen.
    return torch.compile(function, dynamic=True, fullgraph=True)


_failed: set[Any] = set()
