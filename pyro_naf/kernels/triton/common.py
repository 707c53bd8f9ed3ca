"""What the Triton kernels of DSF and DDSF share: lanes, parameters and tiles.

A lane is one scalar map, at one sample b and one dimension d. Tiles are (units, lanes): with the
conditioners' own memory order, (D, P, B), neighbouring lanes are neighbours in memory.

The operators have no rule for autocast and need none: parameters of 16 bits are read as they are,
x stays as it is, and the arithmetic is float32 or float64 (:func:`arithmetic`).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INPUT_DTYPES = (torch.float32, torch.float64)
PARAMETER_DTYPES = (*INPUT_DTYPES, torch.bfloat16, torch.float16)
LANGUAGE_DTYPE = {torch.float32: tl.float32, torch.float64: tl.float64}

#: Strides whose divisibility by 16 a kernel must not know. If it knew, it would load four lanes at
#: once, give every thread four lanes and a quarter of the units, and each reduction over the units
#: would need shuffles. One lane a thread coalesces as well, and sums within the thread.
UNALIGNED = {"do_not_specialize_on_alignment": ["phi_b", "phi_d", "phi_p", "grad_phi_p"]}


@triton.jit
def lanes(batch, dim, LANES: tl.constexpr):
    """Return the program's lanes b ``(1, LANES)``, its dimension d, and which lanes exist."""
    # Neighbouring programs take neighbouring dimensions: they share the sectors of a (B, D) x.
    program = tl.program_id(0)
    b = (program // dim).to(tl.int64) * LANES + tl.arange(0, LANES)[None, :]
    return b, (program % dim).to(tl.int64), b < batch


@triton.jit
def load_rows(base, first, stride, exists, UNITS: tl.constexpr, K: tl.constexpr, DTYPE):
    """Parameters ``first`` to ``first + K`` of every lane, ``(UNITS, LANES)``; 0 beyond."""
    h = tl.arange(0, UNITS)[:, None]
    rows = base + (first + h).to(tl.int64) * stride
    return tl.load(rows, mask=(h < K) & exists, other=0.0).to(DTYPE)


@triton.jit
def store_rows(base, first, stride, exists, tile, UNITS: tl.constexpr, K: tl.constexpr):
    """Store rows: the opposite of :func:`load_rows`."""
    h = tl.arange(0, UNITS)[:, None]
    rows = base + (first + h).to(tl.int64) * stride
    tl.store(rows, tile, mask=(h < K) & exists)


@triton.jit
def exponential(z):
    """``exp(z)``; in float32, where tl.exp takes care to keep subnormal results, without them."""
    if z.dtype == tl.float64:
        return tl.exp(z)
    else:  # Triton would compile a return after an if as well
        return tl.exp2(z * 1.4426950408889634)


@triton.jit
def softplus(z):
    """``log(1 + exp(z))`` and its derivative, each to a few roundings of itself."""
    e = exponential(-tl.abs(z))
    # log(1 + e) loses the digits of a small e. As 2 artanh(e / (2 + e)) none are lost, and no
    # logarithm is needed: the argument is at most 1/3.
    s = e / (2 + e)
    square = s * s
    LAST: tl.constexpr = 15 if z.dtype == tl.float64 else 6
    series = tl.zeros_like(s)
    for k in tl.static_range(LAST, -1, -1):
        series = series * square + 1.0 / (2 * k + 1)
    return tl.maximum(z, 0.0) + 2 * s * series, tl.where(z >= 0, 1.0, e) / (1 + e)


@triton.jit
def shifted_logits(logits, UNITS: tl.constexpr, K: tl.constexpr):
    """Logits less their maximum over the units; minus infinity for the units that pad a tile."""
    logits = tl.where(tl.arange(0, UNITS)[:, None] < K, logits, float("-inf"))
    return logits - tl.max(logits, 0, keep_dims=True)


@triton.jit
def sigmoids(z):
    """``1 / (1 + exp(-z))``, the same of ``-z``, and the larger of the two."""
    e = exponential(-tl.abs(z))
    large = 1 / (1 + e)
    small = e * large
    return tl.where(z >= 0, large, small), tl.where(z >= 0, small, large), large


@triton.jit
def load_parameters(
    phi, first, phi_p, biases, exists, SHIFT, FLOOR, K: tl.constexpr, UNITS: tl.constexpr, DTYPE
):
    """Slopes a and their derivative by the raw ones, biases b and logits: ``(UNITS, LANES)``.

    They are the 3 K pseudo-parameters from ``first`` on.
    """
    raw = load_rows(phi, first, phi_p, exists, UNITS, K, DTYPE)
    b = load_rows(phi, first + K, phi_p, exists, UNITS, K, DTYPE)
    logits = load_rows(phi, first + 2 * K, phi_p, exists, UNITS, K, DTYPE)
    h = tl.arange(0, UNITS)
    initial = tl.load(biases + h, mask=h < K, other=0.0).to(DTYPE)[:, None]
    a, slope_of_a = softplus(raw + SHIFT)
    return a + FLOOR, slope_of_a, b + initial, shifted_logits(logits, UNITS, K)


def arithmetic(x: Tensor, phi: Tensor) -> torch.dtype:
    """Return the dtype of the value: the dtype of ``x``, or float64 when ``phi`` is.

    :raises TypeError: when there is no kernel for one of the two dtypes.
    """
    for name, tensor, known in (("x", x, INPUT_DTYPES), ("phi", phi, PARAMETER_DTYPES)):
        if tensor.dtype not in known:
            expected = " or ".join(str(dtype) for dtype in known)
            raise TypeError(f"{name} is {tensor.dtype}, expected {expected}")
    return torch.promote_types(x.dtype, phi.dtype)
