"""Types of what is called: models and guides of Pyro, operations of torch, and their arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

from torch.overrides import TorchFunctionMode

#: A model or a guide of Pyro; what it returns is not looked at.
Model: TypeAlias = Callable[..., object]

#: Arguments that are handed on as they are.
Args: TypeAlias = tuple[object, ...]
Kwargs: TypeAlias = Mapping[str, object]

#: What torch's modes are handed: an operation, and the types of its tensors.
Operation: TypeAlias = Callable[..., object]
Types: TypeAlias = Collection[type]


class Intercepted(TorchFunctionMode):
    """While it is entered, every function of torch is called by :meth:`call`."""

    def __torch_function__(
        self, func: Operation, types: Types, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        return self.call(func, args, kwargs or {})

    def call(self, func: Operation, args: Args, kwargs: Kwargs) -> object:
        """Call a function; subclasses change what it is given, or what it gives."""
        return func(*args, **kwargs)
