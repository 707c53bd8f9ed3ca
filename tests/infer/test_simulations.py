"""Claims about guides that are fitted to stored simulations."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import linear, linear_data, linear_posterior
from torch import Tensor

from pyro_naf.infer import AutoDSFNormal, NormalScores, Standardize, fit_simulations


def guide_for(y: Tensor, **options: Any) -> AutoDSFNormal:
    context = {"context_fn": Standardize(y), "context_dim": 3}
    return AutoDSFNormal(
        linear, num_transforms=1, hidden_units=4, inverse=True, **context, **options
    )


def mean_kl(guide: AutoDSFNormal, y: Tensor) -> float:
    p, q = linear_posterior(y), guide.get_posterior(y)
    z = p.sample([64])
    with torch.no_grad():
        return float((p.log_prob(z) - q.log_prob(z)).mean())


def test_a_guide_learns_the_posterior_from_stored_simulations() -> None:
    torch.manual_seed(0)
    x, y = linear_data(3000)
    guide = guide_for(y)
    fit = fit_simulations(guide, {"x": x}, y, max_epochs=16, lr=2e-2, seed=0)
    assert mean_kl(guide, linear_data(500)[1]) < 0.05
    assert fit.epochs <= 16 and fit.best_epoch < fit.epochs
    assert fit.validation[fit.best_epoch] == min(fit.validation)


def test_few_simulations_are_not_overfitted() -> None:
    torch.manual_seed(0)
    x, y = linear_data(100)
    guide = guide_for(y)
    fit = fit_simulations(guide, {"x": x}, y, validation=0.3, patience=6, lr=2e-2, seed=0)
    assert fit.epochs < 200 and fit.epochs - 1 - fit.best_epoch in (6, 7)
    assert min(fit.train[fit.best_epoch :]) < fit.train[fit.best_epoch]
    assert mean_kl(guide, linear_data(500)[1]) < 0.5


def test_the_guide_starts_at_the_prior_and_goes_on_from_its_weights() -> None:
    torch.manual_seed(0)
    y = torch.randn(400, 3)
    x = 1000.0 + 50.0 * torch.randn(400, 2)
    guide = guide_for(y)
    fit = fit_simulations(guide, {"x": x}, y, max_epochs=1, seed=0)
    entropy = dist.Normal(1000.0, 50.0).entropy() * 2
    assert fit.train[0] < entropy + 1
    again = fit_simulations(guide, {"x": x}, y, max_epochs=1, seed=0)
    assert again.train[0] < fit.train[0]


def test_the_same_seed_gives_the_same_weights() -> None:
    torch.manual_seed(1)
    x, y = linear_data(200)
    found = []
    for _ in range(2):
        pyro.clear_param_store()
        torch.manual_seed(2)
        found.append(guide_for(y))
        fit_simulations(found[-1], {"x": x}, y, max_epochs=2, seed=3)
    one, two = (guide.get_posterior(y).log_prob(x) for guide in found)
    assert torch.equal(one, two)


def test_a_bounded_prior_has_all_the_mass_and_the_affine_map_is_not_overfitted() -> None:
    """Uniform prior, normal data: where the posterior leans on the bound it is a cut normal."""
    torch.manual_seed(0)
    prior = dist.Uniform(-1.0, 1.0)
    theta = prior.sample((2000,))
    x = (theta + 0.5 * torch.randn(2000))[:, None]
    guide = AutoDSFNormal(
        lambda x: pyro.sample("theta", prior),
        context_fn=NormalScores(x),
        context_dim=1,
        num_transforms=1,
        inverse=True,
    )
    fit_simulations(guide, {"theta": theta}, x, max_epochs=20, lr=1e-2, seed=0)
    points = (torch.arange(2000) + 0.5) / 1000 - 1
    exact = dist.Normal(points, 0.5)
    for value in (-1.2, 0.1, 0.9):
        data = torch.tensor([value])
        q = guide.log_prob({"theta": points}, data.expand(2000, 1)).exp().detach()
        p = exact.log_prob(data).softmax(0) * 1000
        assert q.mean() * 2 == pytest.approx(1.0, abs=0.01)
        assert (q - p).abs().mean() < 0.12, value  # twice the distance in total variation
        with torch.no_grad(), pyro.plate("draws", 1000):
            assert prior.support.check(guide(data)["theta"]).all()


def test_failed_simulations_are_left_out_and_arrays_of_numpy_are_taken() -> None:
    torch.manual_seed(0)
    x, y = linear_data(300)
    y[::10] = torch.nan
    guide = guide_for(linear_data(300)[1])
    with pytest.warns(UserWarning, match="30 of 300 simulations are left out"):
        fit = fit_simulations(guide, {"x": x.numpy()}, y.numpy(), max_epochs=1, seed=0)
    assert math.isfinite(fit.validation[0])
    with pytest.raises(ValueError, match="none in all simulations"):
        fit_simulations(guide, {"x": x}, torch.full((300, 3), torch.nan))


def test_what_does_not_fit_is_named() -> None:
    x, y = linear_data(50)
    with pytest.raises(TypeError, match="guide must have a context_fn, got AutoDSFNormal"):
        fit_simulations(AutoDSFNormal(linear), {"x": x}, y)
    with pytest.raises(ValueError, match="a row for each of 50 simulations"):
        fit_simulations(guide_for(y), {"x": x}, y[:40])
    with pytest.raises(ValueError, match="as many rows for each site"):
        fit_simulations(guide_for(y), {"x": x, "z": x[:3]}, y)
    with pytest.raises(ValueError, match=r"validation must leave rows on both sides, got 0\.001"):
        fit_simulations(guide_for(y), {"x": x}, y, validation=0.001)
    with pytest.raises(ValueError, match="lr must be positive"):
        fit_simulations(guide_for(y), {"x": x}, y, lr=0.0)
