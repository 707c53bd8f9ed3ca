"""The compiled kernel beyond the battery: its compiler, its threads, its tiles."""

from __future__ import annotations

import copy
import mmap
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import torch
import torch._inductor.config
from registry import needs_compiler
from torch import Tensor
from torch._inductor.codecache import CppCodeCache
from torch._inductor.exc import InvalidCxxCompiler
from torch._subclasses.fake_tensor import FakeTensorMode

from pyro_naf import deep_dense_sigmoidal_flow, deep_sigmoidal_flow
from pyro_naf.kernels import choose as choose_kernel
from pyro_naf.kernels import compiled, library
from pyro_naf.rootfinding import RootNotFoundError
from pyro_naf.support import pages
from pyro_naf.transformers import DeepDenseSigmoidal, DeepSigmoidal, Scaled

FACTORIES = [DeepSigmoidal, DeepDenseSigmoidal]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def evaluate(transformer: Any, x: Tensor, phi: Tensor) -> list[Tensor]:
    """Value, log-slope, and the gradients of x, phi and the matrices."""
    inputs = [x.clone().requires_grad_(), phi.clone().requires_grad_()]
    y, log_slope = transformer(*inputs)
    wanted = [*inputs, *transformer.parameters()]
    return [y, log_slope, *torch.autograd.grad((y.sin() + log_slope).sum(), wanted)]


def choose(transformer: Any, x: Tensor, phi: Tensor) -> str:
    """The name of the kernel for these tensors."""
    return choose_kernel(transformer.kernel, transformer.spec(), x, phi).name


def plain(transformer: Any) -> Any:
    """The same, evaluated by the plain formula."""
    twin = copy.deepcopy(transformer)
    getattr(twin, "inner", twin).kernel = "plain"
    return twin


@needs_compiler
@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 77), (64, 2), (131, 3), (1000, 1)])
def test_parts_of_tiles_and_any_number_of_threads_give_the_same(
    factory: Callable[..., Any],
    shape: tuple[int, int],
    threads: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiled, "UNITS_EACH_THREAD", 1)
    transformer = factory(5, kernel="compiled").double()
    x, phi = torch.randn(shape).double(), torch.randn(*shape, transformer.num_params).double()
    true = evaluate(plain(transformer), x, phi)
    side_by_side = phi.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as MADE returns it
    for count in (1, 2, 5):
        threads(count)
        for order in (phi, side_by_side):
            for got, expected in zip(evaluate(transformer, x, order), true, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float, torch.double])
@pytest.mark.parametrize("factory", FACTORIES)
def test_what_is_not_a_number_stays_in_its_lane(
    factory: Callable[..., Any], dtype: torch.dtype
) -> None:
    transformer = factory(4, kernel="compiled").to(dtype)
    x, phi = torch.randn(70).to(dtype), torch.randn(70, transformer.num_params).to(dtype)
    x[3], x[5], x[6] = torch.nan, torch.inf, -torch.inf
    lost = [3, 5, 6, *range(10, 10 + transformer.num_params)]
    for i in range(transformer.num_params):
        phi[10 + i, i] = torch.nan
    y, log_slope, grad_x, grad_phi, *_ = evaluate(transformer, x, phi)
    for found in (y, log_slope, grad_x, grad_phi.sum(-1)):
        assert torch.isnan(found).nonzero().flatten().tolist() == lost


@needs_compiler
@pytest.mark.parametrize("make", [deep_sigmoidal_flow, deep_dense_sigmoidal_flow])
def test_a_flow_runs_both_ways(make: Callable[..., Any]) -> None:
    flow = make(5, hidden_units=4, kernel="compiled").double()
    x = torch.randn(20, 5).double()
    y = flow(x).detach().requires_grad_()
    flow.clear_cache()
    back = flow.inv(y)
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    (got,) = torch.autograd.grad(back.square().sum(), y)
    flow.transformer.kernel = "plain"
    flow.clear_cache()
    (true,) = torch.autograd.grad(flow.inv(y).square().sum(), y)
    torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "failure", [InvalidCxxCompiler(), OSError("No space left"), RuntimeError("C++ compile error")]
)
def test_a_compiler_that_fails_is_reported_once_and_replaced(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # where nothing was built before

    def fail(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr(CppCodeCache, "load_async", fail)
    library.library.cache_clear()
    dsf = DeepSigmoidal(4)
    x, phi = torch.randn(5), torch.randn(5, 12)
    try:
        with pytest.warns(
            UserWarning, match=rf"{type(failure).__name__}.*; flows evaluate the plain formula"
        ):
            got = dsf(x, phi)
        assert choose(dsf, x, phi) == "plain"
        assert torch.equal(got[0], DeepSigmoidal(4, kernel="plain")(x, phi)[0])
        dsf(x, phi)  # and does not say so twice
    finally:
        library.library.cache_clear()


@needs_compiler
def test_what_is_built_once_is_loaded_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise InvalidCxxCompiler()

    built = library.library()._name
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    place = library.place()
    place.parent.mkdir(parents=True)
    copyfile(built, place)
    monkeypatch.setattr(CppCodeCache, "load_async", fail)
    library.library.cache_clear()
    try:
        assert choose(DeepSigmoidal(4), torch.randn(5), torch.randn(5, 12)) == "compiled"
    finally:
        library.library.cache_clear()


@needs_compiler
def test_ready_waits_for_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    dsf, x, phi = DeepSigmoidal(4, kernel="ready"), torch.randn(5), torch.randn(5, 12)
    assert choose(dsf, x, phi) == "compiled"
    monkeypatch.setattr(library, "is_built", lambda: False)
    assert choose(dsf, x, phi) == "plain"


@needs_compiler
@pytest.mark.parametrize("layers", [0, 1, 4])
def test_an_affine_map_has_the_whole_range_of_float32(layers: int) -> None:
    inner = DeepDenseSigmoidal(4, layers) if layers else DeepSigmoidal(4)
    inner.kernel = "compiled"
    transformer = Scaled(inner)
    x, phi = torch.randn(9), torch.randn(9, transformer.num_params)
    phi[:, -1] = torch.tensor([-88.0, -60, -10, -1, 0, 1, 10, 60, 88])
    got, true = transformer(x, phi), plain(transformer).double()(x.double(), phi.double())
    for a, b in zip(got, true, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("factory", FACTORIES)
def test_a_root_that_float32_cannot_hold_is_reported(factory: Callable[..., Any]) -> None:
    transformer = factory(4, kernel="compiled")
    phi = torch.zeros(20, transformer.num_params)
    phi[7, :4] = 1e7  # slopes
    phi[7, 4:8] = -1e7
    phi[12] = torch.nan
    with pytest.raises(RootNotFoundError, match=r"for [12] of 20 samples"):
        transformer.inverse(torch.linspace(-2, 2, 20), phi)


@needs_compiler
@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize("wrong", [-4, -1, 1, 32])
def test_another_width_of_the_pseudo_parameters_is_refused(
    factory: Callable[..., Any], wrong: int
) -> None:
    for transformer in (factory(4, kernel="compiled"), Scaled(factory(4, kernel="compiled"))):
        width = transformer.num_params
        phi = torch.zeros(5, width + wrong)
        message = re.escape(f"phi must have shape (..., {width}), got (..., {width + wrong})")
        with pytest.raises(ValueError, match=message):
            transformer(torch.zeros(5), phi)


@needs_compiler
def test_what_the_loops_cannot_read_takes_the_plain_formula() -> None:
    x, phi = torch.randn(3), torch.randn(3, 28)
    assert choose(DeepDenseSigmoidal(4, kernel="compiled"), x, phi) == "compiled"
    for name in ("double", "half"):  # the matrices and the biases
        other = getattr(DeepDenseSigmoidal(4, kernel="compiled"), name)()
        assert choose(other, x, phi) == "plain"
    ddsf = DeepDenseSigmoidal(4, kernel="compiled")
    ddsf.w[0].data = ddsf.w[0].data.double()
    assert choose(ddsf, x, phi) == "plain"
    assert choose(DeepDenseSigmoidal(4, kernel="compiled").to("meta"), x, phi) == "plain"
    fake = FakeTensorMode().from_tensor(phi)
    assert choose(DeepDenseSigmoidal(4, kernel="compiled"), x, fake) == "plain"


@needs_compiler
def test_tensors_whose_sign_lies_beside_their_memory_are_read_with_it() -> None:
    dsf = DeepSigmoidal(4, kernel="compiled").double()
    negated = torch.complex(torch.zeros(3, 12), torch.randn(3, 12)).to(torch.cdouble).conj().imag
    phi = negated.clone().requires_grad_()
    y, log_slope = dsf(torch.ones(3).double(), phi)
    got = dsf(torch.ones(3).double(), negated)
    torch.testing.assert_close(got, (y, log_slope))
    grad = torch.complex(torch.ones(3), torch.ones(3)).to(torch.cdouble).conj()
    (found,) = torch.autograd.grad(torch.complex(y, log_slope), phi, grad, retain_graph=True)
    (true,) = torch.autograd.grad(y.sum() - log_slope.sum(), phi)
    torch.testing.assert_close(found, true)


@needs_compiler
def test_a_module_may_change_its_dtype_before_the_backward_pass() -> None:
    dsf = DeepSigmoidal(4, kernel="compiled").double()
    phi = torch.randn(3, 12).double().requires_grad_()
    y, _ = dsf(torch.ones(3).double(), phi)
    (true,) = torch.autograd.grad(y.sum(), phi, retain_graph=True)
    dsf.float()
    (found,) = torch.autograd.grad(y.sum(), phi)
    assert torch.equal(found, true)


@needs_compiler
def test_what_inductors_own_kernels_may_round_is_not_rounded_here() -> None:
    library.library.cache_clear()
    try:
        with torch._inductor.config.patch("cpp.enable_unsafe_math_opt_flag", True):
            test_what_is_not_a_number_stays_in_its_lane(DeepDenseSigmoidal, torch.double)
            test_a_flow_runs_both_ways(deep_dense_sigmoidal_flow)
    finally:
        library.library.cache_clear()


@pytest.mark.parametrize("advise", [pages._advise, lambda: None])
def test_large_pages_change_no_number(
    advise: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_advise", advise)
    for numel in (0, 3, pages.WORTH // 4, pages.WORTH + 1):
        fresh = torch.empty(numel)
        assert pages.in_large_pages(fresh) is fresh
        assert fresh.fill_(1).sum() == numel


@pytest.mark.skipif(pages._advise() is None, reason="the system has no large pages")
def test_large_pages_are_asked_for_within_large_tensors_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(pages, "_advise", lambda: lambda start, n, _: asked.append((start, n)))
    pages.in_large_pages(torch.empty(pages.WORTH // 4 - 1))
    large = pages.in_large_pages(torch.empty(pages.WORTH // 4 + 1))
    ((start, size),) = asked
    assert start % mmap.PAGESIZE == 0 and 0 <= start - large.data_ptr() < mmap.PAGESIZE
    assert start + size == large.data_ptr() + 4 * large.numel()
