"""Claims about mcmc_correct: exact draws from guides that are not."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import banana, conjugate, linear, linear_posterior, linear_sets, schools
from pyro import poutine
from pyro.infer import Predictive
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
)

from pyro_naf.eight_schools import REFERENCE
from pyro_naf.infer import (
    AutoDDSFNormal,
    AutoDSFNormal,
    Correction,
    Refinement,
    mcmc_correct,
    refine,
)
from pyro_naf.infer.base_space import BaseSpace
from pyro_naf.infer.chains import bulk_ess, rank_rhat, tail_ess

QUIET: dict[str, Any] = {"seed": 0, "progress": False}
SHORT: dict[str, Any] = {"num_chains": 2, "num_samples": 8, "warmup_steps": 4, **QUIET}
TRANSFORMS = [
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoIAFNormal,
    AutoDSFNormal,
    AutoDDSFNormal,
]


def never(*args: Any) -> None:
    """A model without latents."""


@pytest.fixture(scope="module")
def refined(eight_schools: Refinement) -> Any:
    return copy.deepcopy(eight_schools.guide)


@pytest.fixture(scope="module")
def corrected(refined: Any) -> Correction:
    return mcmc_correct(schools, refined, num_samples=2000, **QUIET)


def test_eight_schools_are_corrected_to_their_reference(corrected: Correction) -> None:
    assert corrected.max_rhat < 1.01 and corrected.verdict.startswith("trust")
    assert corrected.missed == 0
    samples = corrected.get_samples()
    columns = {"mu": samples["mu"], "tau": samples["tau"]}
    columns |= {f"theta[{i}]": samples["theta"][:, i] for i in range(8)}
    for name, column in columns.items():
        reference = REFERENCE[name]
        assert abs(float(column.mean()) - reference.mean) < 0.05 * reference.sd, name
        assert float(column.std()) == pytest.approx(reference.sd, rel=0.05), name


def narrow() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 0.1))


def test_neutra_needs_a_tenth_of_the_leapfrog_steps_of_nuts_on_a_narrow_model() -> None:
    # Behind a standard normal in unconstrained space NUTS sees the raw model.
    raw = AutoDiagonalNormal(narrow, init_scale=1.0)
    raw()
    with torch.no_grad():
        raw.loc.zero_()
    refined = refine(narrow, steps=20, num_starts=2, num_draws=1000, seed=0, progress=False).guide
    budget = {"num_chains": 1, "num_samples": 150, "warmup_steps": 60, **QUIET}
    cost = []
    for guide in (refined, raw):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of R-hat, for the raw model
            result = mcmc_correct(narrow, guide, method="neutra", **budget)
        cost.append(result.evaluations / result.min_ess)
    assert cost[0] < cost[1] / 10


def bent() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x**2, 1.0))


@pytest.mark.filterwarnings("ignore:do not trust")  # 200 draws are few
@pytest.mark.parametrize(
    "method, chains, samples", [("imh", 32, 375), ("neutra", 16, 75), ("hmc", 32, 150)]
)
def test_draws_are_exact_where_the_guide_is_not(method: str, chains: int, samples: int) -> None:
    guide = AutoMultivariateNormal(bent, init_scale=1.2)
    guide()
    warmup = 50 if method == "neutra" else 100
    budget = {"num_chains": chains, "num_samples": samples, "warmup_steps": warmup, **QUIET}
    result = mcmc_correct(bent, guide, method=method, **budget)
    draws = result.get_samples()
    x, noise = draws["x"], draws["y"] - draws["x"] ** 2
    for column, ess in ((x, result.ess["x"]), (noise, result.ess["y"])):
        error = 4 * float(ess) ** -0.5
        assert abs(float(column.mean())) < error
        assert float(column.std()) == pytest.approx(1, abs=error)
    assert result.method == method and 0 < result.accept_rate <= 1


def test_local_steps_reach_where_the_guide_has_no_draws() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0))

    guide = AutoDiagonalNormal(model, init_scale=0.2)
    guide()
    result = mcmc_correct(model, guide, num_chains=64, num_samples=250, warmup_steps=300, **QUIET)
    x = result.get_samples()["x"]
    # One draw of the guide in two million is beyond one deviation of the posterior.
    assert float((x.abs() > 1).float().mean()) == pytest.approx(0.317, abs=0.03)


def test_draws_of_a_guide_that_is_the_posterior_are_independent_and_all_taken() -> None:
    data = torch.tensor([1.0, 2.0, 0.5])
    guide = AutoDiagonalNormal(conjugate)
    guide(data)
    with torch.no_grad():
        guide.loc.copy_(data.sum() / 4)
    guide.scale = torch.tensor([0.5])
    result = mcmc_correct(conjugate, guide, data, **QUIET)
    assert result.accept_rate == pytest.approx(1, abs=1e-5)
    assert result.min_ess > 3000 and result.evaluations == 4000 * 9
    x = result.get_samples()["x"]
    assert float(x.mean()) == pytest.approx(float(data.sum() / 4), abs=0.03)
    assert float(x.std()) == pytest.approx(0.5, rel=0.05)


def test_many_chains_of_hamiltonian_monte_carlo_are_the_default_and_keep_a_time_limit() -> None:
    guide = AutoMultivariateNormal(banana, init_scale=0.7)
    guide()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of R-hat, with ten draws
        result = mcmc_correct(banana, guide, method="hmc", num_samples=10, warmup_steps=5, **QUIET)
        few = mcmc_correct(banana, guide, method="hmc", num_samples=10**6, max_seconds=0.5, **QUIET)
    assert result.draws["x"].shape == (64, 10) and result.evaluations > 64 * 15
    assert few.draws["x"].shape[0] == 64 and few.draws["x"].shape[1] < 10**5


def neck() -> None:
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(120), (v / 2).exp()).to_event(1))


@pytest.mark.filterwarnings("ignore:do not trust")
def test_a_time_limit_is_that_of_the_whole_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", time.process_time)  # others use this machine too
    guide = AutoDSFNormal(neck, init_scale=0.5)
    guide()
    began = time.process_time()
    result = mcmc_correct(neck, guide, method="hmc", max_seconds=2.0, **QUIET)
    assert time.process_time() - began < 4
    assert result.draws["x"].shape[2:] == (120,) and result.verdict.startswith("do not trust")


def test_two_draws_of_each_chain_are_not_trusted() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        guide = AutoDSFNormal(banana, init_scale=0.5)
        guide()
        result = mcmc_correct(banana, guide, method="hmc", num_samples=4, warmup_steps=5, **QUIET)
    # As a time limit leaves them: nothing is known of the chains then.
    unknown = {name: torch.full_like(value, math.nan) for name, value in result.rhat.items()}
    few = {name: value[:, :2] for name, value in result.draws.items()}
    short = dataclasses.replace(
        result, draws=few, rhat=unknown, ess=unknown, ess_tail=unknown, divergences=0, missed=0.0
    )
    assert "only 2 draws of each chain, too few for R-hat; try a larger num" in short.verdict


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_weights_are_those_of_model_and_guide(kind: Any) -> None:
    guide = kind(schools)
    guide()
    posterior = BaseSpace(schools, guide, (), {})
    eps = posterior.normal(3)
    found = posterior.log_weight(eps)
    draws = posterior.draws(posterior.unconstrained(eps)[None])
    for i in range(3):
        u = guide.get_transform()(eps[i])
        jacobian = torch.autograd.functional.jacobian(guide.get_transform(), eps[i])
        log_q = dist.Normal(0.0, 1.0).log_prob(eps[i]).sum() - torch.linalg.slogdet(jacobian)[1]
        point = {name: value[0, i] for name, value in draws.items()}
        trace = poutine.trace(poutine.condition(schools, point)).get_trace()
        log_p = trace.log_prob_sum() + point["tau"].log()  # tau = exp(u)
        assert torch.allclose(point["theta"], u[2:], atol=1e-5)
        assert float(found[i]) == pytest.approx(float(log_p - log_q), abs=2e-3)


def test_gradients_in_the_base_space_are_those_of_its_density() -> None:
    guide = AutoDSFNormal(schools)
    guide()
    space = BaseSpace(schools, guide, (), {})
    eps = space.normal(5)
    value, grad = space.value_and_grad(eps)
    u = space.transform(eps.requires_grad_())
    exact = space.joint(u) + space.transform.log_abs_det_jacobian(eps, u)
    torch.testing.assert_close(value, exact.detach(), rtol=1e-4, atol=1e-4)
    (slope,) = torch.autograd.grad(exact.sum(), eps)
    torch.testing.assert_close(grad, slope, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["imh", "neutra", "hmc"])
def test_draws_have_the_shapes_of_sites_and_are_those_of_the_seed(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYRO_NAF_COMPILE", "0")  # graphs would take seconds, for twelve steps
    guide = AutoMultivariateNormal(schools, init_scale=0.5)
    guide()
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of R-hat, with 8 draws
        first, second = (mcmc_correct(schools, guide, method=method, **SHORT) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    shapes = {name: tuple(value.shape) for name, value in first.draws.items()}
    assert shapes == {"mu": (2, 8), "tau": (2, 8), "theta": (2, 8, 8)}
    assert first.rhat["theta"].shape == first.ess["theta"].shape == (8,)
    assert bool((first.draws["tau"] > 0).all())
    assert all(torch.equal(first.draws[name], second.draws[name]) for name in shapes)
    assert first.get_samples()["theta"].shape == (16, 8)


def test_a_summary_names_every_site_and_samples_go_to_predictive(corrected: Correction) -> None:
    def predictive() -> None:
        schools()
        pyro.sample("next", dist.Normal(0.0, 1.0))

    text = str(corrected)
    assert all(word in text for word in ("mu ", "theta[7]", "R-hat", "ESS", corrected.verdict))
    samples = corrected.get_samples()
    predicted = Predictive(predictive, posterior_samples=samples, parallel=True)()
    assert predicted["next"].numel() == corrected.draws["mu"].numel() == len(samples["mu"])


def test_one_data_set_of_an_amortised_guide_is_corrected() -> None:
    y = torch.tensor([1.0, -1.0, 0.5])
    guide = AutoDSFNormal(linear, context_fn=lambda y: y, context_dim=3, init_scale=0.6)
    guide(y)
    budget = {"num_chains": 32, "num_samples": 125, "warmup_steps": 100}
    x = mcmc_correct(linear, guide, y, **budget, **QUIET).get_samples()["x"]
    exact = linear_posterior(y)
    assert torch.allclose(x.mean(0), exact.mean, atol=0.05)
    assert torch.allclose(torch.cov(x.T), exact.covariance_matrix, atol=0.04)


def test_data_sets_in_rows_are_corrected_together() -> None:
    y = torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])
    guide = AutoDSFNormal(linear_sets, context_fn=lambda y: y, context_dim=3, init_scale=0.5)
    guide(torch.zeros(5, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of k-hat: the guide was never trained
        result = mcmc_correct(linear_sets, guide, y, warmup_steps=200, **QUIET)
    assert result.max_rhat < 1.05 and result.draws["x"].shape == (4, 1000, 2, 2)
    assert torch.allclose(result.get_samples()["x"].mean(0), linear_posterior(y).mean, atol=0.1)


def test_entries_that_never_vary_do_not_count() -> None:
    def model() -> None:
        pyro.sample("L", dist.LKJCholesky(3, torch.tensor(2.0, dtype=torch.double)))

    guide = AutoDiagonalNormal(model, init_scale=0.5)
    guide()
    result = mcmc_correct(model, guide, warmup_steps=100, **QUIET)
    assert result.draws["L"].shape == (4, 1000, 3, 3)
    assert result.draws["L"].dtype == torch.double
    assert result.rhat["L"].isnan().sum() == 4  # the first row, and what is above the diagonal
    assert result.max_rhat < 1.01 and 1000 < result.min_ess < 20_000


def summary(draws: torch.Tensor, **kw: Any) -> Correction:
    """What mcmc_correct returns for draws of a site x."""
    numbers = {"rhat": rank_rhat, "ess": bulk_ess, "ess_tail": tail_ess}
    found = {name: {"x": function(draws)} for name, function in numbers.items()}
    count = {"accept_rate": 1.0, "khat": 0.0, "method": "imh", "evaluations": 1}
    return Correction(draws={"x": draws}, **found, **count, **kw)


def test_chains_whose_scales_differ_are_not_trusted() -> None:
    draws = torch.randn(4, 1000)
    assert summary(draws).verdict.startswith("trust")
    draws[0] *= 1.5  # the split R-hat of the draws themselves sees no difference of means
    found = summary(draws)
    assert found.verdict.startswith("do not trust: R-hat of 'x' is 1.0")
    assert 1.01 < found.max_rhat < 1.1


def test_few_effective_draws_in_the_tail_are_not_trusted() -> None:
    # In every thousand draws those of the upper tail come one after another.
    draws = torch.randn(2, 2, 1000)
    tail = (draws > 1.6).int().argsort(dim=-1, stable=True)
    found = summary(draws.gather(-1, tail).reshape(2, 2000))
    assert found.max_rhat < 1.01 and float(found.ess["x"]) > 200
    assert found.min_ess == float(found.ess_tail["x"]) < 100
    assert found.verdict.startswith("do not trust")


@pytest.mark.parametrize("chains, samples", [(1, 100), (4, 1000), (64, 500)])
def test_an_entry_that_stood_still_is_named_and_not_trusted(chains: int, samples: int) -> None:
    draws = torch.randn(chains, samples, 3)
    draws[-1, samples // 2 :, 1] = 0.3
    assert summary(draws).verdict.startswith("do not trust: x[1] stood still for half a chain")
    draws[..., 1] = 0.3
    assert summary(draws).still == ["x[1]"]
    fixed = {"x": torch.tensor([False, True, False])}
    assert summary(draws, fixed=fixed).still == []
    draws = torch.full((4, 100), 2.0)
    assert summary(draws).verdict.startswith("do not trust: x stood still")


def test_divergences_are_told_and_many_are_not_trusted() -> None:
    draws = torch.randn(4, 1000)
    few, many = (summary(draws, divergences=count).verdict for count in (3, 5))
    assert few.startswith("trust: the chains agree") and "though 3 of 4000 transitions" in few
    assert many.startswith("do not trust: 5 of 4000 transitions diverged, so that a narrow part")
    assert "non-centred model" in many


@pytest.mark.filterwarnings("ignore:do not trust")
def test_the_remedy_names_the_limit_that_ended_the_chains() -> None:
    guide = AutoMultivariateNormal(banana, init_scale=0.7)
    guide()
    budget: dict[str, Any] = {"method": "hmc", "num_chains": 4, "warmup_steps": 5, **QUIET}
    by_number = mcmc_correct(banana, guide, num_samples=8, max_seconds=1e3, **budget)
    by_time = mcmc_correct(banana, guide, num_samples=10**6, max_seconds=0.3, **budget)
    assert (by_number.out_of_time, by_time.out_of_time) == (False, True)
    draws = torch.randn(2, 20)
    assert "try a larger num_samples" in summary(draws).verdict
    assert "try a larger max_seconds" in summary(draws, out_of_time=True).verdict
    assert "try a larger max_seconds" in summary(draws[:, :3], out_of_time=True).verdict


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_draws_that_are_not_finite_are_not_trusted(value: float) -> None:
    draws = torch.randn(4, 1000, 2)
    draws[2, 7, 0] = value
    assert summary(draws).verdict.startswith("do not trust: draws of ['x'] are not finite")


def test_chains_that_never_leave_their_start_bring_a_warning() -> None:
    def spike() -> None:  # once a chain is at the bottom of a crevice no proposal is better
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("f", -1e10 * (x - x.round(decimals=3)).abs())

    guide = AutoDiagonalNormal(spike, init_scale=1.0)
    guide()
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        result = mcmc_correct(spike, guide, num_samples=200, warmup_steps=0, **QUIET)
    assert result.verdict.startswith("do not trust: x stood still for half a chain")
    assert any(str(w.message) == result.verdict for w in record)


def test_chains_that_stay_where_they_are_bring_warnings_with_a_remedy() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(20), 1.0).to_event(1))

    guide = AutoDiagonalNormal(model, init_scale=0.05)
    guide()
    with pytest.warns(UserWarning, match="hardly reach|R-hat") as record:
        result = mcmc_correct(model, guide, num_samples=100, warmup_steps=0, **QUIET)
    messages = [str(warning.message) for warning in record]
    assert any("above 1: its draws hardly reach" in m and "refine the guide" in m for m in messages)
    assert any("R-hat of 'x'" in m and "method='hmc'" in m for m in messages)
    assert result.max_rhat > 1.05 and result.verdict.startswith("do not trust")


def test_too_few_draws_are_not_trusted_even_where_chains_agree() -> None:
    ones = {"x": torch.ones(())}
    few = Correction({"x": torch.randn(2, 20)}, ones, {"x": torch.tensor(40.0)}, 1, 0, "neutra", 9)
    assert few.verdict == (
        "do not trust: the smallest ESS is 40, below 100; try a larger num_samples, or to refine "
        "the guide"
    )


# --- what cannot be corrected -------------------------------------------------------------------


@pytest.mark.parametrize("kind", [AutoNormal, AutoDelta, AutoLaplaceApproximation, AutoGuideList])
def test_a_guide_without_a_transform_is_refused_with_a_remedy(kind: Any) -> None:
    guide = kind(banana)
    with pytest.raises(TypeError, match=f"transform .*AutoDSFNormal.* got {kind.__name__}"):
        mcmc_correct(banana, guide, **SHORT)


def test_a_guide_for_another_model_or_for_a_part_is_told_by_its_sites() -> None:
    other = AutoDSFNormal(banana)
    other()
    with pytest.raises(ValueError, match=r"draws \['x', 'y'\], which are no continuous latents"):
        mcmc_correct(schools, other, **SHORT)
    pyro.clear_param_store()
    part = AutoDSFNormal(poutine.block(banana, hide=["y"]))
    part()
    with pytest.raises(ValueError, match=r"does not draw \['y'\], which the model does"):
        mcmc_correct(banana, part, **SHORT)


def endless() -> None:
    k = pyro.sample("k", dist.Poisson(0.5))
    pyro.sample("x", dist.Normal(k, 1.0))


def impossible() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("wall", torch.full_like(x, -torch.inf), has_rsample=False)


@pytest.mark.filterwarnings("ignore:the model's log-density is not finite where the guide starts")
@pytest.mark.parametrize(
    "model, match",
    [
        (never, "no latent variables"),
        (endless, "cannot handle discrete sample site 'k'"),
        (impossible, r"finite at 0 of 20000 draws.* because of the sites \['wall'\]"),
    ],
)
def test_models_that_cannot_be_corrected_are_told_why(
    model: Callable[..., Any], match: str
) -> None:
    with pytest.raises((RuntimeError, ValueError), match=match):
        mcmc_correct(model, AutoDSFNormal(model), **SHORT)


@pytest.mark.parametrize(
    "name, value", [("num_samples", 3), ("num_chains", 0), ("warmup_steps", -1)]
)
def test_arguments_out_of_range_are_named(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        mcmc_correct(banana, AutoDSFNormal(banana), **{**SHORT, name: value})
    with pytest.raises(
        ValueError, match=r"method must be one of \['hmc', 'imh', 'neutra'\], got 'x'"
    ):
        mcmc_correct(banana, AutoDSFNormal(banana), method="x")
    with pytest.raises(ValueError, match="max_seconds is a limit for method='hmc', got 'imh'"):
        mcmc_correct(banana, AutoDSFNormal(banana), max_seconds=1.0)
    with pytest.raises(ValueError, match="num_chains must be at least 2"):
        mcmc_correct(banana, AutoDSFNormal(banana), method="hmc", num_chains=1)
