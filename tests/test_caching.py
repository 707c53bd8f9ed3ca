"""What a flow remembers is true, and a fresh sample's log_prob does not invert."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from typing import Any
from unittest import mock

import pyro.distributions as dist
import pytest
import torch
from pyro.optim.adagrad_rmsprop import AdagradRMSProp
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.dct_adam import DCTAdam
from registry import fresh, make_flow, roughen
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.checkpoint import checkpoint

from pyro_naf.transforms import (
    AutoregressiveFlow,
    conditional_deep_sigmoidal_flow,
    deep_sigmoidal_flow,
)


@pytest.fixture(params=["affine", "dsf", "ddsf-2"])
def flow(request: pytest.FixtureRequest) -> AutoregressiveFlow:
    return make_flow(request.param, 3).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 3).double()


def count(flow: AutoregressiveFlow, method: str) -> Any:
    """Count the calls of a method of this flow."""
    return mock.patch.object(flow, method, wraps=getattr(flow, method))


def normal(dim: int = 3) -> dist.Distribution:
    return dist.Normal(torch.zeros(dim).double(), 1.0).to_event(1)


def log_det(flow: AutoregressiveFlow, x: Tensor) -> Tensor:
    """By a copy that has never been called."""
    return fresh(flow).log_abs_det_jacobian(x, x)


def is_true(flow: AutoregressiveFlow, x: Tensor, y: Tensor) -> None:
    """All answers about the objects x and y are those of a copy that has never been called."""
    torch.testing.assert_close(flow.log_abs_det_jacobian(x, y), log_det(flow, x))
    torch.testing.assert_close(flow.inv(y), fresh(flow).inv(y), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(flow(x), fresh(flow)(x))


# ------------------------------------------------------------------------------- what is remembered


@pytest.mark.parametrize("mode", ["in a graph", "no_grad", "inference_mode"])
def test_value_log_determinant_and_preimage_cost_one_pass(
    flow: AutoregressiveFlow, x: Tensor, mode: str
) -> None:
    modes = {"in a graph": torch.enable_grad, "no_grad": torch.no_grad}
    with modes.get(mode, torch.inference_mode)():
        with count(flow, "in_parts") as passes, count(flow, "_inverse") as inversions:
            y = flow(x)
            flow.log_abs_det_jacobian(x, y)
            assert flow.inv(y) is x
            assert flow(x) is y  # as a composition asks again behind the inverse
        assert passes.call_count == 1 and inversions.call_count == 0


@pytest.mark.parametrize("nested", [False, True])
def test_log_prob_of_a_fresh_sample_behind_a_cached_affine_is_one_pass(
    flow: AutoregressiveFlow, nested: bool
) -> None:
    loc, scale = torch.randn(3).double().requires_grad_(), torch.rand(3).double() + 0.5
    affine = dist.transforms.AffineTransform(loc, scale, event_dim=1, cache_size=1)
    parts = [dist.transforms.ComposeTransform([flow, affine])] if nested else [flow, affine]
    guide = dist.TransformedDistribution(normal(), parts)
    with count(flow, "in_parts") as passes, count(flow, "_inverse") as inversions:
        for _ in range(3):
            guide.log_prob(guide.rsample((4,))).sum().backward()
    assert passes.call_count == 3 and inversions.call_count == 0


def test_a_sample_drawn_twice_in_training_mode_drops_other_units(x: Tensor) -> None:
    noisy = deep_sigmoidal_flow(3, [16], activation=torch.nn.Dropout(0.5)).double()
    roughen(noisy)
    assert not torch.equal(noisy(x), noisy(x))


# ----------------------------------------------------------------------------- what must be noticed


def step_of(make: Callable[[Any], torch.optim.Optimizer]) -> Callable[[AutoregressiveFlow], None]:
    def step(flow: AutoregressiveFlow) -> None:
        for p in flow.parameters():
            p.grad = torch.randn_like(p)
        make(list(flow.parameters())).step()

    return step


@torch.no_grad()
def multiply(flow: AutoregressiveFlow) -> None:
    torch._foreach_mul_(list(flow.parameters()), 1.5)


def scaled(flow: AutoregressiveFlow) -> dict[str, Tensor]:
    state = flow.state_dict().items()
    return {name: 1.5 * v if v.is_floating_point() else v.clone() for name, v in state}


def replace(flow: AutoregressiveFlow) -> None:
    flow.arn = copy.deepcopy(flow.arn)
    roughen(flow.arn)


CHANGES: dict[str, Callable[[AutoregressiveFlow], Any]] = {
    "SGD": step_of(lambda p: torch.optim.SGD(p, lr=0.1)),
    "fused SGD": step_of(lambda p: torch.optim.SGD(p, lr=0.1, fused=True)),
    "fused Adam": step_of(lambda p: torch.optim.Adam(p, lr=0.1, fused=True)),
    "ClippedAdam": step_of(lambda p: ClippedAdam(p, lr=0.1)),
    "DCTAdam": step_of(lambda p: DCTAdam(p, lr=0.1)),
    "AdagradRMSProp": step_of(lambda p: AdagradRMSProp(p, eta=0.1)),
    "vector_to_parameters": lambda flow: vector_to_parameters(
        1.5 * parameters_to_vector(flow.parameters()), flow.parameters()
    ),
    "data in place": lambda flow: [p.data.mul_(1.5) for p in flow.parameters()],
    "one number of data": lambda flow: flow.arn.output_bias.data[0, 0].add_(0.5),
    "data assigned": lambda flow: [setattr(p, "data", 1.5 * p.data) for p in flow.parameters()],
    "in place": multiply,
    "load_state_dict": lambda flow: flow.load_state_dict(scaled(flow)),
    "load_state_dict, assigned": lambda flow: flow.load_state_dict(scaled(flow), assign=True),
    "rounding": lambda flow: flow.half().double(),
    "another conditioner": replace,
}


@pytest.mark.parametrize("mode", ["in a graph", "no_grad", "frozen"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_parameters_is_noticed(change: str, mode: str, x: Tensor) -> None:
    flow = make_flow("dsf", 3).double()
    flow.requires_grad_(mode != "frozen")
    with torch.set_grad_enabled(mode != "no_grad"):
        y = flow(x)
        flow.log_abs_det_jacobian(x, y)
    before = log_det(flow, x)
    CHANGES[change](flow)
    assert not torch.equal(log_det(flow, x), before)
    with torch.set_grad_enabled(mode != "no_grad"):
        is_true(flow, x, y)


def test_a_change_of_x_y_or_context_is_noticed(flow: AutoregressiveFlow, x: Tensor) -> None:
    with torch.no_grad():
        for change in (lambda t: t.mul_(2), lambda t: t.data.add_(1), lambda t: t.numpy().sort(0)):
            y = flow(x)
            change(x)
            is_true(flow, x, y)
            y = flow(x)
            change(y)
            is_true(flow, x, y)
    conditioned = make_flow("dsf-conditional", 3, context=torch.randn(3)).double()
    conditioned.context = conditioned.context.double()
    for change in (lambda t: t.mul_(3), lambda t: t.numpy().fill(2.0)):
        y = conditioned(x)
        change(conditioned.context)
        is_true(conditioned, x, y)
    y = conditioned(x)
    conditioned.context = torch.zeros(3).double()
    is_true(conditioned, x, y)


def test_answers_are_for_the_arguments_and_not_for_the_last_call(
    flow: AutoregressiveFlow, x: Tensor
) -> None:
    y, other = flow(x), torch.randn(5, 3).double()
    torch.testing.assert_close(flow.log_abs_det_jacobian(other, y), log_det(flow, other))
    torch.testing.assert_close(flow.log_abs_det_jacobian(x, other), log_det(flow, x))
    torch.testing.assert_close(flow.inv(other), fresh(flow).inv(other))
    flow(other)
    is_true(flow, x, y)


@pytest.mark.parametrize("shift", [1e-4, 1e-6, 1e-9])
def test_a_shifted_sample_is_inverted_where_it_lies(shift: float) -> None:
    # On a plateau a shift that looks like rounding moves the preimage far.
    flow = deep_sigmoidal_flow(1, [16]).double()
    with torch.no_grad():
        flow.arn.output_bias[0, :16] = -7.0
    y = flow(torch.randn(5, 1).double())
    moved = flow.inv(y + shift)
    torch.testing.assert_close(moved, fresh(flow).inv((y + shift).detach()), rtol=0, atol=1e-9)


def test_gradients_are_those_of_the_expression_that_was_inverted(
    flow: AutoregressiveFlow, x: Tensor
) -> None:
    x = x.requires_grad_()
    y = flow(x)
    for equal in (y + (y - y.detach()), 2 * y - y.detach(), y * 1):
        (got,) = torch.autograd.grad(flow.inv(equal).sum(), x, retain_graph=True)
        at = equal.detach().requires_grad_()
        (cotangent,) = torch.autograd.grad(fresh(flow).inv(at).sum(), at)
        (expected,) = torch.autograd.grad(equal, x, cotangent, retain_graph=True)
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_score_of_a_detached_sample_is_that_of_a_fresh_guide(flow: AutoregressiveFlow) -> None:
    guide = dist.TransformedDistribution(normal(), [flow])
    z = guide.rsample((4,)).detach()
    again = fresh(flow)
    other = dist.TransformedDistribution(normal(), [again])
    guide.log_prob(z).sum().backward()
    other.log_prob(z).sum().backward()
    for p, expected in zip(flow.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p.grad, expected.grad)


def test_gradients_appear_with_what_asks_for_them(flow: AutoregressiveFlow, x: Tensor) -> None:
    with torch.no_grad():
        y = flow(x)
    assert flow.inv(y).requires_grad and flow.log_abs_det_jacobian(x, y).requires_grad
    y = flow(x)
    with torch.no_grad():
        assert not flow.inv(y).requires_grad and not flow.log_abs_det_jacobian(x, y).requires_grad
    flow.requires_grad_(False)
    y = flow(x)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(flow.log_abs_det_jacobian(x, y).sum(), x, allow_unused=True)
    assert slope is not None
    y = flow(x.detach())
    flow.requires_grad_(True)
    assert flow.inv(y).requires_grad


def test_a_backward_pass_frees_what_is_remembered(flow: AutoregressiveFlow, x: Tensor) -> None:
    y = flow(x)
    y.sum().backward()
    flow.log_abs_det_jacobian(x, y).sum().backward()
    for _ in range(2):
        flow.inv(x).sum().backward()


def test_low_precision_of_autocast_and_a_change_of_dtype_are_not_kept(x: Tensor) -> None:
    flow, x = make_flow("dsf", 3), x.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = flow(x)
    assert torch.equal(flow.log_abs_det_jacobian(x, y), log_det(flow, x))
    flow.double()
    with pytest.raises(ValueError, match=r"x must be torch.float64"):
        flow.log_abs_det_jacobian(x, y)


# -------------------------------------------------------------------------- under torch's own modes


def test_nothing_from_outside_is_recalled_inside_a_transformation(
    flow: AutoregressiveFlow, x: Tensor
) -> None:
    names = {name: 1.1 * p.detach() for name, p in flow.named_parameters()}
    y = flow(x)
    moved = fresh(flow)
    moved.load_state_dict(names, strict=False)

    inverse = torch.nn.Module()
    inverse.flow, inverse.forward = flow, flow.inv
    named = {f"flow.{name}": p for name, p in names.items()}
    torch.testing.assert_close(functional_call(inverse, named, (y,)), moved.inv(y))
    torch.testing.assert_close(vmap(flow.inv)(y), x, rtol=1e-8, atol=1e-8)
    vmap(lambda x: flow.log_abs_det_jacobian(x, flow(x)))(x)
    grad(lambda x: flow.log_abs_det_jacobian(x, flow(x)).sum())(x)
    is_true(flow, x, y)


@pytest.mark.parametrize("direction", ["[flow]", "[flow.inv]"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_no_gradient(
    flow: AutoregressiveFlow, x: Tensor, direction: str, reentrant: bool
) -> None:
    transform = flow if direction == "[flow]" else flow.inv
    density, leaves = dist.TransformedDistribution(normal(), [transform]), [*flow.parameters()]
    x.requires_grad_()
    expected = torch.autograd.grad(density.log_prob(x).sum(), [x, *leaves], allow_unused=True)
    checkpoint(lambda x: density.log_prob(x).sum(), x, use_reentrant=reentrant).backward()
    torch.testing.assert_close([x.grad, *(p.grad for p in leaves)], list(expected))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_repeats_itself(x: Tensor) -> None:
    flow = make_flow("dsf", 3).double().requires_grad_(False)
    density = dist.TransformedDistribution(normal(), [flow.inv], validate_args=False)
    traced = torch.jit.trace(density.log_prob, (x,))  # which checks that two traces agree
    torch.testing.assert_close(traced(2 * x[:3]), density.log_prob(2 * x[:3]))


# --------------------------------------------------------------------------------- copies and files


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_of_a_flow_that_remembers_agree_and_part(
    flow: AutoregressiveFlow, x: Tensor, how: str
) -> None:
    y = flow(x)
    copied = copy.deepcopy(flow) if how == "deepcopy" else pickle.loads(pickle.dumps(flow))
    torch.testing.assert_close(copied(x), y)
    multiply(copied)
    assert not torch.allclose(copied(x), y)
    is_true(flow, x, y)


@pytest.mark.parametrize("with_context", [False, True])
def test_graphs_of_earlier_evaluations_are_freed(with_context: bool) -> None:
    """A hook in the graph that held the evaluation held the graph: 0.6 MB for each step."""
    if with_context:
        conditional = conditional_deep_sigmoidal_flow(3, 2)
        make: Callable[[], Any] = lambda: conditional.condition(torch.zeros(2))  # noqa: E731
    else:
        plain = deep_sigmoidal_flow(3)
        make = lambda: plain  # noqa: E731
    alive = []
    for goes_back in (False, True, False):
        flow, x = make(), torch.randn(5, 3)
        y = flow(x)
        log_det = flow.log_abs_det_jacobian(x, y)
        if goes_back:
            log_det.sum().backward()
        alive += [weakref.ref(y), weakref.ref(log_det)]
        del flow, x, y, log_det
    make()(torch.randn(5, 3))
    assert [ref() for ref in alive] == [None] * 6
