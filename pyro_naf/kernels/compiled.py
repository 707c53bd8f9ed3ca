"""DSF and DDSF in C++, compiled for this processor by its own compiler: once a machine.

Value, log-slope, gradients and inverse each take one call, which reads the pseudo-parameters once
(``compiled.cpp``). torch's compiler of C++ finds the machine's compiler, its flags and a place to
keep what it makes; where it fails, "eager" does the work.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import threading
import warnings
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import libraries
from ..rootfinding import MAX_EVALUATIONS
from .modes import needs_plain_backward, plain_gradients
from .pages import in_large_pages

if TYPE_CHECKING:
    from ..transformers.base import SigmoidalTransformer
    from ..transformers.scaled import Scaled

#: Past what users may set for Inductor's kernels: sums are rounded as they are written.
FLAGS = ("-fno-unsafe-math-optimizations", "-fno-finite-math-only", "-ffp-contract=fast")

#: Hidden units of all lanes below which another thread costs more than it saves.
UNITS_EACH_THREAD = 1 << 12


class _Strided(ctypes.Structure):
    """A tensor ``(B, D)`` or ``(B, D, P)``; its twin and that of ``_Call`` are in the C++."""

    _fields_ = [("data", ctypes.c_void_p)] + [
        (stride, ctypes.c_int64) for stride in ("batch", "dim", "row")
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        *((size, ctypes.c_int64) for size in ("batch", "dim", "units", "layers")),
        *((limit, ctypes.c_int64) for limit in ("threads", "evaluations")),
        *((number, ctypes.c_double) for number in ("shift", "floor", "bound", "slope")),
        *((tensor, _Strided) for tensor in ("x", "phi", "y", "log_slope")),
        *((tensor, _Strided) for tensor in ("grad_y", "grad_log_slope", "grad_x", "grad_phi")),
        *((vector, ctypes.c_void_p) for vector in ("biases", "matrices", "grad_matrices")),
    ]


def available() -> bool:
    """Whether there is a compiler that works; says so once where there is none."""
    return _library() is not None


def is_built() -> bool:
    """Whether this process, or an earlier one, has compiled the loops."""
    return _library.cache_info().currsize > 0 or libraries.is_there(_place())


@functools.cache
def build_beside() -> None:
    """Begin to compile the loops in a thread, where there is a compiler, for later use."""
    if any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))):
        threading.Thread(target=available, daemon=True).start()


@functools.cache
def _library() -> Any:
    try:
        library = _load(_place()) or _build(_place())
        for name, width in product(("forward", "backward", "inverse"), ("float32", "float64")):
            getattr(library, f"{name}_{width}").restype = ctypes.c_bool
        return library
    except Exception as error:  # of whatever kind: eager evaluation needs no compiler
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        warnings.warn(
            f"no C++ could be compiled ({reason}); flows run eagerly, at half the speed or less: "
            "install a C++ compiler, or choose kernel='eager'",
            stacklevel=2,
        )
        return None


def _source() -> str:
    return Path(__file__).with_suffix(".cpp").read_text()


def _place() -> Path:
    return libraries.folder(_source(), FLAGS) / "kernels.so"


def _load(path: Path) -> Any:
    """The library that an earlier process has built: in milliseconds, without torch's compiler."""
    if not libraries.is_there(path):
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError:  # of another system
        return None


def _build(path: Path) -> Any:
    from torch._inductor.codecache import CppCodeCache

    # CppCodeCache.load() takes no flags before torch 2.7.
    library = CppCodeCache.load_async(_source(), extra_flags=FLAGS)()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        shutil.copyfile(library._name, new)
        new.replace(path)
    return library


def reads(x: Tensor, *others: Tensor) -> bool:
    """Whether the loops can read these tensors: plain ones, of x's dtype, in a CPU's memory."""
    return all(
        type(t) in (Tensor, Parameter) and t.dtype == x.dtype and t.device.type == "cpu"
        for t in (x, *others)
    )


def evaluate(
    transformer: SigmoidalTransformer | Scaled, x: Tensor, phi: Tensor
) -> tuple[Tensor, Tensor]:
    """Value and log-slope, each ``(B, D)``, of x ``(B, D)`` under phi ``(B, D, P)``.

    :raises ValueError: when P is not the transformer's.
    """
    _check_width(transformer, phi)
    return _Evaluation.apply(transformer, x, phi, *transformer.shared())


@torch.no_grad()
def root(transformer: SigmoidalTransformer, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """The preimage ``(B, D)`` of y and its error: 0, or the residual where none was found.

    :raises ValueError: as :func:`evaluate`.
    """
    _check_width(transformer, phi)
    x, error = torch.empty_like(y), torch.empty_like(y)
    matrices = _pack(transformer.shared())
    _run("inverse", _constants(transformer), matrices, phi, y=y, x=x, log_slope=error)
    return x, error


class _Constants(NamedTuple):
    """What all lanes share but the matrices, as it was in the forward pass."""

    units: int
    layers: int
    shift: float
    floor: float
    #: Limits of the affine map's log-scale; 0 where there is no affine map.
    bound: float
    slope: float
    biases: Tensor


class _Evaluation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        transformer: SigmoidalTransformer | Scaled,
        x: Tensor,
        phi: Tensor,
        *shared: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.plain, ctx.constants = transformer.plain, _constants(transformer)
        ctx.save_for_backward(x, phi, *shared)
        y, log_slope = torch.empty_like(x), torch.empty_like(x)
        _run("forward", ctx.constants, _pack(shared), phi, x=x, y=y, log_slope=log_slope)
        return y, log_slope

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, phi, *shared = ctx.saved_tensors
        if needs_plain_backward(*grads):
            return None, *plain_gradients(ctx.plain, ctx.saved_tensors, grads)
        matrices = _pack(shared)
        found = {"grad_x": torch.empty_like(x), "grad_phi": in_large_pages(torch.empty_like(phi))}
        given = dict(zip(("grad_y", "grad_log_slope"), grads, strict=True))
        total = None if matrices is None else torch.empty_like(matrices)
        _run("backward", ctx.constants, matrices, phi, total, x=x, **given, **found)
        if total is None:
            return None, *found.values()
        parts = total.split([m.numel() for m in shared])
        return None, *found.values(), *(p.view_as(m) for p, m in zip(parts, shared, strict=True))


def _check_width(transformer: SigmoidalTransformer | Scaled, phi: Tensor) -> None:
    if phi.shape[-1] != transformer.num_params:
        raise ValueError(
            f"phi must have shape (..., {transformer.num_params}), got (..., {phi.shape[-1]})"
        )


def _constants(transformer: SigmoidalTransformer | Scaled) -> _Constants:
    inner: Any = getattr(transformer, "inner", transformer)
    limits: Any = getattr(transformer, "log_scale_limits", torch.zeros(2))
    layers, (bound, slope) = getattr(inner, "num_layers", 1), limits.tolist()
    shift, floor = inner.softplus_constants()
    return _Constants(inner.hidden_units, layers, shift, floor, bound, slope, inner.initial_biases)


def _pack(shared: Sequence[Tensor]) -> Tensor | None:
    """The matrices in one vector; a DSF has none."""
    return torch.cat([m.detach().flatten() for m in shared]) if shared else None


def _run(
    name: str,
    constants: _Constants,
    matrices: Tensor | None,
    phi: Tensor,
    grad_matrices: Tensor | None = None,
    **tensors: Tensor,
) -> None:
    units, layers, *numbers, biases = constants
    work = phi.shape[:2].numel() * units * layers
    threads = max(min(torch.get_num_threads(), work // UNITS_EACH_THREAD), 1)
    call = _Call(*phi.shape[:2], units, layers, threads, MAX_EVALUATIONS, *numbers)
    # Negated views have their sign beside the memory; what replaces them lives as long as the call.
    tensors = {n: t.resolve_neg() for n, t in (("phi", phi), *tensors.items())}
    for field, tensor in tensors.items():
        setattr(call, field, _Strided(tensor.data_ptr(), *tensor.stride()))
    call.biases = biases.data_ptr()
    call.matrices = None if matrices is None else matrices.data_ptr()
    call.grad_matrices = None if grad_matrices is None else grad_matrices.data_ptr()
    width = "float32" if phi.dtype == torch.float else "float64"
    if not getattr(_library(), f"{name}_{width}")(ctypes.byref(call)):
        raise MemoryError(f"no room for the {name} pass of kernel 'compiled'")
