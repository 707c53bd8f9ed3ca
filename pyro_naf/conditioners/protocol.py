"""What a conditioner is: pseudo-parameters of all dimensions at once, or one after another."""

from __future__ import annotations

from collections.abc import Generator
from itertools import takewhile
from typing import Protocol

import torch
from torch import Tensor, nn

from ..support.overrides import has_hooks, refuse

#: Yields the pseudo-parameters ``(N, P)`` of one dimension after another, in autoregressive
#: order; is sent the value ``(N,)`` of that dimension.
Sweep = Generator[Tensor, Tensor, None]

#: What a subclass may define anew without changing what its conditioner computes.
_HARMLESS = {"__init__", "__new__", "__getstate__", "extra_repr", "reset_parameters"}


class Conditioner(Protocol):
    """What gives a flow its pseudo-parameters; :class:`~pyro_naf.conditioners.MADE` is one.

    :ivar input_dim: number D of dimensions.
    """

    input_dim: int

    def get_permutation(self) -> Tensor:
        """Return the order: entry t is the dimension that comes t-th, shape ``(D,)``."""

    def __call__(self, x: Tensor, *context: Tensor) -> Tensor:
        """Pseudo-parameters ``(..., D, P)`` of x ``(..., D)``, given a context ``(..., C)``."""


def sweep(conditioner: Conditioner, batch: int, context: Tensor | None, like: Tensor) -> Sweep:
    """Return the conditioner's own sweep, or D passes through one that has none.

    D passes as well through one whose ``forward`` a subclass or a hook has changed behind the
    sweep's back. ``like`` gives dtype and device of the samples; the rest as in
    :meth:`MADE.sweep`.

    :raises TypeError: as :func:`check_overrides`.
    """
    check_overrides(conditioner)
    if hasattr(conditioner, "sweep") and is_unchanged(conditioner):
        found: Sweep = conditioner.sweep(batch, context)
        return found
    return _sweep_by_passes(conditioner, batch, context, like)


def _sweep_by_passes(
    conditioner: Conditioner, batch: int, context: Tensor | None, like: Tensor
) -> Sweep:
    columns = [like.new_zeros(batch)] * conditioner.input_dim
    for v in conditioner.get_permutation().tolist():
        x = torch.stack(columns, -1)
        phi = conditioner(x) if context is None else conditioner(x, context)
        columns[v] = yield phi[:, v]


def is_unchanged(conditioner: object) -> bool:
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


def check_overrides(conditioner: object) -> None:
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
