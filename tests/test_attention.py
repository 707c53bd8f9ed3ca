"""The attention conditioner: its formula, its cache, what it learns, and guides that have it."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from registry import roughen, three_sharp_modes, train_as_density
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from pyro_naf import deep_sigmoidal_flow, eight_schools
from pyro_naf.conditioners import AttentionConditioner
from pyro_naf.conditioners.attention import attention
from pyro_naf.flows.starts import sigmoids_at
from pyro_naf.infer import AutoDDSFNormal, AutoDSFNormal, CompiledSVI


def rough(dim: int, **options: Any) -> AttentionConditioner:
    conditioner = AttentionConditioner(dim, [8, 8], 3, num_heads=2, **options).double()
    roughen(conditioner)
    return conditioner


def torchs_own(block: nn.Module) -> nn.TransformerEncoderLayer:
    """torch's pre-norm layer with the weights of a block."""
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True, dtype=torch.double
    )
    names = {
        "self_attn.in_proj_": "queries_keys_values.", "self_attn.out_proj.": "joined.",
        "linear1.": "up.", "linear2.": "down.", "norm1.": "norms.0.", "norm2.": "norms.1.",
    }  # fmt: skip
    ours = block.state_dict()
    layer.load_state_dict(
        {a + kind: ours[b + kind] for a, b in names.items() for kind in ("weight", "bias")}
    )
    return layer


def test_the_network_is_torchs_own_pre_norm_decoder_on_shifted_values() -> None:
    conditioner = rough(4, order=[2, 0, 3, 1], context_dim=2)
    x, context = torch.randn(5, 4).double(), torch.randn(5, 2).double()
    assert conditioner.of_context is not None
    h = []
    for t in range(4):
        before = x[:, [2, 0, 3, 1][t - 1], None] if t else torch.zeros(5, 1).double()
        value = torch.tanh(conditioner.slope[t] * before + conditioner.shift[t])
        h.append(conditioner.position[t] + value + context @ conditioner.of_context.weight.T)
    steps = torch.stack(h, 1)
    mask = nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.double)
    for block in conditioner.blocks:
        steps = torchs_own(block)(steps, src_mask=mask, is_causal=True)
    steps = conditioner.norm(steps)
    phi = conditioner(x, context)
    for t, dim in enumerate([2, 0, 3, 1]):
        expected = steps[:, t] @ conditioner.head[t].T + conditioner.output_bias[t]
        torch.testing.assert_close(phi[:, dim], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("plain", [False, True])
def test_the_jacobian_is_exactly_zero_for_the_dimension_itself_and_later_ones(
    dtype: torch.dtype, plain: bool
) -> None:
    conditioner = rough(5, order=[3, 1, 4, 0, 2]).to(dtype)
    x = 3 * torch.randn(5).to(dtype)
    jacobian = torch.func.jacrev if plain else _jacobian_by_autograd
    slopes = jacobian(conditioner)(x)[[3, 1, 4, 0, 2]][..., [3, 1, 4, 0, 2]]
    seen = slopes.abs().amax(1) != 0
    assert torch.equal(seen, torch.ones(5, 5).tril(-1).bool())


def _jacobian_by_autograd(f: Any) -> Any:
    return lambda x: torch.autograd.functional.jacobian(f, x)


def test_values_to_come_change_nothing_whatever_they_are() -> None:
    conditioner = rough(4, order="natural")
    x = torch.randn(4).double()
    phi = conditioner(x)
    for far in (1e30, -1e30):
        changed = torch.cat([x[:2], torch.full((2,), far).double()])
        assert torch.equal(conditioner(changed)[:3], phi[:3])


def test_parameters_stay_bounded_however_far_out() -> None:
    conditioner = rough(3, order="natural")
    assert conditioner(torch.tensor([1e30, -1e30, 0.0]).double()).abs().max() < 100


def test_fused_attention_has_the_derivatives_of_the_formula_to_the_second_order() -> None:
    future = torch.ones(3, 3).triu(1).bool()
    inputs = [torch.randn(2, 2, 3, 4).double().requires_grad_() for _ in range(3)]

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, future)

    q, k, v = inputs
    weights = (q @ k.mT / 2).masked_fill(future, -math.inf).softmax(-1)
    torch.testing.assert_close(fused(*inputs), weights @ v, rtol=1e-12, atol=1e-12)
    assert gradcheck(fused, inputs) and gradgradcheck(fused, inputs)


@pytest.mark.parametrize("dim", [1, 20])
def test_outputs_start_near_zero_at_any_depth(dim: int) -> None:
    for blocks in (1, 6):
        phi = AttentionConditioner(dim, [64] * blocks, 30)(torch.randn(200, dim))
        assert 0 < phi.std() < 0.1 and phi.abs().max() < 0.5


def test_dropout_acts_in_training_mode_alone() -> None:
    conditioner = rough(4, dropout=0.5)
    x = torch.randn(5, 4).double()
    assert not torch.equal(conditioner(x), conditioner(x))
    conditioner.eval()
    assert torch.equal(conditioner(x), conditioner(x))


def test_copies_pickles_and_states_compute_the_same_and_keep_the_order() -> None:
    conditioner = rough(5, order=[4, 2, 0, 1, 3])
    x = torch.randn(6, 5).double()
    other = AttentionConditioner(5, [8, 8], 3, num_heads=2, order="natural").double()
    other.load_state_dict(conditioner.state_dict())
    assert not other.is_natural
    for same in (copy.deepcopy(conditioner), pickle.loads(pickle.dumps(conditioner)), other):
        assert torch.equal(same(x), conditioner(x))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hidden_dims": [8, 4]}, r"hidden_dims must hold one width .* got \[8, 4\]"),
        ({"hidden_dims": []}, r"hidden_dims must hold one width .* got \[\]"),
        ({"hidden_dims": [6], "num_heads": 4}, "positive multiple of num_heads = 4"),
        ({"hidden_dims": [0]}, r"positive multiple of num_heads = 4, got \[0\]"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"input_dim": 0}, "input_dim must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"order": "upwards"}, "order must be 'random', 'natural', 'reversed'"),
    ],
)
def test_arguments_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    arguments = {"input_dim": 3, "hidden_dims": [8], "num_params": 2} | options
    with pytest.raises(ValueError, match=message):
        AttentionConditioner(**arguments)


def test_factories_name_an_unknown_conditioner_and_options_of_another() -> None:
    with pytest.raises(ValueError, match="conditioner must be one of made, attention, got 'rnn'"):
        deep_sigmoidal_flow(3, conditioner="rnn")
    with pytest.raises(TypeError, match="activation must be a function of a tensor"):
        deep_sigmoidal_flow(3, conditioner="attention", activation="gelu")
    with pytest.raises(TypeError, match="residual"):
        deep_sigmoidal_flow(3, conditioner="attention", residual=True)


# --------------------------------------------------------------------------------- what it learns


def test_it_learns_a_gaussian_to_its_entropy() -> None:
    factor = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.5, 0.7, 0.4]])
    flow = deep_sigmoidal_flow(3, [16], 4, conditioner="attention", affine=True, order="natural")
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 250)

    def log_prob(x: Tensor) -> Tensor:
        y, log_slope = flow.value_and_log_slope(x)
        return (log_slope - 0.5 * y.square() - 0.5 * math.log(2 * math.pi)).sum(-1)

    for _ in range(250):
        loss = -log_prob(torch.randn(128, 3) @ factor.T).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    x = torch.randn(4000, 3) @ factor.T
    law = dist.MultivariateNormal(torch.zeros(3), scale_tril=factor)
    with torch.no_grad():
        assert 0 <= float((law.log_prob(x) - log_prob(x)).mean()) + 0.01 < 0.04


def test_it_learns_sharp_modes_that_all_dimensions_share() -> None:
    flow = deep_sigmoidal_flow(4, [16], 16, conditioner="attention", affine=True, order="natural")
    sigmoids_at(flow.arn, flow.transformer, three_sharp_modes(2000, 4))
    losses = train_as_density(flow, steps=120)
    # Independent dimensions of three modes each have log 3 more entropy, all but one of them.
    assert sum(losses[-20:]) / 20 < sum(losses[:5]) / 5 - 0.6 * math.log(3)
    with torch.no_grad():
        drawn = flow.inv(torch.randn(500, 4))
    assert (drawn / torch.linspace(1, 1.2, 4)).std(1).median() < 0.3


# ----------------------------------------------------------------------------------------- guides


def test_a_guide_for_eight_schools_finds_the_posterior() -> None:
    pyro.clear_param_store()
    torch.manual_seed(0)
    options = {"conditioner": "attention", "hidden_dims": [16], "num_transforms": 1}
    guide = AutoDSFNormal(eight_schools.model, **options)
    elbo = Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=1)
    optimiser = ClippedAdam({"lr": 2e-2, "lrd": 0.99})
    svi = CompiledSVI(eight_schools.model, guide, optimiser, elbo)
    losses = [svi.step() for _ in range(150)]
    assert sum(losses[-20:]) / 20 < 34 < sum(losses[:5]) / 5
    mu = eight_schools.REFERENCE["mu"]
    assert float(guide.median()["mu"]) == pytest.approx(mu.mean, abs=mu.sd / 3)


@pytest.mark.parametrize("kind, inverse", [(AutoDSFNormal, False), (AutoDDSFNormal, True)])
def test_an_amortised_guide_has_the_conjugate_posterior_of_each_row(
    kind: type[AutoDSFNormal], inverse: bool
) -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("rows", len(y)):
            x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(x, 0.5).to_event(1), obs=y)

    pyro.clear_param_store()
    torch.manual_seed(0)
    guide = kind(
        model, conditioner="attention", hidden_dims=[8], num_heads=2, hidden_units=4,
        num_transforms=1, inverse=inverse, context_fn=lambda y: y, context_dim=2,
    )  # fmt: skip
    svi = SVI(model, guide, ClippedAdam({"lr": 2e-2, "lrd": 0.98}), Trace_ELBO())
    for _ in range(120):
        svi.step(torch.randn(64, 2) * 1.25**0.5)
    y = torch.tensor([[1.0, -1.0], [0.3, 2.0], [0.0, 0.0]])
    with torch.no_grad():
        drawn = torch.stack([guide(y)["x"] for _ in range(400)])
    torch.testing.assert_close(drawn.mean(0), 0.8 * y, atol=0.2, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.full((3, 2), 0.2**0.5), atol=0.12, rtol=0)


def test_a_structure_takes_no_other_conditioner() -> None:
    chain = torch.ones(3, 3).tril(1).triu(-1)
    model = partial(pyro.sample, "x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    guide = AutoDSFNormal(model, structure=chain, conditioner="attention")
    with pytest.raises(ValueError, match="conditioner cannot be chosen with a structure"):
        guide()
