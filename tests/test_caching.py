"""What a flow remembers is true, and a fresh sample's log_prob does not invert."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro.optim.adagrad_rmsprop import AdagradRMSProp
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.dct_adam import DCTAdam
from registry import fresh, make_flow, roughen
from torch import Tensor
from torch.func import functional_call

from pyro_naf.transforms import AutoregressiveFlow, deep_sigmoidal_flow

NAMES = ["affine", "dsf", "ddsf-2"]


@pytest.fixture(params=NAMES)
def flow(request: pytest.FixtureRequest) -> AutoregressiveFlow:
    return make_flow(request.param, 3).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(5, 3).double()


@contextmanager
def count(flow: AutoregressiveFlow, method: str) -> Iterator[list[int]]:
    """How often a method of this flow is called."""
    calls = [0]
    original = getattr(flow, method)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return original(*args, **kwargs)

    setattr(flow, method, counted)
    try:
        yield calls
    finally:
        delattr(flow, method)


def log_det(flow: AutoregressiveFlow, x: Tensor) -> Tensor:
    """By a copy that has never been called."""
    flow = fresh(flow)
    return flow.log_abs_det_jacobian(x, flow(x))


def normal(dim: int = 3) -> dist.Distribution:
    return dist.Normal(torch.zeros(dim).double(), 1.0).to_event(1)


# ------------------------------------------------------------------------------- what is remembered


def test_value_and_log_determinant_cost_one_pass(flow: AutoregressiveFlow, x: Tensor) -> None:
    with count(flow, "_evaluate") as passes, count(flow, "_inverse") as inversions:
        y = flow(x)
        flow.log_abs_det_jacobian(x, y)
        assert flow.inv(y) is x
        assert flow(x) is y
    assert passes == [1] and inversions == [0]


def test_what_was_inverted_maps_back_without_a_pass(flow: AutoregressiveFlow, x: Tensor) -> None:
    y = x  # any point is an image
    with count(flow, "_inverse") as inversions:
        preimage = flow.inv(y)
        assert flow.inv(y) is preimage
        assert flow(preimage) is y
    assert inversions == [1]


def test_scoring_a_point_twice_inverts_once(flow: AutoregressiveFlow, x: Tensor) -> None:
    density = dist.TransformedDistribution(normal(), [flow])
    with torch.no_grad(), count(flow, "_inverse") as inversions:
        first = density.log_prob(x)
        assert torch.equal(density.log_prob(x), first)
    assert inversions == [1]


# --------------------------------------------------------------------------- what must be forgotten


def test_log_determinant_is_that_of_its_arguments_not_of_the_last_call(
    flow: AutoregressiveFlow, x: Tensor
) -> None:
    other = torch.randn(5, 3).double()
    y = flow(x)
    flow(other)
    torch.testing.assert_close(flow.log_abs_det_jacobian(x, y), log_det(flow, x))
    flow.inv(other)
    torch.testing.assert_close(flow.log_abs_det_jacobian(x, y), log_det(flow, x))


def test_log_determinant_does_not_make_the_flow_believe_its_second_argument(
    flow: AutoregressiveFlow, x: Tensor
) -> None:
    y = fresh(flow)(x)
    flow.log_abs_det_jacobian(x, torch.zeros_like(x))
    torch.testing.assert_close(flow(x), y)
    flow.log_abs_det_jacobian(x, torch.zeros_like(x))
    torch.testing.assert_close(
        flow.inv(torch.zeros_like(x)), fresh(flow).inv(torch.zeros_like(x)), rtol=1e-9, atol=1e-9
    )
    other = x.clone()
    flow.log_abs_det_jacobian(other, y.detach())
    assert flow(other).requires_grad


def optimisers() -> dict[str, Callable[[Any], torch.optim.Optimizer]]:
    """Pyro's own write through ``p.data``, which leaves no trace in the version counter."""
    return {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
        "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
        "fused Adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
        "ClippedAdam": lambda p: ClippedAdam(p, lr=0.1),
        "DCTAdam": lambda p: DCTAdam(p, lr=0.1),
        "AdagradRMSProp": lambda p: AdagradRMSProp(p, eta=0.1),
    }


@pytest.mark.parametrize("name", optimisers())
def test_a_step_between_call_and_log_determinant_is_noticed(
    flow: AutoregressiveFlow, x: Tensor, name: str
) -> None:
    optimiser = optimisers()[name](flow.parameters())
    y = flow(x)
    (y.square().sum() - flow.log_abs_det_jacobian(x, y).sum()).backward()
    before = log_det(flow, x)
    optimiser.step()
    torch.testing.assert_close(flow.log_abs_det_jacobian(x, y), log_det(flow, x))
    torch.testing.assert_close(flow(x), fresh(flow)(x))
    assert not torch.allclose(log_det(flow, x), before)


def test_writing_to_data_by_hand_needs_the_cache_cleared(
    flow: AutoregressiveFlow, x: Tensor
) -> None:
    state = {key: value.clone() for key, value in flow.state_dict().items()}

    def with_no_grad() -> None:
        with torch.no_grad():
            for p in flow.parameters():
                p.mul_(1.5)

    def with_data() -> None:
        for p in flow.parameters():
            p.data.mul_(1.5)

    def with_assignment() -> None:
        for p in flow.parameters():
            p.data = 1.5 * p.data

    def with_vector() -> None:
        vector = torch.nn.utils.parameters_to_vector(flow.parameters())
        torch.nn.utils.vector_to_parameters(1.5 * vector, flow.parameters())

    for change in (with_no_grad, with_data, with_assignment, with_vector):
        y = flow(x)
        change()
        if change is not with_no_grad:
            flow.clear_cache()
        assert not torch.allclose(flow(x), y), change.__name__
        torch.testing.assert_close(flow(x), fresh(flow)(x))
        flow.load_state_dict(state)
        torch.testing.assert_close(flow(x), y)


def test_change_of_dtype_is_noticed(flow: AutoregressiveFlow, x: Tensor) -> None:
    flow(x)
    flow.float()
    with pytest.raises(ValueError, match="x must be torch.float32"):
        flow(x)


def test_functional_call_with_other_parameters_is_noticed(
    flow: AutoregressiveFlow, x: Tensor
) -> None:
    # Temporary tensors may get the address of those before them.
    names = [name for name, _ in flow.named_parameters()]
    shapes = [p.shape for p in flow.parameters()]
    seen = []
    with torch.no_grad():
        for i in range(6):
            parameters = {
                n: torch.full(s, 0.1 * i).double() for n, s in zip(names, shapes, strict=True)
            }
            seen.append(functional_call(flow, parameters, (x,)).clone())
            del parameters
    for a, b in zip(seen, seen[1:], strict=False):
        assert not torch.equal(a, b)


def test_change_of_x_or_y_in_place_is_noticed(flow: AutoregressiveFlow, x: Tensor) -> None:
    with torch.no_grad():
        y = flow(x)
        x.mul_(2)
        torch.testing.assert_close(flow(x), fresh(flow)(x))
        torch.testing.assert_close(flow.log_abs_det_jacobian(x, y), log_det(flow, x))
        y = flow(x)
        y.mul_(2)
        torch.testing.assert_close(flow.inv(y), fresh(flow).inv(y))
        torch.testing.assert_close(flow(x), fresh(flow)(x))
        view = x[:]
        flow(view)
        x.zero_()
        torch.testing.assert_close(flow(view), fresh(flow)(view))


def test_call_under_no_grad_then_with_grad_has_its_gradient(
    flow: AutoregressiveFlow, x: Tensor
) -> None:
    with torch.no_grad():
        y = flow(x)
        flow.log_abs_det_jacobian(x, y)
        flow.inv(y)
    assert not y.requires_grad
    assert flow(x).requires_grad and flow.log_abs_det_jacobian(x, y).requires_grad
    assert flow.inv(y).requires_grad
    with torch.no_grad():
        assert not flow(x).requires_grad
    with torch.inference_mode():
        flow(x)
    assert flow(x).requires_grad


def test_x_that_asks_for_its_gradient_later_gets_it(flow: AutoregressiveFlow, x: Tensor) -> None:
    flow.log_abs_det_jacobian(x, flow(x))
    x.requires_grad_()
    y = flow(x)
    grads = torch.autograd.grad(y.sum() + flow.log_abs_det_jacobian(x, y).sum(), x)
    assert (grads[0] != 0).any()


def test_parameters_thawed_after_a_call_get_their_gradient(
    flow: AutoregressiveFlow, x: Tensor
) -> None:
    flow.requires_grad_(False)
    assert not flow(x).requires_grad
    flow.requires_grad_(True)
    assert flow(x).requires_grad


def test_a_second_backward_pass_from_the_same_input_works(
    flow: AutoregressiveFlow, x: Tensor
) -> None:
    # Gradients accumulated over one batch; nothing changes between the passes.
    gradients = []
    for _ in range(2):
        flow.zero_grad()
        y = flow(x)
        (y.square().sum() - flow.log_abs_det_jacobian(x, y).sum()).backward()
        gradients.append([p.grad.clone() for p in flow.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients)
    for _ in range(2):
        flow.inv(x).sum().backward()


def test_low_precision_of_autocast_is_not_kept(x: Tensor) -> None:
    flow, x = make_flow("dsf", 3), x.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        flow(x)
    assert torch.equal(flow(x), fresh(flow)(x))


def test_a_loaded_state_is_noticed(flow: AutoregressiveFlow, x: Tensor) -> None:
    other = fresh(flow)
    roughen(other)
    flow(x)
    flow.load_state_dict(other.state_dict())
    torch.testing.assert_close(flow(x), other(x))


# ---------------------------------------------------------------------------------- in compositions


@pytest.mark.parametrize("cache_size", [0, 1])
def test_a_flow_used_twice_in_a_composition_is_right(
    flow: AutoregressiveFlow, x: Tensor, cache_size: int
) -> None:
    twice = dist.transforms.ComposeTransform([flow, flow], cache_size=cache_size)
    with torch.no_grad():
        middle = fresh(flow)(x)
        y = fresh(flow)(middle)
        torch.testing.assert_close(twice(x), y)
        expected = log_det(flow, x) + log_det(flow, middle)
        torch.testing.assert_close(twice.log_abs_det_jacobian(x, y), expected)
        torch.testing.assert_close(twice.inv(y), x, rtol=1e-9, atol=1e-9)
        density = dist.TransformedDistribution(normal(), [flow, flow])
        sample = density.sample((4,))
        by_hand = normal().log_prob(fresh(flow).inv(fresh(flow).inv(sample)))
        inner = fresh(flow).inv(sample)
        by_hand = by_hand - log_det(flow, inner) - log_det(flow, fresh(flow).inv(inner))
        torch.testing.assert_close(density.log_prob(sample), by_hand)


def affine(loc: Tensor, scale: Tensor, cache_size: int) -> dist.transforms.AffineTransform:
    return dist.transforms.AffineTransform(loc, scale, event_dim=1, cache_size=cache_size)


def outer(dim: int = 3) -> tuple[Tensor, Tensor]:
    loc = torch.randn(dim).double().requires_grad_()
    scale = (torch.rand(dim) + 0.5).double().requires_grad_()
    return loc, scale


def elbo_gradients(
    flow: AutoregressiveFlow, loc: Tensor, scale: Tensor, cache_size: int, seed: int
) -> tuple[Tensor, list[Tensor]]:
    """log_prob of a fresh sample, and the gradients of a made-up ELBO in which it stands."""
    torch.manual_seed(seed)
    guide = dist.TransformedDistribution(normal(), [flow, affine(loc, scale, cache_size)])
    z = guide.rsample((7,))
    log_q = guide.log_prob(z)
    elbo = (torch.sin(z).sum() - log_q.sum()) / 7
    leaves = [loc, scale, *flow.parameters()]
    return log_q.detach(), list(torch.autograd.grad(elbo, leaves, allow_unused=True))


@pytest.mark.parametrize("cache_size", [0, 1])
def test_log_prob_of_a_fresh_sample_does_not_invert_behind_an_outer_affine(
    flow: AutoregressiveFlow, cache_size: int
) -> None:
    loc, scale = outer()
    with count(flow, "_inverse") as inversions, count(flow, "_evaluate") as passes:
        for seed in range(20):
            elbo_gradients(flow, loc, scale, cache_size, seed)
    assert inversions == [0]
    assert passes == [20]


def test_gradients_behind_an_uncached_affine_are_those_of_a_cached_composition(
    flow: AutoregressiveFlow,
) -> None:
    loc, scale = outer()
    for seed in range(5):
        log_q, uncached = elbo_gradients(flow, loc, scale, 0, seed)
        expected_log_q, cached = elbo_gradients(
            fresh_with_same_parameters(flow), loc, scale, 1, seed
        )
        torch.testing.assert_close(log_q, expected_log_q)
        torch.testing.assert_close(uncached, cached, rtol=1e-9, atol=1e-9)


def fresh_with_same_parameters(flow: AutoregressiveFlow) -> AutoregressiveFlow:
    return AutoregressiveFlow(flow.arn, flow.transformer)


@pytest.mark.parametrize("ratio", [1.0, 30.0, 1000.0])
def test_float32_samples_behind_an_outer_affine_do_not_invert_either(ratio: float) -> None:
    # A posterior whose mean is many standard deviations from zero loses digits on the way back.
    flow = make_flow("dsf", 3)
    loc = torch.tensor([0.1 * ratio, -3.0, 0.0], requires_grad=True)
    scale = torch.tensor([0.1, 5.0, 1.0], requires_grad=True)
    guide = dist.TransformedDistribution(
        dist.Normal(torch.zeros(3), 1.0).to_event(1), [flow, affine(loc, scale, 0)]
    )
    with count(flow, "_inverse") as inversions:
        for _ in range(20):
            guide.log_prob(guide.rsample((4,))).sum().backward()
    assert inversions == [0]


def test_stack_behind_a_permutation_and_an_affine_does_not_invert() -> None:
    flows = [make_flow("dsf", 3).double() for _ in range(2)]
    loc, scale = outer()
    permute = dist.transforms.Permute(torch.tensor([2, 0, 1]))
    guide = dist.TransformedDistribution(
        normal(), [flows[0], permute, flows[1], affine(loc, scale, 0)]
    )
    z = guide.rsample((7,))
    with count(flows[0], "_inverse") as first, count(flows[1], "_inverse") as second:
        guide.log_prob(z)
    assert first == [0] and second == [0]


def score(guide: dist.TransformedDistribution, z: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    grads = torch.autograd.grad(guide.log_prob(z).sum(), leaves, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(leaves, grads, strict=True)]


def numerical_score(
    build: Callable[[], dist.TransformedDistribution], z: Tensor, leaves: list[Tensor]
) -> list[Tensor]:
    """Central differences of sum log q(z) at fixed z, by guides that have never been called."""
    step, grads = 1e-5, []
    for p in leaves:
        grad = torch.zeros_like(p)
        for index in range(p.numel()):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    p.view(-1)[index] += sign * step
                    values.append(build().log_prob(z).sum())
                    p.view(-1)[index] -= sign * step
            grad.view(-1)[index] = (values[0] - values[1]) / (2 * step)
        grads.append(grad)
    return grads


@pytest.mark.parametrize("detached", ["sample", "sample and affine", "sample, copied"])
def test_score_of_a_detached_sample_is_right(detached: str) -> None:
    # Here the preimage does depend on the parameters: the inverse must run.
    flow = deep_sigmoidal_flow(2, [3], 2).double()
    roughen(flow)
    loc, scale = outer(2)
    guide = dist.TransformedDistribution(normal(2), [flow, affine(loc, scale, 0)])
    z = guide.rsample((4,))
    z = z.detach().clone() if "copied" in detached else z.detach()
    leaves = list(flow.parameters())
    if detached == "sample and affine":
        guide = dist.TransformedDistribution(
            normal(2), [flow, affine(loc.detach(), scale.detach(), 0)]
        )
    else:
        leaves += [loc, scale]
    with count(flow, "_inverse") as inversions:
        got = score(guide, z, leaves)
    assert inversions == [1]

    def build() -> dist.TransformedDistribution:
        return dist.TransformedDistribution(normal(2), [fresh(flow), affine(loc, scale, 0)])

    with torch.no_grad():
        torch.testing.assert_close(guide.log_prob(z), build().log_prob(z))
    torch.testing.assert_close(got, numerical_score(build, z, leaves), rtol=1e-6, atol=1e-6)


def test_sample_scored_under_a_detached_affine_carries_the_path_through_the_affine() -> None:
    # Sticking the landing: z depends on loc and scale, the density's own loc and scale are fixed.
    # The point that reaches the flow equals the remembered one in value, but not in derivative.
    flow = deep_sigmoidal_flow(2, [3], 2).double()
    roughen(flow)
    loc, scale = outer(2)
    eps = torch.randn(4, 2).double()

    def sample() -> Tensor:
        return affine(loc, scale, 0)(flow(eps))

    fixed = dist.TransformedDistribution(normal(2), [flow, affine(loc.detach(), scale.detach(), 0)])
    frozen = fresh(flow)
    with count(flow, "_inverse") as inversions:
        z = sample()
        got = torch.autograd.grad(fixed.log_prob(z).sum(), [loc, scale])
    assert inversions == [1]

    # Truth: d log q(z) / dz times dz / d(loc, scale), with a copy that has never been called.
    z = sample().detach().requires_grad_()
    density = dist.TransformedDistribution(
        normal(2), [frozen, affine(loc.detach(), scale.detach(), 0)]
    )
    (slope,) = torch.autograd.grad(density.log_prob(z).sum(), z)
    expected = torch.autograd.grad(
        (affine(loc, scale, 0)(flow(eps).detach()) * slope).sum(), [loc, scale]
    )
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)
    assert (expected[0].abs() > 1e-3).any()


def test_sample_scored_at_a_shifted_place_is_not_taken_for_the_remembered_one(
    flow: AutoregressiveFlow, x: Tensor
) -> None:
    y = flow(x)
    for moved in (y + 1e-6, y * (1 + 1e-6), y.roll(1, 0), y + 1e-6 * torch.randn(3).double()):
        torch.testing.assert_close(
            flow.inv(moved), fresh(flow).inv(moved.detach()), rtol=0, atol=1e-12
        )


def test_equal_value_through_another_function_of_the_flow_keeps_its_own_gradient(
    flow: AutoregressiveFlow, x: Tensor
) -> None:
    # y * 1 + 0 * y^2 - style identities in value whose derivative is not the identity.
    x = x.requires_grad_()
    y = flow(x)
    for trick in (y + (y - y.detach()), 2 * y - y.detach(), y.detach() + 0 * y):
        (got,) = torch.autograd.grad(flow.inv(trick).sum(), x, retain_graph=True)
        other = fresh(flow)
        (cotangent,) = torch.autograd.grad(
            other.inv(at := trick.detach().requires_grad_()).sum(), at
        )
        (expected,) = torch.autograd.grad(trick, x, cotangent, retain_graph=True)
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_sample_under_no_grad_then_scored_with_grad_has_its_gradient(
    flow: AutoregressiveFlow,
) -> None:
    density = dist.TransformedDistribution(normal(), [flow])
    z = density.sample((4,))
    grads = torch.autograd.grad(density.log_prob(z).sum(), flow.parameters(), allow_unused=True)
    other = dist.TransformedDistribution(normal(), [again := fresh(flow)])
    expected = torch.autograd.grad(other.log_prob(z).sum(), again.parameters(), allow_unused=True)
    torch.testing.assert_close(grads, expected)


# --------------------------------------------------------------------------------- copies and files


def train_one_step(flow: AutoregressiveFlow, x: Tensor) -> None:
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.05)
    y = flow(x)
    (y.square().sum() - flow.log_abs_det_jacobian(x, y).sum()).backward()
    optimiser.step()
    flow.inv(flow(x))  # something is remembered


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_after_a_step_agree(flow: AutoregressiveFlow, x: Tensor, how: str) -> None:
    train_one_step(flow, x)
    if how == "deepcopy":
        copied = copy.deepcopy(flow)
    elif how == "pickle":
        copied = pickle.loads(pickle.dumps(flow))
    else:
        buffer = io.BytesIO()
        torch.save(flow, buffer)
        buffer.seek(0)
        copied = torch.load(buffer, weights_only=False)
    assert type(copied) is type(flow)
    torch.testing.assert_close(copied(x), flow(x))
    torch.testing.assert_close(copied.inv(x), flow.inv(x))
    torch.testing.assert_close(copied.log_abs_det_jacobian(x, copied(x)), log_det(flow, x))
    train_one_step(copied, x)
    assert not torch.allclose(copied(x), flow(x))


def test_composition_copies_after_a_step(flow: AutoregressiveFlow, x: Tensor) -> None:
    composed = dist.transforms.ComposeTransformModule([flow, make_flow("affine", 3).double()])
    train_one_step(flow, x)
    composed(x)
    copied = copy.deepcopy(composed)
    torch.testing.assert_close(copied(x), composed(x))
    assert not {id(p) for p in copied.parameters()} & {id(p) for p in composed.parameters()}


def test_state_dict_saves_and_loads_as_weights_only(flow: AutoregressiveFlow, x: Tensor) -> None:
    train_one_step(flow, x)
    buffer = io.BytesIO()
    torch.save(flow.state_dict(), buffer)
    buffer.seek(0)
    other = fresh(flow)
    roughen(other)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(other(x), flow(x))


def test_conditioned_flow_copies_with_its_context(x: Tensor) -> None:
    flow = make_flow("dsf-conditional", 3).double()
    flow.context = flow.context.double()
    train_one_step(flow, x)
    torch.testing.assert_close(pickle.loads(pickle.dumps(flow))(x), flow(x))


def test_change_of_the_context_is_noticed(x: Tensor) -> None:
    flow = make_flow("dsf-conditional", 3).double()
    flow.context = flow.context.double()
    y = flow(x)
    with torch.no_grad():
        flow.context.mul_(3)
    torch.testing.assert_close(flow(x), fresh(flow)(x))
    assert not torch.allclose(flow(x), y)
    flow.context = torch.zeros_like(flow.context)
    torch.testing.assert_close(flow(x), fresh(flow)(x))


def test_writes_of_numpy_into_shared_memory_are_noticed() -> None:
    flow = make_flow("dsf", 3)
    array = np.zeros((4, 3), dtype=np.float32)
    x = torch.from_numpy(array)
    with torch.no_grad():
        old = flow(x)
        array[:] = 2
        assert not torch.allclose(flow(x), old)
        y = flow(x)
        y.numpy()[:] = 0
        torch.testing.assert_close(flow(flow.inv(y)), y, atol=1e-5, rtol=0)


def test_a_new_parameter_in_the_place_of_an_old_one_is_noticed() -> None:
    flow = make_flow("dsf", 3)
    x = torch.randn(4, 3)
    with torch.no_grad():
        for _ in range(100):
            flow(x)
            shape = flow.arn.output_bias.shape
            del flow.arn.output_bias  # frees its memory, and its id, for the next
            flow.arn.output_bias = torch.nn.Parameter(torch.randn(shape))
            found = flow(x)
            flow.clear_cache()
            assert torch.equal(found, flow(x))


def test_rounded_parameters_and_the_training_mode_are_noticed() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    flow = make_flow("dsf", 3)
    before = flow(x)
    flow.half().float()
    assert not torch.equal(flow(x), before)
    noisy = deep_sigmoidal_flow(3, [16], activation=torch.nn.Dropout(0.5))
    with torch.no_grad():
        noisy.arn.output_bias.normal_()
        noisy.arn.weights[-1].normal_()
        in_training = noisy(x)
        noisy.eval()
        assert not torch.equal(noisy(x), in_training)
