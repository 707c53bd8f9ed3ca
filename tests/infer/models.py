"""Small models whose posteriors are known, for the tests of guides."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch

from pyro_naf.examples import eight_schools

SCHOOLS_Y, SCHOOLS_SIGMA = torch.tensor(eight_schools.Y), torch.tensor(eight_schools.SIGMA)

#: Ten latents in and out of a plate, one of them positive.
schools = eight_schools.model


def double_gamma() -> None:
    """One positive and one vector latent, all in float64."""
    rate = torch.tensor(1.0, dtype=torch.double)
    pyro.sample("g", dist.Gamma(2 * rate, rate))
    pyro.sample("v", dist.Normal(torch.zeros(3, dtype=torch.double), rate).to_event(1))


def conjugate(data: torch.Tensor) -> None:
    """x ~ N(0, 1), data ~ N(x, 1): posterior and evidence in closed form."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("y", dist.Normal(x, 1.0), obs=data)


def conjugate_log_evidence(data: torch.Tensor) -> float:
    n = len(data)
    covariance = torch.eye(n) + torch.ones(n, n)
    return float(dist.MultivariateNormal(torch.zeros(n), covariance).log_prob(data))


LINEAR = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [1.0, 1.0]])
LINEAR_NOISE = 0.5


def linear(y: torch.Tensor) -> None:
    """x ~ N(0, I), y ~ N(LINEAR x, noise^2 I): one data set, of shape (3,)."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x @ LINEAR.T, LINEAR_NOISE).to_event(1), obs=y)


def linear_sets(y: torch.Tensor) -> None:
    """:func:`linear` for each row of y, (B, 3)."""
    with pyro.plate("sets", len(y)):
        linear(y)


def linear_posterior(y: torch.Tensor) -> dist.MultivariateNormal:
    """The exact posterior of x for each row of y."""
    covariance = torch.linalg.inv(torch.eye(2) + LINEAR.T @ LINEAR / LINEAR_NOISE**2)
    return dist.MultivariateNormal(y @ LINEAR @ covariance / LINEAR_NOISE**2, covariance)


def linear_data(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and data drawn from their joint distribution."""
    x = torch.randn(number, 2)
    return x, x @ LINEAR.T + LINEAR_NOISE * torch.randn(number, 3)


def correlated() -> None:
    """A Gaussian with correlations: no diagonal guide fits it, a full-rank one does exactly."""
    covariance = torch.tensor([[1.0, 0.9, 0.0], [0.9, 1.0, -0.3], [0.0, -0.3, 0.5]])
    pyro.sample("z", dist.MultivariateNormal(torch.tensor([1.0, -1.0, 0.5]), covariance))


def banana() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x**2, 0.3))


def standard_normal_log_prob(z: torch.Tensor) -> torch.Tensor:
    return (-0.5 * z**2 - 0.5 * math.log(2 * math.pi)).sum(-1)
