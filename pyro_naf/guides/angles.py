r"""Latent angles on one period.

A density of angles has period :math:`2\pi`, but torch and Pyro give it all real numbers as support.
Over them a posterior would repeat itself without end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from pyro.distributions import SineBivariateVonMises, SineSkewed, TorchDistribution, VonMises
from torch import Tensor
from torch.distributions import constraints

#: Distributions whose density has the period 2 pi, with all real numbers as support.
PERIODIC = (VonMises, torch.distributions.VonMises, SineBivariateVonMises, SineSkewed)


class OnePeriod(TorchDistribution):
    r"""A distribution of angles with draws and support in :math:`(\mu - \pi, \mu + \pi)`.

    :param base_dist: one of :data:`PERIODIC` with location :math:`\mu`, in whatever wrapping.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}

    def __init__(self, base_dist: TorchDistribution) -> None:
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """The location."""
        leaf = self.base_dist
        while hasattr(leaf, "base_dist"):
            leaf = leaf.base_dist
        return leaf.mean.expand(self.shape())

    @property
    def support(self) -> constraints.Constraint:
        """Half a turn to both sides of the location."""
        interval = constraints.interval(self.mean - math.pi, self.mean + math.pi)
        return constraints.independent(interval, self.event_dim)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws of the distribution, turned into the support."""
        return self.turned(self.base_dist.sample(torch.Size(sample_shape)))

    def turned(self, angle: Tensor) -> Tensor:
        """Angles turned by whole turns into the support."""
        angle = torch.remainder(angle - self.mean + math.pi, 2 * math.pi)
        return self.mean + angle - math.pi

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the wrapped distribution, which has the same mass on any period."""
        return self.base_dist.log_prob(value)

    def expand(self, batch_shape: Sequence[int], _instance: OnePeriod | None = None) -> OnePeriod:
        """Return a copy that is broadcast to a batch shape."""
        return OnePeriod(self.base_dist.expand(batch_shape))
