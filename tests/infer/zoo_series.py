"""Series, state spaces and differential equations."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from pyro import poutine
from pyro.infer.reparam import (
    DiscreteCosineReparam,
    HaarReparam,
    LinearHMMReparam,
    StableReparam,
    StudentTReparam,
)
from scipy import stats
from torch import Tensor
from zoo_case import Model, built, case, gaussian, one, quadrature, real

_rng = np.random.default_rng(3)
WALK = np.cumsum(0.5 * _rng.normal(size=20))
Y = WALK + 0.3 * _rng.normal(size=20)
STEPS = np.arange(20)
RETURNS = np.exp(-1 + 0.4 * np.cumsum(_rng.normal(size=12))) * _rng.normal(size=12)
WAVE = np.sin(STEPS / 2) + 0.2 * _rng.normal(size=20)
CASES = np.array([3.0, 7, 14, 26, 38, 41, 30, 19, 11, 6])
HARES = np.array([30.0, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4])
LYNX = np.array([4.0, 6.1, 9.8, 35.2, 59.4, 41.7, 19.0, 13.0])


def _walk_covariance(n: int, step: float | np.ndarray, noise: float | np.ndarray) -> np.ndarray:
    t = np.arange(1, n + 1)
    step, noise = np.asarray(step)[..., None, None], np.asarray(noise)[..., None, None]
    return step**2 * np.minimum(t[:, None], t) + noise**2 * np.eye(n)


@case(lambda: real(Y), evidence=lambda: gaussian(Y, _walk_covariance(20, 0.5, 0.3)))
def state_space_loop(y: Tensor) -> None:
    """Twenty sites in a Python loop."""
    x = torch.zeros(())
    for t in range(len(y)):
        x = pyro.sample(f"x_{t}", dist.Normal(x, 0.5))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.3), obs=y[t])


def _ar_walk() -> float:
    def log_density(phi: np.ndarray) -> np.ndarray:
        s = np.arange(8)
        A = np.tril(phi[..., None, None] ** np.maximum(s[:, None] - s, 0))
        return gaussian(Y[:8], 0.25 * A @ A.mT + 0.09 * np.eye(8)) - np.log(2)

    return quadrature(log_density, np.linspace(-1, 1, 401))


@case(lambda: real(Y[:8]), evidence=_ar_walk)
def markov_loop(y: Tensor) -> None:
    """pyro.markov with nothing to enumerate."""
    phi = pyro.sample("phi", dist.Uniform(-1.0, 1.0))
    x = one(0.0)
    for t in pyro.markov(range(len(y))):
        x = pyro.sample(f"x_{t}", dist.Normal(phi * x, 0.5))
        pyro.sample(f"y_{t}", dist.Normal(x, 0.3), obs=y[t])


def _local_level() -> float:
    def log_density(step: np.ndarray, noise: np.ndarray) -> np.ndarray:
        prior = stats.lognorm.logpdf(step, 1) + stats.lognorm.logpdf(noise, 1)
        return prior + gaussian(Y, 1 + _walk_covariance(20, step, noise))

    return quadrature(log_density, np.geomspace(0.02, 8, 101), np.geomspace(0.02, 8, 101))


@case(lambda: real(Y[:, None]), evidence=_local_level)
def gaussian_hmm(y: Tensor) -> None:
    """dist.GaussianHMM with unknown scales; the first state is a step away from N(0, 1)."""
    step = pyro.sample("step", dist.LogNormal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    eye = torch.eye(1)
    init = dist.Normal(torch.zeros(1), 1.0).to_event(1)
    move = dist.Normal(torch.zeros(1), step).to_event(1)
    look = dist.Normal(torch.zeros(1), noise).to_event(1)
    hmm = dist.GaussianHMM(init, eye, move, eye, look, duration=len(y))
    pyro.sample("y", hmm, obs=y)


@case(lambda: real(CASES))
def gaussian_hmm_latent(count: Tensor) -> None:
    """dist.GaussianHMM as the prior of a latent path, seen through Poisson counts."""
    step = pyro.sample("step", dist.HalfNormal(1.0))
    eye = torch.eye(1)
    init = dist.Normal(torch.zeros(1), 3.0).to_event(1)
    move = dist.Normal(torch.zeros(1), step).to_event(1)
    look = dist.Normal(torch.zeros(1), 0.1).to_event(1)
    path = pyro.sample("path", dist.GaussianHMM(init, eye, move, eye, look, duration=len(count)))
    pyro.sample("count", dist.Poisson(path[..., 0].exp()).to_event(1), obs=count)


@built()
def linear_hmm() -> tuple:
    """dist.LinearHMM with heavy-tailed steps, by LinearHMMReparam."""

    def model(y: Tensor) -> None:
        step = pyro.sample("step", dist.LogNormal(-1.0, 1.0))
        eye = torch.eye(1)
        init = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        move = dist.StudentT(3.0, torch.zeros(1), step).to_event(1)
        look = dist.Normal(torch.zeros(1), 0.3).to_event(1)
        with poutine.reparam(config={"y": LinearHMMReparam(trans=StudentTReparam())}):
            pyro.sample("y", dist.LinearHMM(init, eye, move, eye, look, duration=len(y)), obs=y)

    return model, real(Y[:8, None]), {}


@built(vmap=False)
def stable_noise() -> tuple:
    """Steps with a stable law, by StableReparam."""

    def model(y: Tensor) -> None:
        stability = pyro.sample("stability", dist.Uniform(1.2, 1.9))
        scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
        with pyro.plate("times", len(y)):
            x = pyro.sample("x", dist.Stable(stability, 0.0, scale))
            pyro.sample("y", dist.Normal(x, 0.2), obs=y)

    return poutine.reparam(model, config={"x": StableReparam()}), real(np.diff(Y)[:8]), {}


def _ar2() -> float:
    lags = np.stack([Y[1:-1], Y[:-2]], 1)

    def log_density(sigma: np.ndarray) -> np.ndarray:
        covariance = lags @ lags.T + sigma[..., None, None] ** 2 * np.eye(18)
        return gaussian(Y[2:], covariance) + stats.halfnorm.logpdf(sigma)

    return quadrature(log_density, np.geomspace(0.05, 5, 300))


@case(lambda: real(Y), evidence=_ar2)
def ar2(y: Tensor) -> None:
    phi = pyro.sample("phi", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    mean = phi[0] * y[1:-1] + phi[1] * y[:-2]
    with pyro.plate("times", len(y) - 2):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y[2:])


@case(lambda: real(Y), evidence=lambda: gaussian(Y, _walk_covariance(20, 0.5, 0.3)))
def cumulative_sum(y: Tensor) -> None:
    with pyro.plate("times", len(y)):
        step = pyro.sample("step", dist.Normal(0.0, 0.5))
    x = step.cumsum(-1)
    pyro.sample("y", dist.Normal(x, 0.3).to_event(1), obs=y)


@case(lambda: real(Y[:6]), vmap=False)
def written_in_place(y: Tensor) -> None:
    """Latents written into a tensor of zeros, one element after another."""
    rho = pyro.sample("rho", dist.Beta(2.0, 2.0))
    eps = pyro.sample("eps", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
    x = torch.zeros(len(y))
    x[0] = eps[0]
    for t in range(1, len(y)):
        x[t] = rho * x[t - 1].clone() + 0.5 * eps[t]
    pyro.sample("y", dist.Normal(x, 0.3).to_event(1), obs=y)


@case(lambda: real(RETURNS))
def stochastic_volatility(y: Tensor) -> None:
    sigma = pyro.sample("sigma", dist.Exponential(5.0))
    nu = pyro.sample("nu", dist.Exponential(0.1))
    white = dist.Normal(0.0, torch.ones(len(y))).to_event(1)
    h = pyro.sample("h", dist.TransformedDistribution(white, T.AffineTransform(0.0, sigma)))
    h = h.cumsum(-1)
    pyro.sample("y", dist.StudentT(nu, 0.0, h.exp()).to_event(1), obs=y)


@case(lambda: real(RETURNS))
def garch(y: Tensor) -> None:
    """Variances by a recursion; the sum of two latents bounded by a dependent support."""
    omega = pyro.sample("omega", dist.HalfCauchy(1.0))
    alpha = pyro.sample("alpha", dist.Uniform(0.0, 1.0))
    beta = pyro.sample("beta", dist.Beta(2.0, 1.0)) * (1 - alpha)
    variance = [y.var()]
    for t in range(len(y) - 1):
        variance.append(omega + alpha * y[t] ** 2 + beta * variance[-1])
    with pyro.plate("times", len(y)):
        pyro.sample("y", dist.Normal(0.0, torch.stack(variance).sqrt()), obs=y)


def _smooth(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    white = dist.Normal(torch.zeros(len(y)), scale).to_event(1)
    step = pyro.sample("step", white)
    pyro.sample("y", dist.Normal(step.cumsum(-1), 0.3).to_event(1), obs=y)


def _smooth_evidence() -> float:
    def log_density(scale: np.ndarray) -> np.ndarray:
        prior = stats.lognorm.logpdf(scale, 0.5, scale=np.exp(-1))
        return prior + gaussian(Y[:16], _walk_covariance(16, scale, 0.3))

    return quadrature(log_density, np.geomspace(0.02, 8, 300))


@built(evidence=_smooth_evidence)
def cosine_reparam() -> tuple:
    return poutine.reparam(_smooth, config={"step": DiscreteCosineReparam()}), real(Y[:16]), {}


@built(evidence=_smooth_evidence)
def haar_reparam() -> tuple:
    return poutine.reparam(_smooth, config={"step": HaarReparam()}), real(Y[:16]), {}


@case(lambda: real(CASES))
def sir(cases: Tensor) -> None:
    """An epidemic by Euler steps, with negative binomial counts."""
    beta = pyro.sample("beta", dist.LogNormal(0.0, 0.5))
    gamma = pyro.sample("gamma", dist.LogNormal(-1.0, 0.5))
    i0 = pyro.sample("i0", dist.Beta(1.0, 50.0))
    s, i, new = 1 - i0, i0, []
    for _ in range(len(cases)):
        infected, recovered = beta * s * i, gamma * i
        s, i = s - infected, i + infected - recovered
        new.append(infected.clamp(min=1e-6))
    mean = 200 * torch.stack(new)
    conc = pyro.sample("conc", dist.Gamma(2.0, 0.2))
    with pyro.plate("days", len(cases)):
        pyro.sample("cases", dist.GammaPoisson(conc, conc / mean), obs=cases)


def _runge_kutta(field: Model, z: Tensor, step: float) -> Tensor:
    k1 = field(z)
    k2 = field(z + step / 2 * k1)
    k3 = field(z + step / 2 * k2)
    k4 = field(z + step * k3)
    return z + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


@case(lambda: real(np.stack([HARES, LYNX], 1)))
def lotka_volterra(data: Tensor) -> None:
    """Hares and lynxes by Runge-Kutta."""
    theta = pyro.sample(
        "theta",
        dist.LogNormal(
            one([0.5, -3.6, -0.2, -3.6]).expand([4]), one([0.5, 0.5, 0.5, 0.5])
        ).to_event(1),
    )
    start = pyro.sample("start", dist.LogNormal(one([3.4, 1.4]), 0.5).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1))

    def field(z: Tensor) -> Tensor:
        u, v = z
        return torch.stack([(theta[0] - theta[1] * v) * u, (theta[3] * u - theta[2]) * v])

    path = [start]
    for _ in range(2 * (len(data) - 1)):
        path.append(_runge_kutta(field, path[-1], 0.5))
    z = torch.stack(path)[::2].clamp(min=1e-6)
    with pyro.plate("years", len(data)):
        pyro.sample("data", dist.LogNormal(z.log(), sigma).to_event(1), obs=data)


def _decay() -> float:
    t = np.arange(1, 9)
    y = 5 * np.exp(-0.4 * t)

    def log_density(k: np.ndarray) -> np.ndarray:
        logs = stats.lognorm.logpdf(k, 1)
        z, h = 5.0 + 0 * k, 0.5
        for n in range(8):
            for _ in range(2):  # a linear field: one step of RK4 multiplies by a polynomial
                x = -k * h
                z = z * (1 + x + x**2 / 2 + x**3 / 6 + x**4 / 24)
            logs = logs + stats.norm.logpdf(y[n], z, 0.2)
        return logs

    return quadrature(log_density, np.geomspace(0.05, 3, 801))


@case(lambda: real(5 * np.exp(-0.4 * np.arange(1, 9))), evidence=_decay)
def decay(y: Tensor) -> None:
    k = pyro.sample("k", dist.LogNormal(0.0, 1.0))
    z, seen = one(5.0), []
    for _ in range(len(y)):
        for _ in range(2):
            z = _runge_kutta(lambda z: -k * z, z, 0.5)
        seen.append(z)
    pyro.sample("y", dist.Normal(torch.stack(seen), 0.2).to_event(1), obs=y)


@case(lambda: real(STEPS, WAVE))
def seasonal(t: Tensor, y: Tensor) -> None:
    """Trend and Fourier terms; a period with a bounded support."""
    trend = pyro.sample("trend", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    period = pyro.sample("period", dist.Uniform(8.0, 18.0))
    wave = pyro.sample("wave", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
    angle = 2 * torch.pi * t[:, None] * torch.tensor([1.0, 2.0]) / period
    season = (torch.stack([angle.sin(), angle.cos()], -1) * wave).sum((-1, -2))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("times", len(t)):
        pyro.sample("y", dist.Normal(trend[0] + trend[1] * t / 20 + season, sigma), obs=y)


@case(lambda: real(STEPS, WAVE))
def smooth_changepoint(t: Tensor, y: Tensor) -> None:
    when = pyro.sample("when", dist.Uniform(0.0, 19.0))
    levels = pyro.sample("levels", dist.Normal(0.0, 2.0).expand([2]).to_event(1))
    after = torch.sigmoid(2 * (t - when))
    with pyro.plate("times", len(t)):
        pyro.sample("y", dist.Normal(levels[0].lerp(levels[1], after), 0.5), obs=y)
