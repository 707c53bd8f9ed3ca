"""What Pyro's and torch's own tests ask of a transform, asked of the flows of the registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_transform import TransformModule
from registry import fresh, make_flow
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_naf.transformers.base import InverseTracedError
from pyro_naf.transforms import AutoregressiveFlow

Function = Callable[[Tensor], Tensor]

DIRECTIONS = ["forward", "inverse"]


#: One of every transformer, conditioner and form; the tests compile nothing, but trace a lot.
NAMES = ["gated", "ddsf-2", "dsf-affine", "dsf-attention", "dsf-pyro", "dsf-conditional"]


@pytest.fixture(params=NAMES)
def flow(request: pytest.FixtureRequest) -> AutoregressiveFlow:
    flow = make_flow(request.param, 3).double()
    flow.context = None if flow.context is None else flow.context.double()
    return flow


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3).double()


def density(flow: AutoregressiveFlow, direction: str) -> dist.TransformedDistribution:
    """The density whose log_prob runs the flow in this direction."""
    base = dist.Normal(torch.zeros(3).double(), 1.0, validate_args=False).to_event(1)
    transform = flow.inv if direction == "forward" else flow
    return dist.TransformedDistribution(base, [transform], validate_args=False)


def exact(f: Function, x: Tensor) -> Tensor:
    """The Jacobians ``(N, D, D)`` by central differences of a flow that remembers nothing."""
    step = 1e-5
    shifts = step * torch.eye(x.shape[-1]).double()
    with torch.no_grad():
        columns = [(f(x + s) - f(x - s)) / (2 * step) for s in shifts]
    return torch.stack(columns, -1)


def run(flow: AutoregressiveFlow, direction: str) -> Function:
    return flow if direction == "forward" else flow.inv


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_jacobians_of_torch_func_are_the_slopes(
    flow: AutoregressiveFlow, direction: str, x: Tensor
) -> None:
    f = run(flow, direction)
    truth = exact(run(fresh(flow), direction), x)
    for jacobian in (jacrev, jacfwd):
        found = vmap(jacobian(f))(x)
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)
    value, tangent = jvp(f, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(value, run(fresh(flow), direction)(x))
    torch.testing.assert_close(tangent, truth.sum(-1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_log_determinants_of_torch_func_are_those_of_the_jacobian(
    flow: AutoregressiveFlow, direction: str, x: Tensor
) -> None:
    transform: Any = run(flow, direction)
    truth = torch.linalg.slogdet(exact(run(fresh(flow), direction), x))[1]

    def log_det(x: Tensor) -> Tensor:
        return transform.log_abs_det_jacobian(x, transform(x))

    torch.testing.assert_close(log_det(x), truth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vmap(log_det)(x), log_det(x))
    slopes = vmap(jacrev(log_det))(x)
    torch.testing.assert_close(slopes, vmap(jacfwd(log_det))(x))
    torch.testing.assert_close(
        slopes, exact(lambda x: log_det(x).unsqueeze(-1), x).squeeze(-2), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_second_derivatives_of_the_log_density_are_right(
    flow: AutoregressiveFlow, direction: str, x: Tensor
) -> None:
    log_prob = density(flow, direction).log_prob
    truth = exact(lambda x: vmap(jacrev(log_prob))(x), x)
    torch.testing.assert_close(vmap(hessian(log_prob))(x), truth, rtol=1e-4, atol=1e-5)
    by_autograd = torch.autograd.functional.hessian(log_prob, x[0])
    torch.testing.assert_close(by_autograd, truth[0], rtol=1e-4, atol=1e-5)


class Call(nn.Module):
    """A function of a flow as the call of a module, for ``functional_call``."""

    def __init__(self, flow: AutoregressiveFlow, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.flow, self.function = flow, function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(self.flow, *args)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_parameters_have_gradients_in_both_modes(
    flow: AutoregressiveFlow, direction: str, x: Tensor
) -> None:
    call = Call(flow, lambda flow, x: density(flow, direction).log_prob(x))
    parameters = {name: p.detach() for name, p in call.named_parameters()}

    def log_prob(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(call, parameters, (x,))

    names, leaves = zip(*call.named_parameters(), strict=True)
    total = call(x).sum()
    found = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    tangents = {name: torch.randn_like(p) for name, p in parameters.items()}
    forward = jvp(lambda p: log_prob(p, x).sum(), (parameters,), (tangents,))[1]
    expected = sum((g * tangents[n]).sum() for n, g in zip(names, found, strict=True))
    torch.testing.assert_close(forward, expected)
    each = vmap(torch.func.grad(log_prob), (None, 0))(parameters, x)
    for name, gradient in zip(names, found, strict=True):
        torch.testing.assert_close(each[name].sum(0), gradient)


def test_a_captured_density_and_a_captured_fresh_sample_are_right_on_other_points(
    flow: AutoregressiveFlow, x: Tensor
) -> None:
    def log_prob(x: Tensor) -> Tensor:
        return density(flow, "forward").log_prob(x)

    def loss(eps: Tensor) -> Tensor:
        affine = dist.transforms.AffineTransform(1.0, 2.0, event_dim=1, cache_size=1)
        guide = density(flow, "inverse")
        guide.transforms.append(affine)
        z = affine(flow(eps))
        return z.sin().sum() - guide.log_prob(z)

    for function in (log_prob, loss):
        batched = vmap(grad_and_value(function))
        captured = make_fx(batched)(x)
        torch.testing.assert_close(captured(x + 1), batched(x + 1))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_trace_is_right_on_other_points_or_says_why_there_is_none(
    flow: AutoregressiveFlow, direction: str, x: Tensor
) -> None:
    call = Call(flow, lambda flow, x: density(flow, direction).log_prob(x))
    if direction == "inverse" and "Affine" not in type(flow.transformer).__name__:
        with pytest.raises(InverseTracedError, match=r"trace the direction that is one pass"):
            torch.jit.trace(call, (x,))
        return
    traced = torch.jit.trace(call, (x,), check_inputs=[(x + 1,)])
    other = torch.randn(4, 3).double()
    torch.testing.assert_close(traced(other), call(other))


@pytest.mark.parametrize("batch", [(), (2,), (2, 4), (2, 0)])
def test_shapes_are_those_of_the_input(flow: AutoregressiveFlow, batch: tuple[int, ...]) -> None:
    x = torch.randn(*batch, 3).double()
    for transform in (flow, flow.inv):
        y = transform(x)
        assert y.shape == x.shape == transform.forward_shape(x.shape)
        assert transform.log_abs_det_jacobian(x, y).shape == batch
    for direction in DIRECTIONS:
        law = density(flow, direction).expand(batch)
        assert law.batch_shape == batch and law.event_shape == (3,)
        if 0 not in batch:  # torch itself sums no axis of an empty tensor
            assert law.log_prob(law.sample((5,))).shape == (5, *batch)
    assert isinstance(flow, TransformModule)


def test_an_infinite_point_has_no_density_and_nan_stays(flow: AutoregressiveFlow) -> None:
    inf, nan = torch.inf, torch.nan
    x = torch.tensor([[inf, 0.0, 1.0], [0.0, -inf, inf], [nan, 0.0, 1.0], [1e30, 0.0, 0.0]])
    log_prob = density(flow, "forward").log_prob(x.double())
    assert log_prob[:2].tolist() == [-inf, -inf]
    assert log_prob[2].isnan() and not log_prob[3].isnan()
