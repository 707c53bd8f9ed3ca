"""The Markov chains of mcmc_correct: from starts in a guide's base space to draws of the latents.

Each method returns vectors of the latents ``(num_chains, num_samples, D)``, and what it counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

from torch import Tensor
from tqdm.auto import tqdm

from .adaptive_chains import (
    FIRST_TARGETS,
    SECOND_TARGETS,
    Choice,
    Goal,
    Prospect,
    Run,
    num_probes,
)
from .base_space import BaseSpace, GaussianSpace
from .chains import Counts
from .hmc import Chains, Hamiltonian
from .leapfrog import LogDensityAndGrad
from .nuts import sample_nuts

#: Number of NUTS transitions, warm-up included, and seconds for Hamiltonian Monte Carlo, from which
#: on the map of the guide and the density are compiled.
_LONG, _LONG_SECONDS = 1000, 60.0

#: What chains in units of a Gaussian need to be kept, for a number of draws that is given: R-hat,
#: and effective draws of every latent.
_NEARLY = 1.05, 400

#: R-hat below which chains may end, effective draws of every latent that this takes as well, and
#: the largest number of draws of each chain, and of numbers in all draws.
_ENOUGH, _MOST_DRAWS, _MOST_NUMBERS = (1.0095, 1100), 10_000, 2**27

#: Draws that are finished to learn what that costs.
_FINISHED = 500


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


#: Price of a gradient in units of a Gaussian, and through a guide's flows, as it often is.
_PRICES = (1.0, 4.0)


def hamiltonian(
    space: BaseSpace,
    start: Tensor,
    num_samples: int | None,
    warmup_steps: int,
    progress: bool,
    deadline: float = math.inf,
) -> tuple[Tensor, Counts]:
    """Hamiltonian Monte Carlo, in units of a Gaussian or in the base space.

    :param num_samples: None for as many as are enough, or as the time allows.
    :param deadline: when draws of all sites are to be there, a value of :func:`time.monotonic`.
    """
    gaussian = GaussianSpace(space)
    left = deadline - time.monotonic()
    gaussian.capture(len(start), None if math.isinf(left) else left)
    shape, target = start.shape[1:], _flat(space, start)
    points = gaussian.points(space.unconstrained(start))
    some = space.normal(_FINISHED)
    few = gaussian.points(space.unconstrained(some))
    finish, more = (
        _seconds(part) * len(start) / _FINISHED
        for part in (lambda: space.draws(gaussian.unconstrained(few)[None]),
                     lambda: space.unconstrained(some))
    )  # fmt: skip
    if num_samples is None:
        most = min(_MOST_DRAWS, max(_MOST_NUMBERS // points.numel(), 4))
        goal = Goal(*_ENOUGH, most, ends=True)
    else:
        goal = Goal(*_NEARLY, num_samples, ends=False)

    def in_units(bar: tqdm[None]) -> Run:
        chains = Hamiltonian(gaussian.value_and_grad, points, FIRST_TARGETS[0], bar=bar)
        return Run(chains, gaussian, list(FIRST_TARGETS[1:]), finish)

    def in_base(bar: tqdm[None]) -> Run:
        # Until it is compiled the graph is slower than what it stands for.
        if deadline - time.monotonic() > _LONG_SECONDS:
            graph = space.capture(len(start))
            if graph is not None:
                graph.compile()
        chains = Hamiltonian(target, start.flatten(1), SECOND_TARGETS[0], bar=bar, near_normal=True)
        return Run(chains, space, list(SECOND_TARGETS[1:]), finish + more)

    probes = space.normal(num_probes(len(start)))
    prospects: tuple[Prospect, ...] = (
        Prospect.of(
            gaussian.value_and_grad, gaussian.points(space.unconstrained(probes)), len(start)
        ),
        Prospect.of(target, probes.flatten(1), len(start)),
    )
    if math.isinf(deadline):  # the same seed then gives the same draws, whatever a clock says
        prospects = tuple(
            prospect._replace(gradient=price)
            for prospect, price in zip(prospects, _PRICES, strict=True)
        )
    with tqdm(disable=not progress, desc="hmc", unit="step") as bar:
        makers = partial(in_units, bar), partial(in_base, bar)
        choice = Choice(makers, prospects, goal, warmup_steps, deadline)
        best = choice.best()
    states = best.chains.states
    if best.space is space:
        states = states.unflatten(-1, shape)
    counts = _counts(best.chains.result())
    counts["evaluations"] = sum(run.chains.gradients for run in choice.runs)
    counts["out_of_time"] = not best.is_done(goal)
    return _unconstrained(best.space, states), counts


def _seconds(function: Callable[[], object]) -> float:
    """Return the seconds that a call takes, without those of the first one."""
    function()
    began = time.monotonic()
    function()
    return time.monotonic() - began


def _unconstrained(space: BaseSpace | GaussianSpace, states: Tensor) -> Tensor:
    return space.unconstrained(states.flatten(0, 1)).unflatten(0, states.shape[:2])


def _counts(chains: Chains) -> Counts:
    return {
        "accept_rate": chains.accept_rate,
        "evaluations": chains.gradients,
        "divergences": chains.divergences,
    }
