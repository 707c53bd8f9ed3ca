"""Results flow on: each method against an independent computation."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from models import (
    LINEAR,
    LINEAR_NOISE,
    SCHOOLS_SIGMA,
    SCHOOLS_Y,
    banana,
    linear,
    linear_posterior,
    schools,
)
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal, init_to_value
from torch import Tensor

from pyro_naf.eight_schools import REFERENCE
from pyro_naf.files.stored import ModelFileError
from pyro_naf.infer import (
    AutoDSFNormal,
    Comparison,
    Correction,
    ForwardKL,
    Posterior,
    Refinement,
    RefineSettings,
    compare,
    mcmc_correct,
    psis_loo,
    refine,
)
from pyro_naf.infer.training import Training

QUIET: dict[str, Any] = {"progress": False}
SHORT: dict[str, Any] = {"num_draws": 2000, "num_starts": 2, "compile": False, **QUIET}
DATA = torch.tensor([0.3, 1.1, -0.4, 0.8, 2.0])


def conjugate(y: Tensor) -> None:
    """x ~ N(0, 1), y_i ~ N(x, 1): posterior, predictions and LOO in closed form."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.deterministic("square", x**2)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def radon(county: Tensor, floor: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau, sigma = (pyro.sample(name, dist.HalfNormal(1.0)) for name in ("tau", "sigma"))
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("counties", 85):
        alpha = pyro.sample("alpha", dist.Normal(mu, tau))
    with pyro.plate("homes", len(y)):
        pyro.sample("y", dist.Normal(alpha[county] + slope * floor, sigma), obs=y)


@pytest.fixture(scope="module")
def normal() -> Refinement:
    return refine(conjugate, DATA, seed=0, **SHORT)


@pytest.fixture
def eight(eight_schools: Refinement) -> Refinement:
    return eight_schools


@pytest.fixture(scope="module")
def counties(data_dir: Path) -> Refinement:
    data = json.loads((data_dir / "large" / "data" / "radon_hier.json").read_text())
    county, floor, y = (torch.tensor(data[name]) for name in ("county", "floor", "log_radon"))
    floor, county = floor.to(y), county.long()
    result = refine(radon, county, floor, y, steps=20, seconds=12.0, seed=0, **SHORT)
    pyro.clear_param_store()
    return result


@pytest.fixture(scope="module")
def amortised() -> Posterior:
    guide = AutoDSFNormal(linear, context_fn=lambda y: y, context_dim=3, num_transforms=1)
    svi = pyro.infer.SVI(linear, guide, pyro.optim.Adam({"lr": 1e-2}), ForwardKL(128))
    for _ in range(150):
        svi.step(torch.zeros(3))
    y = torch.tensor([0.5, 1.0, 0.2])
    result = Posterior(linear, copy.deepcopy(guide), y)
    pyro.clear_param_store()
    return result


def test_draws_are_the_guides_and_hold_deterministic_sites(normal: Refinement) -> None:
    found = normal.draws(2000, seed=1)
    assert torch.allclose(found["square"], found["x"] ** 2)
    # The posterior is N(sum / 6, 1 / 6), and a Gaussian guide is exact.
    assert float(found["x"].mean()) == pytest.approx(
        float(DATA.sum()) / 6, abs=4 * (1 / 6 / 2000) ** 0.5
    )
    assert torch.equal(found["x"], normal.draws(2000, seed=1)["x"])
    assert not torch.equal(found["x"], normal.draws(2000)["x"])


def test_resampled_draws_are_the_posterior_of_a_guide_that_is_not() -> None:
    start = {"x": torch.tensor(0.0)}
    guide = AutoNormal(conjugate, init_loc_fn=init_to_value(values=start), init_scale=1.0)
    found = Posterior(conjugate, guide, DATA).resampled(20_000, seed=0)["x"]
    assert float(found.mean()) == pytest.approx(float(DATA.sum()) / 6, abs=0.02)
    assert float(found.std()) == pytest.approx((1 / 6) ** 0.5, rel=0.03)


def test_an_amortised_guide_has_the_results_of_its_data(amortised: Posterior) -> None:
    exact = linear_posterior(torch.tensor([0.5, 1.0, 0.2]))
    summary = amortised.summary(8000)
    assert "weighted" in summary.notes[0] and "not weighted" not in summary.notes[0]
    error = np.abs(summary["mean"] - exact.mean.numpy()) / summary["mcse_mean"]
    assert (error < 4).all()
    assert summary["sd"] == pytest.approx(exact.stddev.numpy(), rel=0.05)
    # Predictions: LINEAR x plus noise.
    y = amortised.predictive(num_samples=4000, seed=0)["y"]
    covariance = LINEAR @ exact.covariance_matrix @ LINEAR.T + LINEAR_NOISE**2 * torch.eye(3)
    assert torch.allclose(y.T.cov(), covariance, atol=0.05)
    evidence = dist.MultivariateNormal(
        torch.zeros(3), LINEAR @ LINEAR.T + LINEAR_NOISE**2 * torch.eye(3)
    ).log_prob(torch.tensor([0.5, 1.0, 0.2]))
    assert amortised.diagnostics(4000).log_evidence == pytest.approx(float(evidence), abs=0.05)


def test_summary_equals_numpy_where_draws_are_not_weighted() -> None:
    guide = AutoDiagonalNormal(banana, init_scale=0.2)
    guide()
    posterior = Posterior(banana, guide)
    sample = posterior._sample(4000, 0)
    assert not sample.is_weightable  # the tails of x are far beyond a scale of 0.2
    summary, x = posterior.summary(4000), sample.flat["x"].double().numpy()
    row = summary.row("x")
    assert row["mean"] == pytest.approx(x.mean()) and row["sd"] == pytest.approx(x.std(ddof=1))
    assert row["50%"] == pytest.approx(np.median(x), abs=1e-3)
    assert row["mcse_mean"] == pytest.approx(x.std() / 4000**0.5, rel=1e-3)
    inside = (x >= row["hdi_3%"]) & (x <= row["hdi_97%"])
    assert inside.mean() == pytest.approx(0.94, abs=1e-3)


def test_errors_of_weighted_means_are_those_of_repetitions() -> None:
    guide = AutoNormal(conjugate, init_scale=0.8)
    posterior = Posterior(conjugate, guide, DATA)
    rows = [posterior.summary(500, seed=seed).row("x") for seed in range(60)]
    for statistic in ("mean", "sd"):
        spread = np.std([row[statistic] for row in rows])
        told = np.mean([row[f"mcse_{statistic}"] for row in rows])
        assert told == pytest.approx(spread, rel=0.35)  # of 60, which have an error of 9 %


def test_doubt_points_at_the_latent_that_the_guide_misses() -> None:
    def model() -> None:
        pyro.sample("fitted", dist.Normal(0.0, 1.0))
        pyro.sample("missed", dist.Normal(0.5, 1.0))

    values = {name: torch.tensor(0.0) for name in ("fitted", "missed")}
    guide = AutoNormal(model, init_loc_fn=init_to_value(values=values), init_scale=1.0)
    summary = Posterior(model, guide).summary(20_000)
    assert summary.row("missed")["doubt"] == pytest.approx(0.5, abs=0.05)
    assert summary.row("fitted")["doubt"] < 0.05


def test_eight_schools_have_the_medians_of_their_reference(eight: Refinement) -> None:
    summary = eight.summary()
    assert summary.names == list(REFERENCE)
    for name, known in REFERENCE.items():
        error = summary.row(name)["50%"] - known.quantiles[20]
        assert abs(error) < 0.2 * known.sd, name


def test_log_likelihood_is_that_of_each_observation(eight: Refinement) -> None:
    theta = eight._sample(200, 0).flat["theta"]
    expected = dist.Normal(theta, SCHOOLS_SIGMA).log_prob(SCHOOLS_Y)
    assert torch.allclose(eight.log_likelihood(200)["y"], expected, atol=1e-4)


def test_log_likelihood_knows_masks_events_and_local_discrete_latents() -> None:
    y, mask = torch.tensor([0.1, 9.0, -1.0]), torch.tensor([True, False, True])

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("event", dist.Normal(x, 2.0).expand([3]).to_event(1), obs=y)
        with pyro.plate("rows", 3), pyro.poutine.mask(mask=mask):
            pyro.sample("masked", dist.Normal(x, 1.0), obs=y)

    def mixture() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(x + 2 * k, 1.0), obs=y)

    posterior = Posterior(model, AutoNormal(model))
    x, found = posterior._sample(50, 0).flat["x"][:, None], posterior.log_likelihood(50)
    assert torch.allclose(found["event"], dist.Normal(x, 2.0).log_prob(y), atol=1e-5)
    expected = torch.where(mask, dist.Normal(x, 1.0).log_prob(y), 0.0)
    assert torch.allclose(found["masked"], expected, atol=1e-5)
    assert len(posterior.loo(50).pointwise) == 5

    posterior = Posterior(mixture, AutoNormal(pyro.poutine.block(mixture, hide=["k"])))
    x, found = posterior._sample(50, 0).flat["x"][:, None], posterior.log_likelihood(50)
    parts = [dist.Normal(x + 2 * k, 1.0).log_prob(y) + math.log(p) for k, p in ((0, 0.7), (1, 0.3))]
    assert torch.allclose(found["y"], torch.stack(parts).logsumexp(0), atol=1e-5)


def test_observations_that_discrete_latents_join_have_no_likelihood_of_their_own() -> None:
    runs = 0

    def model() -> None:
        nonlocal runs
        runs += 1
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.plate("rows", 40):
            pyro.sample("y", dist.Normal(x + 3 * k, 1.0), obs=torch.linspace(0.0, 3.0, 40))

    posterior = Posterior(model, AutoNormal(pyro.poutine.block(model, hide=["k"])))
    runs = 0
    with pytest.raises(ValueError, match=r"depend on one another through .* \['k'\]"):
        posterior.loo(100)
    assert runs < 20
    with pytest.warns(UserWarning, match="log_likelihood is left out: observations of .* depend"):
        exported = posterior.to_arviz(100)
    assert "posterior" in exported and "log_likelihood" not in exported


def test_log_likelihood_of_a_mixture_takes_few_runs_whatever_its_rows() -> None:
    y, seen = torch.randn(300), torch.arange(300) % 50 > 0
    runs = 0

    def model() -> None:
        nonlocal runs
        runs += 1
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        pyro.sample("other", dist.Normal(p, 1.0), obs=torch.tensor(1.0))
        with pyro.plate("parts", 2):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 150, dim=-2), pyro.plate("columns", 2, dim=-1):
            k = pyro.sample("k", dist.Bernoulli(p))
            with pyro.poutine.mask(mask=seen.reshape(150, 2)):
                pyro.sample("y", dist.Normal(mu[k.long()], 1.0), obs=y.reshape(150, 2))

    posterior = Posterior(model, AutoNormal(pyro.poutine.block(model, hide=["k"])))
    runs, found = 0, posterior.log_likelihood(60)
    assert runs < 20
    draws = posterior._sample(60, 0).flat
    parts = dist.Categorical(torch.stack([1 - draws["p"], draws["p"]], -1)[:, None])
    of_rows = dist.MixtureSameFamily(parts, dist.Normal(draws["mu"][:, None], 1.0)).log_prob(y)
    expected = torch.where(seen, of_rows, 0.0).reshape(60, 150, 2)
    torch.testing.assert_close(found["y"], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found["other"], dist.Normal(draws["p"], 1.0).log_prob(torch.ones(1)))


def test_log_likelihood_where_only_the_numbers_show_that_observations_are_apart() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("z", dist.Normal(x + 0 * k, 1.0), obs=torch.tensor(0.5))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Normal(x + 0 * k, 1.0), obs=torch.arange(3.0))

    posterior = Posterior(model, AutoNormal(pyro.poutine.block(model, hide=["k"])))
    x, found = posterior._sample(60, 0).flat["x"], posterior.log_likelihood(60)
    expected = dist.Normal(x[:, None], 1.0).log_prob(torch.arange(3.0))
    torch.testing.assert_close(found["y"], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["z"], dist.Normal(x, 1.0).log_prob(torch.tensor(0.5)))


def exact_loo(y: Tensor) -> float:
    """Of the conjugate model, by fitting it n times."""
    total = 0.0
    for i in range(len(y)):
        rest = torch.cat([y[:i], y[i + 1 :]])
        variance = 1 / (1 + len(rest))
        total += float(dist.Normal(variance * rest.sum(), (1 + variance) ** 0.5).log_prob(y[i]))
    return total


@pytest.mark.parametrize("scale", [0.41, 0.8])
def test_loo_is_that_of_exact_refits_even_where_the_guide_is_too_wide(scale: float) -> None:
    y = torch.randn(30) + 1
    start = {"x": y.sum() / 31 + 0.05}
    guide = AutoNormal(conjugate, init_loc_fn=init_to_value(values=start), init_scale=scale / 2)
    found = Posterior(conjugate, guide, y).loo(20_000)
    assert found.unreliable == []
    assert found.elpd == pytest.approx(exact_loo(y), abs=0.03)


def test_loo_says_whether_the_guide_or_an_observation_is_at_fault() -> None:
    y = torch.cat([torch.randn(9), torch.tensor([9.0])])
    x = y.sum() / 11 + torch.randn(4000, 3) / 11**0.5
    log_likelihood = {"y": dist.Normal(x[:, :1], 1.0).log_prob(y)}
    of_posterior = psis_loo(log_likelihood)
    assert of_posterior.unreliable == ["y[9]"] and of_posterior.spoiled == 0
    assert "(y[9]): fit the model again without them" in str(of_posterior)

    far = torch.distributions.Exponential(0.8).sample((4000,))  # weights of k-hat 1.25
    of_guide = psis_loo(log_likelihood, far)
    assert len(of_guide.unreliable) == 10 and of_guide.spoiled == 9
    assert "for 9 because the guide is too far from the posterior without them" in str(of_guide)
    assert "fit the model again" not in str(psis_loo({"y": log_likelihood["y"][:, :9]}, far))


def test_predictions_of_new_rows_have_their_mean_and_variance(normal: Refinement) -> None:
    found = normal.predictive(torch.zeros(3), num_samples=20_000, seed=0)
    assert found["y"].shape == (20_000, 3) and found["square"].shape == (20_000,)
    assert float(found["y"].mean()) == pytest.approx(float(DATA.sum()) / 6, abs=0.03)
    assert float(found["y"].var()) == pytest.approx(1 + 1 / 6, rel=0.03)
    assert float(found["y"].T.cov()[0, 1]) == pytest.approx(1 / 6, abs=0.03)


def test_predictions_for_other_groups_are_refused(eight: Refinement) -> None:
    def model(n: int) -> None:
        with pyro.plate("groups", n):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    posterior = Posterior(model, AutoNormal(model), 3)
    with pytest.raises(ValueError, match=r"latent 'x' has the shape .5.*, its draws have .3"):
        posterior.predictive(5)


FRESH = """
import sys, torch
sys.path.insert(0, {folder!r})
from models import schools
from pyro_naf.infer import Refinement
result = Refinement.load({path!r}, schools)
print(result.draws(100, seed=3)["theta"].double().sum().item(), result.verdict)
"""


def test_a_file_draws_the_same_in_a_fresh_process(eight: Refinement, tmp_path: Path) -> None:
    path = tmp_path / "eight.pt"
    eight.save(path)
    code = FRESH.format(folder=str(Path(__file__).parent), path=str(path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    total, _, verdict = done.stdout.strip().partition(" ")
    expected = float(eight.draws(100, seed=3)["theta"].double().sum())
    assert float(total) == pytest.approx(expected, rel=1e-6) and verdict == eight.verdict


def test_files_are_read_without_running_code_and_fit_their_model(
    normal: Refinement, tmp_path: Path
) -> None:
    path = tmp_path / "normal.pt"
    normal.save(path)
    again = Refinement.load(path, conjugate, DATA)
    assert str(again) == str(normal)
    assert torch.equal(again.after.log_weights, normal.after.log_weights)
    with pytest.raises(ValueError, match=r"model with the latents \{'x': \[\]\}"):
        Refinement.load(path, schools)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"normal.pt is not a refinement of pyro_naf"):
        Refinement.load(path, conjugate, DATA)


def test_a_correction_comes_back_from_its_file(normal: Refinement, tmp_path: Path) -> None:
    exact = mcmc_correct(
        conjugate, normal.guide, DATA, num_samples=500, warmup_steps=50, seed=0, **QUIET
    )
    assert torch.allclose(exact.draws["square"], exact.draws["x"] ** 2)
    summary = exact.summary()
    for title, known in (("rhat", exact.rhat), ("ess", exact.ess), ("ess_tail", exact.ess_tail)):
        assert summary[title] == pytest.approx([float(known[name]) for name in ("x", "square")])
    assert summary.row("x")["mean"] == pytest.approx(float(DATA.sum()) / 6, abs=0.1)
    exact.save(tmp_path / "exact.pt")
    alone = Correction.load(tmp_path / "exact.pt")
    assert str(alone) == str(exact)
    with pytest.raises(ValueError, match=r"does not know its model.*Correction.load\(path, model"):
        alone.loo()
    again = Correction.load(tmp_path / "exact.pt", conjugate, DATA)
    assert again.loo().elpd == pytest.approx(exact_loo(DATA), abs=0.1)


def test_results_are_copied_with_their_model_and_pickled_without(normal: Refinement) -> None:
    twin = copy.deepcopy(normal)
    assert torch.equal(twin.draws(10, seed=0)["x"], normal.draws(10, seed=0)["x"])
    again = pickle.loads(pickle.dumps(normal))
    assert str(again) == str(normal) and torch.equal(again.guide.loc, normal.guide.loc)
    with pytest.raises(ValueError, match="this Refinement does not know its model"):
        again.summary()


def test_refining_further_is_never_worse_and_leaves_the_first_result(eight: Refinement) -> None:
    before = eight.draws(100, seed=0)["theta"]
    further = eight.refine(steps=60, seed=1, **QUIET)
    assert further.losses[: eight.steps] == eight.losses and further.before is eight.before
    assert further.steps == eight.steps + 60
    noise = 2 * math.hypot(further.elbo_se, eight.elbo_se)
    assert further.elbo > eight.elbo - noise
    assert torch.equal(eight.draws(100, seed=0)["theta"], before)
    pyro.clear_param_store()


def test_ctrl_c_returns_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_naf.infer.refinement.DEFAULTS", RefineSettings(judging_draws=2000))
    step = Training._step

    def interrupted(self: Training, loss: Tensor) -> bool:
        if len(self.losses) == 40:
            raise KeyboardInterrupt
        return step(self, loss)

    monkeypatch.setattr(Training, "_step", interrupted)
    result = refine(banana, steps=10_000, seed=0, **SHORT)
    assert result.ended == "interrupted" and result.steps == 40
    assert result.elbo > result.before.elbo - 2 * math.hypot(result.elbo_se, result.before.elbo_se)


def test_radon_summaries_and_predictions_are_those_of_its_draws(counties: Refinement) -> None:
    summary = counties.summary(1000)
    assert len(summary.names) == 89 and "... and 49 rows more" in str(summary)
    drawn = counties._sample(1000, 0).flat["alpha"].double()
    if "not weighted" in summary.notes[0]:
        assert summary["mean"][4:] == pytest.approx(drawn.mean(0).numpy(), rel=1e-4)
    found = counties.log_likelihood(200)["y"]
    values = counties._sample(200, 0).flat
    county, floor, y = counties.joint.args  # type: ignore[union-attr]
    mean = values["alpha"][:, county] + values["slope"][:, None] * floor
    expected = dist.Normal(mean, values["sigma"][:, None]).log_prob(y)
    assert torch.allclose(found, expected, atol=1e-3)
    predicted = counties.predictive(num_samples=2000, seed=0)["y"]
    assert float((predicted.mean(0) - mean.mean(0)).abs().mean()) < 0.1


def test_data_frames_hold_the_draws(normal: Refinement) -> None:
    pytest.importorskip("pandas")
    frame = normal.to_dataframe(400)
    assert list(frame.columns) == ["x", "square"] and len(frame) == 400
    assert frame["x"].mean() == pytest.approx(float(DATA.sum()) / 6, abs=0.1)
    assert list(normal.summary(400).to_dataframe().index) == ["x", "square"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_arviz_takes_the_result_and_gives_it_back(eight: Refinement, tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    if not any(map(_is_there, ("arviz", "arviz_base"))):
        pytest.skip("needs ArviZ")
    data = eight.to_arviz(400, predictive=True)
    assert data["posterior"]["theta"].dims == ("chain", "draw", "schools")
    theta = torch.tensor(data["posterior"]["theta"].values).flatten(0, 1)
    likelihood = torch.tensor(data["log_likelihood"]["y"].values).flatten(0, 1)
    expected = dist.Normal(theta, SCHOOLS_SIGMA).log_prob(SCHOOLS_Y)
    assert torch.allclose(likelihood, expected, atol=1e-4)
    stats = data["sample_stats"]
    log_weight = stats["lp"].values - stats["log_q"].values
    assert log_weight == pytest.approx(stats["log_weight"].values, abs=1e-4)
    assert stats.attrs["khat"] == pytest.approx(eight._sample(400, 0).khat)
    assert data["posterior_predictive"]["y"].shape == (4, 100, 8)
    assert (data["observed_data"]["y"].values == SCHOOLS_Y.numpy()).all()


def _is_there(module: str) -> bool:
    return __import__("importlib.util").util.find_spec(module) is not None


def test_without_pandas_or_arviz_the_error_names_the_remedy(
    normal: Refinement, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pandas", "arviz", "arviz_base"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'pyro_naf\[data\]'"):
        normal.to_dataframe(100)
    with pytest.raises(ImportError, match=r"pip install 'pyro_naf\[arviz\]'"):
        normal.to_arviz(100)
    assert normal.summary(100)["mean"].shape == (2,)  # numpy arrays


def test_the_better_model_wins_the_comparison() -> None:
    y = torch.randn(40) + 2

    def fixed(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 0.1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    found = compare(
        {"wrong": refine(fixed, y, seed=0, **SHORT), "right": refine(conjugate, y, seed=0, **SHORT)}
    )
    assert isinstance(found, Comparison) and found.names == ("right", "wrong")
    assert found.verdict.startswith("right predicts best, by ")
    assert found.columns["elpd"][0] == pytest.approx(exact_loo(y), abs=0.1)
    evidence = dist.MultivariateNormal(torch.zeros(40), torch.eye(40) + 1).log_prob(y)
    assert found.columns["log_evidence"][0] == pytest.approx(float(evidence), abs=0.05)
    with pytest.raises(ValueError, match="same observations, but 'a' has 40 and 'b' has 3"):
        compare({"a": found.loo[0], "b": psis_loo({"y": torch.randn(100, 3)})})


def test_models_without_loo_are_compared_by_evidence() -> None:
    def model(scale: float) -> None:
        x = pyro.sample("x", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(1.0))

    found = compare({f"{s:g}": refine(model, s, seed=0, **SHORT) for s in (50.0, 1.0)})
    exact = [dist.Normal(0.0, (s**2 + 1) ** 0.5).log_prob(torch.tensor(1.0)) for s in (1.0, 50.0)]
    assert found.names == ("1", "50") and found.loo == ()
    torch.testing.assert_close(
        torch.tensor(found.columns["log_evidence"]), torch.stack(exact), rtol=0, atol=0.02
    )
    assert found.verdict.startswith(f"1 has the largest evidence, by {exact[0] - exact[1]:.1f}")
    assert "no LOO: " in str(found) and found.to_dataframe().shape == (2, 3)
    with pytest.raises(ValueError, match="observation"):  # a Loo alone has no evidence
        compare({"a": refine(model, 1.0, seed=0, **SHORT), "b": psis_loo({"y": torch.ones(9, 3)})})


def test_what_is_shown_is_a_short_table_and_its_html_is_escaped(eight: Refinement) -> None:
    for shown in (eight, eight.guide, eight.after, eight.summary(100), eight.loo(100)):
        assert len(repr(shown).splitlines()) <= 14 and repr(shown) == str(shown)
        assert shown._repr_html_().startswith("<div>")
    name = "<b>&x"
    guide = AutoDSFNormal(lambda: pyro.sample(name, dist.Normal(0.0, 1.0)))
    assert "no parameters yet" in repr(guide)
    guide()
    assert name in repr(guide) and "&lt;b&gt;&amp;x" in guide._repr_html_()


def test_pictures_show_the_entries(eight: Refinement) -> None:
    labels = [axes.get_xlabel() for axes in eight.plot(200).axes]
    assert labels == ["mu", "tau", *(f"theta[{i}]" for i in range(6))]
