"""Claims about Hamiltonian Monte Carlo with many chains."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pyro_naf.infer.chains import bulk_ess, mean_mcse, rank_rhat, tail_ess
from pyro_naf.infer.hmc import Hamiltonian, sample_hmc
from pyro_naf.infer.leapfrog import Phase, leapfrog
from pyro_naf.infer.tuning import StepSize, halton

Density = Callable[[Tensor], Tensor]


def differentiated(log_density: Density) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def value_and_grad(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        value = log_density(x)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    return value_and_grad


def normal(count: int, dim: int) -> Tensor:
    return torch.randn(count, dim, dtype=torch.double)


CORRELATION = torch.full((5, 5), 0.9, dtype=torch.double) + 0.1 * torch.eye(5).double()
FACTOR = torch.linalg.cholesky(CORRELATION) * torch.tensor([0.01, 0.1, 1, 10, 100.0])[:, None]


def gaussian(x: Tensor) -> Tensor:
    z = torch.linalg.solve_triangular(FACTOR, x.mT, upper=False)
    return -0.5 * z.square().sum(0)


def banana(x: Tensor) -> Tensor:
    return -0.5 * x[:, 0] ** 2 - 0.5 * (x[:, 1] - x[:, 0] ** 2) ** 2


def student(x: Tensor) -> Tensor:  # 8 degrees of freedom, independent
    return -4.5 * torch.log1p(x**2 / 8).sum(-1)


def funnel(x: Tensor) -> Tensor:
    """Neal's funnel as one who reparametrises it sees it, with a third of its slope left."""
    scale = (x[:, :1] * 0.5).exp()  # x_i given v is N(0, e^(v / 2))
    return -0.5 * x[:, 0] ** 2 - (0.5 * (x[:, 1:] / scale) ** 2 + scale.log()).sum(-1)


def funnel_draws(count: int) -> Tensor:
    z = normal(count, 10)
    return torch.cat([z[:, :1], z[:, 1:] * (z[:, :1] * 0.5).exp()], -1)


def banana_draws(count: int) -> Tensor:
    z = normal(count, 2)
    return torch.stack([z[:, 0], z[:, 1] + z[:, 0] ** 2], -1)


def student_draws(count: int) -> Tensor:
    chi = torch.distributions.Chi2(torch.tensor(8.0).double()).sample((count, 4))
    return normal(count, 4) / (chi / 8).sqrt()


TARGETS: dict[str, tuple[Density, Callable[[int], Tensor]]] = {
    "gaussian": (gaussian, lambda count: normal(count, 5) @ FACTOR.T),
    "banana": (banana, banana_draws),
    "student": (student, student_draws),
    "funnel": (funnel, funnel_draws),
}


@pytest.mark.parametrize("name", TARGETS)
def test_draws_have_the_distribution_of_exact_ones(name: str) -> None:
    density, exact = TARGETS[name]
    chains = sample_hmc(differentiated(density), exact(64), 100, 80)
    states = chains.states
    assert states.shape == (64, 100, exact(1).shape[-1])
    assert chains.divergences <= (0 if name in ("gaussian", "student") else 64)  # 1 %
    assert 0.6 < chains.accept_rate < 0.97
    assert float(rank_rhat(states).max()) < 1.1  # 100 draws a chain
    assert float(bulk_ess(states).min()) > 0.004 * chains.gradients
    # Ranks of draws among exact ones are uniform: their means and variances, in standard errors.
    reference = exact(200_000).T.contiguous().sort()[0]
    columns = states.flatten(0, 1).T.contiguous()
    ranks = torch.searchsorted(reference, columns).double() / reference.shape[-1]
    ranks = ranks.T.reshape(states.shape)
    for statistic, expected in ((ranks, 1 / 2), ((ranks - 0.5).square(), 1 / 12)):
        error = (mean_mcse(statistic).square() + 1 / 12 / 200_000).sqrt()
        assert float(((statistic.mean((0, 1)) - expected) / error).abs().max()) < 4.5
    assert float(tail_ess(states).min()) > 200


@pytest.mark.parametrize("name", TARGETS)
def test_leapfrog_is_reversible_and_keeps_volume(name: str) -> None:
    density, exact = TARGETS[name]
    target = differentiated(density)
    x = exact(6)
    scale = exact(1000).std(0)
    begin = Phase(x, *target(x), normal(6, x.shape[-1]))
    end, divergent, gradients = leapfrog(target, begin, 0.05, 7, scale)
    assert not divergent.any() and gradients == 6 * 7
    back, _, _ = leapfrog(target, end._replace(velocity=-end.velocity), 0.05, 7, scale)
    torch.testing.assert_close(back.position, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(-back.velocity, begin.velocity, rtol=1e-9, atol=1e-9)

    def flow(both: Tensor) -> Tensor:
        position, velocity = both.reshape(2, 1, -1) * torch.stack([scale, scale * 0 + 1])[:, None]
        phase, _, _ = leapfrog(target, Phase(position, *target(position), velocity), 0.05, 7, scale)
        return torch.cat([phase.position / scale, phase.velocity], -1).flatten()

    both = torch.cat([x[0] / scale, begin.velocity[0]])
    width = 1e-5
    steps = width * torch.eye(len(both)).double()
    jacobian = torch.stack([(flow(both + s) - flow(both - s)) / (2 * width) for s in steps], -1)
    assert float(torch.linalg.det(jacobian)) == pytest.approx(1, abs=1e-6)


def test_the_energy_error_of_leapfrog_is_of_second_order() -> None:
    target = differentiated(banana)
    x = banana_draws(50)
    begin = Phase(x, *target(x), normal(50, 2))
    errors = []
    for steps in (20, 40):
        end, _, _ = leapfrog(target, begin, 1 / steps, steps, torch.ones(2))
        errors.append(float((end.energy - begin.energy).abs().mean()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize("bad", [math.nan, -math.inf, math.inf])
@pytest.mark.parametrize("where", ["density", "gradient"])
def test_walls_are_divergences_that_leave_the_chains_where_they_are(bad: float, where: str) -> None:
    seen = []

    def target(x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x)
        value, gradient = -0.5 * x.square().sum(-1), -x
        outside = x[:, 0] > 0
        if where == "density":
            return torch.where(outside, bad, value), gradient
        return value, torch.where(outside[:, None], bad, gradient)

    start = -torch.rand(64, 3)
    chains = sample_hmc(target, start, 300, 0)
    assert chains.divergences > 0 and bool((chains.states[..., 0] <= 0).all())
    assert bool(torch.cat(seen).isfinite().all())
    # The half-normal: its mean is -sqrt(2 / pi).
    error = float(mean_mcse(chains.states[..., 0]))
    assert float(chains.states[..., 0].mean()) == pytest.approx(-0.798, abs=4 * error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_seed_decides_the_draws_and_every_gradient_is_counted(dtype: torch.dtype) -> None:
    count = 0

    def target(x: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal count
        count += len(x)
        return -0.5 * x.square().sum(-1), -x

    start = torch.randn(8, 3, dtype=dtype)
    state = torch.get_rng_state()
    first, second = (
        sample_hmc(target, start, 5, 7, generator=torch.Generator().manual_seed(4))
        for _ in range(2)
    )
    assert torch.equal(first.states, second.states) and first.states.dtype == dtype
    assert first.gradients + second.gradients == count
    assert torch.equal(state, torch.get_rng_state())


def test_a_time_limit_cuts_the_warm_up_and_the_draws_short() -> None:
    def target(x: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * x.square().sum(-1), -x

    chains = sample_hmc(target, torch.randn(4, 2), 10**6, 10**6, seconds=0.4)
    assert 10 < chains.states.shape[1] < 10**6
    assert 0.5 < float(chains.states.std()) < 2
    assert sample_hmc(target, torch.randn(4, 2), 9, 9, seconds=1e-9).states.shape == (4, 1, 2)


@pytest.mark.parametrize("warmup_steps", [0, 1, 5])
def test_a_short_warm_up_or_none_is_exact_too(warmup_steps: int) -> None:
    chains = sample_hmc(differentiated(banana), banana_draws(64), 200, warmup_steps)
    x = chains.states[..., 0]
    assert float(x.mean()) == pytest.approx(0, abs=4 * float(mean_mcse(x)))
    assert float(x.std()) == pytest.approx(1, abs=0.1)


def test_the_jitter_covers_the_interval_evenly() -> None:
    numbers = torch.tensor([halton(i) for i in range(1, 256)])
    torch.testing.assert_close(numbers.sort()[0], torch.arange(1, 256) / 256)


@pytest.mark.parametrize(
    "start, options, match",
    [
        (torch.zeros(3), {}, r"two chains or more, got torch.float32 of shape \(3,\)"),
        (torch.zeros(1, 2), {}, r"two chains or more, got .*\(1, 2\)"),
        (torch.zeros(4, 2).long(), {}, "floating-point positions .* got torch.int64"),
        (torch.full((4, 2), math.nan), {}, "finite log-density and gradient, .* 4 of 4 chains"),
        (torch.zeros(4, 2), {"num_samples": 0}, "num_samples must be at least 1"),
        (torch.zeros(4, 2), {"warmup_steps": -1}, "warmup_steps must be at least 0"),
        (torch.zeros(4, 2), {"target_accept": 1.0}, r"target_accept must lie in \(0, 1\), got 1.0"),
        (torch.zeros(4, 2), {"seconds": 0.0}, "seconds must be positive, got 0.0"),
    ],
)
def test_arguments_out_of_range_are_named(start: Tensor, options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sample_hmc(lambda x: (-0.5 * x.square().sum(-1), -x), start, **options)


def test_chains_that_were_stopped_go_on_as_if_they_had_not_been() -> None:
    target, start = differentiated(banana), banana_draws(16)
    whole, parts = (
        Hamiltonian(target, start, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    for chains in (whole, parts):
        chains.warm_up(40)
    whole.draw(30)
    for count in (10, 1, 19):
        parts.draw(count)
    assert torch.equal(whole.states, parts.states) and whole.gradients == parts.gradients
    assert whole.count == parts.count == 30


def test_a_step_size_is_not_taken_from_the_search_that_follows_a_restart() -> None:
    step = StepSize(0.1, 0.65)
    step.learn(1.0)  # the next one is ten times as long, and more
    assert step.value > 0.5
    step.settle()
    assert step.value == 0.1
    for _ in range(100):
        step.learn(0.65 if step.value < 0.3 else 0.2)
    step.settle()
    assert 0.1 < step.value < 1


def test_carefulness_ends_divergences_and_forgets_the_draws_before() -> None:
    def cliff(x: Tensor) -> Tensor:  # a narrow neck: its width falls by a factor of a thousand
        scale = (-(x[:, 0].clamp(-1e3, 1e3) ** 2) / 1.2).exp() + 1e-3
        return -0.5 * x[:, 0] ** 2 - 0.5 * (x[:, 1] / scale) ** 2 - scale.log()

    torch.manual_seed(0)
    chains = Hamiltonian(differentiated(cliff), 0.1 * normal(64, 2))
    chains.warm_up(50)
    chains.draw(40)
    step_size, divergences = chains.tuner.step_size, chains.divergences
    chains.be_careful(0.98, 40)
    assert chains.count == chains.divergences == 0 and chains.tuner.step_size < step_size / 2
    chains.draw(40)
    assert divergences > 4 * chains.divergences


def two_modes(x: Tensor) -> Tensor:
    """Of 30 and 70 % at -1.5 and 1.5, six deviations of a mode from the middle."""
    modes = torch.stack([-0.5 * ((x[:, 0] - m) / 0.25) ** 2 + math.log(w) for m, w in MODES])
    return modes.logsumexp(0) - 0.5 * x[:, 1] ** 2


MODES = ((-1.5, 0.3), (1.5, 0.7))


def test_chains_jump_between_modes_where_a_normal_density_reaches_both() -> None:
    torch.manual_seed(0)
    start = torch.tensor([1.5, 0.0]) + 0.25 * normal(32, 2)  # in one mode alone
    shares = []
    for near_normal in (False, True):
        chains = Hamiltonian(differentiated(two_modes), start, near_normal=near_normal)
        chains.warm_up(100)
        chains.draw(200)
        shares.append(float((chains.states[..., 0] > 0).double().mean()))
        assert chains.jumps == near_normal
    jumped = chains.states
    assert shares[0] == 1 and shares[1] == pytest.approx(0.7, abs=0.05)
    # Within a mode and across the draws are exact as well.
    upper = jumped[..., 0][jumped[..., 0] > 0]
    assert float(upper.std()) == pytest.approx(0.25, rel=0.05)
    assert float(jumped[..., 1].std()) == pytest.approx(1.0, rel=0.05)


def test_jumps_that_are_hardly_ever_taken_end_with_the_warm_up() -> None:
    def far(x: Tensor) -> Tensor:
        return -0.5 * ((x - 8) / 0.1).square().sum(-1)

    chains = Hamiltonian(differentiated(far), 8 + 0.1 * normal(8, 2), near_normal=True)
    chains.warm_up(20)
    assert not chains.jumps
