"""The Triton kernels against the plain formula in float64; without a GPU, interpreted."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from registry import sharp_parameters, unconstrained
from torch import Tensor

from pyro_naf.rootfinding import RootNotFoundError
from pyro_naf.transformers import DeepDenseSigmoidal, DeepSigmoidal

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("without a GPU these tests need TRITON_INTERPRET=1", allow_module_level=True)

from pyro_naf.kernels.triton import operators

# The interpreter computes with numpy, which warns where a GPU does not.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered:RuntimeWarning")

Sigmoidal = DeepSigmoidal | DeepDenseSigmoidal

#: Hidden units, and layers: DSF where there are none.
DSF = [(1, 0), (3, 0), (5, 0), (16, 0), (64, 0), (128, 0)]
DDSF = [(5, 1), (1, 2), (5, 2), (16, 2), (20, 2), (40, 2), (4, 3)]
SOME = [(5, 0), (5, 2)]


@pytest.fixture
def device(device: torch.device) -> torch.device:
    """The interpreter is for machines without a GPU only."""
    return torch.device("cuda") if torch.cuda.is_available() else device


def make(units: int, layers: int, device: torch.device, dtype: torch.dtype) -> Sigmoidal:
    plain = DeepDenseSigmoidal(units, layers) if layers else DeepSigmoidal(units)
    return plain.to(device, dtype)


def sharp(
    units: int, layers: int, samples: int, centred: bool, device: torch.device
) -> tuple[Sigmoidal, Tensor]:
    """A transformer in float32, and pseudo-parameters ``(samples, 1, P)`` that make it sharp."""
    transformer = make(units, layers, torch.device("cpu"), torch.float)
    slope = 50 ** (1 / max(layers, 1))
    params = sharp_parameters(transformer, samples, max_slope=slope, centred=centred)
    phi = unconstrained(transformer, params).float().unsqueeze(1).to(device)
    return transformer.to(device), phi


def kernel(transformer: Sigmoidal, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    return operators.evaluate(transformer.spec(), x, phi)


def root(transformer: Sigmoidal, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    return operators.root(transformer.spec(), y, phi)


def inputs(
    transformer: Sigmoidal, device: torch.device, dtype: torch.dtype, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """x ``(B, D)`` and, in the conditioners' memory order (D, P, B), phi ``(B, D, P)``."""
    batch, dim = shape
    x = 3 * torch.randn(batch, dim, device=device, dtype=dtype)
    phi = torch.randn(dim, transformer.num_params, batch, device=device, dtype=dtype)
    return x, phi.permute(2, 0, 1)


def gradients(
    f: Callable[..., tuple[Tensor, Tensor]], transformer: Sigmoidal, x: Tensor, phi: Tensor
) -> list[Tensor]:
    """Value, log-slope and the gradients of a fixed combination of the two."""
    x, phi = x.detach().requires_grad_(), phi.detach().requires_grad_()
    y, log_slope = f(transformer, x, phi)
    weights = torch.linspace(-1, 1, 2 * x.numel(), device=x.device).view(2, *x.shape)
    total = (weights[0] * y + weights[1] * log_slope).sum()
    return [y, log_slope, *torch.autograd.grad(total, [x, phi, *transformer.parameters()])]


def plain(transformer: Sigmoidal, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    return transformer(x, phi)


def exactly(
    f: Callable[..., Any], transformer: Sigmoidal, x: Tensor, phi: Tensor
) -> Sequence[Tensor]:
    """``f`` of the plain formula in float64."""
    return f(plain, copy.deepcopy(transformer).double(), x.double(), phi.double())


def relative(got: Tensor, exact: Tensor) -> float:
    """The largest difference, relative to max(1, |exact|)."""
    return float(((got - exact).abs() / exact.abs().clamp(min=1)).detach().max())


# ------------------------------------------------------------------------------- value and gradient


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
@pytest.mark.parametrize("units, layers", DSF + DDSF)
def test_value_log_slope_and_gradients_are_those_of_the_plain_formula(
    units: int, layers: int, dtype: torch.dtype, device: torch.device
) -> None:
    transformer = make(units, layers, device, dtype)
    x, phi = inputs(transformer, device, dtype, (35, 2))
    got = gradients(kernel, transformer, x, phi)
    exact = exactly(gradients, transformer, x, phi)
    tolerance = {torch.float: 5e-6, torch.double: 1e-13}[dtype]
    of_plain = gradients(type(transformer).plain, transformer, x, phi)
    for g, e, p in zip(got, exact, of_plain, strict=True):
        assert relative(g, e) <= max(tolerance, 4 * relative(p, e))


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("units, layers", [(5, 0), (64, 0), (5, 1), (5, 2)])
def test_float32_is_right_far_out(
    units: int, layers: int, flat: bool, device: torch.device
) -> None:
    # At zero pseudo-parameters all slopes are equal, and every unit counts however far out x is.
    transformer = make(units, layers, device, torch.float)
    x = torch.tensor([1e3, 1e6, 1e8, 1e20], device=device)
    x = torch.cat([x, -x]).unsqueeze(1)
    phi = torch.randn(8, 1, transformer.num_params, device=device)
    got = kernel(transformer, x, 0 * phi if flat else phi)
    exact = transformer.double()(x.double(), (0 * phi if flat else phi).double())
    assert relative(got[0], exact[0]) <= 1e-6
    assert relative(got[1], exact[1]) <= 5e-6


@pytest.mark.parametrize("units, layers", SOME)
def test_float32_gradients_far_out_are_those_of_the_plain_formula(
    units: int, layers: int, device: torch.device
) -> None:
    transformer = make(units, layers, device, torch.float)
    far = torch.logspace(1, 6, 16, device=device)
    x = torch.cat([far, -far]).unsqueeze(1)
    phi = torch.randn(32, 1, transformer.num_params, device=device)
    got = gradients(kernel, transformer, x, phi)
    exact = exactly(gradients, transformer, x, phi)
    for g, e in zip(got, exact, strict=True):
        # The slopes' gradients are proportional to x: so are their roundings.
        scale = x.abs().view(-1, 1, 1) if g.dim() == 3 else x.abs().max() if g.dim() == 2 else 1
        assert ((g - e).abs() <= 5e-6 * (e.abs() + scale)).all()


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("units, layers", [(4, 0), (16, 0), (4, 2), (16, 2)])
def test_float32_is_as_right_as_the_plain_formula_for_sharp_parameters(
    units: int, layers: int, centred: bool, device: torch.device
) -> None:
    transformer, phi = sharp(units, layers, 300, centred, device)
    x = (torch.rand(300, 1) * 20 - 10).to(device)
    got, single = kernel(transformer, x, phi), transformer(x, phi)
    exact = copy.deepcopy(transformer).double()(x.double(), phi.double())
    for g, s, e in zip(got, single, exact, strict=True):
        # Centred units step far from zero, where the interpreter, which fuses no multiplication
        # with an addition, rounds a x + b once more.
        assert relative(g, e) <= (4 if centred else 2) * relative(s, e) + 1e-6
    found = gradients(kernel, transformer, x * 1e5, phi)
    assert all(bool(torch.isfinite(t).all()) for t in found)


# --------------------------------------------------------------------- memory orders, dtypes, sizes


def orders(x: Tensor, phi: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """The same numbers in other memory orders; the last pair are those of the first sample."""
    wide = phi.repeat_interleave(2, -1)
    return {
        "rows": (x.contiguous(), phi.contiguous()),
        "columns": (x.T.contiguous().T, phi.permute(1, 2, 0).contiguous().permute(2, 0, 1)),
        "every other": (x.repeat_interleave(3, 1)[:, ::3], wide[..., ::2]),
        "expanded": (x, phi[:1].expand_as(phi)),
        "both expanded": (x[:1].expand_as(x), phi[:1, :1].expand_as(phi)),
    }


@pytest.mark.parametrize("order", orders(torch.ones(1, 1), torch.ones(1, 1, 1)))
@pytest.mark.parametrize("units, layers", SOME)
def test_memory_order_changes_nothing(
    units: int, layers: int, order: str, device: torch.device
) -> None:
    transformer = make(units, layers, device, torch.double)
    x, phi = orders(*inputs(transformer, device, torch.double, (9, 3)))[order]
    got = gradients(kernel, transformer, x, phi)
    exact = gradients(plain, transformer, x, phi)
    torch.testing.assert_close(got, exact, rtol=1e-12, atol=1e-12)


def test_gradient_lies_in_memory_as_phi_does(device: torch.device) -> None:
    transformer = make(4, 0, device, torch.float)
    x, phi = inputs(transformer, device, torch.float, (6, 2))
    assert phi.stride() == (1, 72, 6)
    _, _, _, grad = gradients(kernel, transformer, x, phi)
    assert grad.stride() == phi.stride()


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.half])
@pytest.mark.parametrize("units, layers", SOME)
def test_arithmetic_on_16_bit_parameters_is_float32(
    units: int, layers: int, narrow: torch.dtype, device: torch.device
) -> None:
    transformer = make(units, layers, device, torch.float)
    x, phi = inputs(transformer, device, torch.float, (9, 2))
    phi = phi.to(narrow)
    got = gradients(kernel, transformer, x, phi)
    exact = exactly(gradients, transformer, x, phi)
    assert [g.dtype for g in got[:4]] == [torch.float, torch.float, torch.float, narrow]
    eps = torch.finfo(narrow).eps
    for index, (g, e) in enumerate(zip(got, exact, strict=True)):
        assert relative(g, e) <= (eps if index == 3 else 5e-6)


def test_the_wider_of_two_dtypes_is_that_of_the_arithmetic(device: torch.device) -> None:
    transformer = make(4, 2, device, torch.float)
    x, phi = inputs(transformer, device, torch.float, (9, 2))
    for inputs_of in ((x.double(), phi), (x, phi.double())):
        got = gradients(kernel, transformer, *inputs_of)
        exact = exactly(gradients, transformer, *inputs_of)
        assert got[0].dtype == got[1].dtype == torch.double
        assert max(relative(g, e) for g, e in zip(got[:2], exact[:2], strict=True)) <= 1e-14
        assert [g.dtype for g in got[2:4]] == [t.dtype for t in inputs_of]


@pytest.mark.parametrize("units, layers", SOME)
def test_unsupported_dtypes_are_named(units: int, layers: int, device: torch.device) -> None:
    transformer = make(units, layers, device, torch.float)
    x, phi = inputs(transformer, device, torch.float, (3, 2))
    for f in (kernel, root):
        with pytest.raises(TypeError, match=r"x is torch.bfloat16, expected torch.float32 or"):
            f(transformer, x.bfloat16(), phi)
        with pytest.raises(TypeError, match=r"phi is torch.int32, expected torch.float32 or"):
            f(transformer, x, phi.int())


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
@pytest.mark.parametrize("units, layers", SOME)
def test_an_empty_batch_has_empty_results(
    units: int, layers: int, shape: tuple[int, int], device: torch.device
) -> None:
    transformer = make(units, layers, device, torch.float)
    x, phi = inputs(transformer, device, torch.float, shape)
    y, log_slope, grad_x, grad_phi, *grad_matrices = gradients(kernel, transformer, x, phi)
    assert y.shape == log_slope.shape == grad_x.shape == shape
    assert grad_phi.shape == phi.shape
    assert all((g == 0).all() for g in grad_matrices)
    assert all(t.shape == shape for t in root(transformer, x, phi))


# ------------------------------------------------------------------------------------------ inverse


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
@pytest.mark.parametrize("units, layers", [(1, 0), (5, 0), (64, 0), (5, 1), (5, 2), (4, 3)])
def test_inverse_is_that_of_find_root(
    units: int, layers: int, dtype: torch.dtype, device: torch.device
) -> None:
    transformer = make(units, layers, device, dtype)
    y, phi = inputs(transformer, device, dtype, (40, 1))
    y[:4] = torch.tensor([1e3, -1e3, 1e6, -1e6], device=device, dtype=dtype).unsqueeze(1)
    x, error = root(transformer, y, phi)
    assert (error == 0).all()
    eps = torch.finfo(dtype).eps
    value, log_slope = transformer.double()(x.double(), phi.double())
    spacing = eps * x.abs() * log_slope.exp()
    assert ((value - y).abs() <= 64 * eps * y.abs().clamp(min=1) + 4 * spacing).all()
    expected = transformer.inverse(y.double().view(-1), phi.double().reshape(y.numel(), -1))
    difference = (x - expected.view_as(x)).abs() * log_slope.exp()
    assert (difference <= 64 * eps * y.abs().clamp(min=1) + 4 * spacing).all()


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("units, layers", [(2, 0), (16, 0), (4, 2)])
def test_inverse_converges_for_sharp_parameters(
    units: int, layers: int, centred: bool, device: torch.device
) -> None:
    transformer, phi = sharp(units, layers, 128, centred, device)
    x, error = root(transformer, 5 * torch.randn(128, 1, device=device), phi)
    assert (error == 0).all() and torch.isfinite(x).all()


@pytest.mark.parametrize("units, layers", SOME)
def test_lanes_without_a_number_are_flagged_and_leave_the_others_alone(
    units: int, layers: int, device: torch.device
) -> None:
    transformer = make(units, layers, device, torch.float)
    y, phi = inputs(transformer, device, torch.float, (6, 1))
    expected, _ = root(transformer, y, phi)
    y[0], y[1], phi[2, 0, 1], phi[3, 0, -1] = torch.nan, torch.inf, torch.nan, torch.nan
    x, error = root(transformer, y, phi)
    assert not bool((error[:4] < torch.inf).any())
    assert torch.equal(x[4:], expected[4:]) and bool((error[4:] == 0).all())


def test_a_root_between_two_numbers_of_the_dtype_is_flagged(device: torch.device) -> None:
    # At x = -100 the numbers of float32 are 7.6e-6 apart: 0.08 in y.
    transformer = make(1, 0, device, torch.float)
    phi = torch.tensor([[[1e4, 1e6, 0.0]]], device=device)
    y = torch.full((1, 1), 0.3, device=device)
    _, error = root(transformer, y, phi)
    assert 1e-3 < error.item() < 1
    with pytest.raises(RootNotFoundError):
        transformer.inverse(y.view(1), phi.view(1, 3))


# ----------------------------------------------------------------------------- as torch's operators


def calls(transformer: Sigmoidal, x: Tensor, phi: Tensor) -> list[tuple[Any, tuple[Any, ...]]]:
    """The three operators, each with arguments."""
    spec = transformer.spec()
    numbers = spec.layers, spec.shift, spec.floor
    args = x, phi, spec.biases, spec.packed().detach(), *numbers
    grads = torch.randn_like(x), torch.randn_like(x)
    return [
        (operators.forward, args),
        (operators.backward, (*args, *grads)),
        (operators.inverse, args),
    ]


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("units, layers", [(3, 0), (2, 2)])
def test_operators_pass_opcheck(units: int, layers: int, index: int, device: torch.device) -> None:
    transformer = make(units, layers, device, torch.float)
    x, phi = inputs(transformer, device, torch.float, (3, 2))
    operator, args = calls(transformer, x, phi)[index]
    if index == 0:
        args[0].requires_grad_(), args[1].requires_grad_()
    torch.library.opcheck(operator, args)


@pytest.mark.parametrize("order", ["columns", "expanded", "both expanded"])
@pytest.mark.parametrize("units, layers", [(3, 0), (2, 2)])
def test_fake_tensors_have_the_shapes_strides_and_dtypes_of_real_ones(
    units: int, layers: int, order: str, device: torch.device
) -> None:
    transformer = make(units, layers, device, torch.float)
    x, phi = orders(*inputs(transformer, device, torch.float, (3, 2)))[order]
    for operator, args in calls(transformer, x, phi.bfloat16()):
        real = operator(*args)
        with torch._subclasses.FakeTensorMode() as mode:
            tensors = (mode.from_tensor(t) if isinstance(t, Tensor) else t for t in args)
            fake = operator(*tensors)
        for r, f in zip(real, fake, strict=True):
            assert (r.shape, r.stride(), r.dtype) == (f.shape, f.stride(), f.dtype)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("units, layers", [(3, 0), (2, 2)])
def test_compiles_without_a_graph_break(
    units: int, layers: int, backend: str, device: torch.device
) -> None:
    transformer = make(units, layers, device, torch.double)
    x, phi = inputs(transformer, device, torch.double, (3, 2))
    compiled = torch.compile(
        functools.partial(kernel, transformer), backend=backend, fullgraph=True
    )
    got = gradients(lambda _, *args: compiled(*args), transformer, x, phi)
    torch.testing.assert_close(got, gradients(kernel, transformer, x, phi))


# -------------------------------------------------------------------------------------- compilation

COMPILE = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class Offline:  # a driver without a GPU: kernels are compiled, and not run
    get_current_device = get_current_stream = lambda self, device=None: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_active_torch_device = lambda self: torch.device("cpu")

driver.set_active(Offline())
run = JITFunction.run
def compile_only(self, *args, grid, warmup, **options):
    compiled = run(self, *args, grid=grid, warmup=True, **options)
    print(self.__name__, len(compiled.asm["cubin"]), compiled.metadata.shared)
    return compiled
JITFunction.run = compile_only

from pyro_naf.kernels.triton import operators
from pyro_naf.transformers import DeepDenseSigmoidal, DeepSigmoidal

for make in (DeepSigmoidal, DeepDenseSigmoidal):
    transformer = make(16)
    x = torch.zeros(64, 2, requires_grad=True)
    phi = torch.zeros(2, transformer.num_params, 64).permute(2, 0, 1)
    y, log_slope = operators.evaluate(transformer.spec(), x, phi)
    torch.autograd.grad(y.sum() + log_slope.sum(), x)
    operators.root(transformer.spec(), y, phi)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the other tests compile for the GPU")
def test_kernels_compile_for_nvidia_gpus(tmp_path: Path) -> None:
    pytest.importorskip("triton.backends.nvidia")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    compiled = [line.split() for line in done.stdout.splitlines()]
    kernels = ["forward_kernel", "backward_kernel", "inverse_kernel"]
    assert [c[0] for c in compiled] == kernels * 2
    # One lane of DSF a thread: no sum over the units leaves its thread.
    assert [c[2] for c in compiled[:3]] == ["0", "0", "0"]
