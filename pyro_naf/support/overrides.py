"""What subclasses, objects and hooks change of a map that its inverse was written beside."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Base = TypeVar("Base")


def redefined(cls: type, base: type) -> frozenset[str]:
    """Names that ``cls`` defines itself, or by its mixins, before its first parent from ``base``.

    >>> class Doubled(nn.Linear):
    ...     def forward(self, x):
    ...         return 2 * super().forward(x)
    >>> "forward" in redefined(Doubled, nn.Module), "forward" in redefined(nn.Linear, nn.Linear)
    (True, True)
    """
    names: set[str] = set()
    for c in cls.__mro__:
        if c is not cls and issubclass(c, base):
            break
        names |= vars(c).keys()
    return frozenset(names)


def parent(cls: type, base: type[Base]) -> type[Base]:
    """Find the first parent of ``cls`` that is ``base`` or derives from it."""
    return next(c for c in cls.__mro__[1:] if issubclass(c, base))


def has_hooks(module: nn.Module) -> bool:
    """Whether forward hooks of its own, or a ``forward`` set on the object, may change the map.

    Hooks of all modules do not count: torch has them for profilers.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or "forward" in module.__dict__  # module.forward = ...
    )


def refuse(cls: type, names: frozenset[str], missing: str) -> TypeError:
    """Make the error of a class that changes one direction of a map and not the other."""
    return TypeError(
        f"{cls.__name__} overrides {', '.join(sorted(names))}, but not {missing}: a flow and its "
        "inverse would be two maps; define them in one class"
    )
