"""The import path of :mod:`pyro_naf.training.parallel` before version 0.2."""

from ..training.parallel import (  # noqa: F401
    any_of,
    divisible,
    gathered,
    part,
    rank,
    same,
    size,
    start,
    stop,
    sum_over,
    wrapped,
)
