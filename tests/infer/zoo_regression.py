"""Models of one response: linear and generalised linear, counts, survival, missing values."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import OrderedTransform
from scipy import stats
from scipy.special import expit
from torch import Tensor
from zoo_case import built, case, gaussian, one, quadrature, real, whole

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


def _line(prior_sd: float, noise: float | np.ndarray) -> float:
    return gaussian(Y, prior_sd**2 * X @ X.T + noise**2 * np.eye(20))


@case(lambda: real(T, Y), evidence=lambda: _line(3, 0.3))
def coefficient_vector(t: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("rows", len(t)):
        pyro.sample("y", dist.Normal(b[0] + b[1] * t, 0.3), obs=y)


@case(lambda: real(X, Y), evidence=lambda: _line(3, 0.3))
def matrix_product(X: Tensor, y: Tensor) -> None:
    b = pyro.sample("b", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(X)):
        pyro.sample("y", dist.Normal(X @ b, 0.3), obs=y)


def _unknown_noise() -> float:
    s = np.geomspace(0.05, 3, 400)
    return quadrature(lambda s: _line(2, s[..., None, None]) + stats.halfnorm.logpdf(s), s)


@case(lambda: real(X, Y), evidence=_unknown_noise)
def unknown_noise(X: Tensor, y: Tensor) -> None:
    """Neither plates nor to_event, but for the coefficients."""
    b = pyro.sample("b", dist.MultivariateNormal(torch.zeros(2), 4.0 * torch.eye(2)))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(torch.matmul(X, b), sigma).to_event(1), obs=y)


def _priors(a: np.ndarray, b: np.ndarray, sd: float = 2.0) -> np.ndarray:
    return stats.norm.logpdf(a, 0, sd) + stats.norm.logpdf(b, 0, sd)


def _logistic() -> float:
    def log_density(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        eta = a[..., None] + b[..., None] * T
        return _priors(a, b) + (HEADS * eta - np.logaddexp(0, eta)).sum(-1)

    return quadrature(log_density, np.linspace(-6, 8, 201), np.linspace(-6, 14, 201))


@case(lambda: real(X, HEADS), evidence=_logistic)
def logistic(X: Tensor, y: Tensor) -> None:
    beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 2 * torch.ones(2)).to_event(1))
    with pyro.plate("data", X.shape[0]):
        pyro.sample("y", dist.Bernoulli(logits=(X * beta).sum(-1)), obs=y)


def _probit() -> float:
    def log_density(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        eta = a[..., None] + b[..., None] * T
        return _priors(a, b, 1.0) + stats.norm.logcdf(np.where(HEADS, eta, -eta)).sum(-1)

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
        return _priors(a, b) + stats.poisson.logpmf(COUNTS, rate).sum(-1)

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
        logs = _priors(a, b) + stats.gamma.logpdf(r, 2)
        for t, n in zip(T, COUNTS, strict=True):
            logs = logs + stats.nbinom.logpmf(n, r, 1 / (1 + np.exp(a + b * t)))
        return logs

    return quadrature(
        log_density, np.linspace(-5, 4, 81), np.linspace(-4, 6, 81), np.geomspace(0.05, 20, 101)
    )


@case(lambda: real(T, COUNTS), evidence=_negative_binomial, slow=True)
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


def _survival() -> float:
    def log_density(scale: np.ndarray, shape: np.ndarray) -> np.ndarray:
        logs = stats.lognorm.logpdf(scale, 1) + stats.gamma.logpdf(shape, 2)
        for t, seen in zip(WAITS, SEEN, strict=True):
            logs = logs + (
                stats.weibull_min.logpdf(t, shape, scale=scale)
                if seen
                else stats.weibull_min.logsf(t, shape, scale=scale)
            )
        return logs

    return quadrature(log_density, np.geomspace(0.3, 15, 301), np.geomspace(0.1, 8, 301))


@case(lambda: (*real(WAITS), torch.tensor(SEEN)), evidence=_survival)
def censored_by_mask(wait: Tensor, seen: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
    life = dist.Weibull(scale, shape)
    with pyro.plate("rows", len(wait)):
        with poutine.mask(mask=seen):
            pyro.sample("wait", life, obs=wait)
        with poutine.mask(mask=~seen):
            pyro.factor("beyond", -((wait / scale) ** shape))


@case(lambda: real(WAITS[SEEN], WAITS[~SEEN]), evidence=_survival)
def censored_by_survival(died: Tensor, alive: Tensor) -> None:
    """The survivors by a Bernoulli of their survival function."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
    with pyro.plate("died", len(died)):
        pyro.sample("died_at", dist.Weibull(scale, shape), obs=died)
    survival = torch.exp(-((alive / scale) ** shape))
    with pyro.plate("alive", len(alive)):
        pyro.sample("alive_at", dist.Bernoulli(survival), obs=torch.ones(len(alive)))


def _truncated() -> float:
    y = np.abs(Y)

    def log_density(mu: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        logs = stats.norm.logpdf(mu, 0, 2) + stats.halfnorm.logpdf(sigma, scale=2)
        logs = logs - len(y) * stats.norm.logcdf(mu / sigma)
        return logs + sum(stats.norm.logpdf(value, mu, sigma) for value in y)

    return quadrature(log_density, np.linspace(-10, 6, 401), np.geomspace(0.2, 10, 401))


@case(lambda: real(np.abs(Y)), evidence=_truncated)
def truncated_by_factor(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)
        pyro.factor("above_zero", -dist.Normal(0.0, 1.0).cdf(mu / sigma).log().expand(len(y)))


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


def _errors_in_variables() -> float:
    noisy = T + 0.2 * np.sin(9 * T)

    def log_density(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        # x ~ N(0, 1), noisy ~ N(x, .3), y ~ N(a + b x, .3): a row is Gaussian given a and b
        variance = b**2 + 0.09 - b**2 / 1.09
        logs = _priors(a, b) + stats.norm.logpdf(noisy, 0, np.sqrt(1.09)).sum()
        for x, y in zip(noisy, Y, strict=True):
            logs = logs + stats.norm.logpdf(y, a + b * x / 1.09, np.sqrt(variance))
        return logs

    return quadrature(log_density, np.linspace(-2, 4, 201), np.linspace(-3, 7, 201))


@case(lambda: real(T + 0.2 * np.sin(9 * T), Y), evidence=_errors_in_variables)
def errors_in_variables(noisy: Tensor, y: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(y)):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("noisy", dist.Normal(x, 0.3), obs=noisy)
        pyro.sample("y", dist.Normal(a + b * x, 0.3), obs=y)


PRESENT = np.arange(20) % 3 > 0


def _missing() -> float:
    X, y = np.stack([np.ones(20), T], 1)[PRESENT], Y[PRESENT]
    return gaussian(y, 9 * X @ X.T + 0.25 * np.eye(len(y)))


@case(
    lambda: (*real(T, np.where(PRESENT, Y, 0)), torch.tensor(PRESENT)),
    evidence=_missing,
    flat=("y_unobserved",),
)
def missing_by_obs_mask(x: Tensor, y: Tensor, seen: Tensor) -> None:
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    b = pyro.sample("b", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, 0.5), obs=y, obs_mask=seen)


@case(lambda: real(np.where(PRESENT, T, np.nan), Y), vmap=False)
def imputed_covariate(x: Tensor, y: Tensor) -> None:
    """NaN where a value is missing, filled with a latent by index assignment."""
    missing = torch.isnan(x)
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    fill = pyro.sample("fill", dist.Normal(mu, 1.0).expand([int(missing.sum())]).to_event(1))
    filled = x.clone()
    filled[missing] = fill
    b = pyro.sample("b", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("x", dist.Normal(mu, 1.0).mask(~missing), obs=filled.detach())
        pyro.sample("y", dist.Normal(b[0] + b[1] * filled, 0.5), obs=y)


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


@built(evidence=lambda: _line(1.0, 0.5))
def module_linear() -> tuple:
    """Pyro's tutorial on Bayesian regression: PyroModule[nn.Linear] with PyroSamples."""
    from pyro.nn import PyroModule, PyroSample

    class Regression(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = PyroModule[torch.nn.Linear](1, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))
            self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)
            return mean

    return Regression(), real(T[:, None], Y), {}


@built()
def module_network() -> tuple:
    """Two layers of nested modules, all weights with priors, and a noise of its own."""
    from pyro.nn import PyroModule, PyroSample

    class Layer(PyroModule):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight = PyroSample(dist.Normal(0.0, 1.0).expand([outputs, inputs]).to_event(2))
            self.bias = PyroSample(dist.Normal(0.0, 1.0).expand([outputs]).to_event(1))

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, self.weight, self.bias)

    class Network(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = Layer(1, 4), Layer(4, 1)
            self.noise = PyroSample(dist.Gamma(2.0, 4.0))

        def forward(self, x: Tensor, y: Tensor) -> None:
            mean = self.last(torch.tanh(self.first(x))).squeeze(-1)
            noise = self.noise
            with pyro.plate("data", len(x)):
                pyro.sample("obs", dist.Normal(mean, noise), obs=y)

    return Network(), real(T[:, None], np.sin(3 * T)), {}


@case(lambda: real(np.stack([T, T**2], 1), HEADS))
def network_by_hand(X: Tensor, y: Tensor) -> None:
    """A Bayesian neural network as in NumPyro's examples: matrices of weights, matmul, tanh."""
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(2, 3), torch.ones(2, 3)).to_event(2))
    b1 = pyro.sample("b1", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(3, 1), 1.0).to_event(2))
    logits = (torch.tanh(X @ w1 + b1) @ w2).squeeze(-1)
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


@built()
def module_sequential() -> tuple:
    """A network of torch, its weights lifted to priors in a loop over its modules."""
    from pyro.nn import PyroModule, PyroSample
    from pyro.nn.module import to_pyro_module_

    net = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    to_pyro_module_(net)
    for module in net.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            prior = dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim())
            setattr(module, name, PyroSample(prior))
    assert isinstance(net, PyroModule)

    def model(x: Tensor, y: Tensor) -> None:
        pyro.sample("y", dist.Normal(net(x)[..., 0], 0.3).to_event(1), obs=y)

    return model, real(T[:, None], np.abs(T)), {}


def _gp_regression() -> float:
    def log_density(variance: np.ndarray, length: np.ndarray) -> np.ndarray:
        v, s = variance[..., None, None], length[..., None, None]
        K = v * np.exp(-0.5 * ((T[:, None] - T) / s) ** 2) + 0.1 * np.eye(20)
        prior = stats.lognorm.logpdf(variance, 1) + stats.lognorm.logpdf(length, 1)
        return prior + gaussian(np.sin(3 * T), K)

    return quadrature(log_density, np.geomspace(0.02, 60, 121), np.geomspace(0.05, 20, 121))


@built(evidence=_gp_regression)
def gp_regression() -> tuple:
    """pyro.contrib.gp with priors on the kernel."""
    import pyro.contrib.gp as gp
    from pyro.nn import PyroSample

    kernel = gp.kernels.RBF(input_dim=1)
    kernel.variance = PyroSample(dist.LogNormal(0.0, 1.0))
    kernel.lengthscale = PyroSample(dist.LogNormal(0.0, 1.0))
    x, y = real(T, np.sin(3 * T))
    return gp.models.GPRegression(x, y, kernel, noise=one(0.1), jitter=1e-9).model, (), {}


@built()
def gp_sparse() -> tuple:
    """pyro.contrib.gp's sparse regression, whose approximation adds a factor."""
    import pyro.contrib.gp as gp
    from pyro.nn import PyroSample

    kernel = gp.kernels.Matern52(input_dim=1)
    kernel.lengthscale = PyroSample(dist.LogNormal(0.0, 0.5))
    x, y, inducing = real(T, np.sin(3 * T), np.linspace(-1, 1, 5))
    process = gp.models.SparseGPRegression(x, y, kernel, inducing, one(0.1), approx="VFE")
    process.noise = PyroSample(dist.LogNormal(-2.0, 0.5))
    return process.model, (), {}


@built()
def gp_classification() -> tuple:
    """A latent function with a kernel of pyro.contrib.gp, whitened by hand."""
    import pyro.contrib.gp as gp
    from pyro.nn import PyroModule, PyroSample

    class Classifier(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = gp.kernels.RBF(input_dim=1)
            self.kernel.variance = PyroSample(dist.LogNormal(0.0, 1.0))

        def forward(self, x: Tensor, y: Tensor) -> None:
            K = self.kernel(x) + 1e-4 * torch.eye(len(x))
            white = pyro.sample("white", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
            f = torch.linalg.cholesky(K) @ white
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Bernoulli(logits=f), obs=y)

    return Classifier(), real(T, HEADS), {}


@case(lambda: real(T, HEADS))
def gp_latent(t: Tensor, y: Tensor) -> None:
    length = pyro.sample("length", dist.InverseGamma(3.0, 2.0))
    K = torch.exp(-0.5 * ((t[:, None] - t) / length) ** 2) + 1e-3 * torch.eye(len(t))
    f = pyro.sample(
        "f", dist.MultivariateNormal(torch.zeros(len(t)), scale_tril=torch.linalg.cholesky(K))
    )
    with pyro.plate("data", len(t)):
        pyro.sample("y", dist.Bernoulli(logits=2 * f), obs=y)


@case(lambda: real(T, np.sin(3 * T)))
def gp_indefinite(t: Tensor, y: Tensor) -> None:
    """A kernel matrix that is not positive definite where the length is long."""
    length = pyro.sample("length", dist.LogNormal(-1.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(0.1))
    K = torch.exp(-0.5 * ((t[:, None] - t) / length) ** 2) + noise**4 * torch.eye(len(t))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(t)), K), obs=y)


@case(lambda: real(T, Y))
def polynomial(t: Tensor, y: Tensor) -> None:
    """Coefficients in a list, put together by torch.stack."""
    b = [pyro.sample(f"b_{k}", dist.Normal(0.0, 2.0 / (k + 1))) for k in range(4)]
    powers = torch.stack([t**k for k in range(4)])
    mean = torch.stack(b) @ powers
    precision = pyro.sample("precision", dist.Gamma(2.0, 0.2))
    pyro.sample("y", dist.Normal(mean, precision.rsqrt()).to_event(1), obs=y)
