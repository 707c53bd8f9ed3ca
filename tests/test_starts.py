"""Sigmoids that start with the marginals of draws; those near the identity are architectures'."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from pyro_naf import deep_dense_sigmoidal_flow, deep_sigmoidal_flow
from pyro_naf.conditioners import MADE
from pyro_naf.flows.starts import sigmoids_at
from pyro_naf.transformers import Affine

FLOWS = pytest.mark.parametrize("make", [deep_sigmoidal_flow, deep_dense_sigmoidal_flow])

#: Modes 50 to 300 times narrower than they are apart.
NARROW = MixtureSameFamily(
    Categorical(torch.tensor([0.2, 0.3, 0.5])),
    Normal(torch.tensor([-1.5, -0.5, 1.1]), torch.tensor([0.02, 0.005, 0.01])),
)
WIDE = Normal(torch.tensor(0.3), torch.tensor(0.8))


def divergence(flow: Any, draws: Tensor) -> float:
    """From the product of the two to the flow's density, in nats, by draws."""
    y = flow(draws)
    log_q = Normal(0.0, 1.0).log_prob(y).sum(-1) + flow.log_abs_det_jacobian(draws, y)
    log_p = NARROW.log_prob(draws[:, 0]) + WIDE.log_prob(draws[:, 1])
    return (log_p - log_q).mean().item()


def draws(n: int) -> Tensor:
    return torch.stack([NARROW.sample([n]), WIDE.sample([n])], -1)


@FLOWS
@pytest.mark.parametrize("order", ["natural", "reversed"])
def test_a_flow_starts_with_the_marginals_of_draws(make: Any, order: str) -> None:
    flow = make(2, [8], order=order, affine=True)
    assert divergence(flow, draws(4000)) > 1
    sigmoids_at(flow.arn, flow.transformer, draws(4000))
    assert divergence(flow, draws(4000)) < 0.1


@FLOWS
@pytest.mark.parametrize("units", [1, 2, 16])
def test_the_image_has_mean_zero_and_standard_deviation_one(make: Any, units: int) -> None:
    flow = make(2, [8], units, affine=True).double()
    sigmoids_at(flow.arn, flow.transformer, draws(4000))
    image = flow(draws(4000).double()).detach()
    assert image.mean(0).abs().amax() < 0.15
    assert (image.std(0) - 1).abs().amax() < 0.15


def test_without_an_affine_map_the_image_is_logistic() -> None:
    flow = deep_sigmoidal_flow(2, [8])
    sigmoids_at(flow.arn, flow.transformer, draws(4000))
    image = flow(draws(4000)).detach()
    assert image.std(0) == pytest.approx(torch.full((2,), math.pi / 3**0.5), rel=0.1)


@pytest.mark.parametrize("distinct, units", [(1000, 64), (1000, 128), (60, 16), (17, 16)])
def test_draws_that_repeat_or_are_few_make_no_narrow_modes(distinct: int, units: int) -> None:
    flow = deep_sigmoidal_flow(2, [8], units)
    some = torch.randn(distinct, 2)
    weights = torch.rand(distinct).pow(-0.5)  # a few of them many times
    sigmoids_at(flow.arn, flow.transformer, some[weights.multinomial(4000, replacement=True)])
    slopes, _, _ = flow.transformer.constrain(flow.arn.output_bias)
    assert slopes.amax() < 300


@FLOWS
def test_equal_draws_give_finite_slopes(make: Any) -> None:
    flow = make(2, [8], affine=True)
    sigmoids_at(flow.arn, flow.transformer, torch.ones(100, 2))
    y = flow(torch.linspace(-3, 3, 101)[:, None].expand(-1, 2))
    assert y.isfinite().all() and (y.diff(dim=0) >= 0).all()


def test_draws_wider_than_the_floor_of_the_slopes_keep_their_places() -> None:
    flow = deep_sigmoidal_flow(1, [8], 1, min_slope=0.4)
    sigmoids_at(flow.arn, flow.transformer, torch.linspace(80.0, 120.0, 401)[:, None])
    assert flow(torch.tensor([[100.0]])).abs() < 0.2


def test_what_it_cannot_start_from_is_named() -> None:
    flow = deep_sigmoidal_flow(2, [8])
    with pytest.raises(TypeError, match="transformer must be made of sigmoids, got Affine"):
        sigmoids_at(MADE(2, [8], 2), Affine(), draws(100))
    with pytest.raises(ValueError, match=r"draws must have shape \(N, 2\), N >= 1, got \(100,\)"):
        sigmoids_at(flow.arn, flow.transformer, draws(100)[:, 0])
    with pytest.raises(ValueError, match="draws must be finite"):
        sigmoids_at(flow.arn, flow.transformer, draws(100) / 0)
