"""The last evaluation of a flow, remembered for its fresh sample and for as long as it holds."""

from __future__ import annotations

import operator
import weakref
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..support.modes import (
    current_modes,
    needs_plain_operations,
    outlives_its_level,
    saves_elsewhere,
)

#: Number of elements of each parameter that are compared within an autograd graph. Recorded writes
#: change the version of a tensor; fused optimisers and ``.data`` do not, but they change some of
#: 1,024 elements.
_COMPARED = 1 << 10


class Evaluation(NamedTuple):
    """``y = f(x)`` with the log-determinant of f at x."""

    x: Tensor
    y: Tensor
    log_det: Tensor


class Memory:
    """One evaluation ``y = f(x)`` of a flow, given back for the tensor objects x and y alone.

    It is given back while x, y, the context, the parameters and the buffers are the same objects
    with the same contents, in the same modes of torch, until a backward pass frees the graph.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop the evaluation."""
        self._state: _State | None = None
        self._inverted = False

    def remember(self, module: nn.Module, context: Tensor | None, last: Evaluation) -> None:
        """Keep this evaluation in place of the one before."""
        self.forget()
        if torch.compiler.is_compiling() or saves_elsewhere() or outlives_its_level(last.y):
            return
        self._state = _State(module, context, last)
        # The graph's hook holds neither: it would hold the graph, and no collector frees that.
        this, that = weakref.ref(self), weakref.ref(self._state)

        def forget(_: object) -> None:
            memory = this()
            if memory is not None and memory._state is that():  # noqa: SLF001
                memory.forget()

        for t in (last.y, last.log_det):
            if t.grad_fn is not None:
                t.grad_fn.register_prehook(forget)

    def preimage(self, module: nn.Module, context: Tensor | None, y: Tensor) -> Tensor | None:
        """Return the x whose evaluation made the tensor object y, or None."""
        last = self._recall(module, context, y=y)
        self._inverted |= last is not None
        return last.x if last else None

    def image(self, module: nn.Module, context: Tensor | None, x: Tensor) -> Tensor | None:
        """Return the y that :meth:`preimage` has traced back to the tensor object x, or None."""
        last = self._recall(module, context, x=x) if self._inverted else None
        return last.y if last else None

    def log_det(
        self, module: nn.Module, context: Tensor | None, x: Tensor, y: Tensor
    ) -> Tensor | None:
        """Return the log-determinant at the tensor object x, if y came from it, or None."""
        last = self._recall(module, context, x=x, y=y)
        return last.log_det if last else None

    def _recall(
        self, module: nn.Module, context: Tensor | None, **objects: Tensor
    ) -> Evaluation | None:
        state = self._state
        if state is None or any(getattr(state.last, name) is not t for name, t in objects.items()):
            return None
        hidden = torch.compiler.is_compiling() or saves_elsewhere()
        return state.last if not hidden and state.holds(module, context) else None

    def __getstate__(self) -> dict[str, None]:
        # Autograd graphs can be neither copied nor pickled.
        return {}

    def __setstate__(self, state: dict[str, None]) -> None:
        self.forget()


class _State:
    """All that an evaluation depends on, as it was."""

    def __init__(self, module: nn.Module, context: Tensor | None, last: Evaluation) -> None:
        self.last = last
        self.tensors, self.modes = self._tensors(module, context), current_modes(last.y)
        in_graph = last.y.requires_grad and not any(t.is_inference() for t in self.tensors)
        # Where torch records operations there are only objects: a comparison would be recorded.
        follows = needs_plain_operations(last.y, autocast=False)
        self.versions, self.values = in_graph and not follows, not follows
        self.flags = self._flags(self.tensors)
        self.views: list[Tensor] = []
        if self.values:
            most = _COMPARED if in_graph else None
            self.views = [
                _view(t, most)
                for i, t in enumerate(self.tensors)
                if i < 3 or not in_graph or isinstance(t, nn.Parameter)
            ]
        self.contents = _contents(self.views)

    def holds(self, module: nn.Module, context: Tensor | None) -> bool:
        """Whether all is as it was."""
        if self.modes != current_modes(self.last.y):
            return False
        tensors = self._tensors(module, context)
        return (
            len(tensors) == len(self.tensors)
            and all(map(operator.is_, tensors, self.tensors))
            and self._flags(tensors) == self.flags
            and all(map(torch.equal, _contents(self.views), self.contents))
        )

    def _tensors(self, module: nn.Module, context: Tensor | None) -> list[Tensor]:
        tensors = [self.last.x, self.last.y]
        if context is not None:
            tensors.append(context)
        self.training: list[bool] = []
        _collect(module, tensors, self.training)
        return tensors

    def _flags(self, tensors: list[Tensor]) -> list[object]:
        places = [t.data_ptr() for t in tensors] if self.values else []
        versions = [t._version for t in tensors] if self.versions else []
        return [*self.training, *(t.requires_grad for t in tensors), *places, *versions]


def _collect(module: nn.Module, tensors: list[Tensor], training: list[bool]) -> None:
    """Parameters and buffers; ``module.parameters()`` makes names of them and takes ten times."""
    training.append(module.training)
    for held in (module._parameters, module._buffers):
        tensors += [t for t in held.values() if t is not None]
    for child in module._modules.values():
        if child is not None:
            _collect(child, tensors, training)


def _view(t: Tensor, most: int | None) -> Tensor:
    """Pick the elements where they lie, or about ``most`` of them, evenly spread."""
    t = t.detach()
    if most is None or t.numel() <= most or not t.is_contiguous():
        return t
    return t.view(-1)[:: t.numel() // most]


def _contents(views: list[Tensor]) -> list[Tensor]:
    """Copy all elements: one vector a device."""
    parts: dict[torch.device, list[Tensor]] = {}
    for view in views:
        parts.setdefault(view.device, []).append(view.reshape(-1))
    return [torch.cat(group) for group in parts.values()]
