"""Models of rankings, ecology, survival, medicine, economics: data as their users keep it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from scipy import stats
from scipy.special import gammaln, logsumexp, ndtr
from torch import Tensor
from zoo_case import case, one, quadrature, real, whole

_rng = np.random.default_rng(29)
GAMES = np.array([[0, 1, 1], [1, 0, 1], [2, 0, 0], [1, 2, 1], [0, 2, 1], [2, 1, 0]])
RANKINGS = [[0, 1, 2], [1, 0], [0, 2, 1, 3], [3, 0, 1]]
VISITS = np.array([[2, 1, 3], [0, 1, 0]])
DISTANCES = np.abs(0.5 * _rng.normal(size=12))
MAXIMA = stats.genextreme.rvs(-0.2, loc=3, size=8, random_state=4)
TRIALS, CONVERTED = np.array([40, 60, 25]), np.array([6, 9, 7])
DOSE = np.array([0.1, 0.3, 1.0, 3.0, 10.0, 30.0])
RESPONSE = np.array([0.12, 0.14, 0.33, 0.71, 0.9, 1.02])
SHARES = np.array([0.0, 0.3, 0.45, 1.0, 0.2, 0.0, 0.6])
WAITS = np.array([[0, 1], [1, 2], [3, 4], [2, 3], [6, np.inf], [6, np.inf]])
ARRIVALS = np.array([0, 3, 1, 0, 2, 4, 1])
SERIES = np.array([0.3, 0.8, 0.1, -0.5, -0.2, 0.4, 0.9, 0.2, -0.1])


@case(lambda: ({"home": whole(GAMES[:, 0])[0], "away": whole(GAMES[:, 1])[0],
                "won": one(GAMES[:, 2])}, 3))  # fmt: skip
def bradley_terry(games: dict[str, Tensor], teams: int) -> None:
    """Games in a dict of columns; skills are centred, so that one direction has its prior alone."""
    sd = pyro.sample("sd", dist.HalfNormal(1.0))
    advantage = pyro.sample("advantage", dist.Normal(0, 1))
    with pyro.plate("teams", teams):
        raw = pyro.sample("raw", dist.Normal(0, 1))
    skill = pyro.deterministic("skill", sd * (raw - raw.mean()))
    logits = skill[games["home"]] - skill[games["away"]] + advantage
    with pyro.plate("games", len(games["won"])):
        pyro.sample("won", dist.Bernoulli(logits=logits), obs=games["won"])


@case(lambda: ([torch.tensor(r) for r in RANKINGS],))
def plackett_luce(rankings: list[Tensor]) -> None:
    """Rankings of unequal length in a list, a factor for each."""
    worth = pyro.sample("worth", dist.Dirichlet(torch.full((4,), 1.5)))
    for i, ranking in enumerate(rankings):
        logits = worth.log()[ranking]
        left = logits.flip(0).logcumsumexp(0).flip(0)
        pyro.factor(f"ranking {i}", (logits - left).sum())


def _n_mixture() -> float:
    n = np.arange(6.0)

    def log_density(rate: np.ndarray, p: np.ndarray) -> Any:
        law = stats.poisson.logpmf(n, rate[..., None])
        law = law - logsumexp(law, -1, keepdims=True)
        total = stats.gamma.logpdf(rate, 4, scale=0.5) + stats.beta.logpdf(p, 2, 2)
        for row in VISITS:
            seen = sum(stats.binom.logpmf(y, n, p[..., None]) for y in row)
            total = total + logsumexp(law + seen, -1)
        return total

    return quadrature(log_density, np.linspace(1e-3, 14, 401), np.linspace(1e-4, 1 - 1e-4, 401))


@case(lambda: whole(VISITS), evidence=_n_mixture, discrete=("n",))
def n_mixture(visits: Tensor) -> None:
    """Animals of a site, summed over up to a bound, and seen in part at each visit."""
    rate = pyro.sample("rate", dist.Gamma(4.0, 2.0))
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    law = dist.Poisson(rate).log_prob(torch.arange(6.0).to(rate))
    with pyro.plate("sites", len(visits)):
        n = pyro.sample("n", dist.Categorical(logits=law))
        for i in range(visits.shape[1]):
            y = visits[:, i].to(rate)
            possible = y <= n
            seen = dist.Binomial(torch.max(n.to(rate), y), p).mask(possible)
            pyro.sample(f"seen {i}", seen, obs=y)
            pyro.factor(f"possible {i}", torch.where(possible, 0.0, -1e9).to(rate))


def _distances() -> float:
    def log_density(log_sd: np.ndarray, log_number: np.ndarray) -> Any:
        sd, number = np.exp(log_sd), np.exp(log_number)
        width = sd * math.sqrt(2 * math.pi) * (ndtr(2 / sd) - 0.5)
        seen = -(DISTANCES**2).sum() / 2 / sd**2 - 12 * np.log(width)
        prior = stats.norm.logpdf(log_sd) + stats.norm.logpdf(log_number, 3, 1)
        return prior + seen + stats.poisson.logpmf(12, number * width)

    return quadrature(log_density, np.linspace(-3, 3, 601), np.linspace(-2, 8, 601))


@case(lambda: real(DISTANCES), evidence=_distances)
def distance_sampling(distance: Tensor) -> None:
    """A half-normal detection function, by a factor for each animal, and a number that is seen."""
    log_sd = pyro.sample("log_sd", dist.Normal(0.0, 1.0))
    number = pyro.sample("number", dist.LogNormal(3.0, 1.0))
    sd = log_sd.exp()
    width = sd * math.sqrt(math.pi / 2) * torch.erf(2.0 / sd / math.sqrt(2))
    pyro.sample("seen", dist.Poisson(number * width), obs=one(12.0))
    with pyro.plate("animals", len(distance)):
        pyro.factor("detected", -distance.square() / 2 / sd**2 - width.log())


def _gev() -> float:
    def log_density(mu: np.ndarray, log_s: np.ndarray, xi: np.ndarray) -> Any:
        s = np.exp(log_s)
        total = (
            stats.norm.logpdf(mu, 3, 2) + stats.norm.logpdf(log_s) + stats.norm.logpdf(xi, 0, 0.3)
        )
        for y in MAXIMA:
            z = 1 + xi * (y - mu) / s
            with np.errstate(all="ignore"):
                log_z = np.log(np.where(z > 0, z, 1.0))
                one_of = -log_s - (1 + 1 / xi) * log_z - np.exp(-log_z / xi)
            total = total + np.where(z > 0, one_of, -np.inf)
        return total

    axes = np.linspace(-1, 8, 121), np.linspace(-3, 2.5, 111), np.linspace(-1.5, 1.5, 150)
    return quadrature(log_density, *axes)


@case(lambda: real(MAXIMA), evidence=_gev)
def extreme_values(maxima: Tensor) -> None:
    """A generalised extreme value law by a factor, with a support that depends on the latents."""
    mu = pyro.sample("mu", dist.Normal(3.0, 2.0))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    xi = pyro.sample("xi", dist.Normal(0.0, 0.3))
    z = 1 + xi * (maxima - mu) / s
    log_z = z.clamp(min=1e-12).log()
    log_p = -s.log() - (1 + 1 / xi) * log_z - (-log_z / xi).exp()
    pyro.factor("maxima", torch.where(z > 0, log_p, -math.inf).sum())


def _arms() -> float:
    def log_density(mu: np.ndarray, log_excess: np.ndarray) -> Any:
        kappa = 1 + np.exp(log_excess)
        prior = math.log(1.5) - 2.5 * np.log(kappa) + log_excess
        laws = (stats.betabinom.logpmf(y, n, mu * kappa, (1 - mu) * kappa)
                for y, n in zip(CONVERTED, TRIALS, strict=True))  # fmt: skip
        return prior + sum(laws)

    return quadrature(log_density, np.linspace(1e-4, 1 - 1e-4, 601), np.linspace(-12, 16, 301))


@case(lambda: whole(TRIALS, CONVERTED), evidence=_arms)
def arms_of_a_trial(trials: Tensor, converted: Tensor) -> None:
    """Beta-binomial counts with a heavy-tailed concentration from Pareto, whose support is > 1."""
    mu = pyro.sample("mu", dist.Uniform(one(0.0), one(1.0)))
    kappa = pyro.sample("kappa", dist.Pareto(one(1.0), one(1.5)))
    with pyro.plate("arms", len(trials)):
        law = dist.BetaBinomial(mu * kappa, (1 - mu) * kappa, total_count=trials)
        pyro.sample("converted", law, obs=converted)


@case(lambda: real(DOSE, RESPONSE))
def dose_response(dose: Tensor, response: Tensor) -> None:
    """A logistic curve of four parameters, robust, its mean kept as a deterministic site."""
    bottom = pyro.sample("bottom", dist.Normal(0.0, 0.5))
    top = pyro.sample("top", dist.Normal(1.0, 0.5))
    half = pyro.sample("log EC50", dist.Normal(0.0, 3.0))
    hill = pyro.sample("hill", dist.LogNormal(0.0, 0.5))
    s = pyro.sample("s", dist.HalfCauchy(0.1))
    mean = pyro.deterministic(
        "mean", bottom + (top - bottom) * torch.sigmoid(hill * (dose.log() - half))
    )
    with pyro.plate("wells", len(dose)):
        pyro.sample("response", dist.StudentT(4.0, mean, s), obs=response)


@case(lambda: real(SHARES))
def zero_one_inflated(share: Tensor) -> None:
    """Which of three kinds a share is, and a Beta for those between 0 and 1, by a mask."""
    kinds = pyro.sample("kinds", dist.Dirichlet(torch.ones(3)))
    mean = pyro.sample("mean", dist.Beta(2.0, 2.0))
    sure = pyro.sample("sure", dist.Gamma(2.0, 0.2))
    inner = (share > 0) & (share < 1)
    with pyro.plate("rows", len(share)):
        kind = torch.where(inner, 2, share.long())
        pyro.sample("kind", dist.Categorical(kinds), obs=kind)
        with poutine.mask(mask=inner):
            law = dist.Beta(mean * sure, (1 - mean) * sure)
            pyro.sample("share", law, obs=share.clamp(1e-3, 1 - 1e-3))


@case(lambda: real(WAITS[:, 0], WAITS[:, 1]))
def cure_rate(left: Tensor, right: Tensor) -> None:
    """Intervals in which patients relapsed; those never seen to may be cured."""
    cured = pyro.sample("cured", dist.Beta(1.0, 1.0))
    shape = pyro.sample("shape", dist.Gamma(3.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(1.0, 1.0))

    def survival(time: Tensor) -> Tensor:
        return cured + (1 - cured) * torch.exp(-((time / scale) ** shape))

    ends = right.isfinite()
    later = torch.where(ends, survival(torch.where(ends, right, 1.0)), 0.0)
    pyro.factor("relapses", (survival(left) - later).log().sum())


class _FromOne(dist.TorchDistribution):
    """A Poisson law without zero, as users write a class of their own."""

    arg_constraints = {"rate": dist.constraints.positive}  # noqa: RUF012
    support = dist.constraints.positive_integer

    def __init__(self, rate: Tensor, validate_args: bool | None = None) -> None:
        self.rate = rate
        super().__init__(rate.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _FromOne:
        return _FromOne(self.rate.expand(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return 1 + torch.poisson(self.rate.expand(self.shape(torch.Size(sample_shape))))

    def log_prob(self, value: Tensor) -> Tensor:
        return dist.Poisson(self.rate).log_prob(value) - (-torch.expm1(-self.rate)).log()


def _hurdle() -> float:
    some = ARRIVALS[ARRIVALS > 0]
    k, n = len(some), len(ARRIVALS)

    def log_density(rate: np.ndarray) -> Any:
        each = stats.poisson.logpmf(some, rate[:, None]) - np.log(-np.expm1(-rate[:, None]))
        return stats.gamma.logpdf(rate, 2) + each.sum(-1)

    anything = gammaln(k + 1) + gammaln(n - k + 1) - gammaln(n + 2)
    return float(anything) + quadrature(log_density, np.linspace(1e-6, 25, 20_001))


@case(lambda: whole(ARRIVALS), evidence=_hurdle)
def hurdle(count: Tensor) -> None:
    """Whether anybody comes, and how many then, by a law that the user wrote."""
    p = pyro.sample("p", dist.Beta(one(1.0), one(1.0)))
    rate = pyro.sample("rate", dist.Gamma(one(2.0), one(1.0)))
    some = count[count > 0].to(rate)
    with pyro.plate("days", len(count)):
        pyro.sample("any", dist.Bernoulli(p), obs=(count > 0).to(p))
    with pyro.plate("days with some", len(some)):
        pyro.sample("number", _FromOne(rate), obs=some)


@case(lambda: real(SERIES))
def autoregression(y: Tensor) -> None:
    """Stationary by its partial autocorrelations, from which Durbin and Levinson find the rest."""
    partial = [2 * pyro.sample(f"partial {k}", dist.Beta(2.0, 2.0)) - 1 for k in range(3)]
    phi = partial[:1]
    for k in range(1, 3):
        phi = [phi[i] - partial[k] * phi[k - 1 - i] for i in range(k)] + [partial[k]]
    s = pyro.sample("s", dist.InverseGamma(3.0, 1.0))
    lags = torch.stack([y[2 - i : len(y) - 1 - i] for i in range(3)], -1)
    with pyro.plate("times", len(y) - 3):
        pyro.sample("y", dist.Normal(lags @ torch.stack(phi), s), obs=y[3:])


@case(lambda: real(SERIES))
def moving_average(y: Tensor) -> None:
    """Errors that follow from one another by a recursion over the data."""
    phi = pyro.sample("phi", dist.Uniform(-one(1.0), 1.0))
    theta = pyro.sample("theta", dist.Uniform(-one(1.0), 1.0))
    s = pyro.sample("s", dist.HalfNormal(2.0))
    error, total = y[0], []
    for before, now in itertools.pairwise(y):
        error = now - phi * before - theta * error
        total.append(dist.Normal(0.0, s).log_prob(error))
    pyro.factor("errors", torch.stack(total).sum())
