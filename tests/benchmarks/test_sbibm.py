"""The references that guides are told from are the posteriors of the simulators."""

from __future__ import annotations

import pytest
import torch
from sbibm import TASKS, population
from torch.distributions import Normal


def test_the_population_of_chains_finds_a_posterior_of_closed_form() -> None:
    torch.manual_seed(0)
    task = TASKS["gaussian_linear"]()
    x = task.simulate(task.prior.sample([1]))[0]
    sd = 0.1**0.5
    z = population(task.prior, lambda t: Normal(t, sd).log_prob(x).sum(-1), 2000, moves=100)
    exact = task.reference(x, 2000)
    noise = 5 * 0.05**0.5 / 2000**0.5
    assert (z.mean(0) - x / 2).abs().max() < noise and (exact.mean(0) - x / 2).abs().max() < noise
    assert (z.var(0) / 0.05 - 1).abs().max() < 0.2 and (exact.var(0) / 0.05 - 1).abs().max() < 0.2


@pytest.mark.parametrize("name", ["gaussian_linear_uniform", "gaussian_mixture", "two_moons"])
def test_references_are_calibrated(name: str) -> None:
    """The true parameter is one more draw of the posterior given the data that it made."""
    torch.manual_seed(0)
    task, ranks = TASKS[name](), []
    for _ in range(200):
        theta = task.prior.sample([1])
        ranks.append((task.reference(task.simulate(theta)[0], 99) < theta).sum(0))
    u = (torch.stack(ranks).double() + 0.5) / 100
    # Kolmogorov's distance, of level 1e-4.
    even = (torch.arange(200) + 0.5)[:, None] / 200
    assert (u.sort(0).values - even).abs().max() < 2.23 / 200**0.5


def test_slcp_has_its_four_modes() -> None:
    torch.manual_seed(0)
    task = TASKS["slcp"]()
    z = task.reference(task.simulate(torch.tensor([[0.5, -0.5, 1.0, 1.5, 0.3]]))[0], 1000)
    for signs in ([1, 1], [1, -1], [-1, 1], [-1, -1]):
        share = (z[:, 2:4].sign() == torch.tensor(signs)).all(-1).double().mean()
        assert abs(share - 0.25) < 0.07, signs
