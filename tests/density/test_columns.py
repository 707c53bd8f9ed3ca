"""Columns of every kind: densities that integrate to one within their bounds, and draws there."""

from __future__ import annotations

import datetime
import math
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_naf.density import FlowDensity, kinds, tables
from pyro_naf.density.classes import SoftmaxHead
from pyro_naf.density.columns import Column, Schema

QUICK: dict[str, Any] = {"seed": 0, "progress": False}
QUICK_FLOW: dict[str, Any] = {"architecture": "maf-dsf-1", "hidden_dims": [16], **QUICK}

COLUMNS = {
    "positive, log": Column("positive", lower=0.0),
    "positive, softplus": Column("positive", lower=-3.0, curve="softplus", scale=2.0),
    "below a bound": Column("positive", upper=5.0, curve="softplus"),
    "with values on its bound": Column("positive", lower=0.0, slack=0.25),
    "bounded": Column("bounded", lower=-1.0, upper=3.0),
    "positive, probit": Column("positive", lower=-1.0, curve="probit", scale=0.5),
    "bounded, probit": Column("bounded", lower=-1.0, upper=3.0, curve="probit"),
    "bounded, softplus": Column("bounded", lower=-1.0, upper=3.0, curve="softplus", scale=0.5),
    "periodic": Column("periodic", lower=20.0, upper=380.0),
    "above a soft bound": Column("positive", lower=-1.0, soft=(0.2, 0.0)),
    "below a soft bound": Column("positive", upper=9.0, curve="probit", soft=(0.0, 0.2)),
    "within soft bounds": Column("bounded", lower=-1.0, upper=3.0, soft=(0.1, 0.2)),
    "one bound soft": Column("bounded", lower=0.0, upper=9.0, curve="softplus", soft=(0.0, 0.1)),
    "the other soft": Column("bounded", lower=-1.0, upper=3.0, curve="probit", soft=(0.5, 0.0)),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_columns_map_is_inverted_and_its_slope_is_its_derivative(name: str) -> None:
    column = COLUMNS[name]
    u = torch.linspace(-6, 6, 41, dtype=torch.double)
    x = column.from_real(u)
    kept = (x > column.lower) & (x < column.upper)  # draws are within soft bounds too
    x = torch.where(kept, x, 1.0).requires_grad_()
    back, log_slope = column.to_real(x)
    (slope,) = torch.autograd.grad(back.sum(), x)
    torch.testing.assert_close(slope.abs().log(), log_slope.detach())
    if column.slack == 0:
        torch.testing.assert_close(back.detach()[kept], u[kept], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in COLUMNS if max(COLUMNS[name].soft) > 0])
def test_a_soft_bound_leaves_a_density_beyond_that_integrates_to_one(name: str) -> None:
    column = COLUMNS[name]
    low, high = max(column.lower, -60.0), min(column.upper, 60.0)
    away = torch.logspace(-4, 6, 40_001, dtype=torch.double)
    parts = [low - away.flip(0)] * (column.soft[0] > 0)
    parts += [torch.linspace(low, high, 200_001, dtype=torch.double)[1:-1]]
    parts += [high + away] * (column.soft[1] > 0)
    x = torch.cat(parts)
    assert bool(column.inside(x).all())
    u, log_slope = column.to_real(x)
    density = (log_slope - 0.5 * u.square() - 0.5 * math.log(2 * math.pi)).exp()
    assert float(torch.trapezoid(density, x)) == pytest.approx(1, abs=1e-4)


def integral(density: FlowDensity, low: float, high: float, n: int = 20_001) -> float:
    grid = torch.linspace(low, high, n, dtype=torch.double)[1:-1, None]
    with torch.no_grad():
        return float(density.log_prob(grid).exp().sum()) * (high - low) / (n - 1)


@pytest.mark.parametrize(
    "kind, values, low, high",
    [
        ("positive", torch.distributions.Gamma(2.0, 1.0), 0.0, 40.0),
        (("bounded", -1, 2), torch.distributions.Uniform(-1.0, 2.0), -1.0, 2.0),
        (("bounded", -math.inf, 2), torch.distributions.Uniform(-1.0, 2.0), -6.0, 2.0),
        (("periodic", 360), torch.distributions.Normal(350.0, 30.0), 0.0, 360.0),
    ],
)
def test_a_density_lies_within_its_bounds_and_integrates_to_one(
    kind: Any, values: Any, low: float, high: float
) -> None:
    torch.manual_seed(0)
    x = values.sample([400, 1]).double()
    density = FlowDensity(1, columns={0: kind}, max_steps=150, **QUICK_FLOW).fit(x)
    assert integral(density, low, high) == pytest.approx(1, abs=5e-3)
    drawn = density.sample(2000)
    if kind[0] != "periodic":
        assert float(drawn.max()) <= high or high == 40
        assert float(drawn.min()) >= low or low == -6
        outside = torch.tensor([[low - 1.0 if low > -6 else high + 1]]).double()
        assert density.score_samples(outside)[0] == -math.inf
    else:
        turned = density.log_prob(x + 720)
        torch.testing.assert_close(turned, density.log_prob(x), rtol=0, atol=1e-4)
        assert float(drawn.max() - drawn.min()) <= 360


@pytest.mark.parametrize(
    "values, kind",
    [
        (torch.distributions.LogNormal(0.0, 1.0), "positive"),
        (torch.distributions.Exponential(3.0), "positive"),
        (torch.distributions.Beta(0.5, 0.5), "bounded"),
        (torch.distributions.Uniform(0.0, 100.0), "bounded"),
        (torch.distributions.Normal(0.0, 1.0), "continuous"),
        (torch.distributions.Normal(3.0, 1.0), "continuous"),
        (torch.distributions.Normal(2020.0, 1e-3), "continuous"),
        (torch.distributions.Uniform(-5.0, 5.0), "bounded"),
        (torch.distributions.Gamma(50.0, 1.0), "continuous"),
    ],
)
def test_the_kind_of_a_column_is_inferred_from_where_its_values_crowd(
    values: Any, kind: str
) -> None:
    torch.manual_seed(0)
    rows = values.sample([300, 1])
    schema = kinds.infer(rows, name="x", tables=[None], whole=[False])
    assert schema.columns[0].kind == kind
    unchecked = kinds.infer(rows, name="x", tables=[None], whole=[False], said="continuous")
    assert unchecked.is_plain


def test_zeros_of_a_positive_column_are_taken_and_drawn_within_it() -> None:
    torch.manual_seed(0)
    x = torch.distributions.Exponential(1.0).sample([300, 1]).double()
    x[:12] = 0
    density = FlowDensity(1, columns={0: "positive"}, max_steps=50, **QUICK_FLOW)
    with pytest.warns(UserWarning, match="11 of 300 rows of x occur before"):
        density.fit(x)
    assert bool(density.log_prob(x).isfinite().all()) and float(density.sample(4000).min()) >= 0


@pytest.mark.parametrize(
    "kind, first, last",
    [
        (("integer", 0.5, 10), 2, 10),
        (("bounded", 0.5, 10), 2, 10),
        (("integer", -3, 9.9), -2, 8),
        (("integer", -math.inf, 8.5), -math.inf, 8),
        (("bounded", 1, math.inf), 2, math.inf),
        ("positive", 0, math.inf),
        ("bounded", 0, 100),
    ],
)
def test_bounds_of_integers_are_moved_to_values_that_rows_can_have(
    kind: Any, first: float, last: float
) -> None:
    evens = 2 * np.random.default_rng(0).binomial(3, 0.5, 200) + 2
    density = FlowDensity(architecture="gmm-2", columns={"k": kind}, **QUICK).fit({"k": evens})
    column = density.schema.columns[0]
    assert (column.kind, column.step, column.lower, column.upper) == ("integer", 2, first, last)
    drawn = density.sample(2000, as_table=False)
    assert (
        bool((drawn % 2 == 0).all()) and first <= float(drawn.min()) <= float(drawn.max()) <= last
    )
    probabilities = np.exp(density.score_samples({"k": np.arange(-100, 200, 2)}))
    assert probabilities.sum() == pytest.approx(1, abs=2e-3)


def test_bounds_between_two_integers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"column k must have bounds with at least two of its val"):
        FlowDensity(columns={"k": ("integer", 5.5, 6.5)}, **QUICK).fit({"k": [6] * 40})


@pytest.mark.parametrize("base", [2**53, 1_700_000_000_000_000_000])
def test_integers_that_double_precision_rounds_have_a_density(base: int) -> None:
    width = 2**30
    values = base + np.random.default_rng(0).integers(0, width, 300)
    with pytest.warns(UserWarning, match="column k holds integers of too many digits"):
        density = FlowDensity(architecture="gaussian", **QUICK).fit({"k": values})
    assert density.schema.columns[0].step == 0
    grid = base + np.linspace(-width, 2 * width, 20_000).astype(int)
    mean = np.exp(density.score_samples({"k": grid})).mean()
    assert mean * 3 * width == pytest.approx(1, abs=0.01)  # each integer once
    with pytest.raises(ValueError, match="cannot be integer: subtract the smallest"):
        FlowDensity(columns={"k": "integer"}, **QUICK).fit({"k": values})
    with pytest.raises(ValueError, match=f"near {base}.*subtract the smallest"):
        FlowDensity(**QUICK).fit({"k": base + values % 2})
    seconds = base + 10**9 * (values % 86_400)  # multiples of a large step are exact
    whole = FlowDensity(architecture="gaussian", **QUICK).fit({"k": seconds})
    assert whole.schema.columns[0].step == 10**9


def test_integers_have_probabilities_that_sum_to_one() -> None:
    torch.manual_seed(0)
    counts = torch.poisson(torch.full((500, 1), 3.0)).long()
    density = FlowDensity(1, max_steps=200, **QUICK_FLOW).fit(counts)
    assert density.schema.columns[0].kind == "integer"
    found = density.log_prob(torch.arange(0, 30).unsqueeze(1)).detach()
    assert float(found.exp().sum()) == pytest.approx(1, abs=0.02)
    law = torch.distributions.Poisson(3.0)
    exact = law.log_prob(torch.arange(0.0, 30.0))
    assert float((exact.exp() * (exact - found)).sum()) < 0.05
    drawn = density.sample(500)
    assert torch.equal(drawn, drawn.round()) and float(drawn.min()) >= 0


RANDOM = np.random.default_rng(0)

#: Integers, and the bounds that their numbers of rows tell.
WHOLE: dict[str, tuple[np.ndarray, float, float]] = {
    "a die": (RANDOM.integers(1, 7, 400), 1, 6),
    "answers": (RANDOM.normal(3, 1.3, 500).round().clip(1, 5), 1, 5),
    "hours": (RANDOM.integers(0, 24, 1000), 0, 23),
    "counts": (RANDOM.poisson(3, 1000), 0, math.inf),
    "years": (RANDOM.integers(2010, 2021, 1000), 2010, 2020),
    "years up to the last": (2023 - RANDOM.geometric(0.2, 400), -math.inf, 2022),
    "odd numbers": (2 * RANDOM.poisson(9, 500) + 1, 1, math.inf),
    "differences": (RANDOM.normal(0, 4, 1000).round(), -math.inf, math.inf),
}


@pytest.mark.parametrize("name", WHOLE)
def test_integers_are_drawn_within_the_ends_where_their_rows_stop_at_once(name: str) -> None:
    values, low, high = WHOLE[name]
    rows = torch.from_numpy(values.astype(float)).unsqueeze(1)
    column = kinds.infer(rows, name="x", tables=[None], whole=[True]).columns[0]
    assert (column.kind, column.lower, column.upper) == ("integer", low, high)
    drawn = column.from_real(torch.linspace(-30, 30, 61).double())
    assert float(drawn.min()) >= low and float(drawn.max()) <= high
    assert bool(((drawn - rows[0, 0]) % column.step == 0).all())
    said = kinds.infer(
        rows, name="x", tables=[None], whole=[True], said=("integer", -99, 3000)
    ).columns[0]
    assert said.lower == -99 and 3000 - said.step < said.upper <= 3000
    assert (said.upper - rows[0, 0]) % said.step == 0


def test_a_gaussian_of_counts_has_no_heavier_tail_than_the_counts() -> None:
    torch.manual_seed(0)
    law = torch.distributions.Geometric(0.4)
    density = FlowDensity(architecture="gaussian", **QUICK).fit(law.sample([2000, 1]).long())
    counts = torch.arange(40.0)
    exact = law.log_prob(counts)
    found = density.log_prob(counts.unsqueeze(1)).double()
    assert float((exact.exp() * (exact - found)).sum()) < 0.02
    assert found[30] < exact[30] + 3


def test_two_numbers_are_classes() -> None:
    rng = np.random.default_rng(0)
    size = rng.choice([1, 2], 300, p=[0.3, 0.7])
    density = FlowDensity(architecture="gmm-1", **QUICK).fit({"x": rng.normal(size=300), "n": size})
    assert density.note is not None and "n as categorical" in density.note
    drawn = density.sample(2000, seed=0)
    assert isinstance(drawn, torch.Tensor)
    assert float((drawn[:, 1] == 1).double().mean()) == pytest.approx(
        float((size == 1).mean()), abs=0.04
    )
    assert drawn[:, 1].unique().tolist() == [1.0, 2.0]
    nearly = torch.full((100, 1), 5.0).double()
    nearly[3] = 0.3
    found = kinds.infer(nearly, name="x", tables=[None], whole=[False], finds_spikes=True)
    assert found.columns[0].is_real


# ------------------------------------------------------------------------------------------ classes


def test_the_softmax_head_learns_how_classes_and_contexts_depend() -> None:
    table = mixed_table(3000)
    density = FlowDensity(architecture="gaussian", **QUICK)
    density.fit({"region": table["region"], "sold": table["sold"]})
    codes = torch.cartesian_prod(torch.arange(3.0), torch.arange(2.0))
    found = density.log_prob(codes).detach().exp()
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    region, sold = (np.unique(table[k], return_inverse=True)[1] for k in ("region", "sold"))
    shares = np.bincount(2 * region + sold, minlength=6) / 3000
    np.testing.assert_allclose(found.numpy(), shares, atol=0.02)


def test_a_head_of_one_class_has_the_shares_of_the_rows() -> None:
    head = SoftmaxHead([3])
    head.start(torch.tensor([[0], [0], [1]]))
    shares = head.log_prob(torch.arange(3).unsqueeze(1)).exp()
    torch.testing.assert_close(shares.detach(), torch.tensor([2.5, 1.5, 0.5]) / 4.5)


def mixed_table(n: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns of all kinds that depend on each other."""
    rng = np.random.default_rng(seed)
    region = rng.choice(["north", "south", "east"], n, p=[0.5, 0.3, 0.2])
    south = region == "south"
    day = rng.integers(0, 1000, n).astype("timedelta64[D]")
    return {
        "price": np.exp(south + 0.5 * rng.normal(size=n)),
        "region": region,
        "sold": rng.random(n) < np.where(south, 0.8, 0.2),
        "visits": rng.poisson(2, n),
        "day": np.datetime64("2020-01-01") + day,
    }


def test_a_table_of_all_kinds_is_fitted_scored_by_name_and_drawn(tmp_path: Any) -> None:
    table = mixed_table(300)
    density = FlowDensity(max_steps=5, hidden_dims=[8], **QUICK).fit(table)
    told = [c.kind for c in density.schema.columns]
    assert told == ["positive", "categorical", "boolean", "integer", "date"]
    assert density.note is not None and "region as categorical" in density.note
    assert list(density.feature_names_in_) == list(table) and density.n_features_in_ == 5
    other = mixed_table(200, seed=1)
    scores = density.score_samples(other)
    assert np.isfinite(scores).all()
    turned = {name: other[name] for name in reversed(other)} | {"more": other["price"]}
    np.testing.assert_array_equal(density.score_samples(turned), scores)
    drawn = tables.columns_of(density.sample(400, as_table=False), density.schema)
    assert drawn["price"].min() > 0 and set(drawn["region"]) <= set(table["region"])
    assert drawn["sold"].dtype == bool and drawn["visits"].dtype.kind == "i"
    assert (drawn["day"] == drawn["day"].astype("datetime64[D]")).all()
    south = drawn["region"] == "south"
    assert drawn["sold"][south].mean() > drawn["sold"][~south].mean() + 0.3
    density.save(tmp_path / "model.pt")
    again = FlowDensity.load(tmp_path / "model.pt")
    np.testing.assert_array_equal(again.score_samples(other), scores)


def test_a_pandas_frame_goes_in_and_comes_out() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(mixed_table(200))
    density = FlowDensity(max_steps=5, **QUICK).fit(frame)
    drawn = density.sample(5)
    assert list(drawn.columns) == list(frame.columns) and drawn["sold"].dtype == bool
    assert np.isfinite(density.score(frame[frame.columns[::-1]]))


def test_objects_are_read_by_what_they_are() -> None:
    dates = [datetime.date(2020, 1, d + 1) for d in range(20)]
    table = {
        "date": np.array(dates, object),
        "flag": np.array([True, False] * 10, object),
        "number": np.array([1, 2.5] * 10, object),
        "text": ["a", "b"] * 10,
    }
    found = tables.matrix(table, "x")
    assert [c.kind if c else None for c in found.columns] == [
        "date",
        "boolean",
        None,
        "categorical",
    ]
    assert found.rows[:2].tolist() == [[18262.0, 1.0, 1.0, 0.0], [18263.0, 0.0, 2.5, 1.0]]


# ---------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "said, message",
    [
        ({"age": "positive"}, "columns names 'age', but x has the columns 0 to 1"),
        ({5: "positive"}, "columns names 5, but x has the columns 0 to 1"),
        ({0: "wide"}, "columns[0] must be one of continuous, positive, bounded"),
        ({0: "periodic"}, "columns[0] must be one of"),
        ({0: ("bounded", 1)}, "columns[0] must be one of"),
        ({0: ("bounded", 2, 1)}, "x in column 0 must have a lower bound below the upper, got 2.0"),
        (
            {0: ("bounded", 0, 1)},
            "x in column 0 must be from 0 to 1, its bounds; it is not in rows",
        ),
        ({0: ("periodic", -1)}, "x in column 0 must have a positive and finite period, got -1.0"),
        ({0: "positive"}, "x in column 0 must be at least 0, to be positive; it is not in row"),
        ({0: "categorical"}, "x has 100 different values in 100 rows of column 0, too many"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(said: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        FlowDensity(columns=said, **QUICK).fit(np.random.default_rng(0).normal(size=(100, 2)))


def test_tables_that_do_not_fit_the_schema_are_refused() -> None:
    table = mixed_table(100)
    density = FlowDensity(max_steps=2, **QUICK).fit(table)
    with pytest.raises(ValueError, match="lacks column price"):
        density.score({name: table[name] for name in list(table)[1:]})
    with pytest.raises(
        ValueError, match="x in column region holds 'west' in row 0; the fit had east"
    ):
        density.score({**table, "region": ["west"] * 100})
    with pytest.raises(ValueError, match="columns of one length"):
        density.score({**table, "price": table["price"][:5]})
    with pytest.raises(NotImplementedError, match="has no Pyro distribution"):
        density.distribution()
    for values, message in (
        (np.array(["a", None] * 50, object), "cannot be fitted by architecture 'maf-affine-1'"),
        (
            np.array([{}] * 100, object),
            "must hold numbers, text, booleans, dates or durations, got dict",
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            FlowDensity(architecture="maf-affine-1", **QUICK).fit({**table, "region": values})


def test_values_that_all_lie_on_bounds_have_a_density() -> None:
    rows = np.random.default_rng(0).integers(2, size=(60, 1)).astype(float)
    rows = np.hstack([rows, np.random.default_rng(1).normal(size=(60, 1))])
    for said in (None, {0: ("bounded", 0, 1)}):
        density = FlowDensity(architecture="gaussian", columns=said, **QUICK)
        with pytest.warns(UserWarning, match="takes few different values in column 0"):
            density.fit(rows)
        assert np.isfinite(density.score_samples(rows)).all()


def test_a_sentinel_costs_nothing_and_is_named() -> None:
    torch.manual_seed(0)
    clean = torch.randn(500, 2) @ torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    dirty = clean.clone()
    dirty[7, 1] = 1e9
    for density in (
        FlowDensity(max_steps=10, **QUICK),
        FlowDensity(2, max_steps=150, **QUICK_FLOW),
    ):
        with pytest.warns(UserWarning, match="in column 1 .* because of row 7, and the farthest"):
            density.fit(dirty)
        truth = -math.log(2 * math.pi * math.e)
        assert density.score(clean) > truth - 0.1


def test_a_column_that_others_determine_is_named() -> None:
    rows = np.random.default_rng(0).normal(size=(100, 2))
    table = {"a": rows[:, 0], "b": rows[:, 1], "total": rows.sum(1)}
    with pytest.warns(UserWarning, match="x is determined in column total by the columns before"):
        FlowDensity(architecture="gaussian", **QUICK).fit(table)


def test_shares_that_sum_to_one_are_named_though_they_are_modelled_by_logarithms() -> None:
    shares = np.random.default_rng(0).dirichlet([2, 3, 5], 200)
    with pytest.warns(UserWarning, match="x is determined in column 2 by the columns before"):
        FlowDensity(architecture="gaussian", columns="positive", **QUICK).fit(shares)


def test_noise_on_each_of_many_integers_fills_its_step() -> None:
    noise = Schema([Column("integer", step=1.0)] * 40).noise(torch.device("cpu"))
    even = (torch.arange(len(noise)).double() + 0.5) / len(noise)
    torch.testing.assert_close(noise.sort(0).values, even.unsqueeze(1).expand(-1, 40))


def test_a_moment_that_is_given_has_a_time_zone_or_is_written() -> None:
    rng, days = np.random.default_rng(0), np.arange(100)
    moments = np.datetime64("2024-01-01", "us") + days * np.timedelta64(1, "D")
    table = {"t": moments, "x": rng.normal(size=100) + days - 60}
    density = FlowDensity(architecture="gaussian", **QUICK).fit(table)
    east = datetime.timezone(datetime.timedelta(hours=2))
    given = datetime.datetime(2024, 3, 1, 14, tzinfo=east)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        means = [
            density.condition({"t": t}).marginal([0]).sample(500, seed=0).mean()
            for t in (given, "2024-03-01T12:00", "2024-03-01 14:00+02:00")
        ]
    assert means[0] == means[1] == means[2]
    assert abs(float(means[0])) < 1
    with pytest.raises(ValueError, match="must be one finite number or date, got 'March'"):
        density.condition({"t": "March"})


def test_a_distribution_of_bounded_columns_is_in_the_units_of_the_data() -> None:
    torch.manual_seed(0)
    x: Tensor = torch.randn(200, 2).double().exp()
    density = FlowDensity(2, max_steps=20, **QUICK_FLOW).fit(x)
    assert not density.schema.is_plain
    law = density.distribution()
    found = law.log_prob(x.float()).double()
    torch.testing.assert_close(found, density.log_prob(x), rtol=1e-3, atol=1e-3)
    assert float(law.rsample([500]).detach().min()) > 0


def test_a_schema_comes_back_from_what_a_file_holds() -> None:
    schema = Schema([*COLUMNS.values(), Column("categorical", "c", values=("a", "b"))])
    assert Schema.of(schema.content()).columns == schema.columns
    with pytest.raises(ValueError, match="kind must be one of"):
        Column("colour")
    with pytest.raises(ValueError, match="bounds or a scale that make no map"):
        Column("bounded", lower=2.0, upper=1.0)
