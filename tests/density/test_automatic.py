"""The default density: never worse than a Gaussian or a mixture of them, whatever the table."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_naf.density import FlowDensity
from pyro_naf.density.architectures import build
from pyro_naf.density.automatic import CROSS_VALIDATED, candidates
from pyro_naf.density.cross_conformal import of_fold
from pyro_naf.density.gaussian import Whitening, shrunk_moments
from pyro_naf.density.gaussian_mixture import GaussianMixture
from pyro_naf.density.stacked import Stacked, stacking_weights

QUICK: dict[str, Any] = {"seed": 0, "progress": False}


@pytest.fixture(autouse=True)
def mixtures_of_one_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a short fit is the mixtures' expectation and maximisation."""
    monkeypatch.setattr("pyro_naf.density.gaussian_mixture.STARTS", 1)
    monkeypatch.setattr("pyro_naf.density.gaussian_mixture.MAX_STEPS", 50)


def gaussian_rows(n: int, dim: int = 4) -> tuple[Tensor, torch.distributions.MultivariateNormal]:
    """Correlated rows in awkward units, and the law that they are drawn from."""
    mixing = torch.eye(dim).double() + 0.7
    scale = torch.logspace(-3, 4, dim).double()
    factor = scale.unsqueeze(1) * mixing
    law = torch.distributions.MultivariateNormal(100 * scale, factor @ factor.T)
    return law.sample([n]), law


def held_out_gain(density: FlowDensity, train: Tensor, test: Tensor) -> float:
    """Mean log-likelihood of held-out rows over that of the training rows' Gaussian."""
    law = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov())
    return density.score(test) - float(law.log_prob(test).mean())


def test_on_gaussian_rows_the_gaussian_is_as_good_as_kept() -> None:
    torch.manual_seed(0)
    train, law = gaussian_rows(150)
    density = FlowDensity().fit(train, max_steps=20, **QUICK)
    assert held_out_gain(density, train, law.sample([4000])) > -0.03


def test_on_real_rows_it_gains_on_the_gaussian_and_says_so() -> None:
    from sklearn.datasets import load_diabetes

    rows = load_diabetes().data[:, [0, 2, 3, 4, 5, 6, 8, 9]]
    rows = torch.from_numpy(rows[np.random.RandomState(0).permutation(len(rows))])
    density = FlowDensity(max_steps=60, hidden_dims=[32], **QUICK).fit(rows[:350])
    assert held_out_gain(density, rows[:350], rows[350:]) > 1
    assert density.history is not None
    named = {row["name"]: row["mean"] for row in density.history.comparison}
    assert len(named) == 4 and named["auto"] > max(v for k, v in named.items() if k != "auto")
    assert all(row["2se"] > 0 for row in density.history.comparison)
    assert density.history.best["validation"] == named["auto"]


def test_few_rows_of_many_columns_have_a_finite_density_that_is_shrunk() -> None:
    torch.manual_seed(0)
    law = torch.distributions.Normal(torch.zeros(30), 1).expand([30])
    train, test = torch.randn(25, 30), law.sample([500])
    density = FlowDensity().fit(train, max_steps=5, **QUICK)
    assert density.score(test) > float(law.log_prob(test).sum(1).mean()) - 6


@pytest.mark.parametrize("rows", [2, 3, 19])
def test_a_handful_of_rows_gives_a_gaussian(rows: int) -> None:
    density = FlowDensity().fit(torch.randn(rows, 3), **QUICK)
    assert density.parts == [("gaussian", {})] and density.sample(4).isfinite().all()


def test_many_rows_are_split_once_and_validation_rows_are_used() -> None:
    torch.manual_seed(0)
    many = torch.randn(CROSS_VALIDATED + 200, 2)
    given = FlowDensity().fit(many[:300], validation=many[300:400], max_steps=3, **QUICK)
    split = FlowDensity(hidden_dims=[8]).fit(many, max_steps=3, **QUICK)
    for density in (given, split):
        names = [name for name, _ in density.parts]
        assert names[0] == "gaussian" and len(names) == len(set(names))
    with pytest.raises(ValueError, match=r"validation must lie in \[0, 1\)"):
        FlowDensity().fit(many[:300], validation=2, **QUICK)


def test_with_a_context_it_starts_at_the_linear_regression() -> None:
    torch.manual_seed(0)
    context = 50 + 10 * torch.randn(300, 2)
    x = context @ torch.tensor([[1.0], [-2.0]]) + torch.randn(300, 1)
    density = FlowDensity(context_dim=2).fit(x, context, max_steps=10, **QUICK)
    assert density.score(x, context) > -0.5 * math.log(2 * math.pi * math.e) - 0.1
    drawn = density.sample(400, torch.tensor([[50.0, 50.0], [60.0, 50.0]]))
    torch.testing.assert_close(drawn.mean(0)[:, 0], torch.tensor([-50.0, -40.0]), rtol=0, atol=0.4)


def test_the_time_limit_holds_for_all_that_is_tried() -> None:
    start = time.process_time()  # the machine may be busy with others
    FlowDensity().fit(torch.randn(400, 6).exp(), max_seconds=3, **QUICK)
    assert time.process_time() - start < 20  # without a limit it takes minutes


def test_what_was_found_before_an_interruption_is_kept() -> None:
    rows = torch.randn(39, 2).exp()
    seen: list[Any] = []

    def interrupt(entry: Any) -> None:
        seen.append(entry)
        if entry["density"] == "maf-dsf-2":
            raise KeyboardInterrupt

    density = FlowDensity()
    with pytest.raises(KeyboardInterrupt):
        density.fit(rows, max_steps=2, on_evaluation=interrupt, **QUICK)
    assert {name for name, _ in density.parts} >= {"gaussian"} and math.isfinite(
        density.score(rows)
    )
    assert density.history is not None and seen[0]["density"] == "maf-affine-2"


def test_a_flow_that_cannot_be_trained_is_left_out_with_a_warning() -> None:
    rows = torch.randn(39, 2)
    density = FlowDensity(lr=1e30, max_steps=60, **QUICK)
    with pytest.warns(UserWarning, match="maf-.* is left out: "):
        density.fit(rows)
    assert density.score(rows) > -0.5 * 2 * math.log(2 * math.pi * math.e) - 0.1


def test_the_same_seed_gives_the_same_density() -> None:
    rows = torch.randn(39, 2).exp()  # too few for mixtures of several, which take time
    one, two = (FlowDensity().fit(rows, max_steps=4, **QUICK) for _ in range(2))
    assert one.score(rows) == two.score(rows)


def test_a_density_comes_back_from_its_file(tmp_path: Any) -> None:
    rows = torch.randn(45, 3).exp()
    density = FlowDensity().fit(rows, max_steps=4, **QUICK)
    density.save(tmp_path / "model.pt")
    again = FlowDensity.load(tmp_path / "model.pt")
    assert torch.equal(again.log_prob(rows), density.log_prob(rows))
    assert again.parts == density.parts and again.history == density.history


@pytest.mark.parametrize("name", ["auto", "gaussian"])
def test_anomaly_scores_are_p_values(name: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    law = torch.distributions.LogNormal(torch.zeros(2), 0.5)
    density = FlowDensity(architecture=name, validation=0.4, max_steps=20, **QUICK)
    density.fit(law.sample([600]))
    density.save(tmp_path / "model.pt")
    density = FlowDensity.load(tmp_path / "model.pt")
    found = density.anomaly_score(law.sample([2000]))
    for level in (0.1, 0.5, 0.9):
        assert float((found <= level).mean()) == pytest.approx(level, abs=0.06)
    assert density.anomaly_score([[50.0, 1e-4]])[0] < 0.01
    density = FlowDensity(2, architecture="gaussian", **QUICK)
    with pytest.raises(ValueError, match="no rows were held out in the fit"):
        density.anomaly_score([[0.0, 0.0]])


def test_new_rows_are_compared_with_the_rows_that_each_fold_left_out(tmp_path: Any) -> None:
    torch.manual_seed(0)
    rows = torch.randn(80, 16).double()
    density = FlowDensity(validation=0.1, max_steps=4, **QUICK).fit(rows)
    density.save(tmp_path / "model.pt")
    density = FlowDensity.load(tmp_path / "model.pt")
    assert density.folds is not None and density.held_out is not None
    for k in range(5):
        own = density.folds.rows == k
        found = of_fold(density, density.folds.parts, k).log_prob(rows[own])
        torch.testing.assert_close(found.double(), density.held_out[own], rtol=1e-4, atol=1e-3)
    # By the definition, for one row.
    fresh, below = torch.randn(1, 16).double(), 1
    for k in range(5):
        value = of_fold(density, density.folds.parts, k).log_prob(fresh)
        below += int((density.held_out[density.folds.rows == k] <= value).sum())
    assert density.anomaly_score(fresh)[0] == pytest.approx(below / 81)


@pytest.mark.parametrize("name", ["auto", "gaussian"])
def test_held_out_rows_of_integers_are_scored_as_any_rows(name: str) -> None:
    rows = torch.poisson(torch.full((120, 3), 2.0), generator=torch.Generator().manual_seed(0))
    validation = rows[80:].long()
    density = FlowDensity(architecture=name, validation=validation, max_steps=2, **QUICK)
    density.fit(rows[:80].long())
    assert density.held_out is not None and density.history is not None
    found = density.score_samples(validation)
    np.testing.assert_allclose(density.held_out.numpy(), found, rtol=1e-4)
    if name == "auto":
        assert density.history.comparison[-1]["mean"] == pytest.approx(found.mean(), rel=1e-4)


def test_rows_of_classes_alone_have_p_values() -> None:
    rng = np.random.default_rng(0)
    table = {"a": rng.choice(["x", "y", "z"], 600, p=[0.6, 0.38, 0.02])}
    found = FlowDensity(**QUICK).fit(table).anomaly_score({"a": ["x", "y", "z"]})
    np.testing.assert_allclose(found, [1.0, 0.4, 0.02], atol=0.1)


def test_before_a_fit_it_says_that_it_is_not_fitted() -> None:
    for density in (FlowDensity(), FlowDensity(2)):
        for call in (density.score_samples, density.log_prob, density.score):
            with pytest.raises(ValueError, match="FlowDensity is not fitted yet: call fit"):
                call(torch.zeros(3, 2))
        with pytest.raises(ValueError, match="is not fitted yet"):
            density.sample(3)


# ------------------------------------------------------------------------------------- its parts


def test_weights_act_as_repetitions_of_rows() -> None:
    torch.manual_seed(0)
    rows, repeats = torch.randn(200, 3).exp(), torch.arange(200) % 3
    repeated = rows.repeat_interleave(repeats, 0)
    kept = {"validation": 0, **QUICK}
    by_weight = FlowDensity(3, architecture="gaussian").fit(rows, sample_weight=repeats, **kept)
    with pytest.warns(UserWarning, match="occur before"):
        by_copy = FlowDensity(3, architecture="gaussian").fit(repeated, **kept)
    torch.testing.assert_close(by_weight.log_prob(rows), by_copy.log_prob(rows), rtol=0, atol=0.05)
    zero = torch.cat([torch.ones(200), torch.zeros(50)])
    rows = torch.randn(200, 3)
    far = torch.cat([rows, 5 + torch.randn(50, 3)])
    for name in ("gaussian", "gmm-2", "maf-affine-1"):
        density = FlowDensity(3, architecture=name, max_steps=200, **kept)
        density.fit(far, sample_weight=zero)
        assert density.score(rows) > density.score(far[200:]) + 1


@pytest.mark.parametrize(
    "weight, message",
    [
        ([1.0], "sample_weight must have shape (30,), one weight for each row, got (1,)"),
        ([-1.0] * 30, "sample_weight must be finite and at least 0"),
        ([0.0] * 30, "must not be zero for all rows"),
    ],
)
def test_weights_that_are_none_are_refused(weight: list[float], message: str) -> None:
    import re

    with pytest.raises(ValueError, match=re.escape(message)):
        FlowDensity().fit(torch.randn(30, 2), sample_weight=weight, **QUICK)


def test_flows_start_at_the_datas_gaussian() -> None:
    x, law = gaussian_rows(2000)
    loc, scale = x.mean(0), x.std(0)
    for candidate in candidates(500, 4, 0, crossed=True)[-2:]:
        flow = build(candidate.architecture, 4, **candidate.overrides).double().eval()
        flow.start((x - loc) / scale)
        with torch.no_grad():
            found = flow.log_prob((x - loc) / scale).mean() - scale.log().sum()
        assert float(found) == pytest.approx(float(law.log_prob(x).mean()), abs=0.25)


def test_whitening_is_inverted_and_its_determinant_is_the_jacobians() -> None:
    x = torch.randn(300, 3).double() @ torch.randn(3, 3).double()
    whitening = Whitening(3).double()
    whitening.start(x)
    torch.testing.assert_close(whitening.inv(whitening(x)), x)
    jacobian = torch.autograd.functional.jacobian(whitening._call, x[0])
    expected = torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(whitening.log_abs_det_jacobian(x[0], x[0]), expected)


def test_shrinkage_goes_with_the_number_of_rows() -> None:
    torch.manual_seed(0)
    law = torch.distributions.MultivariateNormal(torch.zeros(10), torch.eye(10) + 0.5)
    errors = []
    for n in (15, 100_000):
        x = law.sample([n]).double()
        _, found = shrunk_moments(x)
        errors.append((found - x.T.cov()).abs().max())
    assert errors[0] > 0.1 and errors[1] < 1e-4


@pytest.mark.parametrize("rows, columns", [(30, 40), (50, 40), (60, 20)])
def test_a_shrunk_gaussian_is_as_good_as_that_of_ledoit_and_wolf(rows: int, columns: int) -> None:
    from sklearn.covariance import LedoitWolf

    torch.manual_seed(0)
    gains = []
    for _ in range(10):
        root = torch.randn(columns, 2 * columns).double()
        root = torch.linalg.cholesky(root @ root.T / (2 * columns))
        x, new = (torch.randn(n, columns).double() @ root.T for n in (rows, 1000))
        x, new = ((t - x.mean(0)) / x.std(0) for t in (x, new))
        peer = LedoitWolf().fit(x.numpy())
        laws = shrunk_moments(x), (torch.tensor(peer.location_), torch.tensor(peer.covariance_))
        ours, theirs = (
            torch.distributions.MultivariateNormal(mean, covariance).log_prob(new).mean()
            for mean, covariance in laws
        )
        gains.append(float(ours - theirs))
    assert np.mean(gains) > -0.05  # with five folds and few shares -1 to -1.7 for 40 columns


def test_draws_of_a_stack_have_its_density_with_and_without_a_context() -> None:
    torch.manual_seed(0)
    parts = [build("gaussian", 1), build("gaussian", 1)]
    for part, at in zip(parts, (-4.0, 4.0), strict=True):
        part.start(at + torch.randn(1000, 1))
    stacked = Stacked(1, parts, torch.tensor([0.25, 0.75]))
    x = stacked.rsample(4000)
    assert float((x > 0).double().mean()) == pytest.approx(0.75, abs=0.03)
    grid = torch.linspace(-12, 12, 4001).unsqueeze(1)
    assert float(stacked.log_prob(grid).exp().sum()) * 24 / 4000 == pytest.approx(1, abs=1e-4)
    law = stacked.distribution()
    assert torch.equal(law.log_prob(x), stacked.log_prob(x)) and law.rsample([5, 2]).shape == (
        5,
        2,
        1,
    )
    flow = Stacked(2, [build("made", 2, 3), build("gaussian", 2, 3)], torch.tensor([0.5, 0.5]))
    context = torch.randn(4, 3)
    assert flow.rsample(6, context).shape == (6, 4, 2) and flow.rsample(0).shape == (0, 2)
    assert flow.distribution(context).rsample([6]).shape == (6, 4, 2)


def test_stacking_weights_maximise_the_likelihood() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(700) - 3, torch.randn(300) + 3]).double()
    log_probs = torch.stack([-0.5 * (x + 3).square(), -0.5 * (x - 3).square()], 1)
    torch.testing.assert_close(
        stacking_weights(log_probs), torch.tensor([0.7, 0.3]).double(), rtol=0, atol=0.01
    )
    impossible = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]])
    assert stacking_weights(impossible)[0] > 0.7


@pytest.mark.parametrize("gaps", [False, True])
def test_a_mixture_ends_when_it_is_told_that_the_time_is_over(gaps: bool) -> None:
    torch.manual_seed(0)
    rows, asked = torch.randn(300, 3).double().exp(), list[int]()
    seen = torch.where(torch.rand(300, 3) < 0.2, torch.nan, rows) if gaps else rows

    def over() -> bool:
        asked.append(1)
        return len(asked) >= 3

    mixture = GaussianMixture(3, 5).double()
    mixture.start(seen, stop=over)
    assert 3 <= len(asked) <= 6
    assert bool(mixture.log_prob(rows).isfinite().all())


def test_mixtures_of_numbers_and_classes_are_tried_beside_flows(tmp_path: Path) -> None:
    """Two groups, of which a class tells a little: a Gaussian for each class misses them."""

    def rows_of(n: int, seed: int) -> tuple[dict[str, Any], np.ndarray]:
        rng = np.random.default_rng(seed)
        high = rng.random(n) < 0.5
        first = rng.random(n) < np.where(high, 0.8, 0.3)
        x = np.where(high, 4.0, -4.0) + rng.normal(size=n)
        terms = [
            0.5 * np.where(first, p, 1 - p) * np.exp(-0.5 * (x - m) ** 2) / (2 * np.pi) ** 0.5
            for m, p in ((4.0, 0.8), (-4.0, 0.3))
        ]
        return {"x": x, "group": np.where(first, "a", "b")}, np.log(sum(terms))

    density = FlowDensity(max_steps=1, **QUICK).fit(rows_of(300, 0)[0])
    new, truth = rows_of(4000, 1)
    scores = density.score_samples(new)
    assert abs(float((truth - scores).mean())) < 0.06
    drawn = density.sample(3000, seed=0)
    assert (drawn["x"][drawn["group"] == "a"] > 0).mean() == pytest.approx(8 / 11, abs=0.06)
    density.save(tmp_path / "model.pt")
    np.testing.assert_array_equal(
        FlowDensity.load(tmp_path / "model.pt").score_samples(new), scores
    )
