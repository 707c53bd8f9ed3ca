"""How far draws are from draws of the truth: Wasserstein distances of marginals and projections."""

from __future__ import annotations

import torch
from torch import Tensor

#: Directions of the sliced distance.
_DIRECTIONS = 128


def wasserstein(draws: Tensor, reference: Tensor) -> Tensor:
    """W1 of every column in sds of the reference, as many draws of each ``(n, D)``: ``(D,)``."""
    gap = (draws.sort(0).values - reference.sort(0).values).abs().mean(0)
    return gap / reference.std(0)


def sliced_wasserstein(draws: Tensor, reference: Tensor) -> float:
    """Mean W1 along random directions of the space in which the reference has covariance I.

    Directions without variance, as of the numbers of a simplex, are left out.
    """
    mean, sd = reference.mean(0), reference.std(0)
    covariance = torch.atleast_2d(torch.cov(((reference - mean) / sd).T))
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > 1e-8 * values[-1]
    whiten = vectors[:, kept] / values[kept].sqrt()
    generator = torch.Generator().manual_seed(0)
    shape = (int(kept.sum()), _DIRECTIONS)
    directions = torch.randn(shape, generator=generator, dtype=torch.double)
    projection = whiten @ (directions / directions.norm(dim=0)) / sd[:, None]
    a, b = (((x - mean) @ projection).sort(0).values for x in (draws, reference))
    return float((a - b).abs().mean())
