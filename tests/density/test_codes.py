"""Codes for "no answer" are named, and values that are ordinary are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pyro_naf.density import FlowDensity
from pyro_naf.density.codes import codes_of

RANDOM = np.random.default_rng(0)
N = 400


def with_codes(values: Any, *codes: float, share: float = 0.02) -> np.ndarray:
    found = np.array(values, float)
    for code in codes:
        found[RANDOM.permutation(N)[: int(share * N)]] = code
    return found


#: Columns, and the codes that each holds.
CODED: dict[str, tuple[np.ndarray, set[float]]] = {
    "a scale from 1 to 5": (with_codes(RANDOM.integers(1, 6, N), 8, 9), {8, 9}),
    "a scale from 1 to 7": (with_codes(RANDOM.integers(1, 8, N), 99), {99}),
    "yes or no": (with_codes(RANDOM.integers(1, 3, N), 9), {9}),
    "children": (with_codes(RANDOM.poisson(1.5, N), 97, 98, 99), {97, 98, 99}),
    "ages": (with_codes(RANDOM.integers(18, 90, N), 99, share=0.08), {99}),
    "ages of adults": (with_codes(RANDOM.integers(18, 90, N), -1), {-1}),
    "ages of all": (with_codes(RANDOM.binomial(90, 0.4, N), -9), {-9}),
    "visits": (with_codes(RANDOM.poisson(4, N), -1, share=0.05), {-1}),
    "incomes": (with_codes(RANDOM.lognormal(3, 0.5, N), 999), {999}),
    "weights": (with_codes(RANDOM.lognormal(0, 0.5, N), -1), {-1}),
    "temperatures": (with_codes(RANDOM.normal(10, 8, N), -999), {-999}),
    "a scale, and -1": (with_codes(RANDOM.integers(1, 6, N), -1), {-1}),
    "both ends": (with_codes(RANDOM.integers(0, 20, N), -9, 99), {-9, 99}),
}


@pytest.mark.parametrize("name", CODED)
def test_codes_are_found(name: str) -> None:
    values, codes = CODED[name]
    assert set(codes_of(torch.from_numpy(values))) == codes


#: Columns in which numbers that are codes elsewhere are ordinary.
ORDINARY: dict[str, Any] = {
    "counts": lambda g: g.poisson(4, N),
    "counts with a heavy tail": lambda g: g.negative_binomial(1, 0.1, N),
    "percentages": lambda g: g.integers(0, 100, N),
    "marks": lambda g: g.integers(1, 10, N),
    "few marks": lambda g: g.integers(6, 10, N),
    "changes": lambda g: g.integers(-1, 2, N),
    "rounded values": lambda g: g.normal(3, 1.5, N).round(),
    "differences": lambda g: g.poisson(3, N) - g.poisson(3, N),
    "temperatures": lambda g: g.normal(0, 5, N).round(),
    "hours of work": lambda g: np.where(g.random(N) < 0.3, 0, g.integers(7, 10, N)),
    "prices": lambda g: g.lognormal(5, 1, N).round() + 0.99,
    "round prices": lambda g: g.choice([99, 199, 299, 499, 999], N),
    "numbers of rooms": lambda g: g.binomial(9, 0.5, N),
    "shares of whole percents": lambda g: (100 * g.beta(8, 1, N)).round(),
    "years": lambda g: g.integers(1990, 2000, N),
    "values with a single outlier": lambda g: np.r_[g.normal(size=N - 1), 99],
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_values_are_not_taken_for_codes(name: str) -> None:
    generator = np.random.default_rng(1)
    found = [codes_of(torch.from_numpy(ORDINARY[name](generator))) for _ in range(100)]
    assert sum(map(bool, found)) <= 1


def test_a_fit_names_codes_with_their_column_and_the_remedy() -> None:
    values = with_codes(RANDOM.poisson(1.5, N), 99).astype(int)
    rows = {"age": RANDOM.normal(size=N), "children": values}
    density = FlowDensity(architecture="gaussian", seed=0, progress=False)
    with pytest.warns(UserWarning, match=r"column children is 99 in 8 of 400 rows.*missing"):
        density.fit(rows)
    by_class = FlowDensity(architecture="gmm-2", seed=0, progress=False)
    with pytest.warns(UserWarning, match="column children is 99"):
        by_class.fit(rows)
    assert by_class.schema.columns[1].spikes == (99,)
    drawn = by_class.sample(4000, seed=0)[:, 1]
    assert float((drawn == 99).double().mean()) == pytest.approx(0.02, abs=0.01)
    assert float(drawn[drawn != 99].max()) < 15
    spiked = FlowDensity(architecture="gmm-2", columns={"children": ("spiked", 99)})
    spiked.fit(rows, seed=0, progress=False)  # these are meant: warnings are errors here
