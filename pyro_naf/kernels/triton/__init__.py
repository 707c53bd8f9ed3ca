"""DSF and DDSF in fused Triton kernels on a GPU.

The kernels are in :mod:`.dsf` and :mod:`.ddsf`, the operators of torch that run them in
:mod:`.operators`. Those modules need the package triton; this one does not.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os

import torch
from torch import Tensor

from ...formulas import SigmoidSpec, affine
from ...support.modes import needs_plain_operations
from ..protocol import OnLanes, column, on_lanes

#: Largest number of hidden units of which a kernel keeps all in registers without spilling most.
MOST_UNITS, MOST_DENSE_UNITS = 256, 64


class Triton:
    """The kernel of GPUs."""

    name = "triton"
    reads_half = True

    def supports(self, spec: SigmoidSpec, x: Tensor, phi: Tensor) -> bool:
        """As :func:`is_supported`, on a GPU that Triton compiles for."""
        return x.device.type == "cuda" and runs(x.device) and is_supported(spec, x, phi)

    def evaluate(self, spec: SigmoidSpec, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`~pyro_naf.kernels.Kernel.evaluate`; an affine map is torch's own operations.

        :raises TypeError: when x is not float32 or float64, or phi neither these nor 16 bits wide.
        """
        if spec.limits is None:
            return on_lanes(_operator("evaluate"), spec, x, phi)
        phi, shift, log_scale = spec.split(phi)
        y, log_slope = self.evaluate(spec._replace(limits=None), x, phi)
        return affine.evaluate(y, shift, log_scale), log_slope + log_scale

    def root(self, spec: SigmoidSpec, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`~pyro_naf.kernels.Kernel.root`."""
        return column(_operator("root"), spec, y, phi)


def is_supported(spec: SigmoidSpec, x: Tensor, phi: Tensor) -> bool:
    """Whether the operators take these tensors, in torch's present modes."""
    known = x.device == phi.device and x.dtype in (torch.float, torch.double)
    known = known and phi.dtype in (x.dtype, torch.bfloat16, torch.float16)
    known = known and spec.units <= (MOST_DENSE_UNITS if spec.matrices else MOST_UNITS)
    # Registered operators may be compiled and autocast; torch.func and tracing want torch's own.
    opaque = not torch.compiler.is_compiling() and needs_plain_operations(x, autocast=False)
    return known and not opaque


def check_runs(device: torch.device) -> None:
    """Raise a RuntimeError where the kernels cannot run: no triton, or another kind of device."""
    if not is_installed():
        raise RuntimeError(
            "kernel 'triton' needs the package triton >= 3.6, which is not installed"
        )
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError(f"kernel 'triton' needs tensors on a CUDA device, got {device}")


def is_installed() -> bool:
    """Whether the package triton is installed, as it is with CUDA builds of torch."""
    return _VERSION >= (3, 6)


def runs(device: torch.device) -> bool:
    """Whether Triton is installed and supports this GPU (compute capability 8.0 or above)."""
    return is_installed() and _capability(device) >= (8, 0)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _operator(name: str) -> OnLanes:
    if not _operators:
        load_operators()
    return _operators[name]


def load_operators() -> None:
    """Import the operators, so that they are there where a compiler looks."""
    from . import operators

    _operators.update(evaluate=operators.evaluate, root=operators.root)


def _installed_version() -> tuple[int, ...]:
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(part) for part in version.split(".")[:2])


_VERSION = _installed_version()
_operators: dict[str, OnLanes] = {}
