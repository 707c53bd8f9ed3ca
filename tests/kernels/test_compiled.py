"""The compiled kernel beyond the battery: its compiler, its threads, its tiles."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.codecache import CppCodeCache
from torch._inductor.exc import InvalidCxxCompiler

from pyro_naf import deep_dense_sigmoidal_flow, deep_sigmoidal_flow
from pyro_naf.kernels import choose, compiled
from pyro_naf.transformers import DeepDenseSigmoidal, DeepSigmoidal

FACTORIES = [DeepSigmoidal, DeepDenseSigmoidal]

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


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
    plain = copy.deepcopy(transformer)
    plain.kernel = "plain"
    true = evaluate(plain, x, phi)
    for count in (1, 2, 5):
        threads(count)
        for got, expected in zip(evaluate(transformer, x, phi), true, strict=True):
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
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr(CppCodeCache, "load", fail)
    compiled._library.cache_clear()
    dsf = DeepSigmoidal(4, kernel="compiled")
    x, phi = torch.randn(5), torch.randn(5, 12)
    try:
        with pytest.warns(UserWarning, match=rf"{type(failure).__name__}.*; .* runs eagerly"):
            got = dsf(x, phi)
        assert choose(dsf, x, phi) == "eager"
        assert torch.equal(got[0], DeepSigmoidal(4, kernel="eager")(x, phi)[0])
        dsf(x, phi)  # and does not say so twice
    finally:
        compiled._library.cache_clear()


def test_biases_of_another_dtype_take_the_plain_formula() -> None:
    dsf = DeepSigmoidal(4, kernel="compiled").double()
    assert choose(dsf, torch.randn(3), torch.randn(3, 12)) == "plain"
