"""Tasks of sbibm (Lueckmann et al. 2021 [arXiv:2101.04653]), written anew, and our guide on them.

A guide with a context learns from a fixed number of simulations; its draws for an observation are
told from the reference posterior by a classifier (C2ST: 0.5 is perfect, 1 useless). References are
exact where the posterior has a closed form, and a tempered population of Metropolis chains
elsewhere. Observations are simulated here, from seeds 1 to 10. Run

    python tests/benchmarks/sbibm.py two_moons slcp --simulations 10000 --observations 5
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_naf.infer import AutoDSFNormal, Standardize, fit_simulations

#: C2ST of NPE as published, a mean over ten observations, by number of simulations.
PUBLISHED = {"two_moons": {10_000: 0.606, 100_000: 0.542}, "slcp": {10_000: 0.901, 100_000: 0.831}}


class Task(NamedTuple):
    """A prior over one vector, a simulator of rows, and draws of the posterior given one row."""

    prior: Any
    simulate: Callable[[Tensor], Tensor]
    reference: Callable[[Tensor, int], Tensor]


def box(low: float, high: float, dim: int) -> Any:
    """A uniform prior."""
    return dist.Uniform(low * torch.ones(dim), high * torch.ones(dim)).to_event(1)


def rejection(draw: Callable[[int], Tensor], prior: Any, count: int) -> Tensor:
    """Draws that lie inside of the prior's box."""
    found: list[Tensor] = []
    while sum(map(len, found)) < count:
        z = draw(4 * count)
        found.append(z[prior.support.check(z)])
    return torch.cat(found)[:count]


# ----------------------------------------------------------------------------------- the tasks


def gaussian_linear() -> Task:
    """theta ~ N(0, 0.1 I), x ~ N(theta, 0.1 I), ten dimensions."""
    sd = 0.1**0.5
    return Task(
        dist.Normal(torch.zeros(10), sd).to_event(1),
        lambda theta: theta + sd * torch.randn_like(theta),
        lambda x, n: x / 2 + 0.05**0.5 * torch.randn(n, 10),
    )


def gaussian_linear_uniform() -> Task:
    """theta ~ U(-1, 1), x ~ N(theta, 0.1 I), ten dimensions: a truncated Gaussian."""
    prior, sd = box(-1.0, 1.0, 10), 0.1**0.5

    def reference(x: Tensor, count: int) -> Tensor:
        standard = dist.Normal(0.0, 1.0)
        low, high = (standard.cdf((end - x) / sd) for end in (-1.0, 1.0))
        u = (low + (high - low) * torch.rand(count, 10)).clamp(1e-7, 1 - 1e-7)
        return (x + sd * standard.icdf(u)).clamp(-1, 1)

    return Task(prior, lambda theta: theta + sd * torch.randn_like(theta), reference)


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

    return Task(prior, simulate, lambda x, n: rejection(lambda m: unfold(x, m), prior, n))


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

    return Task(prior, simulate, lambda x, n: population(prior, lambda t: log_likelihood(t, x), n))


def bernoulli_glm_raw(summarise: bool = False) -> Task:
    """A hundred spikes of a neuron with ten weights: an offset, and a smooth filter of noise."""
    generator = torch.Generator().manual_seed(42)
    stimulus = torch.randn(100, generator=generator)
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

    return Task(prior, simulate, lambda x, n: population(prior, lambda t: log_likelihood(t, x), n))


def bernoulli_glm() -> Task:
    """The same neuron, seen by its sufficient statistics."""
    return bernoulli_glm_raw(summarise=True)


TASKS: dict[str, Callable[[], Task]] = {
    "gaussian_linear": gaussian_linear,
    "gaussian_linear_uniform": gaussian_linear_uniform,
    "gaussian_mixture": gaussian_mixture,
    "two_moons": two_moons,
    "slcp": slcp,
    "bernoulli_glm": bernoulli_glm,
    "bernoulli_glm_raw": bernoulli_glm_raw,
}


# ------------------------------------------------------------------------------- the reference


def population(
    prior: Any, log_likelihood: Callable[[Tensor], Tensor], count: int, moves: int = 400
) -> Tensor:
    """Draws of a posterior: a tempered population of Metropolis chains.

    Proposals are differences of two other chains (ter Braak 2006), which fit the posterior's shape
    and jump between modes; each chain ends in one draw.
    """
    z = prior.sample([20 * count])
    value, power = log_likelihood(z), 0.0
    while power < 1:
        low, high = power, 1.0
        for _ in range(40):  # the step that leaves half of the population effective
            middle = (low + high) / 2
            w = ((middle - power) * value).double().softmax(0)
            low, high = (middle, high) if 1 / (w**2).sum() > 0.5 * len(w) else (low, middle)
        new = 1.0 if high > 1 - 1e-6 else high
        chosen = ((new - power) * value).double().softmax(0).multinomial(count, True)
        z, value, power = z[chosen], value[chosen], new
        z, value = move(z, value, power, prior, log_likelihood, 30 if power < 1 else moves)
    return z


def move(
    z: Tensor, value: Tensor, power: float, prior: Any, log_likelihood: Any, steps: int
) -> tuple[Tensor, Tensor]:
    """Metropolis steps of all chains, halves by turns, so that proposals do not depend on them."""
    count, dim = z.shape
    for i in range(2 * steps):
        mine = torch.arange(count) % 2 == i % 2
        others, current = z[~mine], z[mine]
        a, b = torch.randint(len(others), (2, len(current)))
        size = 2.38 / (2 * dim) ** 0.5 * torch.rand(len(current), 1) * 1.5
        size[torch.rand(len(current)) < 0.1] = 1.0
        proposed = current + size * (others[a] - others[b]) + 1e-4 * torch.randn_like(current)
        inside = prior.support.check(proposed)
        proposed = torch.where(inside[:, None], proposed, current)
        new = log_likelihood(proposed)
        gain = power * (new - value[mine]) + prior.log_prob(proposed) - prior.log_prob(current)
        taken = inside & (torch.rand(len(current)).log() < gain)
        z[mine] = torch.where(taken[:, None], proposed, current)
        value[mine] = torch.where(taken, new, value[mine])
    return z, value


def c2st(one: Tensor, two: Tensor) -> float:
    """Accuracy of a classifier, cross-validated, as sbibm has it: networks of 10 D units."""
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    one, two = (one - one.mean(0)) / one.std(0), (two - one.mean(0)) / one.std(0)
    rows = torch.cat([one, two]).numpy()
    labels = torch.cat([torch.zeros(len(one)), torch.ones(len(two))]).numpy()
    units = 10 * rows.shape[1]
    network = MLPClassifier((units, units), max_iter=1000, random_state=1)
    folds = KFold(5, shuffle=True, random_state=1)
    return float(cross_val_score(network, rows, labels, cv=folds, scoring="accuracy").mean())


# ----------------------------------------------------------------------------------- the guide


def fitted(task: Task, simulations: int, seed: int, **options: Any) -> tuple[Any, Any]:
    """Our conditional DSF guide, trained on simulations; and how that went."""
    torch.manual_seed(seed)
    pyro.clear_param_store()
    theta = task.prior.sample([simulations])
    x = task.simulate(theta)

    def model(x: Tensor) -> Tensor:
        return pyro.sample("theta", task.prior)

    context = {"context_fn": Standardize(x), "context_dim": x.shape[1]}
    guide = AutoDSFNormal(model, inverse=True, **context)
    return guide, fit_simulations(guide, {"theta": theta}, x, seed=seed, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], default=list(TASKS))
    parser.add_argument("--simulations", type=int, default=10_000)
    parser.add_argument("--observations", type=int, default=10)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=500)
    arguments = parser.parse_args()
    print("| task | C2ST | its range | published NPE | epochs | CPU seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in arguments.tasks:
        task, begin = TASKS[name](), time.process_time()
        guide, fit = fitted(task, arguments.simulations, 0, max_epochs=arguments.epochs)
        seconds, found = time.process_time() - begin, []
        for seed in range(1, arguments.observations + 1):
            torch.manual_seed(seed)
            x = task.simulate(task.prior.sample([1]))[0]
            reference = task.reference(x, arguments.draws)
            with torch.no_grad(), pyro.plate("draws", arguments.draws):
                draws = guide(x)["theta"]
            found.append(c2st(reference, draws))
        published = PUBLISHED.get(name, {}).get(arguments.simulations, "")
        mean, ends = sum(found) / len(found), f"{min(found):.3f} to {max(found):.3f}"
        print(
            f"| {name} | {mean:.3f} | {ends} | {published} | {fit.epochs} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
