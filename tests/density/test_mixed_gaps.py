"""Claims about missing cells beside classes: a latent class model, exact in all its questions."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_naf import cli
from pyro_naf.density import FlowDensity

QUICK: dict[str, Any] = {"progress": False, "seed": 0}

#: The truth: three groups, each with a Gaussian of two columns, a name and a chance to be sold.
SHARES = np.array([0.5, 0.3, 0.2])
CENTRES = np.array([[0.0, 0.0], [2.0, 1.0], [-1.0, 3.0]])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 1.0]])
NAMES = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
SOLD = np.array([0.2, 0.5, 0.9])
VALUES = ("east", "north", "west")

Table = dict[str, Any]


def rows_of(n: int, seed: int, share: float = 0.3) -> Table:
    """Rows of the truth with cells missing completely at random, but one of each row."""
    rng = np.random.default_rng(seed)
    group = rng.choice(3, n, p=SHARES)
    x = CENTRES[group] + rng.multivariate_normal([0, 0], COVARIANCE, n)
    name = (rng.random((n, 1)) > NAMES[group].cumsum(1)).sum(1)
    sold = rng.random(n) < SOLD[group]
    gone = rng.random((n, 4)) < share
    gone[np.arange(n), rng.integers(4, size=n)] = False
    return {
        "x": np.where(gone[:, 0], np.nan, x[:, 0]),
        "name": np.array([None if g else VALUES[i] for g, i in zip(gone[:, 1], name, strict=True)]),
        "y": np.where(gone[:, 2], np.nan, x[:, 1]),
        "sold": np.array([None if g else bool(s) for g, s in zip(gone[:, 3], sold, strict=True)]),
    }


def truth(table: Table) -> np.ndarray:
    """The true log-density of the cells seen."""
    x = np.stack([table["x"], table["y"]], 1)
    total = np.tile(SHARES, (len(x), 1))
    for i, name in enumerate(table["name"]):
        total[i] *= 1 if name is None else NAMES[:, VALUES.index(name)]
    for i, sold in enumerate(table["sold"]):
        total[i] *= 1 if sold is None else np.where(sold, SOLD, 1 - SOLD)
    for i, row in enumerate(x):
        at = np.flatnonzero(~np.isnan(row))
        for k in range(3) if len(at) else ():
            law = stats.multivariate_normal(CENTRES[k, at], COVARIANCE[np.ix_(at, at)])
            total[i, k] *= law.pdf(row[at])
    return np.log(total.sum(1))


PLAIN = {"x": "continuous", "y": "continuous"}


@pytest.fixture(scope="module", params=["gmm-3", "copula-3", "auto"])
def fitted(request: Any) -> FlowDensity:
    """A density of 3000 rows, of which 30 % of the cells are missing."""
    density = FlowDensity(architecture=request.param, columns=PLAIN)
    return density.fit(rows_of(3000, 0), **QUICK)


def number(name: str | float, sold: bool | float, x: float = math.nan, y: float = math.nan) -> Any:
    place = VALUES.index(name) if isinstance(name, str) else name
    return torch.tensor([x, place, y, float(sold)], dtype=torch.double)


def test_the_log_likelihood_of_the_cells_seen_is_the_truths(fitted: FlowDensity) -> None:
    table = rows_of(1500, 1)
    assert abs(float((truth(table) - fitted.score_samples(table)).mean())) < 0.05


def test_a_missing_class_is_summed_out(fitted: FlowDensity) -> None:
    for x, y, name in ((0.3, -0.5, "north"), (math.nan, 2.0, "east"), (1.0, 2.0, math.nan)):
        whole = torch.stack([number(name, sold, x, y) for sold in (False, True)])
        total = float(fitted.log_prob(whole).exp().sum())
        assert total == pytest.approx(float(fitted.log_prob(number(name, math.nan, x, y)).exp()))
    every = torch.stack([number(*pair) for pair in itertools.product(VALUES, (False, True))])
    assert float(fitted.log_prob(every).exp().sum()) == pytest.approx(1.0, abs=1e-5)


def test_a_conditional_times_what_is_given_is_the_joint(fitted: FlowDensity) -> None:
    row = number("west", True, 0.4, 1.7)
    for given in ({"name": "west"}, {"x": 0.4, "sold": True}, {1: "west", 3: 1, "y": 1.7}):
        at = [fitted.columns.index(k) if isinstance(k, str) else k for k in given]  # type: ignore[union-attr]
        rest = [i for i in range(4) if i not in at]
        known = fitted.marginal(at).log_prob(row[at])
        found = fitted.condition(given).log_prob(row[rest])
        assert float(known + found) == pytest.approx(float(fitted.log_prob(row)), abs=1e-4)


def test_draws_and_marginals_have_the_shares_of_the_truth(fitted: FlowDensity) -> None:
    torch.manual_seed(0)
    drawn = fitted.sample(20_000, as_table=False).numpy()
    shares = SHARES @ NAMES
    counts = np.bincount(drawn[:, 1].astype(int), minlength=3) / len(drawn)
    np.testing.assert_allclose(counts, shares, atol=0.03)
    assert drawn[:, 3].mean() == pytest.approx(SHARES @ SOLD, abs=0.03)
    only = fitted.marginal(["sold", "x"])
    assert only.columns == ["sold", "x"]
    row = torch.tensor([[1.0, 0.3]]).double()
    assert float(only.log_prob(row)) == pytest.approx(
        float(fitted.log_prob(number(math.nan, 1.0, 0.3))), abs=1e-4
    )
    assert fitted.marginal("name").log_prob(torch.arange(3.0)[:, None]).exp().sum() == (
        pytest.approx(1.0, abs=1e-4)
    )


def test_gaps_are_filled_by_the_conditional_law(fitted: FlowDensity) -> None:
    row = number(math.nan, True, 2.0)
    drawn = fitted.impute(row[None], 4000, seed=0)[:, 0]
    assert (drawn[:, 0] == 2.0).all() and (drawn[:, 3] == 1.0).all()
    rest = fitted.condition({"x": 2.0, "sold": True})
    for place in range(3):
        expected = float(rest.marginal("name").log_prob(torch.tensor([[float(place)]])).exp())
        assert float((drawn[:, 1] == place).double().mean()) == pytest.approx(expected, abs=0.03)
    torch.manual_seed(1)
    moments = rest.sample(4000, as_table=False)[:, 1].double()
    assert float(drawn[:, 2].mean()) == pytest.approx(float(moments.mean()), abs=0.08)
    assert float(drawn[:, 2].std()) == pytest.approx(float(moments.std()), rel=0.08)


def test_a_density_comes_back_from_its_file(fitted: FlowDensity, tmp_path: Path) -> None:
    fitted.save(tmp_path / "m.pt")
    table = rows_of(50, 2)
    again = FlowDensity.load(tmp_path / "m.pt")
    np.testing.assert_array_equal(again.score_samples(table), fitted.score_samples(table))
    again.condition({"name": "east"}).save(tmp_path / "c.pt")
    assert FlowDensity.load(tmp_path / "c.pt").sample(3, as_table=False).shape == (3, 3)


def test_whole_tables_take_the_same_mixture() -> None:
    table = rows_of(2000, 3, share=0.0)
    density = FlowDensity(architecture="gmm-3", columns=PLAIN).fit(table, **QUICK)
    test = rows_of(1000, 4, share=0.0)
    assert float((truth(test) - density.score_samples(test)).mean()) < 0.05
    assert np.isfinite(density.anomaly_score(test)).all()


def test_classes_alone_may_have_gaps() -> None:
    table = {k: v for k, v in rows_of(800, 5).items() if k in ("name", "sold")}
    some = np.array([a is not None or b is not None for a, b in zip(*table.values(), strict=True)])
    table = {name: values[some] for name, values in table.items()}
    density = FlowDensity(max_steps=1).fit(table, **QUICK)
    nothing = np.full(len(table["name"]), np.nan)
    lost = truth({**table, "x": nothing, "y": nothing}) - density.score_samples(table)
    assert abs(float(lost.mean())) < 0.02
    rest = density.condition({"name": "west"})
    west = float((SHARES * NAMES[:, 2] * SOLD).sum() / (SHARES @ NAMES[:, 2]))
    assert float(rest.log_prob(torch.ones(1, 1)).exp()) == pytest.approx(west, abs=0.05)


def test_weights_of_rows_count() -> None:
    table = rows_of(400, 6)
    twice = {name: np.concatenate([v, v[:100]]) for name, v in table.items()}
    weight = np.where(np.arange(400) < 100, 2.0, 1.0)
    densities = []
    for x, w in ((table, weight), (twice, None)):
        density = FlowDensity(architecture="gmm-1", validation=0, columns=PLAIN)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "30 of 500 rows of x occur before")
            densities.append(density.fit(x, sample_weight=w, **QUICK))
    one, two = (density.score(table) for density in densities)
    assert one == pytest.approx(two, abs=5e-3)


def test_what_cannot_be_answered_is_refused_in_one_sentence() -> None:
    table = rows_of(200, 7)
    with pytest.raises(ValueError, match="architecture 'gaussian' cannot fit together: choose 'au"):
        FlowDensity(architecture="gaussian").fit(table, **QUICK)
    density = FlowDensity(architecture="gmm-2", columns=PLAIN).fit(table, **QUICK)
    for given, message in (
        ({"name": "south"}, "given['name'] must be one of east, north, west, got 'south'"),
        ({"name": 1}, "given['name'] must be one of east, north, west, got 1"),
        ({"sold": 2}, "given lies outside the bounds, or is none of the values, of column sold"),
        ({"sold": None}, "given['sold'] must be one finite number or date, got None"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            density.condition(given)
    with pytest.raises(ValueError, match="holds 'south' in row 1; the fit had east, north, west"):
        density.score({**table, "name": [None, "south"] + [None] * 198})


def test_a_flow_of_whole_rows_scores_no_gaps() -> None:
    table = rows_of(60, 8, share=0.0)
    density = FlowDensity(architecture="maf-affine-1", max_steps=2, columns=PLAIN)
    density.fit(table, **QUICK)
    assert density.log_prob(number(math.nan, True, 0.0, 0.0)).isnan()
    with pytest.raises(ValueError, match="no closed form for the other cells of a row"):
        density.score({**table, "name": [None, *table["name"][1:]]})
    shares = [float(np.exp(density.marginal(["sold"]).score({"sold": [sold]}))) for sold in (0, 1)]
    assert sum(shares) == pytest.approx(1, abs=0.05)


def test_a_file_with_gaps_in_text_is_fitted_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    table = rows_of(150, 9)
    lines = ["x,name,y,sold"]
    for row in zip(*table.values(), strict=True):
        lines.append(",".join("" if cell is None or cell != cell else str(cell) for cell in row))
    Path("t.csv").write_text("\n".join(lines) + "\n")
    fit = ["fit", "t.csv", "--no-progress", "--output", "out", "--no-picture"]
    assert cli.main([*fit, "--model", "gmm-2"]) == 0
    assert "missing cells in columns x, name, y, sold" in capsys.readouterr().err
    assert cli.main(["score", "out", "t.csv"]) == 0
    assert "150 rows" in capsys.readouterr().out
    assert cli.main(["sample", "out", "-n", "4", "--output", "-"]) == 0
    drawn = capsys.readouterr().out.splitlines()
    assert drawn[0] == lines[0] and drawn[1].split(",")[1] in VALUES
    assert cli.main([*fit, "--model", "maf-affine-1"]) == 2
    assert "--drop-missing leaves them out" in capsys.readouterr().err
