"""What a conditioner is: pseudo-parameters of all dimensions at once, or one after another."""

from __future__ import annotations

from collections.abc import Generator
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn

from ..support.overrides import has_hooks, refuse

#: Yields the pseudo-parameters ``(N, P)`` of one dimension after another, in autoregressive
#: order; is sent the value ``(N,)`` of that dimension.
Sweep = Generator[Tensor, Tensor, None]

#: What a subclass may define anew without changing what its conditioner computes.
_HARMLESS = {"__init__", "__new__", "__getstate__", "extra_repr", "reset_parameters"}


def sweep(conditioner: Any, batch: int, context: Tensor | None, like: Tensor) -> Sweep:
    """Return the conditioner's own sweep, or D passes through one that has none.

    D passes as well through one whose ``forward`` a subclass or a hook has changed behind the
    sweep's back. ``like`` gives dtype and device of the samples; the rest as in
    :meth:`MADE.sweep`.

    :raises TypeError: as :func:`check_overrides`.
    """
    check_overrides(conditioner)
    if hasattr(conditioner, "sweep") and is_unchanged(conditioner):
        return conditioner.sweep(batch, context)
    return _sweep_by_passes(conditioner, batch, context, like)


def _sweep_by_passes(conditioner: Any, batch: int, context: Tensor | None, like: Tensor) -> Sweep:
    columns = [like.new_zeros(batch)] * conditioner.input_dim
    for v in conditioner.get_permutation().tolist():
        x = torch.stack(columns, -1)
        phi = conditioner(x) if context is None else conditioner(x, context)
        columns[v] = yield phi[:, v]


def is_unchanged(conditioner: Any) -> bool:
    """Whether calls go through the code that the conditioner's ``sweep`` was written beside.

    Not where a subclass or the object itself has methods of its own in place of that class's, and
    not where forward hooks may change inputs or outputs.
    """
    if not isinstance(conditioner, nn.Module):
        return True
    cls = type(conditioner)
    if cls not in _methods:
        _methods[cls] = _look_at(cls)
    own, changed = _methods[cls]
    return not (changed or has_hooks(conditioner) or not own.isdisjoint(conditioner.__dict__))


def check_overrides(conditioner: Any) -> None:
    """Refuse a sweep that overrides another beside a ``forward`` which it does not belong to.

    :raises TypeError: where a subclass, or the object, has a ``sweep`` but no ``forward`` anew.
    """
    cls = type(conditioner)
    own = getattr(conditioner, "__dict__", {})
    alone = _definer(cls, "sweep") < _definer(cls, "forward") < len(cls.__mro__)
    if alone or ("sweep" in own and "forward" not in own):
        raise refuse(cls, frozenset({"sweep"}), "forward")


#: By class what :func:`_look_at` found; a compiler follows no ``functools.cache``.
_methods: dict[type, tuple[frozenset[str], bool]] = {}


def _look_at(cls: type) -> tuple[frozenset[str], bool]:
    """Methods of the class that defines ``sweep``, and whether a subclass of it redefines any."""
    at = _definer(cls, "sweep")
    own = {"__call__"}
    for c in takewhile(lambda c: c is not nn.Module, cls.__mro__[at:]):
        own |= {name for name in vars(c).keys() - _HARMLESS if callable(getattr(c, name))}
    return frozenset(own), any(not own.isdisjoint(vars(c)) for c in cls.__mro__[:at])


def _definer(cls: type, name: str) -> int:
    """Find the place in the method resolution order of the class that defines the method."""
    return next((i for i, c in enumerate(cls.__mro__) if name in vars(c)), len(cls.__mro__))
