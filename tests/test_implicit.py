"""Derivatives of roots against closed forms and finite differences, in every mode of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import jacfwd, jacrev, vmap

from pyro_naf.rootfinding import Increasing, attach_gradient, find_root, search_once


def implicit_root(f: Increasing, y: Tensor, *params: Tensor) -> Tensor:
    """A root with its gradient, as the transformers put them together."""

    def search(y: Tensor, *params: Tensor) -> Tensor:
        ends = torch.full_like(y, 10.0)
        return find_root(f, y, params, -ends, ends)

    return attach_gradient(f, search_once(search, 1 + len(params), y, *params), y, *params)


def cubic(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return a * x**3 + b * x, torch.log(3 * a * x**2 + b)


def root_of_cubic(*inputs: Tensor) -> Tensor:
    return implicit_root(cubic, *inputs)


@pytest.fixture
def point() -> tuple[Tensor, ...]:
    return torch.randn(4).double(), torch.rand(4).double() + 0.5, torch.rand(4).double() + 0.5


def test_first_and_second_derivatives_are_right(point: tuple[Tensor, ...]) -> None:
    inputs = tuple(t.requires_grad_() for t in point)
    options = {"check_forward_ad": True, "check_batched_grad": True}
    assert torch.autograd.gradcheck(root_of_cubic, inputs, **options)
    assert torch.autograd.gradgradcheck(root_of_cubic, inputs)


def test_third_derivative_of_a_cube_root_is_right() -> None:
    # The last that two steps of Newton's method give: of y^(1/3) it is 10/27 y^(-8/3).
    def root(y: Tensor) -> Tensor:
        return implicit_root(lambda x: (x**3 + 0 * x, torch.log(3 * x**2)), y)

    third = jacrev(jacrev(jacfwd(root)))(torch.tensor([8.0]).double())
    assert third.item() == pytest.approx(10 / 27 * 8 ** (-8 / 3), rel=1e-9)


@pytest.mark.parametrize("jacobian", [jacfwd, jacrev])
def test_transformations_agree_with_autograd(
    jacobian: Callable[..., Any], point: tuple[Tensor, ...]
) -> None:
    expected = torch.autograd.functional.jacobian(root_of_cubic, point)
    torch.testing.assert_close(jacobian(root_of_cubic, argnums=(0, 1, 2))(*point), expected)
    y, a, b = point
    batch = torch.stack([y, 2 * y, 3 * y])
    each = torch.stack([root_of_cubic(row, a, b) for row in batch])
    torch.testing.assert_close(vmap(root_of_cubic, (0, None, None))(batch, a, b), each)
    columns = batch.T, *(t.unsqueeze(1).expand(4, 3) for t in (a, b))
    torch.testing.assert_close(vmap(root_of_cubic)(*columns), each.T)


def test_forward_mode_needs_no_gradients_of_parameters(point: tuple[Tensor, ...]) -> None:
    y, a, b = point
    with torch.no_grad(), forward_ad.dual_level():
        x = root_of_cubic(forward_ad.make_dual(y, torch.ones_like(y)), a, b)
        root, tangent = forward_ad.unpack_dual(x)
    torch.testing.assert_close(tangent, 1 / (3 * a * root**2 + b))


def test_gradient_reaches_what_the_function_itself_is_given() -> None:
    # A transformer has parameters of its own beside the pseudo-parameters: dx/da = -x / (3 a).
    a = torch.tensor(2.0, dtype=torch.double, requires_grad=True)
    y, root = torch.tensor([16.0], dtype=torch.double), torch.tensor([2.0], dtype=torch.double)
    attach_gradient(lambda x, a: (a * x**3, torch.log(3 * a * x**2)), root, y, a).sum().backward()
    assert a.grad is not None and a.grad.item() == pytest.approx(-2 / 6)


def test_no_graph_is_built_where_none_is_wanted() -> None:
    y, a = torch.ones(3), torch.ones(3)
    assert not root_of_cubic(y, a, a).requires_grad
    with torch.no_grad():
        a = torch.ones(3, requires_grad=True)
        assert not root_of_cubic(y, a, a).requires_grad
