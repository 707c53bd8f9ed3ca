"""Claims about the Gaussian that a model is given to start from."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import conjugate, conjugate_log_evidence, correlated, schools
from torch import Tensor

from pyro_naf.infer import fit_gaussian, importance_diagnostics
from pyro_naf.infer.climbs import climb
from pyro_naf.infer.gaussian import find_gaussian, search
from pyro_naf.infer.joint import Joint
from pyro_naf.infer.laplace import Gaussian, best_of, laplace, match, matched_normal


def test_a_gaussian_posterior_is_found_exactly() -> None:
    guide, modes = fit_gaussian(correlated)
    covariance = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, -0.3], [0.0, -0.3, 0.5]])
    assert torch.allclose(guide.loc, torch.tensor([1.0, -1.0, 0.5]), atol=0.02)
    assert torch.allclose(guide.get_posterior().covariance_matrix, covariance, atol=0.03)
    assert len(modes) == 1 and torch.allclose(modes[0].loc, guide.loc, atol=0.02)


def test_log_density_is_that_of_the_model_with_the_jacobians_of_its_constraints() -> None:
    def model() -> None:
        g = pyro.sample("g", dist.Gamma(2.0, 3.0))
        with pyro.plate("two", 2):
            pyro.sample("x", dist.Normal(0.0, g))

    z = torch.randn(5, 3)
    g = z[:, 0].exp()
    expected = dist.Gamma(2.0, 3.0).log_prob(g) + z[:, 0]
    expected = expected + dist.Normal(0.0, g[:, None]).log_prob(z[:, 1:]).sum(-1)
    assert torch.allclose(Joint(model)(z), expected, atol=1e-5)


def test_scales_of_any_size_and_strong_correlations_are_found() -> None:
    torch.set_default_dtype(torch.double)
    x = torch.randn(200, 3) * torch.tensor([1.0, 100.0, 0.01]) + torch.tensor([0.0, 500.0, 1.0])
    y = 1 + x @ torch.tensor([1.0, 0.01, 30.0]) + torch.randn(200)

    def model() -> None:
        flat = dist.Normal(torch.zeros(4), 1.0).mask(False).to_event(1)
        beta = pyro.sample("beta", flat)
        mean = beta[..., :1] + beta[..., 1:] @ x.T
        pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    guide, _ = fit_gaussian(model)
    design = torch.cat([torch.ones(200, 1), x], -1)
    covariance = torch.linalg.inv(design.T @ design)
    assert torch.allclose(guide.loc, covariance @ design.T @ y, rtol=1e-3)
    ratio = guide.get_posterior().variance / covariance.diagonal()
    assert torch.allclose(ratio, torch.ones(4), atol=0.05)


def test_a_funnel_without_a_mode_still_gives_a_gaussian_with_mass() -> None:
    guide, _ = fit_gaussian(schools)
    # L-BFGS ends where log tau runs to minus infinity; the ELBO of Gaussians there is far lower.
    assert importance_diagnostics(schools, guide).elbo > -36


def test_evidence_of_a_conjugate_model_is_met() -> None:
    data = torch.randn(20)
    guide, _ = fit_gaussian(conjugate, data)
    found = importance_diagnostics(conjugate, guide, data)
    assert found.elbo == pytest.approx(conjugate_log_evidence(data), abs=1e-3)


def test_modes_of_all_starts_are_found_once_each() -> None:
    def target(z: Tensor) -> Tensor:
        return torch.logaddexp(*(dist.Normal(m, 0.5).log_prob(z).sum(-1) for m in (-2.0, 2.0)))

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).mask(False).to_event(1))
        pyro.factor("density", target(z))

    _, modes = fit_gaussian(model, num_starts=10)
    assert sorted(round(m.loc[0].item()) for m in modes) == [-2, 2]
    for mode in modes:
        assert torch.allclose(mode.factor, torch.eye(2) * 0.5, atol=1e-2)


def test_hessians_that_are_not_definite_are_repaired() -> None:
    saddle = lambda z: -(z[:, 0] ** 2) / 2 + z[:, 1] ** 2 / 8  # noqa: E731
    (gaussian,) = laplace(saddle, torch.zeros(1, 2), torch.randn(100, 2))
    assert torch.allclose(gaussian.factor, torch.diag(torch.tensor([1.0, 2.0])), atol=1e-4)


def test_matching_scores_leaves_an_exact_gaussian_where_it_is() -> None:
    law = dist.MultivariateNormal(torch.tensor([3.0, -1.0]), torch.tensor([[2.0, 1.0], [1.0, 3.0]]))
    start = Gaussian(torch.zeros(2), torch.eye(2), -math.inf)
    found = match(law.log_prob, start, matched_normal(256, start.loc))
    assert torch.allclose(found.loc, law.mean, atol=1e-2)
    assert torch.allclose(found.factor, law.scale_tril, atol=2e-2)


def test_a_path_climbs() -> None:
    target = lambda z: -((z - 3) ** 2).sum(-1)  # noqa: E731
    (path,) = climb(target, torch.zeros(1, 2))
    values = target(path)
    assert bool((values[1:] > values[:-1]).all()) and torch.allclose(
        path[-1], torch.full((2,), 3.0)
    )


def no_latents() -> None:
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))


def endless() -> None:
    k = pyro.sample("k", dist.Poisson(0.5))
    pyro.sample("x", dist.Normal(k, 1.0))


def nan_data() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.validation_enabled(False):
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(math.nan))


def impossible() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("wall", torch.full_like(x, -math.inf))


def test_a_proper_posterior_in_small_units_is_not_taken_for_an_improper_one() -> None:
    """A slope per 1e-6 of a unit, of data in millions."""
    x, y = torch.linspace(-1e-6, 1e-6, 9), torch.linspace(3e6, 7e6, 9)

    def model() -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1e13))
        pyro.sample("y", dist.Normal(5e6 + slope * x, 1e6).to_event(1), obs=y)

    best, *_ = find_gaussian(Joint(model), 2, 1.0)
    precision = (x.double() / 1e6).square().sum() + 1e-26
    loc = (x.double() * (y.double() - 5e6)).sum() / 1e12 / precision
    assert float(best.loc) == pytest.approx(float(loc), rel=1e-2)
    assert float(best.factor) == pytest.approx(float(precision**-0.5), rel=1e-2)


def improper() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0).mask(False))
    pyro.factor("slope", x)


def restless() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(int(torch.randint(2, 1000, ()))), 1.0).to_event(1))


@pytest.mark.parametrize(
    "model, message",
    [
        (no_latents, "no continuous latent variables"),
        (endless, r"continuous or finite, but \['k'\] take infinitely many"),
        (nan_data, "data of site 'y' holds NaN in 1 of 1 places"),
        (impossible, "log-density of site 'wall' is -inf"),
        (improper, "improper: site 'x' escapes to infinity; give it a proper prior"),
        (restless, r"fixed shape, but that of \['x'\] changes from one run to the next"),
    ],
)
def test_models_that_cannot_be_fitted_are_told_why(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_gaussian(model)


def test_a_flat_prior_leaves_the_likelihood() -> None:
    def model() -> None:
        flat = dist.ImproperUniform(dist.constraints.real, (), ())
        x = pyro.sample("x", flat)
        pyro.sample("y", dist.Normal(x, 2.0), obs=torch.tensor(3.0))

    posterior = fit_gaussian(model)[0].get_posterior()
    torch.testing.assert_close(posterior.mean, torch.tensor([3.0]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(posterior.stddev, torch.tensor([2.0]), rtol=1e-4, atol=1e-4)


def test_a_path_that_ends_on_a_saddle_hides_no_mode() -> None:
    """A ring, thin at the top and bottom: the first climb, from its centre, ends where it began."""

    def ring(z: Tensor) -> Tensor:
        return z[:, 0].abs() - 3 * (z.norm(dim=-1) - 2).square()

    centre = torch.zeros(2, dtype=torch.double)
    (path,) = climb(ring, centre[None])
    assert path[-1].norm() < 0.1
    _, modes, _ = search(ring, centre, matched_normal(256, centre), 16)
    assert {float(mode.loc[0].sign()) for mode in modes} == {-1.0, 1.0}


def test_of_many_modes_those_with_mass_are_found_first() -> None:
    """Forty ripples, one of which holds all but e^-20 of the mass, at a place unknown."""

    def ripples(z: Tensor) -> Tensor:
        return -20 * torch.sin(4 * math.pi * z[:, 0]).square() - 20 * (z[:, 0] > -3.6).double()

    middle = torch.zeros(1, dtype=torch.double)
    _, modes, _ = search(ripples, middle, matched_normal(256, middle), 4)
    assert float(modes[0].loc) < -3.6


def test_a_search_that_time_breaks_off_climbs_to_one_top_at_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scale, clock = torch.logspace(-1.5, 1, 12), 0.0
    rotation = torch.linalg.qr(torch.arange(144.0).cos().reshape(12, 12)).Q

    def target(z: Tensor) -> Tensor:  # of cost that counts by batches and by points
        nonlocal clock
        clock += 0.01 + 0.0005 * len(z)
        white = (z - 3) @ rotation / scale
        return -white.square().sum(-1) / 2 - white.pow(4).sum(-1) / 100

    monkeypatch.setattr("time.monotonic", lambda: clock)
    _, modes, _ = search(target, torch.zeros(12), matched_normal(64, scale), 16, deadline=0.8)
    off = (modes[0].loc - 3) @ rotation / scale
    assert off.abs().max() < 0.2


def test_climbs_that_time_cuts_off_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ends = 0.0, 0

    def target(z: Tensor) -> Tensor:
        nonlocal clock
        clock += 0.01
        return -(z.square().sum(-1) - 4).square()

    def slow(*args: Any, **kwargs: Any) -> Any:
        nonlocal clock, ends
        clock, ends = clock + 1.0, ends + 1
        return best_of(*args, **kwargs)

    monkeypatch.setattr("time.monotonic", lambda: clock)
    monkeypatch.setattr("pyro_naf.infer.gaussian.best_of", slow)
    normal, middle = matched_normal(64, torch.zeros(2)), torch.ones(2)
    _, modes, climbs = search(target, middle, normal, 16, deadline=2.0)
    assert modes and ends <= climbs < 8
    clock = 0.0
    _, _, climbs = search(target, middle, normal, 16, deadline=1000.0)
    assert climbs >= 16
