"""The monotone map of each column to normal scores, by a mixture of Gaussians of its values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..rootfinding import find_root
from ..support.checks import check_integers
from ..support.precision import without_autocast
from .gaussian_mixture import maximised
from .linear import Linear

#: Rows that the mixture of a column is fitted to, at most.
ROWS = 20_000

#: Number of rows that the prior of each variance is worth.
PRIOR_ROWS = 1.0

#: Standard deviations of the outermost Gaussian, from its mean, beyond which the map is a line.
FARTHEST = 6.0


class NormalScores(Linear):
    r"""The map :math:`z_t = \Phi^{-1}(F_t(x_t))` of each column by itself.

    F is the distribution function of a mixture of Gaussians, :math:`\Phi` of the standard
    normal law: under a normal law of z, the columns have these mixtures as marginals (a Gaussian
    copula). Where all Gaussians of a column are six standard deviations away, the map goes on as a
    line. No parameter is trained by gradients.

    NaN, a missing cell, stays NaN. What follows the D columns, classes, stays as it is.

    :param input_dim: D >= 1.
    :param components: J >= 1, Gaussians in the mixture of a column.

    >>> x = torch.randn(2000, 1).exp().double()
    >>> scores = NormalScores(1, 5).double()
    >>> scores.start(x)
    >>> z = scores(x)
    >>> bool(z.mean().abs() < 0.05), bool((z.std() - 1).abs() < 0.05)
    (True, True)
    """

    log_weights: Tensor
    means: Tensor
    scales: Tensor

    def __init__(self, input_dim: int, components: int) -> None:
        super().__init__()
        check_integers(input_dim=(input_dim, 1), components=(components, 1))
        self.input_dim, self.components = input_dim, components
        weights = torch.full((input_dim, components), -math.log(components))
        self.register_buffer("log_weights", weights)
        self.register_buffer("means", torch.zeros(input_dim, components))
        self.register_buffer("scales", torch.ones(input_dim, components))

    @torch.no_grad()
    def start(self, x: Tensor, context: Tensor | None = None, weight: Tensor | None = None) -> None:
        """Fit the mixture of each column to the cells of rows ``(N, D)`` that are not NaN."""
        for t, column in enumerate(x[:, : self.input_dim].double().unbind(1)):
            seen = ~column.isnan()
            own = None if weight is None else weight[seen].to(column)
            self._fit(t, column[seen], own)

    def _fit(self, t: int, values: Tensor, weight: Tensor | None) -> None:
        step = max(1, len(values) // ROWS)
        values = values[::step].unsqueeze(1)
        weight = torch.ones_like(values[:, 0]) if weight is None else weight[::step]
        ranks = values.squeeze(1).argsort().argsort()
        slices = ranks * self.components // len(values)
        member = torch.nn.functional.one_hot(slices, self.components).to(values)
        mean = weight @ values / weight.sum()
        spread = (weight @ (values - mean).square() / weight.sum()).clamp(min=1e-12)
        prior = (mean, spread.view(1, 1) / self.components**2, PRIOR_ROWS)
        (log_weights, means, factors, _), _ = maximised(values, weight, member, prior)
        self.log_weights[t] = log_weights
        self.means[t] = means.squeeze(1)
        self.scales[t] = 1 / factors.flatten()

    @property
    def ends(self) -> Tensor:
        """Where the lines begin, ``(2, D)``."""
        means, reach = self.means.double(), FARTHEST * self.scales.double()
        return torch.stack([(means - reach).amin(1), (means + reach).amax(1)])

    def value_and_log_slope(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores ``(..., D)`` of x ``(..., D)``, and the logarithms of the slopes."""
        with without_autocast(x):
            x, others = x[..., : self.input_dim], x[..., self.input_dim :]
            exact, (low, high) = x.double(), self.ends
            near = torch.minimum(torch.maximum(exact, low), high)
            z, log_slope = _score(near, *self._exact)
            z = z + log_slope.exp() * (exact - near)
            z, log_slope = z.to(x.dtype), log_slope.to(x.dtype)
            return torch.cat([z, others], -1), torch.cat([log_slope, 0 * others], -1)

    @property
    def _exact(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.log_weights.double(), self.means.double(), self.scales.double()

    def _call(self, x: Tensor) -> Tensor:
        return self.value_and_log_slope(x)[0]

    def _inverse(self, z: Tensor) -> Tensor:
        real = z[..., : self.input_dim].detach()
        columns = torch.arange(self.input_dim, device=z.device).expand(real.shape)
        x = self.values(real.reshape(-1), columns.reshape(-1)).view(real.shape)
        x = torch.cat([x, z[..., self.input_dim :].detach()], -1)
        if not z.requires_grad:
            return x
        return x + (z - z.detach()) * (-self.value_and_log_slope(x)[1]).exp()

    def values(self, z: Tensor, columns: Tensor) -> Tensor:
        """Return the cells ``(n,)`` of these columns ``(n,)`` that have the scores z ``(n,)``."""
        exact, ends = z.double(), self.ends
        scores, log_slopes = (t[:, columns] for t in _score(ends, *self._exact))
        lo, hi = ends[:, columns]
        near = torch.minimum(torch.maximum(exact, scores[0]), scores[1])
        x = find_root(_score, near, tuple(p[columns] for p in self._exact), lo, hi)
        slope = torch.where(exact < near, log_slopes[0], log_slopes[1]).exp()
        return (x + (exact - near) / slope).to(z.dtype)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the sum of the logarithms of the slopes, of shape ``(...)``."""
        return self.value_and_log_slope(x)[1].sum(-1)


def _score(x: Tensor, log_weights: Tensor, means: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Return normal scores of x ``(...)`` under mixtures ``(..., J)``, and their log-slopes."""
    u = (x.unsqueeze(-1) - means) / scales
    weights = log_weights.exp()
    below = (weights * torch.special.ndtr(u)).sum(-1)
    above = (weights * torch.special.ndtr(-u)).sum(-1)
    low = below < above
    # From the smaller of both tails, which is computed without cancellation.
    tail = torch.where(low, below, above).clamp(min=torch.finfo(x.dtype).tiny)
    z = torch.special.ndtri(tail)
    z = torch.where(low, z, -z)
    log_density = (log_weights - scales.log() - 0.5 * u.square()).logsumexp(-1)
    return z, log_density + 0.5 * z.square()
