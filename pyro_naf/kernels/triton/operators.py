"""The Triton kernels as torch's operators, with fake tensors and derivatives, and their launches.

DSF has kernels of its own, and no matrices; DDSF of any number of layers has others. The operators
are the same: x ``(B, D)``, phi ``(B, D, (4 L - 1) K)``, biases ``(K,)`` and the packed matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
import triton
from torch import Tensor

from ... import formulas
from ...formulas import SigmoidSpec
from ...rootfinding import MAX_EVALUATIONS
from ...support.autograd import Context
from ...support.modes import needs_plain_backward, plain_gradients
from . import ddsf, dsf
from .common import LANGUAGE_DTYPE, arithmetic

if TYPE_CHECKING:
    from triton import JITFunction

#: Elements that the partial sums of the matrices' gradients may take: 64 MiB in float32.
PARTIAL_SUMS = 1 << 24


def evaluate(spec: SigmoidSpec, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Value and log-slope, each ``(B, D)``.

    :raises TypeError: when x is not float32 or float64, or phi neither these nor 16 bits wide.
    """
    args = spec.biases, spec.packed(), spec.layers, spec.shift, spec.floor
    found: tuple[Tensor, Tensor] = forward(x, phi, *args)
    return found


@torch.no_grad()
def root(spec: SigmoidSpec, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the preimage of y ``(B, D)`` and its error ``(B, D)``, without gradient.

    :raises TypeError: as :func:`evaluate`.
    """
    args = spec.biases, spec.packed(), spec.layers, spec.shift, spec.floor
    found: tuple[Tensor, Tensor] = inverse(y, phi, *args)
    return found


# -------------------------------------------------------------------------------------- launches


def compiled_for(
    x: Tensor, phi: Tensor, biases: Tensor, matrices: Tensor, layers: int, shift: float,
    floor: float, **options: int,
) -> dict[str, Any]:  # fmt: skip
    """List what a kernel is compiled for: formula, dtype and tile."""
    module = ddsf if matrices.numel() else dsf
    return {
        "SHIFT": shift,
        "FLOOR": floor,
        "K": len(biases),
        "DTYPE": LANGUAGE_DTYPE[arithmetic(x, phi)],
        **module.options(x, phi, len(biases), layers, **options),
    }


def shared(biases: Tensor, matrices: Tensor) -> list[Tensor]:
    """List the tensors that all lanes share, as a kernel takes them."""
    tensors = [biases, matrices] if matrices.numel() else [biases]
    return [t.contiguous() for t in tensors]


def launch(kernel: JITFunction, x: Tensor, *args: object, LANES: int, **options: object) -> None:
    """Run a kernel with one program for every ``LANES`` samples of a dimension of x ``(B, D)``."""
    if x.numel() == 0:
        return
    batch, dim = x.shape
    with torch.cuda.device_of(x):
        grid = (programs(x, LANES),)
        kernel[grid](*args, batch, dim, LANES=LANES, enable_fp_fusion=True, **options)


def strided(*tensors: Tensor) -> Iterator[Tensor | int]:
    """Each tensor and then its strides: how a kernel takes tensors of any memory order."""
    for tensor in tensors:
        yield tensor
        yield from tensor.stride()


def programs(x: Tensor, lanes_each: int) -> int:
    """How many programs :func:`launch` runs."""
    return int(triton.cdiv(x.shape[0], lanes_each) * x.shape[1])


# -------------------------------------------------------------------------------------- operators


@torch.library.custom_op("pyro_naf::sigmoids_forward", mutates_args=())
def forward(
    x: Tensor, phi: Tensor, biases: Tensor, matrices: Tensor, layers: int, shift: float,
    floor: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Value and log-slope, each ``(B, D)``."""
    args = x, phi, biases, matrices, layers, shift, floor
    y, log_slope = forward_meta(*args)
    module = ddsf if matrices.numel() else dsf
    launch(
        module.forward_kernel, x, *strided(x, phi), *shared(biases, matrices),
        y, *strided(log_slope), **compiled_for(*args),
    )  # fmt: skip
    return y, log_slope


@forward.register_fake
def forward_meta(x: Tensor, phi: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of the results, for tracing."""
    dtype = arithmetic(x, phi)
    return torch.empty_like(x, dtype=dtype), torch.empty_like(x, dtype=dtype)


@torch.library.custom_op("pyro_naf::sigmoids_backward", mutates_args=())
def backward(
    x: Tensor, phi: Tensor, biases: Tensor, matrices: Tensor, layers: int, shift: float,
    floor: float, grad_y: Tensor, grad_log_slope: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, phi and the matrices, shaped like them."""
    options = compiled_for(x, phi, biases, matrices, layers, shift, floor)
    grad_x, grad_phi = torch.empty_like(x), torch.empty_like(phi)
    if not matrices.numel():
        launch(
            dsf.backward_kernel, x, *strided(x, phi), *shared(biases, matrices),
            *strided(grad_y, grad_log_slope, grad_x, grad_phi), **options,
        )  # fmt: skip
        return grad_x, grad_phi, torch.empty_like(matrices)
    options["maxnreg"] = ddsf.BACKWARD_REGISTERS if options["UNITS"] == 16 else None
    total = torch.zeros_like(matrices, dtype=arithmetic(x, phi))
    tensors = (x, phi, grad_y, grad_log_slope, grad_x, grad_phi)
    samples = _samples_at_once(x, total, options["LANES"])
    for some in zip(*(t.split(samples) for t in tensors), strict=True):
        partial_sums = total.new_empty(programs(some[0], options["LANES"]), len(total))
        launch(
            ddsf.backward_kernel, some[0], *strided(*some[:2]), *shared(biases, matrices),
            *strided(*some[2:]), partial_sums, **options,
        )  # fmt: skip
        total += partial_sums.sum(0)
    return grad_x, grad_phi, total.to(matrices.dtype)


def _samples_at_once(x: Tensor, matrices: Tensor, lanes_each: int) -> int:
    """Return how many samples keep the partial sums of all programs below ``PARTIAL_SUMS``."""
    rows = max(PARTIAL_SUMS // max(len(matrices), 1) // max(x.shape[1], 1), 1)
    return rows * lanes_each


@backward.register_fake
def _(x: Tensor, phi: Tensor, biases: Tensor, matrices: Tensor, *_: object) -> tuple[Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(phi), torch.empty_like(matrices)


@torch.library.custom_op("pyro_naf::sigmoids_inverse", mutates_args=())
def inverse(
    y: Tensor, phi: Tensor, biases: Tensor, matrices: Tensor, layers: int, shift: float,
    floor: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute the preimage ``(B, D)`` of y, and 0 or, where none was found, the residual."""
    args = y, phi, biases, matrices, layers, shift, floor
    x, error = forward_meta(*args)
    module = ddsf if matrices.numel() else dsf
    launch(
        module.inverse_kernel, y, *strided(y, phi), *shared(biases, matrices), x, *strided(error),
        EPS=torch.finfo(x.dtype).eps, EVALUATIONS=MAX_EVALUATIONS,
        # A DSF has a warp of its own for every 32 lanes: none waits for the slowest of another.
        **compiled_for(*args, lanes=32),
    )  # fmt: skip
    return x, error


inverse.register_fake(forward_meta)


# -------------------------------------------------------------------------------------- derivatives


class _Inputs(Context, Protocol):
    numbers: tuple[Tensor | float, ...]


def plain(
    x: Tensor, phi: Tensor, matrices: Tensor, biases: Tensor, layers: int, shift: float,
    floor: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Evaluate the formula on an operator's arguments."""
    dtype = arithmetic(x, phi)
    spec = SigmoidSpec(len(biases), layers, shift, floor, biases)
    spec = spec._replace(matrices=spec.unpack(matrices.to(dtype)))
    return formulas.evaluate(spec, x.to(dtype), phi.to(dtype))


def save_inputs(ctx: _Inputs, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what the backward pass needs."""
    ctx.save_for_backward(*inputs[:4])
    ctx.numbers = inputs[4:]


def gradients(ctx: _Inputs, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """Compute the gradients of x and of the pseudo-parameters."""
    x, phi, biases, matrices = ctx.saved_tensors
    if needs_plain_backward(*grads):
        wanted = x, phi, matrices
        of_x, of_phi, of_matrices = plain_gradients(plain, wanted, grads, biases, *ctx.numbers)
    else:
        of_x, of_phi, of_matrices = backward(x, phi, biases, matrices, *ctx.numbers, *grads)
    return of_x, of_phi, None, of_matrices, None, None, None


forward.register_autograd(gradients, setup_context=save_inputs)
