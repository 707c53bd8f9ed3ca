"""Fast evaluations of the transformers, each tested against the plain formula.

======== =====================================================================================
plain    the formula itself, under autograd: any device and dtype, derivatives of any order
eager    hand-derived gradients in linear space, in chunks; saves only inputs, except for very
         small ones (:mod:`.eager`)
compiled fused loops in C++ on a CPU, compiled once a machine, in seconds (:mod:`.compiled`)
triton   fused kernels on a GPU, as registered operators (``triton_dsf``, ``triton_ddsf``)
======== =====================================================================================

A transformer's ``kernel`` names one of them. "auto" takes triton on a GPU that runs it and compiled
on a CPU; "compiled" is for a CPU, and "auto" elsewhere. Where a kernel does not apply (mixed
dtypes, tracing, ``torch.func``, forward-mode and higher derivatives, more units than
``TRITON_UNITS``) the plain formula steps in, and eager where there is no compiler of C++. The
environment variable PYRO_NAF_KERNEL overrides what transformers say.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import compiled, eager
from .modes import needs_plain_operations

if TYPE_CHECKING:
    from ..transformers.base import SigmoidalTransformer
    from ..transformers.scaled import Scaled

KERNELS = ("auto", "plain", "eager", "compiled", "triton")
VARIABLE = "PYRO_NAF_KERNEL"

#: Hidden units of which a kernel holds all in registers without spilling most.
TRITON_UNITS = {"dsf": 256, "ddsf": 64}


def check_kernel(name: str, argument: str = "kernel") -> str:
    """The name itself.

    :raises ValueError: when no kernel has that name.
    """
    if has_triton() and (name == "triton" or (name == "auto" and torch.cuda.is_available())):
        load_operators()  # not in the middle of a compilation
    if name not in KERNELS:
        raise ValueError(f"{argument} must be one of {', '.join(KERNELS)}, got {name!r}")
    return name


def evaluate(transformer: SigmoidalTransformer, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Value and log-slope, each ``(...)``, of x ``(...)`` under phi ``(..., P)``.

    :raises ValueError: when PYRO_NAF_KERNEL names no kernel.
    :raises RuntimeError: when triton is named, but not installed or not for this device.
    """
    return evaluate_by(choose(transformer, x, phi), transformer, x, phi)


def evaluate_by(
    kernel: str, transformer: SigmoidalTransformer | Scaled, x: Tensor, phi: Tensor
) -> tuple[Tensor, Tensor]:
    """The same by the kernel that :func:`choose` has found; triton knows no affine maps."""
    if kernel == "plain":
        return transformer.plain(x, phi)
    x, phi = _broadcast(x, phi)
    if kernel == "eager":
        return eager.evaluate(transformer.formula(), x, phi, *transformer.shared())
    lanes = x.shape[-1] if x.dim() > 1 else 1  # one axis: many values of one dimension
    batch = x.shape[:-1].numel() if x.dim() > 1 else x.numel()
    flat = x.reshape(batch, lanes), phi.reshape(batch, lanes, phi.shape[-1])
    fused: Any = compiled.evaluate
    if kernel == "triton":
        fused = _operator(str(transformer.name))
    y, log_slope = fused(transformer, *flat)
    return y.view(x.shape), log_slope.view(x.shape)


def _broadcast(x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape == phi.shape[:-1]:
        return x, phi
    shape = torch.broadcast_shapes(x.shape, phi.shape[:-1])
    return x.expand(shape), phi.expand(*shape, -1)


def root(transformer: SigmoidalTransformer, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor] | None:
    """The preimage of y ``(N,)`` and its error, from one fused kernel; None where none runs."""
    kernel = choose(transformer, y, phi)
    if kernel not in ("compiled", "triton"):
        return None
    find = compiled.root if kernel == "compiled" else _operator(f"{transformer.name}_root")
    x, error = find(transformer, y.unsqueeze(-1), phi.unsqueeze(-2))
    return x.squeeze(-1), error.squeeze(-1)


def choose(transformer: SigmoidalTransformer, x: Tensor, phi: Tensor) -> str:
    """The kernel for these tensors: what the environment or else the transformer names."""
    name = transformer.kernel
    if VARIABLE in os.environ:
        name = check_kernel(os.environ[VARIABLE] or name, VARIABLE)
    on_cpu = x.device.type == "cpu"
    if name in ("auto", "compiled"):
        fast = "triton" if x.device.type == "cuda" and runs_triton(x.device) else "plain"
        name = "compiled" if on_cpu else fast
    supported = x.device == phi.device and x.dtype in (torch.float, torch.double)
    if name == "plain" or not (supported and transformer.has_kernels):
        return "plain"
    if name == "triton":
        return _choose_triton(transformer, x, phi)
    if phi.dtype != x.dtype or needs_plain_operations(x):
        return "plain"
    if name == "eager":
        return name
    if not compiled.reads(x, phi, transformer.initial_biases, *transformer.shared()):
        return "plain"
    return "compiled" if compiled.available() else "eager"


def _choose_triton(transformer: SigmoidalTransformer, x: Tensor, phi: Tensor) -> str:
    if not has_triton():
        raise RuntimeError(
            "kernel 'triton' needs the package triton >= 3.6, which is not installed"
        )
    if x.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f"kernel 'triton' needs tensors on a CUDA device, got {x.device}")
    # Registered operators may be compiled and autocast; torch.func and tracing want torch's own.
    known = phi.dtype in (x.dtype, torch.bfloat16, torch.float16)
    known = known and transformer.hidden_units <= TRITON_UNITS[transformer.name]
    opaque = not torch.compiler.is_compiling() and needs_plain_operations(x, autocast=False)
    return "triton" if known and not opaque else "plain"


def has_triton() -> bool:
    """Whether the package triton is installed, as it is with CUDA builds of torch."""
    return _TRITON_VERSION >= (3, 6)


def runs_triton(device: torch.device) -> bool:
    """Whether it is, and the GPU is one that it compiles for."""
    return has_triton() and _capability(device) >= (8, 0)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _operator(name: str) -> Any:
    """A Triton operator; it is there already where a compiler looks."""
    if name not in _operators:
        load_operators()
    return _operators[name]


def load_operators() -> None:
    """Imports the Triton kernels."""
    from .triton_ddsf import ddsf, ddsf_root
    from .triton_dsf import dsf, dsf_root

    _operators.update(dsf=dsf, dsf_root=dsf_root, ddsf=ddsf, ddsf_root=ddsf_root)


def _installed_triton() -> tuple[int, ...]:
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(part) for part in version.split(".")[:2])


_TRITON_VERSION = _installed_triton()
_operators: dict[str, Any] = {}
