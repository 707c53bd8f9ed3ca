"""POWER, GAS, HEPMASS and MINIBOONE from their owners' files, as Papamakarios et al. prepared them.

[arXiv:1705.07057, appendix D.] Every function ``prepare_*`` takes the rows and is the recipe; every
``load_*`` reads the owner's files from a folder.
"""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from .split import DataError, Split

#: Rows to train, to validate and to test on of the published sets.
ROWS = {
    "power": (1_659_917, 184_435, 204_928),
    "gas": (852_174, 94_685, 105_206),
    "hepmass": (315_123, 35_013, 174_987),
    "miniboone": (29_556, 3_284, 3_648),
}

#: Where the owners publish the files, and their names.
SOURCES = {
    "power": (
        "https://archive.ics.uci.edu/dataset/235",
        ("household_power_consumption.txt",),
    ),
    "gas": (
        "https://archive.ics.uci.edu/dataset/322",
        ("ethylene_CO.txt",),
    ),
    "hepmass": (
        "https://archive.ics.uci.edu/dataset/347",
        ("1000_train.csv", "1000_test.csv"),
    ),
    "miniboone": (
        "https://archive.ics.uci.edu/dataset/199",
        ("MiniBooNE_PID.txt",),
    ),
}


# ------------------------------------------------------------------------------------------- POWER


def load_power(root: Path, check: bool = True) -> Split:
    """POWER: rows with a missing value ("?") are left out."""
    (path,) = find("power", root)
    with opened(path) as file:
        header = next(file, "").strip().split(";")
        if header[:3] != ["Date", "Time", "Global_active_power"]:
            raise DataError(f"{path} does not begin with Date;Time;Global_active_power")
        split = prepare_power(table(path, filter(_is_complete, file), _power_row, 8))
    return counted("power", path, split) if check else split


def _is_complete(line: str) -> bool:
    return "?" not in line and not line.strip().endswith(";")


def _power_row(line: str) -> list[float]:
    _, time, *values = line.strip().split(";")
    hour, minute, _ = time.split(":")
    return [*map(float, values), 60 * int(hour) + int(minute)]


def prepare_power(rows: np.ndarray) -> Split:
    """POWER from its complete rows ``(N, 8)``: 6 columns.

    The columns are global active and reactive power, voltage, global intensity, three sub-meterings
    and the minute of the day; intensity and reactive power are dropped, and noise as wide as the
    steps of the others added.
    """
    rng = np.random.RandomState(42)
    rows = rows.copy()
    rng.shuffle(rows)
    rows = np.delete(rows, (1, 3), axis=1)
    n = len(rows)
    voltage, active = 0.01 * rng.rand(n, 1), 0.001 * rng.rand(n, 1)
    noise = np.hstack([active, voltage, rng.rand(n, 3), np.zeros((n, 1))])
    return Split.last_tenths(rows + noise).standardised().float32()


# --------------------------------------------------------------------------------------------- GAS


def load_gas(root: Path, check: bool = True) -> Split:
    """GAS: ethylene and CO, every fourth of the four million rows."""
    (path,) = find("gas", root)
    with opened(path) as file:
        next(file, None)  # a header whose names have blanks in them
        rows = table(path, file, lambda line: list(map(float, line.split())), 19)
    split = prepare_gas(rows)
    return counted("gas", path, split) if check else split


def prepare_gas(rows: np.ndarray) -> Split:
    """GAS from its rows ``(N, 19)``, time, two concentrations and 16 sensors: 8 columns.

    A quarter of the rows is drawn; time and concentrations are dropped, then again and again the
    first sensor whose correlation with more than one (itself included) exceeds 0.98.
    """
    chosen = np.random.RandomState(42).permutation(len(rows))[: int(0.25 * len(rows))]
    rows = rows[chosen][:, 3:]
    while True:
        correlated = (np.corrcoef(rows.T) > 0.98).sum(1) > 1
        if not correlated.any():
            break
        rows = np.delete(rows, int(correlated.argmax()), axis=1)
    rows = (rows - rows.mean(0)) / rows.std(0, ddof=1)
    return Split.last_tenths(rows).float32()


# ----------------------------------------------------------------------------------------- HEPMASS


def load_hepmass(root: Path, check: bool = True) -> Split:
    """HEPMASS, particles of mass 1000."""
    paths = find("hepmass", root)
    parts = []
    for path in paths:
        with opened(path) as file:
            next(file, None)
            # The test file's rows end with a comma more, and so with an empty column.
            parts.append(table(path, file, _comma_row, 28))
    split = prepare_hepmass(*parts)
    return counted("hepmass", paths[0], split) if check else split


def _comma_row(line: str) -> list[float]:
    return [float(value) for value in line.strip().rstrip(",").split(",")][:28]


def prepare_hepmass(train: np.ndarray, test: np.ndarray) -> Split:
    """HEPMASS from the rows ``(N, 28)`` of its two files, the label first: 21 columns.

    Only class 1 is kept. Features are dropped whose smallest value occurs more than five times: a
    density has no use for atoms.
    """
    train, test = (rows[rows[:, 0] == 1][:, 1:] for rows in (train, test))
    loc, scale = train.mean(0), train.std(0, ddof=1)
    train, test = (train - loc) / scale, (test - loc) / scale
    kept = without_atoms(train)
    train, test = train[:, kept], test[:, kept]
    n = int(0.1 * len(train))
    return Split(train[:-n], train[-n:], test).float32()


def without_atoms(rows: np.ndarray) -> np.ndarray:
    """Which columns' smallest value occurs at most five times."""
    return (rows == rows.min(0)).sum(0) <= 5


# --------------------------------------------------------------------------------------- MINIBOONE


def load_miniboone(root: Path, check: bool = True) -> Split:
    """MINIBOONE: the signal class."""
    (path,) = find("miniboone", root)
    with opened(path) as file:
        counts = next(file, "").split()
        if len(counts) != 2 or not all(count.isdigit() for count in counts):
            raise DataError(f"{path} does not begin with the numbers of signal and background rows")
        signal = itertools.islice(file, int(counts[0]))
        rows = table(path, signal, lambda line: list(map(float, line.split())), 50)
    split = prepare_miniboone(rows)
    return counted("miniboone", path, split) if check else split


def prepare_miniboone(rows: np.ndarray) -> Split:
    """MINIBOONE from its signal rows ``(N, 50)``: 43 columns.

    Eleven rows are missing all values (below -100); columns with atoms are dropped.
    """
    rows = rows[rows[:, 0] > -100]
    rows = rows[:, without_atoms(rows)]
    return Split.last_tenths(rows).standardised().float32()


# -------------------------------------------------------------------------------------- their files


def find(name: str, root: Path) -> list[Path]:
    """Find the owner's files in the folder, or in one of the set's name inside it; gzipped is fine.

    :raises DataError: that says what to download, and where to put it.
    """
    url, files = SOURCES[name]
    found = []
    for file in files:
        places = [folder / f"{file}{end}" for folder in (root, root / name) for end in ("", ".gz")]
        path = next((place for place in places if place.exists()), None)
        if path is None:
            raise DataError(
                f"{file} is not in {root}: download {name} from {url}, unpack it, and put "
                f"{' and '.join(files)} into {root / name}"
            )
        found.append(path)
    return found


def opened(path: Path) -> IO[str]:
    """Open the text of a file, gzipped or not."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return open(path, encoding="utf-8")


def table(
    path: Path, lines: Iterable[str], parse: Callable[[str], list[float]], width: int
) -> np.ndarray:
    """Parse the rows of lines, none of them empty, each ``width`` numbers.

    :raises DataError: when a line is anything else; it is quoted.
    """

    def values() -> Iterator[float]:
        for line in lines:
            if not line.strip():
                continue
            try:
                row = parse(line)
            except ValueError:
                row = []
            if len(row) != width:
                raise DataError(f"{path}: expected {width} numbers, got {line.strip()[:60]!r}")
            yield from row

    rows = np.fromiter(values(), np.float64).reshape(-1, width)
    if len(rows) == 0:
        raise DataError(f"{path} holds no rows")
    return rows


def counted(name: str, path: Path, split: Split) -> Split:
    """Check the split: whether it has as many rows as the published one.

    :raises DataError: otherwise: the file is not whole, or of another edition.
    """
    if split.sizes != ROWS[name]:
        raise DataError(
            f"{path} gives {split.sizes} rows to train, validate and test on, but {name} has "
            f"{ROWS[name]}: it is not whole, or of another edition"
        )
    return split
