"""The Markov chains of mcmc_correct: from starts in a guide's base space to draws of the latents.

Each method returns vectors of the latents ``(num_chains, num_samples, D)``, and what it counted.
"""

from __future__ import annotations

import time
from functools import partial

import torch
from torch import Tensor

from .base_space import BaseSpace, GaussianSpace
from .chains import Counts, bulk_ess, rank_rhat, tail_ess
from .hmc import Chains, LogDensityAndGrad, sample_hmc
from .nuts import sample_nuts

#: Number of NUTS transitions, warm-up included, from which on the density is compiled.
_LONG = 1000

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
    """Run NUTS in the guide's base space."""
    graph = space.capture(len(start))
    if graph is not None and num_samples + warmup_steps >= _LONG:
        graph.compile()
    target, shape = _flat(space, start), start.shape[1:]
    found = sample_nuts(target, start.flatten(1), num_samples, warmup_steps, progress)
    return _unconstrained(space, found.states.unflatten(-1, shape)), _counts(found)


def _flat(space: BaseSpace, like: Tensor) -> LogDensityAndGrad:
    """Log-density and gradient at points ``(N, D)``, of a space whose points may have rows."""

    def value_and_grad(eps: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = space.value_and_grad(eps.reshape(-1, *like.shape[1:]))
        return value, grad.flatten(1)

    return value_and_grad


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
    suffice = _mixes if enough is None else _are_enough
    if not first.divergences and suffice(first.states):
        return _unconstrained(gaussian, first.states), _counts(first)
    shape = start.shape[1:]
    if seconds is not None:
        limit = max(seconds - (time.monotonic() - began), _LEAST * seconds)
    found = sample(_flat(space, start), start.flatten(1), *sizes, seconds=limit)
    evaluations = first.gradients + found.gradients
    if float(rank_rhat(first.states).max()) < float(rank_rhat(found.states).max()):
        states, counts = _unconstrained(gaussian, first.states), _counts(first)
    else:
        states = _unconstrained(space, found.states.unflatten(-1, shape))
        counts = _counts(found)
    counts["evaluations"] = evaluations
    return states, counts


def _mixes(states: Tensor) -> bool:
    """Whether chains of the length that was asked for nearly agree."""
    if states.shape[1] < _FEWEST_STATES:
        return False
    agree = float(rank_rhat(states).max()) < _NEARLY_AGREE
    return agree and float(bulk_ess(states).min()) >= _FEW


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
