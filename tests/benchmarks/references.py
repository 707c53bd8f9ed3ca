"""Draws of a posterior whose density is known: by rejection, by chains, by weights, from files."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy
import pyro.distributions as dist
import torch
from torch import Tensor


def official(task: Any, number: int) -> tuple[Tensor, Tensor] | None:
    """Observation ``(C,)`` and reference draws ``(10000, D)`` of sbibm; None where it is not there.

    Its files are read, its code is not run: ``pip install --no-deps sbibm`` is enough.
    """
    try:  # not as a module, whose name the benchmark has
        package = distribution("sbibm")
    except PackageNotFoundError:
        return None
    folder = Path(str(package.locate_file("sbibm"))) / "tasks" / task.folder / "files"
    folder /= f"num_observation_{number}"

    def read(name: str) -> Tensor:
        table = numpy.loadtxt(folder / name, delimiter=",", skiprows=1)
        return torch.as_tensor(table, dtype=torch.float32)

    return read(f"{task.observation}.csv"), read("reference_posterior_samples.csv.bz2")


def rejection(draw: Callable[[int], Tensor], prior: Any, count: int) -> Tensor:
    """Draws that lie inside of the prior's box."""
    found: list[Tensor] = []
    while sum(map(len, found)) < count:
        z = draw(4 * count)
        found.append(z[prior.support.check(z)])
    return torch.cat(found)[:count]


def weighted_population(
    prior: Any, log_likelihood: Callable[[Tensor], Tensor], count: int
) -> Tensor:
    """Draws of a posterior of one mode whose density is dear: few chains, then weighted draws.

    The proposal is Student's t around the chains.

    :raises RuntimeError: when there are fewer than ``count`` effective draws among 40 times that.
    """
    z = population(prior, log_likelihood, 1000, moves=20)
    tril = torch.linalg.cholesky(1.3 * z.T.cov())
    proposal = dist.MultivariateStudentT(4.0, z.mean(0), tril)
    z = proposal.sample([40 * count])
    found = torch.cat([log_likelihood(part) for part in z.split(20_000)])
    weights = (found + prior.log_prob(z) - proposal.log_prob(z)).double()
    weights = weights.nan_to_num(nan=-torch.inf).softmax(0)
    if (effective := float(1 / (weights**2).sum())) < count:
        raise RuntimeError(f"only {effective:.0f} of {len(z)} draws are effective")
    return z[weights.multinomial(count, True)]


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
        few = min(30, moves)
        z, value = move(z, value, power, prior, log_likelihood, few if power < 1 else moves)
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
