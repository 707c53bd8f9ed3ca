"""Flat priors, which Pyro cannot sample: where a guide starts them, and a model runs with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pyro.distributions import ImproperUniform, TorchDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import biject_to

from .wrapping import peel


def is_flat(fn: TorchDistribution) -> bool:
    """Whether the distribution is an ImproperUniform, in whatever wrapping."""
    return isinstance(peel(fn)[0], ImproperUniform)


def origin(fn: TorchDistribution) -> Tensor:
    """Return the point of a distribution's support that is zero when unconstrained."""
    transform = biject_to(fn.support)
    return transform(torch.zeros(transform.inverse_shape(fn.shape())))


def start_flat_priors(init_loc_fn: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make an initialisation function with the origin in place of draws of a flat prior.

    Discrete sites, which no guide has, are drawn.
    """

    def start(site: Message) -> Tensor:
        if site["fn"].support.is_discrete and site["fn"].has_enumerate_support:
            return site["fn"].sample()
        try:
            return init_loc_fn(site)
        except NotImplementedError:
            if not is_flat(site["fn"]):
                raise
            return origin(site["fn"])

    return start


class FlatPriors(Messenger):
    """Handler that draws the origin from flat priors to which nothing else gives a value."""

    def _pyro_sample(self, msg: Message) -> None:
        if msg["value"] is None and is_flat(msg["fn"]):
            msg["value"] = origin(msg["fn"])
            msg["done"] = True
