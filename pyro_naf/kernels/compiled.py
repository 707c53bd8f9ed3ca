"""DSF and DDSF in C++ on a CPU: value, log-slope, gradients and inverse, each in one call.

A call reads the pseudo-parameters once (``compiled.cpp``); where the loops come from says
:mod:`.library`. The two passes are operators of torch, so that a captured graph can hold them.
"""

from __future__ import annotations

import struct
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter
from typing_extensions import Unpack

from .. import formulas
from ..formulas import SigmoidSpec
from ..rootfinding import MAX_EVALUATIONS
from ..support.autograd import Context
from ..support.modes import (
    calls_are_recorded,
    needs_plain_backward,
    needs_plain_operations,
    plain_gradients,
)
from ..support.pages import in_large_pages
from . import library
from .protocol import column, on_lanes

#: Number of hidden units, of all lanes together, for which another thread saves more than it costs.
UNITS_EACH_THREAD = 1 << 12


class Compiled:
    """The kernel of C++ loops."""

    name = "compiled"
    reads_half = False

    def supports(self, spec: SigmoidSpec, x: Tensor, phi: Tensor) -> bool:
        """Plain tensors of one dtype in a CPU's memory, in no mode that looks into operations."""
        return (
            x.device.type == "cpu"
            and x.dtype in (torch.float, torch.double)
            and (not needs_plain_operations(x) or calls_are_recorded())
            and all(_is_readable(t, x.dtype) for t in (x, phi, spec.biases, *spec.matrices))
            and library.available()
        )

    def evaluate(self, spec: SigmoidSpec, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`~pyro_naf.kernels.Kernel.evaluate`.

        :raises ValueError: when phi has not the spec's number of pseudo-parameters.
        """
        return on_lanes(_evaluate, spec, x, phi)

    def root(self, spec: SigmoidSpec, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`~pyro_naf.kernels.Kernel.root`.

        :raises ValueError: as :meth:`evaluate`.
        """
        return column(root, spec, y, phi)


def _is_readable(t: Tensor, dtype: torch.dtype) -> bool:
    return type(t) in (Tensor, Parameter) and t.dtype == dtype and t.device.type == "cpu"


#: What the loops are handed, as the C++ has it in ``Call``: sizes and limits, numbers, then address
#: and three strides of each tensor ``(B, D)`` or ``(B, D, P)``, then three addresses.
_LAYOUT = struct.Struct("@6q4d32q3q")
_TENSORS = ("x", "phi", "y", "log_slope", "grad_y", "grad_log_slope", "grad_x", "grad_phi")


def _evaluate(spec: SigmoidSpec, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    _check_width(spec, phi)
    found: tuple[Tensor, Tensor] = _Evaluation.apply(spec, x, phi, *spec.matrices)
    return found


@torch.no_grad()
def root(spec: SigmoidSpec, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
    """Return the preimage ``(B, D)`` of y under phi ``(B, D, P)``, and its error."""
    _check_width(spec, phi)
    x, error = torch.empty_like(y), torch.empty_like(y)
    matrices = spec.packed().detach()
    _run("inverse", _constants(spec), matrices, phi, y=y, x=x, log_slope=error)
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


_NAME = "pyro_naf_loops"
#: Matrices and biases; units and layers; shift, floor, bound and slope.
_SHARED = "Tensor[] shared, int[] sizes, float[] numbers"

_Shared = tuple[list[Tensor], list[int], list[float]]


def _shared(matrices: Tensor, constants: _Constants) -> _Shared:
    units, layers, *numbers, biases = constants
    return [matrices, biases], [units, layers], numbers


def _constants_of(shared: _Shared) -> _Constants:
    (_, biases), (units, layers), (shift, floor, bound, slope) = shared
    return _Constants(units, layers, shift, floor, bound, slope, biases)


def _forward(x: Tensor, phi: Tensor, *shared: Unpack[_Shared]) -> tuple[Tensor, Tensor]:
    y, log_slope = torch.empty_like(x), torch.empty_like(x)
    _run("forward", _constants_of(shared), shared[0][0], phi, x=x, y=y, log_slope=log_slope)
    return y, log_slope


def _backward(
    x: Tensor, phi: Tensor, grads: list[Tensor], *shared: Unpack[_Shared]
) -> tuple[Tensor, Tensor, Tensor]:
    matrices = shared[0][0]
    given = dict(zip(("grad_y", "grad_log_slope"), grads, strict=True))
    found = {"grad_x": torch.empty_like(x), "grad_phi": in_large_pages(torch.empty_like(phi))}
    total = torch.empty_like(matrices)
    _run("backward", _constants_of(shared), matrices, phi, total, x=x, **given, **found)
    return found["grad_x"], found["grad_phi"], total


def _forward_meta(x: Tensor, phi: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def _backward_meta(
    x: Tensor, phi: Tensor, grads: list[Tensor], shared: list[Tensor], *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(phi), torch.empty_like(shared[0])


def _register() -> torch.library.Library:
    """Define the two passes as operators of torch, for as long as the library is held."""
    library = torch.library.Library(_NAME, "FRAGMENT")
    library.define(f"forward(Tensor x, Tensor phi, {_SHARED}) -> (Tensor, Tensor)")
    library.define(
        f"backward(Tensor x, Tensor phi, Tensor[] grads, {_SHARED}) -> (Tensor, Tensor, Tensor)"
    )
    library.impl("forward", _forward, "CPU")
    library.impl("backward", _backward, "CPU")
    library.impl("forward", _forward_meta, "Meta")
    library.impl("backward", _backward_meta, "Meta")
    return library


# A module that is imported anew finds them there.
if not hasattr(getattr(torch.ops, _NAME), "backward"):
    _operators = _register()


class _EvaluationContext(Context, Protocol):
    spec: SigmoidSpec
    constants: _Constants


class _Evaluation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _EvaluationContext, spec: SigmoidSpec, x: Tensor, phi: Tensor, *matrices: Tensor
    ) -> tuple[Tensor, Tensor]:
        # The matrices are saved for the backward pass, and no tensor is held beside.
        ctx.spec, ctx.constants = spec._replace(matrices=()), _constants(spec)
        ctx.save_for_backward(x, phi, *matrices)
        found: tuple[Tensor, Tensor] = torch.ops.pyro_naf_loops.forward.default(
            x, phi, *_shared(spec.packed(), ctx.constants)
        )
        return found

    @staticmethod
    def backward(ctx: _EvaluationContext, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, phi, *matrices = ctx.saved_tensors
        if needs_plain_backward(*grads):

            def plain(x: Tensor, phi: Tensor, *matrices: Tensor) -> tuple[Tensor, Tensor]:
                return formulas.evaluate(ctx.spec._replace(matrices=matrices), x, phi)

            return None, *plain_gradients(plain, ctx.saved_tensors, grads)
        spec = ctx.spec._replace(matrices=tuple(matrices))
        *found, total = torch.ops.pyro_naf_loops.backward.default(
            x, phi, list(grads), *_shared(spec.packed(), ctx.constants)
        )
        return None, *found, *spec.unpack(total)


def _check_width(spec: SigmoidSpec, phi: Tensor) -> None:
    if phi.shape[-1] != spec.num_params:
        raise ValueError(
            f"phi must have shape (..., {spec.num_params}), got (..., {phi.shape[-1]})"
        )


def _constants(spec: SigmoidSpec) -> _Constants:
    bound, slope = (0.0, 0.0) if spec.limits is None else spec.limits.tolist()
    return _Constants(*spec[:4], bound, slope, spec.biases)


def _run(
    way: str,
    constants: _Constants,
    matrices: Tensor,
    phi: Tensor,
    grad_matrices: Tensor | None = None,
    **tensors: Tensor,
) -> None:
    units, layers, *numbers, biases = constants
    batch, dim, _ = phi.shape
    work = batch * dim * units * layers
    threads = max(min(torch.get_num_threads(), work // UNITS_EACH_THREAD), 1)
    # Negated views have their sign beside the memory; what replaces them lives as long as the call.
    tensors = {n: t.resolve_neg() for n, t in (("phi", phi), *tensors.items())}
    places: list[int] = []
    for name in _TENSORS:
        t = tensors.get(name)
        places += (0, 0, 0, 0) if t is None else (t.data_ptr(), *t.stride(), 0)[:4]
    # A DSF has no matrices, and an empty tensor no memory.
    shared = biases.data_ptr(), matrices.data_ptr()
    total = 0 if grad_matrices is None else grad_matrices.data_ptr()
    sizes = batch, dim, units, layers, threads, MAX_EVALUATIONS
    width = "float32" if phi.dtype == torch.float else "float64"
    function = getattr(library.library(), f"{way}_{width}")
    if not function(_LAYOUT.pack(*sizes, *numbers, *places, *shared, total)):
        raise MemoryError(f"no room for the {way} pass of kernel 'compiled'")
