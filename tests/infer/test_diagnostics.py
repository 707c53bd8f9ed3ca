"""Claims about k-hat, effective sample size and evidence."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import conjugate, conjugate_log_evidence, schools
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

from pyro_naf.infer import (
    AutoDSFNormal,
    Posterior,
    draws,
    importance_diagnostics,
    importance_resample,
)
from pyro_naf.infer.diagnostics import diagnose, pareto_khat, smooth
from pyro_naf.infer.joint import Joint
from pyro_naf.infer.proposals import GuideProposal

DATA = torch.tensor([0.3, 1.2, 0.8, -0.1])


@pytest.mark.parametrize("k", [0.2, 0.5, 0.8, 1.2])
def test_khat_of_pareto_weights_is_their_shape(k: float) -> None:
    uniform = torch.rand(40_000, dtype=torch.double)
    log_weights = -k * uniform.log()  # w = u^{-k}: a Pareto tail of shape k
    assert pareto_khat(log_weights) == pytest.approx(k, abs=0.12)


def test_khat_of_equal_weights_is_zero_and_of_bounded_weights_negative() -> None:
    assert pareto_khat(torch.zeros(1000).double()) == 0
    assert pareto_khat(torch.rand(4000).double().log()) < 0


def test_evidence_and_elbo_of_a_conjugate_model_are_the_exact_ones() -> None:
    def posterior(data: torch.Tensor) -> None:
        n = len(data)
        pyro.sample("x", dist.Normal(data.sum() / (n + 1), (n + 1) ** -0.5))

    result = importance_diagnostics(conjugate, posterior, DATA, num_particles=1500)
    exact = conjugate_log_evidence(DATA)
    assert result.elbo == pytest.approx(exact, abs=1e-5)
    assert result.log_evidence == pytest.approx(exact, abs=1e-5)
    assert result.elbo_se < 1e-5 and result.log_evidence_se < 1e-5
    assert result.ess == pytest.approx(1500) and result.num_particles == 1500


def test_a_wide_proposal_keeps_the_evidence_and_loses_effective_sample_size() -> None:
    def wide(data: torch.Tensor) -> None:
        pyro.sample("x", dist.Normal(0.0, 3.0))

    result = importance_diagnostics(conjugate, wide, DATA, num_particles=20_000)
    exact = conjugate_log_evidence(DATA)
    assert abs(result.log_evidence - exact) < 5 * result.log_evidence_se
    assert result.elbo < exact - 1
    assert 1000 < result.ess < 10_000


def test_a_proposal_with_light_tails_has_a_large_khat() -> None:
    def narrow(data: torch.Tensor) -> None:
        pyro.sample("x", dist.Normal(data.sum() / 5, 0.15))

    assert importance_diagnostics(conjugate, narrow, DATA).khat > 0.7


@pytest.mark.parametrize("num_particles", [50, 999, 1000, 1001, 2500])
def test_any_number_of_particles_gives_as_many_weights(num_particles: int) -> None:
    guide = AutoNormal(schools)
    guide()
    result = importance_diagnostics(schools, guide, num_particles=num_particles)
    assert result.log_weights.shape == (num_particles,)


def test_draws_enough_for_khat_are_weighted_however_little_time_there_is() -> None:
    guide = AutoNormal(schools)
    guide()
    proposal = GuideProposal(Joint(schools), guide, (), {})
    assert diagnose(proposal, 20_000, 0.0).num_particles == 64
    assert diagnose(proposal, 50, 0.0).num_particles == 50


def test_particles_are_weighted_in_chunks_that_fit_into_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []

    def spy(self: Joint, values: dict[str, torch.Tensor]) -> torch.Tensor:
        sizes.append(len(values["x"]))
        return torch.zeros(len(values["x"]))

    def guide(*_: Any) -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))

    monkeypatch.setattr(Joint, "log_prob", spy)
    result = importance_diagnostics(conjugate, guide, DATA, num_particles=10_000)
    assert result.num_particles == 10_000 == sum(sizes) and max(sizes) <= 1001
    sizes.clear()
    data = torch.zeros(300_000)  # 1.2 GB for the log-densities of a thousand draws
    importance_diagnostics(conjugate, guide, data, num_particles=200)
    assert sum(sizes) == 200 and max(sizes) <= 56


def test_ten_particles_are_too_few_for_khat() -> None:
    with pytest.raises(ValueError, match=r"num_particles must be at least 50 .* got 10"):
        importance_diagnostics(conjugate, conjugate, DATA, num_particles=10)


def test_draws_where_the_log_density_is_nan_have_no_weight_and_are_counted() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.where(x > 0, x, math.nan))

    def guide() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.warns(UserWarning, match=r"not finite for \d+ of 200 draws"):
        result = importance_diagnostics(model, guide, num_particles=200)
    assert 60 < int((result.log_weights == -math.inf).sum()) < 140
    assert result.elbo == -math.inf and result.log_evidence == pytest.approx(-0.2, abs=1)
    share = f"{100 * result.refused:.2g}%"
    assert f"-inf: {share} of the draws outside of the support" in str(result)
    assert "nan" not in str(result).split("log evidence")[0]


def test_draws_have_the_shapes_of_the_sites() -> None:
    for guide in (AutoNormal(schools), AutoDSFNormal(schools)):
        values = draws(guide, num_samples=30)
        shapes = {name: tuple(v.shape) for name, v in values.items()}
        assert shapes == {"mu": (30,), "tau": (30,), "theta": (30, 8)}


def test_what_is_no_guide_and_no_number_of_draws_is_named() -> None:
    calls: list[Any] = [
        lambda: draws(None, DATA),  # type: ignore[arg-type]
        lambda: importance_diagnostics(conjugate, None, DATA),  # type: ignore[arg-type]
        lambda: Posterior(conjugate, None, DATA),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"guide must be a guide of Pyro.*, got None"):
            call()
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        draws(AutoNormal(conjugate), DATA, num_samples=0)


def test_draws_follow_the_guide() -> None:
    guide = AutoDSFNormal(conjugate, hidden_dims=[8], hidden_units=4, num_transforms=1)
    svi = SVI(conjugate, guide, Adam({"lr": 3e-2}), Trace_ELBO(32, vectorize_particles=True))
    for _ in range(150):
        svi.step(DATA)
    x = draws(guide, DATA, num_samples=20_000)["x"]
    assert abs(float(x.median()) - float(guide.median(DATA)["x"])) < 0.02
    assert abs(float(x.std()) - 5**-0.5) < 0.05


def test_a_subsampled_plate_is_weighted_with_all_its_rows() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 20, subsample_size=3) as index:
            pyro.sample("y", dist.Normal(x, 1.0), obs=torch.arange(20.0)[index])

    rows = torch.arange(20.0, dtype=torch.double)
    covariance = torch.eye(20, dtype=torch.double) + 1
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(rows), covariance)

    def exact() -> None:
        pyro.sample("x", dist.Normal(rows.sum().float() / 21, 21**-0.5))

    result = importance_diagnostics(model, exact)
    assert result.log_evidence == pytest.approx(float(evidence.log_prob(rows)), abs=1e-3)


def test_a_log_density_that_is_nowhere_finite_is_an_error() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("wall", torch.full_like(x, -math.inf))

    def guide() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"not finite at any of 200 draws.*\['wall'\]"):
        importance_diagnostics(model, guide, num_particles=200)


def test_generators_are_left_as_they_are_but_for_the_draws() -> None:
    guide = AutoNormal(conjugate)
    guide(DATA)
    torch.manual_seed(1)
    first = importance_diagnostics(conjugate, guide, DATA, num_particles=50).log_weights
    second = importance_diagnostics(conjugate, guide, DATA, num_particles=50).log_weights
    assert not torch.equal(first, second)


def narrow(data: torch.Tensor) -> None:
    """A guide for the conjugate model: off by half a posterior width, and wider."""
    n = len(data)
    sd = (1 / (n + 1)) ** 0.5
    pyro.sample("x", dist.Normal(data.sum() / (n + 1) + 0.5 * sd, 1.3 * sd))


@pytest.mark.parametrize("replacement", [True, False])
def test_resampled_draws_are_those_of_the_posterior(replacement: bool) -> None:
    torch.set_default_dtype(torch.double)  # two draws in float32 can agree by chance
    data = torch.randn(10)
    x = importance_resample(
        conjugate, narrow, data, num_samples=4000, num_particles=40_000, replacement=replacement
    )["x"]
    mean, sd = float(data.sum() / 11), (1 / 11) ** 0.5
    assert float(x.mean()) == pytest.approx(mean, abs=0.1 * sd)
    assert float(x.std()) == pytest.approx(sd, rel=0.05)
    assert replacement or len(x.unique()) == 4000


@pytest.mark.filterwarnings("ignore:k-hat is")
def test_resampling_keeps_the_shapes_of_sites() -> None:
    found = importance_resample(schools, AutoNormal(schools, init_scale=0.5), num_samples=7)
    assert {k: tuple(v.shape) for k, v in found.items()} == {
        "mu": (7,),
        "tau": (7,),
        "theta": (7, 8),
    }


def test_smoothed_weights_are_normalised_bounded_and_change_only_the_tail() -> None:
    raw = dist.StudentT(2.0).sample((4000,)).double()
    smoothed = smooth(raw)
    assert float(smoothed.logsumexp(0)) == pytest.approx(0, abs=1e-9)
    shift = (smoothed - raw).median()
    assert int(((smoothed - raw - shift).abs() > 1e-9).sum()) <= math.ceil(3 * 4000**0.5)
    assert bool((smoothed.max() - shift <= raw.max() + 1e-9).all())
    assert torch.equal(smoothed.argsort()[-5:], raw.argsort()[-5:])


def test_smoothing_is_exact_for_a_pareto_tail() -> None:
    # Weights that are Pareto already keep their sum to sampling error.
    raw = -0.3 * torch.rand(20_000, dtype=torch.double).log()
    assert pareto_khat(raw) == pytest.approx(0.3, abs=0.1)
    tail = raw.argsort()[-400:]
    ratio = (smooth(raw)[tail].logsumexp(0) - (raw - raw.logsumexp(0))[tail].logsumexp(0)).exp()
    assert float(ratio) == pytest.approx(1, abs=0.1)


def test_a_guide_for_another_model_is_told_by_its_sites() -> None:
    with pytest.raises(ValueError, match=r"draws \['x'\], which are no continuous latents .*'mu'"):
        importance_diagnostics(schools, lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))


def local(data: torch.Tensor) -> None:
    with pyro.plate("data", len(data)):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=data)


def test_a_guide_for_data_of_another_size_or_for_a_part_of_the_latents_is_refused() -> None:
    guide = AutoDSFNormal(local)
    guide(torch.zeros(5))
    with pytest.raises(
        ValueError, match=r"'x' with shape \(5,\), the model with \(7,\).*context_fn"
    ):
        importance_diagnostics(local, guide, torch.zeros(7))
    part = AutoNormal(poutine.block(schools, hide=["theta"]))
    with pytest.raises(ValueError, match=r"does not draw \['theta'\].*AutoGuideList"):
        importance_diagnostics(schools, part)


def test_a_model_without_latents_is_refused() -> None:
    with pytest.raises(
        ValueError, match="no continuous latent variables: every sample statement is obs"
    ):
        importance_diagnostics(lambda: None, lambda: None)


def test_too_many_samples_without_replacement_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at most half of num_particles .* got 60 of 100"):
        importance_resample(schools, schools, num_samples=60, num_particles=100, replacement=False)


def test_resampling_from_a_bad_guide_warns() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))

    def guide() -> None:
        pyro.sample("x", dist.Normal(0.0, 0.3))

    with pytest.warns(UserWarning, match="k-hat is .* above 0.7"):
        importance_resample(model, guide)


def in_the_tail() -> None:
    """A posterior that one draw of the prior in 50 can be from."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("f", torch.where(x > 2.05, 0.0, -math.inf))


def prior() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))


def test_resampling_a_handful_of_draws_warns_although_their_weights_are_even() -> None:
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"the weights are worth \d\d\.\d of 1000 draws.*refine"):
        x = importance_resample(in_the_tail, prior, num_particles=1000)["x"]
    assert bool((x > 2.05).all()) and len(x.unique()) < 50


def test_draws_that_are_impossible_are_not_taken_to_make_up_the_number() -> None:
    with (
        pytest.warns(UserWarning, match="are worth"),
        pytest.raises(ValueError, match=r"a positive weight \(\d\d of 1000\).* got 400; refine"),
    ):
        importance_resample(
            in_the_tail, prior, num_samples=400, num_particles=1000, replacement=False
        )


@pytest.mark.parametrize("rows, num_particles", [(5000, 1000), (2000, 50), (300, 20_000)])
def test_resampling_under_the_prior_of_many_rows_warns_of_khat(
    rows: int, num_particles: int
) -> None:
    x = torch.randn(rows, 3)
    y = x @ torch.tensor([1.0, 2.0, 3.0]) + 0.1 * torch.randn(rows)

    def regression() -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", rows):
            pyro.sample("y", dist.Normal((w @ x.T).reshape(*w.shape[:-2], rows), 0.1), obs=y)

    def prior() -> None:
        pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    assert importance_diagnostics(regression, prior, num_particles=num_particles).khat > 1
    with pytest.warns(UserWarning, match=r"k-hat is .*, above 0\.[4-7]"):
        importance_resample(regression, prior, num_particles=num_particles)


def test_a_guide_of_ones_own_that_is_not_vectorised_is_drawn_and_weighted() -> None:
    x, y = torch.randn(20, 2), torch.randn(20)

    def model() -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", 20):
            pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)

    precision = x.T @ x + torch.eye(2)
    law = torch.distributions.MultivariateNormal(
        torch.linalg.solve(precision, x.T @ y), precision_matrix=precision
    )

    def guide() -> dict[str, torch.Tensor]:
        first = pyro.sample("first", dist.Normal(law.mean[0], law.stddev[0]), infer=AUXILIARY)
        slope = law.covariance_matrix[1, 0] / law.variance[0]
        rest = (law.variance[1] - slope**2 * law.variance[0]).sqrt()
        loc = law.mean[1] + slope * (first - law.mean[0])
        second = pyro.sample("second", dist.Normal(loc, rest), infer=AUXILIARY)
        return {"b": pyro.sample("b", dist.Delta(torch.stack([first, second]), event_dim=1))}

    evidence = torch.distributions.MultivariateNormal(torch.zeros(20), x @ x.T + torch.eye(20))
    result = importance_diagnostics(model, guide, num_particles=500)
    assert result.elbo == pytest.approx(float(evidence.log_prob(y)), abs=1e-3)
    assert result.elbo_se < 1e-4
    values = draws(guide, num_samples=2000)["b"]
    torch.testing.assert_close(values.T.cov(), law.covariance_matrix, rtol=0.2, atol=0.01)


AUXILIARY = {"is_auxiliary": True}
