"""The Markov chains of mcmc_correct: from starts in a guide's base space to draws of the latents.

Each method returns vectors of the latents ``(num_chains, num_samples, D)``, and what it counted.
"""

from __future__ import annotations

import time
from functools import partial

import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from .base_space import BaseSpace, GaussianSpace
from .chains import Counts, bulk_ess, rank_rhat, tail_ess
from .hmc import Chains, sample_hmc

#: Number of NUTS transitions, warm-up included, from which on the density is compiled.
_LONG = 2000

#: What chains in units of a Gaussian need to be kept: draws of each, a rank-normalised R-hat below
#: the second number, and effective draws of every latent.
_FEWEST_STATES, _NEARLY_AGREE, _FEW = 50, 1.05, 400

#: R-hat below which chains may end, effective draws of every latent that this takes as well, and
#: the largest number of draws of each chain.
_AGREE, _ENOUGH, _MOST_STATES = 1.0095, 1100, 10_000

#: Share of a time limit for chains in units of a Gaussian, and the smallest share left for chains
#: in the base space.
_FIRST, _LEAST = 0.4, 0.1


def neutra(
    space: BaseSpace, start: Tensor, num_samples: int, warmup_steps: int, progress: bool
) -> tuple[Tensor, Counts]:
    """Run NUTS in the guide's base space, chain after chain."""
    count = warm = evaluations = divergences = 0
    states, rates = [], []
    space.capture(1)
    if space.graph is not None and len(start) * (num_samples + warmup_steps) >= _LONG:
        space.graph.compile()

    def potential(params: dict[str, Tensor]) -> Tensor:
        nonlocal count
        count += 1
        eps = params["eps"]
        value, grad = space.value_and_grad(eps[None])
        # A linear function with the value and the gradient that are known.
        return -(value[0] + (grad[0] * (eps - eps.detach())).sum())

    def note_warm_up(kernel: MCMCKernel, params: object, stage: str, i: int) -> None:
        nonlocal warm
        if stage.startswith("Warmup"):
            warm = count

    for eps in start:
        count = warm = 0
        mcmc = MCMC(
            NUTS(potential_fn=potential),
            num_samples,
            warmup_steps,
            initial_params={"eps": eps},
            disable_progbar=not progress,
            hook_fn=note_warm_up,
        )
        mcmc.run()
        states.append(mcmc.get_samples()["eps"])
        evaluations += count - warm
        diagnosed = mcmc.diagnostics()
        rates += diagnosed["acceptance rate"].values()
        divergences += sum(map(len, diagnosed["divergences"].values()))
    found, rate = _unconstrained(space, torch.stack(states)), sum(rates) / len(rates)
    return found, Counts(accept_rate=rate, evaluations=evaluations, divergences=divergences)


def hamiltonian(
    space: BaseSpace,
    start: Tensor,
    num_samples: int | None,
    warmup_steps: int,
    progress: bool,
    seconds: float | None = None,
) -> tuple[Tensor, Counts]:
    """Hamiltonian Monte Carlo, in units of a Gaussian where that mixes; else in the base space.

    A gradient there costs a fraction of one through the flows. Where the posterior's widths differ
    too much from place to place, as in a funnel, chains diverge or disagree.

    :param num_samples: None for as many as are enough, or as the time allows.
    """
    began = time.monotonic()
    gaussian = GaussianSpace(space)
    gaussian.capture(len(start))
    enough = _are_enough if num_samples is None else None
    sample = partial(sample_hmc, enough=enough, progress=progress)
    sizes = _MOST_STATES if num_samples is None else num_samples, warmup_steps
    limit = None if seconds is None else _FIRST * seconds
    points = gaussian.points(space.unconstrained(start))
    first = sample(gaussian.value_and_grad, points, *sizes, seconds=limit)
    if _mixes(first) if enough is None else _are_enough(first.states):
        return _unconstrained(gaussian, first.states), _counts(first)
    shape = start.shape[1:]
    if len(shape) == 1:
        value_and_grad = space.through_flows
    else:

        def value_and_grad(eps: Tensor) -> tuple[Tensor, Tensor]:
            value, grad = space.value_and_grad(eps.reshape(-1, *shape))
            return value, grad.flatten(1)

    if seconds is not None:
        limit = max(seconds - (time.monotonic() - began), _LEAST * seconds)
    found = sample(value_and_grad, start.flatten(1), *sizes, seconds=limit)
    evaluations = first.gradients + found.gradients
    if float(rank_rhat(first.states).max()) < float(rank_rhat(found.states).max()):
        states, counts = _unconstrained(gaussian, first.states), _counts(first)
    else:
        states = _unconstrained(space, found.states.unflatten(-1, shape))
        counts = _counts(found)
    counts["evaluations"] = evaluations
    return states, counts


def _mixes(chains: Chains) -> bool:
    """Whether so many draws as were asked for nearly agree, and no trajectory diverged."""
    if chains.divergences or chains.states.shape[1] < _FEWEST_STATES:
        return False
    agree = float(rank_rhat(chains.states).max()) < _NEARLY_AGREE
    return agree and float(bulk_ess(chains.states).min()) >= _FEW


def _are_enough(states: Tensor) -> bool:
    """Whether draws may be relied on: rank-normalised R-hat, and effective draws of each latent."""
    if float(rank_rhat(states).max()) >= _AGREE:
        return False
    return float(torch.minimum(bulk_ess(states), tail_ess(states)).min()) >= _ENOUGH


def _unconstrained(space: BaseSpace | GaussianSpace, states: Tensor) -> Tensor:
    return space.unconstrained(states.flatten(0, 1)).unflatten(0, states.shape[:2])


def _counts(chains: Chains) -> Counts:
    return {
        "accept_rate": chains.accept_rate,
        "evaluations": chains.gradients,
        "divergences": chains.divergences,
    }
