"""Filters, semi-Markov chains, change points, forecasts and recurrent networks."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.contrib.forecast import ForecastingModel
from pyro.infer import config_enumerate
from pyro.nn import PyroModule, PyroSample
from pyro.ops.indexing import Vindex
from scipy import stats
from scipy.special import logsumexp
from torch import Tensor
from zoo_case import built, case, gaussian, one, quadrature, real

_rng = np.random.default_rng(12)
WALK = np.cumsum(0.5 * _rng.normal(size=15))
LEVEL = WALK + 0.3 * _rng.normal(size=15)
STEPS = np.r_[np.full(6, -1.0), np.full(5, 2.0), np.full(5, 0.0)] + 0.4 * _rng.normal(size=16)


def _local_level() -> float:
    def log_density(q: np.ndarray, r: np.ndarray) -> np.ndarray:
        t = np.arange(1, 16)
        step, noise = q[..., None, None], r[..., None, None]
        covariance = 1 + step**2 * np.minimum(t[:, None], t) + noise**2 * np.eye(15)
        prior = stats.halfnorm.logpdf(q) + stats.halfnorm.logpdf(r)
        return prior + gaussian(LEVEL, covariance)

    return quadrature(log_density, np.linspace(1e-3, 4, 161), np.linspace(1e-3, 4, 161))


@case(lambda: (torch.tensor(LEVEL),), evidence=_local_level)
def kalman_by_hand(y: Tensor) -> None:
    """A Kalman filter in double precision whose likelihood enters by pyro.factor."""
    q = pyro.sample("q", dist.HalfNormal(1.0)).double()
    r = pyro.sample("r", dist.HalfNormal(1.0)).double()
    mean, variance = torch.zeros((), dtype=torch.double), torch.ones((), dtype=torch.double)
    total = torch.zeros((), dtype=torch.double)
    for value in y:
        variance = variance + q**2
        spread = variance + r**2
        total = total + dist.Normal(mean, spread.sqrt()).log_prob(value)
        gain = variance / spread
        mean, variance = mean + gain * (value - mean), (1 - gain) * variance
    pyro.factor("likelihood", total)


@case(lambda: real(STEPS))
def semi_markov(y: Tensor) -> None:
    """Two states that last a Poisson time, by the forward algorithm of an explicit-duration HMM."""
    rate = pyro.sample("rate", dist.Gamma(torch.tensor([4.0, 4.0]).to(y), 1.0).to_event(1))
    loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]).to(y), 1.0).to_event(1))
    longest = 8
    lasts = dist.Poisson(rate[:, None]).log_prob(torch.arange(longest).to(y)).log_softmax(-1)
    emitted = dist.Normal(loc[:, None], 0.5).log_prob(y).cumsum(-1)
    emitted = torch.nn.functional.pad(emitted, (1, 0))
    ends: list[Tensor] = [torch.full((2,), -math.log(2.0)).to(y)]
    for t in range(1, len(y) + 1):
        parts = [
            (ends[t - d] if t == d else ends[t - d].flip(0))
            + lasts[:, d - 1]
            + (emitted[:, t] - emitted[:, t - d])
            for d in range(1, min(t, longest) + 1)
        ]
        ends.append(torch.stack(parts).logsumexp(0))
    pyro.factor("segments", ends[-1].logsumexp(0))


def _two_changes() -> float:
    y = STEPS[::2]
    n = len(y)
    times = np.arange(n)
    logs = []
    for first in range(n):
        for second in range(n):
            kind = (times >= first).astype(int) + (times >= second).astype(int)
            covariance = 4.0 * (kind[:, None] == kind) + 0.25 * np.eye(n)
            logs.append(gaussian(y, covariance) - 2 * math.log(n))
    return float(logsumexp(logs))


@case(lambda: real(STEPS[::2]), discrete=("first", "second"), evidence=_two_changes)
@config_enumerate
def two_changes(y: Tensor) -> None:
    """Two change points, both enumerated, with levels by Vindex."""
    n = len(y)
    with pyro.plate("parts", 3):
        level = pyro.sample("level", dist.Normal(0.0, 2.0))
    first = pyro.sample("first", dist.Categorical(torch.ones(n).to(y)))
    second = pyro.sample("second", dist.Categorical(torch.ones(n).to(y)))
    times = torch.arange(n)
    kind = (times >= first[..., None]).long() + (times >= second[..., None]).long()
    pyro.sample("y", dist.Normal(Vindex(level)[..., kind], 0.5).to_event(1), obs=y)


class _LocalTrend(ForecastingModel):
    def model(self, zero_data: Tensor, covariates: Tensor) -> None:
        with self.time_plate:
            drift = pyro.sample("drift", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        motion = (0.3 * drift).cumsum(-1).unsqueeze(-1)
        prediction = motion + weight * covariates
        self.predict(dist.Normal(torch.zeros(()), scale), prediction)


@built()
def forecasting_model() -> tuple:
    """pyro.contrib.forecast: time plate, residual noise, covariates."""
    data = one(LEVEL[:8, None])
    return _LocalTrend(), (data, one(np.sin(np.arange(8))[:, None])), {}


@built()
def recurrent_network() -> tuple:
    """An RNN of torch whose every weight has a prior."""

    class Net(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.cell = PyroModule[torch.nn.RNNCell](1, 2)
            for name, weight in list(self.cell.named_parameters()):
                prior = dist.Normal(torch.zeros_like(weight), 0.5).to_event(weight.dim())
                setattr(self.cell, name, PyroSample(prior))
            self.out = PyroSample(dist.Normal(one([0.0, 0.0]), 1.0).to_event(1))

        def forward(self, y: Tensor) -> None:
            h = y.new_zeros(1, 2)
            for t in range(len(y) - 1):
                h = self.cell(y[t].reshape(1, 1), h)
                pyro.sample(f"y_{t + 1}", dist.Normal((h[0] * self.out).sum(), 0.5), obs=y[t + 1])

    return Net(), real(LEVEL[:6]), {}


@built(vmap=False)
def lstm() -> tuple:
    """nn.LSTM, which keeps its weights in a list of its own, made random by functional_call."""
    net = torch.nn.LSTM(1, 2)

    def model(y: Tensor) -> None:
        weights = {}
        for name, weight in net.named_parameters():
            prior = dist.Normal(torch.zeros_like(weight), 0.5).to_event(weight.dim())
            weights[name] = pyro.sample(name, prior)
        h, _ = torch.func.functional_call(net, weights, (y[:-1, None, None],))
        pyro.sample("y", dist.Normal(h[:, 0].sum(-1), 0.5).to_event(1), obs=y[1:])

    return model, real(LEVEL[:6]), {}
