"""The ten tasks of sbibm, written anew from their descriptions in [arXiv:2101.04653], appendix T.

Each has a prior over one vector, a simulator of many rows, and draws of the exact posterior given
one row. Frozen constants (a stimulus, the law of distractors) come from the seed that sbibm uses,
so that observations of sbibm are data of these tasks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy
import pyro.distributions as dist
import torch
from ode import lotka_volterra_sizes, sir_infected
from references import population, rejection, weighted_population
from torch import Tensor

#: Seed of the constants that sbibm has frozen.
_FROZEN = 42

#: Number of distractors, and of components of their mixture.
_DISTRACTORS, _COMPONENTS = 92, 20


class Task(NamedTuple):
    """A prior over one vector, a simulator of rows, and draws of the posterior given one row.

    ``folder`` and ``observation`` are where sbibm keeps its observations and reference draws.
    """

    prior: Any
    simulate: Callable[[Tensor], Tensor]
    reference: Callable[[Tensor, int], Tensor]
    folder: str
    observation: str = "observation"


def box(low: float, high: float, dim: int) -> Any:
    """A uniform prior."""
    return dist.Uniform(low * torch.ones(dim), high * torch.ones(dim)).to_event(1)


def gaussian_linear() -> Task:
    """theta ~ N(0, 0.1 I), x ~ N(theta, 0.1 I), ten dimensions."""
    sd = 0.1**0.5
    return Task(
        dist.Normal(torch.zeros(10), sd).to_event(1),
        lambda theta: theta + sd * torch.randn_like(theta),
        lambda x, n: x / 2 + 0.05**0.5 * torch.randn(n, 10),
        "gaussian_linear",
    )


def gaussian_linear_uniform() -> Task:
    """theta ~ U(-1, 1), x ~ N(theta, 0.1 I), ten dimensions: a truncated Gaussian."""
    prior, sd = box(-1.0, 1.0, 10), 0.1**0.5

    def reference(x: Tensor, count: int) -> Tensor:
        standard = dist.Normal(0.0, 1.0)
        low, high = (standard.cdf((end - x) / sd) for end in (-1.0, 1.0))
        u = (low + (high - low) * torch.rand(count, 10)).clamp(1e-7, 1 - 1e-7)
        return (x + sd * standard.icdf(u)).clamp(-1, 1)

    def simulate(theta: Tensor) -> Tensor:
        return theta + sd * torch.randn_like(theta)

    return Task(prior, simulate, reference, "gaussian_linear_uniform")


def gaussian_mixture() -> Task:
    """theta ~ U(-10, 10), x from N(theta, I) or N(theta, 0.01 I), two dimensions."""
    prior = box(-10.0, 10.0, 2)

    def noise(count: int) -> Tensor:
        scale = torch.where(torch.rand(count, 1) < 0.5, 1.0, 0.1)
        return scale * torch.randn(count, 2)

    return Task(
        prior,
        lambda theta: theta + noise(len(theta)),
        lambda x, n: rejection(lambda m: x + noise(m), prior, n),
        "gaussian_mixture",
    )


def two_moons() -> Task:
    """A crescent around a folded, rotated theta ~ U(-1, 1), two dimensions."""
    prior, half = box(-1.0, 1.0, 2), 0.5**0.5

    def crescent(count: int) -> Tensor:
        angle = math.pi * (torch.rand(count) - 0.5)
        radius = 0.1 + 0.01 * torch.randn(count)
        return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], -1)

    def simulate(theta: Tensor) -> Tensor:
        a, b = theta.unbind(-1)
        folded = torch.stack([-(a + b).abs() * half, (b - a) * half], -1)
        return crescent(len(theta)) + folded

    def unfold(x: Tensor, count: int) -> Tensor:
        """Solutions of x = p + fold(theta) for draws p of the crescent."""
        p = crescent(count)
        total, difference = (p[:, 0] - x[0]) / half, (x[1] - p[:, 1]) / half
        sign = torch.where(torch.rand(count) < 0.5, 1.0, -1.0)
        theta = torch.stack([sign * total - difference, sign * total + difference], -1) / 2
        return theta[total > 0]

    def reference(x: Tensor, count: int) -> Tensor:
        return rejection(lambda m: unfold(x, m), prior, count)

    return Task(prior, simulate, reference, "two_moons")


def slcp() -> Task:
    """Four draws of a Gaussian whose mean and covariance are simple functions of theta."""
    prior = box(-3.0, 3.0, 5)

    def law(theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        s, t, r = theta[:, 2] ** 2, theta[:, 3] ** 2, theta[:, 4].tanh()
        return theta[:, :2], (s**2 + 1e-6).sqrt(), (t**2 + 1e-6).sqrt(), r

    def simulate(theta: Tensor) -> Tensor:
        mean, s, t, r = law(theta)
        e = torch.randn(len(theta), 4, 2)
        first = s[:, None] * e[..., 0]
        second = t[:, None] * (r[:, None] * e[..., 0] + (1 - r**2).sqrt()[:, None] * e[..., 1])
        return (mean[:, None] + torch.stack([first, second], -1)).flatten(1)

    def log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
        mean, s, t, r = law(theta)
        d = x.reshape(4, 2) - mean[:, None]
        a, b = d[..., 0] / s[:, None], d[..., 1] / t[:, None]
        left = (1 - r**2).clamp(min=1e-7)
        square = (a**2 - 2 * r[:, None] * a * b + b**2).sum(-1) / left
        return -0.5 * square - 4 * (s.log() + t.log() + 0.5 * left.log())

    def reference(x: Tensor, count: int) -> Tensor:
        return population(prior, lambda theta: log_likelihood(theta, x), count)

    return Task(prior, simulate, reference, "slcp")


def slcp_distractors() -> Task:
    """The eight numbers of slcp hidden among 92 heavy-tailed ones that say nothing."""
    plain, (noise, places) = slcp(), distractors()

    def simulate(theta: Tensor) -> Tensor:
        return torch.cat([plain.simulate(theta), noise.sample([len(theta)])], -1)[:, places]

    def reference(x: Tensor, count: int) -> Tensor:
        return plain.reference(x[places.argsort()][:8], count)

    return Task(plain.prior, simulate, reference, "slcp", "observation_distractors")


@functools.cache
def distractors() -> tuple[Any, Tensor]:
    """A mixture of Student's t with two degrees of freedom; and the order of all 100 numbers."""
    generator, dim = numpy.random.RandomState(_FROZEN), _DISTRACTORS
    loc = 15 * generator.normal(size=(_COMPONENTS, dim))
    factors = []
    for _ in range(_COMPONENTS):
        lower = numpy.tril(generator.normal(size=(dim, dim)))
        factors.append(3 * (lower + numpy.diag(numpy.exp(generator.normal(size=dim)))))
    places = torch.as_tensor(generator.permutation(dim + 8))
    kinds = dist.MultivariateStudentT(
        2.0, torch.as_tensor(loc).float(), torch.as_tensor(numpy.stack(factors)).float()
    )
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(_COMPONENTS)), kinds), places


def bernoulli_glm_raw(summarise: bool = False) -> Task:
    """A hundred spikes of a neuron with ten weights: an offset, and a smooth filter of noise."""
    stimulus = torch.as_tensor(numpy.random.RandomState(_FROZEN).randn(100)).float()
    lags = torch.stack([torch.cat([torch.zeros(k), stimulus[: 100 - k]]) for k in range(9)], -1)
    design = torch.cat([torch.ones(100, 1), lags], -1)
    step = torch.eye(9) - torch.diag(torch.ones(8), -1)
    smooth = step @ step + torch.diag((torch.arange(9) / 9).sqrt())
    precision = torch.block_diag(torch.full((1, 1), 0.5), smooth.T @ smooth)
    prior = dist.MultivariateNormal(torch.zeros(10), precision_matrix=precision)

    def simulate(theta: Tensor) -> Tensor:
        spikes = torch.bernoulli((theta @ design.T).sigmoid())
        return spikes @ design if summarise else spikes  # sufficient statistics

    def log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
        psi = theta @ design.T
        statistic = x if summarise else x @ design
        return theta @ statistic - torch.nn.functional.softplus(psi).sum(-1)

    def reference(x: Tensor, count: int) -> Tensor:
        return population(prior, lambda theta: log_likelihood(theta, x), count)

    name = "observation" if summarise else "observation_raw"
    return Task(prior, simulate, reference, "bernoulli_glm", name)


def bernoulli_glm() -> Task:
    """The neuron of ``bernoulli_glm_raw``; the data are the sufficient statistics of its spikes."""
    return bernoulli_glm_raw(summarise=True)


def sir() -> Task:
    """An epidemic: how many of 1,000 people are infected on ten days, given two rates."""
    logs = dist.Normal(torch.tensor([0.4, 0.125]).log(), torch.tensor([0.5, 0.2]))

    def counts(theta: Tensor) -> Any:
        return dist.Binomial(1000, sir_infected(theta).clamp(0, 1))

    return _of_rates("sir", logs, counts)


def lotka_volterra() -> Task:
    """Prey and predators, ten times each, with errors of 10 %, given four rates."""
    logs = dist.Normal(torch.tensor([-0.125, -3.0, -0.125, -3.0]), 0.5)

    def sizes(theta: Tensor) -> Any:
        return dist.LogNormal(lotka_volterra_sizes(theta).clamp(1e-10, 1e4).log(), 0.1)

    return _of_rates("lotka_volterra", logs, sizes)


def _of_rates(name: str, logs: Any, law: Callable[[Tensor], Any]) -> Task:
    """A task whose rates have this normal prior on their logarithms, and its data this law."""

    def reference(x: Tensor, count: int) -> Tensor:
        def log_likelihood(z: Tensor) -> Tensor:
            return law(z.exp()).log_prob(x).sum(-1)

        return weighted_population(logs.to_event(1), log_likelihood, count).exp()

    prior = dist.LogNormal(logs.loc, logs.scale).to_event(1)
    return Task(prior, lambda theta: law(theta).sample(), reference, name)


TASKS: dict[str, Callable[[], Task]] = {
    task.__name__: task
    for task in (
        gaussian_linear,
        gaussian_linear_uniform,
        gaussian_mixture,
        two_moons,
        slcp,
        slcp_distractors,
        bernoulli_glm,
        bernoulli_glm_raw,
        sir,
        lotka_volterra,
    )
}
