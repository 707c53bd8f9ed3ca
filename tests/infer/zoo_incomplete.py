"""Censored, truncated, missing and noisy data."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor
from zoo_case import case, gaussian, quadrature, real
from zoo_regression import SEEN, WAITS, T, Y, priors


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


def _errors_in_variables() -> float:
    noisy = T + 0.2 * np.sin(9 * T)

    def log_density(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        # x ~ N(0, 1), noisy ~ N(x, .3), y ~ N(a + b x, .3): a row is Gaussian given a and b
        variance = b**2 + 0.09 - b**2 / 1.09
        logs = priors(a, b) + stats.norm.logpdf(noisy, 0, np.sqrt(1.09)).sum()
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
