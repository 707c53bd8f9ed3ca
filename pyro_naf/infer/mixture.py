"""Gaussians at several modes, and a guide, as one proposal: what mass they find, and where."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.distributions import TransformedDistribution

from ..rootfinding import RootNotFoundError
from .diagnostics import growing
from .gaussian import even_softmax
from .laplace import Gaussian, LogDensity, cholesky

#: Default number of draws from a mixture of Gaussians.
DRAWS = 20_000

#: Widths of each Gaussian in the mixture, in units of its own, as modes have wider tails.
_WIDTHS = (1.0, 2.0)

#: Smallest number of draws of each part of a mixture.
_LEAST_SHARE = 20

#: Size of the groups in which points that the guide's inverse does not reach are told from the
#: others.
_GROUP = 16


class Proposal(Protocol):
    """A density on R^D with draws made from standard normal ones."""

    def draw(self, normal: Tensor) -> Tensor:
        """Map standard normal numbers ``(N, D)`` to draws ``(N, D)``."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density ``(N,)`` at z ``(N, D)``."""


class Pushed:
    """A guide's posterior as a proposal: its density is zero where its inverse does not reach."""

    def __init__(self, posterior: TransformedDistribution) -> None:
        self.posterior = posterior

    def draw(self, normal: Tensor) -> Tensor:
        """Map standard normal numbers ``(N, D)`` to draws ``(N, D)``."""
        for transform in self.posterior.transforms:
            normal = transform(normal)
        return normal

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density ``(N,)`` at z ``(N, D)``."""
        try:
            return self.posterior.log_prob(z)
        except (RootNotFoundError, ValueError):
            if len(z) <= _GROUP:
                return z.new_full((len(z),), -math.inf)
            return torch.cat([self.log_prob(part) for part in z.chunk(2)])


def widened(modes: Sequence[Gaussian]) -> list[Gaussian]:
    """Gaussians at the modes, of one and two widths."""
    return [Gaussian(g.loc, w * g.factor, math.nan) for g in modes for w in _WIDTHS]


@torch.no_grad()
def weighed(
    target: LogDensity, proposals: Sequence[Proposal], like: Tensor, count: int = DRAWS
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws ``(N, D)`` of proposals in equal shares, their log-weights, and the target there.

    A draw is weighted by the mixture, whichever proposal made it (Veach & Guibas 1995): no weight
    is large where any proposal has mass.

    :param like: a tensor ``(D,)`` of the draws' dtype and device.
    """
    share = max(count // len(proposals), _LEAST_SHARE)
    parts = [p.draw(torch.randn(share, len(like)).to(like)) for p in proposals]
    # Part by part: a flow knows its own draws, and needs no inverse for them.
    log_q = torch.stack([torch.cat([p.log_prob(z) for z in parts]) for p in proposals])
    z = torch.cat(parts)
    log_p = target(z)
    log_weights = log_p - log_q.logsumexp(0) + math.log(len(proposals))
    return z, log_weights.nan_to_num(nan=-math.inf, posinf=-math.inf), log_p


@torch.no_grad()
def several(
    target: LogDensity, modes: Sequence[Gaussian], count: int = DRAWS, least: float = 0.01
) -> bool:
    """Whether the modes but the heaviest have more than ``least`` of the mass.

    Weights are truncated at the root of their number (Ionides 2008): no single draw decides.
    """
    if len(modes) < 2:
        return False
    z, log_weights, _ = weighed(target, widened(modes), modes[0].loc, count)
    nearest = torch.stack([g.log_prob(z) for g in modes]).argmax(0)
    log_weights = log_weights - log_weights.logsumexp(0)
    weights = log_weights.clamp(max=-0.5 * math.log(len(z))).softmax(0)
    masses = torch.zeros(len(modes)).to(weights).index_add(0, nearest, weights)
    return bool(1 - masses.max() > least)


@torch.no_grad()
def missed_mass(
    target: LogDensity,
    guide: Pushed,
    log_evidence: float,
    others: Sequence[Gaussian],
    count: int = DRAWS,
    seconds: float = math.inf,
) -> float:
    """Estimate the part of the posterior's mass that the guide lacks and other proposals find.

    The evidence is estimated once more with the guide and the Gaussians as one mixture proposal;
    k-hat, ESS and evidence of the guide alone do not see a mode that it has lost. Zero unless the
    difference is beyond three standard errors.

    :param count: draws, in equal shares of guide and Gaussians.
    :param seconds: time after which no further batch of draws begins.
    """
    proposals: list[Proposal] = [guide, *others]
    found = []
    begin = time.monotonic()
    for size in growing(count, count):
        _, log_weights, _ = weighed(target, proposals, others[0].loc, size)
        found.append((log_weights.double() - log_evidence).clamp(max=700).exp())
        if time.monotonic() - begin > seconds:
            break
    covered = torch.cat(found)
    total, error = covered.mean(), covered.std() / len(covered) ** 0.5
    # The ratios have mean 1 if the guide's evidence is all there is.
    return float(1 - 1 / total) if total - 1 > 3 * error else 0.0


class Pool:
    """Approximate draws of the posterior: weighted draws of proposals, of which none dominates.

    One more proposal is the Gaussian with the moments that the others have found: it has draws
    between and around the modes, and at modes that the others lack.

    :ivar around: the Gaussian with the moments of all.
    :ivar ess: effective number of draws that the weights are worth, before they are evened.
    """

    def __init__(
        self, target: LogDensity, proposals: Sequence[Gaussian], count: int = DRAWS
    ) -> None:
        self.count = count
        self._weigh(target, proposals)
        self._weigh(target, [*proposals, self._gaussian()])
        self.around = self._gaussian()

    def _weigh(self, target: LogDensity, proposals: Sequence[Gaussian]) -> None:
        self.z, log_weights, self.log_p = weighed(target, proposals, proposals[0].loc, self.count)
        self.ess = float(1 / log_weights.double().softmax(0).square().sum())
        self.weights = even_softmax(log_weights)

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Draws ``(count, D)``, and the target there."""
        chosen = self.weights.multinomial(count, replacement=True)
        return self.z[chosen], self.log_p[chosen]

    def _gaussian(self) -> Gaussian:
        """With the posterior's mean and covariance."""
        loc = self.weights @ self.z
        centred = self.z - loc
        (factor,) = cholesky((centred.T @ (self.weights[:, None] * centred))[None])
        return Gaussian(loc, factor, math.nan)
