r"""Triton kernels of DDSF: value and log-slope, their gradients, and the inverse.

A dense sigmoidal layer with inputs v, log-tangents :math:`\lambda = \log dv/dx`, logits e and
:math:`A = e^W` is, with :math:`s = \sigma(v)`, :math:`n = \sigma(-v)` and :math:`E = e^e`,

.. math::
    L = A (E s), \quad R = A (E n), \quad S = A (E s n e^\lambda), \qquad
    h = \log \frac{L}{R}, \quad \log \frac{dh}{dx} = \log \frac{S (L + R)}{L R}

and the mix that leads to the next layer is, with :math:`F = e^{e'}` and :math:`B = e^U`,

.. math::
    Z = B F, \quad m = \frac{B (F h)}{Z}, \quad \log \frac{dm}{dx} = \log \frac{B (F h')}{Z} .

As in :mod:`.dsf` the largest exponentials of every sum are left out and carried beside it.
Nothing but the inputs is kept for the backward pass: it goes through the layers from the last to
the first and evaluates, for each, the layers before it again. That is L (L - 1) / 2 layers more
arithmetic, and no memory. The shared matrices come as one vector, the w before the u; each is
``K * K`` long, but for the last of w with its one row.
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
    load_rows,
    shifted_logits,
    sigmoids,
    store_rows,
)
from .root import search, start

#: Registers of a thread in the backward pass of 16 units, which would take twice as many: with
#: these twice as many programs hide each other's waits for barriers, at the price of 150 spilled
#: numbers. More units would spill hundreds.
BACKWARD_REGISTERS = 128

#: How products in float32 are made of others; AMD's compiler has no such way.
IN_PARTS = tl.constexpr("ieee" if torch.version.hip else "tf32x3")

# ------------------------------------------------------------------ products with shared matrices


@triton.jit
def entries(UNITS: tl.constexpr, K: tl.constexpr, LAST: tl.constexpr):
    """Offsets of a matrix' entries, which of them exist, and which of the columns do.

    A matrix is ``(UNITS, UNITS)``; the last layer's, which is one row, is written as a column.
    """
    i, j = tl.arange(0, UNITS)[:, None], tl.arange(0, UNITS)[None, :]
    if LAST:
        return i, i < K, i < K
    else:
        return i * K + j, (i < K) & (j < K), j < K


@triton.jit
def load_matrix(matrices, first, UNITS: tl.constexpr, K: tl.constexpr, LAST: tl.constexpr, DTYPE):
    """``exp(W)``, each row's maximum left out."""
    at, exists, column = entries(UNITS, K, LAST)
    logits = tl.load(matrices + first + at, mask=exists, other=0.0).to(DTYPE)
    logits = tl.where(column, logits, float("-inf"))
    return exponential(logits - tl.max(logits, 0 if LAST else 1, keep_dims=True))


@triton.jit
def store_matrix(
    matrices, first, matrix, UNITS: tl.constexpr, K: tl.constexpr, LAST: tl.constexpr
):  # fmt: skip
    """Write what :func:`load_matrix` reads."""
    at, exists, _ = entries(UNITS, K, LAST)
    tl.store(matrices + first + at, matrix, mask=exists)


@triton.jit
def dot(left, right):
    """Compute the matrix product, to about the rounding of its dtype.

    In float32 as three products of TF32 parts, by tensor cores: fewer instructions than one in
    float32. For tiles of 64 rows on Triton would take Hopper's wgmma for them, and kernels of
    several such products read beyond their shared memory (Triton 3.6; its issues 10486 and 11366
    report it too).
    """
    WHOLE: tl.constexpr = right.dtype == tl.float64 or left.shape[0] >= 64
    PRECISION: tl.constexpr = "ieee" if WHOLE else IN_PARTS
    return tl.dot(left, right, input_precision=PRECISION, out_dtype=right.dtype)


@triton.jit
def product(matrix, units, LAST: tl.constexpr):
    """Matrix times ``(UNITS, LANES)``: ``(UNITS, LANES)``, of the last layer ``(1, LANES)``."""
    if LAST:
        return tl.sum(matrix * units, 0, keep_dims=True)
    else:
        return dot(matrix, units)


@triton.jit
def transposed_product(matrix, rows, LAST: tl.constexpr):
    """Multiply the transposed matrix by what :func:`product` returns."""
    if LAST:
        return matrix * rows
    else:
        return dot(tl.trans(matrix), rows)


@triton.jit
def outer_product(rows, units, LAST: tl.constexpr):
    """Compute the gradient of :func:`product` by its matrix, summed over the lanes."""
    if LAST:
        return tl.sum(units * rows, 1, keep_dims=True)
    else:
        return dot(rows, tl.trans(units))


@triton.jit
def at_least_tiny(sums):
    """Less only when a row's logits differ by more than the exponent range, as in log_matvec."""
    # Some digits above the smallest number: ratios of two sums have to be numbers as well.
    TINY: tl.constexpr = 1e-305 if sums.dtype == tl.float64 else 1e-36
    return tl.where(sums < TINY, TINY, sums)  # tl.maximum would hide what is not a number


@triton.jit
def over(grad, sums):
    """``grad / sums``, the gradient by the sums before :func:`at_least_tiny`."""
    TINY: tl.constexpr = 1e-305 if sums.dtype == tl.float64 else 1e-36
    return tl.where(sums <= TINY, 0.0, grad / sums)


# ------------------------------------------------------------------------------ layers and mixes


@triton.jit
def dense_sigmoid(a, b, m, log_dm, e, matrix, LAST: tl.constexpr):
    """h and log dh/dx of v = a m + b, and what their gradients are made of.

    These are s(v) and s(-v), the terms p, q and t of the three sums, and the sums L, R and S.
    """
    v = a * m + b
    s, n, r = sigmoids(v)
    log_p, log_q, log_t = e + tl.minimum(v, 0.0), e - tl.maximum(v, 0.0), e - tl.abs(v)
    top_p = tl.max(log_p, 0, keep_dims=True)
    top_q = tl.max(log_q, 0, keep_dims=True)
    top_t = tl.max(log_t, 0, keep_dims=True)
    # Far out log_t is huge: its maximum goes before the tangents, which are not, come in.
    log_t = (log_t - top_t) + log_dm
    top_dm = tl.max(log_t, 0, keep_dims=True)
    p, q = exponential(log_p - top_p) * r, exponential(log_q - top_q) * r
    t = exponential(log_t - top_dm) * r * r * a
    left = at_least_tiny(product(matrix, p, LAST))
    right = at_least_tiny(product(matrix, q, LAST))
    density = at_least_tiny(product(matrix, t, LAST))
    # s + n = 1: the two sides add up to the sum of the weights.
    total = exponential(top_p) * left + exponential(top_q) * right
    h = (top_p - top_q) + tl.log(left / right)
    tops = (top_t - (top_p + top_q)) + top_dm
    log_dh = tops + (tl.log(density / left) + tl.log(total / right))
    return h, log_dh, s, n, p, q, t, left, right, density


@triton.jit
def softmax_mix(h, log_dh, e, matrix):
    """m and log dm/dx, and what their gradients are made of: f, F h' and the sums Z and B F h'."""
    f = exponential(e)
    log_t = e + log_dh
    top = tl.max(log_t, 0, keep_dims=True)
    t = exponential(log_t - top)
    z = at_least_tiny(product(matrix, f, False))
    density = at_least_tiny(product(matrix, t, False))
    m = product(matrix, f * h, False) / z
    return m, top + tl.log(density / z), f, t, z, density


@triton.jit
def ascend(  # noqa: PLR0913
    x, phi, phi_p, biases, matrices, exists, depth,
    L: tl.constexpr, SHIFT: tl.constexpr, FLOOR: tl.constexpr, K: tl.constexpr,
    UNITS: tl.constexpr, DTYPE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """m and log dm/dx that enter layer ``depth``, each ``(UNITS, LANES)``."""
    log_dm = tl.zeros((UNITS, LANES), DTYPE)
    m = log_dm + x
    for layer in range(0, depth):
        a, _, b, e = load_parameters(
            phi, 3 * K * layer, phi_p, biases, exists, SHIFT, FLOOR, K, UNITS, DTYPE
        )
        w = load_matrix(matrices, layer * K * K, UNITS, K, False, DTYPE)
        h, log_dh, _, _, _, _, _, _, _, _ = dense_sigmoid(a, b, m, log_dm, e, w, False)
        e = load_rows(phi, (3 * L + layer) * K, phi_p, exists, UNITS, K, DTYPE)
        u = load_matrix(matrices, ((L - 1 + layer) * K + 1) * K, UNITS, K, False, DTYPE)
        m, log_dm, _, _, _, _ = softmax_mix(h, log_dh, shifted_logits(e, UNITS, K), u)
    return m, log_dm


@triton.jit
def evaluate(  # noqa: PLR0913
    x, phi, phi_p, biases, matrices, exists,
    L: tl.constexpr, SHIFT: tl.constexpr, FLOOR: tl.constexpr, K: tl.constexpr,
    UNITS: tl.constexpr, DTYPE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Value and log-slope, each ``(1, LANES)``."""
    m, log_dm = ascend(
        x, phi, phi_p, biases, matrices, exists, L - 1, L, SHIFT, FLOOR, K, UNITS, DTYPE, LANES
    )
    a, _, b, e = load_parameters(
        phi, 3 * K * (L - 1), phi_p, biases, exists, SHIFT, FLOOR, K, UNITS, DTYPE
    )
    w = load_matrix(matrices, (L - 1) * K * K, UNITS, K, True, DTYPE)
    y, log_dy, _, _, _, _, _, _, _, _ = dense_sigmoid(a, b, m, log_dm, e, w, True)
    return y, log_dy


@triton.jit
def descend(  # noqa: PLR0913
    m, log_dm, g_h, g_log_dh, phi, phi_p, biases, matrices, exists,
    grad_phi, grad_phi_p, grad_matrices, layer,
    L: tl.constexpr, SHIFT: tl.constexpr, FLOOR: tl.constexpr, K: tl.constexpr,
    UNITS: tl.constexpr, DTYPE: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Gradients by m and log dm/dx before ``layer``, from the gradients by both after it.

    After the last layer it is y and its log-slope that ``g_h`` and ``g_log_dh`` belong to.
    """
    a, slope_of_a, b, e = load_parameters(
        phi, 3 * K * layer, phi_p, biases, exists, SHIFT, FLOOR, K, UNITS, DTYPE
    )
    at = layer * K * K
    w = load_matrix(matrices, at, UNITS, K, LAST, DTYPE)
    h, log_dh, s, n, p, q, t, left, right, density = dense_sigmoid(a, b, m, log_dm, e, w, LAST)
    if not LAST:
        first = (3 * L + layer) * K
        e = shifted_logits(load_rows(phi, first, phi_p, exists, UNITS, K, DTYPE), UNITS, K)
        at_u = ((L - 1 + layer) * K + 1) * K
        u = load_matrix(matrices, at_u, UNITS, K, False, DTYPE)
        g_h, g_log_dh, g_e, g_u = mix_gradients(h, log_dh, e, u, g_h, g_log_dh)
        store_rows(grad_phi, first, grad_phi_p, exists, g_e, UNITS, K)
        store_matrix(grad_matrices, at_u, g_u, UNITS, K, False)

    # The sum of the weights depends on e alone: hence s(h) and s(-h).
    s_h, n_h, _ = sigmoids(h)
    g_left, g_right = over(g_h - g_log_dh * n_h, left), over(-g_h - g_log_dh * s_h, right)
    g_density = over(g_log_dh, density)
    of_w = outer_product(g_left, p, LAST) + outer_product(g_right, q, LAST)
    store_matrix(grad_matrices, at, w * (of_w + outer_product(g_density, t, LAST)), UNITS, K, LAST)
    g_p = p * transposed_product(w, g_left, LAST)
    g_q = q * transposed_product(w, g_right, LAST)
    g_t = t * transposed_product(w, g_density, LAST)
    g_v = g_p * n - g_q * s + g_t * (n - s)
    first = 3 * K * layer
    store_rows(grad_phi, first, grad_phi_p, exists, (g_v * m + g_t / a) * slope_of_a, UNITS, K)
    store_rows(grad_phi, first + K, grad_phi_p, exists, g_v, UNITS, K)
    store_rows(grad_phi, first + 2 * K, grad_phi_p, exists, g_p + g_q + g_t, UNITS, K)
    return a * g_v, g_t


@triton.jit
def mix_gradients(h, log_dh, e, matrix, g_m, g_log_dm):
    """Gradients by h, log dh/dx, e and the matrix's logits."""
    m, _, f, t, z, density = softmax_mix(h, log_dh, e, matrix)
    g_fh, g_t, g_z = over(g_m, z), over(g_log_dm, density), over(g_m * m + g_log_dm, z)
    g_h = f * transposed_product(matrix, g_fh, False)
    g_log_dh = t * transposed_product(matrix, g_t, False)
    g_e = g_h * h - f * transposed_product(matrix, g_z, False) + g_log_dh
    of_u = outer_product(g_fh, f * h, False) - outer_product(g_z, f, False)
    return g_h, g_log_dh, g_e, matrix * (of_u + outer_product(g_t, t, False))


# --------------------------------------------------------------------------------------- kernels


@triton.jit(**UNALIGNED)
def forward_kernel(  # noqa: PLR0913
    x, x_b, x_d, phi, phi_b, phi_d, phi_p, biases, matrices, y, log_slope, y_b, y_d, batch, dim,
    L: tl.constexpr, SHIFT: tl.constexpr, FLOOR: tl.constexpr, K: tl.constexpr,
    UNITS: tl.constexpr, DTYPE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Evaluate the layers of sigmoids and their log-slope."""
    b, d, exists = lanes(batch, dim, LANES)
    phi += b * phi_b + d * phi_d
    x_lane = tl.load(x + b * x_b + d * x_d, mask=exists, other=0.0).to(DTYPE)
    value, log_dy = evaluate(
        x_lane, phi, phi_p, biases, matrices, exists, L, SHIFT, FLOOR, K, UNITS, DTYPE, LANES
    )
    out = b * y_b + d * y_d
    tl.store(y + out, value, mask=exists)
    tl.store(log_slope + out, log_dy, mask=exists)


@triton.jit(**UNALIGNED)
def backward_kernel(  # noqa: PLR0913
    x, x_b, x_d, phi, phi_b, phi_d, phi_p, biases, matrices,
    grad_y, grad_y_b, grad_y_d, grad_l, grad_l_b, grad_l_d,
    grad_x, grad_x_b, grad_x_d, grad_phi, grad_phi_b, grad_phi_d, grad_phi_p, grad_matrices,
    batch, dim,
    L: tl.constexpr, SHIFT: tl.constexpr, FLOOR: tl.constexpr, K: tl.constexpr,
    UNITS: tl.constexpr, DTYPE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of x and of the pseudo-parameters."""
    b, d, exists = lanes(batch, dim, LANES)
    phi += b * phi_b + d * phi_d
    grad_phi += b * grad_phi_b + d * grad_phi_d
    # Every program sums over its own lanes, and torch over the programs: no atomic additions, whose
    # order changes from run to run.
    SIZE: tl.constexpr = 2 * (L - 1) * K * K + K
    grad_matrices += tl.program_id(0).to(tl.int64) * SIZE
    x_lane = tl.load(x + b * x_b + d * x_d, mask=exists, other=0.0).to(DTYPE)
    g_y = tl.load(grad_y + b * grad_y_b + d * grad_y_d, mask=exists, other=0.0).to(DTYPE)
    g_l = tl.load(grad_l + b * grad_l_b + d * grad_l_d, mask=exists, other=0.0).to(DTYPE)
    m, log_dm = ascend(
        x_lane, phi, phi_p, biases, matrices, exists, L - 1,
        L, SHIFT, FLOOR, K, UNITS, DTYPE, LANES,
    )  # fmt: skip
    g_m, g_log_dm = descend(
        m, log_dm, g_y, g_l, phi, phi_p, biases, matrices, exists,
        grad_phi, grad_phi_p, grad_matrices, L - 1, L, SHIFT, FLOOR, K, UNITS, DTYPE, True,
    )  # fmt: skip
    for done in range(0, L - 1):
        layer = L - 2 - done
        m, log_dm = ascend(
            x_lane, phi, phi_p, biases, matrices, exists, layer,
            L, SHIFT, FLOOR, K, UNITS, DTYPE, LANES,
        )  # fmt: skip
        g_m, g_log_dm = descend(
            m, log_dm, g_m, g_log_dm, phi, phi_p, biases, matrices, exists,
            grad_phi, grad_phi_p, grad_matrices, layer, L, SHIFT, FLOOR, K, UNITS, DTYPE, False,
        )  # fmt: skip
    # Every unit of the first layer has x for its m.
    g_x = tl.sum(g_m, 0, keep_dims=True)
    tl.store(grad_x + b * grad_x_b + d * grad_x_d, g_x, mask=exists)


@triton.jit(**UNALIGNED)
def inverse_kernel(  # noqa: PLR0913
    y, y_b, y_d, phi, phi_b, phi_d, phi_p, biases, matrices, root, error, x_b, x_d, batch, dim,
    L: tl.constexpr, SHIFT: tl.constexpr, FLOOR: tl.constexpr, K: tl.constexpr,
    UNITS: tl.constexpr, DTYPE: tl.constexpr, EPS: tl.constexpr, EVALUATIONS: tl.constexpr,
    LANES: tl.constexpr,
):  # fmt: skip
    """Solve for x by bracketed Newton steps."""
    b, d, exists = lanes(batch, dim, LANES)
    phi += b * phi_b + d * phi_d
    target = tl.load(y + b * y_b + d * y_d, mask=exists, other=0.0).to(DTYPE)
    # From the last layer down: all units must lie below (above) what the next one needs.
    lo, hi, unit = target, target, tl.arange(0, UNITS)[:, None] < K
    for done in range(0, L):
        a, _, b_h, _ = load_parameters(
            phi, 3 * K * (L - 1 - done), phi_p, biases, exists, SHIFT, FLOOR, K, UNITS, DTYPE
        )
        lo = tl.min(tl.where(unit, (lo - b_h) / a, float("inf")), 0, keep_dims=True)
        hi = tl.max(tl.where(unit, (hi - b_h) / a, float("-inf")), 0, keep_dims=True)
    x, lo, hi, step, last_step = start(lo, hi, EPS)
    misfit, running, evaluations = tl.full(x.shape, float("inf"), DTYPE), exists, 0
    while (tl.max(running.to(tl.int32)) > 0) & (evaluations < EVALUATIONS):
        value, log_dy = evaluate(
            x, phi, phi_p, biases, matrices, exists, L, SHIFT, FLOOR, K, UNITS, DTYPE, LANES
        )
        x, lo, hi, step, last_step, misfit, running = search(
            x, lo, hi, step, last_step, misfit, running, target, value, log_dy, EPS
        )
        evaluations += 1
    out = b * x_b + d * x_d
    tl.store(root + out, x, mask=exists)
    tl.store(error + out, misfit * tl.maximum(tl.abs(target), 1.0), mask=exists)


def options(x: Tensor, phi: Tensor, k: int, layers: int, lanes: int = 0) -> dict[str, object]:
    """Tile of K = k units, the same for a search.

    A dozen tiles are alive at a time, and a product holds whole rows and columns of its factors in
    registers: so tiles are small, of 4 numbers a thread, or 2 of float64. (At K = 16 on an H200
    other tiles took 1.02 to 1.5 times as long for the backward pass.)
    """
    units = max(16, triton.next_power_of_2(k))  # what a product of tiles needs at least
    warps = 4 if units == 16 else 8
    numbers = 4 if arithmetic(x, phi) == torch.float32 else 2
    return {
        "L": layers,
        "UNITS": units,
        "LANES": max(16, 32 * warps * numbers // units),
        "num_warps": warps,
        "num_stages": 1,
    }
