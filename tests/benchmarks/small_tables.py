"""Held-out log-likelihoods of `FlowDensity` with all defaults on ten small tables.

python -W ignore tests/benchmarks/small_tables.py --splits 5 --seconds 60

The tables come with scikit-learn, or are made from what does. A fifth of the rows is held out. Each
density is fitted to the others: one Gaussian, scikit-learn's Gaussian mixture of the number of
parts (2 to 5) that its own validation rows choose, and `FlowDensity()`. The gain is over the better
of the first two by its held-out mean, which favours them; s.e. is that of the gain over the
held-out rows.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import multivariate_normal
from sklearn import datasets
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from pyro_naf.density import FlowDensity

#: Columns of the diabetes table with many different values.
MEASURED = [0, 2, 3, 4, 5, 6, 8, 9]


def noise(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).rand(*shape)


def digits() -> np.ndarray:
    return datasets.load_digits().data


def swiss_roll() -> np.ndarray:
    roll, _ = datasets.make_swiss_roll(1000, noise=0.3, random_state=0)
    return np.column_stack([roll, noise(1000)])


TABLES: dict[str, Callable[[], np.ndarray]] = {
    "wine": lambda: datasets.load_wine().data,
    "diabetes": lambda: datasets.load_diabetes().data[:, MEASURED],
    "breast cancer": lambda: datasets.load_breast_cancer().data,
    "breast cancer, means": lambda: datasets.load_breast_cancer().data[:, :10],
    "breast cancer, errors": lambda: datasets.load_breast_cancer().data[:, 10:20],
    "digits, dequantised": lambda: digits() + noise(*digits().shape),
    "digits, 16 components": lambda: PCA(16, random_state=0).fit_transform(digits()),
    "swiss roll": swiss_roll,
    "friedman2": lambda: datasets.make_friedman2(500, noise=10, random_state=0)[0],
    "blobs": lambda: datasets.make_blobs(400, 6, centers=5, random_state=0)[0],
}


def gaussian(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    law = multivariate_normal(train.mean(0), np.cov(train.T), allow_singular=True)
    return law.logpdf(test)


def mixture(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    loc, scale = train.mean(0), train.std(0)
    train, test = (train - loc) / scale, (test - loc) / scale
    kept = len(train) - len(train) // 5
    values = {}
    for parts in range(2, 6):
        found = GaussianMixture(parts, n_init=2, random_state=0).fit(train[:kept])
        values[parts] = found.score(train[kept:])
    best = max(values, key=lambda parts: values[parts])
    law = GaussianMixture(best, n_init=2, random_state=0).fit(train)
    return law.score_samples(test) - np.log(scale).sum()


def measured(rows: np.ndarray, split: int, seconds: float) -> tuple[list[float], float]:
    """Held-out means of the Gaussian, the mixture and ours, the gain, its s.e.; and the time."""
    order = np.random.RandomState(split).permutation(len(rows))
    test, train = rows[order[: len(rows) // 5]], rows[order[len(rows) // 5 :]]
    peers = [gaussian(train, test), mixture(train, test)]
    start = time.perf_counter()
    density = FlowDensity().fit(train, seed=split, max_seconds=seconds, progress=False)
    took = time.perf_counter() - start
    ours = density.score_samples(test)
    gain = ours - max(peers, key=np.mean)
    error = gain.std(ddof=1) / len(gain) ** 0.5
    return [*(float(p.mean()) for p in [*peers, ours, gain]), float(error)], took


def read_options(
    text: str | None, tables: Sequence[str], parts: str, seconds: float
) -> argparse.Namespace:
    """Arguments of a benchmark of tables, which runs on one thread and warns of nothing."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--tables", nargs="*", default=list(tables), choices=list(TABLES))
    parser.add_argument(f"--{parts}", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=seconds)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return parser.parse_args()


def main() -> None:
    options = read_options(__doc__, list(TABLES), "splits", 60.0)
    print("| table | rows x columns | Gaussian | mixture | ours | gain, s.e. by split | s |")
    print("|---|---|---|---|---|---|---|")
    for name in options.tables:
        rows = TABLES[name]()
        found = [measured(rows, split, options.seconds) for split in range(options.splits)]
        figures = np.array([figure for figure, _ in found])
        gains = ", ".join(f"{gain:+.2f} ({error:.2f})" for gain, error in figures[:, 3:])
        means = " | ".join(f"{mean:.2f}" for mean in figures[:, :3].mean(0))
        size, took = " x ".join(map(str, rows.shape)), np.mean([t for _, t in found])
        print(f"| {name} | {size} | {means} | {gains} | {took:.0f} |", flush=True)


if __name__ == "__main__":
    main()
