"""The data that densities are measured on: a part of POWER, protein, patches of BSDS300.

They lie in the folder that the environment variable PYRO_NAF_DATA names, and are not part of the
package.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..discrete import dequantised
from .patches import ROWS, patch_split
from .split import DataError, Split
from .tables import prepare_power

VARIABLE = "PYRO_NAF_DATA"

FILES = {
    "power": "power_2006-12-16_2007-06-30.npz",
    "protein": "protein.npz",
    "bsds300": "bsds300_gray_images.npz",
}


def power_subset(folder: Path | None = None) -> Split:
    """Load the first 13.6 % of POWER (278,861 rows), prepared as the whole is: 6 columns."""
    with np.load(_file("power", folder), allow_pickle=False) as archive:
        return prepare_power(archive["raw"] / archive["scale"].astype(np.float64))


def protein(folder: Path | None = None) -> Split:
    """UCI's physicochemical properties of protein structures: 44,018 different rows, 10 columns.

    All columns are rounded; noise as wide as their steps is added, and the rows are shuffled.
    """
    with np.load(_file("protein", folder), allow_pickle=False) as archive:
        rows = torch.from_numpy(np.unique(archive["data"], axis=0))
    ranges = (rows.amax(0) - rows.amin(0)).tolist()
    gaps = [column.unique().diff() for column in rows.unbind(1)]
    # Gaps below a millionth of the range are rounding errors.
    steps = {i: float(gap[gap > 1e-6 * ranges[i]].min()) for i, gap in enumerate(gaps)}
    noisy = dequantised(rows, steps, torch.Generator().manual_seed(42)).numpy()
    shuffled = noisy[np.random.RandomState(42).permutation(len(noisy))]
    return Split.last_tenths(shuffled).standardised().float32()


def bsds300(folder: Path | None = None, rows: tuple[int, int, int] = ROWS) -> Split:
    """Patches from BSDS300's grey images, equivalent to the published ones: 63 columns."""
    with np.load(_file("bsds300", folder), allow_pickle=False) as archive:
        return patch_split(archive["train"], archive["test"], rows)


LOADERS: dict[str, Callable[[], Split]] = {
    "power": power_subset,
    "protein": protein,
    "bsds300": bsds300,
}


def _file(name: str, folder: Path | None) -> Path:
    if folder is None:
        named = os.environ.get(VARIABLE)
        if not named:
            raise DataError(f"set {VARIABLE} to the folder of reference data, which holds density/")
        folder = Path(named)
    path = folder / "density" / FILES[name]
    if not path.exists():
        raise DataError(f"{path} is missing from the folder of reference data")
    return path
