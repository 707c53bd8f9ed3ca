"""Batched roots of increasing functions: bracketed Newton, with derivatives in both modes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from .support.autograd import Context
from .support.modes import needs_plain_backward, needs_plain_operations, plain_gradients

#: ``f(x, *params) -> (value, log_slope)``, elementwise over the leading dimension.
Increasing = Callable[..., tuple[Tensor, Tensor]]

#: Largest number of evaluations: enough for bisection alone to find a root in float64 from a
#: bracket as wide as 1e50.
MAX_EVALUATIONS = 250


class RootNotFoundError(RuntimeError):
    """An inverse that did not converge: says how many samples failed, and by how much.

    :ivar failures: number of lanes without a root.
    :ivar residual: the largest ``|f(x) - y|`` among them.
    """

    def __init__(self, failures: int, lanes: int, residual: float, where: str = "") -> None:
        super().__init__(
            f"no root found{where} for {failures} of {lanes} samples (largest residual "
            f"|f(x) - y| = {residual:.3g}): the transformer is too steep there for this dtype, or "
            "its pseudo-parameters are not finite"
        )
        self.failures, self.lanes, self.residual = failures, lanes, residual

    def located(self, where: str) -> RootNotFoundError:
        """Return the same error, saying where it happened."""
        return RootNotFoundError(self.failures, self.lanes, self.residual, where)


@torch.no_grad()
def find_root(
    f: Increasing, y: Tensor, params: tuple[Tensor, ...], lo: Tensor, hi: Tensor
) -> Tensor:
    r"""Solve :math:`f(x; \phi_n) = y_n` for every lane n at once.

    Newton's method kept inside a shrinking bracket; a step that leaves the bracket, or that is
    not half as long as the one before last, is replaced by bisection (plain Newton oscillates on
    sharp multi-modal transformers). Lanes that have converged leave the batch, so that the
    slowest lane does not set the price. A lane has converged when its residual is at rounding
    level, ``32 eps max(1, |y|)``, or when its bracket holds no further floating-point number; in
    the second case a residual above ``4 sqrt(eps) max(1, |y|)`` is a failure all the same: where
    f is that steep, or x that large, the dtype cannot hold the root.

    :param f: ``f(x, *params) -> (value, log_slope)``, increasing in ``x``.
    :param y: values to invert, shape ``(N,)``.
    :param params: tensors of shape ``(N, ...)``, handed to ``f``.
    :param lo: lower ends of the brackets, shape ``(N,)``: ``f(lo) <= y`` up to rounding.
    :param hi: upper ends, shape ``(N,)``.
    :return: the roots, shape ``(N,)``, without gradient.
    :raises RootNotFoundError: when a lane does not converge.
    """
    eps = torch.finfo(y.dtype).eps
    loose = 4 * eps**0.5
    root = torch.empty_like(y)
    lane = torch.arange(y.shape[0], device=y.device)
    # The bracket is computed in floating point too: give its ends room for their rounding.
    lo, hi = lo - 8 * eps * (lo.abs() + 1), hi + 8 * eps * (hi.abs() + 1)
    x = lo + 0.5 * (hi - lo)
    step = last_step = hi - lo
    residual = torch.full_like(y, torch.inf)
    for _ in range(MAX_EVALUATIONS):
        value, log_slope = f(x, *params)
        residual = value - y
        above = residual >= 0
        lo, hi = torch.where(above, lo, x), torch.where(above, x, hi)
        error = residual.abs() / y.abs().clamp(min=1)
        done = error <= 32 * eps
        done |= (hi - lo <= 2 * eps * torch.maximum(lo.abs(), hi.abs())) & (error <= loose)
        running = ~done
        remaining = int(running.sum())
        if 2 * remaining <= len(done):
            root[lane[done]] = x[done]
            if remaining == 0:
                return root
            keep = running.nonzero().squeeze(-1)
            lane, x, y, lo, hi, residual, log_slope, step, last_step = (
                t[keep] for t in (lane, x, y, lo, hi, residual, log_slope, step, last_step)
            )
            params = tuple(p[keep] for p in params)
            running = running[keep]
        newton = -residual * torch.exp(-log_slope)
        trusted = (newton.abs() <= 0.5 * last_step.abs()) & (x + newton > lo) & (x + newton < hi)
        bisection = lo + 0.5 * (hi - lo) - x
        last_step, step = step, torch.where(trusted, newton, bisection)
        x = torch.where(running, x + step, x)
    raise RootNotFoundError(int(running.sum()), len(root), float(residual[running].abs().max()))


def check_roots(errors: Sequence[Tensor | None], dims: Sequence[int] | None = None) -> None:
    """Look at the errors of several root findings, and wait for the device once.

    :param errors: one ``(N,)`` a finding; zero where the root was found, else the residual.
    :param dims: the dimension that each belongs to.
    :raises RootNotFoundError: naming the first dimension with a lost root.
    """
    known = [(i, error) for i, error in enumerate(errors) if error is not None]
    if not known:
        return
    lost = torch.stack([error for _, error in known]) != 0
    for (i, error), failures in zip(known, lost.sum(1).tolist(), strict=True):
        if failures:
            where = "" if dims is None else f" in dimension {dims[i]}"
            raise RootNotFoundError(failures, len(error), float(error.abs().max()), where)


# ------------------------------------------------------------------------------------ derivatives


class _RootContext(Context, Protocol):
    f: Increasing


class ImplicitRoot(torch.autograd.Function):
    r"""A root with the derivatives that :math:`f(x, \phi) = y` gives it.

    ``apply(f, root, y, *params)`` returns ``root``. Its gradient is
    :math:`dx = (dy - \partial_\phi f \, d\phi) / f'`; what is to be differentiated again is the
    gradient of :func:`refined`.
    """

    @staticmethod
    def forward(
        ctx: _RootContext, f: Increasing, root: Tensor, y: Tensor, *params: Tensor
    ) -> Tensor:
        """Return the root itself, which was found without a graph."""
        ctx.f = f
        ctx.save_for_backward(root, y, *params)
        return root.clone()

    @staticmethod
    def backward(ctx: _RootContext, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute gradients by the implicit function theorem."""
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
    """Return the root ``(N,)`` of ``f(x, *params) = y``, differentiable in y and parameters.

    Right to the third order; and in forward mode, and under ``torch.func``, where f must be made
    of torch's own operations.

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
        root = ImplicitRoot.apply(f, root, y, *params)
    return root


def refined(f: Increasing, root: Tensor, y: Tensor, *params: Tensor) -> Tensor:
    """Two steps of Newton's method from a root without derivatives.

    In a small change of y and the parameters each step squares the error: after two steps the
    first three derivatives are correct.
    """
    x = root
    for _ in range(2):
        value, log_slope = f(x, *params)
        x = x - (value - y) * torch.exp(-log_slope)
    return x


class _Batch(Protocol):
    batch_size: int


class _Search(torch.autograd.Function):
    """A search as one operation of ``torch.func``, without derivatives.

    ``apply(search, lanes, *tensors)``: of the first ``lanes`` tensors all elements along the first
    axis are lanes, so that a batched search is one search with more lanes.
    """

    @staticmethod
    def forward(search: Callable[..., Tensor], lanes: int, *tensors: Tensor) -> Tensor:
        """Return the root itself, which was found without a graph."""
        with torch.no_grad():
            return search(*tensors)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[object, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[None, ...]:
        """Compute gradients by the implicit function theorem."""
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Context, *tangents: Tensor) -> Tensor:
        return torch.zeros_like(tangents[2])

    @staticmethod
    def vmap(
        info: _Batch,
        dims: tuple[int | None, ...],
        search: Callable[..., Tensor],
        lanes: int,
        *tensors: Tensor,
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
    found: Tensor = _Search.apply(search, lanes, *(t.detach() for t in tensors))
    return found.detach()
