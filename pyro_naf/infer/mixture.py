"""Gaussians at several modes as one proposal: what mass they find, and how it lies."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor

from .gaussian import Gaussian, LogDensity, cholesky, log_density

#: Draws of a mixture.
_DRAWS = 20_000

#: Each Gaussian is a part of the mixture with these widths, as modes have wider tails.
_WIDTHS = (1.0, 2.0)

#: Mass outside the heaviest mode from which on a posterior is taken to have several.
_SECOND = 0.01


@torch.no_grad()
def moments(target: LogDensity, modes: list[Gaussian]) -> Gaussian | None:
    """The Gaussian with the posterior's mean and covariance, if several modes have mass.

    By importance sampling with the mixture of the modes' Gaussians; weights are truncated at the
    root of their number (Ionides 2008), so that no single draw decides.
    """
    if len(modes) < 2:
        return None
    parts = [Gaussian(g.loc, w * g.factor, math.nan) for g in modes for w in _WIDTHS]
    z, log_w = weighed(target, parts)
    log_w = log_w - log_w.logsumexp(0)
    weights = log_w.clamp(max=-0.5 * math.log(len(z))).softmax(0)
    nearest = torch.stack([g.log_prob(z) for g in modes]).argmax(0)
    masses = torch.zeros(len(modes)).to(weights).index_add(0, nearest, weights)
    if 1 - masses.max() < _SECOND:
        return None
    loc = weights @ z
    centred = z - loc
    (factor,) = cholesky((centred.T @ (weights[:, None] * centred))[None])
    return Gaussian(loc, factor, math.nan)


def weighed(target: LogDensity, parts: list[Gaussian]) -> tuple[Tensor, Tensor]:
    """Draws ``(N, D)`` of Gaussians in equal shares, and their log-weights ``(N,)``."""
    count = max(_DRAWS // len(parts), 100)
    z = torch.cat([g.draw(torch.randn(count, len(g.loc)).to(g.loc)) for g in parts])
    log_q = torch.stack([g.log_prob(z) for g in parts]).logsumexp(0) - math.log(len(parts))
    return z, (target(z) - log_q).nan_to_num(nan=-math.inf, posinf=-math.inf)


@torch.no_grad()
def missed_mass(
    guide: AutoContinuous, log_evidence: float, others: list[Gaussian], *args: Any, **kwargs: Any
) -> float:
    """The part of the posterior's mass that the guide lacks and other proposals find.

    The evidence is estimated once more with the guide and the Gaussians as one mixture proposal;
    k-hat, ESS and evidence of the guide alone do not see a mode that it has lost. Zero unless the
    difference is beyond three standard errors.
    """
    target, posterior = log_density(guide, *args, **kwargs), guide.get_posterior()
    count = _DRAWS // (len(others) + 1)
    own = posterior.rsample((count,))
    foreign = torch.cat([g.draw(torch.randn(count, len(g.loc)).to(g.loc)) for g in others])
    z = torch.cat([own, foreign])
    try:
        log_q = posterior.log_prob(z)
    except (RuntimeError, ValueError):  # out of the inverse's reach: far from the guide's mass
        log_q = torch.cat([posterior.log_prob(own), foreign.new_full((len(foreign),), -math.inf)])
    proposals = torch.stack([log_q, *(g.log_prob(z) for g in others)])
    log_w = (target(z) - proposals.logsumexp(0) + math.log(len(proposals))).double()
    log_w = log_w.nan_to_num(nan=-math.inf, neginf=-math.inf) - log_evidence
    covered = log_w.clamp(max=700).exp()  # of mean 1 if the guide's evidence is all there is
    total, error = covered.mean(), covered.std() / len(covered) ** 0.5
    return float(1 - 1 / total) if total - 1 > 3 * error else 0.0
