"""DSF and DDSF in C++, compiled for this processor by its own compiler: once a machine.

Value, log-slope, gradients and inverse each take one call, which reads the pseudo-parameters once
(``compiled.cpp``). torch's compiler of C++ finds the machine's compiler, its flags and a place to
keep what it makes; where it fails, "eager" does the work.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..rootfinding import MAX_EVALUATIONS
from .modes import needs_plain_backward, plain_gradients
from .pages import in_large_pages

if TYPE_CHECKING:
    from ..transformers.base import SigmoidalTransformer
    from ..transformers.scaled import Scaled

#: Hidden units of all lanes below which another thread costs more than it saves.
UNITS_EACH_THREAD = 1 << 12


class _Strided(ctypes.Structure):
    """A tensor ``(B, D)`` or ``(B, D, P)``; its twin and that of ``_Call`` are in the C++."""

    _fields_ = [("data", ctypes.c_void_p)] + [
        (stride, ctypes.c_int64) for stride in ("batch", "dim", "row")
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        *(
            (size, ctypes.c_int64)
            for size in ("batch", "dim", "units", "layers", "scaled", "threads")
        ),
        *((number, ctypes.c_double) for number in ("shift", "floor")),
        *((tensor, _Strided) for tensor in ("x", "phi", "y", "log_slope")),
        *((tensor, _Strided) for tensor in ("grad_y", "grad_log_slope", "grad_x", "grad_phi")),
        *((vector, ctypes.c_void_p) for vector in ("biases", "matrices", "grad_matrices")),
    ]


def available() -> bool:
    """Whether there is a compiler that works; says so once where there is none."""
    return _library() is not None


@functools.cache
def _library() -> Any:
    try:
        from torch._inductor.codecache import CppCodeCache

        source = Path(__file__).with_suffix(".cpp").read_text()
        return CppCodeCache.load(source, extra_flags=("-ffp-contract=fast",))
    except Exception as error:  # of whatever kind: eager evaluation needs no compiler
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        warnings.warn(
            f"no C++ could be compiled ({reason}); kernel 'compiled' runs eagerly",
            stacklevel=2,
        )
        return None


def evaluate(
    transformer: SigmoidalTransformer | Scaled, x: Tensor, phi: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and log-slope, each ``(B, D)``, of x ``(B, D)`` under phi ``(B, D, P)``."""
    return _Evaluation.apply(transformer, x, phi, *transformer.shared())


@torch.no_grad()
def root(transformer: SigmoidalTransformer, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """The preimage ``(B, D)`` of y and its error: 0, or the residual where none was found."""
    x, error = torch.empty_like(y), torch.empty_like(y)
    matrices = _pack(transformer.shared())
    call = _describe(transformer, phi, matrices, y=y, x=x, log_slope=error)
    _run("inverse", y, ctypes.byref(call), MAX_EVALUATIONS)
    return x, error


class _Evaluation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        transformer: SigmoidalTransformer | Scaled,
        x: Tensor,
        phi: Tensor,
        *shared: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.transformer = transformer
        ctx.save_for_backward(x, phi, *shared)
        y, log_slope = torch.empty_like(x), torch.empty_like(x)
        matrices = _pack(shared)
        call = _describe(transformer, phi, matrices, x=x, y=y, log_slope=log_slope)
        _run("forward", x, ctypes.byref(call))
        return y, log_slope

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, phi, *shared = ctx.saved_tensors
        if needs_plain_backward(*grads):
            return None, *plain_gradients(ctx.transformer.plain, ctx.saved_tensors, grads)
        grad_x, grad_phi = torch.empty_like(x), in_large_pages(torch.empty_like(phi))
        grad_y, grad_log_slope = grads
        matrices = _pack(shared)
        call = _describe(
            ctx.transformer, phi, matrices, x=x,
            grad_y=grad_y, grad_log_slope=grad_log_slope, grad_x=grad_x, grad_phi=grad_phi,
        )  # fmt: skip
        if matrices is None:
            _run("backward", x, ctypes.byref(call))
            return None, grad_x, grad_phi
        grad_matrices = torch.empty_like(matrices)
        call.grad_matrices = grad_matrices.data_ptr()
        _run("backward", x, ctypes.byref(call))
        parts = grad_matrices.split([m.numel() for m in shared])
        return None, grad_x, grad_phi, *(p.view_as(m) for p, m in zip(parts, shared, strict=True))


def _describe(
    transformer: SigmoidalTransformer | Scaled,
    phi: Tensor,
    matrices: Tensor | None,
    **tensors: Tensor,
) -> _Call:
    batch, dim, params = phi.shape
    inner: Any = getattr(transformer, "inner", transformer)
    scaled = inner is not transformer
    units = inner.hidden_units
    layers = ((params - 2 * scaled) // units + 1) // 4
    threads = min(torch.get_num_threads(), batch * dim * units * layers // UNITS_EACH_THREAD)
    call = _Call(batch, dim, units, layers, scaled, max(threads, 1), *inner.softplus_constants())
    call.phi = _Strided(phi.data_ptr(), *phi.stride())
    for name, tensor in tensors.items():
        setattr(call, name, _Strided(tensor.data_ptr(), *tensor.stride()))
    call.biases = inner.initial_biases.data_ptr()
    call.matrices = None if matrices is None else matrices.data_ptr()
    return call


def _pack(shared: tuple[Tensor, ...] | list[Tensor]) -> Tensor | None:
    """The matrices in one vector, as the C++ takes them; a DSF has none."""
    return torch.cat([m.detach().flatten() for m in shared]) if shared else None


def _run(name: str, like: Tensor, *args: Any) -> None:
    width = "float32" if like.dtype == torch.float else "float64"
    getattr(_library(), f"{name}_{width}")(*args)
