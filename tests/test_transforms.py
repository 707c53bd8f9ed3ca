"""Every flow against autograd, quadrature and itself backwards."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from registry import (
    CONTEXT_DIM,
    FLOWS,
    NEEDS_TWO_DIMENSIONS,
    fresh,
    make_flow,
    roughen,
    three_sharp_modes,
    train_as_density,
)
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils.flop_counter import FlopCounterMode

from pyro_naf.conditioners import MADE
from pyro_naf.transformers import Affine
from pyro_naf.transforms import (
    AffineAutoregressiveFlow,
    AutoregressiveFlow,
    DeepDenseSigmoidalFlow,
    DeepSigmoidalFlow,
    affine_autoregressive_flow,
    conditional_deep_sigmoidal_flow,
    deep_dense_sigmoidal_flow,
    deep_sigmoidal_flow,
)

MAIN = ["affine", "gated", "dsf", "ddsf-2"]
CONDITIONAL = [name for name in FLOWS if "conditional" in name]


def dims_of(name: str) -> list[int]:
    return [2, 5, 43] if name in NEEDS_TWO_DIMENSIONS else [1, 2, 5, 43]


def jacobian(flow: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """dy/dx ``(N, D, D)`` of every sample of x ``(N, D)``, a row at a time, by autograd."""
    x = x.detach().clone().requires_grad_()
    y = flow(x)
    rows = [torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0] for i in range(x.shape[-1])]
    return torch.stack(rows, -2)


class Inverse(nn.Module):
    """The inverse as the call of a module, for ``functional_call``."""

    def __init__(self, flow: AutoregressiveFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, y: Tensor) -> Tensor:
        return self.flow.inv(y)


def residual(flow: AutoregressiveFlow, y: Tensor) -> float:
    """The largest |f(f^-1(y)) - y| relative to max(1, |y|), by a flow without a cache."""
    with torch.no_grad():
        x = fresh(flow).inv(y)
        return float(((fresh(flow)(x) - y).abs() / y.abs().clamp(min=1)).max())


# -------------------------------------------------------------------------------------- Jacobians


@pytest.mark.parametrize("name, dim", [(name, dim) for name in FLOWS for dim in dims_of(name)])
def test_log_determinant_is_that_of_the_autograd_jacobian(
    name: str, dim: int, device: torch.device
) -> None:
    flow = make_flow(name, dim, context=torch.randn(4, CONTEXT_DIM)).double().to(device)
    if flow.context is not None:
        flow.context = flow.context.double().to(device)
    x = torch.randn(4, dim).double().to(device)
    j = jacobian(flow, x)
    # The sum over the diagonal: slogdet itself is inaccurate for ill-conditioned triangles.
    exact = j.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    torch.testing.assert_close(flow.log_abs_det_jacobian(x, flow(x)), exact, rtol=0, atol=1e-10)
    if dim <= 5:
        torch.testing.assert_close(torch.linalg.slogdet(j)[1], exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name, dim", [(name, dim) for name in FLOWS for dim in dims_of(name)])
def test_jacobian_has_exact_zeros_above_the_diagonal_in_the_flows_order(
    name: str, dim: int
) -> None:
    flow = make_flow(name, dim)
    j = jacobian(flow, torch.randn(3, dim))
    order = flow.arn.get_permutation()
    assert sorted(order.tolist()) == list(range(dim))
    j = j[:, order][:, :, order]
    assert (j.triu(1) == 0).all()
    assert (j.diagonal(dim1=-2, dim2=-1) > 0).all()
    if dim > 1:  # the first dimension does matter to the last
        assert (j[:, -1, 0] != 0).any()


@pytest.mark.parametrize("name", MAIN)
def test_vmap_of_jacrev_gives_the_same_jacobian(name: str) -> None:
    flow = make_flow(name, 3)
    x = torch.randn(4, 3)
    torch.testing.assert_close(vmap(jacrev(flow))(x), jacobian(flow, x))
    # Nothing of the functorch world may stay behind in the cache.
    torch.testing.assert_close(flow(x), fresh(flow)(x))
    with torch.no_grad():
        torch.testing.assert_close(flow(flow.inv(x)), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FLOWS)
def test_float32_is_finite_to_a_million(name: str, device: torch.device) -> None:
    flow = make_flow(name, 5, rough=False).to(device)
    if flow.context is not None:
        flow.context = flow.context.to(device)
    x = torch.randn(64, 5).sign() * torch.logspace(-3, 6, 64).unsqueeze(-1)
    x = x.to(device).requires_grad_()
    y = flow(x)
    log_det = flow.log_abs_det_jacobian(x, y)
    assert torch.isfinite(y).all() and torch.isfinite(log_det).all()
    grads = torch.autograd.grad(y.sum() + log_det.sum(), [x, *flow.parameters()], allow_unused=True)
    assert all(g is None or bool(torch.isfinite(g).all()) for g in grads)


# --------------------------------------------------------------------------------------- inverses


@pytest.mark.parametrize("name", FLOWS)
def test_inverse_gives_back_x_in_every_flow(name: str, device: torch.device) -> None:
    flow = make_flow(name, 5, context=torch.randn(2, 1, CONTEXT_DIM)).double().to(device)
    if flow.context is not None:
        flow.context = flow.context.double().to(device)
    y = torch.randn(2, 7, 5).double().to(device)
    x = flow.inv(y)
    assert x.shape == (2, 7, 5)
    torch.testing.assert_close(fresh(flow)(x), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 6, 43])
@pytest.mark.parametrize("name", MAIN)
def test_inverse_residual_at_the_start_is_at_rounding_level(
    name: str, dim: int, device: torch.device
) -> None:
    flow = make_flow(name, dim, rough=False)
    for scale in (1, 10):
        y = scale * torch.randn(300, dim)
        assert residual(flow.float().to(device), y.to(device)) <= 2e-5
        assert residual(flow.double().to(device), y.double().to(device)) <= 1e-12


@pytest.mark.parametrize("dim", [1, 2, 6, 43])
@pytest.mark.parametrize("name", ["affine", "dsf", "ddsf-2"])
def test_inverse_residual_after_training_on_sharp_modes_is_at_rounding_level(
    name: str, dim: int, device: torch.device
) -> None:
    flow = FLOWS[name](dim).to(device)
    losses = train_as_density(flow)
    if name != "affine" or dim > 1:  # it has learnt something sharp
        assert sum(losses[-10:]) < sum(losses[:10]) - 5
    for scale in (1, 10):
        y = scale * torch.randn(300, dim)
        assert residual(flow.float(), y.to(device)) <= 2e-5
        assert residual(flow.double(), y.double().to(device)) <= 1e-12


def test_inverse_of_a_trained_flow_gives_back_the_data() -> None:
    flow = FLOWS["dsf"](6)
    train_as_density(flow)
    x = three_sharp_modes(500, 6)
    with torch.no_grad():
        torch.testing.assert_close(fresh(flow).inv(flow(x)), x, rtol=1e-4, atol=1e-4)


def flops(run: Callable[[], Any]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden_dims": [20]},
        {"residual": True},
        {"head_dim": 3},
        {"order": "reversed"},
    ],
)
def test_inverse_costs_the_conditioner_one_pass(options: dict[str, Any]) -> None:
    dim = 12
    arguments: dict[str, Any] = {"hidden_dims": [24, 24], "num_params": 9} | options
    made = MADE(dim, **arguments)
    flow = DeepSigmoidalFlow(made, hidden_units=3)
    y = torch.randn(16, dim)
    assert 0 < flops(lambda: flow.inv(y)) <= flops(lambda: flow(y))


def test_inverse_through_a_conditioner_without_sweep_takes_d_passes() -> None:
    flow = make_flow("dsf-pyro", 5)
    x = torch.randn(16, 5)
    assert flops(lambda: flow.inv(x)) == 5 * flops(lambda: flow(x))


def test_empty_batches_and_missing_batch_dimensions_work() -> None:
    for name in MAIN:
        flow = make_flow(name, 3)
        for shape in [(3,), (0, 3), (2, 0, 3), (2, 4, 3), (1, 3)]:
            x = torch.randn(shape)
            y = flow(x)
            assert y.shape == shape and flow.log_abs_det_jacobian(x, y).shape == shape[:-1]
            assert flow.inv(torch.randn(shape)).shape == shape


# -------------------------------------------------------------------------------------- gradients

GRADCHECKED = [
    "affine",
    "gated",
    "dsf",
    "ddsf-2",
    "dsf-head",
    "dsf-residual",
    "dsf-pyro",
]
GRADCHECKED += ["dsf-conditional", "ddsf-2-conditional"]


class Both(nn.Module):
    """Value, log-determinant and inverse of a flow as functions of x, context and parameters."""

    def __init__(self, flow: AutoregressiveFlow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, which: str, x: Tensor, context: Tensor | None) -> Any:
        # A copy of x: gradcheck changes its inputs behind autograd's back.
        flow = AutoregressiveFlow(self.flow.arn, self.flow.transformer, context=context)
        x = x.clone()
        if which == "inverse":
            return flow.inv(x)
        y = flow(x)
        return y, flow.log_abs_det_jacobian(x, y)


@pytest.mark.parametrize("which", ["value and log-determinant", "inverse"])
@pytest.mark.parametrize("name", GRADCHECKED)
def test_gradcheck_for_input_context_and_every_parameter(name: str, which: str) -> None:
    flow = make_flow(name, 3, context=torch.randn(2, CONTEXT_DIM)).double()
    context = None if flow.context is None else flow.context.double().requires_grad_()
    module = Both(flow)
    named = dict(module.named_parameters())
    x = torch.randn(2, 3).double().requires_grad_()

    def run(x: Tensor, context: Tensor | None, *parameters: Tensor) -> Any:
        state = {k: p.clone() for k, p in zip(named, parameters, strict=True)}
        return functional_call(module, state, (which, x, context))

    inputs: Any = (x, context, *named.values())
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    # fast_mode looks in one random direction; every single entry, for the input and the context.
    rest = [p.detach() for p in named.values()]
    inputs = (x, context)
    assert torch.autograd.gradcheck(lambda x, c: run(x, c, *rest), inputs)


def test_gradcheck_of_a_flow_as_a_user_would_write_it() -> None:
    flow = make_flow("dsf", 2).double()
    x = torch.randn(2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(flow, x)
    assert torch.autograd.gradcheck(flow.inv, x)


@pytest.mark.parametrize("name", ["dsf", "ddsf-2"])
def test_second_derivatives_of_the_forward_pass_are_right(name: str) -> None:
    flow = make_flow(name, 2).double()
    x = torch.randn(2, 2).double().requires_grad_()

    def log_prob(x: Tensor) -> Tensor:
        x = x.clone()
        y = flow(x)
        return flow.log_abs_det_jacobian(x, y) - y.square().sum(-1)

    assert torch.autograd.gradgradcheck(log_prob, x)


@pytest.mark.parametrize("name", ["affine", "dsf", "ddsf-2", "dsf-affine"])
def test_second_derivatives_of_the_inverse_are_right(name: str) -> None:
    flow = make_flow(name, 2).double()
    y = torch.randn(2, 2).double().requires_grad_()
    own = {f"flow.{n}": p for n, p in flow.named_parameters() if "transformer" in n}

    def inverse(y: Tensor, *tensors: Tensor) -> Tensor:
        return functional_call(Inverse(flow), dict(zip(own, tensors, strict=True)), (y,))

    assert torch.autograd.gradgradcheck(inverse, (y, *own.values()), fast_mode=True)


@pytest.mark.parametrize("frozen", ["arn", "transformer"])
def test_frozen_half_leaves_the_gradient_of_the_other_half_alone(frozen: str) -> None:
    flow = make_flow("ddsf-2", 2).double()
    y = torch.randn(5, 2).double()
    flow.inv(y).square().sum().backward()
    trained = flow.transformer if frozen == "arn" else flow.arn
    expected = [p.grad.clone() for p in trained.parameters() if p.grad is not None]
    other = fresh(flow)
    other.zero_grad()
    getattr(other, frozen).requires_grad_(False)
    other.inv(y).square().sum().backward()
    trained = other.transformer if frozen == "arn" else other.arn
    got = [p.grad for p in trained.parameters() if p.grad is not None]
    assert len(got) == len(expected) > 0
    torch.testing.assert_close(got, expected)


# ------------------------------------------------------------------------------ start, stacks, mass


STARTS: dict[str, Callable[[int], AutoregressiveFlow]] = {
    "dsf": deep_sigmoidal_flow,
    "ddsf-2": deep_dense_sigmoidal_flow,
    "affine": affine_autoregressive_flow,
    "ddsf-4": lambda d: deep_dense_sigmoidal_flow(d, num_layers=4),
    "dsf-residual": lambda d: deep_sigmoidal_flow(d, [64, 64], residual=True),
    "dsf-head": lambda d: deep_sigmoidal_flow(d, head_dim=8),
}


@pytest.mark.parametrize(
    "name, dim",
    [(name, dim) for name in STARTS for dim in (1, 5, 43) if (name, dim) != ("ddsf-4", 43)],
)
def test_stack_of_ten_starts_with_unit_standard_deviation(name: str, dim: int) -> None:
    x = torch.randn(2000, dim)
    x = (x - x.mean(0)) / x.std(0)
    with torch.no_grad():
        for _ in range(10):
            x = STARTS[name](dim)(x)
    assert (x.std(0) - 1).abs().max() <= 0.1


def normal(dim: int) -> dist.Distribution:
    return dist.Normal(torch.zeros(dim).double(), 1.0).to_event(1)


@pytest.mark.parametrize("direction", ["forward", "inverse"])
@pytest.mark.parametrize("name", ["affine", "dsf", "ddsf-2"])
@pytest.mark.parametrize("dim", [1, 2])
def test_density_integrates_to_one(dim: int, name: str, direction: str) -> None:
    flow = make_flow(name, dim).double()
    density = dist.TransformedDistribution(
        normal(dim), [flow if direction == "forward" else flow.inv]
    )
    # The trapezoidal rule for x = sinh(t), |x| < 1490: dense near zero, and fast to converge.
    t = torch.linspace(-8, 8, 501 if dim == 2 else 4001, dtype=torch.double)
    weight = t.cosh() * (t[1] - t[0])
    grid = torch.cartesian_prod(*[t.sinh()] * dim).view(-1, dim)
    with torch.no_grad():
        mass = density.log_prob(grid).exp().view([len(t)] * dim)
    for _ in range(dim):
        mass = mass @ weight
    assert mass.item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", MAIN)
def test_log_prob_of_a_sample_is_that_of_the_density_there(name: str) -> None:
    # The two directions agree with the change of variables written out by hand.
    flow = make_flow(name, 3).double()
    eps = torch.randn(50, 3).double()
    with torch.no_grad():
        y = flow(eps)
        by_hand = normal(3).log_prob(eps) - flow.log_abs_det_jacobian(eps, y)
        guide = dist.TransformedDistribution(normal(3), [fresh(flow)])
        torch.testing.assert_close(guide.log_prob(y), by_hand)
        by_hand = normal(3).log_prob(y) + flow.log_abs_det_jacobian(eps, y)
        density = dist.TransformedDistribution(normal(3), [fresh(flow).inv])
        torch.testing.assert_close(density.log_prob(eps), by_hand)


# ------------------------------------------------------------------------------- conditional flows


@pytest.mark.parametrize("name", CONDITIONAL)
def test_context_matters_and_broadcasts(name: str) -> None:
    flow = FLOWS[name](4)
    roughen(flow)
    x, context = torch.randn(6, 4), torch.randn(5, 1, CONTEXT_DIM)
    y = flow.condition(context)(x)
    assert y.shape == (5, 6, 4)
    for i in range(5):
        torch.testing.assert_close(flow.condition(context[i, 0])(x), y[i])
    assert not torch.allclose(y[0], y[1])
    x_back = flow.condition(context).inv(y)
    torch.testing.assert_close(x_back, x.expand(5, 6, 4), rtol=1e-3, atol=1e-3)
    log_det = flow.condition(context).log_abs_det_jacobian(x, y)
    assert log_det.shape == (5, 6)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_inverse_broadcasts_y_with_the_context(name: str) -> None:
    flow = FLOWS[name](3)
    roughen(flow)
    conditioned = flow.double().condition(torch.randn(5, 1, CONTEXT_DIM).double())
    y = torch.randn(6, 3).double()
    x = conditioned.inv(y)
    assert x.shape == (5, 6, 3)
    torch.testing.assert_close(fresh(conditioned)(x), y.expand(5, 6, 3))
    log_det = conditioned.inv.log_abs_det_jacobian(y, x)
    torch.testing.assert_close(log_det, -fresh(conditioned).log_abs_det_jacobian(x, y))


@pytest.mark.parametrize("name", CONDITIONAL)
def test_condition_shares_parameters(name: str) -> None:
    flow = FLOWS[name](3)
    conditioned = flow.condition(torch.randn(CONTEXT_DIM))
    assert {id(p) for p in conditioned.parameters()} == {id(p) for p in flow.parameters()}
    assert flow.inv.condition(torch.randn(CONTEXT_DIM)).inv.arn is flow.arn
    conditioned(torch.randn(4, 3)).sum().backward()
    assert any(p.grad is not None for p in flow.parameters())


def test_gradient_reaches_the_context() -> None:
    flow = conditional_deep_sigmoidal_flow(3, 2, [8], 4)
    roughen(flow)
    context = torch.randn(5, 2, requires_grad=True)
    for output in (
        flow.condition(context)(torch.randn(5, 3)),
        flow.condition(context).inv(torch.randn(5, 3)),
    ):
        (grad,) = torch.autograd.grad(output.sum(), context)
        assert (grad != 0).any(1).all()


def test_first_dimension_depends_on_the_context_alone() -> None:
    flow = make_flow("dsf-conditional", 4)
    first = int(flow.arn.get_permutation()[0])
    x, other = torch.randn(4), torch.randn(4)
    other[first] = x[first]
    assert torch.equal(flow(x)[first], flow(other)[first])
    moved = AutoregressiveFlow(flow.arn, flow.transformer, context=torch.randn(CONTEXT_DIM))
    assert not torch.equal(flow(x)[first], moved(x)[first])


# --------------------------------------------------------------------------- properties and classes


@pytest.mark.parametrize("name", FLOWS)
def test_properties_are_those_of_pyros_own_autoregressive_transforms(name: str) -> None:
    flow = make_flow(name, 3)
    assert flow.autoregressive is True and flow.bijective is True and flow.sign == 1
    assert flow.domain is dist.constraints.real_vector
    assert flow.codomain is dist.constraints.real_vector
    assert sorted(flow.arn.get_permutation().tolist()) == [0, 1, 2]
    assert flow.input_dim == 3
    assert flow.inv.inv is flow
    assert flow.forward_shape((7, 3)) == flow.inverse_shape((7, 3)) == (7, 3)
    assert len({flow, flow}) == 1
    assert flow.with_cache(0) is flow


@pytest.mark.parametrize("name", FLOWS)
def test_everything_stays_in_its_dtype(name: str) -> None:
    for dtype in (torch.float, torch.double):
        flow = make_flow(name, 3).to(dtype)
        if flow.context is not None:
            flow.context = flow.context.to(dtype)
        x = torch.randn(4, 3, dtype=dtype)
        y = flow(x)
        assert y.dtype == flow.log_abs_det_jacobian(x, y).dtype == dtype
        assert flow.inv(torch.randn(4, 3, dtype=dtype)).dtype == dtype


def test_default_dtype_of_torch_is_that_of_new_flows() -> None:
    torch.set_default_dtype(torch.double)
    flow = deep_dense_sigmoidal_flow(3, [8], 4)
    assert {p.dtype for p in flow.parameters()} == {torch.double}
    assert flow(torch.randn(2, 3)).dtype == torch.double


def test_classes_and_factories_make_the_same_flows() -> None:
    for factory, cls in [
        (lambda: affine_autoregressive_flow(3, [8], order="natural"), AffineAutoregressiveFlow),
        (lambda: deep_sigmoidal_flow(3, [8], 4, order="natural"), DeepSigmoidalFlow),
        (lambda: deep_dense_sigmoidal_flow(3, [8], 4, 3, order="natural"), DeepDenseSigmoidalFlow),
    ]:
        made = factory()
        assert type(made) is cls
        made_by_hand = AutoregressiveFlow(made.arn, made.transformer)
        x = torch.randn(4, 3)
        torch.testing.assert_close(made_by_hand(x), made(x))


def test_any_callable_with_input_dim_and_order_is_a_conditioner() -> None:
    class Shift(nn.Module):
        """y_0 = x_0, y_1 = x_1 + x_0^2: written by a user, without a sweep."""

        input_dim = 2

        def get_permutation(self) -> Tensor:
            return torch.arange(2)

        def forward(self, x: Tensor) -> Tensor:
            zero = torch.zeros_like(x)
            shift = torch.stack([zero[..., 0], x[..., 0] ** 2], -1)
            return torch.stack([shift, zero], -1)

    flow = AutoregressiveFlow(Shift(), Affine())
    assert flow(torch.tensor([2.0, 1.0])).tolist() == [2.0, 5.0]
    assert flow.inv(torch.tensor([2.0, 5.0])).tolist() == [2.0, 1.0]


@pytest.mark.parametrize("gated", [False, True])
def test_affine_flow_is_eq_15_of_the_slides(gated: bool) -> None:
    flow = affine_autoregressive_flow(3, [8], gated=gated)
    roughen(flow)
    x = torch.randn(5, 3)
    m, s = flow.arn(x).unbind(-1)
    gate = torch.sigmoid(s + 2)
    torch.testing.assert_close(flow(x), gate * x + (1 - gate) * m if gated else m + x * s.exp())


def test_five_hundred_dimensions_stay_below_five_million_parameters() -> None:
    flow = deep_sigmoidal_flow(500, head_dim=8)
    assert sum(p.numel() for p in flow.parameters()) < 5_000_000
    x = torch.randn(2, 500)
    with torch.no_grad():
        y = flow(x)
        assert y.shape == (2, 500)
        torch.testing.assert_close(fresh(flow).inv(y), x, rtol=1e-4, atol=1e-4)


def test_width_of_the_default_hidden_layer_grows_with_the_dimension() -> None:
    for dim, width in [(1, 32), (6, 32), (43, 130), (500, 512)]:
        assert affine_autoregressive_flow(dim).arn.hidden_dims == (width,)


# ----------------------------------------------------------------------------------------- torch


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of torch
def test_compiled_flow_agrees_with_the_eager_one() -> None:
    flow = deep_sigmoidal_flow(3, [8], 4)
    x = torch.randn(6, 3)

    def log_prob(x: Tensor) -> Tensor:
        y = flow(x)
        return flow.log_abs_det_jacobian(x, y) - y.square().sum(-1)

    # What is traced, and not the machine code that inductor makes of it.
    compiled = torch.compile(log_prob, fullgraph=False, backend="aot_eager")
    expected = log_prob(x)
    got = compiled(x)
    torch.testing.assert_close(got, expected)
    names, parameters = zip(*flow.named_parameters(), strict=True)
    for name, a, b in zip(
        names,
        torch.autograd.grad(got.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, msg=name)
    # What the compiler saw is not taken for a remembered value afterwards.
    torch.testing.assert_close(log_prob(x), expected)
    other = torch.randn(6, 3)
    torch.testing.assert_close(compiled(other), log_prob(other))


def test_no_global_generator_is_touched_by_a_call() -> None:
    flow = make_flow("dsf", 3)
    y = torch.randn(4, 3)
    before = torch.get_rng_state()
    y = flow(y)
    flow.inv(y.clone())
    flow.log_abs_det_jacobian(y, y)
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_fixes_order_and_parameters() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(7)
        states.append(deep_dense_sigmoidal_flow(5).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_state_dict_brings_order_and_masks_along() -> None:
    source = deep_sigmoidal_flow(5, [16], 4, order=[4, 2, 0, 1, 3])
    roughen(source)
    target = deep_sigmoidal_flow(5, [16], 4, order="natural")
    x = torch.randn(6, 5)
    before = target(x)
    target.load_state_dict(source.state_dict())
    assert not torch.allclose(target(x), before)
    torch.testing.assert_close(target(x), source(x))
    torch.testing.assert_close(fresh(target).inv(x), fresh(source).inv(x))
    order = torch.tensor([4, 2, 0, 1, 3])
    assert target.arn.get_permutation().tolist() == order.tolist()
    assert (jacobian(target, x)[:, order][:, :, order].triu(1) == 0).all()


def test_math_of_the_docstring_examples_needs_no_network() -> None:
    # A flow of zero pseudo-parameters is nearly the identity: so is its density nearly normal.
    flow = deep_sigmoidal_flow(2, [])
    with torch.no_grad():
        for p in flow.arn.parameters():
            p.zero_()
    density = dist.TransformedDistribution(dist.Normal(0, 1).expand([2]).to_event(1), [flow.inv])
    at_zero = density.log_prob(torch.zeros(2)).item()
    assert at_zero == pytest.approx(-math.log(2 * math.pi), abs=1e-3)


def test_copies_do_not_share_parameters() -> None:
    flow = make_flow("ddsf-2", 3)
    other = copy.deepcopy(flow)
    roughen(other)
    x = torch.randn(4, 3)
    assert not torch.allclose(flow(x), other(x))
