"""Every named architecture: the density is right, draws follow it, both directions agree."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_naf.density import architectures
from pyro_naf.density.architectures import TABLE, build, parse
from pyro_naf.density.flow import NormalizingFlow

SMALL = {"hidden_dims": (12, 12), "hidden_units": 4, "components": 3}

SCORED = [*TABLE, "maf-nsf-2", "iaf-affine-2", "iaf-dsf-2", "attention-ddsf", "attention-mog"]
DRAWN = [name for name in SCORED if name != "bnaf"]
CONDITIONAL = DRAWN
VARIANTS: dict[str, dict[str, Any]] = {
    "maf-dsf-2": {"residual": True, "linear": "lu", "dropout": 0.2},
    "maf-ddsf-2": {"affine": True, "activation": "tanh"},
    "maf-nsf-2": {"head_dim": 2, "activation": "silu"},
    "maf-nsf-1": {"conditioner": "attention", "num_heads": 2, "base": "student"},
}


def made(name: str, dim: int, context_dim: int = 0, **options: Any) -> NormalizingFlow:
    """Away from its start, in double precision and evaluation mode."""
    flow = build(name, dim, context_dim, **{**SMALL, **options}).double().eval()
    with torch.no_grad():
        for p in flow.parameters():
            fan_in = p.shape[-1] if p.dim() > 1 else 4
            p.add_(torch.randn_like(p), alpha=0.2 * fan_in**-0.5)
    return flow


def log_prob_by_autograd(flow: NormalizingFlow, x: Tensor, context: Tensor | None) -> Tensor:
    """Base log-density and log|det| of the whole map's Jacobian from autograd."""
    total = []
    for i in range(len(x)):
        c = None if context is None else context[i]
        jacobian = torch.autograd.functional.jacobian(lambda u, c=c: flow._through(u, c)[0], x[i])
        z = flow._through(x[i], c)[0]
        sign = -1 if flow.sampling else 1
        point = x[i] if flow.sampling else z
        total.append(flow.base.log_prob(point, c) + sign * torch.linalg.slogdet(jacobian)[1])
    return torch.stack(total)


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("name", [*SCORED, "planar-3"])
def test_log_density_agrees_with_the_jacobian_from_autograd(name: str, context_dim: int) -> None:
    if context_dim and name in ("bnaf", "planar-3"):
        pytest.skip("takes no context")
    flow = made(name, 3, context_dim)
    context = torch.randn(4, 2, dtype=torch.double) if context_dim else None
    u = torch.randn(4, 3, dtype=torch.double)  # data, or in the sampling direction a base point
    expected = log_prob_by_autograd(flow, u, context)
    if not flow.sampling:
        found = flow.log_prob(u, context)
    else:
        found = flow.base.log_prob(u, context) - flow._through(u, context)[1]
    tolerance = 1e-6 if name == "bnaf" else 1e-10  # Pyro's is no better
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", DRAWN)
def test_draws_have_the_density_that_is_said(name: str) -> None:
    flow = made(name, 3)
    with torch.no_grad():
        x, log_prob = flow.rsample_and_log_prob(200)
        torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "name", ["made-mog", "maf-mog-5", "tan", "maf-ddsf-2", "iaf-dsf-2", "bnaf"]
)
def test_density_integrates_to_one_and_draws_follow_it(name: str) -> None:
    flow = made(name, 2, sharpness=1.0)  # smooth enough for the grid
    side = torch.linspace(-10, 10, 251, dtype=torch.double)
    with torch.no_grad():
        grid = torch.cartesian_prod(side, side)
        p = torch.cat([flow.log_prob(part).exp() for part in grid.split(20_000)])
        cell = float(side[1] - side[0]) ** 2
        assert float(p.sum()) * cell == pytest.approx(1, abs=1e-3)
        mean = (p.unsqueeze(-1) * grid).sum(0) * cell
        second = (p.unsqueeze(-1) * grid.square()).sum(0) * cell
        if name == "bnaf":
            return  # cannot be drawn from
        x = flow.rsample(5000)
    se = ((second - mean.square()) / len(x)).sqrt()
    assert ((x.mean(0) - mean).abs() < 5 * se).all()


@pytest.mark.parametrize("name", CONDITIONAL)
def test_context_broadcasts_and_matters(name: str) -> None:
    flow = made(name, 3, 2)
    context = torch.randn(5, 2, dtype=torch.double)
    with torch.no_grad():
        assert flow.rsample(4, context).shape == (4, 5, 3)
        x = torch.randn(4, 1, 3, dtype=torch.double)
        both = flow.log_prob(x, context)
        assert both.shape == (4, 5)
        each = torch.stack([flow.log_prob(x[:, 0], c) for c in context], 1)
        torch.testing.assert_close(both, each, rtol=0, atol=1e-8)
        assert float(both.std(1).max()) > 1e-3
        distribution = flow.distribution(context)
        assert distribution.batch_shape == (5,) and distribution.event_shape == (3,)
        assert distribution.sample([4]).shape == (4, 5, 3)


@pytest.mark.parametrize("name", DRAWN)
def test_distribution_agrees_and_its_draws_have_gradients(name: str) -> None:
    flow = made(name, 3)
    distribution = flow.distribution()
    assert distribution.has_rsample
    x = distribution.rsample([6])
    assert x.requires_grad
    log_prob = flow.log_prob(x.detach())
    torch.testing.assert_close(distribution.log_prob(x), log_prob, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", VARIANTS)
def test_options_reach_the_parts(name: str) -> None:
    flow = made(name, 3, **VARIANTS[name])
    x = torch.randn(50, 3, dtype=torch.double)
    with torch.no_grad():
        expected = flow.log_prob(x)
        torch.testing.assert_close(flow.distribution().log_prob(x), expected, rtol=0, atol=1e-9)
        flow.train()
        assert torch.equal(flow.log_prob(x), expected) == (name != "maf-dsf-2")  # dropout


@pytest.mark.parametrize("dim", [1, 20])
@pytest.mark.parametrize("name", [*SCORED, "planar-2"])
def test_every_dimension_works(name: str, dim: int) -> None:
    flow = build(name, dim, **SMALL)
    assert flow.rsample_and_log_prob(3)[1].shape == (3,) if flow.no_inverse is None else True
    if name != "planar-2":
        assert torch.isfinite(flow.log_prob(torch.randn(5, dim))).all()


@pytest.mark.parametrize("name", [n for n in TABLE if n not in ("made", "made-mog")])
def test_a_fresh_flow_is_near_the_standard_normal(name: str) -> None:
    flow = build(name, 5)
    x = torch.randn(500, 5)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(-1)
    with torch.no_grad():
        gap = float((flow.log_prob(x) - normal).mean())
    assert abs(gap) < 2.5, gap


@pytest.mark.parametrize("kind", ["dsf", "ddsf"])
def test_sigmoids_start_sharp_near_the_identity_and_with_its_tails(kind: str) -> None:
    flow = build(f"maf-{kind}-1", 1, sharpness=8.0).double().layers[0]
    phi = flow.arn.output_bias.detach()
    slopes = flow.transformer.constrain(phi)[0]
    torch.testing.assert_close(slopes[0, 0].item(), 1.0)
    torch.testing.assert_close(slopes[0, 1:], torch.full((15,), 8.0, dtype=torch.double))
    x = torch.linspace(-4, 4, 201, dtype=torch.double)
    y, log_slope = flow.transformer(x, phi.expand(201, -1))
    # Half of the weight stays in the tails: log 2, and in DDSF, whose matrices are random, more.
    assert (y - x).abs().max() < {"dsf": 0.7, "ddsf": 2.0}[kind]
    assert log_slope.abs().max() > 0.2  # it has steps
    far, log_slope = flow.transformer(torch.tensor([-1e6, 1e6]).double(), phi.expand(2, -1))
    torch.testing.assert_close(far, torch.tensor([-1e6, 1e6]).double(), rtol=1e-5, atol=0)
    assert log_slope.abs().max() < 1e-9


def test_planar_flows_say_that_they_cannot_score_data() -> None:
    flow = build("planar-4", 2)
    with pytest.raises(NotImplementedError, match=r"planar flows have no inverse.*maf-dsf-5"):
        flow.log_prob(torch.randn(3, 2))
    with pytest.raises(NotImplementedError, match="planar flows have no inverse"):
        flow.distribution().log_prob(torch.randn(3, 2))
    x, log_prob = flow.rsample_and_log_prob(3)
    assert x.shape == (3, 2) and log_prob.requires_grad


def test_bnaf_says_that_nothing_can_be_drawn_from_it() -> None:
    for draw in (build("bnaf", 2).rsample, lambda n: build("bnaf", 2).distribution().rsample([n])):
        with pytest.raises(NotImplementedError, match="bnaf has no inverse"):
            draw(3)


def test_a_density_of_pyro_layers_follows_its_parameters() -> None:
    flow = build("bnaf-2", 2)
    x = torch.randn(4, 2)
    before = flow.log_prob(x).detach()
    with torch.no_grad():
        for p in flow.parameters():
            p.mul_(1.1)
    assert not torch.equal(flow.log_prob(x), before)


@pytest.mark.parametrize("name", [*TABLE, "planar-2", "iaf-dsf-2"])
def test_a_density_can_be_copied_after_use(name: str) -> None:
    flow = build(name, 2, **SMALL).eval()
    flow.rsample_and_log_prob(3) if flow.sampling else flow.log_prob(torch.randn(3, 2))
    copied, x = copy.deepcopy(flow), torch.randn(4, 2)
    if flow.sampling:
        torch.manual_seed(1)
        first = flow.rsample(4)
        torch.manual_seed(1)
        assert torch.equal(copied.rsample(4), first)
    else:
        assert torch.equal(copied.log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("maf-ddsf-10", ("maf-ddsf", 10)),
        ("made-mog", ("made-mog", 0)),
        ("nsf-ar", ("nsf-ar", 5)),
        ("planar-16", ("planar", 16)),
    ],
)
def test_a_number_at_the_end_of_a_name_counts_layers(name: str, expected: tuple[str, int]) -> None:
    assert parse(name) == expected


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: build("maf", 2), "architecture must be one of made, made-mog, maf-affine-K"),
        (lambda: build("maf-dsf", 2), "must say its number of layers, as in 'maf-dsf-5'"),
        (lambda: build("maf-dsf-0", 2), "must have at least one layer, got 'maf-dsf-0'"),
        (lambda: build("made-3", 2), "architecture 'made' takes no number of layers"),
        (lambda: build("bnaf", 2, 1), "'bnaf' takes no context"),
        (lambda: build("planar-2", 2, 1), "'planar' takes no context"),
        (lambda: build("made", 0), "input_dim must be at least 1, got 0"),
        (lambda: build("made", 2, -1), "context_dim must be at least 0, got -1"),
        (lambda: build("made", 2, linear="qr"), "linear must be 'reversal' or 'lu', got 'qr'"),
        (lambda: build("made", 2, dropout=1.0), "dropout must lie in [0, 1), got 1.0"),
        (lambda: build("made", 2, activation="sin"), "activation must be one of elu, gelu, relu"),
        (
            lambda: build("attention-dsf", 2, residual=True),
            "residual and head_dim are options of a",
        ),
        (lambda: build("made-mog", 2, components=0), "num_params must be at least 1, got 0"),
        (lambda: build("nsf-ar", 2, bins=1), "bins must be at least 2, got 1"),
        (lambda: build("nsf-ar", 2, bound=0.0), "bound must be positive and finite, got 0.0"),
    ],
)
def test_a_mistake_is_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_an_unknown_option_is_named_with_those_there_are() -> None:
    with pytest.raises(TypeError, match="unknown option 'width' of made; there are: hidden_dims"):
        build("made", 2, width=3)
    with pytest.raises(TypeError, match="hidden_dims must be a sequence of widths, got 3"):
        build("made", 2, hidden_dims=3)


def test_the_table_and_the_docstring_name_the_same_architectures() -> None:
    doc = architectures.__doc__ or ""
    for name in TABLE:
        assert parse(name)[0].removesuffix("-ar") in doc
