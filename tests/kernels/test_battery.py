"""What the formulas promise, of every kernel: one battery for plain, compiled and Triton.

The truth is the plain formula in float64 under autograd, which the tests of the transformers hold
against mpmath.
"""

from __future__ import annotations

import copy
import os

import pytest
import torch
from registry import needs_compiler, roughen, sharp_phi, unconstrained
from torch import Tensor

from pyro_naf import deep_dense_sigmoidal_flow, deep_sigmoidal_flow, kernels
from pyro_naf.transformers import DeepDenseSigmoidal, DeepSigmoidal, Scaled

Sigmoidal = DeepSigmoidal | DeepDenseSigmoidal

#: The layers of a DDSF, 0 for a DSF.
LAYERS = [0, 1, 2, 4]

# Triton's interpreter computes with numpy, which warns where a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning")

needs_triton = pytest.mark.skipif(
    not kernels.triton.is_installed(), reason="needs the package triton"
)


@pytest.fixture(
    params=[
        "plain",
        pytest.param("compiled", marks=needs_compiler),
        pytest.param("triton", marks=needs_triton),
    ]
)
def kernel(request: pytest.FixtureRequest, device: torch.device) -> str:
    name: str = request.param
    if name == "triton" and device.type != "cuda" and not os.environ.get("TRITON_INTERPRET"):
        pytest.skip("needs a GPU or Triton's interpreter")
    return name


def make(layers: int, hidden_units: int = 5, kernel: str = "plain") -> Sigmoidal:
    if layers == 0:
        return DeepSigmoidal(hidden_units, kernel=kernel)
    return DeepDenseSigmoidal(hidden_units, layers, kernel=kernel)


def exact(transformer: Sigmoidal | Scaled) -> Sigmoidal | Scaled:
    """The plain formula in float64, with parameters of its own."""
    twin = copy.deepcopy(transformer).double()
    (twin.inner if isinstance(twin, Scaled) else twin).kernel = "plain"
    return twin


def everything(
    transformer: Sigmoidal | Scaled, x: Tensor, phi: Tensor, grads: list[Tensor]
) -> list[Tensor]:
    """Value, log-slope, and the gradients of x, phi and the matrices for these of the two."""
    inputs = [x.detach().requires_grad_(), phi.detach().requires_grad_()]
    outputs = transformer(*inputs)
    grads = [g.to(outputs[0]) for g in grads]
    found = torch.autograd.grad(outputs, [*inputs, *transformer.parameters()], grads)
    return [t.detach() for t in (*outputs, *found)]


def assert_equal(got: list[Tensor], true: list[Tensor], tolerance: float) -> None:
    """Equal to a multiple of each tensor's largest element."""
    for a, b in zip(got, true, strict=True):
        torch.testing.assert_close(
            a.double(), b, rtol=0, atol=tolerance * (1 + float(b.abs().max()))
        )


def relative(got: Tensor, true: Tensor) -> float:
    return float(((got - true).abs() / true.abs().clamp(min=1)).max())


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_value_log_slope_and_gradients_are_those_of_the_plain_formula(
    kernel: str, layers: int, dtype: torch.dtype, device: torch.device
) -> None:
    transformer = make(layers, kernel=kernel).to(device, dtype)
    roughen(transformer)
    x = 2 * torch.randn(4, 10, 2)
    phi, grads = torch.randn(4, 10, 2, transformer.num_params), [torch.randn_like(x) for _ in "yl"]
    tensors = [t.to(device, dtype) for t in (x, phi)]
    got = everything(transformer, *tensors, grads)
    true = everything(exact(transformer), *[t.double() for t in tensors], grads)
    assert_equal(got, true, 64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("layers", LAYERS)
def test_lanes_in_the_tails_and_on_plateaus_are_right_beside_ordinary_ones(
    kernel: str, layers: int, device: torch.device
) -> None:
    # Steep units that step anywhere, and values to 1e20: sums underflow in float32, and in some
    # lanes of float64. Their gradients reach the shared matrices too.
    transformer = make(layers, kernel=kernel).to(device).double()
    slope = 50.0 ** (1 / max(layers, 1))
    phi = sharp_phi(transformer, 60, max_slope=slope, centred=True).to(device)
    x = torch.cat(
        [torch.randn(40), 10 ** torch.linspace(1, 20, 10), -(10 ** torch.linspace(1, 20, 10))]
    )
    x, grads = x.to(device).double(), [torch.randn(60), torch.randn(60)]
    true = everything(exact(transformer), x, phi, grads)
    assert_equal(everything(transformer, x, phi, grads)[:2], true[:2], 1e-12)
    ordinary = x.abs() < 100
    grads = [torch.where(ordinary.cpu(), g, 0.0) for g in grads]
    true = everything(exact(transformer), x, phi, grads)
    assert_equal(everything(transformer, x, phi, grads), true, 1e-10)


@pytest.mark.parametrize("layers", [0, 2])
def test_an_affine_map_around_them_is_that_of_the_plain_formula(
    kernel: str, layers: int, device: torch.device
) -> None:
    transformer = Scaled(make(layers, kernel=kernel)).to(device).double()
    phi = torch.randn(30, 4, transformer.num_params).to(device).double()
    x = torch.randn(30, 4).to(device).double()
    x[:3] *= 1e3  # lanes whose sums underflow in linear space
    grads = [torch.randn(30, 4), torch.randn(30, 4)]
    true = everything(exact(transformer), x, phi, grads)
    assert_equal(everything(transformer, x, phi, grads), true, 1e-11)


@pytest.mark.parametrize("hidden_units", [1, 4, 16])
@pytest.mark.parametrize("layers", [0, 2, 4])
def test_float32_is_right_to_a_few_roundings_within_ten(
    kernel: str, layers: int, hidden_units: int, device: torch.device
) -> None:
    transformer = make(layers, hidden_units, kernel).to(device)
    slope = 50.0 ** (1 / max(layers, 1))
    phi = sharp_phi(transformer, 300, max_slope=slope).float().to(device)
    x = (torch.rand(300) * 20 - 10).to(device)
    with torch.no_grad():
        value, log_slope = transformer(x, phi)
        true = exact(transformer)(x.double(), phi.double())
    assert relative(value, true[0]) <= (1e-6 if layers == 0 else 1e-5)
    assert relative(log_slope, true[1]) <= (5e-6 if layers == 0 else 1e-5)


@pytest.mark.parametrize("layers", LAYERS)
def test_value_rises_and_gradients_are_finite_out_to_1e20(
    kernel: str, layers: int, device: torch.device
) -> None:
    transformer = make(layers, kernel=kernel).to(device)
    far = 10 ** torch.linspace(0, 20, 41)
    x = torch.cat([-far.flip(0), torch.linspace(-0.9, 0.9, 19), far]).to(device)
    phi = torch.randn(transformer.num_params).expand(len(x), -1).to(device)
    y, log_slope, *grads = everything(transformer, x, phi, [torch.ones(len(x))] * 2)
    assert (y.diff() > 0).all()
    assert all(torch.isfinite(t).all() for t in (log_slope, *grads))


@pytest.mark.parametrize("layers", LAYERS)
def test_log_slope_is_the_log_of_the_derivative(
    kernel: str, layers: int, device: torch.device
) -> None:
    transformer = make(layers, kernel=kernel).to(device).double()
    x = (4 * torch.randn(50)).double().to(device).requires_grad_()
    y, log_slope = transformer(x, torch.randn(50, transformer.num_params).double().to(device))
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope, slope.log(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("layers", [0, 2])
def test_second_derivatives_are_those_of_the_plain_formula(
    kernel: str, layers: int, device: torch.device
) -> None:
    def second(transformer: Sigmoidal) -> list[Tensor]:
        inputs = [x.clone().requires_grad_(), phi.clone().requires_grad_()]
        y, log_slope = transformer(*inputs)
        first = torch.autograd.grad((y * log_slope).sum(), inputs, create_graph=True)
        wanted = [*inputs, *transformer.parameters()]
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), wanted))

    transformer = make(layers, kernel=kernel).to(device).double()
    x = torch.randn(6).double().to(device)
    phi = torch.randn(6, transformer.num_params).double().to(device)
    assert_equal(second(transformer), second(exact(transformer)), 1e-12)


@pytest.mark.parametrize("layers", [0, 2])
def test_gradients_pass_gradcheck(kernel: str, layers: int, device: torch.device) -> None:
    transformer = make(layers, 3, kernel).to(device).double()
    x = torch.randn(4, dtype=torch.double, device=device, requires_grad=True)
    phi = torch.randn(4, transformer.num_params, dtype=torch.double, device=device)
    matrices = list(transformer.parameters())

    def evaluate(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return transformer(*inputs[:2])

    inputs = (x, phi.requires_grad_(), *matrices)
    assert torch.autograd.gradcheck(evaluate, inputs, fast_mode=True)


@pytest.mark.parametrize("layers", [0, 1])
def test_a_deep_plateau_keeps_its_log_slope(kernel: str, layers: int, device: torch.device) -> None:
    # Between steep steps the slope is exp(-245): far below the smallest float32.
    transformer = make(layers, 2, kernel)
    for matrix in transformer.parameters():
        torch.nn.init.zeros_(matrix)
    params = [torch.tensor(p) for p in ([50.0, 50.0], [250.0, -250.0], [0.0, -0.5])]
    phi = unconstrained(transformer, params).float().expand(5, -1).to(device)
    x = torch.tensor([-4.0, -0.5, 0.0, 0.25, 3.0], device=device)
    transformer, grads = transformer.to(device), [torch.linspace(-1, 1, 5)] * 2
    got = everything(transformer, x, phi, grads)
    true = everything(exact(transformer), x.double(), phi.double(), grads)
    assert true[1].min() < -240
    assert max(relative(g, t) for g, t in zip(got, true, strict=True)) <= 5e-6


@pytest.mark.parametrize("layers", [0, 2])
def test_what_is_not_a_number_stays_in_its_lane(
    kernel: str, layers: int, device: torch.device
) -> None:
    transformer = make(layers, kernel=kernel).to(device)
    x, phi = torch.randn(70).to(device), torch.randn(70, transformer.num_params).to(device)
    grads = [torch.ones(70)] * 2
    expected = everything(transformer, x, phi, grads)[:4]
    lost = [3, *range(10, 10 + transformer.num_params)]
    x[3] = torch.nan
    for i in range(transformer.num_params):
        phi[10 + i, i] = torch.nan
    kept = [i for i in range(70) if i not in lost]
    for found, before in zip(everything(transformer, x, phi, grads)[:4], expected, strict=True):
        assert torch.isnan(found.view(70, -1).sum(-1)[lost]).all()
        torch.testing.assert_close(found[kept], before[kept])


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.half])
@pytest.mark.parametrize("layers", [0, 2])
def test_arithmetic_on_pseudo_parameters_of_16_bits_is_float32(
    kernel: str, layers: int, narrow: torch.dtype, device: torch.device
) -> None:
    transformer = make(layers, kernel=kernel).to(device)
    x = torch.randn(30).to(device)
    phi, grads = torch.randn(30, transformer.num_params).to(device, narrow), [torch.randn(30)] * 2
    inputs = [x.requires_grad_(), phi.requires_grad_()]
    with torch.autocast(device.type, torch.bfloat16):
        outputs = transformer(*inputs)
    got = [
        *(t.detach() for t in outputs),
        *torch.autograd.grad(
            outputs, [*inputs, *transformer.parameters()], [g.to(x) for g in grads]
        ),
    ]
    true = everything(exact(transformer), x.double(), phi.double(), grads)
    assert [t.dtype for t in got[:4]] == [torch.float, torch.float, torch.float, narrow]
    assert_equal([*got[:3], *got[4:]], [*true[:3], *true[4:]], 64 * torch.finfo(torch.float).eps)
    assert_equal(got[3:4], true[3:4], torch.finfo(narrow).eps)


@pytest.mark.parametrize("layers", [0, 2])
def test_any_memory_order_and_shape_gives_the_same(
    kernel: str, layers: int, device: torch.device
) -> None:
    transformer = make(layers, kernel=kernel).to(device).double()
    params = transformer.num_params
    x, phi = torch.randn(4, 3).double().to(device), torch.randn(4, 3, params).double().to(device)
    one = phi[:1, :1].expand(4, 3, params)
    cases: dict[str, tuple[Tensor, Tensor]] = {
        "contiguous": (x, phi),
        "parameters before lanes": (x, phi.permute(1, 2, 0).contiguous().permute(2, 0, 1)),
        "every other": (x[:, ::2], phi[:, ::2]),
        "transposed": (x.t(), phi.transpose(0, 1)),
        "expanded": (x[:1].expand(4, 3), one),
        "broadcast": (x, phi[0]),
        "broadcast the other way": (x[0], phi),
        "one axis": (x[0], phi[0]),
        "no axis": (x[0, 0], phi[0, 0]),
        "empty": (x[:0], phi[:0]),
        "empty axis": (x[:, :0], phi[:, :0]),
    }
    for name, (x_case, phi_case) in cases.items():
        shape = torch.broadcast_shapes(x_case.shape, phi_case.shape[:-1])
        grads = [torch.randn(shape), torch.randn(shape)]
        got = everything(transformer, x_case, phi_case, grads)
        true = everything(exact(transformer), x_case, phi_case, grads)
        for a, b in zip(got, true, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11, msg=name)


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_inverse_residual_is_at_rounding_level(
    kernel: str, layers: int, dtype: torch.dtype, device: torch.device
) -> None:
    transformer = make(layers, kernel=kernel).to(device, dtype)
    y = torch.cat([3 * torch.randn(20), torch.tensor([-1e6, 1e6])]).to(device, dtype)
    phi = torch.randn(22, transformer.num_params).to(device, dtype).requires_grad_()
    x = transformer.inverse(y, phi)
    with torch.no_grad():
        back, _ = transformer(x, phi)
    assert relative(back, y) <= (1e-12 if dtype == torch.double else 2e-5)
    (got,) = torch.autograd.grad(x.sum(), phi)
    twin = exact(transformer)
    (true,) = torch.autograd.grad(twin.inverse(y.double(), phi.double()).sum(), phi)
    assert_equal([got], [true.double()], 1e-10 if dtype == torch.double else 1e-3)


@pytest.mark.parametrize("layers", [0, 2])
def test_elements_beyond_two_to_the_31_are_found(
    kernel: str, layers: int, device: torch.device
) -> None:
    # Untouched memory costs nothing: the two samples lie 8 GiB apart.
    transformer = make(layers, kernel=kernel).to(device)
    params, apart = transformer.num_params, 2**31 + 5
    try:
        memory = torch.empty(apart + params, device=device)
    except RuntimeError:
        pytest.skip("needs 8 GiB of address space")
    phi = memory.as_strided((2, 1, params), (apart, 1, 1))
    phi.copy_(torch.randn(2, 1, params))
    x = torch.randn(2, 1, device=device)
    with torch.no_grad():
        got, true = transformer(x, phi), transformer.plain(x, phi.clone())
    for a, b in zip(got, true, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("order", ["natural", "reversed"])
@pytest.mark.parametrize("layers", [0, 2])
def test_higher_and_batched_derivatives_of_a_flow_are_those_of_the_plain_formula(
    kernel: str, layers: int, order: str, device: torch.device
) -> None:
    # phi depends on x here: a kernel must give partial derivatives only.
    def derivatives(name: str) -> list[Tensor]:
        flow.transformer.kernel = name
        x = start.clone().requires_grad_()
        y, log_slope = flow.value_and_log_slope(x)
        loss = y.sin().sum() + log_slope.sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), [x, *flow.parameters()])
        y, _ = flow.value_and_log_slope(x)
        eye = torch.eye(y.numel()).double().to(device).view(-1, *y.shape)
        (batched,) = torch.autograd.grad(y, x, eye, is_grads_batched=True, retain_graph=True)
        (vmapped,) = torch.vmap(lambda v: torch.autograd.grad(y, x, v, retain_graph=True))(eye)
        return [first.detach(), *second, batched, vmapped]

    make_flow = deep_dense_sigmoidal_flow if layers else deep_sigmoidal_flow
    flow = make_flow(3, [8], 4, order=order).to(device).double()
    roughen(flow)
    start = torch.randn(4, 3).double().to(device)
    assert_equal(derivatives(kernel), derivatives("plain"), 1e-11)
