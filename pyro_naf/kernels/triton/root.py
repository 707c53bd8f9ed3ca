"""The search of :func:`pyro_naf.rootfinding.find_root`, for kernels that keep their lanes."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def start(lo, hi, EPS: tl.constexpr):
    """First point, bracket with room for its rounding, and the two last steps."""
    lo, hi = lo - 8 * EPS * (tl.abs(lo) + 1), hi + 8 * EPS * (tl.abs(hi) + 1)
    return lo + 0.5 * (hi - lo), lo, hi, hi - lo, hi - lo


@triton.jit
def search(  # noqa: PLR0913
    x, lo, hi, step, last_step, error, running, y, value, log_slope, EPS: tl.constexpr
):  # fmt: skip
    """One step of the lanes that are still running: the arguments up to ``running``, moved on.

    A lane that has converged stays where it is, with error 0; one without a number stops too.
    """
    residual = value - y
    above = residual >= 0
    lo, hi = tl.where(above, lo, x), tl.where(above, x, hi)
    misfit = tl.abs(residual) / tl.maximum(tl.abs(y), 1.0)
    exhausted = hi - lo <= 2 * EPS * tl.maximum(tl.abs(lo), tl.abs(hi))
    done = (misfit <= 32 * EPS) | (exhausted & (misfit <= 4 * EPS**0.5))
    error = tl.where(running, tl.where(done, 0.0, misfit), error)
    running = running & (done == 0) & (misfit == misfit)

    newton = -residual * tl.exp(-log_slope)
    inside = (x + newton > lo) & (x + newton < hi)
    trusted = inside & (tl.abs(newton) <= 0.5 * tl.abs(last_step))
    bisection = lo + 0.5 * (hi - lo) - x
    last_step, step = step, tl.where(trusted, newton, bisection)
    return tl.where(running, x + step, x), lo, hi, step, last_step, error, running
