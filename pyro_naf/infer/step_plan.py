"""What is known of SVI's steps with arguments of one kind: a graph, and how far it is proven."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias, cast

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.utils._pytree import KeyPath, SequenceKey, keystr, tree_flatten_with_path, tree_unflatten

from ..support.calls import Args
from .draw_inputs import NotCaptured
from .fused import FusedOptimiser
from .step_graph import Losses, StepGraph

#: A loss as SVI gives it: one number, or a tuple of several.
Loss: TypeAlias = float | Tensor | tuple[float | Tensor, ...]

#: Number of steps in a row on which a new graph must agree with the user's code before the graph
#: takes over.
PROOFS = 3

#: Numbers of steps after which the graph is compared again, as it is at every multiple of the last
#: number: a global that the model reads may have been exchanged.
AUDITS = (10, 100, 1000)

#: Types of arguments that cannot change unseen; arguments of any other type but tensors can.
_CONSTANT = (bool, int, float, complex, str, bytes, np.generic, torch.dtype, torch.device)


class Arguments:
    """Arguments of a step, in tensors and a key of all else.

    :raises NotCaptured: when one may change without a notice.
    """

    def __init__(self, args: Args, kwargs: dict[str, object]) -> None:
        self.args, self.kwargs = args, kwargs
        self.tensors: list[Tensor] = []
        if not args and not kwargs:
            self.key: tuple[object, ...] = (torch.get_default_dtype(),)
            return
        leaves, self.spec = tree_flatten_with_path((args, kwargs))
        kinds: list[object] = []
        self.leaves: list[object] = []
        for path, leaf in leaves:
            if isinstance(leaf, Tensor):
                _refuse_tensor(leaf, path)
                self.tensors.append(leaf)
                kinds.append((leaf.shape, leaf.dtype, leaf.device))
            elif leaf is None or isinstance(leaf, _CONSTANT):
                kinds.append((type(leaf), leaf))
            elif callable(leaf):
                kinds.append(leaf)
            else:
                raise NotCaptured(
                    f"argument {_named(path)} is of type {type(leaf).__name__}, which may change "
                    "unseen; give its contents as tensors"
                )
            self.leaves.append(leaf)
        self.key = (torch.get_default_dtype(), self.spec, *kinds)

    def with_tensors(
        self, tensors: Sequence[Tensor]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """Put other tensors in place of the arguments' tensors."""
        if not self.tensors:
            return self.args, self.kwargs
        others = iter(tensors)
        leaves = [next(others) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return tree_unflatten(leaves, self.spec)


def _refuse_tensor(tensor: Tensor, path: KeyPath) -> None:
    if type(tensor) is not Tensor or tensor.requires_grad or tensor.layout != torch.strided:
        what = "requires a gradient" if tensor.requires_grad else "is no plain dense tensor"
        raise NotCaptured(f"argument {_named(path)} {what}")


def _named(path: KeyPath) -> str:
    """As a user would write it: ``args[0]`` or ``kwargs['y']``."""
    return ("args", "kwargs")[cast("SequenceKey[object]", path[0]).idx] + keystr(path[1:])


def flat_losses(loss: Loss) -> list[float | Tensor]:
    """List the numbers of a loss."""
    return list(loss) if isinstance(loss, tuple) else [loss]


def in_form_of(loss: Loss, numbers: Sequence[float]) -> Loss:
    """Give numbers the form of a loss: one, or a tuple of the loss's type."""
    return type(loss)(numbers) if isinstance(loss, tuple) else numbers[0]


def are_close(found: Sequence[float], expected: Sequence[float]) -> bool:
    """Whether losses agree to 1e-4, relative or absolute."""
    return len(found) == len(expected) and all(
        math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4) for a, b in zip(found, expected, strict=True)
    )


class Plan:
    """What is known of steps with arguments of one kind."""

    def __init__(self) -> None:
        #: Number of times that the graph was dropped, since parameters or modules had changed.
        self.forgotten = 0
        self.forget()

    def forget(self) -> None:
        """Begin again, by steps of SVI."""
        self.graph: StepGraph | None = None
        self.optimiser: FusedOptimiser | None = None
        #: Steps of this kind: the first is SVI's alone, the second captures, more prove.
        self.steps = 0
        #: Whether the graph is compiled, or being compiled.
        self.compiles = False
        #: For each tensor of the model's own in the graph, how often Python refers to it.
        self.holders: list[int] = []
        #: Times that the loss alone agreed with SVI's.
        self.evaluations = 0
        #: A loss, or tuple of losses, as SVI gives it.
        self.losses: Loss = math.nan
        #: Modules that the model and the guide call.
        self.modules: list[nn.Module] = []
        self._training: list[bool] = []
        #: Addresses of the graph's parameters and constants, and what lies there.
        self._places: list[int] = []
        self._kinds: list[tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]] = []

    @property
    def is_proven(self) -> bool:
        """Whether the graph has agreed with SVI often enough to take its place."""
        return self.steps > 1 + PROOFS

    def is_due(self) -> bool:
        """Whether the next step is SVI's: to begin with, to capture, or to prove."""
        done = self.steps - 1 - PROOFS
        if done <= 0 or done in AUDITS or done % AUDITS[-1] == 0:
            return True
        # Where the model has exchanged a tensor of its own, fewer refer to the former one.
        return any(map(operator.lt, self.count_holders(), self.holders))

    def count_holders(self) -> list[int]:
        """Count the references to each tensor that the graph holds."""
        assert self.graph is not None
        return list(map(sys.getrefcount, self.graph.constants))

    def is_current(self) -> bool:
        """Whether parameters and modules are those that the graph was captured with."""
        if self.graph is None:
            return True
        store = dict(pyro.get_param_store().named_parameters())
        for name, p in self.graph.params.items():
            if store.get(name) is not p or not p.requires_grad or p._backward_hooks:
                return False
        modes = zip(self.modules, self._training, strict=False)
        return all(m.training == mode for m, mode in modes) and self._is_in_place()

    def _is_in_place(self) -> bool:
        """Whether a compiled graph, which looks at addresses alone, can read its tensors."""
        assert self.graph is not None
        tensors = [*self.graph.params.values(), *self.graph.constants]
        places = [t.data_ptr() for t in tensors]
        if places != self._places:  # ``tensor.data`` was set
            kinds = [(t.shape, t.stride(), t.dtype, t.device) for t in tensors]
            if self._kinds and kinds != self._kinds:
                return False
            self._places, self._kinds = places, kinds
        return True

    def capture(
        self, function: Losses, params: Mapping[str, Tensor], tensors: list[Tensor]
    ) -> None:
        """Capture a graph, and begin to compile it."""
        if not params:
            raise NotCaptured("there are no parameters")
        for name, p in params.items():
            if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
                raise NotCaptured(f"parameter {name!r} has a hook, which a graph would not call")
        self._training = [module.training for module in self.modules]
        self.graph = StepGraph(function, params, tensors)
        self._is_in_place()


@contextmanager
def modules_called(found: list[nn.Module]) -> Iterator[None]:
    """Collect the modules that are called inside."""

    def note(module: nn.Module, _: object) -> None:
        if not any(module is known for known in found):
            found.append(module)

    handle = nn.modules.module.register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()
