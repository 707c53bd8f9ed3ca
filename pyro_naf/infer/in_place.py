"""Operations that write into a tensor, read as those that make a new one."""

from __future__ import annotations

import operator
from collections import defaultdict
from typing import cast

import torch
from torch import fx
from torch._ops import OpOverload

from .graph_writing import NotSimplified, aten

#: Operators that write no entries, but another shape of their argument.
_SHAPED = frozenset((aten.squeeze_, aten.unsqueeze_, aten.t_, aten.transpose_))


class Writes:
    """Who shares the entries of whom in a graph, and where they are written."""

    def __init__(self, graph: fx.Graph) -> None:
        self.place = {node: i for i, node in enumerate(graph.nodes)}
        self.root: dict[fx.Node, fx.Node] = {}
        self.written: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        self.views: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for node in graph.nodes:
            base = node.args[0] if node.args else None
            if not isinstance(base, fx.Node) or not _shares(node):
                continue
            root = self.root[node] = self.root.get(base, base)
            (self.written if _is_written(node) else self.views)[root].append(node)

    def same(self, node: fx.Node) -> list[fx.Node]:
        """List the nodes that are the tensor that an operation has written into."""
        if not _is_written(node):
            return [cast(fx.Node, node.args[0]), node]
        root = self.root[node]
        return [root, *(other for other in self.written[root] if not self._is_later(other, node))]

    def functional(self, node: fx.Node) -> OpOverload:
        """Find the operator that makes a new tensor where one writes into its first argument.

        :raises NotSimplified: when there is none, or other tensors share what is written.
        """
        target = cast(OpOverload, node.target)
        name, _, overload = target.name().removeprefix("aten::").partition(".")
        packet = getattr(aten, name.removesuffix("_"), None)
        functional = getattr(packet, overload or "default", None)
        if functional is None or not name.endswith("_") or node not in self.root:
            raise NotSimplified(str(target))
        if _is_written(node) and not (self._is_own(node) and _keeps_dtype(node)):
            raise NotSimplified(f"{target} writes what others share, or mixes dtypes")
        return cast(OpOverload, functional)

    def _is_own(self, node: fx.Node) -> bool:
        """Whether what is written was computed, and is read later as a whole only."""
        root = self.root[node]
        earlier = [view for view in self.views[root] if self._is_later(node, view)]
        is_shared = any(self._is_later(user, node) for view in earlier for user in view.users)
        is_computed = root.op == "call_function"
        return is_computed and node.args[0] in self.same(node) and not is_shared

    def _is_later(self, node: fx.Node, other: fx.Node) -> bool:
        return self.place[node] > self.place[other]


def _shares(node: fx.Node) -> bool:
    """Whether a node's tensor may share its entries with that of its first argument."""
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem
    return any(returned.alias_info for returned in node.target._schema.returns)  # noqa: SLF001


def _is_written(node: fx.Node) -> bool:
    """Whether entries are written."""
    target = node.target
    if not isinstance(target, OpOverload) or target.overloadpacket in _SHAPED:
        return False
    return target._schema.is_mutable  # noqa: SLF001


def _keeps_dtype(node: fx.Node) -> bool:
    like = node.meta["val"].dtype
    given = [other.meta["val"].dtype for other in node.all_input_nodes if "val" in other.meta]
    return all(dtype in (like, torch.bool) for dtype in given)
