"""Guides fitted to a posterior at equal time: this package's, Pyro's, and the turnkey fit.

Every guide but the turnkey fit is trained alike: Adam on the ELBO of 16 vectorised particles,
gradients clipped, steps that are not finite skipped. Three rates are tried for a twelfth of the
time each; with the one of the best ELBO training starts anew, and its rate falls to zero along a
cosine over the second half of what is left.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import pyro
import pyro.distributions.transforms as pyro_flows
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoGuide,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
)
from targets import Target

from pyro_naf.infer import AutoDDSFNormal, AutoDSFNormal, refine

#: On a machine that others use too, the time of this process is what a clock would show on an idle
#: one, as everything runs in one thread.
clock = time.process_time

PARTICLES = 16
RATES = (3e-2, 1e-2, 2e-3)
TRIAL = 1 / 12
CLIP = 10.0


@dataclass(frozen=True)
class Fit:
    """A fitted guide and what it took."""

    guide: AutoGuide
    steps: int
    skipped: int
    learning_rate: float
    notes: dict[str, Any]


def fit(name: str, target: Target, seconds: float, seed: int = 0) -> Fit:
    """The guide of this name fitted to the target in so much time."""
    torch.set_default_dtype(torch.double)  # Pyro's flows have no other way to the model's dtype
    if name in TURNKEY:
        return _refined(target, seconds, seed, **TURNKEY[name])
    train = partial(_trained, GUIDES[name], target, seed)
    trials = {rate: train(rate, TRIAL * seconds) for rate in RATES}
    rate = max(trials, key=lambda r: _elbo(trials[r][1]))
    guide, losses, skipped = train(rate, seconds * (1 - TRIAL * len(RATES)))
    return Fit(guide, len(losses), skipped, rate, {})


def names(target: Target) -> list[str]:
    """The guides that take part on a target."""
    turnkey = [n for n, options in TURNKEY.items() if target.multimodal or not options]
    return [*turnkey, *GUIDES]


def _flow(factory: Callable[..., Any], count: int, **options: Any) -> Callable[..., AutoGuide]:
    transform = partial(pyro_flows.iterated, count, factory, **options)
    return lambda model: AutoNormalizingFlow(model, transform)


#: The turnkey fit, with options that are for targets of several modes only.
TURNKEY: dict[str, dict[str, Any]] = {
    "refine": {},
    "refine, tempering=0.02": {"tempering": 0.02},
}

GUIDES: dict[str, Callable[..., AutoGuide]] = {
    "AutoDSFNormal": AutoDSFNormal,
    "AutoDDSFNormal": AutoDDSFNormal,
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": AutoLowRankMultivariateNormal,
    "AutoIAFNormal": partial(AutoIAFNormal, num_transforms=2),
    "Pyro spline": _flow(pyro_flows.spline_autoregressive, 2),
    "Pyro BNAF": _flow(pyro_flows.block_autoregressive, 1, hidden_factors=[8, 8]),
    "Pyro NAF": _flow(pyro_flows.neural_autoregressive, 2),
}

#: Those that do not come with this package.
PYRO = [name for name in GUIDES if "DSF" not in name]


def _refined(target: Target, seconds: float, seed: int, **options: Any) -> Fit:
    pyro.clear_param_store()
    with mock.patch("pyro_naf.infer.training.time.monotonic", clock):
        found = refine(
            target.model, *target.args, seconds=seconds, seed=seed, progress=False, **options
        )
    notes = {"verdict": found.verdict, "missed": found.missed, "khat_before": found.before.khat}
    return Fit(found.guide, found.steps, found.skipped, 1e-2, notes)


def _trained(
    make: Callable[..., AutoGuide], target: Target, seed: int, rate: float, seconds: float
) -> tuple[AutoGuide, list[float], int]:
    """The guide after so long, the losses of its steps, and how many of these were skipped."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    start = clock()
    guide = make(target.model)
    guide(*target.args)
    elbo = Trace_ELBO(PARTICLES, vectorize_particles=True, max_plate_nesting=0)
    weights = list(guide.parameters())
    adam = torch.optim.Adam(weights, lr=rate, betas=(0.9, 0.99))
    losses: list[float] = []
    skipped = 0
    with pyro.validation_enabled(False):
        while (spent := (clock() - start) / seconds) < 1:
            decay = 0.5 * (1 - math.cos(2 * math.pi * max(spent, 0.5)))
            adam.param_groups[0]["lr"] = rate * decay
            adam.zero_grad()
            loss = elbo.differentiable_loss(target.model, guide, *target.args)
            losses.append(loss.item())
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(weights, CLIP)
            if math.isfinite(losses[-1]) and math.isfinite(norm):
                adam.step()
            else:
                skipped += 1
    return guide, losses, skipped


def _elbo(losses: list[float]) -> float:
    """The mean ELBO of the last quarter, if it is finite."""
    mean = -statistics.fmean(losses[-max(len(losses) // 4, 1) :] or [math.inf])
    return mean if math.isfinite(mean) else -math.inf
