"""MADE, attention and the adapter for Pyro's networks: who sees whom, and one at a time."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from registry import fresh, roughen
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pyro_naf.conditioners import (
    MADE,
    AttentionConditioner,
    GraphConditioner,
    PyroConditioner,
    Structure,
    as_conditioner,
    attention,
    choice,
    sweep,
)
from pyro_naf.transforms import AffineAutoregressiveFlow

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two layers": {"hidden_dims": [9, 11]},
    "linear": {"hidden_dims": []},
    "narrow": {"hidden_dims": [2, 3]},
    "residual": {"hidden_dims": [7, 7], "residual": True},
    "head": {"head_dim": 2},
    "residual with head": {"hidden_dims": [7], "residual": True, "head_dim": 3},
    "natural": {"order": "natural"},
    "reversed": {"order": "reversed"},
    "relu": {"activation": torch.relu},
}

_ATTENTION = {"name": "attention", "hidden_dims": [8, 8], "num_heads": 2}

#: Variants of both conditioners, for what holds for any of them.
CONDITIONERS: dict[str, dict[str, Any]] = VARIANTS | {
    "attention": _ATTENTION,
    "attention, one head": _ATTENTION | {"hidden_dims": [4], "num_heads": 1},
    "attention, natural": _ATTENTION | {"order": "natural"},
    "attention, relu": _ATTENTION | {"order": "reversed", "activation": torch.relu},
}


def build(variant: str, dim: int, context_dim: int = 0) -> MADE | AttentionConditioner:
    options = {"name": "made", "hidden_dims": [8], "num_params": 3} | CONDITIONERS[variant]
    conditioner = choice.make(input_dim=dim, context_dim=context_dim, **options)
    roughen(conditioner)
    return conditioner


def build_made(variant: str, dim: int, context_dim: int = 0) -> MADE:
    made = build(variant, dim, context_dim)
    assert isinstance(made, MADE)
    return made


def run_sweep(conditioner: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
    """The pseudo-parameters ``(N, D, P)`` that a sweep over the known x ``(N, D)`` yields."""
    steps = sweep(conditioner, x.shape[0], context, like=x)
    order = conditioner.get_permutation().tolist()
    phi: list[Tensor] = [torch.empty(0)] * len(order)
    current = next(steps)
    for place, dim in enumerate(order):
        phi[dim] = current
        if place < len(order) - 1:
            current = steps.send(x[:, dim])
    return torch.stack(phi, 1)


def dependence(conditioner: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Entry (t, s), in the conditioner's order: whether parameters of t respond to x_s."""
    x = x.clone().requires_grad_()
    phi = conditioner(x) if context is None else conditioner(x, context)
    rows = [
        torch.autograd.grad(phi[:, t].square().sum(), x, retain_graph=True, allow_unused=True)[0]
        for t in conditioner.get_permutation().tolist()
    ]
    dense = [torch.zeros_like(x) if r is None else r for r in rows]
    return torch.stack(dense).abs().sum(1)[:, conditioner.get_permutation()] > 0


# --------------------------------------------------------------------------------------- structure


@pytest.mark.parametrize("context_dim", [0, 3])
@pytest.mark.parametrize("dim", [1, 2, 6])
@pytest.mark.parametrize("variant", CONDITIONERS)
def test_parameters_of_a_dimension_see_only_the_dimensions_before_it(
    variant: str, dim: int, context_dim: int
) -> None:
    made = build(variant, dim, context_dim)
    context = torch.randn(4, context_dim) if context_dim else None
    seen = dependence(made, torch.randn(4, dim), context)
    assert not seen.triu().any()


@pytest.mark.parametrize("variant", [v for v in CONDITIONERS if v not in ("narrow", "relu")])
def test_parameters_of_a_dimension_see_all_the_dimensions_before_it(variant: str) -> None:
    seen = dependence(build(variant, 5), torch.randn(20, 5))
    assert torch.equal(seen, torch.ones(5, 5).tril(-1).bool())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_single_hidden_unit_still_lets_the_last_dimension_see(variant: str) -> None:
    made = MADE(4, [1], 2)
    roughen(made)
    assert dependence(made, torch.randn(20, 4))[-1, :-1].all()


@pytest.mark.parametrize("dim", [1, 4])
@pytest.mark.parametrize("variant", CONDITIONERS)
def test_every_dimension_sees_the_context(variant: str, dim: int) -> None:
    made = build(variant, dim, context_dim=2)
    if variant == "relu":
        return  # its few units may all be dead for one x
    context = torch.randn(10, 2, requires_grad=True)
    phi = made(torch.randn(10, dim), context)
    for t in range(dim):
        (grad,) = torch.autograd.grad(phi[:, t].sum(), context, retain_graph=True)
        assert (grad != 0).any()


@pytest.mark.parametrize("dim, width", [(5, 8), (5, 3), (5, 1), (1, 4), (43, 100), (2, 2)])
def test_hidden_degrees_rise_and_are_spread_evenly(dim: int, width: int) -> None:
    made = MADE(dim, [width], 2)
    (degrees,) = made._degrees
    assert torch.equal(degrees, degrees.sort().values)
    assert degrees[-1] == dim - 1
    assert degrees[0] >= (1 if dim > 1 else 0)
    counts = torch.bincount(degrees)
    counts = counts[counts > 0]
    if width >= dim > 2:
        assert len(counts) == dim - 1  # every degree has a unit
        assert counts[1:-1].max() - counts[1:-1].min() <= 1


def test_with_a_context_some_units_see_it_alone() -> None:
    (degrees,) = MADE(4, [8], 2, context_dim=1)._degrees
    assert degrees[0] == 0
    (degrees,) = MADE(4, [8], 2)._degrees
    assert degrees[0] == 1


def test_order_may_be_chosen_or_drawn() -> None:
    assert MADE(4, [8], 2, order="natural").get_permutation().tolist() == [0, 1, 2, 3]
    assert MADE(4, [8], 2, order="reversed").get_permutation().tolist() == [3, 2, 1, 0]
    for order in ([2, 0, 3, 1], (2, 0, 3, 1), torch.tensor([2, 0, 3, 1])):
        assert MADE(4, [8], 2, order=order).get_permutation().tolist() == [2, 0, 3, 1]
    orders = {tuple(MADE(6, [8], 2).get_permutation().tolist()) for _ in range(10)}
    assert len(orders) > 5
    assert all(sorted(order) == list(range(6)) for order in orders)


def test_a_tensor_given_as_order_is_copied() -> None:
    order = torch.tensor([1, 0, 2])
    made = MADE(3, [4], 1, order=order)
    order.fill_(0)
    assert made.get_permutation().tolist() == [1, 0, 2]


def test_outputs_start_near_zero_and_hidden_units_at_the_scale_of_their_inputs() -> None:
    for options in ({}, {"head_dim": 4}, {"residual": True}):
        made = MADE(20, [200, 200], 30, **options)
        phi = made(torch.randn(500, 20))
        assert 0 < phi.std() < 0.15
        assert phi.abs().max() < 1.5


def test_factorised_head_has_few_parameters() -> None:
    full = sum(p.numel() for p in MADE(500, [512], 48).parameters())
    head = sum(p.numel() for p in MADE(500, [512], 48, head_dim=8).parameters())
    assert full > 12_000_000
    assert head < 2_400_000


def test_factorised_head_shares_one_map_between_all_dimensions() -> None:
    made = MADE(4, [8], 5, head_dim=2)
    roughen(made)
    phi = (made(torch.randn(30, 4)) - made.output_bias[made.places]).view(-1, 5)
    assert torch.linalg.matrix_rank(phi, rtol=1e-5) == 2


# ------------------------------------------------------------------------------- values and shapes


def test_forward_is_the_masked_network_written_out() -> None:
    made = MADE(4, [9], 3, context_dim=2, order=[2, 0, 3, 1], activation=torch.tanh)
    roughen(made)
    x, context = torch.randn(5, 4), torch.randn(5, 2)
    place = {dim: t + 1 for t, dim in enumerate([2, 0, 3, 1])}
    degrees = made._degrees[0].tolist()
    inputs = torch.cat([context, x], -1)
    hidden = []
    for k, degree in enumerate(degrees):
        total = made.biases[0][k].expand(5)
        for j in range(6):
            column = j if j < 2 else 1 + place[j - 2]
            if j < 2 or place[j - 2] <= degree:
                total = total + made.weights[0][k, column] * inputs[:, j]
        hidden.append(torch.tanh(total))
    phi = made(x, context)
    for dim in range(4):
        for p in range(3):
            row = 3 * (place[dim] - 1) + p
            total = made.output_bias.view(-1)[row].expand(5)
            for k, degree in enumerate(degrees):
                if degree < place[dim]:
                    total = total + made.weights[1][row, k] * hidden[k]
            torch.testing.assert_close(phi[:, dim, p], total)


@pytest.mark.parametrize("variant", CONDITIONERS)
def test_shapes_broadcast_with_the_context(variant: str) -> None:
    made = build(variant, 4, context_dim=2)
    for x_shape, context_shape, batch in [
        ((), (), ()),
        ((5,), (), (5,)),
        ((), (5,), (5,)),
        ((5,), (3, 1), (3, 5)),
        ((0,), (), (0,)),
    ]:
        phi = made(torch.randn(*x_shape, 4), torch.randn(*context_shape, 2))
        assert phi.shape == (*batch, 4, 3)


def test_masked_weights_never_get_a_gradient() -> None:
    made = build_made("two layers", 4)
    made(torch.randn(6, 4)).square().sum().backward()
    for i, weight in enumerate(made.weights):
        assert weight.grad is not None
        assert (weight.grad[made.masks[i] == 0] == 0).all()


def test_activation_may_be_a_module_with_parameters() -> None:
    made = MADE(3, [8], 2, activation=nn.PReLU())
    assert any("activation" in name for name, _ in made.named_parameters())
    assert made(torch.randn(5, 3)).shape == (5, 3, 2)


def test_masks_are_not_in_the_state_dict_and_follow_a_loaded_order() -> None:
    source = MADE(5, [8], 2, order=[4, 2, 0, 1, 3])
    assert not any("mask" in name for name in source.state_dict())
    target = MADE(5, [8], 2, order="natural")
    target.load_state_dict(source.state_dict())
    x = torch.randn(6, 5)
    torch.testing.assert_close(target(x), source(x))
    assert not dependence(target, x).triu().any()


def test_masks_follow_an_order_loaded_into_a_flow_with_assign() -> None:
    source = MADE(5, [8], 2, order=[4, 2, 0, 1, 3])
    target = MADE(5, [8], 2, order="natural")
    target.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(6, 5)
    torch.testing.assert_close(target(x), source(x))


def test_masks_move_with_the_module() -> None:
    made = build_made("two layers", 4).double()
    assert {mask.dtype for mask in made.masks} == {torch.double}
    assert made.get_permutation().dtype == torch.long


# ------------------------------------------------------------------------------------------ sweeps


@pytest.mark.parametrize("context_dim", [0, 3])
@pytest.mark.parametrize("dim", [1, 2, 6])
@pytest.mark.parametrize("variant", CONDITIONERS)
def test_sweep_yields_what_the_full_pass_gives(
    variant: str, dim: int, context_dim: int, device: torch.device
) -> None:
    made = build(variant, dim, context_dim).double().to(device)
    x = torch.randn(7, dim).double().to(device)
    context = torch.randn(7, context_dim).double().to(device) if context_dim else None
    full = made(x) if context is None else made(x, context)
    torch.testing.assert_close(run_sweep(made, x, context), full, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("variant", CONDITIONERS)
def test_gradients_of_a_sweep_are_those_of_the_full_pass(variant: str) -> None:
    made = build(variant, 4, context_dim=2).double()
    inputs = [torch.randn(5, 4).double(), torch.randn(5, 2).double()]
    inputs = [t.requires_grad_() for t in inputs]
    cotangent = torch.randn(5, 4, 3).double()
    leaves = [*inputs, *made.parameters()]
    full = torch.autograd.grad(made(*inputs), leaves, cotangent)
    swept = torch.autograd.grad(run_sweep(made, *inputs), leaves, cotangent)
    torch.testing.assert_close(swept, full, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", CONDITIONERS)
def test_sweep_costs_at_most_one_pass(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The counter does not know the fused operation.
    monkeypatch.setattr(attention, "needs_plain_operations", lambda _: True)
    made = build(variant, 10, context_dim=2)
    x, context = torch.randn(6, 10), torch.randn(6, 2)
    counts = []
    for run in (lambda: made(x, context), lambda: run_sweep(made, x, context)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            run()
        counts.append(counter.get_total_flops())
    assert 0 < counts[1] <= counts[0]


def test_sweep_never_looks_at_dimensions_to_come() -> None:
    made = build("plain", 4)
    order = made.get_permutation().tolist()
    x = torch.randn(3, 4)
    full = made(x)
    steps = made.sweep(3)
    torch.testing.assert_close(next(steps), full[:, order[0]])
    for place in range(3):
        # What is sent is all it can know.
        phi = steps.send(x[:, order[place]])
        torch.testing.assert_close(phi, full[:, order[place + 1]])
    with pytest.raises(StopIteration):
        steps.send(x[:, order[3]])


# ----------------------------------------------------------------------------------------- adapter


@pytest.mark.parametrize("param_dims", [[2, 2, 2], [6], [1, 1], [1], [4, 1]])
def test_adapter_puts_pyros_parameters_last(param_dims: list[int]) -> None:
    arn = AutoRegressiveNN(4, [9], param_dims=param_dims)
    conditioner = as_conditioner(arn)
    assert isinstance(conditioner, PyroConditioner)
    assert conditioner.input_dim == 4 and conditioner.num_params == sum(param_dims)
    x = torch.randn(3, 5, 4)
    phi = conditioner(x)
    assert phi.shape == (3, 5, 4, sum(param_dims)) and phi.is_contiguous()
    out = arn(x)
    out = out if isinstance(out, tuple) else (out,)
    start = 0
    for width, rows in zip(param_dims, out, strict=True):
        block = phi[..., start : start + width]
        # Where every width is one, Pyro leaves the axis out.
        expected = rows.unsqueeze(-1) if rows.dim() == 3 else rows.transpose(-1, -2)
        assert torch.equal(block, expected)
        start += width


def test_adapter_shares_weights_and_keeps_the_order() -> None:
    arn = AutoRegressiveNN(4, [9], param_dims=[2], permutation=torch.tensor([2, 0, 3, 1]))
    conditioner = as_conditioner(arn)
    assert {id(p) for p in conditioner.parameters()} == {id(p) for p in arn.parameters()}
    assert conditioner.get_permutation().tolist() == [2, 0, 3, 1]
    assert not dependence(conditioner, torch.randn(5, 4)).triu().any()


@pytest.mark.parametrize("param_dims", [[3], [1], [1, 1], [2, 1]])
def test_adapter_broadcasts_x_with_the_context(param_dims: list[int]) -> None:
    conditioner = as_conditioner(ConditionalAutoRegressiveNN(4, 2, [9], param_dims=param_dims))
    x, context = torch.randn(5, 4), torch.randn(3, 1, 2)
    phi = conditioner(x, context)
    assert phi.shape == (3, 5, 4, sum(param_dims))
    for i in range(3):
        torch.testing.assert_close(phi[i], conditioner(x, context[i].expand(5, 2)))


def test_adapter_sweeps_by_full_passes() -> None:
    for context in (None, torch.randn(5, 2)):
        if context is None:
            conditioner = as_conditioner(AutoRegressiveNN(4, [9], param_dims=[3]))
            full = conditioner(x := torch.randn(5, 4))
        else:
            conditioner = as_conditioner(ConditionalAutoRegressiveNN(4, 2, [9], param_dims=[3]))
            full = conditioner(x := torch.randn(5, 4), context)
        torch.testing.assert_close(run_sweep(conditioner, x, context), full)


def test_anything_else_is_its_own_conditioner() -> None:
    made = build("plain", 3)
    assert as_conditioner(made) is made
    assert as_conditioner(len) is len


def test_repr_names_the_sizes() -> None:
    text = repr(MADE(3, [8, 9], 2, context_dim=1))
    for part in ("input_dim=3", "hidden_dims=[8, 9]", "num_params=2", "context_dim=1"):
        assert part in text


def test_copies_are_independent() -> None:
    made = build("plain", 3)
    other = fresh(made)
    roughen(other)
    x = torch.randn(4, 3)
    assert not torch.allclose(made(x), other(x))
    assert not dependence(other, x).triu().any()


# ------------------------------------------------------------------- everything lies in its order


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("context_dim", [0, 2])
def test_weights_of_version_0_1_0_in_the_dimensions_own_order_load(
    variant: str, context_dim: int
) -> None:
    made = build_made(variant, 4, context_dim=context_dim)
    roughen(made)
    state, order, places = made.state_dict(), made.permutation, made.places
    del state["places"]
    state["output_bias"] = state["output_bias"][places]
    last = f"weights.{len(made.weights) - 1}"
    state[last] = state[last].unflatten(0, (4, -1))[places].flatten(0, 1)
    columns = torch.cat([torch.arange(context_dim), context_dim + places])
    state["weights.0"] = state["weights.0"][:, columns]
    fresh = build_made(variant, 4, context_dim=context_dim)
    fresh.load_state_dict(state)
    x = torch.randn(5, 4)
    context = (torch.randn(5, context_dim),) if context_dim else ()
    assert torch.equal(fresh.permutation, order)
    torch.testing.assert_close(fresh(x, *context), made(x, *context))


def test_another_order_may_be_put_in_place_of_a_natural_one() -> None:
    natural, other = MADE(4, [9], 3, order="natural"), MADE(4, [9], 3, order=[2, 0, 3, 1])
    x = torch.randn(5, 4)
    got = torch.func.functional_call(natural, other.state_dict(), (x,))
    torch.testing.assert_close(got, other(x))
    natural.load_state_dict(other.state_dict())
    assert not natural.is_natural
    torch.testing.assert_close(natural(x), other(x))


def test_a_natural_order_is_known_after_copies_and_moves() -> None:
    made = MADE(4, [9], 3, order="natural")
    for same in (made.double(), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert same.is_natural
    assert not MADE(4, [9], 3, order="reversed").is_natural


def test_hooks_and_overriding_see_every_order() -> None:
    class Doubled(MADE):
        def forward(self, *args: torch.Tensor, **kwargs: bool) -> torch.Tensor:
            return 2 * super().forward(*args, **kwargs)

    for order in ("natural", "reversed"):
        made = MADE(3, [8], 2, order=order)
        doubled = Doubled(3, [8], 2, order=order)
        doubled.load_state_dict(made.state_dict())
        x, calls = torch.randn(5, 3), [0]
        made.register_forward_hook(lambda *_, calls=calls: calls.append(calls.pop() + 1))
        _, log_slope = AffineAutoregressiveFlow(made).value_and_log_slope(x)
        assert calls == [1]
        _, twice = AffineAutoregressiveFlow(doubled).value_and_log_slope(x)
        torch.testing.assert_close(twice, 2 * log_slope)


@pytest.mark.parametrize(
    "hidden_dims, options",
    [
        ([], {}),
        ([6], {"head_dim": 2}),
        ([6, 5], {"activation": torch.nn.functional.elu}),
        ([6, 6], {"residual": True, "context_dim": 2}),
    ],
)
def test_the_jacobian_of_weighted_sums_is_that_of_autograd(
    hidden_dims: list[int], options: dict[str, Any]
) -> None:
    made = MADE(4, hidden_dims, num_params=3, **options).double()
    for weight in made.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    x, by_phi = torch.randn(2, 4).double(), torch.randn(2, 4, 3).double()
    context = [torch.randn(2, 2).double()] if made.context_dim else []
    found = made.jacobian(x, by_phi, *context)
    for row in range(2):

        def sums(z: Tensor, row: int = row) -> Tensor:
            phi = made(z, *(c[row] for c in context), in_order=True)
            return (phi * by_phi[row]).sum(-1)

        expected = torch.autograd.functional.jacobian(sums, x[row])
        torch.testing.assert_close(found[row], expected)
    assert not found.triu().any()


@pytest.mark.parametrize("options", [{}, {"inverse": True}, {"context_dim": 2}])
def test_products_with_a_structured_jacobian_are_those_of_autograd(
    options: dict[str, Any],
) -> None:
    adjacency = torch.eye(6)
    for i, j in ((0, 1), (0, 2), (1, 3), (1, 4), (2, 5)):
        adjacency[i, j] = adjacency[j, i] = 1
    structure = Structure.from_adjacency(adjacency)
    graph = GraphConditioner(structure, num_params=3, **options).double()
    for weight in graph.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    x, v = torch.randn(4, 6).double().requires_grad_(), torch.randn(4, 6).double()
    by_phi = torch.randn(4, 6, 3).double()
    context = [torch.randn(4, 2).double()] if graph.context_dim else []
    assert graph.has_products
    found = graph.products(x, by_phi, *context)(v)
    phi = graph(x, *context, in_order=True)
    (expected,) = torch.autograd.grad(phi, x, by_phi * v.unsqueeze(-1))
    torch.testing.assert_close(found, expected)
