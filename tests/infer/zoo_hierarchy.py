"""Groups, plates, priors and supports: hierarchical and conjugate models."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from scipy.special import betaln, gammaln
from torch import Tensor
from zoo_case import case, gaussian, one, quadrature, real, whole

_rng = np.random.default_rng(2)
SCHOOLS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
ERRORS = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
GROUP = np.arange(18) % 4
EFFECT = np.array([0.5, -1.0, 2.0, 0.0])
Y = EFFECT[GROUP] + 0.6 * _rng.normal(size=18)
X = _rng.normal(size=18)
HITS, AT_BATS = np.array([18, 14, 11, 9, 7, 12]), np.array([45, 45, 45, 40, 45, 45])


def _grouped() -> float:
    same = GROUP[:, None] == GROUP

    def log_density(tau: np.ndarray) -> np.ndarray:
        covariance = 1 + tau[..., None, None] ** 2 * same + 0.36 * np.eye(18)
        return gaussian(Y, covariance) + stats.halfnorm.logpdf(tau, scale=2)

    return quadrature(log_density, np.geomspace(0.005, 30, 400))


@case(lambda: (*real(Y), *whole(GROUP)), evidence=_grouped)
def group_index(y: Tensor, group: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    with pyro.plate("groups", 4):
        alpha = pyro.sample("alpha", dist.Normal(mu, tau))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(alpha[group], 0.6), obs=y)


def _schools() -> float:
    def log_density(tau: np.ndarray) -> np.ndarray:
        covariance = 25 + (tau[..., None, None] ** 2 + ERRORS**2) * np.eye(8)
        return gaussian(SCHOOLS, covariance) + stats.halfcauchy.logpdf(tau, scale=5)

    return quadrature(log_density, np.r_[np.linspace(0, 60, 601), np.geomspace(60.5, 1e5, 200)])


@case(lambda: real(SCHOOLS, ERRORS), evidence=_schools)
def schools_centred(y: Tensor, sigma: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@case(lambda: real(SCHOOLS, ERRORS), evidence=_schools)
def schools_non_centred(y: Tensor, sigma: Tensor) -> None:
    """As in Pyro's examples: every site a vector, no plate."""
    eta = pyro.sample("eta", dist.Normal(torch.zeros(8), torch.ones(8)))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(1), 5 * torch.ones(1)))
    tau = pyro.sample("tau", dist.HalfCauchy(scale=5 * torch.ones(1)))
    pyro.sample("obs", dist.Normal(mu + tau * eta, sigma), obs=y)


@case(lambda: (*real(X, Y), *whole(GROUP)))
def varying_slopes(x: Tensor, y: Tensor, group: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    sd = pyro.sample("sd", dist.HalfNormal(torch.ones(2)).to_event(1))
    L = pyro.sample("L", dist.LKJCholesky(2, 2.0))
    with pyro.plate("groups", 4):
        b = pyro.sample("b", dist.MultivariateNormal(mean, scale_tril=torch.diag(sd) @ L))
    sigma = pyro.sample("sigma", dist.HalfCauchy(1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(b[group, 0] + b[group, 1] * x, sigma), obs=y)


def _baseball() -> float:
    def log_density(m: np.ndarray, kappa: np.ndarray) -> np.ndarray:
        logs = stats.pareto.logpdf(kappa, 1.5)
        a, b = m * kappa, (1 - m) * kappa
        for hits, n in zip(HITS, AT_BATS, strict=True):
            choose = gammaln(n + 1) - gammaln(hits + 1) - gammaln(n - hits + 1)
            logs = logs + choose + betaln(a + hits, b + n - hits) - betaln(a, b)
        return logs

    return quadrature(log_density, np.linspace(1e-5, 1 - 1e-5, 401), np.geomspace(1, 1e6, 801))


@case(lambda: real(AT_BATS, HITS), evidence=_baseball)
def baseball(at_bats: Tensor, hits: Tensor) -> None:
    m = pyro.sample("m", dist.Uniform(0, 1))
    kappa = pyro.sample("kappa", dist.Pareto(1, 1.5))
    with pyro.plate("players", len(hits)):
        phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        pyro.sample("hits", dist.Binomial(at_bats, probs=phi), obs=hits)


ANSWERS = (_rng.uniform(size=(6, 5)) < 0.6).astype(float)


@case(lambda: real(ANSWERS))
def irt_1pl(answers: Tensor) -> None:
    people, items = answers.shape
    with pyro.plate("people", people):
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
    with pyro.plate("items", items):
        difficulty = pyro.sample("difficulty", dist.Normal(0.0, 2.0))
    logits = ability[:, None] - difficulty[None, :]
    pyro.sample("answers", dist.Bernoulli(logits=logits).to_event(2), obs=answers)


@case(lambda: (*whole(*np.nonzero(ANSWERS >= 0)), *real(ANSWERS.ravel())))
def irt_2pl(person: Tensor, item: Tensor, right: Tensor) -> None:
    """A long table of answers, as in Stan's manual."""
    with pyro.plate("people", 6):
        ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("items", 5):
        difficulty = pyro.sample("difficulty", dist.Normal(0.0, spread))
        slope = pyro.sample("slope", dist.LogNormal(0.0, 0.5))
    logits = slope[item] * (ability[person] - difficulty[item])
    with pyro.plate("answers", len(right)):
        pyro.sample("right", dist.Bernoulli(logits=logits), obs=right)


TABLE = 1.0 + _rng.normal(size=(3, 4))


def pupils_in_schools(variance: float) -> float:
    """Evidence of the table with pupils, rows of schools, whose own variance this is."""
    blocks = np.kron(1 + np.eye(3), np.ones((4, 4)))
    return gaussian(TABLE.ravel(), blocks + variance * np.eye(12))


def _crossed() -> float:
    row, column = np.divmod(np.arange(12), 4)
    blocks = (row[:, None] == row) + 2.25 * (column[:, None] == column)
    return gaussian(TABLE.ravel(), 4 + blocks + 0.25 * np.eye(12))


@case(lambda: real(TABLE), evidence=_crossed)
def crossed_plates(y: Tensor) -> None:
    rows = pyro.plate("rows", y.shape[0], dim=-2)
    columns = pyro.plate("columns", y.shape[1], dim=-1)
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with rows:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with columns:
        b = pyro.sample("b", dist.Normal(0.0, 1.5))
    with rows, columns:
        pyro.sample("y", dist.Normal(mu + a + b, 0.5), obs=y)


@case(lambda: real(TABLE), evidence=lambda: pupils_in_schools(1.25))
def nested_plates(y: Tensor) -> None:
    """Plates with no dim: the outer one is the last axis, so the table is turned."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("schools", 3):
        school = pyro.sample("school", dist.Normal(mu, 1.0))
        with pyro.plate("pupils", 4):
            pupil = pyro.sample("pupil", dist.Normal(school, 1.0))
            pyro.sample("y", dist.Normal(pupil, 0.5), obs=y.T)


@case(lambda: real(TABLE), evidence=lambda: pupils_in_schools(0.25))
def sequential_plate(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for i in pyro.plate("schools", 3):
        school = pyro.sample(f"school_{i}", dist.Normal(mu, 1.0))
        for j in pyro.plate(f"pupils_{i}", 4):
            pyro.sample(f"y_{i}_{j}", dist.Normal(school, 0.5), obs=y[i, j])


WISHART = _rng.normal(size=(10, 3)) @ [[1, 0.6, 0], [0, 0.8, 0.3], [0, 0, 2]]


@case(lambda: real(WISHART))
def lkj_covariance(y: Tensor) -> None:
    """Pyro's example lkj.py."""
    d = y.shape[1]
    theta = pyro.sample("theta", dist.HalfCauchy(torch.ones(d)).to_event(1))
    L_omega = pyro.sample("L_omega", dist.LKJCholesky(d, torch.tensor(1.5)))
    L = torch.mm(torch.diag(theta.sqrt()), L_omega)
    with pyro.plate("observations", len(y)):
        pyro.sample("obs", dist.MultivariateNormal(torch.zeros(d), scale_tril=L), obs=y)


@case(lambda: real(WISHART.T @ WISHART))
def scatter_matrix(scatter: Tensor) -> None:
    """The Wishart likelihood of a scatter matrix, its scale by LKJ and log-normal variances."""
    R = pyro.sample("R", dist.LKJ(3, 2.0))
    with pyro.plate("variables", 3):
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    covariance = s[:, None] * R * s
    fit = torch.trace(torch.linalg.solve(covariance, scatter))
    pyro.factor("wishart", -0.5 * (10 * torch.logdet(covariance) + fit))


@case(lambda: (*real(X, Y), *whole(GROUP)))
def radon(x: Tensor, y: Tensor, county: Tensor) -> None:
    """Varying intercepts with a predictor of the group, decentred by hand."""
    uranium = one([0.3, -0.6, 0.1, 0.2])
    gamma = pyro.sample("gamma", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    sigma_county = pyro.sample("sigma_county", dist.HalfCauchy(0.5))
    with pyro.plate("counties", 4) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        intercept = pyro.deterministic(
            "intercept", gamma[0] + gamma[1] * uranium[i] + sigma_county * z
        )
    sigma = pyro.sample("sigma", dist.Exponential(1.0))
    with pyro.plate("homes", len(y)) as home:
        mean = intercept[county[home]] + slope * x[home]
        pyro.sample("y", dist.Normal(mean, sigma), obs=y[home])
