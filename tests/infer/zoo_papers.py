"""Models of papers, forums and other packages' manuals."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from pyro.infer.autoguide import init_to_value
from scipy import stats
from scipy.special import gammaln
from torch import Tensor
from zoo_case import case, one, quadrature, real, whole

_rng = np.random.default_rng(12)
RETURNS = _rng.normal(size=(12, 2)) @ np.array([[1.0, 0.6], [0.0, 0.8]])
EVENTS = np.array([0.3, 0.5, 0.6, 2.1, 2.2, 2.3, 2.7, 5.5, 5.9, 8.0])
WORDS = np.array([[5, 3, 0, 1], [4, 4, 1, 0], [0, 1, 6, 3], [1, 0, 3, 5]])
COUNTS = np.array([4, 6, 3, 8, 12, 9])
EDGES = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [0, 2], [3, 5]])
X = _rng.normal(size=(8, 3))
Z = X @ np.array([1.5, 0.0, -1.0]) + 0.5 * _rng.normal(size=8)


@case(lambda: real(X, Z), discrete=("in",))
@config_enumerate
def spike_and_slab(X: Tensor, y: Tensor) -> None:
    """Which coefficients are zero is enumerated one by one; they share a likelihood."""
    share = pyro.sample("share", dist.Beta(1.0, 1.0))
    b = pyro.sample("b", dist.Normal(torch.zeros(3).to(y), 1.0).to_event(1))
    used = pyro.sample("in", dist.Bernoulli(share))
    mean = used[..., None] * (X @ b)
    pyro.sample("y", dist.Normal(mean, 0.5).to_event(1), obs=y)


@case(lambda: (torch.tensor(EVENTS, dtype=torch.get_default_dtype()), 9.0))
def hawkes(times: Tensor, end: float) -> None:
    """A self-exciting process: its log-likelihood in the lower triangle of all pairs."""
    mu = pyro.sample("mu", dist.Gamma(2.0, 2.0))
    alpha = pyro.sample("alpha", dist.Beta(2.0, 2.0))
    beta = pyro.sample("beta", dist.Gamma(2.0, 1.0))
    gaps = times[:, None] - times
    before = torch.tril(torch.ones_like(gaps), -1).bool()
    excited = torch.where(before, alpha * beta * torch.exp(-beta * gaps.clamp(min=0)), 0.0)
    log_rates = torch.log(mu + excited.sum(-1)).sum()
    total = mu * end + alpha * (1 - torch.exp(-beta * (end - times))).sum()
    pyro.factor("events", log_rates - total)


@case(lambda: real(RETURNS))
def dcc_garch(returns: Tensor) -> None:
    """Two series with changing variances and a changing correlation, step by step."""
    with pyro.plate("series", 2):
        omega = pyro.sample("omega", dist.HalfNormal(1.0))
        shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3).to(returns)))
    a, b = shares[..., 0], shares[..., 1]
    mix = pyro.sample("mix", dist.Dirichlet(torch.tensor([1.0, 4.0, 1.0]).to(returns)))
    rho = pyro.sample("rho", dist.Uniform(-1.0, 1.0))
    target = torch.stack([torch.stack([torch.ones_like(rho), rho]),
                          torch.stack([rho, torch.ones_like(rho)])])  # fmt: skip
    variance, Q = torch.ones(2).to(returns), target
    for t in range(len(returns)):
        scale = Q.diagonal().rsqrt()
        R = Q * scale[:, None] * scale
        sd = variance.sqrt()
        law = dist.MultivariateNormal(torch.zeros(2).to(returns), sd[:, None] * R * sd)
        pyro.sample(f"r_{t}", law, obs=returns[t])
        z = returns[t] / sd
        Q = mix[2] * target + mix[0] * torch.outer(z, z) + mix[1] * Q
        variance = omega + a * returns[t] ** 2 + b * variance


@case(lambda: real(WORDS), vmap=False)
def topics_marginalised(words: Tensor) -> None:
    """Latent Dirichlet allocation with its topics summed out, a multinomial for each document."""
    with pyro.plate("topics", 2):
        phi = pyro.sample("phi", dist.Dirichlet(torch.ones(4).to(words)))
    with pyro.plate("documents", len(words)):
        theta = pyro.sample("theta", dist.Dirichlet(torch.ones(2).to(words)))
        pyro.sample("words", dist.Multinomial(probs=theta @ phi, validate_args=False), obs=words)


@case(lambda: (*real(COUNTS), *whole(EDGES)))
def car_prior(count: Tensor, edges: Tensor) -> None:
    """A proper conditional autoregression, by its precision matrix, for counts of districts."""
    n = len(count)
    W = torch.zeros(n, n).to(count)
    W[edges[:, 0], edges[:, 1]] = 1.0
    W = W + W.T
    tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
    alpha = pyro.sample("alpha", dist.Uniform(0.0, 1.0))
    level = pyro.sample("level", dist.Normal(1.5, 1.0))
    precision = tau * (torch.diag(W.sum(1)) - alpha * W)
    phi = pyro.sample("phi", dist.MultivariateNormal(torch.zeros(n).to(count),
                                                     precision_matrix=precision))  # fmt: skip
    with pyro.plate("districts", n):
        pyro.sample("count", dist.Poisson((level + phi).exp()), obs=count)


@case(
    lambda: (*real(COUNTS), *whole(EDGES)),
    nuts=lambda: {
        "max_plate_nesting": 1,
        "init_strategy": init_to_value(values={"phi": one(np.zeros(6)), "level": one(1.5)}),
    },
)
def intrinsic_car(count: Tensor, edges: Tensor) -> None:
    """Stan's ICAR: a flat prior, differences of neighbours and a soft sum to zero by factors."""
    n = len(count)
    phi = pyro.sample("phi", dist.ImproperUniform(dist.constraints.real_vector, (), (n,)))
    pyro.factor("neighbours", -0.5 * (phi[edges[:, 0]] - phi[edges[:, 1]]).square().sum())
    pyro.factor("centre", dist.Normal(0.0, 0.001 * n).log_prob(phi.sum()))
    level = pyro.sample("level", dist.Normal(1.5, 1.0))
    with pyro.plate("districts", n):
        pyro.sample("count", dist.Poisson((level + phi).exp()), obs=count)


def _student() -> float:
    def log_density(a: np.ndarray, s: np.ndarray) -> np.ndarray:
        a, s = np.broadcast_arrays(a, s)
        prior = stats.norm.logpdf(a) + stats.halfnorm.logpdf(s)
        d2 = ((Z - a[..., None]) ** 2).sum(-1) / s**2
        n, nu = len(Z), 5.0
        top = gammaln((nu + n) / 2) - gammaln(nu / 2) - n / 2 * np.log(nu * np.pi) - n * np.log(s)
        return prior + top - (nu + n) / 2 * np.log1p(d2 / nu)

    return quadrature(log_density, np.linspace(-5, 5, 401), np.linspace(0.01, 7, 500))


@case(lambda: real(Z), evidence=_student)
def multivariate_student(y: Tensor) -> None:
    """One draw of a multivariate t: its degrees of freedom are common to all rows."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    law = dist.MultivariateStudentT(5.0, a.expand(len(y)), s * torch.eye(len(y)).to(y))
    pyro.sample("y", law, obs=y)


@case(lambda: (*real(COUNTS), 50))
def compartments(cases: Tensor, population: int) -> None:
    """SIR in discrete time with binomial noise by its Gaussian limit, latents in a markov loop."""
    R0 = pyro.sample("R0", dist.LogNormal(0.5, 0.5))
    tau = pyro.sample("tau", dist.LogNormal(1.0, 0.3))
    rho = pyro.sample("rho", dist.Beta(10.0, 10.0))
    S, infected = torch.as_tensor(float(population - 5)).to(cases), torch.as_tensor(5.0).to(cases)
    for t in pyro.markov(range(len(cases))):
        p = -torch.expm1(-R0 / tau * infected / population)
        new = S * p + (S * p * (1 - p)).sqrt() * pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
        new = torch.minimum(new.clamp(min=1e-3), S - 1e-3)
        S, infected = S - new, infected * (1 - 1 / tau) + new
        pyro.sample(f"cases_{t}", dist.Poisson(rho * new), obs=cases[t])
