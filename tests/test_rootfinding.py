"""The bracketed root finder on functions that break plain Newton."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_naf.rootfinding import Increasing, RootNotFoundError, find_root


def increasing(f: Callable[..., Tensor]) -> Increasing:
    """``(value, log_slope)`` of a scalar function, by autograd."""

    def both(x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(f(at, *(p.detach() for p in params)).sum(), at)
        return f(x, *params), slope.log()

    return both


FUNCTIONS = {
    "cubic": lambda x: x**3 + 1e-3 * x,
    "plateaus": lambda x: x / 100 + sum(torch.tanh(50 * (x - c)) for c in (-3.0, 0.5, 4.0)),
    "arctangent with a slope": lambda x: 10 * torch.atan(20 * x) + 1e-4 * x,
    "exponential": lambda x: torch.expm1(x.clamp(max=80.0)) + x,
    "logarithmic": lambda x: torch.asinh(1e6 * x),
    "kink": lambda x: torch.where(x > 1, 100 * (x - 1) + 0.01, 0.01 * x),
    "line": lambda x: 3 * x - 7,
}


class Counted:
    """f, with the number of elements that it was evaluated at."""

    def __init__(self, f: Increasing) -> None:
        self.f, self.elements = f, 0

    def __call__(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        self.elements += x.numel()
        return self.f(x, *params)


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_residual_is_at_rounding_level(name: str, dtype: torch.dtype, device: torch.device) -> None:
    f = increasing(FUNCTIONS[name])
    truth = (5 * torch.randn(500)).to(dtype).to(device)
    y = FUNCTIONS[name](truth)
    ends = torch.full_like(y, 60.0)
    x = find_root(f, y, (), -ends, ends)
    value, log_slope = f(x)
    eps = torch.finfo(dtype).eps
    spacing = 4 * eps * x.abs() * log_slope.exp()
    assert ((value - y).abs() <= 32 * eps * y.abs().clamp(min=1) + spacing).all()


def test_a_bracket_of_any_width_will_do() -> None:
    y = torch.linspace(-2, 2, 50).double()
    x = find_root(
        increasing(torch.asinh), y, (), torch.full_like(y, -1e25), torch.full_like(y, 9.0)
    )
    torch.testing.assert_close(x, y.sinh(), rtol=1e-12, atol=1e-12)


def test_root_may_be_an_end_of_the_bracket() -> None:
    y = torch.tensor([2.0, 2.0, 0.0]).double()
    lo, hi = torch.tensor([2.0, -5.0, 0.0]).double(), torch.tensor([9.0, 2.0, 0.0]).double()
    x = find_root(lambda x: (x, torch.zeros_like(x)), y, (), lo, hi)
    torch.testing.assert_close(x, y)


def test_lanes_have_their_own_parameters() -> None:
    scale = torch.rand(300).double() + 0.1
    shift = torch.randn(300, 2).double()

    def f(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        return scale * x + shift.sum(-1), scale.log()

    y = torch.randn(300).double()
    ends = torch.full_like(y, 1e3)
    x = find_root(f, y, (scale, shift), -ends, ends)
    torch.testing.assert_close(x, (y - shift.sum(-1)) / scale, rtol=1e-10, atol=1e-10)


def test_an_empty_batch_has_no_roots() -> None:
    empty = torch.empty(0)
    assert find_root(lambda x: (x, x), empty, (), empty, empty).shape == (0,)


def test_lanes_that_have_converged_leave_the_batch() -> None:
    # One hard lane among a thousand easy ones must not set the price of all: beside its step it
    # is nearly flat, so that only bisection finds the step.
    steepness = torch.full((1000,), 0.5).double()
    steepness[0] = 1e9

    def f(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        value = torch.tanh(a * (x - 0.1)) + 0.5 * x
        return value, torch.log(a * (1 - torch.tanh(a * (x - 0.1)) ** 2) + 0.5)

    y = torch.linspace(-0.5, 0.5, 1000).double()
    ends = torch.full_like(y, 10.0)
    hard, easy, all_lanes = Counted(f), Counted(f), Counted(f)
    find_root(hard, y[:1], (steepness[:1],), -ends[:1], ends[:1])
    find_root(easy, y[1:], (steepness[1:],), -ends[1:], ends[1:])
    find_root(all_lanes, y, (steepness,), -ends, ends)
    assert hard.elements > 25
    assert all_lanes.elements <= easy.elements + 1000 + 100


def test_newton_is_used_where_it_works() -> None:
    # Bisection alone would need 53 halvings.
    f = Counted(increasing(lambda x: x + 0.5 * torch.sin(x)))
    y = torch.randn(1000).double()
    find_root(f, y, (), y - 1, y + 1)
    assert f.elements <= 8 * 1000


def test_failure_says_how_many_lanes_and_by_how_much() -> None:
    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(x > 0.3, 1.0, -1.0) + 0 * x, torch.zeros_like(x)

    y = torch.tensor([1.0, 0.0, -1.0]).double()  # the second is jumped over
    with pytest.raises(RootNotFoundError, match=r"1 of 3 samples.*= 1\)") as info:
        find_root(step, y, (), -torch.ones(3).double(), torch.ones(3).double())
    assert info.value.failures == 1
    assert info.value.residual == pytest.approx(1.0)


def test_nan_is_a_failure_and_no_endless_loop() -> None:
    nan = torch.tensor([torch.nan, 0.0])
    with pytest.raises(RootNotFoundError, match="1 of 2 samples"):
        find_root(
            lambda x, p: (x + p, 0 * x), torch.zeros(2), (nan,), -torch.ones(2), torch.ones(2)
        )


def test_error_can_be_located() -> None:
    error = RootNotFoundError(2, 5, 0.5).located(" in dimension 3")
    assert "in dimension 3 for 2 of 5 samples" in str(error)
    assert (error.failures, error.lanes, error.residual) == (2, 5, 0.5)
