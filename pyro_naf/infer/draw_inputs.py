"""Graphs of operators whose random draws are inputs.

A compiled graph would draw from a generator of its own, or worse, always draw the same. So each
operator that draws is taken out of the graph, with what it needs: run before the graph, in their
order, these operators draw what the user's code would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, fx

from ..support.seeding import kept
from .capture import trace


class NotCaptured(RuntimeError):
    """A step that no graph can stand for; the message says why."""


def functional(module: fx.GraphModule, examples: Sequence[Tensor]) -> fx.GraphModule:
    """Rewrite the graph without writes in place but those that fill a new tensor with draws."""
    if any(_writes(node) and not _fills(node) for node in module.graph.nodes):
        with torch.no_grad(), kept():
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


def without_draws(
    module: fx.GraphModule, num_inputs: int
) -> tuple[Callable[..., list[Tensor]], list[int], fx.GraphModule]:
    """Split a graph into the draws and the rest.

    :return: a function of all inputs that makes the draws, in their order; the numbers of the
        inputs that the rest uses; and the rest, a graph of these inputs and of the draws.
    """
    _forget_values(module.graph)
    nodes = list(module.graph.nodes)
    draws = [node for node in nodes if _is_random(node)]
    draw = _subgraph(nodes, needed(draws), draws)
    found = next(node for node in nodes if node.op == "output").args[0]
    wanted = needed([node for node in found if isinstance(node, fx.Node)], stop=set(draws))
    rest = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    uses = []
    inputs = [node for node in nodes if node.op == "placeholder"]
    for i, node in enumerate(inputs):
        if node in wanted:
            copies[node] = rest.node_copy(node)
            uses.append(i)
    for i, node in enumerate(draws):
        copies[node] = rest.placeholder(f"draw_{i}")
        copies[node].meta.update(node.meta)
    for node in nodes:
        if node in wanted and node not in copies:
            copies[node] = rest.node_copy(node, copies.__getitem__)
    rest.output([copies[node] for node in found])
    rest.lint()
    assert len(inputs) == num_inputs
    return draw, uses, fx.GraphModule(torch.nn.Module(), rest)


def _subgraph(
    nodes: list[fx.Node], needed: set[fx.Node], outputs: list[fx.Node]
) -> Callable[..., list[Tensor]]:
    """Return the function of all inputs that computes these outputs."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output([copies[node] for node in outputs])
    return fx.GraphModule(torch.nn.Module(), graph)


def needed(outputs: Sequence[fx.Node], stop: Collection[fx.Node] = ()) -> set[fx.Node]:
    """List the nodes that these depend on, themselves included, back to those at which to stop."""
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
    """Let new tensors depend on the shape of a tensor, not on its values."""
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
