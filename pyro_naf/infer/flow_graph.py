"""A guide's draws, their densities and what a step needs of their gradients, as a captured graph.

Of a training step of a small flow nearly all is Python: transforms, autograd, a few dozen
operations of a microsecond. The graph holds the operations alone. It depends on the guide and on
the number of draws, and on no model: the log-density is evaluated between its two halves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx

from ..guides.pyro_internals import without_checks
from ..support.modes import recording_calls
from ..support.seeding import kept
from ..training.averages import copies
from .autoguides import AutoFlowNormal
from .capture import check_equal, constants_to_inputs, trace
from .direct_calls import with_direct_calls
from .draw_inputs import needed
from .path_gradient import FlowPath
from .simplification import simplified

#: Standard deviation of what is added to the weights between capture and check.
_CHANGE = 0.05

Graph = Callable[..., list[Tensor]]


class CapturedPath(NamedTuple):
    """What a :class:`~pyro_naf.infer.path_gradient.FlowPath` gives to a step, without autograd."""

    z: Tensor
    log_q: Tensor
    #: The score, where the graph has it.
    scores: Tensor | None
    pull: Callable[[Tensor, Tensor], list[Tensor | None]]

    def score(self, tolerance: float | None = None) -> Tensor:
        r""":math:`\nabla_z \log q(z)` ``(N, D)``."""
        assert self.scores is not None
        return self.scores

    def gradients(
        self, weights: Sequence[Tensor], by_log_q: Tensor, by_z: Tensor
    ) -> list[Tensor | None]:
        """As :meth:`~pyro_naf.infer.path_gradient.FlowPath.gradients`, of all the guide's."""
        return self.pull(by_log_q, by_z)


class FlowGraph:
    """The path of a number N of draws of the base through a guide, by a captured graph.

    :param guide: its parameters are read at every call.
    :param base: draws ``(N, D)`` of the base, an example.
    :param scores: whether the scores of the draws are needed.
    :param tolerance: of the scores, where the guide's conditioners have no Jacobian.
    :raises Exception: of any kind where the guide cannot be captured, or the graph disagrees with
        it at other draws and weights.
    """

    def __init__(self, guide: AutoFlowNormal, base: Tensor, scores: bool, tolerance: float) -> None:
        self.guide, self.scores, self.tolerance = guide, scores, tolerance
        self.weights = list(guide.parameters())
        self._has_gradient: list[bool] = []
        with kept(), without_checks(), recording_calls():
            self._capture(base)

    @torch.no_grad()
    def __call__(self, base: Tensor) -> CapturedPath:
        """Draws of the guide from those of the base, ``(N, D)`` like the example."""
        count = 3 if self.scores else 2
        found = self._first(*self.weights, base, *self._constants)
        passed = found[count:]

        def pull(by_log_q: Tensor, by_z: Tensor) -> list[Tensor | None]:
            with torch.no_grad():
                by = by_log_q.to(base), by_z.to(base)  # the loops read memory as it lies
                inputs = *self.weights, base, *by, *self._constants
                grads = iter(self._second(*passed, *inputs))
            return [next(grads) if has else None for has in self._has_gradient]

        return CapturedPath(found[0], found[1], found[2] if self.scores else None, pull)

    def _capture(self, base: Tensor) -> None:
        by_log_q, by_z = torch.randn_like(base[:, 0]), torch.randn_like(base)
        inputs = [*self.weights, base, by_log_q, by_z]
        module = trace(lambda *inputs: self._flat(*inputs), *inputs)
        module.graph.set_codegen(fx.graph.CodeGen())
        module.recompile()
        self._constants = constants_to_inputs(module)
        module = simplified(module)
        self._constants += constants_to_inputs(module)
        inputs += self._constants
        num_first, late = 3 if self.scores else 2, len(self.weights) + 1
        first, second = _halves(module, num_first, {late, late + 1})
        early = [t for i, t in enumerate(inputs) if i not in (late, late + 1)]
        self._first = with_direct_calls(first, early).forward
        with torch.no_grad():
            passed = first(*early)[num_first:]
        self._second = with_direct_calls(second, [*passed, *inputs]).forward
        self._check(torch.randn_like(base), by_log_q, by_z)

    @torch.no_grad()
    def _check(self, base: Tensor, by_log_q: Tensor, by_z: Tensor) -> None:
        """Compare with the guide at other draws and weights."""
        kept_weights = copies(self.weights)
        try:
            for weight in self.weights:
                weight += _CHANGE * torch.randn_like(weight)
            path = self(base)
            found = [path.z, path.log_q, *([path.score()] if self.scores else [])]
            found += [g for g in path.gradients(self.weights, by_log_q, by_z) if g is not None]
            check_equal(found, self._flat(base, by_log_q, by_z))
        finally:
            torch._foreach_copy_(self.weights, kept_weights)

    def _flat(self, *inputs: Tensor) -> list[Tensor]:
        """Draws, densities, scores and gradients of the weights, by autograd.

        :param inputs: the weights, which the guide reads itself; base and weights of the sum.
        """
        base, by_log_q, by_z = inputs[-3:]
        with torch.enable_grad():
            path = FlowPath(self.guide.get_transform(), base, is_finite=True)
            found = [path.z, path.log_q]
            if self.scores:
                found.append(path.score(self.tolerance))
            grads = path.gradients(self.weights, by_log_q, by_z)
        self._has_gradient = [grad is not None for grad in grads]
        return [*(t.detach() for t in found), *(g for g in grads if g is not None)]


def _halves(
    module: fx.GraphModule, count: int, late: Collection[int]
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Split a graph where its first outputs are known.

    :param count: the number of outputs of the first half.
    :param late: numbers of the inputs that only the second half has.
    :return: a graph of the other inputs, which gives also what the second half needs of the first;
        and a graph of that, and of all inputs.
    """
    *nodes, output = module.graph.nodes
    outputs = list(output.args[0])
    inputs = [node for node in nodes if node.op == "placeholder"]
    early = needed(outputs[:count])
    after = needed(outputs[count:], stop=early)
    passed = [node for node in nodes if node in early and node in after and node not in inputs]
    first = _part(
        [node for i, node in enumerate(inputs) if i not in late],
        [node for node in nodes if node in early],
        [*outputs[:count], *passed],
    )
    return first, _part([*passed, *inputs], [n for n in nodes if n in after], outputs[count:])


def _part(
    inputs: Sequence[fx.Node], nodes: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> fx.GraphModule:
    """Make a graph of some nodes of another one."""
    graph = fx.Graph()
    copies_of = {node: graph.placeholder(node.name) for node in inputs}
    for node in nodes:
        if node not in copies_of:
            copies_of[node] = graph.node_copy(node, copies_of.__getitem__)
    graph.output([copies_of[node] for node in outputs])
    graph.lint()
    return fx.GraphModule(torch.nn.Module(), graph)
