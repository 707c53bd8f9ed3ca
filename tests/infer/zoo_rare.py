"""Distributions, supports and scales that are seldom met."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from scipy import stats
from scipy.special import gammaln
from torch import Tensor
from zoo_case import case, gaussian, one, quadrature, real

_rng = np.random.default_rng(13)
Y = 1.3 + _rng.normal(size=6)
ONES = np.ones((6, 6))
WIDE = gaussian(Y, 9 * ONES + np.eye(6))
COUNTS = np.array([0, 0, 3, 0, 7, 2, 0, 5])
POSITIVE = np.exp(Y)
MATRIX = _rng.normal(size=(3, 2))
GROUPS = np.array([[3, 5, 2], [1, 7, 2], [4, 4, 2]])


@case(lambda: real(COUNTS))
def zero_inflated_negative_binomial(count: Tensor) -> None:
    gate = pyro.sample("gate", dist.Beta(2.0, 2.0))
    total = pyro.sample("total", dist.Gamma(2.0, 0.5))
    logits = pyro.sample("logits", dist.Normal(0.0, 1.0))
    law = dist.ZeroInflatedNegativeBinomial(total, logits=logits, gate=gate)
    with pyro.plate("rows", len(count)):
        pyro.sample("count", law, obs=count)


def _log_line() -> float:
    return WIDE - float(Y.sum())


@case(lambda: real(POSITIVE), evidence=_log_line)
def transformed_response(y: Tensor) -> None:
    """The data through a chain of transforms, one of them with a latent in it."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    law = dist.TransformedDistribution(
        dist.Normal(torch.zeros(len(y)).to(y), 1.0),
        [T.AffineTransform(mu, 1.0), T.ExpTransform()],
    )
    with pyro.plate("rows", len(y)):
        pyro.sample("y", law, obs=y)


@case(lambda: real(Y), evidence=lambda: WIDE)
def unit_as_factor(y: Tensor) -> None:
    """dist.Unit without an observation carries a likelihood, as pyro.factor does."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    log_p = dist.Normal(mu, 1.0).log_prob(y).sum()
    pyro.sample("likelihood", dist.Unit(log_p), obs=torch.empty(0, dtype=y.dtype))


@case(lambda: real(Y), evidence=lambda: WIDE)
def delta_with_density(y: Tensor) -> None:
    """A latent fixed by a Delta at a function of another one, with a density of its own."""
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    twice = pyro.sample("twice", dist.Delta(2 * mu, log_density=one(0.0)),
                        obs=2 * mu)  # fmt: skip
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(twice / 2, 1.0), obs=y)


@case(lambda: real(MATRIX), evidence=lambda: gaussian(MATRIX.ravel(), 2 * np.eye(6)))
def matrix_of_normals(y: Tensor) -> None:
    """A latent with two event dimensions."""
    m = pyro.sample("m", dist.Normal(torch.zeros(3, 2).to(y), 1.0).to_event(2))
    pyro.sample("y", dist.Normal(m, 1.0).to_event(2), obs=y)


def _beyond() -> float:
    def log_density(mu: np.ndarray) -> np.ndarray:
        return stats.truncnorm.logpdf(mu, 1, np.inf) + stats.norm.logpdf(Y, mu[..., None]).sum(-1)

    return quadrature(log_density, np.linspace(1 + 1e-12, 8, 4001))


@case(lambda: real(Y), evidence=_beyond)
def truncated_prior(y: Tensor) -> None:
    """A normal cut off on the left: a flat stretch by Uniform and its inverse distribution."""
    low = float(stats.norm.cdf(1.0))
    p = pyro.sample("p", dist.Uniform(one(low), 1.0))
    mu = pyro.deterministic("mu", math.sqrt(2) * torch.erfinv(2 * p - 1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def _narrow() -> float:
    def log_density(a: np.ndarray) -> np.ndarray:
        return stats.norm.logpdf(Y, 1e6 * (a[..., None] - 2)).sum(-1) + math.log(1e5)

    return quadrature(log_density, np.linspace(2, 2 + 1e-5, 4001))


@case(lambda: (torch.tensor(Y),), evidence=_narrow)
def tiny_range(y: Tensor) -> None:
    """A uniform prior on a range of 1e-5, in double precision."""
    a = pyro.sample("a", dist.Uniform(torch.tensor(2.0, dtype=torch.double), 2 + 1e-5))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(1e6 * (a - 2), 1.0), obs=y)


@case(lambda: real(Y), evidence=lambda: gaussian(Y, (1 + 4 + 9) * ONES + np.eye(6)))
def huge_and_tiny(y: Tensor) -> None:
    """Latents of the sizes 1e6 and 1e-6 beside one of size 1."""
    big = pyro.sample("big", dist.Normal(0.0, 1e6))
    small = pyro.sample("small", dist.Normal(0.0, 2e-6))
    mid = pyro.sample("mid", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(big / 1e6 + small * 1e6 + mid, 1.0), obs=y)


def _far() -> float:
    def log_density(s: np.ndarray) -> np.ndarray:
        return stats.lognorm.logpdf(s, 0.1, scale=2e6) + stats.expon.logpdf(3e6, scale=s)

    return quadrature(log_density, np.linspace(1e6, 4e6, 4001))


@case(lambda: real(3e6), evidence=_far)
def salaries(y: Tensor) -> None:
    """A scale of two millions, tight, in the units of the data."""
    s = pyro.sample("s", dist.LogNormal(math.log(2e6), 0.1))
    pyro.sample("y", dist.Exponential(1 / s), obs=y)


def _dirichlet_multinomial() -> float:
    def log_density(a: np.ndarray) -> np.ndarray:
        logs = stats.lognorm.logpdf(a, 1)
        for row in GROUPS:
            n = row.sum()
            logs = logs + gammaln(n + 1) - gammaln(row + 1).sum() + gammaln(3 * a)
            logs = logs - gammaln(n + 3 * a) - 3 * gammaln(a)
            logs = logs + gammaln(row + a[..., None]).sum(-1)
        return logs

    return quadrature(log_density, np.geomspace(1e-3, 200, 4001))


@case(lambda: real(GROUPS), evidence=_dirichlet_multinomial)
def dirichlet_multinomial(counts: Tensor) -> None:
    a = pyro.sample("a", dist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", len(counts)):
        law = dist.DirichletMultinomial(a * torch.ones(3).to(counts), 10)
        pyro.sample("counts", law, obs=counts)


@case(lambda: real(Y))
def logistic_normal_weights(y: Tensor) -> None:
    """A simplex by LogisticNormal, mixture weights of a MixtureSameFamily."""
    law = dist.LogisticNormal(torch.zeros(2).to(y), torch.ones(2).to(y))
    weights = pyro.sample("weights", law)
    parts = dist.Normal(torch.tensor([-1.0, 1.0, 3.0]).to(y), 1.0)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=y)


@case(lambda: real(Y))
def relaxed_switches(y: Tensor) -> None:
    """Relaxed Bernoulli and one-hot latents."""
    on = pyro.sample("on", dist.RelaxedBernoulli(one(0.7), one(0.4)))
    which = pyro.sample("which", dist.RelaxedOneHotCategorical(one(0.8), torch.ones(3).to(y) / 3))
    mean = on * (which * torch.tensor([0.0, 1.0, 2.0]).to(y)).sum(-1)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@case(lambda: real(Y))
def laws_of_pyro(y: Tensor) -> None:
    """Skewed and heavy-tailed laws that only Pyro has, as priors and for the data."""
    a = pyro.sample("a", dist.AsymmetricLaplace(one(0.0), 1.0, 2.0))
    b = pyro.sample("b", dist.SoftAsymmetricLaplace(one(0.0), 1.0, 1.5))
    c = pyro.sample("c", dist.Logistic(one(0.0), 1.0))
    d = pyro.sample("d", dist.SoftLaplace(one(0.0), 1.0))
    e = pyro.sample("e", dist.SkewLogistic(one(0.0), 1.0, 0.7))
    w = pyro.sample("w", dist.AffineBeta(one(2.0), 3.0, -1.0, 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(a + b - c + d - e + w, 1.0), obs=y)


@case(lambda: real(MATRIX))
def low_rank(y: Tensor) -> None:
    """Rows with a low-rank covariance of latents."""
    W = pyro.sample("W", dist.Normal(torch.zeros(2, 1).to(y), 1.0).to_event(2))
    noise = pyro.sample("noise", dist.HalfCauchy(torch.ones(2).to(y)).to_event(1))
    law = dist.LowRankMultivariateNormal(torch.zeros(2).to(y), W, noise**2 + 1e-4)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", law, obs=y)


@case(lambda: real(MATRIX))
def wide_correlations(y: Tensor) -> None:
    """LKJCholesky in a plate, with scales in a plate of another dimension."""
    with pyro.plate("groups", 2):
        L = pyro.sample("L", dist.LKJCholesky(2, one(2.0)))
        sd = pyro.sample("sd", dist.LogNormal(torch.zeros(2).to(y), 0.5).to_event(1))
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2).to(y), 1.0).to_event(1))
    law = dist.MultivariateNormal(loc, scale_tril=sd[..., None] * L)
    with pyro.plate("rows", len(y), dim=-2), pyro.plate("groups_", 2, dim=-1):
        pyro.sample("y", law, obs=y[:, None].expand(3, 2, 2))


@case(
    lambda: real(MATRIX),
    evidence=lambda: sum(gaussian(MATRIX[:, j], 5 * np.ones((3, 3)) + np.eye(3)) for j in range(2)),
)
def loop_inside_a_plate(y: Tensor) -> None:
    """A vectorised plate whose rows run through a sequential one inside."""
    with pyro.plate("columns", 2):
        mu = pyro.sample("mu", dist.Normal(0.0, 5**0.5))
        for i in pyro.plate("rows", 3):
            pyro.sample(f"y_{i}", dist.Normal(mu, 1.0), obs=y[i])


@case(lambda: real(Y))
def masked_mixture(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    nu = pyro.sample("nu", dist.Gamma(2.0, 1.0))
    law = dist.MaskedMixture(torch.arange(len(y)) % 2 == 0, dist.Normal(mu, 1.0).expand([len(y)]),
                             dist.StudentT(nu, mu, 1.0).expand([len(y)]))  # fmt: skip
    with pyro.plate("rows", len(y)):
        pyro.sample("y", law, obs=y)
