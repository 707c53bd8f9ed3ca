r"""Student's t: its density, the degrees of freedom that fit rows, and the base of a flow.

.. math:: \log t_\nu(x; \mu, \Sigma) = \log\Gamma\big(\tfrac{\nu + D}{2}\big)
    - \log\Gamma\big(\tfrac{\nu}{2}\big) - \tfrac D2 \log(\nu\pi) - \tfrac12 \log|\Sigma|
    - \tfrac{\nu + D}{2} \log\big(1 + \delta / \nu\big),
    \qquad \delta = (x - \mu)^\top \Sigma^{-1} (x - \mu)

It is a Gaussian of covariance :math:`\Sigma / u` for a factor u common to all dimensions, which has
a Gamma law of mean 1.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..support.precision import at_least_float32

#: Bounds of the degrees of freedom: below 1 there is no mean; with 100 a t is a Gaussian unless
#: there are millions of rows, and in float32 the log-gamma functions of more would lose digits.
DEGREES = (1.0, 100.0)

#: Degrees of freedom where a fit starts.
START = 8.0

#: Steps of Newton's method, whose start is right to 2 %, for the likeliest degrees of freedom.
NEWTON_STEPS = 4


def log_density(square: Tensor, degrees: Tensor, dim: int | Tensor) -> Tensor:
    r"""Return the logarithm of the density, without :math:`-\tfrac12 \log|\Sigma|`.

    :param square: :math:`\delta`, ``(...)``, as the other two after broadcasting.
    :param degrees: :math:`\nu`.
    :param dim: D.

    >>> x = torch.tensor(1.5)
    >>> law = torch.distributions.StudentT(3.0)
    >>> bool((log_density(x**2, torch.tensor(3.0), 1) - law.log_prob(x)).abs() < 1e-6)
    True
    """
    half = (degrees + dim) / 2
    constant = torch.lgamma(half) - torch.lgamma(degrees / 2) - dim / 2 * (degrees * math.pi).log()
    return constant - half * torch.log1p(square / degrees)


def factors(square: Tensor, degrees: Tensor, dim: int | Tensor) -> tuple[Tensor, Tensor]:
    """Means of the factor u and of its logarithm, given the distance; arguments as above."""
    half = (degrees + dim) / 2
    u = 2 * half / (degrees + square)
    return u, u.log() + torch.digamma(half) - half.log()


def likeliest(u: Tensor, log_u: Tensor) -> Tensor:
    r"""Find the degrees of freedom, in bounds, that make rows with these mean factors likeliest.

    They solve :math:`\log(\nu/2) - \psi(\nu/2) = E[u] - E[\log u] - 1`.

    :param u: mean of u over the rows, ``(K,)``; ``log_u`` that of its logarithm.

    Source: Liu & Rubin 1995, ML estimation of the t distribution using EM and its extensions; the
    start of Newton's method is that of Minka 2002, Estimating a Gamma distribution.

    >>> u = torch.distributions.Gamma(1.5, 1.5).sample([100_000])
    >>> bool((likeliest(u.mean().view(1), u.log().mean().view(1)) - 3).abs() < 0.1)
    True
    """
    right = (u - log_u - 1).clamp(min=1 / (4 * DEGREES[1]))
    half = (3 - right + ((right - 3).square() + 24 * right).sqrt()) / (12 * right)
    for _ in range(NEWTON_STEPS):
        wrong = half.log() - torch.digamma(half) - right
        half = half - wrong / (1 / half - torch.polygamma(1, half))
    return (2 * half).clamp(*DEGREES)


class Student(nn.Module):
    r"""The base distribution of independent t's, :math:`p(z) = \prod_t t_{\nu_t}(z_t)`.

    Degrees of freedom are trained: :math:`1 / \nu_t`, which says how heavy a tail is, goes through
    a sigmoid from 1/100 to 1. A flow of sigmoids is linear far out, so that its tails are the
    base's: with a normal one no draw is farther out than a normal draw times a constant.

    :param input_dim: D >= 1.

    Source: Jaini et al. 2020, Tails of Lipschitz triangular flows [arXiv:1907.04481].

    >>> Student(3).log_prob(torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        heaviest, lightest = (1 / bound for bound in DEGREES)
        start = (1 / START - lightest) / (heaviest - lightest)
        self.raw = nn.Parameter(torch.full((input_dim,), math.log(start / (1 - start))))

    @property
    def degrees(self) -> Tensor:
        """The degrees of freedom ``(D,)``."""
        heaviest, lightest = (1 / bound for bound in DEGREES)
        return 1 / (lightest + (heaviest - lightest) * self.raw.sigmoid())

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density ``(...)`` of z ``(..., D)``."""
        return self.log_probs(z).sum(-1)

    def log_probs(self, z: Tensor) -> Tensor:
        """Return the log-density ``(..., D)`` of each dimension of z ``(..., D)``."""
        return log_density(at_least_float32(z).square(), self.degrees, 1)

    def distribution(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """Return the independent t's, of the context's batch shape."""
        batch = () if context is None else context.shape[:-1]
        return dist.StudentT(self.degrees.expand(*batch, -1)).to_event(1)
