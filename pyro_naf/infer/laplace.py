r"""Gaussians at points of a density: by its Hessian (Laplace), and moved to match its scores.

The ELBO, estimated from common random draws, says which of several Gaussians is the best. Batch and
match (Cai et al. 2024 [arXiv:2402.14758]) has steps in closed form, which are invariant to scale
and correlation and have the exact Gaussian as fixed point.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Number of common random draws with which candidates are screened; the best ``_FINALISTS`` are
#: estimated again with all draws.
FEW_DRAWS, _FINALISTS = 32, 3

#: Number of draws in a step of batch and match.
_BATCH = 64

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Gaussian:
    """N(loc, L L^T) on R^D, and its ELBO; L is lower triangular, or a vector for a diagonal one."""

    loc: Tensor
    factor: Tensor
    elbo: float

    @property
    def scale(self) -> Tensor:
        """Standard deviations ``(D,)``."""
        return self.factor if self.factor.dim() == 1 else self.factor.norm(dim=-1)

    def draw(self, normal: Tensor) -> Tensor:
        """Images of standard normal points ``(N, D)``."""
        if self.factor.dim() == 1:
            return self.loc + normal * self.factor
        return self.loc + normal @ self.factor.T

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density ``(N,)`` at z ``(N, D)``."""
        if self.factor.dim() == 1:
            return torch.distributions.Normal(self.loc, self.factor).log_prob(z).sum(-1)
        law = torch.distributions.MultivariateNormal(self.loc, scale_tril=self.factor)
        return law.log_prob(z)


def laplace(target: LogDensity, z: Tensor, normal: Tensor) -> list[Gaussian]:
    """Make a Gaussian at each of the points ``(N, D)``, its precision the repaired Hessian."""
    precision = -_hessians(target, z)
    usable = precision.flatten(1).isfinite().all(-1)
    values, vectors = torch.linalg.eigh(torch.where(usable[:, None, None], precision, 0.0))
    # Where the density curves upwards a width of that curvature is still the best guess.
    values = values.abs().clamp(min=1e-8)
    factors = cholesky(vectors / values[:, None, :] @ vectors.mT)
    found = zip(z, factors, usable.tolist(), strict=True)
    return [_scored(target, loc, f, normal) for loc, f, good in found if good]


def best_of(
    target: LogDensity, z: Tensor, normal: Tensor, deadline: float = math.inf, group: int = 16
) -> Gaussian | None:
    """Return the best of the Gaussians at points ``(N, D)``: few draws judge all, all draws a few.

    The points come one group after another, the last ones first, until the deadline.
    """
    rough: list[Gaussian] = []
    for part in z.flip(0).split(group):
        rough += laplace(target, part, normal[:FEW_DRAWS])
        if time.monotonic() > deadline:
            break
    rough.sort(key=lambda g: -g.elbo)
    finalists = [_scored(target, g.loc, g.factor, normal) for g in rough[:_FINALISTS]]
    return max(finalists, key=lambda g: g.elbo, default=None)


def match(
    target: LogDensity, start: Gaussian, normal: Tensor, steps: int = 40, deadline: float = math.inf
) -> Gaussian:
    """Return the best Gaussian on the way of batch and match from ``start``, until the deadline."""
    best = start
    loc, factor = start.loc, start.factor
    dim = len(loc)
    for step in range(steps):
        z = (loc + torch.randn(_BATCH, dim).to(loc) @ factor.T).requires_grad_()
        value = target(z)
        (score,) = torch.autograd.grad(value.sum(), z)
        good = value.isfinite() & score.isfinite().all(-1)
        if good.sum() <= 2:
            break
        z, score = z.detach()[good], score[good]
        rate = _BATCH * dim / (step + 1)
        z_mean, s_mean = z.mean(0), score.mean(0)
        u = rate * _covariance(score) + rate / (1 + rate) * torch.outer(s_mean, s_mean)
        shift = loc - z_mean
        v = factor @ factor.T + rate * _covariance(z)
        v = v + rate / (1 + rate) * torch.outer(shift, shift)
        # Sigma U Sigma + Sigma = V, solved in the eigenvectors of L^T U L with V = L L^T.
        (left,) = cholesky(v[None])
        values, vectors = torch.linalg.eigh(left.T @ u @ left)
        root = left @ vectors * (2 / (1 + (1 + 4 * values.clamp(min=0)).sqrt())).sqrt()
        covariance = root @ root.T
        if not covariance.isfinite().all():
            break
        (factor,) = cholesky(covariance[None])
        loc = loc / (1 + rate) + rate / (1 + rate) * (covariance @ s_mean + z_mean)
        found = _scored(target, loc, factor, normal)
        best = max(best, found, key=lambda g: g.elbo)
        if time.monotonic() > deadline:
            break
    return best


def matched_normal(count: int, like: Tensor) -> Tensor:
    """Draw normal points ``(count, D)`` whose mean is 0 and covariance I: exact for quadratics."""
    normal = torch.randn(count, len(like)).to(like)
    normal = normal - normal.mean(0)
    factor = torch.linalg.cholesky(_covariance(normal))
    return torch.linalg.solve_triangular(factor, normal.T, upper=False).T


def _scored(target: LogDensity, loc: Tensor, factor: Tensor, normal: Tensor) -> Gaussian:
    with torch.no_grad():
        energy = target(loc + normal @ factor.T).double().mean()
        entropy = factor.diagonal().double().log().sum() + 0.5 * len(loc) * 2.8378770664093453
    elbo = float(energy + entropy)
    return Gaussian(loc, factor, elbo if elbo == elbo else -torch.inf)


def _hessians(target: LogDensity, z: Tensor) -> Tensor:
    """Second derivatives ``(N, D, D)``: one backward pass a dimension, for all points at once."""
    try:
        if getattr(target, "graph", None) is not None:  # gradients cost far less than the model
            hessian = _differences(target, z.detach())
        else:
            hessian = _second_derivatives(target, z)
    except (NotImplementedError, RuntimeError):  # a formula that is differentiable only once
        hessian = torch.full_like(z[:, None] * z[..., None], torch.nan)
    if not hessian.isfinite().all():
        hessian = torch.where(hessian.isfinite(), hessian, _differences(target, z.detach()))
    return (hessian + hessian.mT) / 2


def _second_derivatives(target: LogDensity, z: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    (grad,) = torch.autograd.grad(target(z).sum(), z, create_graph=True)
    rows = [
        torch.autograd.grad(column.sum(), z, retain_graph=True, materialize_grads=True)[0]
        if column.requires_grad
        else torch.zeros_like(z)
        for column in grad.unbind(-1)
    ]
    return torch.stack(rows, -2)


def _differences(target: LogDensity, z: Tensor) -> Tensor:
    """Second derivatives from gradients around z: some formulas are differentiable only once."""
    width = torch.finfo(z.dtype).eps ** (1 / 3) * z.abs().amax(-1, keepdim=True).clamp(min=1)
    steps = torch.diag_embed(width.expand_as(z))
    around = torch.stack([z[:, None] + steps, z[:, None] - steps]).requires_grad_()
    (grad,) = torch.autograd.grad(target(around.flatten(0, 2)).sum(), around)
    return (grad[0] - grad[1]) / (2 * width[..., None])


def cholesky(covariance: Tensor) -> Tensor:
    """Factors of matrices ``(N, D, D)`` that are positive definite up to rounding."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not failed.any():
        return factor
    values, vectors = torch.linalg.eigh(covariance)
    floor = values[..., -1:].abs() * 10 * torch.finfo(values.dtype).eps
    root = vectors * values.clamp(min=floor).sqrt()[..., None, :]
    # A QR factorisation squares no condition number.
    _, upper = torch.linalg.qr(root.mT)
    return upper.mT * upper.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / len(x)
