"""Ends that rows tell: found where they stop at once, and soft."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pyro_naf.density import FlowDensity, kinds
from pyro_naf.density.column import Column
from pyro_naf.density.ends import ends_of, round_number

QUICK: dict[str, Any] = {"seed": 0, "progress": False}
RANDOM = np.random.default_rng(0)


def truncated(n: int) -> np.ndarray:
    ages = RANDOM.normal(30, 15, 4 * n)
    return ages[ages >= 18][:n]


SHARP: dict[str, tuple[np.ndarray, float, float]] = {
    "hours": (24 * RANDOM.random(1000), 0, 24),
    "waiting times": (5 + RANDOM.exponential(2, 1000), 5, math.inf),
    "marks": (40 + 60 * RANDOM.beta(5, 0.9, 1000), -math.inf, 100),
    "ages": (truncated(1000), 18, math.inf),
    "capped prices": (np.minimum(np.exp(RANDOM.normal(4.5, 0.8, 2000)), 500), 0, 500),
    "angles": (RANDOM.uniform(-5, 5, 1000), -5, 5),
}


@pytest.mark.filterwarnings("ignore:.* rows of x occur before")  # those at the cap
@pytest.mark.parametrize("name", SHARP)
def test_draws_stay_within_an_end_where_the_rows_stop_at_once(name: str) -> None:
    values, low, high = SHARP[name]
    rows = torch.from_numpy(values).unsqueeze(1)
    density = FlowDensity(architecture="gmm-3", **QUICK).fit(rows)
    column = density.schema.columns[0]
    for found, expected in ((column.lower, low), (column.upper, high)):
        assert found == pytest.approx(expected, rel=0.01, abs=0.01)
    drawn = density.sample(20_000, seed=0)
    assert float(drawn.min()) >= column.lower and float(drawn.max()) <= column.upper
    beyond = [end + sign for end, sign in ((low, -0.5), (high, 0.5)) if 0 < abs(end) < math.inf]
    scores = density.score_samples(torch.tensor(beyond).double().unsqueeze(1))
    usual = density.score_samples(rows)
    assert np.isfinite(scores).all() and (scores < np.median(usual)).all()
    assert density.note is not None and f"{high:g}" in density.note + "inf"


def test_a_marginal_law_with_sharp_ends_is_learnt() -> None:
    rows = torch.from_numpy(RANDOM.uniform(-5, 5, (1000, 1)))
    new = torch.from_numpy(RANDOM.uniform(-5, 5, (4000, 1)))
    found = FlowDensity(architecture="gaussian", **QUICK).fit(rows).score(new)
    assert found > -math.log(10) - 0.05


@pytest.mark.parametrize("law", ["normal", "t", "gamma", "lognormal"])
@pytest.mark.parametrize("n", [60, 300])
def test_laws_that_fall_to_zero_have_no_ends(law: str, n: int) -> None:
    generator = np.random.default_rng(1)
    draw = {
        "normal": lambda: generator.normal(size=n),
        "t": lambda: generator.standard_t(4, n),
        "gamma": lambda: generator.gamma(9, size=n),
        "lognormal": lambda: np.exp(0.3 * generator.normal(size=n)),
    }[law]
    found = [end for _ in range(300) for end in ends_of(torch.from_numpy(draw()))]
    assert sum(end.is_there for end in found) <= 2  # of 600: one in a thousand is expected at most


@pytest.mark.parametrize("n", [100, 300])
@pytest.mark.parametrize("clusters, width", [(2, 0.1), (5, 0.02), (5, 0.2), (8, 0.05)])
def test_the_edge_of_a_narrow_cluster_is_no_end(n: int, clusters: int, width: float) -> None:
    generator = np.random.default_rng(2)
    drawn = [
        generator.integers(0, clusters, n) + width * generator.normal(size=n) for _ in range(200)
    ]
    found = [end.is_there for values in drawn for end in ends_of(torch.from_numpy(values))]
    assert np.mean(found) <= 0.03  # without a look at gaps and at half of the rows, up to 0.7


def test_an_end_that_breaks_a_linear_dependence_is_not_worth_it() -> None:
    u = RANDOM.uniform(-5, 5, 400)
    rows = np.c_[u, u + 0.15 * RANDOM.normal(size=400), 0.1 * RANDOM.normal(size=400) - u]
    tables: list[Any] = [None] * 3
    schema = kinds.infer(torch.from_numpy(rows), name="x", tables=tables, whole=[False] * 3)
    column = schema.columns[0]
    assert ends_of(torch.from_numpy(u))[0].is_there
    assert column.kind == "continuous" or column.curve == "softplus"


#: Whole numbers, nearly all of them different.
SPARSE: dict[str, np.ndarray] = {
    "identifiers": 10_000 + RANDOM.permutation(3000)[:500],
    "large numbers": RANDOM.integers(10**11, 10**12, 200),
    "prices": 100 * np.exp(RANDOM.normal(7, 0.6, 200)).astype(int),
}


@pytest.mark.parametrize("name", SPARSE)
def test_whole_numbers_that_hardly_recur_are_drawn_as_such(name: str) -> None:
    values = SPARSE[name]
    density = FlowDensity(architecture="gaussian", **QUICK).fit({"n": values})
    column = density.schema.columns[0]
    step = np.gcd.reduce(values - values[0] if column.lower > 0 else values)
    assert (column.kind, column.step) == ("integer", step)
    drawn = density.sample(500, seed=0, as_table=False)[:, 0]
    assert bool((torch.remainder(drawn - float(values[0]), step) == 0).all())
    assert abs(float(drawn.median()) - np.median(values)) < 0.5 * values.std()
    if name == "identifiers":  # one of 3000, each as likely, and the row of none of them
        every = np.arange(9_000, 14_000)
        chances = np.exp(density.score_samples({"n": every}))
        assert chances.sum() == pytest.approx(1, abs=0.02)
        assert chances[(every >= 10_050) & (every < 12_950)] == pytest.approx(1 / 3000, rel=0.3)


def test_a_value_just_beyond_the_last_integer_is_scored() -> None:
    grades = RANDOM.normal(3, 1.3, 500).round().clip(1, 5).astype(int)
    density = FlowDensity(architecture="gmm-2", **QUICK).fit({"grade": grades})
    assert density.schema.columns[0].upper == 5
    seen, beyond = np.split(np.exp(density.score_samples({"grade": [1, 2, 3, 4, 5, 0, 6, 7]})), [5])
    assert seen.sum() == pytest.approx(1, abs=0.01)
    assert (beyond > 1e-9).all() and beyond.sum() < 0.01
    assert set(density.sample(20_000, seed=0, as_table=False)[:, 0].tolist()) == {1, 2, 3, 4, 5}


def test_percentages_are_drawn_between_none_and_all() -> None:
    cells = [f"{share:.4f}%" for share in 100 * np.random.default_rng(1).beta(4, 5, 200)]
    density = FlowDensity(architecture="gaussian", **QUICK).fit({"share": cells})
    drawn = density.sample(20_000, seed=0, as_table=False)
    assert float(drawn.min()) >= 0 and float(drawn.max()) <= 100
    assert np.isfinite(density.score_samples({"share": ["104%"]}))[0]


@pytest.mark.parametrize("seen", [2, 3])
def test_columns_with_hardly_any_value_are_taken_without_a_warning(seen: int) -> None:
    rows = torch.full((12_000, 2), math.nan, dtype=torch.double)
    rows[:, 0] = torch.from_numpy(RANDOM.uniform(0, 24, 12_000))
    rows[torch.arange(1, 2 * seen, 2), 1] = torch.arange(seen).double()
    schema = kinds.infer(rows, name="x", tables=[None] * 2, whole=[False] * 2)
    assert schema.columns[1].is_plain


def test_written_percentages_near_zero_do_not_exceed_a_hundred() -> None:
    cells = [f"{share:.4f}%" for share in 100 * np.random.default_rng(1).beta(1, 5, 400)]
    density = FlowDensity(architecture="gmm-2", **QUICK).fit({"share": cells})
    assert (density.schema.columns[0].lower, density.schema.columns[0].upper) == (0, 100)
    drawn = density.sample(20_000, seed=0, as_table=False)
    assert float(drawn.min()) >= 0 and float(drawn.max()) <= 100


def test_negative_values_that_crowd_at_zero_stay_below() -> None:
    values = -np.random.default_rng(0).lognormal(2, 1, (400, 1))
    density = FlowDensity(architecture="gmm-2", **QUICK).fit(values)
    assert density.note is not None and "as negative" in density.note
    assert float(density.sample(20_000, seed=0).max()) < 0
    mirrored = FlowDensity(architecture="gmm-2", **QUICK).fit(-values)
    assert density.score(values) == pytest.approx(mirrored.score(-values), abs=1e-3)


def test_a_column_that_is_scaled_from_nought_to_one_ends_there_softly() -> None:
    values = np.random.default_rng(0).beta(4, 1.3, 300)
    values = (values - values.min()) / np.ptp(values)
    density = FlowDensity(architecture="gmm-2", **QUICK).fit({"x": values})
    drawn = density.sample(20_000, seed=0)
    assert float(drawn.min()) >= 0 and float(drawn.max()) <= 1
    assert np.isfinite(density.score_samples({"x": [-0.01, 1.01]})).all()


DAYS = np.datetime64("2020-01-01") + RANDOM.integers(0, 900, 400).astype("timedelta64[D]")


@pytest.mark.parametrize("unit", ["D", "s"])
def test_dates_end_where_their_rows_stop_at_once(unit: str) -> None:
    days = DAYS + RANDOM.integers(0, 86_400, 400 if unit == "s" else 1).astype(
        f"timedelta64[{unit}]"
    )
    days = days if unit == "s" else DAYS
    density = FlowDensity(architecture="gaussian", **QUICK).fit({"day": days})
    column = density.schema.columns[0]
    assert column.kind == "date" and density.note is not None and "day as date:" in density.note
    drawn = density.sample(5000, seed=0)["day"]
    assert drawn.min() >= days.min() and drawn.max() <= days.max()
    every = np.datetime64("2019-12-01") + np.arange(1000).astype("timedelta64[D]")
    mass = np.exp(density.score_samples({"day": every})).sum()
    assert mass == pytest.approx(1, abs=0.02)
    assert density.score({"day": days}) > -math.log(900) - 0.03


def test_dates_that_follow_others_keep_their_distance() -> None:
    later = DAYS + RANDOM.integers(1, 8, 400).astype("timedelta64[D]")
    density = FlowDensity(architecture="gaussian", **QUICK).fit({"order": DAYS, "ship": later})
    drawn = density.sample(5000, seed=0)
    away = (drawn["ship"] - drawn["order"]).dt.days
    assert 1.5 < away.std() < 3  # 6.5 with ends of both, though each day's are sharp


def test_ends_hold_the_rows_beside_a_large_offset():
    generator = torch.Generator().manual_seed(0)
    for k in range(100):
        rows = 1.7e9 + k * 0.137 + 10 * torch.rand(1000, 1, generator=generator, dtype=torch.double)
        low, high = rows.min().item(), rows.max().item()
        found = round_number(low - 1e-4, low, 1e-5)
        assert found is None or low - 1e-4 <= found <= low < high


def test_soft_ends_of_huge_and_tiny_values_stay_in_range():
    for size in (1e-160, 1e160):
        column = Column("bounded", None, 0.0, size, soft=(1e-3 * size, 1e-3 * size))
        x = torch.linspace(-0.1, 1.1, 25, dtype=torch.double) * size
        u = column.to_real(x)[0]
        assert u.isfinite().all()
