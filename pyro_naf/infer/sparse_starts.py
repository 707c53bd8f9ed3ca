"""Gaussians that natural gradients start from, with independent latents or a climb's Hessian."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from .climbs import climb
from .graph import Colouring, hessian
from .pace import Pace
from .rough_gaussian import independent_gaussians
from .sparse_family import Family, SparseGaussian, matched

#: For the climbs to Gaussians with independent latents: the number of draws behind their ELBO, the
#: largest number of steps, and their share of the time.
_CLIMB_DRAWS, _CLIMB_STEPS, _CLIMB_SHARE = 32, 150, 0.3

#: Number of normal points, an even one, from which these climbs begin besides the start and zero.
_MORE_ORIGINS = 6

#: Number of steps of these climbs that the time must allow; otherwise there are fewer origins and
#: fewer draws. The second number is the smallest number of draws.
_FEWEST_CLIMB_STEPS, _FEWEST_CLIMB_DRAWS = 40, 8

#: Largest number of points on a climb's path at which a Gaussian is tried, their share of the time,
#: and the rough cost of a product with the Hessian in gradients.
_TRIED_POINTS, _TRIED_SHARE, _PRODUCT = 4, 0.2, 3


class Starts:
    """Where a fit of a Gaussian of a structure begins.

    :ivar climbs: number of climbs from different points, where the time has ended the search early.
    """

    def __init__(self, family: Family, pace: Pace) -> None:
        self.family, self.pace = family, pace
        #: Draws behind the ELBO of climbs to independent latents; set by the first ones.
        self.climbing = family.normal.to(family.middle)
        self.climbs: int | None = None

    def first(self, deadline: float) -> Iterator[SparseGaussian]:
        """Gaussians to step from: with independent latents, and with the Hessian on a climb."""
        yield from self._independent(deadline)
        if time.monotonic() > deadline:
            return
        colouring = Colouring.of(self.family.structure.adjacency)
        affordable = self.pace.points(_TRIED_SHARE * (deadline - time.monotonic()))
        tried = min(max(affordable // (_PRODUCT * len(colouring.directions)), 1), _TRIED_POINTS)
        for path in climb(self.family.target, self.family.middle[None], deadline=deadline):
            # The last ones come first: the time may not be enough for all.
            places = torch.linspace(len(path) - 1, 0, min(len(path), tried))
            for z in path[places.round().long()]:
                if found := self._laplace(z, colouring):
                    yield self.family.scored(found, few=True)
                if time.monotonic() > deadline:
                    return

    def _independent(self, deadline: float) -> Iterator[SparseGaussian]:
        """Gaussians with independent latents, which have the mass of a funnel."""
        left = _CLIMB_SHARE * (deadline - time.monotonic())
        affordable = self.pace.points(left / _FEWEST_CLIMB_STEPS)
        count = max(min(_CLIMB_DRAWS, affordable // 2), _FEWEST_CLIMB_DRAWS)
        self.climbing = matched(self.family.draws(count)).to(self.family.middle)
        middle = self.family.middle
        origins = torch.cat([torch.stack([middle, torch.zeros_like(middle)]), self._origins()])
        origins = origins[: max(affordable // count, 1)]
        limit = time.monotonic() + left
        if len(origins) < 2 + _MORE_ORIGINS:
            self.climbs = len(origins)
        found = list(self._climbed(origins, limit))
        yield from found
        if found and time.monotonic() > limit:  # broken off: the best goes on alone
            best = max(found, key=lambda g: g.elbo)
            scales = best.factor.diagonal()[None].to(self.family.middle)
            yield from self._climbed(best.loc[None].to(self.family.middle), limit + left, scales)

    def _climbed(
        self, origins: Tensor, deadline: float, scales: Tensor | None = None
    ) -> Iterator[SparseGaussian]:
        for loc, scale in independent_gaussians(
            self.family.target, origins, self.climbing, _CLIMB_STEPS, deadline, scales
        ):
            if found := self.family.gaussian(loc.double(), torch.diag(scale.double() ** -2)):
                yield self.family.scored(found, few=True)

    def more(self, deadline: float) -> list[SparseGaussian]:
        """Climb to Gaussians with independent latents from other origins."""
        return list(self._climbed(self._origins(), deadline))

    def _origins(self) -> Tensor:
        return self.family.draws(_MORE_ORIGINS).to(self.family.middle)

    def _laplace(self, z: Tensor, colouring: Colouring) -> SparseGaussian | None:
        try:
            products = hessian(self.family.target, z, colouring.directions.to(z))
        except RuntimeError:  # a density that can be differentiated once only
            return None
        precision = -colouring.assemble(products.double().cpu()).to(z.device)
        if not bool(precision.isfinite().all()):
            return None
        # Where it curves upwards the diagonal is raised: a width of that curvature is a guess.
        raised = precision.abs().sum(1).clamp(min=1e-8)
        for weight in (0.0, 1e-3, 1e-2, 0.1, 0.3, 1.0):
            if found := self.family.gaussian(z.double(), precision + torch.diag(weight * raised)):
                return found
        return self.family.gaussian(z.double(), torch.diag(raised))
