r"""A full-rank Gaussian for a model, without step sizes: modes, Laplace, then matched scores.

L-BFGS climbs from many starts, until it finds no new mode. At points of its paths, not only at
their ends (a hierarchical model has its mode where there is no mass), Gaussians are laid by the
Hessian, and the ELBO chooses among them (as in Pathfinder, Zhang et al. 2022 [arXiv:2108.03782]).
It is then moved to match the scores of the posterior (:mod:`.laplace`).
"""

from __future__ import annotations

import math
import secrets
import time
from dataclasses import dataclass
from typing import NoReturn

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_median
from torch import Tensor

from ..guides.flat_priors import start_flat_priors
from ..support.calls import Model
from ..support.deprecation import renamed
from .climbs import climb
from .joint import Joint
from .laplace import FEW_DRAWS, Gaussian, LogDensity, best_of, match, matched_normal
from .pace import Pace

#: Number of points of each path at which a Gaussian is tried. Into a funnel a path takes few steps
#: past the mass and many beyond.
_TRIED_POINTS = 12

#: Largest number of climbs in a search for modes, as a multiple of the number of climbs in a row
#: that may find nothing new.
_MOST_CLIMBS = 10

#: Number of climbs at once, and the smallest number: half of the climbs on an oscillator's
#: posterior end at modes without mass.
_AT_ONCE = 16

#: Rough number of evaluations that a climb takes to its mode.
_EVALUATIONS = 60

#: Share of the time limit for the first climbs, all at once.
_CLIMBS_SHARE = 0.5

#: Number of points that the start of a climb is drawn from, and the share of the time limit for
#: the log-densities of all of them.
_CANDIDATES, _CANDIDATES_SHARE = 200, 0.1

#: Share of the time limit by which a search may be late: each mode that was found is to be tried.
_LATE = 0.5

#: Share of the time limit for the Hessians of one batch of points.
_HESSIANS_SHARE = 0.1

#: Number of common random draws behind each estimate of an ELBO.
_ELBO_DRAWS = 256

#: Fall of the log-density, in nats, on the way between two modes from which on they are two.
DIP = 1.0

#: Difference in ELBO, in nats, to the best mode from which on a mode has too little mass to search.
NEGLIGIBLE = 7.0

#: Location or width of an unconstrained latent beyond which the posterior is taken to be improper,
#: unless its log-density falls by the second number, at a distance of the third, in widths of the
#: Gaussian, on either side.
_FAR, _FALL, _AWAY = 1e7, 2.0, 5.0


@renamed(seconds="max_seconds")
def fit_gaussian(
    model: Model,
    *args: object,
    num_starts: int = 16,
    temperature: float = 1.0,
    max_seconds: float | None = None,
    **kwargs: object,
) -> tuple[AutoMultivariateNormal, list[Gaussian]]:
    r"""Fit an ``AutoMultivariateNormal`` guide to the model, and find its modes.

    :param model: any model that Pyro's NUTS takes; finite discrete latents are summed out.
    :param args: its arguments, as are ``kwargs``.
    :param num_starts: number of climbs in a row without a new mode that ends the search for modes.
        The first climb is from the priors' medians. The others are alternately from uniform points
        of [-2, 2] or [-5, 5] in unconstrained space, and from 3 to 10 widths around a mode.
    :param temperature: fits :math:`p^{1/T}`, which is wider.
    :param max_seconds: time for the search for modes; as long again goes to the last climb and the
        last Gaussian.
    :return: the guide, whose location has shape ``(D,)`` in unconstrained space, and a Gaussian for
        p itself at every mode that was found, the best first; without those that are negligible.
    :raises ValueError: as :class:`~pyro_naf.infer.joint.Joint`, when the log-density is finite at
        none of the starts, or when the posterior is improper.

    The sign of x is unknown, so that there are two modes:

    >>> import pyro, pyro.distributions as dist
    >>> _ = pyro.set_rng_seed(0)
    >>> def model(y):
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(x.square(), 0.1), obs=y)
    >>> guide, modes = fit_gaussian(model, torch.tensor(1.0))
    >>> guide.loc.shape, sorted(round(mode.loc.item(), 1) for mode in modes)
    (torch.Size([1]), [-1.0, 1.0])
    """
    joint = Joint(model, args, kwargs)
    best, modes, _ = find_gaussian(joint, num_starts, temperature, max_seconds)
    hidden = poutine.block(model, hide=list(joint.discrete)) if joint.discrete else model
    guide = AutoMultivariateNormal(hidden, init_loc_fn=start_flat_priors(init_to_median))
    guide._pyro_name = free_name(f"{type(guide).__name__}_start")
    with poutine.block():
        guide._setup_prototype(*args, **kwargs)
    set_gaussian(guide, best)
    return guide, modes


def find_gaussian(
    joint: Joint, num_starts: int, temperature: float = 1.0, seconds: float | None = None
) -> tuple[Gaussian, list[Gaussian], int | None]:
    """Fit the nearest Gaussian to a joint density, and one at every mode.

    The third value is the number of climbs, where time has ended the search before the first
    ``num_starts``.
    """
    normal = matched_normal(max(_ELBO_DRAWS, 4 * joint.dim), joint.start)
    limit = math.inf if seconds is None else seconds
    deadline = time.monotonic() + limit
    tried, modes, climbs = search(joint, joint.start, normal, num_starts, deadline)
    if not modes:
        raise_for_start(joint)
    best = modes[0]
    tempered: LogDensity = lambda z: joint(z) / temperature  # noqa: E731
    if temperature != 1:
        best = best_of(tempered, tried, normal, deadline + 0.2 * limit) or best
    best = match(tempered, best, normal, deadline=max(deadline, time.monotonic()) + 0.5 * limit)
    _check_proper(joint, best)
    return best, modes, climbs if climbs < num_starts else None


@torch.no_grad()
def set_gaussian(guide: AutoMultivariateNormal, gaussian: Gaussian) -> None:
    """Make the guide this Gaussian."""
    guide.loc.copy_(gaussian.loc)
    scale = gaussian.factor.diagonal().clone()
    guide.scale, guide.scale_tril = scale, gaussian.factor / scale[:, None]


def search(
    target: LogDensity,
    middle: Tensor,
    normal: Tensor,
    num_starts: int,
    deadline: float = math.inf,
) -> tuple[Tensor, list[Gaussian], int]:
    """Points along paths of L-BFGS to modes ``(N, D)``, and the best Gaussian of each mode's path.

    The third value is the number of climbs whose ends were looked at. The search ends when
    ``num_starts`` climbs in a row, the first counted, have found no new mode, or at the deadline, a
    value of :func:`time.monotonic`.
    """
    tried = middle[None][:0]
    modes: list[Gaussian] = []
    tops: list[Tensor] = []
    found: list[list[Tensor]] = []  # points of all paths to each top
    climbs = futile = 0
    latest = deadline + _LATE * max(deadline - time.monotonic(), 0.0)
    thrift = Thrift.of(target, middle, deadline)
    at_once = min(thrift.climbs, num_starts)
    while futile < num_starts and climbs < _MOST_CLIMBS * num_starts:
        numbers = range(climbs, climbs + at_once)
        starts = torch.stack([_start(target, i, middle, modes, thrift.candidates) for i in numbers])
        known, new = len(modes), len(tops)
        paths = _paths(target, starts, deadline, -math.inf if modes else latest)
        unseen = len(paths)  # what time cuts off has not been looked at
        for path in paths:
            if tops and time.monotonic() > latest:
                break
            unseen -= 1
            led = [leads(target, top, path[-1]) for top in tops]
            if not any(led):
                tops.append(path[-1])
                found.append([])
            found[led.index(True) if any(led) else -1].append(spread_along(path))
        ends = _highest_first(target, found[new:])
        for i, parts in enumerate(ends):
            points = torch.cat(parts)
            tried = torch.cat([tried, points])
            if modes and time.monotonic() > deadline:  # of the others the tops alone are tried
                points = points[-1:]
            if modes and time.monotonic() > latest:
                unseen += sum(map(len, ends[i:]))
                break
            if best := best_of(target, points, normal, deadline, thrift.hessians):
                best = match(target, best, normal, steps=10, deadline=deadline)
                modes = distinct(target, [*modes, best])
        climbs += len(numbers) - unseen
        futile = 1 if len(modes) > known else futile + len(numbers)
        if time.monotonic() > deadline:
            break
    return tried, modes, climbs


def _paths(target: LogDensity, starts: Tensor, deadline: float, latest: float) -> list[Tensor]:
    """Paths of climbs; where time breaks them off the highest goes on alone, and is the first."""
    paths = [path for path in climb(target, starts, deadline=deadline) if len(path)]
    if not paths or not deadline < time.monotonic() < latest:
        return paths
    with torch.no_grad():
        heights = target(torch.stack([path[-1] for path in paths]))
    highest, *others = [paths[i] for i in heights.argsort(descending=True).tolist()]
    (rest,) = climb(target, highest[-1:], deadline=latest)
    return [torch.cat([highest, rest[1:]]), *others]


@torch.no_grad()
def _highest_first(target: LogDensity, paths: list[list[Tensor]]) -> list[list[Tensor]]:
    """Points of the paths to each top, those of the highest top first."""
    return sorted(paths, key=lambda parts: -float(target(parts[-1][-1:])))


@dataclass(frozen=True)
class Thrift:
    """What a search can afford at once: climbs, candidates for each start, points with Hessians."""

    climbs: int = _AT_ONCE
    candidates: int = _CANDIDATES
    hessians: int = _AT_ONCE

    @classmethod
    def of(cls, target: LogDensity, middle: Tensor, deadline: float) -> Thrift:
        """By the cost of a gradient, and the time until the deadline."""
        if not math.isfinite(deadline):
            return cls()
        pace, left = Pace.of(target, middle), max(deadline - time.monotonic(), 0.0)
        climbs = pace.points(_CLIMBS_SHARE * left / _EVALUATIONS)
        candidates = pace.values(_CANDIDATES_SHARE * left) // max(1, min(climbs, _AT_ONCE))
        # A Hessian takes some three gradients for each latent, and its Gaussian's ELBO some draws.
        each = 3 * len(middle) + FEW_DRAWS
        hessians = pace.points(_HESSIANS_SHARE * left) // each
        return cls(
            climbs=max(1, min(climbs, _AT_ONCE)),
            candidates=max(1, min(candidates, _CANDIDATES)),
            hessians=max(1, min(hessians, _AT_ONCE)),
        )


@torch.no_grad()
def _start(
    target: LogDensity,
    number: int,
    middle: Tensor,
    modes: list[Gaussian],
    candidates: int = _CANDIDATES,
) -> Tensor:
    """By turns a point of a box, and one 3 to 10 widths from a mode: scales are not known.

    It is drawn from many such points by their density, to a power that leaves a choice of a tenth:
    among dozens of modes those with mass are found first.
    """
    if number == 0:
        return middle
    if number % 2 or not modes:
        box = (2.0, 5.0)[number // 2 % 2]
        z = (2 * torch.rand(candidates, len(middle)).to(middle) - 1) * box
    else:
        mode = modes[int(torch.randint(len(modes), ()))]
        widths = 3 + 7 * torch.rand(candidates, 1).to(middle)
        z = mode.draw(torch.randn(candidates, len(middle)).to(middle) * widths)
    if candidates == 1:
        return z[0]
    log_p = target(z).nan_to_num(nan=-torch.inf, posinf=-torch.inf)
    if not log_p.isfinite().any():
        return z[0]
    return z[even_softmax(log_p, 0.1).multinomial(1)[0]]


def free_name(name: str) -> str:
    """Return a guide name that no other guide has, in this process or another.

    A guide of the same name would read the weights of this one from Pyro's param store, or this one
    those of a guide that is loaded, or that was made after the store was cleared.
    """
    return f"{name}_{secrets.token_hex(4)}"


def raise_for_start(joint: Joint) -> NoReturn:
    """Raise ValueError that names the sites whose log-density is not finite at the start."""
    point = {name: value[0] for name, value in joint.constrained(joint.start[None]).items()}
    for name, value in joint.culprits(point).items():
        raise ValueError(
            f"the log-density of site {name!r} is {value} at the priors' medians, and not finite "
            "at any other start; look for NaN in its data and for impossible values"
        )
    raise ValueError("the derivatives of the model's log-density are not finite at any start")


@torch.no_grad()
def _check_proper(joint: Joint, gaussian: Gaussian) -> None:
    """Refuse a Gaussian that is very far out, or very wide, unless it is that of a proper mode.

    The units of a latent may be small.
    """
    width = gaussian.factor.norm(dim=-1)
    is_far = ~(gaussian.loc.abs() + width < _FAR)
    if not is_far.any():
        return
    # Along each latent the others move as the Gaussian says.
    move = _AWAY * (gaussian.factor @ gaussian.factor.mT / width[:, None])[is_far]
    top, *sides = joint(torch.cat([gaussian.loc[None], gaussian.loc + move, gaussian.loc - move]))
    falls = (top - torch.stack(sides).unflatten(0, (2, -1)) > _FALL).all(0)
    improper = is_far.index_put((is_far,), ~falls)
    for name, part in joint.split(improper).items():
        if part.any():
            raise ValueError(
                f"the posterior seems to be improper: site {name!r} escapes to infinity; give it a "
                "proper prior"
            )


def even_softmax(log_weights: Tensor, least: float = 0.05) -> Tensor:
    """Weights ``(N,)``, normalised, to the largest power <= 1 with an ESS of N times ``least``.

    >>> even_softmax(torch.zeros(4))
    tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    low, high, power = 0.0, 1.0, 1.0
    for _ in range(20):
        weights = (power * log_weights).softmax(0)
        if even := bool(1 / weights.square().sum() >= least * len(weights)):
            low = power
        else:
            high = power
        if even and power == 1:
            break
        power = (low + high) / 2
    return weights


def spread_along(path: Tensor) -> Tensor:
    """Points evenly along a path, its end among them."""
    places = torch.linspace(0, len(path) - 1, min(len(path), _TRIED_POINTS))
    return path[places.round().long()]


def distinct(target: LogDensity, gaussians: list[Gaussian]) -> list[Gaussian]:
    """Return the best of each mode, without negligible ones, the best first."""
    kept: list[Gaussian] = []
    for g in sorted(gaussians, key=lambda g: -g.elbo):
        if kept and g.elbo < kept[0].elbo - NEGLIGIBLE:
            break
        if all(dip(target, g.loc, k.loc) > DIP for k in kept):
            kept.append(g)
    return kept


@torch.no_grad()
def leads(target: LogDensity, top: Tensor, end: Tensor) -> bool:
    """Whether one climbs from ``end`` to ``top``; a saddle where a path has ended is no top."""
    return float(target(end[None]) - target(top[None])) < DIP and dip(target, end, top) < DIP


@torch.no_grad()
def dip(target: LogDensity, a: Tensor, b: Tensor) -> float:
    """Return how far the log-density falls on the way from a to b, below the lower of the two."""
    values = target(torch.lerp(a, b, torch.linspace(0, 1, 21).to(a)[:, None]))
    return float(torch.minimum(values[0], values[-1]) - values.min())
