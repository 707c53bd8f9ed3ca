"""What ``to_event``, ``expand`` and ``mask`` have put around a distribution."""

from __future__ import annotations

from typing import TypeVar, overload

from pyro.distributions.torch_distribution import (
    ExpandedDistribution,
    MaskedDistribution,
    TorchDistribution,
)
from torch import Tensor
from torch.distributions import Independent

from .angles import OnePeriod

T = TypeVar("T")


def peel(fn: TorchDistribution) -> tuple[TorchDistribution, Tensor | bool]:
    """Unwrap the distribution inside ``to_event``, ``expand`` and ``mask``, and its mask."""
    mask: Tensor | bool = True
    while isinstance(fn, (Independent, ExpandedDistribution, MaskedDistribution, OnePeriod)):
        if isinstance(fn, MaskedDistribution):
            mask = mask & for_elements(fn._mask, fn.event_dim)
        fn = fn.base_dist
    return fn, mask


@overload
def for_elements(per_event: Tensor, event_dim: int) -> Tensor: ...


@overload
def for_elements(per_event: T, event_dim: int) -> T: ...


def for_elements(per_event: object, event_dim: int) -> object:
    """Reshape what is meant for each event for each element of an event."""
    if not isinstance(per_event, Tensor):
        return per_event
    return per_event.reshape(per_event.shape + (1,) * event_dim)
