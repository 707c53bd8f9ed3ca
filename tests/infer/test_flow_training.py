"""Claims about the losses and the budget that refine trains with."""

from __future__ import annotations

import copy
import itertools
import math
import time
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import banana
from torch import Tensor

from pyro_naf.infer import AutoDSFNormal, RefineSettings, refine
from pyro_naf.infer.gaussian import even_softmax
from pyro_naf.infer.joint import Joint
from pyro_naf.infer.laplace import Gaussian
from pyro_naf.infer.mixture import Pool, Pushed
from pyro_naf.infer.objective import Loss, Objective
from pyro_naf.infer.training import Budget, Training


def guide_away_from_its_start(inverse: bool = False) -> AutoDSFNormal:
    guide = AutoDSFNormal(banana, hidden_dims=[8], full_rank=True, inverse=inverse)
    guide()
    guide.double()
    with torch.no_grad():
        for weight in guide.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return guide


def gradient(training: Training, loss: Loss | Tensor) -> Tensor:
    if isinstance(loss, Loss):
        grads = loss.gradients(training.weights)
    else:
        grads = list(torch.autograd.grad(loss, training.weights, allow_unused=True))
    return torch.cat([g.reshape(-1) for g in grads if g is not None])


def training_of(guide: AutoDSFNormal, law: Any, num_particles: int) -> Training:
    """Training towards a law, with a pool of its draws."""
    draws = law.sample((4000,)).detach()
    factor = 1.5 * torch.linalg.cholesky(draws.T.cov())
    pool = Pool(law.log_prob, [Gaussian(draws.mean(0), factor, math.nan)])
    return Training(Objective(guide, law.log_prob, num_particles, pool), 1e-2)


@pytest.mark.parametrize("phase, noisy", [("land", "climb"), ("balance", "learn")])
def test_no_gradient_is_left_where_the_guide_is_the_posterior(phase: str, noisy: str) -> None:
    guide = guide_away_from_its_start(inverse=phase == "balance")
    posterior = copy.deepcopy(guide).get_posterior()
    training = training_of(guide, posterior, num_particles=16)
    assert gradient(training, training.objective.of(phase, 0)).abs().max() < 1e-9
    assert gradient(training, training.objective.of(noisy, 0)).abs().max() > 1e-2


def test_measuring_a_step_changes_nothing() -> None:
    guide = guide_away_from_its_start()
    training = training_of(guide, copy.deepcopy(guide).get_posterior(), num_particles=16)
    before = [weight.clone() for weight in training.weights]
    state = torch.get_rng_state()
    assert training.seconds_of_a_step() > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert training.losses == [] and not training.adam.state
    assert all(map(torch.equal, before, training.weights))


def test_wide_layers_learn_slowly() -> None:
    guide = AutoDSFNormal(banana, hidden_dims=[64], full_rank=True)
    guide()
    training = Training(Objective(guide, lambda z: -z.square().sum(-1), 4), 1e-2)
    groups = dict(zip(training.rates, training.adam.param_groups, strict=True))
    assert groups.keys() == {1.0, 0.5}  # 64 inputs are twice as many as have the whole rate
    slow = {weight.shape for weight in groups[0.5]["params"]}
    assert all(shape[-1] == 64 for shape in slow)
    count = sum(len(group["params"]) for group in groups.values())
    assert count == len(list(guide.parameters()))


def test_balancing_descends_the_variance_of_the_log_weights() -> None:
    """Its gradient against autograd's, at the same draws."""
    guide = guide_away_from_its_start(inverse=True)
    near = copy.deepcopy(guide)
    with torch.no_grad():
        for weight in near.parameters():
            weight.add_(0.003 * torch.randn_like(weight))
    law = near.get_posterior()
    training = training_of(guide, law, num_particles=50)
    theirs = training.objective.pool.draw(100)
    with mock.patch.object(training.objective.pool, "draw", return_value=theirs):
        found = gradient(training, training.objective.balance(0))
    z = torch.cat([theirs[0], training.objective.own[0]])
    log_w = law.log_prob(z) - guide.get_posterior().log_prob(z)
    assert (log_w - log_w.median()).abs().max() < 1  # within the bounds
    exact = gradient(training, 0.5 * log_w.var(correction=0))
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-9)


def test_the_guide_s_own_draws_are_made_anew_once_in_some_steps() -> None:
    guide = guide_away_from_its_start(inverse=True)
    assert guide.latent_dim == 2
    training = training_of(guide, copy.deepcopy(guide).get_posterior(), num_particles=4)
    made = []
    for step in range(6):
        training.objective.balance(step)
        made.append(training.objective.own[0])
    pairs = itertools.pairwise(made)
    assert [a is b for a, b in pairs] == [True, False, True, False, True]


def test_weights_are_evened_out_no_more_than_needed() -> None:
    log_weights = 5 * torch.randn(1000)
    weights = even_softmax(log_weights, 0.25)
    assert 1 / weights.square().sum() == pytest.approx(250, rel=1e-2)
    assert torch.equal(weights.argsort(), log_weights.argsort())
    nearly_even = 0.1 * torch.randn(1000)
    assert torch.equal(even_softmax(nearly_even), nearly_even.softmax(0))


def phases(budget: Budget, land_at: int | None = None) -> list[str]:
    found = []
    for phase in budget:
        found.append(phase)
        if len(found) == land_at:
            budget.land()
    return found


@pytest.mark.parametrize(
    "several, land_at, expected",
    [
        (False, None, {"climb": 50, "land": 50, "landed": 1}),
        (False, 20, {"climb": 20, "land": 18, "landed": 1}),
        (True, None, {"learn": 50, "balance": 50, "landed": 1}),
    ],
)
def test_phases_have_their_parts_of_the_budget(
    several: bool, land_at: int | None, expected: dict[str, int]
) -> None:
    budget = Budget(100, None)
    budget.several = several
    found = phases(budget, land_at)
    assert {phase: found.count(phase) for phase in dict.fromkeys(found)} == pytest.approx(
        expected, abs=2
    )
    assert budget.rate < 0.01


def test_a_dear_density_is_judged_by_fewer_draws_where_seconds_are_counted() -> None:
    guide = guide_away_from_its_start()
    counts = []

    def slow(z: Tensor) -> Tensor:
        counts.append(len(z))
        time.sleep(0.02)
        return -z.square().sum(-1)

    training = Training(Objective(guide, slow, 4), 1e-2)
    training._judged(Budget(None, 0.1))
    assert sum(counts) == 64
    counts.clear()
    training._judged(Budget(10, None))
    assert sum(counts) == 50_000


def test_landings_follow_one_another_to_the_end_of_the_budget() -> None:
    budget, rates, landed = Budget(100, None), [], 0
    for step, phase in enumerate(budget):
        if step == 20:
            budget.land()
        if phase == "landed":
            landed += 1
            budget.land_again()
        rates.append(budget.rate)
    assert landed == 4  # of 20 steps each
    assert len(rates) == pytest.approx(104, abs=2)
    assert max(rates[44:]) <= 0.5 and rates[-1] < 0.01


def test_a_flow_that_has_nothing_to_add_stays_as_it_started() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(3), torch.tensor([1.0, 10.0, 0.1])).to_event(1))

    settings: dict[str, Any] = dict(seed=0, num_draws=20_000, progress=False)
    start = refine(model, steps=1, lr=1e-9, **settings)
    result = refine(model, steps=60, **settings)
    noise = math.hypot(start.elbo_se, result.elbo_se)
    assert result.khat <= 0.6 and result.elbo > start.elbo - 0.005 - 4 * noise


def test_wider_draws_fit_the_tails_that_khat_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    y = torch.tensor([0.3, -1.2, 0.5, 2.0, -0.4, 0.9, -0.6, 1.1, -1.9, 0.2], dtype=torch.double)

    def model() -> None:
        loc = pyro.sample("loc", dist.Normal(torch.tensor(0.0).double(), 10.0))
        scale = pyro.sample("scale", dist.HalfCauchy(torch.tensor(5.0).double()))
        pyro.sample("y", dist.Normal(loc[..., None], scale[..., None]).to_event(1), obs=y)

    fewer = RefineSettings(judging_draws=5000)

    def heaviest() -> float:
        """The log-weight that a thousandth of draws twice as wide as the guide's exceeds."""
        budget: Any = {"steps": 800, "num_draws": 1000, "num_starts": 4, "settings": fewer}
        guide = refine(model, seed=0, progress=False, **budget).guide
        posterior = guide.get_posterior()
        with torch.no_grad():
            z = Pushed(posterior).draw(2 * torch.randn(20_000, 2).double())
            log_weights = Joint(model)(z) - posterior.log_prob(z)
        return float(log_weights.quantile(0.999) - log_weights.median())

    with_wider = heaviest()
    monkeypatch.setattr("pyro_naf.infer.objective._huber", lambda w, *_: torch.zeros_like(w))
    # k-hat itself varies by half from seed to seed: here 2.3 against 9.9.
    assert with_wider < 0.75 * heaviest()
