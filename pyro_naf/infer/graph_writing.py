"""Writes a graph of operators with tensors that are kept as small as they can be.

A tensor that is expanded stays as it was before ("narrow"), and so does what is computed of it
entry by entry; all its entries are made where an operation needs them. A tensor whose entries are
one number is that number. What is computed of constants is a constant. Equal operations are written
once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.node import map_aggregate

aten = torch.ops.aten

#: Number of entries up to which a sum over an axis is written out, and the least number of sums for
#: which that pays: torch takes up to 30 ns for such a sum, and 3 microseconds for an operation.
WRITTEN_OUT, _MANY = 4, 4096

#: Largest number of entries of a constant that is computed from others.
_LARGEST_CONSTANT = 10**6

Shape = tuple[int, ...]
Number = int | float | bool


class NotSimplified(Exception):
    """The graph holds something whose meaning is not known here."""


@dataclass(frozen=True)
class Value:
    """A tensor of another graph, and what stands for it in this one.

    :ivar node: a node whose tensor is broadcast to it; None where all entries are one number.
    :ivar shape: its shape.
    :ivar narrow: shape of the node, with as many axes.
    :ivar dtype: its dtype, and that of the node.
    :ivar number: the number that all entries are.
    :ivar source: a tensor that this is another shape of.
    """

    node: fx.Node | None
    shape: Shape
    narrow: Shape
    dtype: torch.dtype
    number: Number | None = None
    source: Value | None = None

    def __post_init__(self) -> None:
        if self.node is not None:
            self.node.meta["dtype"] = self.dtype

    @classmethod
    def whole(cls, node: fx.Node, like: Tensor) -> Value:
        """Take a node that has the shape of a tensor."""
        return cls(node, tuple(like.shape), tuple(like.shape), like.dtype)

    @classmethod
    def uniform(cls, number: Number, shape: Sequence[int], dtype: torch.dtype) -> Value:
        """Stand for a tensor whose entries are one number."""
        number = torch.tensor(number, dtype=dtype).item()  # rounded, as the tensor's entries are
        # As many axes as before: a tensor without any gives way in the choice of a dtype.
        return cls(None, tuple(shape), (1,) * len(shape), dtype, number)


def is_value(leaf: object) -> TypeGuard[Value]:
    """Whether a leaf of an operation's arguments is a tensor of the other graph."""
    return isinstance(leaf, Value)


def _mapped(kind: type, function: Callable[[Any], object], tree: object) -> Any:  # noqa: ANN401
    """Replace the leaves of a kind in the arguments of an operation."""
    return cast(Any, map_aggregate)(tree, lambda a: function(a) if isinstance(a, kind) else a)


def _leaves(kind: type, tree: object) -> list[Any]:
    found: list[Any] = []
    _mapped(kind, found.append, tree)
    return found


class Writer:
    """A graph that grows.

    :ivar graph: the graph.
    :ivar attributes: its constants by name.
    :ivar device: the device of its first input.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.attributes: dict[str, Tensor] = {}
        self.device = torch.device("cpu")
        self._made: dict[object, fx.Node] = {}
        self._constants: dict[fx.Node, Tensor] = {}

    # Nodes

    def constant(self, tensor: Tensor) -> fx.Node:
        """Write a tensor."""
        name = f"tensor_{len(self.attributes)}"
        self.attributes[name] = tensor
        node = self.graph.get_attr(name)
        self._constants[node] = tensor
        return node

    def create(self, target: object, *args: object, **kwargs: object) -> fx.Node:
        """Write a new operation."""
        return self.graph.call_function(cast(Any, target), cast(Any, args), cast(Any, kwargs))

    def emit(self, target: object, *args: object, **kwargs: object) -> fx.Node:
        """Write an operation: the node that is there, a constant, or a new one."""
        key = (target, repr(args), repr(kwargs))
        if key not in self._made:
            found = self._computed(target, args, kwargs)
            new = self.create(target, *args, **kwargs) if found is None else self.constant(found)
            self._made[key] = new
        return self._made[key]

    def _computed(
        self, target: object, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Tensor | None:
        """Compute an operation on constants."""
        nodes = _leaves(fx.Node, (args, kwargs))
        if not nodes or target is aten.expand.default or set(nodes) - set(self._constants):
            return None
        known = _mapped(fx.Node, self._constants.__getitem__, args)
        found = cast(Callable[..., object], target)(*known, **kwargs)
        is_small = isinstance(found, Tensor) and found.numel() <= _LARGEST_CONSTANT
        return cast(Tensor, found).contiguous() if is_small else None

    def node(self, value: Value) -> fx.Node:
        """Give a node that is broadcast to the value."""
        if value.node is not None:
            return value.node
        key = (repr(value.number), value.dtype, len(value.narrow))
        if key not in self._made:
            number = cast(Number, value.number)
            full = torch.full(value.narrow, number, dtype=value.dtype, device=self.device)
            self._made[key] = self.constant(full)
        return self._made[key]

    def whole(self, value: Value) -> fx.Node:
        """Give a node with all entries of the value."""
        node = self.node(value)
        if value.narrow == value.shape:
            return node
        return self.emit(aten.expand.default, node, list(value.shape))

    def with_nodes(self, tree: object) -> Any:  # noqa: ANN401 - a tree
        """Put whole nodes in place of the values in the arguments of an operation."""
        return _mapped(Value, self.whole, tree)

    # Shapes

    def reshaped(self, value: Value, shape: Sequence[int]) -> Value:
        """Take another shape; axes of one entry that is broadcast stay so."""
        value, shape = value.source or value, tuple(shape)
        if shape == value.shape:
            return value
        if value.number is not None:
            return Value.uniform(value.number, shape, value.dtype)
        before, after = list(value.narrow), list(shape)
        for old, new in groups(value.shape, shape):
            real = [d for d in old if value.shape[d] > 1]
            if real and all(value.narrow[d] == 1 for d in real):
                after[new[0] : new[-1] + 1] = [1] * len(new)
            else:
                for d in real:
                    before[d] = value.shape[d]
        node = self.node(value)
        if tuple(before) != value.narrow:
            node = self.emit(aten.expand.default, node, before)
        if before != after:
            node = self.emit(aten.reshape.default, node, after)
        return Value(node, shape, tuple(after), value.dtype, source=value)

    def broadcast(self, value: Value, shape: Sequence[int]) -> Value:
        """Broadcast a value, by no operation but that of more axes."""
        if value.number is not None:
            return Value.uniform(value.number, shape, value.dtype)
        more = len(shape) - len(value.shape)
        if more:
            value = self.reshaped(value, (1,) * more + value.shape)
        if value.shape == tuple(shape):
            return value
        return Value(value.node, tuple(shape), value.narrow, value.dtype)

    def summed(self, value: Value, axes: Sequence[int]) -> Value:
        """Sum over axes, which are gone."""
        shape, narrow = without(value.shape, axes), without(value.narrow, axes)
        times = math.prod(value.shape[d] for d in axes if value.narrow[d] == 1)
        if value.number is not None or times == 0:
            return Value.uniform((value.number or 0) * times, shape, value.dtype)
        real = [d for d in axes if value.narrow[d] != 1]
        node = self.node(value)
        if len(real) == 1 and _pays(value.narrow, real[0]):
            node = self.written_out(aten.add.Tensor, value, real[0])
        elif real:
            node = self.emit(aten.sum.dim_IntList, node, real)
        if without(value.narrow, real) != narrow:
            node = self.emit(aten.reshape.default, node, list(narrow))
        if times != 1:
            node = self.emit(aten.mul.Tensor, node, times)
        return Value(node, shape, narrow, value.dtype)

    def written_out(self, target: OpOverload, value: Value, axis: int) -> fx.Node:
        """Write an operation on two, over the entries of an axis."""
        entries = range(value.narrow[axis])
        first, *others = [self.emit(aten.select.int, self.node(value), axis, i) for i in entries]
        for other in others:
            first = self.emit(target, first, other)
            first.meta["dtype"] = value.dtype
        return first

    def pointwise(self, target: OpOverload, like: Tensor, *args: object, **kwargs: object) -> Value:
        """Write an operation on each entry; the result has the shape and dtype of the tensor."""
        values = _leaves(Value, (args, kwargs))
        if all(value.number is not None for value in values):
            numbers = _mapped(Value, lambda v: torch.full(v.narrow, v.number, dtype=v.dtype), args)
            return Value.uniform(target(*numbers, **kwargs).item(), like.shape, like.dtype)
        args, kwargs = _mapped(Value, self.node, (args, kwargs))
        node = self.emit(target, *args, **kwargs)
        narrow = torch.broadcast_shapes(*(value.narrow for value in values))
        return Value(node, tuple(like.shape), tuple(narrow), like.dtype)


def _pays(shape: Shape, axis: int) -> bool:
    return 1 < shape[axis] <= WRITTEN_OUT and math.prod(without(shape, [axis])) >= _MANY


def without(shape: Shape, axes: Sequence[int]) -> Shape:
    """Leave out some axes of a shape."""
    return tuple(size for d, size in enumerate(shape) if d not in axes)


def groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Axes of two shapes of the same entries that belong together, from the first to the last.

    :raises NotSimplified: when there are no entries.

    >>> groups((4, 3, 2), (4, 6))
    [([0], [0]), ([1, 2], [1])]
    """
    if 0 in old or 0 in new:
        raise NotSimplified("a tensor without entries")
    pairs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        first = (i, j)
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while (gap := math.prod(old[first[0] : i]) - math.prod(new[first[1] : j])) != 0:
            i, j = (i + 1, j) if gap < 0 else (i, j + 1)
        pairs.append((list(range(first[0], i)), list(range(first[1], j))))
    return pairs
