"""Priors and supports: conjugate pairs, bounds, simplexes, circles, transforms, flows."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import init_to_value
from pyro.infer.reparam import ProjectedNormalReparam
from scipy import stats
from scipy.special import betaln, gammaln
from torch import Tensor
from zoo_case import built, case, gaussian, one, quadrature, real, whole
from zoo_hierarchy import Y

FLIPS = np.array([1.0, 1, 0, 1, 1, 0, 1, 1])


ROLLS = np.array([0, 2, 1, 1, 2, 2, 2, 0, 2])


CALLS = np.array([3.0, 1, 4, 1, 5])


ANGLES = np.array([2.8, -3.0, 3.1, -2.6, 2.2])


@case(lambda: real(FLIPS), evidence=lambda: float(betaln(1.1 + 6, 1.1 + 2) - betaln(1.1, 1.1)))
def beta_bernoulli(flips: Tensor) -> None:
    p = pyro.sample("p_latent", dist.Beta(torch.tensor(1.1), torch.tensor(1.1)))
    with pyro.plate("data", len(flips)):
        pyro.sample("obs", dist.Bernoulli(p), obs=flips)


def _dirichlet() -> float:
    alpha, n = np.array([1.0, 1, 2]), np.bincount(ROLLS)
    return float(
        (gammaln(alpha + n) - gammaln(alpha)).sum()
        + gammaln(alpha.sum())
        - gammaln((alpha + n).sum())
    )


@case(lambda: whole(ROLLS), evidence=_dirichlet)
def dirichlet_categorical(rolls: Tensor) -> None:
    p = pyro.sample("p_latent", dist.Dirichlet(torch.tensor([1.0, 1.0, 2.0])))
    with pyro.plate("data", len(rolls)):
        pyro.sample("obs", dist.Categorical(p), obs=rolls)


def _multinomial() -> float:
    n = np.bincount(ROLLS)
    return _dirichlet() + float(gammaln(n.sum() + 1) - gammaln(n + 1).sum())


@case(lambda: real(np.bincount(ROLLS)), evidence=_multinomial, vmap=False)
def multinomial(counts: Tensor) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 1.0, 2.0])))
    pyro.sample("counts", dist.Multinomial(int(counts.sum()), p), obs=counts)


def _gamma_poisson() -> float:
    a, b, n, total = 2.0, 0.5, len(CALLS), CALLS.sum()
    rest = gammaln(a + total) - gammaln(a) + a * np.log(b) - (a + total) * np.log(b + n)
    return float(rest - gammaln(CALLS + 1).sum())


@case(lambda: real(CALLS), evidence=_gamma_poisson)
def gamma_poisson(calls: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
    with pyro.plate("days", len(calls)):
        pyro.sample("calls", dist.Poisson(rate), obs=calls)


def _gamma_normal() -> float:
    a, b = 1.0 + len(Y) / 2, 1.0 + ((Y - 0.5) ** 2).sum() / 2
    return float(gammaln(a) - a * np.log(b) - len(Y) / 2 * np.log(2 * np.pi))


@case(lambda: real(Y), evidence=_gamma_normal)
def gamma_normal(y: Tensor) -> None:
    """A precision of one element, as in Pyro's own tests of NUTS."""
    precision = pyro.sample("p_latent", dist.Gamma(torch.ones(1), torch.ones(1)))
    pyro.sample("obs", dist.Normal(0.5, 1 / precision.sqrt()), obs=y)


def _variance() -> float:
    a, n = 3.0, len(Y)
    S = 2.0 + ((Y - Y.mean()) ** 2).sum() / 2 + n * Y.mean() ** 2 / (2 * (n + 1))
    rest = gammaln(a + n / 2) - gammaln(a) + a * np.log(2.0) - (a + n / 2) * np.log(S)
    return float(rest - 0.5 * np.log(n + 1) - n / 2 * np.log(2 * np.pi))


@case(lambda: real(Y), evidence=_variance)
def normal_inverse_gamma(y: Tensor) -> None:
    variance = pyro.sample("variance", dist.InverseGamma(3.0, 2.0))
    mean = pyro.sample("mean", dist.Normal(0.0, variance.sqrt()))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, variance.sqrt()), obs=y)


@built(evidence=lambda: gaussian(np.full(2, 0.5), np.diag([2.0, 1.25])))
def gaussian_of_dims() -> tuple:
    """A latent with batch and event axes, half of it seen."""

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2, 2), torch.tensor([1.0, 0.5])).to_event(1))
        with pyro.plate("rows", 2):
            pyro.sample("y", dist.Normal(z[0], 1.0), obs=y)

    return model, real(np.full(2, 0.5)), {}


def _dependent() -> float:
    b = np.geomspace(0.02, 60, 4001)
    inner = stats.norm.cdf((b - 1.2) / 0.3) - stats.norm.cdf(-1.2 / 0.3)
    return quadrature(lambda b: stats.lognorm.logpdf(b, 0.5) + np.log(inner / b + 1e-300), b)


@case(lambda: real(1.2), evidence=_dependent)
def dependent_support(y: Tensor) -> None:
    b = pyro.sample("b", dist.LogNormal(0.0, 0.5))
    x = pyro.sample("x", dist.Uniform(torch.zeros(()), b))
    pyro.sample("y", dist.Normal(x, 0.3), obs=y)


def _upper_bound() -> float:
    n = len(CALLS)  # a Pareto prior and a uniform likelihood
    return float(np.log(2 / (n + 2)) - (n + 2) * np.log(CALLS.max()))


@case(lambda: real(CALLS), evidence=_upper_bound)
def bound_above_data(calls: Tensor) -> None:
    """Stan's way: the support of a latent begins at the largest datum."""
    top = pyro.sample("top", dist.Uniform(calls.max(), 1e4))
    pyro.factor("pareto_prior", math.log(2.0) - 3 * top.log() + math.log(1e4 - float(calls.max())))
    with pyro.plate("rows", len(calls)):
        pyro.sample("calls", dist.Uniform(0.0, top), obs=calls)


def _direction() -> float:
    def log_density(mu: np.ndarray) -> np.ndarray:
        return sum(stats.vonmises.logpdf(y, 4, mu) for y in ANGLES) - np.log(2 * np.pi)

    return quadrature(log_density, np.linspace(-np.pi, np.pi, 2001))


@case(lambda: real(ANGLES), evidence=_direction)
def direction(y: Tensor) -> None:
    """A direction between -pi and pi, whose posterior straddles the seam."""
    mu = pyro.sample("mu", dist.Uniform(-math.pi, math.pi))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.VonMises(mu, 4.0), obs=y)


@case(lambda: real(ANGLES), flat=("mu",))
def von_mises(y: Tensor) -> None:
    """A circular latent: on NUTS's real line its density repeats for ever and is improper."""
    mu = pyro.sample("mu", dist.VonMises(1.0, 0.5))
    kappa = pyro.sample("kappa", dist.Gamma(2.0, 0.5))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.VonMises(mu, kappa), obs=y)


@built(vmap=False)
def projected_normal() -> tuple:
    """A point on the sphere, by the reparametrisation that Pyro recommends."""

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.ProjectedNormal(torch.zeros(3)))
        pyro.sample("y", dist.Normal(z[..., 0], 0.3), obs=y)

    return poutine.reparam(model, config={"z": ProjectedNormalReparam()}), real(0.8), {}


@case(lambda: real(Y))
def ordered_means(y: Tensor) -> None:
    """A mixture kept in order by its means' support, summed over by MixtureSameFamily."""
    base = dist.Normal(torch.zeros(2), 2.0).to_event(1)
    means = pyro.sample("means", dist.TransformedDistribution(base, T.OrderedTransform()))
    w = pyro.sample("w", dist.Dirichlet(2 * torch.ones(2)))
    sd = pyro.sample("sd", dist.LogNormal(-0.5, 0.5))
    parts = dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(means, sd))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", parts, obs=y)


@case(
    lambda: real(Y),
    evidence=lambda: quadrature(
        lambda s: (
            stats.loguniform.logpdf(s, math.exp(-2), math.exp(2))
            + sum(stats.norm.logpdf(y, 0, s) for y in Y)
        ),
        np.geomspace(math.exp(-2), math.exp(2), 2001),
    ),
)
def transformed_prior(y: Tensor) -> None:
    """A log-uniform scale: the exponential of a uniform."""
    base = dist.Uniform(-2.0, 2.0)
    s = pyro.sample("s", dist.TransformedDistribution(base, T.ExpTransform()))
    pyro.sample("y", dist.Normal(torch.zeros(len(y)), s).to_event(1), obs=y)


@built()
def flow_prior() -> tuple:
    """A normalising flow of Pyro's as prior, its weights fixed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = T.affine_coupling(3, hidden_dims=[8])
    for parameter in flow.parameters():
        parameter.requires_grad_(False)

    def model(y: Tensor) -> None:
        base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
        z = pyro.sample("z", dist.TransformedDistribution(base, [flow]))
        pyro.sample("y", dist.Normal(z.sum(), 0.5), obs=y)

    return model, real(1.0), {}


@case(lambda: real(Y))
def many_scales(y: Tensor) -> None:
    """One prior of every kind on scales."""
    a = pyro.sample("a", dist.Exponential(1.0))
    b = pyro.sample("b", dist.Weibull(1.0, 1.5))
    c = pyro.sample("c", dist.Chi2(3.0))
    d = pyro.sample("d", dist.LogNormal(0.0, 0.5))
    e = pyro.sample("e", dist.Gumbel(0.0, 1.0))
    f = pyro.sample("f", dist.Kumaraswamy(2.0, 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(e * f, (a + b + c * d) / 4), obs=y)


def _start(**values: object) -> dict:
    """What NUTS needs where there is a prior that cannot be sampled."""
    values = {name: one(value) for name, value in values.items()}
    return {"max_plate_nesting": 1, "init_strategy": init_to_value(values=values)}


@case(
    lambda: real(Y),
    evidence=lambda: quadrature(
        lambda m, s: stats.gamma.logpdf(s, 2) + sum(stats.norm.logpdf(y, m, s) for y in Y),
        np.linspace(-4, 5, 401),
        np.geomspace(0.1, 20, 401),
    ),
    nuts=lambda: _start(m=0.5),
)
def improper_uniform(y: Tensor) -> None:
    m = pyro.sample("m", dist.ImproperUniform(constraints.real, (), ()))
    s = pyro.sample("s", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(m, s), obs=y)


@case(lambda: real(CALLS), nuts=lambda: _start(rates=np.ones(5)))
def improper_positive(calls: Tensor) -> None:
    """Improper on a positive vector, which a proper likelihood makes proper."""
    rates = pyro.sample("rates", dist.ImproperUniform(constraints.positive, (5,), ()))
    with pyro.plate("days", 5):
        pyro.sample("calls", dist.Poisson(rates), obs=calls)


@case(evidence=lambda: 0.0)
def funnel() -> None:
    """Neal's, with no data at all."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("dims", 5):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


@case(lambda: real(Y))
def stick_breaking(y: Tensor) -> None:
    """A truncated Dirichlet process, its weights by broken sticks."""
    alpha = pyro.sample("alpha", dist.Gamma(2.0, 1.0))
    with pyro.plate("sticks", 3):
        stick = pyro.sample("stick", dist.Beta(1.0, alpha))
    with pyro.plate("parts", 4):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    left = (1 - stick).cumprod(-1)
    weights = torch.nn.functional.pad(stick, (0, 1), value=1) * torch.nn.functional.pad(
        left, (1, 0), value=1
    )
    parts = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(mean, 0.6))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", parts, obs=y)
