"""What ``to_event``, ``expand`` and ``mask`` have put around a distribution."""

from __future__ import annotations

from typing import Any

from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent

from .angles import OnePeriod


def peel(fn: Any) -> tuple[Any, Any]:
    """Unwrap the distribution inside ``to_event``, ``expand`` and ``mask``, and its mask."""
    mask: Any = True
    while isinstance(fn, (Independent, ExpandedDistribution, MaskedDistribution, OnePeriod)):
        if isinstance(fn, MaskedDistribution):
            mask = mask & for_elements(fn._mask, fn.event_dim)
        fn = fn.base_dist
    return fn, mask


def for_elements(per_event: Any, event_dim: int) -> Any:
    """Reshape what is meant for each event for each element of an event."""
    if not isinstance(per_event, Tensor):
        return per_event
    return per_event.reshape(per_event.shape + (1,) * event_dim)
