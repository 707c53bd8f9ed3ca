"""Data sets that densities are measured on, and targets whose truth is known.

``load("power", root)`` prepares a published set from its owner's files; ``reference`` holds the
sets that the benchmarks run on; ``toys`` and ``energies`` need no files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from . import energies, reference, toys
from .energies import ENERGIES
from .patches import load_bsds300
from .pictures import Picture
from .split import DataError, Split
from .tables import load_gas, load_hepmass, load_miniboone, load_power
from .toys import SHAPES, GaussianGrid

__all__ = [
    "ENERGIES",
    "LOADERS",
    "SHAPES",
    "DataError",
    "GaussianGrid",
    "Picture",
    "Split",
    "energies",
    "load",
    "reference",
    "toys",
]

#: The published sets.
LOADERS: dict[str, Callable[[Path], Split]] = {
    "power": load_power,
    "gas": load_gas,
    "hepmass": load_hepmass,
    "miniboone": load_miniboone,
    "bsds300": load_bsds300,
}


def load(name: str, root: str | os.PathLike[str]) -> Split:
    """Load a published data set, prepared from its owner's files in the folder ``root``.

    :param name: "power", "gas", "hepmass", "miniboone" or "bsds300".
    :raises ValueError: for another name.
    :raises DataError: (a ValueError) when a file is missing, and where to get it, or not whole.
    """
    if name not in LOADERS:
        raise ValueError(f"name must be one of {', '.join(LOADERS)}, got {name!r}")
    return LOADERS[name](Path(root))
