"""Batched roots of increasing functions: bracketed Newton. For derivatives see :mod:`.implicit`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: ``f(x, *params) -> (value, log_slope)``, elementwise over the leading dimension.
Increasing = Callable[..., tuple[Tensor, Tensor]]

#: Enough for bisection alone to find a root in float64 from a bracket as wide as 1e50.
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
        """The same error, saying where it happened."""
        return RootNotFoundError(self.failures, self.lanes, self.residual, where)


@torch.no_grad()
def find_root(
    f: Increasing, y: Tensor, params: tuple[Tensor, ...], lo: Tensor, hi: Tensor
) -> Tensor:
    r"""Solves :math:`f(x; \phi_n) = y_n` for every lane n at once.

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
    """Looks at the errors of several root findings, and waits for the device once.

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
