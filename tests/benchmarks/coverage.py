"""Coverage of `FlowDensity` with all defaults: do its regions hold as many rows as they promise?

python -W ignore tests/benchmarks/coverage.py --folds 5 --seconds 20

Five real tables of scikit-learn. Every row is held out once, in one of the folds. Three kinds of
regions, of 50, 90 and 99 %: central intervals of each column by its marginal law (probability
integral transform; counted over all columns), the highest-density region of all columns, and the
rows whose `anomaly_score` is above 50, 10 and 1 %: a region of high density too, whose bound is of
the rows that the fit held out by itself, each scored by the fold that left it out. The first two
are known from draws. The s.e. is that of the held-out rows, over all folds: rows of one fold share
their density, so that it is too small rather than too large. Seconds are of the processor.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from small_tables import TABLES, read_options

from pyro_naf.density import FlowDensity

#: Tables of measurements.
REAL = ("wine", "diabetes", "breast cancer, means", "breast cancer", "digits, 16 components")

LEVELS = (0.5, 0.9, 0.99)

#: Draws that regions are known from.
DRAWS = 10_000


def inside(density: FlowDensity, rows: np.ndarray) -> list[np.ndarray]:
    """For each held-out row and level, ``(N, 3)``: the share of its columns within their central
    intervals, and whether it is in either region of high density."""
    drawn = density.sample(DRAWS).double().numpy()
    sides = [[(1 - level) / 2, (1 + level) / 2] for level in LEVELS]
    low, high = np.quantile(drawn, np.array(sides).T, axis=0)  # (3, D) each
    central = ((rows[:, None] >= low) & (rows[:, None] <= high)).mean(2)
    heights = np.quantile(density.score_samples(drawn), [1 - level for level in LEVELS])
    usual = density.anomaly_score(rows)[:, None] > [1 - level for level in LEVELS]
    return [central, density.score_samples(rows)[:, None] >= heights, usual]


def measured(rows: np.ndarray, folds: int, seconds: float) -> list[np.ndarray]:
    """What :func:`inside` tells of all rows, each under the density of the other folds."""
    found = []
    fold = np.random.RandomState(0).permutation(len(rows)) % folds
    for k in range(folds):
        torch.manual_seed(k)
        density = FlowDensity().fit(rows[fold != k], seed=k, max_seconds=seconds, progress=False)
        found.append(inside(density, rows[fold == k]))
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def main() -> None:
    options = read_options(__doc__, list(REAL), "folds", 20.0)
    time.monotonic = time.process_time  # the fits' limits are seconds of the processor
    levels = ", ".join(f"{100 * level:g} %" for level in LEVELS)
    print(
        f"| table | rows x columns | central, {levels} | highest density | anomaly score | CPU s |"
    )
    print("|---|---|---|---|---|---|")
    for name in options.tables:
        rows, start = TABLES[name](), time.process_time()
        cells = []
        for covered in measured(rows, options.folds, options.seconds):
            errors = 100 * covered.std(0) / len(covered) ** 0.5
            shares = zip(100 * covered.mean(0), errors, strict=True)
            cells.append(", ".join(f"{share:.1f} ({error:.1f})" for share, error in shares))
        size, took = " x ".join(map(str, rows.shape)), time.process_time() - start
        print(f"| {name} | {size} | {' | '.join(cells)} | {took:.0f} |", flush=True)


if __name__ == "__main__":
    main()
