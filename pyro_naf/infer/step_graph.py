"""A loss and its gradients, as SVI computes them, in one graph of operators.

The user's code is run once, with its parameters and arguments followed through every operation.
What it draws at random stays outside of the graph: the draws are made as SVI makes them, one after
another from the user's generator, and are inputs of the graph. So a step has fresh draws, the draws
that SVI would have had.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pyro
import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ..guides.pyro_internals import without_checks, without_masks_of_dice
from ..support.calls import Args, Intercepted, Kwargs, Operation, Types
from ..support.seeding import kept
from .capture import check_equal, constants_to_inputs, is_followed, trace
from .compilation import Compilation, Compiled
from .direct_calls import with_direct_calls
from .draw_inputs import NotCaptured, functional, without_draws
from .lanes import FailedFactorsAreNaN
from .simplification import simplified

#: Largest number of torch's operations in a step that is captured: recording one takes a
#: millisecond or two.
_MOST_OPERATIONS = 5000

#: Loss and gradients of the parameters, by name, from the tensors among the arguments. The
#: gradient is None where nothing depends on the parameter.
Losses = Callable[[list[Tensor]], tuple[Sequence[float | Tensor], Mapping[str, Tensor | None]]]


class StepGraph:
    """Losses and gradients from parameters and arguments, without the user's code.

    :param function: runs the user's code; it reads the parameters from where they are.
    :param params: the parameters, by name.
    :param inputs: the tensors among the arguments. The graph takes others of their shapes.
    :raises NotCaptured: when the function reads numbers out of tensors that change, changes
        tensors in place, or needs anything else that a graph does not hold.
    """

    def __init__(
        self, function: Losses, params: Mapping[str, Tensor], inputs: Sequence[Tensor]
    ) -> None:
        self.params = dict(params)
        #: Names of the parameters that have a gradient, in the order of the graph's outputs.
        self.trained: list[str] = []
        self.num_losses = 0
        module = self._trace(function, inputs)
        self.constants = constants_to_inputs(module)
        examples = [*self.params.values(), *inputs, *self.constants]
        _refuse_trainable(self.constants)
        module = functional(module, examples)
        self.draw, self.uses, self.module = without_draws(module, len(examples))
        #: Constants of the simplified graph that the user's code does not have.
        self.numbers: list[Tensor] = []
        self.module = self._simplified(self.module)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            self._calls = with_direct_calls(self.module, self._values(self._inputs))
        self.compilation: Compilation | None = None
        self._compiled: Compiled | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether the compiled graph is in use."""
        return self._compiled is not None

    @torch.no_grad()
    def __call__(
        self, inputs: Sequence[Tensor], compiled: bool = True
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Compute the losses and the gradients by name, with new draws from torch's generator.

        :param inputs: tensors of the shapes, dtypes and devices that the graph was captured with.
        :param compiled: whether the compiled graph is taken, where there is one.
        """
        values = self._values(inputs)
        if self.compilation is not None and self.compilation.has_ended():
            self._switch(values)
        if compiled and self._compiled is not None:
            out = self._compiled(values)
        else:
            out = self._calls(*values)
        grads = dict(zip(self.trained, out[self.num_losses :], strict=True))
        return list(out[: self.num_losses]), grads

    def compile(self) -> None:
        """Begin to compile the graph in another process; calls switch over when it has ended."""
        if self.compilation is None and not self.is_compiled:
            try:
                with kept():
                    values = self._values(self._inputs)
                self.compilation = Compilation(self.module.code, values)
            except (OSError, RuntimeError):  # no process, or no room on disk
                return

    def _values(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs of the graph without draws: those it uses, draws, and constants."""
        values = [*self.params.values(), *(t.contiguous() for t in inputs), *self.constants]
        draws = self.draw(*values)
        return [*(values[i] for i in self.uses), *draws, *self.numbers]

    @torch.no_grad()
    def _simplified(self, module: fx.GraphModule) -> fx.GraphModule:
        """Simplify the graph, where the result agrees with it."""
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            values = self._values(self._inputs)
        simple = simplified(module)
        numbers = constants_to_inputs(simple)
        try:
            check_equal(simple(*values, *numbers), module(*values))
        except RuntimeError:
            return module
        self.numbers = numbers
        return simple

    def _switch(self, values: list[Tensor]) -> None:
        """Take the compiled graph, if there is one and it agrees with the captured one."""
        compilation, self.compilation = self.compilation, None
        assert compilation is not None
        try:
            compiled = compilation.load()
            check_equal(compiled(values), self.module(*values))
        except Exception:  # noqa: BLE001 - the captured graph is right, and stays
            return
        self._compiled = compiled

    def _trace(self, function: Losses, inputs: Sequence[Tensor]) -> fx.GraphModule:
        def flat(params: list[Tensor], inputs: list[Tensor]) -> list[Tensor]:
            losses, grads = function(inputs)
            values = [loss for loss in losses if isinstance(loss, Tensor)]
            if len(values) < len(losses):
                raise NotCaptured("the loss is a number that does not depend on a tensor")
            self.num_losses = len(losses)
            found = {name: grad for name, grad in grads.items() if grad is not None}
            self.trained = list(found)
            return [*values, *found.values()]

        params = list(self.params.values())
        # Other objects than the user's: a tensor that is also a global of the model stays one.
        self._inputs = [t.detach().contiguous() for t in inputs]
        try:
            with (
                warnings.catch_warnings(),
                without_checks(),
                without_masks_of_dice(),
                _NoReading(),
                _Limited(),
            ):
                warnings.simplefilter("ignore")
                module = trace(flat, params, self._inputs)
        except NotCaptured:
            raise
        except Exception as error:
            raise NotCaptured(_reason(error)) from error
        # Flat inputs and outputs, whatever their nesting was.
        module.graph.set_codegen(fx.graph.CodeGen())
        module.recompile()
        return module


class _NoReading(Intercepted):
    """Numbers read out of tensors that the graph follows: one is a tensor itself, many refused."""

    _MANY = frozenset(
        (
            torch.Tensor.numpy,
            torch.Tensor.tolist,
            torch.Tensor.data_ptr,
            torch.Tensor.untyped_storage,
            torch.Tensor.__array__,
            torch.Tensor.__dlpack__,
        )
    )

    def call(self, func: Operation, args: Args, kwargs: Kwargs) -> object:
        first = cast(Tensor, args[0]) if args else None  # of a method, the tensor
        if func is torch.Tensor.item and first is not None and is_followed(first):
            return first.detach()
        if func in self._MANY and first is not None and is_followed(first):
            raise NotCaptured(
                f"numbers are read out of a tensor ({func.__name__}) at {_place(None)}; "
                "compute with the tensor itself"
            )
        return super().call(func, args, kwargs)


class _Limited(FailedFactorsAreNaN):
    """Refuses steps with more operations than can be captured and compiled in a reasonable time."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Types, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        self.count += 1
        if self.count > _MOST_OPERATIONS:
            raise NotCaptured(
                f"a step has more than {_MOST_OPERATIONS} operations of torch; put loops over data "
                "or draws into plates or tensors (vectorize_particles=True)"
            )
        if torch.Tag.dynamic_output_shape in func.tags and not _has_fixed_shape(func, args):
            raise NotCaptured(
                f"the shape of a tensor depends on values ({func.overloadpacket.__name__}) at "
                f"{_place(None)}; use torch.where, or a mask"
            )
        return super().__torch_dispatch__(func, types, args, kwargs)


def _has_fixed_shape(func: OpOverload, args: Args) -> bool:
    """Whether an operator that may choose entries by values does not: the choice is a constant."""
    if func is torch.ops.aten.index.Tensor:
        indices = cast("list[Tensor | None]", args[1])
        masks = [t for t in indices if t is not None and t.dtype in (torch.bool, torch.uint8)]
        return not any(is_followed(t) for t in masks)
    return not is_followed(cast(Tensor, args[0]))


def _reason(error: Exception) -> str:
    if "get value out of a tracing tensor" in str(error):
        return (
            f"a number that depends on parameters, arguments or draws is read at {_place(error)} "
            "(control flow, float(...), validate_args=True); compute with the tensor itself"
        )
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__} at {_place(error)}: {first}"


def _place(error: Exception | None) -> str:
    """Find the innermost line of the user's model or guide, or else of Pyro."""
    frames = list(traceback.extract_stack())
    if error is not None:
        frames += traceback.extract_tb(error.__traceback__)
    # Outside of the trace is the call of the step, which is not to blame.
    names = [f.name if f.filename == __file__ else "" for f in frames]
    frames = frames[names.index("_trace") :]
    of_pyro, *others = (Path(file).parent for file in (pyro.__file__, torch.__file__, np.__file__))
    library = [str(folder) for folder in (of_pyro, *others, Path(__file__).parent.parent)]
    users = [f for f in frames if not any(f.filename.startswith(folder) for folder in library)]
    if users:
        return f"{Path(users[-1].filename).name}, line {users[-1].lineno}"
    frame = ([f for f in frames if f.filename.startswith(str(of_pyro))] or frames)[-1]
    return f"{'/'.join(Path(frame.filename).parts[-3:])}, line {frame.lineno}"


def _refuse_trainable(constants: Sequence[Tensor]) -> None:
    for tensor in constants:
        if tensor.requires_grad:
            raise NotCaptured(
                f"a tensor of shape {tuple(tensor.shape)} requires a gradient and is no parameter "
                "of the param store; register it with pyro.param or pyro.module, or call "
                "requires_grad_(False)"
            )
