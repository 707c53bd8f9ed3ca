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
        self.views: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for node in graph.nodes:
            base = node.args[0] if node.args else None
            if not isinstance(base, fx.Node) or not shares(node):
                continue
            root = self.root[node] = self.root.get(base, base)
            if not _is_written(node):
                self.views[root].append(node)

    def tensor(self, node: fx.Node) -> fx.Node:
        """Find the node that first was the tensor that a node is: what is written is the same."""
        return self.root[node] if node in self.root and _is_written(node) else node

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
        if root.op != "call_function" or self.tensor(cast(fx.Node, node.args[0])) is not root:
            return False
        earlier = (view for view in self.views[root] if self._is_later(node, view))
        return not any(self._is_later(user, node) for view in earlier for user in view.users)

    def _is_later(self, node: fx.Node, other: fx.Node) -> bool:
        return self.place[node] > self.place[other]


def shares(node: fx.Node) -> bool:
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
