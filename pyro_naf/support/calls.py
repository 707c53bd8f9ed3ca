"""Types of what is called: models and guides of Pyro, operations of torch, and their arguments."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

#: A model or a guide of Pyro; what it returns is not looked at.
Model: TypeAlias = Callable[..., object]

#: Arguments that are handed on as they are.
Args: TypeAlias = tuple[object, ...]
Kwargs: TypeAlias = Mapping[str, object]

#: What torch's modes are handed: an operation, and the types of its tensors.
Operation: TypeAlias = Callable[..., object]
Types: TypeAlias = Collection[type]
