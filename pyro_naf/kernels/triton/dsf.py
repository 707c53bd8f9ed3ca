r"""Triton kernels of DSF: value and log-slope, their gradients, and the inverse.

Every kernel reads the pseudo-parameters once and keeps them in registers. With
:math:`s_h = \sigma(u_h)` and :math:`n_h = \sigma(-u_h)`, and sums over h of mixture weights
:math:`e^{w_h}` times what stands in the brackets, they compute eq. 8 as

.. math::
    y = \log \frac{[s]}{[n]}, \qquad
    \log \frac{dy}{dx} = \log \frac{[a s n] \; [s + n]}{[s] \; [n]}

where every sum leaves its largest exponential out and carries that exponent beside it: far in the
tails and on deep plateaus the exponents cancel before anything is rounded.

An H200 copies the three numbers of a unit in the time that it takes for some 80 instructions, or
10 special functions. As all of :math:`[s + n]` is in the other sums, five exponentials and two
reciprocals do, one of each for the slope a; logarithms are taken once a lane.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .common import (
    UNALIGNED,
    arithmetic,
    exponential,
    lanes,
    load_parameters,
    sigmoids,
    store_rows,
)
from .root import search, start


@triton.jit
def sigmoidal(x, a, b, w):
    """Value and log-slope ``(1, LANES)``, and what their gradients are made of.

    These are s(u) and s(-u) of the units, and the weights p, q and t / a of the three mixtures
    that are the value's left and right side and the slope.
    """
    u = a * x + b
    s, n, r = sigmoids(u)
    log_p, log_q, log_t = w + tl.minimum(u, 0.0), w - tl.maximum(u, 0.0), w - tl.abs(u)
    top_p = tl.max(log_p, 0, keep_dims=True)
    top_q = tl.max(log_q, 0, keep_dims=True)
    top_t = tl.max(log_t, 0, keep_dims=True)
    p, q, t = (
        exponential(log_p - top_p) * r,
        exponential(log_q - top_q) * r,
        exponential(log_t - top_t) * r * r,
    )
    left, right = tl.sum(p, 0, keep_dims=True), tl.sum(q, 0, keep_dims=True)
    density = tl.sum(a * t, 0, keep_dims=True)
    # s + n = 1: the two sides add up to the sum of the weights.
    total = exponential(top_p) * left + exponential(top_q) * right
    y = (top_p - top_q) + tl.log(left / right)
    # Far out top_t is one of the other two, and they cancel exactly.
    log_slope = (top_t - (top_p + top_q)) + tl.log(density * total / (left * right))
    return y, log_slope, s, n, p * (1 / left), q * (1 / right), t * (1 / density)


@triton.jit(**UNALIGNED)
def forward_kernel(  # noqa: PLR0913
    x, x_b, x_d, phi, phi_b, phi_d, phi_p, biases, y, log_slope, y_b, y_d, batch, dim,
    SHIFT: tl.constexpr, FLOOR: tl.constexpr, K: tl.constexpr, UNITS: tl.constexpr,
    DTYPE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Evaluate the layer of sigmoids and its log-slope."""
    b, d, exists = lanes(batch, dim, LANES)
    phi += b * phi_b + d * phi_d
    a, _, b_h, w = load_parameters(phi, 0, phi_p, biases, exists, SHIFT, FLOOR, K, UNITS, DTYPE)
    x_lane = tl.load(x + b * x_b + d * x_d, mask=exists, other=0.0).to(DTYPE)
    value, log_dy, _, _, _, _, _ = sigmoidal(x_lane, a, b_h, w)
    out = b * y_b + d * y_d
    tl.store(y + out, value, mask=exists)
    tl.store(log_slope + out, log_dy, mask=exists)


@triton.jit(**UNALIGNED)
def backward_kernel(  # noqa: PLR0913
    x, x_b, x_d, phi, phi_b, phi_d, phi_p, biases,
    grad_y, grad_y_b, grad_y_d, grad_l, grad_l_b, grad_l_d,
    grad_x, grad_x_b, grad_x_d, grad_phi, grad_phi_b, grad_phi_d, grad_phi_p, batch, dim,
    SHIFT: tl.constexpr, FLOOR: tl.constexpr, K: tl.constexpr, UNITS: tl.constexpr,
    DTYPE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of x and of the pseudo-parameters."""
    b, d, exists = lanes(batch, dim, LANES)
    phi += b * phi_b + d * phi_d
    a, slope_of_a, b_h, w = load_parameters(
        phi, 0, phi_p, biases, exists, SHIFT, FLOOR, K, UNITS, DTYPE
    )
    x_lane = tl.load(x + b * x_b + d * x_d, mask=exists, other=0.0).to(DTYPE)
    g_y = tl.load(grad_y + b * grad_y_b + d * grad_y_d, mask=exists, other=0.0).to(DTYPE)
    g_l = tl.load(grad_l + b * grad_l_b + d * grad_l_d, mask=exists, other=0.0).to(DTYPE)
    y, _, s, n, p, q, t_by_a = sigmoidal(x_lane, a, b_h, w)
    t = a * t_by_a

    # The sum of [s + n] depends on w alone: hence s(y) and s(-y).
    s_y, n_y, _ = sigmoids(y)
    g_w = p * (g_y - g_l * n_y) - q * (g_y + g_l * s_y) + g_l * t
    g_u = p * n * (g_y - g_l) + q * s * (g_y + g_l) + g_l * t * (n - s)
    g_a = (g_u * x_lane + g_l * t_by_a) * slope_of_a

    tl.store(grad_x + b * grad_x_b + d * grad_x_d, tl.sum(a * g_u, 0, keep_dims=True), mask=exists)
    grad_phi += b * grad_phi_b + d * grad_phi_d
    store_rows(grad_phi, 0, grad_phi_p, exists, g_a, UNITS, K)
    store_rows(grad_phi, K, grad_phi_p, exists, g_u, UNITS, K)
    store_rows(grad_phi, 2 * K, grad_phi_p, exists, g_w, UNITS, K)


@triton.jit(**UNALIGNED)
def inverse_kernel(  # noqa: PLR0913
    y, y_b, y_d, phi, phi_b, phi_d, phi_p, biases, root, error, x_b, x_d, batch, dim,
    SHIFT: tl.constexpr, FLOOR: tl.constexpr, K: tl.constexpr, UNITS: tl.constexpr,
    DTYPE: tl.constexpr, EPS: tl.constexpr, EVALUATIONS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Solve for x by bracketed Newton steps."""
    b, d, exists = lanes(batch, dim, LANES)
    phi += b * phi_b + d * phi_d
    a, _, b_h, w = load_parameters(phi, 0, phi_p, biases, exists, SHIFT, FLOOR, K, UNITS, DTYPE)
    target = tl.load(y + b * y_b + d * y_d, mask=exists, other=0.0).to(DTYPE)
    # A mixture lies between its components, and so does the root between theirs.
    roots = (target - b_h) / a
    unit = tl.arange(0, UNITS)[:, None] < K
    lo = tl.min(tl.where(unit, roots, float("inf")), 0, keep_dims=True)
    hi = tl.max(tl.where(unit, roots, float("-inf")), 0, keep_dims=True)
    x, lo, hi, step, last_step = start(lo, hi, EPS)
    misfit, running, evaluations = tl.full(x.shape, float("inf"), DTYPE), exists, 0
    while (tl.max(running.to(tl.int32)) > 0) & (evaluations < EVALUATIONS):
        value, log_dy, _, _, _, _, _ = sigmoidal(x, a, b_h, w)
        x, lo, hi, step, last_step, misfit, running = search(
            x, lo, hi, step, last_step, misfit, running, target, value, log_dy, EPS
        )
        evaluations += 1
    out = b * x_b + d * x_d
    tl.store(root + out, x, mask=exists)
    tl.store(error + out, misfit * tl.maximum(tl.abs(target), 1.0), mask=exists)


def options(x: Tensor, phi: Tensor, k: int, layers: int, lanes: int = 64) -> dict[str, object]:
    """Tile of K = k units; 64 lanes for one evaluation, fewer for a search.

    A thread takes all units of one lane, so that sums need no other thread, and holds three
    parameters of each while it waits for memory. More than 16 units (4 in float64) do not fit its
    registers: then several warps share one set of 32 lanes.
    """
    units = triton.next_power_of_2(k)
    shared_by = units // (16 if arithmetic(x, phi) == torch.float32 else 4)
    lanes = lanes if shared_by <= 1 else 32
    return {"UNITS": units, "LANES": lanes, "num_warps": min(max(lanes // 32, shared_by), 16)}
