"""Which kernel runs, and that the plain formula steps in wherever the others cannot."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from registry import needs_compiler
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_naf import deep_dense_sigmoidal_flow, deep_sigmoidal_flow, kernels
from pyro_naf.kernels import library, triton
from pyro_naf.transformers import DeepDenseSigmoidal, DeepSigmoidal

FACTORIES = [DeepSigmoidal, DeepDenseSigmoidal]


def choose(transformer: DeepSigmoidal | DeepDenseSigmoidal, x: Tensor, phi: Tensor) -> str:
    """The name of the kernel for these tensors."""
    return kernels.choose(transformer.kernel, transformer.spec(), x, phi).name


def test_the_eager_kernel_of_earlier_versions_is_the_automatic_choice() -> None:
    for make in (DeepSigmoidal, deep_sigmoidal_flow):
        with pytest.warns(DeprecationWarning, match="'auto', or 'plain'") as caught:
            made: Any = make(4, kernel="eager")
        assert [warning.filename for warning in caught] == [__file__]
    old = made.transformer
    assert old.kernel == "auto"
    old.kernel = "eager"  # as in a pickle of such a version
    x, phi = torch.randn(3), torch.randn(3, old.num_params)
    assert choose(old, x, phi) == choose(DeepSigmoidal(), x, phi)


@pytest.mark.parametrize("factory", [*FACTORIES, lambda **kw: deep_sigmoidal_flow(2, **kw)])
def test_an_unknown_kernel_is_named(factory: Callable[..., object]) -> None:
    message = "kernel must be one of auto, ready, plain, compiled, triton, got 'fast'"
    with pytest.raises(ValueError, match=re.escape(message)):
        factory(kernel="fast")


def test_the_environment_overrides_every_transformer(monkeypatch: pytest.MonkeyPatch) -> None:
    x, phi = torch.randn(3), torch.randn(3, 12)
    both = DeepSigmoidal(4), DeepSigmoidal(4, kernel="plain")
    fastest = "compiled" if library.available() else "plain"
    assert [choose(dsf, x, phi) for dsf in both] == [fastest, "plain"]
    for name in ("plain", "compiled"):
        monkeypatch.setenv("PYRO_NAF_KERNEL", name)
        assert [choose(dsf, x, phi) for dsf in both] == [name if name == "plain" else fastest] * 2
    monkeypatch.setenv("PYRO_NAF_KERNEL", "fast")
    with pytest.raises(ValueError, match=r"PYRO_NAF_KERNEL must be one of .* got 'fast'"):
        DeepSigmoidal(4)(x, phi)


def test_triton_is_refused_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    if triton.is_installed():
        triton.load_operators()  # while the environment still says how
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x, phi = torch.randn(3), torch.randn(3, 12)
    for found, message in [(True, "on a CUDA device, got cpu"), (False, "is not installed")]:
        monkeypatch.setattr(triton, "is_installed", lambda found=found: found)
        with pytest.raises(RuntimeError, match=message):
            DeepSigmoidal(4, kernel="triton")(x, phi)


@pytest.mark.skipif(not triton.is_installed(), reason="needs the package triton")
def test_more_units_than_registers_hold_take_the_plain_formula(device: torch.device) -> None:
    ddsf = DeepDenseSigmoidal(65, 1, kernel="triton")
    tensors = torch.randn(3, device=device), torch.randn(3, 195, device=device)
    assert choose(ddsf, *tensors) == "plain"


def test_a_gpu_without_triton_takes_the_plain_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGPU:
        device, dtype = torch.device("cuda"), torch.float

    monkeypatch.setattr(triton, "is_installed", lambda: False)
    x: Tensor = OnGPU()  # type: ignore[assignment]
    for kernel in ("auto", "compiled"):  # the second is for a CPU, and elsewhere like the first
        assert choose(DeepSigmoidal(4, kernel=kernel), x, x) == "plain"


@pytest.mark.parametrize("kernel", ["auto", "compiled"])
def test_modes_that_look_into_operations_get_the_plain_formula(kernel: str) -> None:
    dsf = DeepSigmoidal(4, kernel=kernel)
    x, phi = torch.randn(3), torch.randn(3, 12)
    plain = dsf.plain(x, phi)

    def chosen(x: Tensor) -> Tensor:
        assert choose(dsf, x, phi) == "plain"
        return dsf(x, phi)[0]

    torch.testing.assert_close(torch.func.vmap(lambda x, p: dsf(x, p)[0])(x, phi), plain[0])
    _, tangent = torch.func.jvp(chosen, (x,), (torch.ones(3),))
    torch.testing.assert_close(tangent, plain[1].exp())
    torch.testing.assert_close(torch.func.jacrev(chosen)(x).diagonal(), plain[1].exp())
    torch.testing.assert_close(torch.jit.trace(chosen, x, check_trace=False)(x), plain[0])
    torch.testing.assert_close(torch.compile(chosen, backend="eager")(x), plain[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chosen(x)


@pytest.mark.parametrize("kernel", ["auto", "compiled"])
def test_mixed_and_other_dtypes_get_the_plain_formula(kernel: str) -> None:
    dsf = DeepSigmoidal(4, kernel=kernel)
    x, phi = torch.randn(3), torch.randn(3, 12)
    for x_dtype, phi_dtype in [
        (torch.float, torch.double),
        (torch.double, torch.float),
        (torch.float, torch.bfloat16),
        (torch.bfloat16, torch.bfloat16),
    ]:
        inputs = x.to(x_dtype), phi.to(phi_dtype)
        # Of 16 bits the formula reads the numbers, and computes in float32.
        wide = [t.to(torch.promote_types(t.dtype, torch.float)) for t in inputs]
        for got, true in zip(dsf(*inputs), dsf.plain(*wide), strict=True):
            torch.testing.assert_close(got, true.to(got.dtype))


@pytest.mark.parametrize("make", [deep_sigmoidal_flow, deep_dense_sigmoidal_flow])
def test_flows_agree_whatever_the_kernel(make: Callable[..., object]) -> None:
    torch.manual_seed(0)
    flow = make(3, kernel="plain").double()
    x = torch.randn(5, 3).double()
    values = {}
    for name in ("plain", "auto"):
        flow.transformer.kernel = name
        flow.clear_cache()
        y = flow(x)
        loss = flow.log_abs_det_jacobian(x, y).sum() - y.square().sum()
        values[name] = [y, *torch.autograd.grad(loss, list(flow.parameters()))]
    for got, true in zip(*values.values(), strict=True):
        torch.testing.assert_close(got, true, rtol=1e-12, atol=1e-12)


def test_batched_gradients_get_the_plain_formula() -> None:
    dsf = DeepSigmoidal(4).double()
    x, phi = torch.randn(3).double().requires_grad_(), torch.randn(3, 12).double()
    y, log_slope = dsf(x, phi)
    (jacobian,) = torch.autograd.grad(y, x, torch.eye(3).double(), is_grads_batched=True)
    torch.testing.assert_close(jacobian.diagonal(), log_slope.exp())


def test_a_second_backward_pass_gives_the_same() -> None:
    for transformer in (DeepSigmoidal(4), DeepDenseSigmoidal(4)):
        phi = torch.randn(9, transformer.num_params).requires_grad_()
        y, log_slope = transformer(torch.randn(9), phi)
        loss = y.sin().sum() + log_slope.sum()
        first, second = (torch.autograd.grad(loss, phi, retain_graph=True)[0] for _ in "12")
        assert torch.equal(first, second)


def test_a_change_of_the_inputs_before_backward_is_refused() -> None:
    x, phi = torch.randn(9), torch.randn(9, 12).requires_grad_()
    y, _ = DeepSigmoidal(4)(x, phi)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@needs_compiler
@pytest.mark.parametrize("factory", FACTORIES)
def test_only_inputs_are_saved_for_backward(
    factory: Callable[..., DeepSigmoidal | DeepDenseSigmoidal],
) -> None:
    transformer = factory(16, kernel="compiled")
    x = torch.randn(400, 8)
    phi = torch.randn(8, transformer.num_params, 400).permute(2, 0, 1).requires_grad_()
    saved = set()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.add(t.untyped_storage().data_ptr()) or t, lambda t: t
    ):
        _kept = transformer(x, phi)  # with its graph
    inputs = {t.untyped_storage().data_ptr() for t in (x, phi, *transformer.parameters())}
    assert saved == inputs


@pytest.mark.skipif(not triton.is_installed(), reason="needs the package triton")
@pytest.mark.parametrize("make", [deep_sigmoidal_flow, deep_dense_sigmoidal_flow])
def test_a_fused_inverse_waits_for_the_device_as_often_for_many_dimensions_as_for_few(
    make: Callable[..., Any], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[str] = []

    def counted(name: str, true: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
        def read(tensor: Tensor) -> Any:
            waits.append(name)
            return true(tensor)

        return read

    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(Tensor, name, counted(name, getattr(Tensor, name)))
    counts = {}
    for dim in (2, 7):
        flow = make(dim, hidden_units=4, kernel="triton").to(device)
        y = torch.randn(5, dim, device=device)
        waits.clear()
        flow.inv(y)
        counts[dim] = list(waits)
    # Is y finite; the order; the degrees, which stay on the host; were all roots found.
    assert counts[2] == counts[7]
    assert len(counts[2]) == 4


@pytest.mark.parametrize("kernel", ["auto", "plain"])
def test_fake_tensors_and_make_fx_pass_through(kernel: str) -> None:
    dsf = DeepSigmoidal(4, kernel=kernel)
    x, phi = torch.randn(5, 2), torch.randn(5, 2, 12)
    graph = make_fx(lambda x, phi: dsf(x, phi)[0])(x, phi)
    torch.testing.assert_close(graph(x, phi), dsf(x, phi)[0])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert dsf(mode.from_tensor(x), mode.from_tensor(phi))[0].shape == (5, 2)


@pytest.mark.skipif(not triton.is_installed(), reason="needs the package triton")
@pytest.mark.parametrize("factory", FACTORIES)
def test_the_triton_operators_compile_through_the_transformer(
    factory: Callable[..., Any], device: torch.device
) -> None:
    transformer = factory(4, kernel="triton").to(device)
    x = torch.randn(5, 2, device=device)
    phi = torch.randn(5, 2, transformer.num_params, device=device)
    whole = torch.compile(transformer, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(x, phi), transformer(x, phi))
