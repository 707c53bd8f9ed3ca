"""A captured graph written anew with fewer and smaller operations.

What :func:`torch.vmap` and automatic differentiation record is wordy: a scale is expanded to the
shape of the data before its logarithm is taken, derivatives are multiplied by tensors of ones, sums
run over axes of one entry, or over a flattened copy, which no compiler vectorises.
"""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.fx.node import map_aggregate

from .graph_rules import RULES
from .graph_writing import NotSimplified, Value, Writer, aten, is_value
from .in_place import Writes, shares

#: Operators that look at how a tensor lies in memory.
_REFUSED = frozenset((aten.as_strided, aten.set_, aten.view_as_real, aten.view_as_complex))


def simplified(module: fx.GraphModule) -> fx.GraphModule:
    """Write a graph anew that computes the same up to rounding, where all its parts are known.

    :param module: a graph of aten operators as ``make_fx`` records it, with its constants.
    """
    try:
        return _Simplification(module).run()
    except Exception:  # noqa: BLE001 - the graph as it was recorded is right
        return module


class _Simplification:
    """The old graph and the new one, and what became of each node."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.module, self.to = module, Writer()
        self.writes = Writes(module.graph)
        self.values: dict[fx.Node, object] = {}
        self.outputs: set[fx.Node] = set()

    def run(self) -> fx.GraphModule:
        for node in self.module.graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self.to.graph.output(map_aggregate(node.args[0], self._output))
            else:
                self._input(node)
        self.to.graph.eliminate_dead_code()
        _join_products(self.to.graph)
        self.to.graph.eliminate_dead_code()
        self.to.graph.lint()
        return fx.GraphModule(self.to.attributes, self.to.graph)

    def _input(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            tensor, new = node.meta["val"], self.to.graph.placeholder(node.name)
            self.to.device = tensor.device if not self.values else self.to.device
        else:
            tensor = getattr(self.module, cast(str, node.target))
            new = self.to.constant(tensor)
        self.values[node] = Value.whole(new, tensor)

    def _output(self, leaf: Any) -> Any:  # noqa: ANN401 - as the arguments of a node
        value = self._value(leaf)
        if not is_value(value):
            return value
        node = self.to.whole(value)
        # An output is a tensor of its own: callers may write into it.
        if node.op != "call_function" or shares(node) or node in self.outputs:
            node = self.to.create(aten.clone.default, node)
        self.outputs.add(node)
        return node

    def _value(self, leaf: Any) -> Any:  # noqa: ANN401 - as the arguments of a node
        return self.values[self.writes.tensor(leaf)] if isinstance(leaf, fx.Node) else leaf

    def _call(self, node: fx.Node) -> None:
        """Write one operation of the old graph."""
        target, same = node.target, [node]
        if isinstance(target, OpOverload) and target._schema.is_mutable:  # noqa: SLF001
            target = self.writes.functional(node)
            same.append(cast(fx.Node, node.args[0]))
        args, kwargs = cast(Any, map_aggregate((node.args, node.kwargs), self._value))
        value: object = self._by_rule(target, node.meta.get("val"), args, kwargs)
        if value is None:
            value = self._as_it_is(target, node.meta.get("val"), args, kwargs)
        for other in same:
            self.values[self.writes.tensor(other)] = value

    def _by_rule(
        self, target: object, like: object, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Value | None:
        if not isinstance(target, OpOverload) or not isinstance(like, Tensor) or _is_random(target):
            return None
        if target.overloadpacket in _REFUSED:
            raise NotSimplified(str(target))
        if target.overloadpacket in RULES:
            return RULES[target.overloadpacket](self.to, like, *args, **kwargs)
        if torch.Tag.pointwise in target.tags:
            return self.to.pointwise(target, like, *args, **kwargs)
        return None

    def _as_it_is(self, target: object, like: object, args: object, kwargs: object) -> object:
        """Write the same operation, on whole tensors."""
        if not isinstance(target, OpOverload) and target is not operator.getitem:
            raise NotSimplified(str(target))
        write = self.to.create if _is_random(target) else self.to.emit
        new = write(target, *self.to.with_nodes(args), **self.to.with_nodes(kwargs))
        return Value.whole(new, like) if isinstance(like, Tensor) else new


def _is_random(target: object) -> bool:
    return isinstance(target, OpOverload) and torch.Tag.nondeterministic_seeded in target.tags


def _join_products(graph: fx.Graph) -> None:
    """Add a product in the same operation that computes it, where nothing else needs it."""
    for node in list(graph.nodes):
        if node.target not in (aten.add.Tensor, aten.sub.Tensor) or node.kwargs:
            continue
        for rest, product in ((0, 1), (1, 0)) if node.target is aten.add.Tensor else ((0, 1),):
            if _is_joined(graph, node, node.args[rest], node.args[product]):
                break


def _is_joined(graph: fx.Graph, node: fx.Node, rest: object, product: object) -> bool:
    """Replace a sum by one operation, if one of its arguments is such a product."""
    dtype = node.meta.get("dtype")
    if not isinstance(rest, fx.Node) or not isinstance(product, fx.Node):
        return False
    if product.target is not aten.mul.Tensor or len(product.users) > 1 or product is rest:
        return False
    given = {other.meta.get("dtype") for other in (rest, product, *product.all_input_nodes)}
    if dtype is None or given != {dtype} or not dtype.is_floating_point:
        return False
    sign = 1 if node.target is aten.add.Tensor else -1
    first, second = product.args
    with graph.inserting_before(node):
        if isinstance(second, (int, float)):
            kwargs = {"alpha": sign * second}
            new = graph.call_function(aten.add.Tensor, (rest, first), cast(Any, kwargs))
        else:
            new = graph.call_function(aten.addcmul.default, (rest, first, second), {"value": sign})
    new.meta["dtype"] = dtype
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    graph.erase_node(product)
    return True
