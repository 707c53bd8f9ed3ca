"""A loss and its gradients, as SVI computes them, in one graph of operators.

The user's code is run once, with its parameters and arguments followed through every operation.
What it draws at random stays outside of the graph: the draws are made as SVI makes them, one after
another from the user's generator, and are inputs of the graph. So a step has fresh draws, the draws
that SVI would have had.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.overrides import TorchFunctionMode

from ..guides.pyro_internals import without_nan_checks
from .capture import check_equal, constants_to_inputs, trace
from .compilation import Compilation, Compiled
from .lanes import FailedFactorsAreNaN

#: Operations of torch in a step that is captured: each takes a millisecond or two to record.
_MOST_OPERATIONS = 5000

#: Loss and gradients of the parameters, by name, from the tensors among the arguments. The
#: gradient is None where nothing depends on the parameter.
Losses = Callable[[list[Tensor]], tuple[Sequence[Any], Mapping[str, Tensor | None]]]


class NotCaptured(RuntimeError):
    """A step that no graph can stand for; the message says why."""


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
        module = _functional(module, examples)
        self.draw, self.uses, self.module = _without_draws(module, len(examples))
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
        """The losses and the gradients by name, with new draws from torch's generator.

        :param inputs: tensors of the shapes, dtypes and devices that the graph was captured with.
        :param compiled: whether the compiled graph is taken, where there is one.
        """
        values = self._values(inputs)
        if self.compilation is not None and self.compilation.has_ended():
            self._switch(values)
        if compiled and self._compiled is not None:
            out = self._compiled(values)
        else:
            out = self.module(*values)
        grads = dict(zip(self.trained, out[self.num_losses :], strict=True))
        return list(out[: self.num_losses]), grads

    def compile(self) -> None:
        """Begin to compile the graph in another process; calls switch over when it has ended."""
        if self.compilation is None and not self.is_compiled:
            try:
                values = self._values(self._inputs)
                self.compilation = Compilation(self.module.code, values)
            except OSError:  # no process, or no room on disk
                return

    def _values(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Inputs of the graph without draws: those it uses, and the draws."""
        values = [*self.params.values(), *(t.contiguous() for t in inputs), *self.constants]
        draws = self.draw(*values)
        return [*(values[i] for i in self.uses), *draws]

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
            if not all(isinstance(loss, Tensor) for loss in losses):
                raise NotCaptured("the loss is a number that does not depend on a tensor")
            self.num_losses = len(losses)
            found = {name: grad for name, grad in grads.items() if grad is not None}
            self.trained = list(found)
            return [*losses, *found.values()]

        params = list(self.params.values())
        # Other objects than the user's: a tensor that is also a global of the model stays one.
        self._inputs = [t.detach() for t in inputs]
        try:
            with (
                warnings.catch_warnings(),
                pyro.validation_enabled(False),
                without_nan_checks(),
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


class _NoReading(TorchFunctionMode):
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

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.item and _is_followed(args[0]):
            return args[0].detach()
        if func in self._MANY and _is_followed(args[0]):
            raise NotCaptured(
                f"numbers are read out of a tensor ({func.__name__}) at {_place(None)}; "
                "compute with the tensor itself"
            )
        return func(*args, **(kwargs or {}))


class _Limited(FailedFactorsAreNaN):
    """Refuses steps of so many operations that capturing and compiling would take too long."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count > _MOST_OPERATIONS:
            raise NotCaptured(
                f"a step has more than {_MOST_OPERATIONS} operations of torch; put loops over data "
                "or draws into plates or tensors (vectorize_particles=True)"
            )
        return super().__torch_dispatch__(func, types, args, kwargs)


def _is_followed(tensor: Tensor) -> bool:
    mode = get_proxy_mode()
    return mode is not None and tensor in mode.tracer.tensor_tracker


def _reason(error: Exception) -> str:
    if "get value out of a tracing tensor" in str(error):
        return (
            f"a number that depends on parameters, arguments or draws is read at {_place(error)} "
            "(control flow, float(...), validate_args=True); compute with the tensor itself"
        )
    first = str(error).partition("\n")[0]
    return f"{type(error).__name__} at {_place(error)}: {first}"


def _place(error: Exception | None) -> str:
    """The innermost line of the user's own code."""
    frames = list(traceback.extract_stack())
    if error is not None:
        frames += traceback.extract_tb(error.__traceback__)
    ours = [str(Path(file).parent) for file in (torch.__file__, pyro.__file__, np.__file__)]
    ours.append(str(Path(__file__).parent.parent))
    users = [f for f in frames if not any(f.filename.startswith(folder) for folder in ours)]
    frame = (users or frames)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"


def _refuse_trainable(constants: Sequence[Tensor]) -> None:
    for tensor in constants:
        if tensor.requires_grad:
            raise NotCaptured(
                f"a tensor of shape {tuple(tensor.shape)} requires a gradient and is no parameter "
                "of the param store; register it with pyro.param or pyro.module, or call "
                "requires_grad_(False)"
            )


# ------------------------------------------------------------------- graphs and their random draws


def _functional(module: fx.GraphModule, examples: Sequence[Tensor]) -> fx.GraphModule:
    """The graph without writes in place but those that fill a new tensor with draws."""
    if any(_writes(node) and not _fills(node) for node in module.graph.nodes):
        with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            copies = [t.detach().clone() for t in examples]
            module = trace(torch.func.functionalize(module), *copies)
    for node in module.graph.nodes:
        if _writes(node) and not _fills(node):
            written = node.args[0].meta.get("val")
            shape = "" if written is None else f" of shape {tuple(written.shape)}"
            raise NotCaptured(
                f"a tensor{shape} that is there before the step is changed in place "
                f"({node.target}), as buffers of BatchNorm are"
            )
    return module


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _fills(node: fx.Node) -> bool:
    """Whether a node fills a tensor that was made for it alone with random numbers."""
    if not _is_random(node):
        return False
    made = node.args[0]
    return (
        isinstance(made, fx.Node)
        and made.op == "call_function"
        and made.target in _NEW
        and len(made.users) == 1
    )


_NEW = frozenset(
    (
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.zeros.default,
        torch.ops.aten.ones.default,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.zeros_like.default,
        torch.ops.aten.ones_like.default,
        torch.ops.aten.new_empty.default,
        torch.ops.aten.new_zeros.default,
    )
)


def _is_random(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded in tags


def _without_draws(
    module: fx.GraphModule, num_inputs: int
) -> tuple[Callable[..., Any], list[int], fx.GraphModule]:
    """Split a graph into the draws and the rest.

    :return: a function of all inputs that makes the draws, in their order; the numbers of the
        inputs that the rest uses; and the rest, a graph of these inputs and of the draws.
    """
    _forget_values(module.graph)
    nodes = list(module.graph.nodes)
    draws = [node for node in nodes if _is_random(node)]
    draw = _subgraph(nodes, _needed(draws), draws)
    found = [node for node in nodes if node.op == "output"][0].args[0]
    needed = _needed([node for node in found if isinstance(node, fx.Node)], stop=set(draws))
    rest = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    uses = []
    inputs = [node for node in nodes if node.op == "placeholder"]
    for i, node in enumerate(inputs):
        if node in needed:
            copies[node] = rest.node_copy(node)
            uses.append(i)
    for i, node in enumerate(draws):
        copies[node] = rest.placeholder(f"draw_{i}")
    for node in nodes:
        if node in needed and node not in copies:
            copies[node] = rest.node_copy(node, copies.__getitem__)
    rest.output([copies[node] for node in found])
    rest.lint()
    assert len(inputs) == num_inputs
    return draw, uses, fx.GraphModule(torch.nn.Module(), rest)


def _subgraph(
    nodes: list[fx.Node], needed: set[fx.Node], outputs: list[fx.Node]
) -> Callable[..., Any]:
    """The function of all inputs that computes these outputs."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output([copies[node] for node in outputs])
    return fx.GraphModule(torch.nn.Module(), graph)


def _needed(outputs: Sequence[fx.Node], stop: Collection[fx.Node] = ()) -> set[fx.Node]:
    """The nodes that these depend on, themselves included, back to those at which to stop."""
    needed: set[fx.Node] = set()
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            if node not in stop:
                stack += node.all_input_nodes
    return needed


def _forget_values(graph: fx.Graph) -> None:
    """New tensors depend on the shape of a tensor, not on its values."""
    for node in list(graph.nodes):
        name = _LIKE.get(node.target) if node.op == "call_function" else None
        made = node.meta.get("val")
        if name is None or made is None or not made.is_contiguous():
            continue
        kwargs = {"dtype": made.dtype, "device": made.device}
        with graph.inserting_before(node):
            new = graph.call_function(name, (list(made.shape),), kwargs)
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


_LIKE = {
    torch.ops.aten.empty_like.default: torch.ops.aten.empty.memory_format,
    torch.ops.aten.zeros_like.default: torch.ops.aten.zeros.default,
    torch.ops.aten.ones_like.default: torch.ops.aten.ones.default,
    torch.ops.aten.new_empty.default: torch.ops.aten.empty.memory_format,
    torch.ops.aten.new_zeros.default: torch.ops.aten.zeros.default,
    torch.ops.aten.new_ones.default: torch.ops.aten.ones.default,
    torch.ops.aten.rand_like.default: torch.ops.aten.rand.default,
    torch.ops.aten.randn_like.default: torch.ops.aten.randn.default,
}
