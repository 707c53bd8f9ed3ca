"""Tables of strangers: each is read right, or refused in one sentence that says what to do."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch

from pyro_naf.cli import main
from pyro_naf.density import FlowDensity
from pyro_naf.density.commands.files import read_table

N = 60
RANDOM = np.random.default_rng(0)
A, AMOUNTS = RANDOM.normal(size=N), RANDOM.lognormal(6, 1, N).round(2)
SPANS = (RANDOM.lognormal(8, 1, N)).round()
G = RANDOM.choice(["x", "y", "z"], N)


def fitted(x: Any, **options: Any) -> FlowDensity:
    return FlowDensity(architecture="gaussian", seed=0, progress=False, **options).fit(x)


def of_rows(columns: dict[str, Any]) -> pandas.DataFrame:
    return pandas.DataFrame({"a": A, **columns})


def commas(amount: float) -> str:
    return f"{amount:,.2f}".translate(str.maketrans(",.", ".,"))


SIGNED = AMOUNTS * np.where(A > 0, 1, -1)

#: Cells as they are written, the numbers that they stand for, and their unit.
WRITTEN: dict[str, tuple[list[str], np.ndarray, str]] = {
    "percent": ([f"{100 * a:.2f}%" for a in A], (100 * A).round(2), "%"),
    "percent with a blank": ([f"{a:.2f} %" for a in A], A.round(2), "%"),
    "dollars": ([f"${a:,.2f}" for a in AMOUNTS], AMOUNTS, "$"),
    "euros": ([f"{commas(a)} €" for a in AMOUNTS], AMOUNTS, "€"),
    "codes": ([f"CHF {a:,.2f}".replace(",", "\u2019") for a in AMOUNTS], AMOUNTS, "CHF"),
    "accounts": ([f"(${-a})" if a < 0 else f"${a}" for a in SIGNED], SIGNED, "$"),
    "minus in front": ([f"-£{-a}" if a < 0 else f"£{a}" for a in SIGNED], SIGNED, "£"),
    "minus inside": ([f"£\u2212{-a}" if a < 0 else f"£{a}" for a in SIGNED], SIGNED, "£"),
    "durations": ([str(datetime.timedelta(seconds=s)) for s in SPANS], SPANS, "s"),
    "numbers": ([f"{a:.3f}" for a in A], A.round(3), ""),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_numbers_written_with_a_unit_are_those_numbers(name: str, tmp_path: Path) -> None:
    cells, values, unit = WRITTEN[name]
    text, plain = of_rows({"c": cells}), of_rows({"c": values})
    density = fitted(text)
    assert density.schema.columns[1].unit == unit
    expected = fitted(plain).score_samples(plain)
    np.testing.assert_allclose(density.score_samples(text), expected)
    one = density.score_samples(text[:1])  # the unit is known from the fit
    np.testing.assert_allclose(one, expected[:1], rtol=1e-5)  # float32, in another batch
    density.save(tmp_path / "model.pt")
    assert FlowDensity.load(tmp_path / "model.pt").schema.columns[1].unit == unit
    given = density.condition({"c": cells[0]}), density.condition({1: values[0]})
    assert given[0].score([[0.5]]) == pytest.approx(given[1].score([[0.5]]))


@pytest.mark.parametrize("name", ["dollars", "euros", "accounts", "durations", "percent"])
def test_files_of_such_numbers_are_fitted_drawn_and_scored(name: str, tmp_path: Path) -> None:
    cells, values, unit = WRITTEN[name]
    of_rows({"c": cells}).to_csv(tmp_path / "data.csv", index=False)
    model, drawn = str(tmp_path / "model"), str(tmp_path / "drawn.csv")
    fit = [
        "fit",
        str(tmp_path / "data.csv"),
        "--output",
        model,
        "--model",
        "gaussian",
        "--no-picture",
    ]
    assert main(fit) in (None, 0)
    assert main(["sample", model, "-n", "400", "--output", drawn, "--seed", "0"]) in (None, 0)
    found = pandas.read_csv(drawn)["c"]
    seconds = unit == "s"
    numbers = pandas.to_timedelta(found).dt.total_seconds() if seconds else found
    assert abs(numbers.median() - np.median(values)) < values.std()
    assert main(["score", model, drawn]) in (None, 0)


DAYS = pandas.date_range("2020-01-01", periods=N, freq="MS")
DICTS = [{"a": float(a), "g": str(g)} for a, g in zip(A, G, strict=True)]

#: Tables, and others that hold the same.
ALIKE: dict[str, tuple[Callable[[], Any], Any]] = {
    "timedelta": (lambda: of_rows({"c": pandas.to_timedelta(SPANS, unit="s")}), {"c": SPANS}),
    "timedelta objects": (
        lambda: of_rows({"c": np.array([datetime.timedelta(0, s) for s in SPANS], object)}),
        {"c": SPANS},
    ),
    "times of day": (
        lambda: of_rows({"c": [datetime.time(i // 24 + 3, i % 24, 5) for i in range(N)]}),
        {"c": [3600 * (i // 24 + 3) + 60 * (i % 24) + 5.0 for i in range(N)]},
    ),
    "periods": (lambda: of_rows({"c": DAYS.to_period("M")}), {"c": DAYS}),
    "intervals": (
        lambda: of_rows({"c": pandas.cut(A, [-9, 0, 9])}),
        {"c": np.where(A > 0, "(0, 9]", "(-9, 0]")},
    ),
    "bytes": (lambda: of_rows({"c": [g.encode() for g in G]}), {"c": G}),
    "fractions": (
        lambda: of_rows({"c": [Fraction(int(s), 7) for s in SPANS]}),
        {"c": [int(s) / 7 for s in SPANS]},
    ),
    "numbers as text, some not known": (
        lambda: of_rows({"c": np.where(A > 1, "n/a", [f"{a:.3f}" for a in AMOUNTS])}),
        {"c": np.where(A > 1, np.nan, AMOUNTS)},
    ),
    "a level that no row has": (
        lambda: of_rows({"c": pandas.Categorical(G, [*"zyx", "w"])}),
        {"c": pandas.Categorical(G, [*"zyx", "w"], ordered=True)},
    ),
    "integers as objects": (
        lambda: of_rows({"c": (A * 3).round().astype(int).astype(object)}),
        {"c": (A * 3).round().astype(int)},
    ),
    "dictionaries": (lambda: DICTS, {"g": G}),
    "a structured array": (
        lambda: np.array(list(zip(A, G, strict=True)), [("a", "f8"), ("g", "U1")]),
        {"g": G},
    ),
    "masked cells": (
        lambda: np.ma.masked_array(np.c_[A, SPANS], mask=np.c_[A > 9, A > 1]),
        {"c": np.where(A > 1, np.nan, SPANS)},
    ),
}


@pytest.mark.parametrize("name", ALIKE)
def test_other_ways_to_hold_a_table_are_read_as_what_they_hold(name: str) -> None:
    held, columns = ALIKE[name][0](), of_rows(ALIKE[name][1])
    found, expected = fitted(held), fitted(columns)
    assert [c.kind for c in found.schema.columns] == [c.kind for c in expected.schema.columns]
    np.testing.assert_allclose(found.score_samples(held), expected.score_samples(columns))


def test_draws_of_durations_are_durations_that_are_scored() -> None:
    density = fitted(of_rows({"c": pandas.to_timedelta(SPANS, unit="s")}))
    drawn = density.sample(5)
    assert drawn["c"].dtype.kind == "m"
    numbers = drawn["c"].dt.total_seconds()
    rows = torch.tensor(np.c_[drawn["a"], numbers])
    assert density.score(drawn) == pytest.approx(density.score(rows), rel=1e-5)
    given = density.condition({"c": pandas.Timedelta("1h")}).score([[0.5]])
    assert given == pytest.approx(density.condition({"c": 3600}).score([[0.5]]))


def test_levels_of_a_category_keep_their_order_and_may_have_no_row() -> None:
    sizes = pandas.Categorical(np.where(A > 0, "small", "large"), ["small", "large", "huge"])
    density = fitted(of_rows({"c": sizes}))
    assert density.schema.columns[1].values == ("small", "large", "huge")
    unseen = of_rows({"c": ["huge"] * N})
    assert (density.score_samples(unseen) < density.score_samples(of_rows({"c": sizes})) - 1).all()


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_files_keep_the_order_of_levels(suffix: str, tmp_path: Path, capsys: Any) -> None:
    frame = of_rows({"c": pandas.Categorical(G, [*"zyx", "w"], ordered=True)})
    (frame.to_parquet if suffix == "parquet" else frame.to_feather)(tmp_path / f"t.{suffix}")
    table = read_table(str(tmp_path / f"t.{suffix}"))
    assert not table.missing().any()
    table.keep(torch.arange(N) >= 1)
    assert fitted(table.content()).schema.columns[1].values == (*"zyx", "w")


def test_levels_that_are_numbers_are_sorted_and_found_as_numbers() -> None:
    marks = np.where(A > 0, "10", np.where(A > -1, "9", "101"))
    density = fitted(of_rows({"c": marks.astype(object)}), columns={"c": "categorical"})
    assert density.schema.columns[1].values == ("9", "10", "101")
    wholes = of_rows({"c": marks.astype(int)})
    assert density.score(wholes) == pytest.approx(density.score(of_rows({"c": marks})))
    with pytest.raises(ValueError, match="in column c holds 11, a number, in row 0; the fit had 9"):
        density.score(of_rows({"c": [11] * N}))


def test_blanks_around_a_text_are_no_part_of_it() -> None:
    blanks = RANDOM.choice(["", " ", "  "], (2, N))
    padded = of_rows({"c": [a + g + b for a, g, b in zip(blanks[0], G, blanks[1], strict=True)]})
    torch.manual_seed(0)
    density = fitted(padded)
    assert density.schema.columns[1].values == ("x", "y", "z")
    plain = of_rows({"c": G})
    torch.manual_seed(0)
    assert density.score(plain) == pytest.approx(fitted(plain).score(plain))
    assert density.condition({"c": " x"}).score([[0.5]]) == pytest.approx(
        density.condition({"c": "x"}).score([[0.5]]), abs=0.02
    )  # each by draws of its own


def test_text_for_a_missing_number_is_missing_and_other_text_is_named() -> None:
    cells: list[Any] = AMOUNTS.tolist()
    cells[3], cells[5], cells[7] = "n/a", " -", f"{AMOUNTS[7]} "
    gaps = AMOUNTS.copy()
    gaps[[3, 5]] = np.nan
    numbers = of_rows({"c": gaps})
    found = fitted(of_rows({"c": cells})).score_samples(numbers)
    np.testing.assert_allclose(found, fitted(numbers).score_samples(numbers))
    cells[9] = "abc"
    with pytest.raises(ValueError, match="in column c holds 'abc' in row 9 among numbers: correct"):
        fitted(of_rows({"c": cells}))


def test_columns_may_be_called_by_names_that_are_no_text() -> None:
    years = pandas.DataFrame(np.c_[A, A[::-1] * 5], columns=[2020, 1])
    density = fitted(years, columns={2020: "continuous", np.int64(1): "continuous"})
    assert density.note is None and density.marginal([1]).columns == ["1"]
    swapped = fitted(years[[1, 2020]], columns=["continuous", "continuous"])
    assert swapped.marginal([1]).columns == ["1"]
    assert swapped.condition({2020: 0.5}).score([[1.0]]) == pytest.approx(
        density.condition({2020: 0.5}).score([[1.0]])
    )


def test_a_series_is_a_table_of_one_column() -> None:
    series = pandas.Series(A, name="a")
    density = fitted(series)
    assert density.columns == ["a"]
    assert density.score(series) == pytest.approx(fitted(A[:, None]).score(A[:, None]))


TWICE = pandas.DataFrame(np.c_[A, A, A], columns=["a", "b", "a"])

#: Tables that cannot be fitted, and what is said.
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "two columns of one name": (lambda: TWICE, "several columns called 'a': rename all but one"),
    "a sparse tensor": (lambda: torch.eye(9).to_sparse(), r"must be dense.*pass x.to_dense\(\)"),
    "ragged lists": (lambda: [[1.0, 2.0], [1.0]], "must have rows of one length"),
    "a generator": (lambda: (row for row in A), "got generator: pass an array or a table"),
    "a vector": (lambda: A, r"pass one column as reshape\(-1, 1\)"),
    "text among numbers": (lambda: [[1.0, "x"]] * 9, "pass a DataFrame or a mapping of columns"),
    "identifiers": (
        lambda: of_rows({"c": [uuid.uuid4() for _ in A]}),
        "column c must hold numbers.*got UUID: make it one of these, or leave the column out",
    ),
    "lists in cells": (lambda: of_rows({"c": [[1, 2]] * N}), "got list: make it one of these"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_with_a_remedy(name: str) -> None:
    held, message = REFUSED[name]
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        fitted(held())
    assert "\n" not in str(caught.value)


def test_another_unit_than_that_of_the_fit_is_refused() -> None:
    density = fitted(of_rows({"c": [f"${a}" for a in AMOUNTS]}))
    with pytest.raises(ValueError, match=r"holds '£2' in row 0; the fit had numbers in \$"):
        density.score_samples(pandas.DataFrame({"a": [0.0], "c": ["£2"]}))


def test_one_value_that_recurs_among_others_is_named() -> None:
    rain = np.where(A > 0.5, AMOUNTS, 0.0)
    with pytest.warns(
        UserWarning, match=r"column c is 0 in \d+ of 60 rows.*\(.spiked., 0\).*missing \(NaN\)"
    ):
        fitted(of_rows({"c": rain}))


def test_draws_of_one_seed_are_the_same_and_a_list_holds_a_kind_for_each_column() -> None:
    density = fitted(of_rows({"c": AMOUNTS}), columns=["continuous", "positive"])
    assert [c.kind for c in density.schema.columns] == ["continuous", "positive"]
    assert torch.equal(density.sample(3, seed=1), density.sample(3, seed=1))
    assert density.sample().shape == (1, 2)
    with pytest.raises(ValueError, match="must hold a kind for each of 2 columns, got 1"):
        fitted(of_rows({"c": AMOUNTS}), columns=["continuous"])


def test_draws_of_fewer_rows_than_columns_lie_in_their_spread() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(30, 3)) @ rng.normal(size=(3, 40)) + 0.5 * rng.normal(size=(30, 40))
    density = FlowDensity(seed=0, progress=False, max_steps=3).fit(rows)
    drawn = density.sample(4000, seed=0).double().numpy()
    assert np.abs((drawn - rows.mean(0)) / rows.std(0)).max() < 8
