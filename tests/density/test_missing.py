"""Claims about rows with missing cells: likelihood, draws, marginals and conditionals."""

from __future__ import annotations

import math
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_naf import cli
from pyro_naf.density import FlowDensity
from pyro_naf.density.architectures import build
from pyro_naf.density.closed_form import CLOSED
from pyro_naf.density.expectation import maximised
from pyro_naf.density.incomplete import Gaussians, drawn, log_terms
from pyro_naf.density.normal_scores import NormalScores

QUICK: dict[str, Any] = {"progress": False, "seed": 0}

#: A correlation matrix of four columns.
CORRELATION = torch.tensor(
    [[1.0, 0.7, -0.3, 0.0], [0.7, 1.0, 0.2, 0.4], [-0.3, 0.2, 1.0, 0.5], [0.0, 0.4, 0.5, 1.0]]
).double()
LOWER = torch.linalg.cholesky(CORRELATION)

#: Marginal laws of a Gaussian copula: two skewed, one within bounds with peaks at both, one plain.
MARGINALS = (stats.lognorm(0.8), stats.beta(2, 5), stats.beta(0.8, 0.9), stats.norm(3, 2))


def normal_rows(n: int, seed: int) -> Tensor:
    z = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return z @ LOWER.T


def copula_rows(n: int, seed: int) -> Tensor:
    levels = stats.norm.cdf(normal_rows(n, seed).numpy())
    columns = [law.ppf(u) for law, u in zip(MARGINALS, levels.T, strict=True)]
    return torch.from_numpy(np.stack(columns, 1))


def with_gaps(x: Tensor, share: float = 0.3, seed: int = 9) -> Tensor:
    """Cells missing completely at random, but one of each row."""
    generator = torch.Generator().manual_seed(seed)
    gone = torch.rand(x.shape, generator=generator) < share
    kept = torch.randint(x.shape[1], (len(x), 1), generator=generator)
    return torch.where(gone.scatter(1, kept, False), math.nan, x)


def student_rows(n: int, seed: int) -> Tensor:
    chi2 = stats.chi2(3).rvs([n, 1], random_state=seed)
    return normal_rows(n, seed) / torch.from_numpy(chi2 / 3).sqrt()


def seen_log_prob(z: Tensor, law: Any) -> Tensor:
    """scipy's log-density of the cells that are not missing."""
    found = []
    for row in z:
        at = (~row.isnan()).nonzero().squeeze(1)
        own = law(np.zeros(len(at)), CORRELATION[at][:, at].numpy())
        found.append(float(own.logpdf(row[at].numpy())))
    return torch.tensor(found, dtype=torch.double)


def normal_log_prob(z: Tensor) -> Tensor:
    return seen_log_prob(z, stats.multivariate_normal)


def student_log_prob(z: Tensor) -> Tensor:
    return seen_log_prob(z, partial(stats.multivariate_t, df=3))


def copula_log_prob(x: Tensor) -> Tensor:
    cells = list(zip(MARGINALS, x.numpy().T, strict=True))
    z = np.stack([stats.norm.ppf(law.cdf(u)) for law, u in cells], 1)
    slopes = np.stack([law.logpdf(u) for law, u in cells], 1) - stats.norm.logpdf(z)
    return normal_log_prob(torch.from_numpy(z)) + torch.from_numpy(np.nansum(slopes, 1))


TRUTHS = {
    "gaussian": (normal_rows, normal_log_prob),
    "student-1": (student_rows, student_log_prob),
    "copula-1": (copula_rows, copula_log_prob),
}


@pytest.fixture(scope="module", params=TRUTHS)
def fitted(request: Any) -> tuple[FlowDensity, str]:
    """A density of 3000 rows, of which 30 % of the cells are missing."""
    rows = with_gaps(TRUTHS[request.param][0](3000, 0))
    return FlowDensity(architecture=request.param).fit(rows, **QUICK), request.param


# -------------------------------------------------------------------------------------- likelihood


def test_the_log_likelihood_of_the_cells_seen_is_the_truths(
    fitted: tuple[FlowDensity, str],
) -> None:
    density, name = fitted
    draw, log_prob = TRUTHS[name]
    rows = with_gaps(draw(2000, 1), seed=3)
    lost = log_prob(rows) - density.log_prob(rows)
    assert abs(float(lost.mean())) < 0.05
    assert density.score(rows) == pytest.approx(float(density.score_samples(rows).mean()))


def test_the_density_of_the_cells_seen_is_the_integral_over_the_others() -> None:
    torch.manual_seed(0)
    rows = copula_rows(600, 2)[:, [0, 3]]
    density = FlowDensity(architecture="copula-2", columns="continuous").fit(rows, **QUICK)
    grid = torch.linspace(-20, 30, 20_001, dtype=torch.double)
    pairs = torch.stack([torch.full_like(grid, 1.2), grid], 1)
    whole = density.log_prob(pairs).exp().sum() * (grid[1] - grid[0])
    (seen,) = density.log_prob(torch.tensor([[1.2, math.nan]]).double())
    assert float(seen.exp()) == pytest.approx(float(whole), rel=1e-4)


def test_by_default_mixtures_are_weighted_by_the_cells_of_rows_left_out() -> None:
    rows = with_gaps(normal_rows(450, 4), 0.5)
    density = FlowDensity(validation=rows[300:]).fit(rows[:300], **QUICK)
    test = with_gaps(normal_rows(500, 5))
    assert float((normal_log_prob(test) - density.log_prob(test)).mean()) < 0.1
    assert density.history is not None and density.held_out is not None
    assert next(row["name"] for row in density.history.comparison) == "gaussian"
    assert {name.split("-")[0] for name, _ in density.parts} <= {"gaussian", *CLOSED}
    assert np.isfinite(density.anomaly_score(test)).all()


@pytest.mark.parametrize("degrees", [None, torch.tensor([8.0, 8.0]).double()])
def test_expectation_and_maximisation_never_lower_the_likelihood(degrees: Tensor | None) -> None:
    x = with_gaps(normal_rows(300, 6), 0.4)
    weight = torch.ones(len(x), dtype=torch.double)
    start = Gaussians(
        torch.tensor([0.5, 0.5]).double().log(),
        x[:2].nan_to_num(),
        torch.eye(4).double().expand(2, 4, 4),
        degrees,
    )
    prior = (torch.zeros(4).double(), torch.eye(4).double(), 1e-6)
    before = float(log_terms(start, x).logsumexp(1).mean())
    after, value = maximised(x, weight, start, prior)
    assert value > before
    assert value == pytest.approx(float(log_terms(after, x).logsumexp(1).mean()), abs=1e-3)


def test_a_fit_without_gaps_is_the_same_by_either_way() -> None:
    x = normal_rows(500, 7)
    closed = build("gmm-1", 4).double()
    closed.start(x)  # type: ignore[operator]
    almost = torch.cat([x, torch.tensor([[0.0, math.nan, math.nan, math.nan]]).double()])
    open_ = build("gmm-1", 4).double()
    open_.start(almost)  # type: ignore[operator]
    assert torch.allclose(closed.log_prob(x), open_.log_prob(x), atol=0.05)


def test_weights_of_rows_count_as_repeated_rows_do() -> None:
    x = with_gaps(normal_rows(200, 8))
    once, twice = build("gmm-1", 4).double(), build("gmm-1", 4).double()
    weight = torch.ones(200, dtype=torch.double)
    weight[:50] = 2
    once.start(x, weight=weight)
    twice.start(torch.cat([x, x[:50]]))
    assert torch.allclose(once.log_prob(x), twice.log_prob(x), atol=0.02)


def test_normal_scores_are_inverted_and_their_slope_is_the_derivative() -> None:
    x = torch.cat([copula_rows(500, 10)[:, :1] - 30, copula_rows(500, 11)[:, :1] * 5])
    scores = NormalScores(1, 6).double()
    scores.start(x)
    inputs = torch.cat([x, torch.tensor([[-1e4], [1e4], [0.0]]).double()]).requires_grad_()
    z = scores(inputs)
    (slope,) = torch.autograd.grad(z.sum(), inputs)
    log_slope = scores.log_abs_det_jacobian(inputs, z)
    near = log_slope > -20
    assert torch.allclose(slope[near].squeeze(1).log(), log_slope[near], atol=1e-6)
    back = scores._inverse(z.detach())
    assert torch.allclose(back[near], inputs[near], rtol=1e-7, atol=1e-7)


# ----------------------------------------------------------------------------------------- answers


def test_intervals_of_imputed_cells_cover_what_was_there(fitted: tuple[FlowDensity, str]) -> None:
    density, name = fitted
    whole = TRUTHS[name][0](2500, 12)
    rows = with_gaps(whole, seed=13)
    found = density.impute(rows, 40, seed=0)
    gone = rows.isnan()
    assert found.shape == (40, 2500, 4) and torch.equal(found[7][~gone], rows[~gone])
    # The 2nd and 39th of 40 draws: a new one lies between them with probability 37 / 41.
    low, high = found.kthvalue(2, 0).values, found.kthvalue(39, 0).values
    covered = ((whole >= low) & (whole <= high))[gone].double().mean()
    assert 0.88 < float(covered) < 0.92
    again = [density.impute(rows[:9], 2, seed=0) for _ in range(2)]
    assert torch.equal(*again)


def test_draws_given_the_cells_seen_have_the_conditional_moments() -> None:
    law = Gaussians(torch.zeros(1).double(), torch.zeros(1, 4).double(), CORRELATION[None])
    row = torch.tensor([1.0, math.nan, -0.5, math.nan]).double()
    told = law.conditional(row)
    draws = drawn(law, row.repeat(20_000, 1))[:, [1, 3]]
    torch.testing.assert_close(draws.mean(0), told.means[0], atol=0.03, rtol=0)
    torch.testing.assert_close(draws.T.cov(), told.covariances[0], atol=0.03, rtol=0)


def test_marginal_times_conditional_is_the_joint_density(
    fitted: tuple[FlowDensity, str],
) -> None:
    density, name = fitted
    rows = TRUTHS[name][0](5, 14)
    seen = density.marginal([2, 0])
    gaps = rows.clone()
    gaps[:, [1, 3]] = math.nan
    assert torch.allclose(seen.log_prob(rows[:, [2, 0]]), density.log_prob(gaps), atol=1e-4)
    for row in rows:
        rest = density.condition({2: float(row[2]), 0: float(row[0])})
        joint = rest.log_prob(row[[1, 3]]) + seen.log_prob(row[[2, 0]])
        assert float(joint) == pytest.approx(float(density.log_prob(row)), abs=1e-3)
    assert seen.sample(3).shape == rest.sample(3).shape == (3, 2)


def test_a_conditional_is_the_closed_form_of_the_truth() -> None:
    density = FlowDensity(architecture="gaussian").fit(with_gaps(normal_rows(20_000, 15)), **QUICK)
    draws = density.condition({0: 1.0}).sample(20_000)
    torch.testing.assert_close(draws.mean(0), CORRELATION[1:, 0], atol=0.05, rtol=0)
    truth = CORRELATION[1:, 1:] - CORRELATION[1:, :1] @ CORRELATION[:1, 1:]
    torch.testing.assert_close(draws.T.cov(), truth, atol=0.05, rtol=0)


def test_integers_are_imputed_as_integers_and_conditioned_on() -> None:
    generator = np.random.default_rng(0)
    counts = generator.poisson(4, 600)
    frame = {"n": counts.astype(float), "y": counts + generator.normal(size=600)}
    frame["n"][::3] = np.nan
    density = FlowDensity(architecture="copula-2", columns={"n": "integer"}).fit(frame, **QUICK)
    found = density.impute({"n": [np.nan, np.nan], "y": [1.0, 9.0]}, 200, seed=0)
    assert (found[..., 0] == found[..., 0].round()).all() and (found[..., 0] >= 0).all()
    assert found[:, 0, 0].mean() + 4 < found[:, 1, 0].mean()
    given = density.condition({"n": 3})
    rows = torch.tensor([[3.0, 2.5]]).double()
    joint = given.log_prob(rows[:, 1:]) + density.marginal(["n"]).log_prob(rows[:, :1])
    assert torch.allclose(joint, density.log_prob(rows), atol=1e-3)


def test_saved_and_loaded_they_answer_alike(
    fitted: tuple[FlowDensity, str], tmp_path: Path
) -> None:
    density, name = fitted
    rows = with_gaps(TRUTHS[name][0](50, 16))
    for i, model in enumerate((density, density.marginal([1, 3]), density.condition({0: 1.0}))):
        model.save(tmp_path / f"{i}.pt")
        loaded = FlowDensity.load(tmp_path / f"{i}.pt")
        own = rows[:, : model.width].clamp(min=0.1, max=0.9)
        torch.testing.assert_close(loaded.log_prob(own), model.log_prob(own))
        assert torch.equal(loaded.impute(own, 3, seed=1), model.impute(own, 3, seed=1))


# ------------------------------------------------------------------------------- tables, refusals


def test_columns_of_a_table_may_hold_none_nan_and_nat() -> None:
    pandas = pytest.importorskip("pandas")
    z = normal_rows(120, 17).numpy()
    frame = pandas.DataFrame({"age": z[:, 0] * 10 + 50, "count": (z[:, 1] * 3).round() + 20})
    frame["day"] = pandas.Timestamp("2024-01-01") + pandas.to_timedelta(z[:, 2] * 1e3, unit="h")
    frame["count"] = frame["count"].astype("Int64")
    frame["text"] = [None if i % 5 == 0 else float(v) for i, v in enumerate(z[:, 3])]
    frame.loc[::4, "age"] = np.nan
    frame.loc[1::4, "count"] = pandas.NA
    frame.loc[2::4, "day"] = pandas.NaT
    density = FlowDensity(architecture="gaussian").fit(frame, **QUICK)
    assert [c.kind for c in density.schema.columns] == [
        "continuous",
        "integer",
        "date",
        "continuous",
    ]
    assert np.isfinite(density.score_samples(frame)).all()
    assert np.isfinite(density.impute(frame, 2, seed=0)).all()
    later = density.condition({"day": pandas.Timestamp("2024-02-01"), "age": 50})
    assert later.columns == ["count", "text"]


def test_one_missing_cell_is_enough_for_gaps_to_be_scored() -> None:
    rows = normal_rows(40, 22)
    rows[7, 2] = math.nan
    alone = with_gaps(normal_rows(60, 23)[:, :1])
    alone[::5] = math.nan
    for x, given in ((rows, 0.1), (rows, rows[5:]), (alone, 0.1)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "x has no value in rows")
            density = FlowDensity(validation=given).fit(x, max_steps=5, **QUICK)
        assert density.takes_gaps and density.log_prob(x).isfinite().all()


def test_rows_without_a_value_are_named_and_left_out() -> None:
    rows = with_gaps(normal_rows(50, 18))
    rows[[3, 8]] = math.nan
    with pytest.warns(UserWarning, match="x has no value in rows 3, 8, which are left out"):
        density = FlowDensity(architecture="gaussian").fit(rows, **QUICK)
    assert density.log_prob(rows)[[3, 8]].abs().max() < 1e-12  # nothing is certain to be seen


GAPS = with_gaps(normal_rows(60, 19)).numpy()


@pytest.mark.parametrize(
    "architecture, x, message",
    [
        (
            "maf-dsf-1",
            GAPS,
            "by architecture 'maf-dsf-1': leave these rows out (--drop-missing), or",
        ),
        ("auto", np.where(np.arange(4) == 2, np.nan, GAPS), "x has no value in column 2"),
        ("gaussian", np.where(GAPS > 1.5, np.inf, GAPS), "x holds 0 NaN and"),
        (
            "gaussian",
            {"a": GAPS[:, 0], "b": ["u", "v"] * 30},
            "x has missing cells in column a, and classes in column b, which architecture 'gauss",
        ),
        (
            "gaussian",
            {"a": GAPS[:, 0], "b": ["u", None] * 30},
            "x has missing cells in columns a, b, and classes in column b, which architecture 'ga",
        ),
        (
            "maf-dsf-1",
            {"b": [True, None] * 30},
            "x holds 30 NaN and 0 infinite values, in rows 1, 3, 5, 7, 9 and 25 more; missing cel",
        ),
    ],
)
def test_tables_that_cannot_be_fitted_are_refused_in_one_sentence(
    architecture: str, x: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        FlowDensity(architecture=architecture).fit(x, **QUICK)


def test_gaps_beside_a_context_are_refused() -> None:
    with pytest.raises(ValueError, match="missing cells cannot be fitted with a context"):
        FlowDensity(context_dim=1).fit(GAPS, np.ones(60), **QUICK)


def test_questions_with_a_context_name_the_remedy() -> None:
    density = FlowDensity(4, 1, architecture="maf-affine-1", hidden_dims=[8])
    for ask in (
        lambda: density.impute(GAPS),
        lambda: density.marginal([0]),
        lambda: density.condition({0: 1.0}),
    ):
        with pytest.raises(ValueError, match="needs a density without a context: fit the columns"):
            ask()


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "given must hold values of some but not all of the 4 columns, got 0"),
        (dict.fromkeys(range(4), 0.0), "some but not all of the 4 columns, got 4"),
        ({"age": 1.0}, "given names 'age', but the density has the columns 0 to 3"),
        ({0: math.nan}, "given['0'] must be one finite number or date, got nan"),
        ({0: [1, 2]}, "given['0'] must be one finite number or date, got [1, 2]"),
    ],
)
def test_what_cannot_be_given_is_refused(given: dict[Any, Any], message: str) -> None:
    density = FlowDensity(architecture="gaussian").fit(normal_rows(50, 20), **QUICK)
    with pytest.raises(ValueError, match=re.escape(message)):
        density.condition(given)


# ---------------------------------------------------------------------------------------- commands


def test_a_file_with_empty_cells_is_fitted_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = with_gaps(normal_rows(90, 21)[:, :3], 0.2).numpy()
    lines = [",".join("" if np.isnan(v) else f"{v:.6f}" for v in row) for row in rows]
    Path("t.csv").write_text("\n".join(["a,b,c", *lines]) + "\n")
    number = int(np.isnan(rows).sum())
    command = ["fit", "t.csv", "--model", "copula-1", "--no-progress", "--output", "out"]
    command += ["--force", "--no-picture"]
    assert cli.main(command) == 0
    assert f"note: t.csv has {number} missing cells in columns a, b, c" in capsys.readouterr().err
    assert cli.main(["score", "out", "t.csv"]) == 0
    assert "90 rows" in capsys.readouterr().out
    np.save("more.npy", np.vstack([rows, np.full((2, 3), np.nan)]))
    assert cli.main(["score", "out", "more.npy"]) == 0
    told = capsys.readouterr()
    assert "90 rows" in told.out and "no value in rows 90, 91, which do not count" in told.err
    assert cli.main([*command, "--drop-missing"]) == 0
    assert "with missing values" in capsys.readouterr().err
    assert cli.main(["fit", "t.csv", "--model", "maf-dsf-1", "--output", "no"]) == 2
    assert "--drop-missing leaves them out" in capsys.readouterr().err
