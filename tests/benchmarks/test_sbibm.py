"""The references that guides are told from are the posteriors of the simulators."""

from __future__ import annotations

import pytest
import torch
from ode import lotka_volterra_sizes, sir_infected
from references import population
from simulators import TASKS, distractors
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


def test_epidemics_and_predators_follow_their_equations() -> None:
    integrate = pytest.importorskip("scipy.integrate")
    torch.manual_seed(0)
    exact = {"rtol": 1e-9, "atol": 1e-14}
    theta = TASKS["sir"]().prior.sample([3])
    for (b, g), found in zip(theta.double().tolist(), sir_infected(theta), strict=True):
        days = integrate.solve_ivp(
            lambda _, u, b=b, g=g: [-b * u[0] * u[1], b * u[0] * u[1] - g * u[1]],
            (0, 153),
            [1 - 1e-6, 1e-6],
            t_eval=range(0, 154, 17),
            **exact,
        )
        assert found.tolist() == pytest.approx(days.y[1], rel=1e-4)
    theta = TASKS["lotka_volterra"]().prior.sample([3])
    for (a, b, c, d), found in zip(
        theta.double().tolist(), lotka_volterra_sizes(theta), strict=True
    ):
        times = integrate.solve_ivp(
            lambda _, u, a=a, b=b, c=c, d=d: [u[0] * (a - b * u[1]), u[1] * (d * u[0] - c)],
            (0, 19),
            [30.0, 1.0],
            t_eval=[2.1 * i for i in range(10)],
            **exact,
        )
        assert found.tolist() == pytest.approx(times.y.reshape(-1), rel=1e-4)


def test_distractors_hide_the_eight_numbers_of_slcp() -> None:
    torch.manual_seed(0)
    theta = torch.tensor([[2.0, -1.0, 0.1, 0.1, 0.0]]).expand(500, 5)
    x, places = TASKS["slcp_distractors"]().simulate(theta), distractors()[1]
    shown = x[:, places.argsort()][:, :8].reshape(500, 4, 2)
    assert x.shape == (500, 100)
    assert (shown - torch.tensor([2.0, -1.0])).abs().max() < 0.1
