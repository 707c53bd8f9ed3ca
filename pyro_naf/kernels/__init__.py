"""Fast evaluations of the sigmoidal formulas, each tested against :mod:`pyro_naf.formulas`.

======== =====================================================================================
triton   fused kernels on a GPU, as registered operators (:mod:`.triton`)
compiled fused loops in C++ on a CPU: from the wheel, or compiled once a machine, in seconds
         (:mod:`.compiled`)
plain    the formula itself, under autograd: any device and dtype, derivatives of any order
======== =====================================================================================

The first that supports the tensors evaluates them. A transformer's ``kernel`` may name one: "plain"
leaves out the others; "triton" is an error where it cannot run; "auto" and "compiled" leave the
choice to the list, as does "ready", which evaluates the plain formula until the loops are built and
waits for no compiler. Where a kernel does not apply (mixed dtypes, tracing, ``torch.func``,
forward-mode and higher derivatives, more units than a GPU's registers hold, no compiler of C++) the
plain formula steps in. The environment variable PYRO_NAF_KERNEL overrides what transformers say.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ..formulas import SigmoidSpec
from ..support.deprecation import warn_deprecated
from . import library, triton
from .compiled import Compiled
from .plain import Plain
from .protocol import Kernel as Kernel

NAMES = ("auto", "ready", "plain", "compiled", "triton")
VARIABLE = "PYRO_NAF_KERNEL"

TRITON, COMPILED, PLAIN = triton.Triton(), Compiled(), Plain()

#: In order of preference; the last supports everything.
KERNELS: tuple[Kernel, ...] = (TRITON, COMPILED, PLAIN)


def check_kernel(name: str, argument: str = "kernel") -> str:
    """Check the name of a kernel; "auto" for "eager", which versions up to 0.2 had.

    :raises ValueError: when no kernel has that name.
    """
    if triton.is_installed() and (name == "triton" or torch.cuda.is_available()):
        triton.load_operators()  # not in the middle of a compilation
    if name == "eager":
        warn_deprecated(
            f"{argument} 'eager' is no more and is taken as 'auto'; choose 'auto', or 'plain' for "
            "the formula without compiled loops"
        )
        return "auto"
    if name not in NAMES:
        raise ValueError(f"{argument} must be one of {', '.join(NAMES)}, got {name!r}")
    return name


def _waits_for_loops(x: Tensor) -> bool:
    """Whether the loops would have to be compiled first; torch.compile needs none."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not library.is_built()


def choose(name: str, spec: SigmoidSpec, x: Tensor, phi: Tensor) -> Kernel:
    """Choose the kernel for these tensors, of the name or of what the environment has in its place.

    :raises ValueError: when PYRO_NAF_KERNEL names no kernel.
    :raises RuntimeError: when triton is named, but not installed or not for this device.
    """
    if VARIABLE in os.environ:
        name = check_kernel(os.environ[VARIABLE] or name, VARIABLE)
    if name == "plain" or (name == "ready" and _waits_for_loops(x)):
        return PLAIN
    if name == "triton":
        triton.check_runs(x.device)
        return TRITON if triton.is_supported(spec, x, phi) else PLAIN
    return next(kernel for kernel in KERNELS if kernel.supports(spec, x, phi))
