"""Models of one response: linear and generalised linear, counts, survival, missing values."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import OrderedTransform
from scipy import stats
from scipy.special import expit
from torch import Tensor
from zoo_case import case, gaussian, quadrature, real, whole

_rng = np.random.default_rng(1)
T = np.linspace(-1, 1, 20)
Y = 1 + 2 * T + 0.3 * _rng.normal(size=20)
X = np.stack([np.ones(20), T], 1)
HEADS = (_rng.uniform(size=20) < expit(0.5 + 2 * T)).astype(float)
COUNTS = _rng.poisson(np.exp(0.5 + T))
X4 = _rng.normal(size=(15, 4))
Y4 = X4 @ [1.5, 0.0, 0.0, -1.0] + 0.5 * _rng.normal(size=15)
WAITS = 2 * _rng.weibull(1.5, size=18)
SEEN = WAITS < 2.5
WAITS = np.minimum(WAITS, 2.5)


def line(prior_sd: float, noise: float | np.ndarray) -> float:
    return gaussian(Y, prior_sd**2 * X @ X.T + noise**2 * np.eye(20))


@case(lambda: real(T, Y), evidence=lambda: line(3, 0.3))
def coefficient_vector(t: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("rows", len(t)):
        pyro.sample("y", dist.Normal(b[0] + b[1] * t, 0.3), obs=y)


@case(lambda: real(X, Y), evidence=lambda: line(3, 0.3))
def matrix_product(X: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(X)):
        pyro.sample("y", dist.Normal(X @ b, 0.3), obs=y)


def _unknown_noise() -> float:
    s = np.geomspace(0.05, 3, 400)
    return quadrature(lambda s: line(2, s[..., None, None]) + stats.halfnorm.logpdf(s), s)


@case(lambda: real(X, Y), evidence=_unknown_noise)
def unknown_noise(X: Tensor, y: Tensor) -> None:
    """Neither plates nor to_event, but for the coefficients."""
    b = pyro.sample("b", dist.MultivariateNormal(torch.zeros(2), 4.0 * torch.eye(2)))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(torch.matmul(X, b), sigma).to_event(1), obs=y)


def priors(a: np.ndarray, b: np.ndarray, sd: float = 2.0) -> np.ndarray:
    return stats.norm.logpdf(a, 0, sd) + stats.norm.logpdf(b, 0, sd)


def _logistic() -> float:
    def log_density(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        eta = a[..., None] + b[..., None] * T
        return priors(a, b) + (HEADS * eta - np.logaddexp(0, eta)).sum(-1)

    return quadrature(log_density, np.linspace(-6, 8, 201), np.linspace(-6, 14, 201))


@case(lambda: real(X, HEADS), evidence=_logistic)
def logistic(X: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 2 * torch.ones(2)).to_event(1))
    with pyro.plate("data", X.shape[0]):
        pyro.sample("y", dist.Bernoulli(logits=(X * beta).sum(-1)), obs=y)


def _probit() -> float:
    def log_density(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        eta = a[..., None] + b[..., None] * T
        return priors(a, b, 1.0) + stats.norm.logcdf(np.where(HEADS, eta, -eta)).sum(-1)

    return quadrature(log_density, np.linspace(-5, 5, 201), np.linspace(-5, 6, 201))


@case(lambda: real(T, HEADS), evidence=_probit)
def probit(t: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    p = dist.Normal(0.0, 1.0).cdf(a + b * t)
    with pyro.plate("data", len(t)):
        pyro.sample("y", dist.Bernoulli(p), obs=y)


def _poisson() -> float:
    def log_density(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        rate = np.exp(a[..., None] + b[..., None] * T)
        return priors(a, b) + stats.poisson.logpmf(COUNTS, rate).sum(-1)

    return quadrature(log_density, np.linspace(-3, 3, 301), np.linspace(-3, 4, 301))


@case(lambda: real(T) + whole(COUNTS), evidence=_poisson)
def poisson(t: Tensor, count: Tensor) -> None:
    """Counts as whole numbers."""
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(t)):
        pyro.sample("count", dist.Poisson(torch.exp(a + b * t)), obs=count)


def _negative_binomial() -> float:
    def log_density(a: np.ndarray, b: np.ndarray, r: np.ndarray) -> np.ndarray:
        logs = priors(a, b) + stats.gamma.logpdf(r, 2)
        for t, n in zip(T, COUNTS, strict=True):
            logs = logs + stats.nbinom.logpmf(n, r, 1 / (1 + np.exp(a + b * t)))
        return logs

    return quadrature(
        log_density, np.linspace(-5, 4, 46), np.linspace(-4, 6, 46), np.geomspace(0.02, 25, 161)
    )


@case(lambda: real(T, COUNTS), evidence=_negative_binomial)
def negative_binomial(t: Tensor, count: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    r = pyro.sample("r", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(t)):
        pyro.sample("count", dist.NegativeBinomial(r, logits=a + b * t), obs=count)


@case(lambda: real(X4, Y4))
def robust(X: Tensor, y: Tensor) -> None:
    w = pyro.sample("w", dist.Laplace(torch.zeros(4), 1.0).to_event(1))
    df = pyro.sample("df", dist.Gamma(2.0, 0.1))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.StudentT(df, X @ w, scale), obs=y)


@case(lambda: real(T, np.exp(Y / 3)))
def gamma_response(t: Tensor, y: Tensor) -> None:
    """Gamma with a logarithmic link, one site a coefficient."""
    a = pyro.sample("a", dist.Cauchy(0.0, 1.0))
    b = pyro.sample("b", dist.StudentT(4.0, 0.0, 1.0))
    shape = pyro.sample("shape", dist.LogNormal(1.0, 1.0))
    with pyro.plate("rows", len(t)):
        pyro.sample("y", dist.Gamma(shape, shape / (a + b * t).exp()), obs=y)


@case(lambda: real(T, expit(Y)))
def beta_response(t: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 2.0).expand([2]))
    phi = pyro.sample("phi", dist.InverseGamma(2.0, 10.0))
    mean = torch.sigmoid(b[0] + b[1] * t)
    with pyro.plate("rows", len(t)):
        pyro.sample("y", dist.Beta(mean * phi, (1 - mean) * phi), obs=y)


@case(lambda: real(T, Y * (1 + T**2)))
def heteroscedastic(t: Tensor, y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    design = torch.stack([torch.ones_like(t), t], -1)
    with pyro.plate("rows", len(t)):
        pyro.sample("y", dist.Normal(design @ mean, (design @ scale).exp()), obs=y)


@case(lambda: real(X4) + whole([0, 1, 2, 2, 1, 0, 0, 2, 1, 1, 0, 2, 0, 1, 2]))
def softmax(X: Tensor, kind: Tensor) -> None:
    W = pyro.sample("W", dist.Normal(torch.zeros(4, 3), 1.0).to_event(2))
    with pyro.plate("rows", len(X)):
        pyro.sample("kind", dist.Categorical(logits=X @ W), obs=kind)


@case(lambda: real(T) + whole(np.digitize(Y, [0, 1, 2.5])), vmap=False)
def ordered_response(t: Tensor, level: Tensor) -> None:
    """Cut points in order, by a transform of unordered ones."""
    b = pyro.sample("b", dist.Normal(0.0, 3.0))
    base = dist.Normal(torch.zeros(3), 4.0).to_event(1)
    cuts = pyro.sample("cuts", dist.TransformedDistribution(base, [OrderedTransform()]))
    with pyro.plate("rows", len(t)):
        pyro.sample("level", dist.OrderedLogistic(b * t, cuts), obs=level)


def _zero_inflated() -> float:
    def log_density(gate: np.ndarray, rate: np.ndarray) -> np.ndarray:
        logs = stats.beta.logpdf(gate, 2, 2) + stats.gamma.logpdf(rate, 2, scale=2)
        for n in ZEROS:
            logs = logs + np.log(gate * (n == 0) + (1 - gate) * stats.poisson.pmf(n, rate))
        return logs

    return quadrature(log_density, np.linspace(1e-6, 1 - 1e-6, 401), np.linspace(1e-6, 14, 401))


ZEROS = np.array([0, 3, 0, 0, 5, 2, 0, 4])


@case(lambda: whole(ZEROS), evidence=_zero_inflated)
def zero_inflated(count: Tensor) -> None:
    gate = pyro.sample("gate", dist.Beta(2.0, 2.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
    with pyro.plate("rows", len(count)):
        pyro.sample("count", dist.ZeroInflatedPoisson(rate, gate=gate), obs=count)


@case(lambda: real(X4, Y4))
def horseshoe(X: Tensor, y: Tensor) -> None:
    tau = pyro.sample("tau", dist.HalfCauchy(0.1))
    with pyro.plate("features", X.shape[1]):
        lam = pyro.sample("lam", dist.HalfCauchy(1.0))
        w = pyro.sample("w", dist.Normal(0.0, lam * tau))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(X @ w, sigma).to_event(1), obs=y)


@case(lambda: real(X4, Y4))
def regularised_horseshoe(X: Tensor, y: Tensor) -> None:
    D = X.shape[1]
    tau = pyro.sample("tau", dist.HalfCauchy(torch.tensor(0.1)))
    c2 = pyro.sample("c2", dist.InverseGamma(2.0, 4.0))
    lam = pyro.sample("lam", dist.HalfCauchy(torch.ones(D)).to_event(1))
    z = pyro.sample("z", dist.Normal(torch.zeros(D), torch.ones(D)).to_event(1))
    w = z * tau * lam * torch.sqrt(c2 / (c2 + tau**2 * lam**2))
    pyro.deterministic("w", w)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(X.mv(w), 0.5), obs=y)


def _double() -> float:
    def log_density(mu: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        logs = stats.norm.logpdf(mu, 0, 5) + stats.halfcauchy.logpdf(sigma, scale=2)
        return logs + sum(stats.norm.logpdf(y, mu, sigma) for y in Y)

    return quadrature(log_density, np.linspace(-4, 6, 401), np.geomspace(0.4, 10, 401))


@case(lambda: (torch.tensor(Y),), evidence=_double)
def double_data(y: Tensor) -> None:
    """Data in float64, whatever the dtype of the latents."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def _copula() -> float:
    z = stats.norm.ppf(stats.expon.cdf(PAIRS))

    def log_density(rho: np.ndarray) -> np.ndarray:
        joint = np.eye(2) + rho[..., None, None] * (1 - np.eye(2))
        logs = sum(gaussian(pair, joint) - stats.norm.logpdf(pair).sum() for pair in z)
        return logs + stats.expon.logpdf(PAIRS).sum() - np.log(2)

    return quadrature(log_density, np.linspace(-0.999, 0.999, 801))


PAIRS = -np.log(stats.norm.sf(_rng.normal(size=(12, 2)) @ [[1, 0.7], [0, 0.7]]))


@case(lambda: real(PAIRS), evidence=_copula)
def copula(y: Tensor) -> None:
    """Two exponential margins joined by a Gaussian copula."""
    rho = pyro.sample("rho", dist.Uniform(-1.0, 1.0))
    margin, normal = dist.Exponential(torch.ones(())), dist.Normal(0.0, 1.0)
    z = normal.icdf(margin.cdf(y))
    off = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    joint = dist.MultivariateNormal(torch.zeros(2), torch.eye(2) + rho * off)
    with pyro.plate("rows", len(y)):
        density = joint.log_prob(z) - normal.log_prob(z).sum(-1)
        pyro.factor("pairs", density + margin.log_prob(y).sum(-1))


@case(lambda: real(T, Y))
def normal_inverse(t: Tensor, y: Tensor) -> None:
    """The posterior of the coefficients by hand, by solve, cholesky and inv in the model."""
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(3), 0.5).to_event(1))
    X = torch.stack([torch.ones_like(t), t, t**2], -1)
    precision = X.T @ X / 0.09 + torch.diag(scale**-2)
    L = torch.linalg.cholesky(precision)
    mean = torch.cholesky_solve((X.T @ y / 0.09)[:, None], L)[:, 0]
    beta = pyro.sample("beta", dist.MultivariateNormal(mean, torch.linalg.inv(precision)))
    ridge = torch.linalg.solve(precision, beta)
    pyro.sample("y", dist.Normal(X @ beta + 0.1 * ridge.sum(), 0.3).to_event(1), obs=y)


@case(lambda: real(T, Y))
def polynomial(t: Tensor, y: Tensor) -> None:
    """Coefficients in a list, put together by torch.stack."""
    b = [pyro.sample(f"b_{k}", dist.Normal(0.0, 2.0 / (k + 1))) for k in range(4)]
    powers = torch.stack([t**k for k in range(4)])
    mean = torch.stack(b) @ powers
    precision = pyro.sample("precision", dist.Gamma(2.0, 0.2))
    pyro.sample("y", dist.Normal(mean, precision.rsqrt()).to_event(1), obs=y)
