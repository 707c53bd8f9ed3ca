"""A function's value and gradient as one graph of operators, and that graph compiled beside.

A run of a Pyro model costs Python: handlers, distributions, broadcasting. The graph holds only what
it computes, for a fixed number of points. Tensors that the model holds (data, constants) are inputs
of the graph, so that a compiled one serves other data of the same shapes, and is found on disk by
the next process. Whatever fails leaves the slower way in place.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._ops import OpOverload
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from ..support.calls import Args, Kwargs, Types
from .compilation import Compilation, is_enabled
from .direct_calls import with_direct_calls
from .lanes import FailedFactorsAreNaN
from .simplification import simplified

__all__ = ["Graph", "check_equal", "constants_to_inputs", "is_enabled", "trace"]

#: Relative difference from the function itself that a graph may have, by dtype.
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}

#: Seed of the points that a graph is checked at, which differ from those it was captured with.
_SEED = 1

ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]


class Graph:
    """Value and gradient at a fixed number N of points, by a captured graph.

    :param function: points ``(N, D)`` to values ``(N,)`` and gradients ``(N, D)``, each row on its
        own.
    :param example: points ``(N, D)`` that the function is captured with.
    :raises RuntimeError: when the function reads a number out of a tensor, or the graph disagrees
        with the function at other points.

    >>> def function(u):
    ...     return -u.square().sum(-1) / 2, -u
    >>> graph = Graph(function, torch.randn(4, 2))
    >>> graph(torch.ones(3, 2))
    (tensor([-1., -1., -1.]), tensor([[-1., -1.],
            [-1., -1.],
            [-1., -1.]]))
    """

    def __init__(self, function: ValueAndGrad, example: Tensor) -> None:
        self.count = len(example)
        try:
            module = _traced(function, example, _Constants())
        except _ConstantWritten:
            module = _traced(function, example, FailedFactorsAreNaN())
        self.worker: Compilation | None = None
        self.is_compiled = False
        self._like = example
        self.module: Callable[..., tuple[Tensor, Tensor]]
        simple = simplified(module)
        try:
            self._take(simple, function)
        except RuntimeError:
            if simple is module:
                raise
            self._take(module, function)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``(N,)`` and gradients ``(N, D)`` at any number N of points ``(N, D)``."""
        self.is_ready()
        parts = [self._part(part) for part in u.split(self.count)]
        if len(parts) == 1:
            return parts[0]
        values, grads = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(grads)

    @torch.no_grad()
    def _part(self, u: Tensor) -> tuple[Tensor, Tensor]:
        short = self.count - len(u)
        if short:
            u = torch.cat([u, u[-1:].expand(short, -1)])
        value, grad = self.module(u.contiguous(), *self.constants)
        return (value[:-short], grad[:-short]) if short else (value, grad)

    def is_ready(self) -> bool:
        """Whether a compiled graph is there, which is taken from now on."""
        if self.worker is not None and self.worker.has_ended():
            self._switch()
        return self.is_compiled

    def compile(self) -> None:
        """Begin to compile the graph in another process; calls switch over when it has ended."""
        if self.worker is None and not self.is_compiled:
            try:
                self.worker = Compilation(self._code, [self._like, *self.constants])
            except (OSError, RuntimeError):  # no process, or no room on disk
                return

    def _switch(self) -> None:
        """Take the compiled graph, if there is one and it agrees with the captured one."""
        worker, self.worker = self.worker, None
        assert worker is not None
        captured = self.module
        try:
            run = worker.load()

            def compiled(*inputs: Tensor) -> tuple[Tensor, Tensor]:
                value, grad = run(inputs)
                return value, grad

            u = _fresh(self._like)
            with torch.no_grad():
                check_equal(compiled(u, *self.constants), captured(u, *self.constants))
        except Exception:  # noqa: BLE001 - the captured graph is right, and stays
            return
        self.module, self.is_compiled = compiled, True

    def _take(self, module: fx.GraphModule, function: ValueAndGrad) -> None:
        """Take a graph that agrees with the function at other points."""
        self.constants = constants_to_inputs(module)
        self._code = module.code
        self.module = with_direct_calls(module, [self._like, *self.constants])
        u = _fresh(self._like)
        check_equal(self._part(u), function(u))


def _traced(function: ValueAndGrad, example: Tensor, mode: TorchDispatchMode) -> fx.GraphModule:
    with mode:  # the graph of a function with annotations would name them
        return trace(lambda u: function(u), example)


class _Constants(FailedFactorsAreNaN):
    """A mode that computes what depends on no input once, while a graph is captured.

    A model may so read numbers out of its data, and transform the data, at no cost for the graph.
    New tensors stay in the graph: values may be written into them.
    """

    def __torch_dispatch__(
        self, func: OpOverload, types: Types, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        is_new = not tensors or "new_" in func.__name__ or "_like" in func.__name__
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        if is_new or is_random or any(map(is_followed, tensors)):
            is_written = func._schema.is_mutable  # noqa: SLF001
            if is_written and not is_followed(cast(Tensor, args[0])):
                raise _ConstantWritten(f"{func} writes into a constant")
            return super().__torch_dispatch__(func, types, args, kwargs)
        with _disable_current_modes():
            return func(*args, **(kwargs or {}))


class _ConstantWritten(RuntimeError):
    pass


def is_followed(tensor: Tensor) -> bool:
    """Whether a graph that is being captured knows the tensor; else it is a constant there."""
    mode = get_proxy_mode()
    return mode is not None and tensor in mode.tracer.tensor_tracker


def trace(function: Callable[..., object], *inputs: object) -> fx.GraphModule:
    """Record the operations of torch that a function of tensors runs."""
    # One mode for all nodes: make_fx would make a new one for each, half its time.
    context = TracingContext(FakeTensorMode(allow_fallback_kernels=True))
    with tracing(context):
        return make_fx(function)(*inputs)


def _fresh(like: Tensor) -> Tensor:
    """Points near the given ones, but other points."""
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(_SEED))
    return like + 0.1 * noise.to(like)


def check_equal(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """Compare tensors with those expected, relative to the largest entry of each.

    :raises RuntimeError: when two differ by more than rounding.
    """
    for a, b in zip(found, expected, strict=True):
        scale = b.abs().nan_to_num(0.0, 0.0, 0.0).amax().clamp(min=1)
        tolerance = _TOLERANCE.get(b.dtype, 1e-4) * scale
        if not torch.allclose(a, b, rtol=0.0, atol=float(tolerance), equal_nan=True):
            raise RuntimeError("the graph and the function that it stands for disagree")


def constants_to_inputs(module: fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph holds into its last inputs; returns them."""
    graph = module.graph
    constants: list[Tensor] = []
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    last, taken = inputs[-1], {node.target for node in inputs}
    names = (name for i in itertools.count() if (name := f"constant_{i}") not in taken)
    places: dict[object, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        if node.target not in places:
            with graph.inserting_after(last):
                last = places[node.target] = graph.placeholder(next(names))
            last.meta["val"] = getattr(module, node.target)
            constants.append(last.meta["val"])
        node.replace_all_uses_with(places[node.target])
        graph.erase_node(node)
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
    return constants
