"""Claims about what stands between data and the context of an amortised guide."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_naf.infer import AutoDSFNormal, ForwardKL, NormalScores, SetEncoder, Standardize


def mean_of_rows(y: Tensor, mask: Tensor) -> None:
    """Normal data of unknown mean; of n the posterior is N(sum / (n + 1), 1 / (n + 1))."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", y.shape[-1]):
        pyro.sample("y", dist.Normal(m, 1.0).mask(mask), obs=y)


def amortised(encoder: Any) -> AutoDSFNormal:
    return AutoDSFNormal(
        mean_of_rows,
        num_transforms=1,
        hidden_units=4,
        init_scale=1.0,
        context_fn=encoder,
        context_dim=4,
    )


def some_observed(sites: dict[str, Tensor]) -> Any:
    """One to eight of eight simulated observations, another number in each data set."""
    number = torch.randint(1, 9, (*sites["y"].shape[:-1], 1))
    return (sites["y"], torch.arange(8) < number), {}


def test_a_set_encoder_makes_one_guide_for_any_number_of_observations() -> None:
    torch.manual_seed(0)
    guide = amortised(SetEncoder(0, 4, hidden_dim=32))
    steps = 250
    optimiser = pyro.optim.ClippedAdam({"lr": 3e-2, "lrd": 0.02 ** (1 / steps)})
    svi = pyro.infer.SVI(mean_of_rows, guide, optimiser, ForwardKL(256, some_observed))
    for _ in range(steps):
        svi.step(torch.zeros(8), torch.ones(8, dtype=torch.bool))
    for n in (1, 3, 8):
        y = torch.randn(200, 8) + torch.randn(200, 1)
        mask = torch.arange(8) < n
        y[:, ~mask] = torch.nan
        exact = dist.Normal(y[:, :n].sum(1) / (n + 1), (n + 1) ** -0.5)
        z = exact.sample([50])
        with torch.no_grad():
            kl = exact.log_prob(z) - guide.log_prob({"m": z}, y, mask)
        print(n, kl.mean())
        assert kl.mean() < 0.03, n


def test_an_empty_set_has_a_summary() -> None:
    encoder = SetEncoder(3, 2)
    nothing = encoder(torch.randn(5, 4, 3), torch.zeros(4))
    assert nothing.isfinite().all() and torch.allclose(nothing[0], nothing[1])
    assert torch.allclose(encoder(torch.zeros(0, 3)), nothing[0])


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(\.\.\., n, 3\), got \(4, 2\)"):
        SetEncoder(3, 2)(torch.zeros(4, 2))
    with pytest.raises(ValueError, match=r"mask must have shape \(7, 4\), got \(5,\)"):
        SetEncoder(0, 2)(torch.zeros(7, 4), torch.ones(5))
    with pytest.raises(ValueError, match="at least two data sets of finite numbers, got 1 that"):
        Standardize(torch.tensor([[1.0], [torch.inf]]))


def test_standardising_keeps_constants_and_takes_rows_together() -> None:
    data = torch.randn(50, 6, 2) * torch.tensor([3.0, 0.0]) + 7.0
    z = Standardize(data, each=1)(data)
    assert z[..., 0].mean().abs() < 1e-5 and (z[..., 0].std() - 1).abs() < 1e-5
    assert (z[..., 1] == 0).all()
    assert Standardize(data).loc.shape == (6, 2)


@pytest.mark.parametrize("kind", ["heavy tails", "counts", "two values", "bounds", "a constant"])
def test_normal_scores_are_normal_quantiles_of_ranks(kind: str) -> None:
    torch.manual_seed(0)
    law = {
        "heavy tails": dist.Cauchy(0.0, 1.0),
        "counts": dist.Poisson(1.5),
        "two values": dist.Bernoulli(0.2),
        "bounds": dist.Uniform(-3.0, 5.0),
        "a constant": dist.Delta(torch.tensor(7.0)),
    }[kind]
    x = law.sample(torch.Size([20_000]))
    module = NormalScores(x.expand(2, -1).T)
    with pytest.raises(RuntimeError, match="size"):
        module.load_state_dict(NormalScores(torch.randn(50, 3)).state_dict())
    new = law.sample(torch.Size([1000])).unique()
    below, upto = (x < new[:, None]).double().mean(1), (x <= new[:, None]).double().mean(1)
    exact = dist.Normal(0.0, 1.0).icdf((below + upto) / 2) * (kind != "a constant")
    inside = exact.abs() < 2.5
    score = module(new[:, None].expand(-1, 2))
    # Between two of the 21 quantiles it is a straight line.
    assert (score[:, 0] - exact)[inside].abs().max() < 0.05
    assert torch.equal(score[:, 0], score[:, 1])
    assert module(torch.tensor([1e9, -1e9])).abs().max() < 30
    assert torch.equal(NormalScores(x[:, None, None], each=0)(new), score[:, 0])


def test_an_embedding_is_part_of_the_guide() -> None:
    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", y.shape[-1]):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    encoder = nn.Sequential(Standardize(torch.randn(100, 5)), SetEncoder(0, 3))
    guide = AutoDSFNormal(model, context_fn=encoder, context_dim=3)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), ForwardKL(8))
    svi.step(torch.zeros(5))
    before = {name: w.clone() for name, w in encoder.named_parameters()}
    svi.step(torch.zeros(5))
    assert all(not torch.equal(w, before[name]) for name, w in encoder.named_parameters())
    assert f"{guide._pyro_name}.context_fn$$$1.phi.0.weight" in pyro.get_param_store()

    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    pyro.clear_param_store()
    other = nn.Sequential(Standardize(torch.rand(100, 5)), SetEncoder(0, 3))
    fresh = AutoDSFNormal(model, context_fn=other, context_dim=3)
    fresh(torch.zeros(5))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    y = torch.randn(5)
    assert torch.equal(
        fresh.get_posterior(y).log_prob(y[:1]), guide.get_posterior(y).log_prob(y[:1])
    )
    assert other.double()[0].loc.dtype == torch.double


def test_a_function_around_a_module_brings_a_warning() -> None:
    net, y = nn.Linear(8, 4), torch.zeros(8)
    with pytest.warns(UserWarning, match="weights that are not part of the guide"):
        amortised(lambda y, mask: net(y))(y, torch.ones(8, dtype=torch.bool))

    def registered(y: Tensor, mask: Tensor) -> Tensor:
        pyro.module("net", net)
        return net(y)

    pyro.clear_param_store()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        amortised(registered)(y, torch.ones(8, dtype=torch.bool))
