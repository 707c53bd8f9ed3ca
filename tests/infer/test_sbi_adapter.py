"""Claims about our flows as the density estimator of sbi's NPE."""

from __future__ import annotations

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from pyro_naf.infer import SetEncoder, sbi_estimator
from pyro_naf.infer.sbi_adapter import ConditionalDensity

A = torch.tensor([[1.0, 0.5], [0.0, 2.0], [-1.0, 1.0]])
NOISE = 0.5


def simulate(count: int) -> tuple[Tensor, Tensor]:
    theta = torch.randn(count, 2)
    return theta, theta @ A.T + NOISE * torch.randn(count, 3)


def exact(x: Tensor) -> MultivariateNormal:
    precision = torch.eye(2) + A.T @ A / NOISE**2
    covariance = torch.linalg.inv(precision)
    return MultivariateNormal(x @ A @ covariance / NOISE**2, covariance)


def density(build: Any, theta: Tensor, x: Tensor) -> ConditionalDensity:
    """What a builder gives to sbi, without sbi."""
    return ConditionalDensity(*build.args, theta, x)


def kl(posterior: Any, x: Tensor) -> float:
    z = exact(x).sample([64])
    with torch.no_grad():
        return float((exact(x).log_prob(z) - posterior(z, x)).mean())


def test_the_density_learns_the_posterior_of_a_linear_gaussian_model() -> None:
    torch.manual_seed(0)
    theta, x = simulate(2000)
    net = density(sbi_estimator(num_transforms=1, hidden_dims=[16], hidden_units=4), theta, x)
    adam = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(150):
        rows = torch.randint(2000, (256,))
        loss = -net.posterior(x[rows]).log_prob(theta[rows]).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    x = simulate(200)[1]
    assert kl(lambda z, x: net.posterior(x).log_prob(z), x) < 0.05
    with torch.no_grad():
        draws = net.posterior(x[0]).sample([4000])
    assert (draws.mean(0) - exact(x[0]).mean).abs().max() < 0.1
    assert (draws.T.cov() - exact(x[0]).covariance_matrix).abs().max() < 0.05


@pytest.mark.parametrize("flow", ["dsf", "ddsf"])
def test_data_of_any_shape_are_embedded(flow: str) -> None:
    theta, x = torch.randn(50, 1), torch.randn(50, 6, 2)
    for embedding in (None, SetEncoder(2, 5)):
        net = density(sbi_estimator(flow, embedding_net=embedding), theta, x)
        assert net.posterior(x).log_prob(theta).shape == (50,)
        assert net.posterior(x[0]).sample([3]).shape == (3, 1)
        assert net.posterior(x.expand(4, 50, 6, 2)).log_prob(theta).shape == (4, 50)


def test_wrong_options_are_named(monkeypatch: Any) -> None:
    with pytest.raises(ValueError, match="flow must be one of"):
        sbi_estimator("maf")
    theta, x = simulate(10)
    monkeypatch.setitem(sys.modules, "sbi", None)
    monkeypatch.setitem(sys.modules, "sbi.neural_nets.estimators", None)
    from pyro_naf.infer.sbi_adapter import _estimator_class

    _estimator_class.cache_clear()
    with pytest.raises(ImportError, match="pip install sbi"):
        sbi_estimator()(theta, x)


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
def test_npe_of_sbi_takes_it() -> None:
    inference = pytest.importorskip("sbi.inference")
    torch.manual_seed(0)
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))
    theta, x = simulate(2000)
    build = sbi_estimator(num_transforms=1, hidden_dims=[32], hidden_units=8)
    trainer = inference.NPE(prior, density_estimator=build, show_progress_bars=False)
    trainer.append_simulations(theta, x)
    estimator = trainer.train(learning_rate=5e-3, training_batch_size=200, max_num_epochs=40)
    x = simulate(200)[1]
    assert kl(lambda z, x: estimator.log_prob(z, x), x) < 0.05
    posterior = trainer.build_posterior(estimator)
    draws = posterior.sample((2000,), x=x[0], show_progress_bars=False)
    assert (draws.mean(0) - exact(x[0]).mean).abs().max() < 0.1
    for again in (copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator))):
        assert torch.equal(again.log_prob(theta[:5], x[:5]), estimator.log_prob(theta[:5], x[:5]))
