"""Gaussians of one structure: made of a precision, and judged by common draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..conditioners.structure import Structure
from ..flows.linear import factor_of
from .graph import LogDensity

#: Number of common random draws that screen the starts.
_FEW_DRAWS = 64

#: Number of draws in one batch.
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class SparseGaussian:
    r"""N(loc, S S^T) on R^D, where S has the pattern of a structure; float64.

    :ivar loc: shape ``(D,)``.
    :ivar precision: :math:`\Lambda`, shape ``(D, D)``, zero where latents are not adjacent.
    :ivar factor: S, shape ``(D, D)``, zero but for the diagonal and the ancestors.
    :ivar elbo: of a model's density, from common draws.
    """

    loc: Tensor
    precision: Tensor
    factor: Tensor
    elbo: float

    def draw(self, normal: Tensor) -> Tensor:
        """Images of standard normal points ``(N, D)``."""
        return self.loc + normal @ self.factor.mT

    @property
    def entropy(self) -> float:
        """Entropy in nats."""
        half_log_det = float(self.factor.diagonal().log().sum())
        return half_log_det + 0.5 * len(self.loc) * (1 + math.log(2 * math.pi))


class Family:
    """Gaussians of one structure beside one density: how they are made and what they are worth.

    :param target: a log-density ``(N, D)`` to ``(N,)``, of each row on its own, in the dtype of
        ``middle``; it may be a compiled one that takes a gradient only once.
    :param structure: of the D latents; a dense one for a full covariance.
    :param middle: the point ``(D,)`` to start from.
    :param num_draws: number of common random draws behind each ELBO, at least 64.
    """

    def __init__(
        self, target: LogDensity, structure: Structure, middle: Tensor, num_draws: int
    ) -> None:
        self.target, self.structure, self.middle = target, structure, middle
        self.num_draws = max(num_draws, _FEW_DRAWS)
        self.normal = matched(self.draws(2 * math.ceil(self.num_draws / 2)))

    def draws(self, count: int) -> Tensor:
        """Draw standard normal points ``(count, D)`` in opposite pairs: their mean is zero."""
        like = self.middle
        half = torch.randn(count // 2, len(like), device=like.device, dtype=torch.double)
        return torch.cat([half, -half])

    def values(self, z: Tensor) -> Tensor:
        """Log-densities ``(N,)`` in float64, minus infinity where not finite."""
        with torch.no_grad():
            found = torch.cat([self.target(part) for part in z.to(self.middle).split(_CHUNK)])
        found = found.double()
        return torch.where(found.isfinite(), found, -torch.inf)

    def scores(self, z: Tensor) -> Tensor:
        """Gradients ``(N, D)`` of the log-density in float64."""
        found = []
        for part in z.to(self.middle).split(_CHUNK):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(self.target(part).sum(), part)
            found.append(grad)
        return torch.cat(found).double()

    def scored(self, gaussian: SparseGaussian, few: bool) -> SparseGaussian:
        """Return the Gaussian with the ELBO from the common draws."""
        pairs = self.normal.unflatten(0, (2, -1))
        normal = pairs[:, : _FEW_DRAWS // 2].flatten(0, 1) if few else self.normal
        values = self.values(gaussian.draw(normal))
        return replace(gaussian, elbo=float(values.mean()) + gaussian.entropy)

    def gaussian(self, loc: Tensor, precision: Tensor) -> SparseGaussian | None:
        """Make the Gaussian of this precision, None where it is not positive definite."""
        try:
            factor = factor_of(self.structure, precision=precision)
        except ValueError:
            return None
        if not bool(factor.isfinite().all()):
            return None
        return SparseGaussian(loc, precision, factor, -math.inf)


def matched(normal: Tensor) -> Tensor:
    """Give points ``(N, D)`` the covariance I, or, of few points, with unit variances.

    The ELBO of a Gaussian posterior is exact then, and near it without noise.
    """
    count, dim = normal.shape
    normal = normal / normal.square().mean(0).sqrt()
    if 4 * dim > count:
        return normal
    factor = torch.linalg.cholesky(normal.mT @ normal / count)
    return torch.linalg.solve_triangular(factor.mT, normal, upper=True, left=False)
