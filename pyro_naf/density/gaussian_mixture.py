"""Mixtures of Gaussians or Student's t's, fitted by expectation and maximisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ..support.checks import check_integers
from ..support.precision import at_least_float32, without_autocast
from . import expectation, incomplete, student
from .gaussian import precision_factor, shrunk_moments
from .mixture import ModuleDistribution
from .settings import Stop

#: Steps of expectation and maximisation, and the gain in nats a row below which they end.
MAX_STEPS = 200
GAIN = 1e-5

#: Number of starts, of which the one with the highest likelihood after its first steps goes on;
#: where cells are missing, it is one, whose first steps have the gaps filled.
STARTS = 5
FIRST_STEPS = 10

#: Steps of k-means that a start is made of.
KMEANS_STEPS = 10


class GaussianMixture(nn.Module):
    r"""The density :math:`p(x) = \sum_k \pi_k\, N(x; \mu_k, \Sigma_k)` with full covariances.

    Or, with ``heavy_tails``, :math:`\sum_k \pi_k\, t_{\nu_k}(x; \mu_k, \Sigma_k)`, each with its
    own degrees of freedom from 1 to 100.

    :meth:`start` fits it: expectation and maximisation with a prior under each covariance, so that
    a part of few rows does not collapse. The prior's mean is the shrunk covariance of all rows over
    :math:`K^{2/D}` in the first steps, and then the mean covariance of the parts, which is far
    smaller where they are far apart. Nothing is left for a gradient to train.

    Beside the D numbers, rows may hold M classes, by their places: they are independent given the
    component, with the probabilities :math:`\theta_{km}` (a latent class model).

    :param input_dim: D >= 1, or D >= 0 with classes.
    :param components: K >= 1.
    :param prior_rows: number of rows that the prior is worth, above 0; by default D + 2.
    :param sizes: number of values of each of the M classes.
    :param heavy_tails: of Student's t's.

    Source: Fraley & Raftery 2007, Bayesian regularization for normal mixture estimation and
    model-based clustering, section 3; Peel & McLachlan 2000, Robust mixture modelling using the t
    distribution.

    >>> x = torch.cat([torch.randn(300, 2) - 5, torch.randn(100, 2) + 5])
    >>> mixture = GaussianMixture(2, components=2)
    >>> mixture.start(x)
    >>> mixture.log_weights.exp().sort().values.round(decimals=2)
    tensor([0.2500, 0.7500])
    """

    log_weights: Tensor
    means: Tensor
    factors: Tensor
    degrees: Tensor | None
    class_logs: Tensor

    def __init__(
        self,
        input_dim: int,
        components: int,
        prior_rows: float | None = None,
        sizes: Sequence[int] = (),
        *,
        heavy_tails: bool = False,
    ) -> None:
        super().__init__()
        check_integers(input_dim=(input_dim, 0 if sizes else 1), components=(components, 1))
        self.sizes = tuple(sizes)
        self.prior_rows = input_dim + 2.0 if prior_rows is None else prior_rows
        if not 0 < self.prior_rows < math.inf:
            raise ValueError(f"prior_rows must be positive and finite, got {prior_rows}")
        self.dim, self.components = input_dim, components
        self.input_dim = input_dim + len(self.sizes)
        self.register_buffer("log_weights", torch.full((components,), -math.log(components)))
        self.register_buffer("means", torch.zeros(components, input_dim))
        self.register_buffer("factors", torch.eye(input_dim).repeat(components, 1, 1))
        degrees = torch.full((components,), student.START) if heavy_tails else None
        self.register_buffer("degrees", degrees)
        if sizes:
            even = [torch.full((components, size), -math.log(size)) for size in sizes]
            self.register_buffer("class_logs", torch.cat(even, 1))

    @torch.no_grad()
    def start(self, x: Tensor, weight: Tensor | None = None, stop: Stop | None = None) -> None:
        """Fit the mixture to rows ``(N, D + M)``, drawing from torch's global generator.

        NaN is a missing cell: the likelihood then covers the cells seen, and expectation and
        maximisation begins with few steps on rows whose gaps have a single Gaussian's conditional
        means.

        :param weight: of the rows, ``(N,)``; 1 by default.
        :param stop: asked after each step whether the time is over: the best so far is kept.
        """
        x, best = x.double(), -math.inf
        weight = torch.ones_like(x[:, 0]) if weight is None else weight.to(x)
        real, codes = x[:, : self.dim], x[:, self.dim :]
        mean, covariance = _moments(real, weight)
        whole, gaps = real, bool(real.isnan().any())
        if gaps:
            pooled = incomplete.Gaussians(mean.new_zeros(1), mean[None], covariance[None])
            whole = incomplete.filled(pooled, real)
        degrees = None
        if self.degrees is not None:
            degrees = torch.full_like(self.degrees, student.START, dtype=torch.double)
            moments = mean, covariance, self.prior_rows
            mean, covariance = _without_tails(whole, weight, moments, degrees[:1])
        spread = covariance / self.components ** (2 / max(self.dim, 1))
        prior = (mean, spread, self.prior_rows)
        for _ in range(STARTS if self.components > 1 and not gaps else 1):
            member = _clustered(_with_classes(whole, codes, self.sizes), self.components)
            first, value = maximised(
                whole, weight, member, prior, max_steps=FIRST_STEPS, degrees=degrees, stop=stop
            )
            law = _gaussians(first)
            if self.sizes:
                member = weight.unsqueeze(1) * member
                tables = expectation.class_tables(codes, member, weight, self.sizes)
                law = replace(law, tables=tables)
                law, value = expectation.maximised(x, weight, law, prior, stop, FIRST_STEPS)
            if value > best:
                best, chosen, begun = value, first, law
            if stop is not None and stop():
                break
        if self.components > 1:
            shares = begun.log_weights.exp().view(-1, 1, 1)
            prior = mean, (shares * begun.covariances).sum(0), self.prior_rows
        if gaps or self.sizes:
            self.take(expectation.maximised(x, weight, begun, prior, stop)[0])
            return
        member, _, (u, _) = _expected(whole, chosen)
        found, _ = maximised(whole, weight, member, prior, degrees=chosen.degrees, stop=stop, u=u)
        self.take(_gaussians(found))

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density ``(...)`` of x ``(..., D + M)``."""
        with without_autocast(x):
            real, codes = at_least_float32(x[..., : self.dim]), x[..., self.dim :]
            terms, _ = _terms(real, self._held)
            if self.sizes:
                flat = incomplete.class_terms(self._tables(), codes.reshape(-1, len(self.sizes)))
                terms = terms + flat.view(terms.shape)
            return torch.logsumexp(terms, -1)

    def class_log_prob(self, codes: Tensor) -> Tensor:
        """Return the log-probability ``(N,)`` of the classes ``(N, M)``, M >= 1, by themselves."""
        return (self.log_weights + incomplete.class_terms(self._tables(), codes)).logsumexp(-1)

    def _tables(self) -> tuple[Tensor, ...]:
        return self.class_logs.split(self.sizes, 1) if self.sizes else ()

    @property
    def _held(self) -> Parameters:
        return Parameters(self.log_weights, self.means, self.factors, self.degrees)

    @property
    def gaussians(self) -> incomplete.Gaussians:
        """The mixture by its covariances, in double precision."""
        law = _gaussians(self._held)
        return replace(law, tables=tuple(t.double() for t in self._tables()))

    @torch.no_grad()
    def take(self, law: incomplete.Gaussians) -> None:
        """Become this mixture of as many Gaussians."""
        self.log_weights.copy_(law.log_weights)
        self.means.copy_(law.means)
        self.factors.copy_(precision_factor(law.covariances))
        if self.degrees is not None and law.degrees is not None:
            self.degrees.copy_(law.degrees)
        if self.sizes:
            self.class_logs.copy_(torch.cat(law.tables, 1))

    def rsample(self, rows: int, context: Tensor | None = None) -> Tensor:
        """Draws ``(rows, D + M)``."""
        k = torch.multinomial(self.log_weights.exp(), rows, replacement=True)
        noise = torch.randn(rows, self.dim).to(self.means).unsqueeze(-1)
        if self.degrees is not None:
            half = self.degrees[k] / 2
            noise = noise * torch.distributions.Gamma(half, half).sample().rsqrt()[:, None, None]
        solved = torch.linalg.solve_triangular(self.factors[k], noise, upper=False)
        codes = [torch.multinomial(table[k].exp(), 1) for table in self._tables()]
        return torch.cat([self.means[k] + solved.squeeze(-1), *(c.to(noise) for c in codes)], 1)

    def distribution(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """Return the mixture as a Pyro distribution, of the context's batch shape."""
        return ModuleDistribution(self, context)


class Parameters(NamedTuple):
    """Parameters of a mixture; the factors, see precision_factor, are of inverse covariances."""

    log_weights: Tensor
    means: Tensor
    factors: Tensor
    degrees: Tensor | None


def _gaussians(found: Parameters) -> incomplete.Gaussians:
    log_weights, means, factors = (t.detach().double() for t in found[:3])
    degrees = None if found.degrees is None else found.degrees.detach().double()
    eye = torch.eye(means.shape[-1]).to(means)
    lower = torch.linalg.solve_triangular(factors, eye.expand_as(factors), upper=False)
    return incomplete.Gaussians(log_weights, means, lower @ lower.mT, degrees)


def _terms(x: Tensor, found: Parameters) -> tuple[Tensor, Tensor]:
    """Logarithms ``(..., K)`` of the weighted densities of the components; squared distances."""
    z = torch.einsum("kij,...kj->...ki", found.factors, x.unsqueeze(-2) - found.means)
    square, dim = z.square().sum(-1), x.shape[-1]
    if found.degrees is not None:
        values = student.log_density(square, found.degrees, dim)
    else:
        values = -0.5 * dim * math.log(2 * math.pi) - 0.5 * square
    log_det = found.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return found.log_weights + log_det + values, square


def _expected(x: Tensor, found: Parameters) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Responsibilities ``(N, K)``, log-likelihoods ``(N,)``, and means of u and its logarithm."""
    terms, square = _terms(x, found)
    totals = torch.logsumexp(terms, -1)
    factors = torch.ones_like(square), torch.zeros_like(square)
    if found.degrees is not None:
        factors = student.factors(square, found.degrees, x.shape[1])
    return (terms - totals[:, None]).exp(), totals, factors


def _moments(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape[1] == 0:
        return x.new_zeros(0), x.new_zeros(0, 0)
    return shrunk_moments(x, weight)


def _with_classes(x: Tensor, codes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows to cluster: numbers, and a unit vector for each class, zero where it is missing."""
    vectors = [
        (~code.isnan()).unsqueeze(1) * nn.functional.one_hot(code.nan_to_num(0.0).long(), size)
        for code, size in zip(codes.unbind(1), sizes, strict=True)
    ]
    return torch.cat([x, *(vector.to(x) for vector in vectors)], 1)


def _clustered(x: Tensor, components: int) -> Tensor:
    """Responsibilities ``(N, K)`` of clusters: k-means from far rows on (k-means++)."""
    centres = x[torch.randint(len(x), (1,), device=x.device)]
    while len(centres) < components:
        nearest = torch.cdist(x, centres).square().amin(1)
        if not nearest.sum() > 0:
            nearest = torch.ones_like(nearest)
        centres = torch.cat([centres, x[torch.multinomial(nearest, 1)]])
    for _ in range(KMEANS_STEPS):
        member = nn.functional.one_hot(torch.cdist(x, centres).argmin(1), components).to(x)
        count = member.sum(0).unsqueeze(1)
        centres = torch.where(count > 0, member.T @ x / count.clamp(min=1), centres)
    return member


def _without_tails(
    x: Tensor, weight: Tensor, prior: tuple[Tensor, Tensor, float], degrees: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of rows with the weights that a single t gives them.

    Those of all rows are without bound where tails are heavy, and no prior for the matrix of a t.
    """
    found, _ = maximised(x, weight, torch.ones_like(weight)[:, None], prior, degrees=degrees)
    assert found.degrees is not None
    u, _ = student.factors(_terms(x, found)[1], found.degrees, x.shape[1])
    return _moments(x, weight * u.squeeze(1))


def maximised(
    x: Tensor,
    weight: Tensor,
    member: Tensor,
    prior: tuple[Tensor, Tensor, float],
    *,
    max_steps: int = MAX_STEPS,
    degrees: Tensor | None = None,
    stop: Stop | None = None,
    u: Tensor | None = None,
) -> tuple[Parameters, float]:
    """Iterate expectation and maximisation; return the parameters, and their mean log-likelihood.

    :param member: the responsibilities ``(N, K)`` to start from.
    :param prior: mean of the means, mean of the covariances, and the rows that the latter is worth.
    :param degrees: of freedom ``(K,)`` to start from; None for Gaussians.
    :param stop: asked after each step whether the time is over.
    :param u: factors of t's ``(N, K)`` to start from; 1 by default.
    """
    before, (centre, spread, worth) = -math.inf, prior
    u = torch.ones_like(member) if u is None else u
    for _ in range(max_steps):
        member = weight.unsqueeze(1) * member
        count, pull = member.sum(0), member * u
        means = pull.T @ x + expectation.CENTRE_ROWS * centre
        means = means / (pull.sum(0) + expectation.CENTRE_ROWS).unsqueeze(1)
        centred = x - means.unsqueeze(1)
        scatter = (pull.T.unsqueeze(-1) * centred).mT @ centred
        covariance = (scatter + worth * spread) / (count + worth).view(-1, 1, 1)
        log_weights = ((count + 1) / (count + 1).sum()).log()
        found = Parameters(log_weights, means, precision_factor(covariance), degrees)
        member, totals, (u, log_u) = _expected(x, found)
        value = float(weight @ totals / weight.sum())
        if value - before < GAIN or (stop is not None and stop()):
            break
        before = value
        if degrees is not None:
            some = (weight @ member).clamp(min=torch.finfo(x.dtype).tiny)
            means_of_u = (weight @ (member * part) / some for part in (u, log_u))
            degrees = student.likeliest(*means_of_u)
    return found, value
