"""Derivatives of a root in both modes, and the search for it under ``torch.func``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .kernels.modes import needs_plain_backward, needs_plain_operations, plain_gradients
from .rootfinding import Increasing


class ImplicitRoot(torch.autograd.Function):
    r"""A root with the derivatives that :math:`f(x, \phi) = y` gives it.

    ``apply(f, root, y, *params)`` returns ``root``. Its gradient is
    :math:`dx = (dy - \partial_\phi f \, d\phi) / f'`; what is to be differentiated again is the
    gradient of :func:`refined`.
    """

    @staticmethod
    def forward(ctx: Any, f: Increasing, root: Tensor, y: Tensor, *params: Tensor) -> Tensor:
        ctx.f = f
        ctx.save_for_backward(root, y, *params)
        return root.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        root, y, *params = ctx.saved_tensors
        if needs_plain_backward(grad):

            def solve(y: Tensor, *params: Tensor) -> tuple[Tensor]:
                return (refined(ctx.f, root, y, *params),)

            return None, None, *plain_gradients(solve, [y, *params], [grad])
        wanted = ctx.needs_input_grad[3:]
        # A backward pass may run under the caller's autocast; the forward pass did not.
        with torch.enable_grad(), torch.autocast(root.device.type, enabled=False):
            params = [p.detach().requires_grad_(w) for p, w in zip(params, wanted, strict=True)]
            value, log_slope = ctx.f(root, *params)
        grad_y = grad * torch.exp(-log_slope.detach())
        found: Iterator[Tensor | None] = iter(())
        if value.requires_grad:
            inputs = [p for p in params if p.requires_grad]
            found = iter(torch.autograd.grad(value, inputs, -grad_y, allow_unused=True))
        return None, None, grad_y, *(next(found, None) if w else None for w in wanted)


def attach_gradient(f: Increasing, root: Tensor, y: Tensor, *params: Tensor) -> Tensor:
    """The root ``(N,)`` of ``f(x, *params) = y``, differentiable through y and the parameters.

    Right to the third order; and in forward mode, and under ``torch.func``, where f must be made
    of torch's own operations.

    >>> from pyro_naf.rootfinding import find_root
    >>> cube = lambda x: (x**3, torch.log(3 * x**2))
    >>> y = torch.tensor([8.0], dtype=torch.double, requires_grad=True)
    >>> lo, hi = torch.tensor([0.1, 9.0]).double().split(1)
    >>> root = find_root(cube, y.detach(), (), lo, hi)
    >>> x = attach_gradient(cube, root, y)
    >>> x.backward()
    >>> round(x.item(), 12), round(y.grad.item(), 12)
    (2.0, 0.083333333333)
    """
    if needs_plain_operations(y, autocast=False):
        return refined(f, root, y, *params)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (y, *params)):
        return ImplicitRoot.apply(f, root, y, *params)
    return root


def refined(f: Increasing, root: Tensor, y: Tensor, *params: Tensor) -> Tensor:
    """Two steps of Newton's method from a root without derivatives.

    In a small change of y and the parameters each step squares the error: after two the first
    three derivatives are those of the root.
    """
    x = root
    for _ in range(2):
        value, log_slope = f(x, *params)
        x = x - (value - y) * torch.exp(-log_slope)
    return x


class _Search(torch.autograd.Function):
    """A search as one operation of ``torch.func``, without derivatives.

    ``apply(search, lanes, *tensors)``: of the first ``lanes`` tensors all elements along the first
    axis are lanes, so that a batched search is one search with more lanes.
    """

    @staticmethod
    def forward(search: Callable[..., Tensor], lanes: int, *tensors: Tensor) -> Tensor:
        with torch.no_grad():
            return search(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return torch.zeros_like(tangents[2])

    @staticmethod
    def vmap(
        info: Any, dims: tuple[int | None, ...], search: Any, lanes: int, *tensors: Tensor
    ) -> tuple[Tensor, int]:
        n, axes = info.batch_size, dims[2:]
        whole = [
            t.expand(n, *t.shape) if axis is None else t.movedim(axis, 0)
            for t, axis in zip(tensors, axes, strict=True)
        ]
        if any(axis is not None for axis in axes[lanes:]):
            each = [_Search.apply(search, lanes, *(t[i] for t in whole)) for i in range(n)]
            return torch.stack(each), 0
        flat = [t.flatten(0, 1) for t in whole[:lanes]]
        return _Search.apply(search, lanes, *flat, *tensors[lanes:]).unflatten(0, (n, -1)), 0


def search_once(search: Callable[..., Tensor], lanes: int, *tensors: Tensor) -> Tensor:
    """``search(*tensors)`` without derivatives, however ``torch.func`` has wrapped the tensors.

    :param search: from tensors, the first ``lanes`` of them ``(N, ...)``, to roots ``(N,)``.
    """
    return _Search.apply(search, lanes, *(t.detach() for t in tensors)).detach()
