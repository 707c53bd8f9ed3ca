"""Modes of a posterior beside what is known of it: a short search for what chains may lack.

Climbs begin at draws of the chains, and at points outside of them. Where all lead to one
top there is one mode, as far as the search can tell.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from .climbs import climb
from .gaussian import Thrift, distinct, even_softmax, leads, spread_along
from .joint import Joint
from .laplace import Gaussian, best_of, cholesky, match, matched_normal
from .mixture import weighed, widened
from .settings import DEFAULTS

#: Number of climbs at once, half of the first ones from draws; how many times climbs are made while
#: there is time; and the largest number of steps of each: a path may end on the slope, as in a
#: funnel without a top.
_CLIMBS, _ROUNDS, _STEPS = 16, 4, 30

#: Number of climbs from which on a search was not cut short.
_ENOUGH_CLIMBS = 8

#: Share of the time for the climbs; the rest is for Gaussians at their tops.
_CLIMBING = 0.6

#: Distance of a climb's start from the mean, in widths, beyond that of most draws, the root of the
#: number of latents; and the half-widths of the boxes that starts are drawn from.
_OUTSIDE, _BOXES = 3.0, (2.0, 5.0)

#: Smallest number of common random draws behind an ELBO, and largest number of paths to one top at
#: whose points Gaussians are tried.
_JUDGES, _PATHS = 256, 3

#: Draws of chains that are looked at, and weighted draws behind the mass of a mode.
_LOOKED_AT, _WEIGHTED = 4000, 4000

#: A mode counts as visited from this part of its mass on: shares are rough.
_VISITED = 0.25


def modes_beside(
    joint: Joint,
    known: Gaussian,
    seconds: float,
    most_latents: int = DEFAULTS.independent_latents,
    draws: Tensor | None = None,
    fewest: int = 1,
) -> tuple[list[Gaussian], int | None]:
    """Gaussians at the modes that climbs from what is known, and from outside of it, lead to.

    The second value is the number of climbs, where time has ended them; zero where none was made.
    The user's generator is left as it is.

    :param known: a Gaussian that is known.
    :param seconds: time for the climbs, and for the Gaussians.
    :param most_latents: number of latents above which no modes are looked for.
    :param draws: unconstrained draws ``(N, D)`` that it was made of; by default its own.
    :param fewest: number of tops below which no Gaussian is fitted.
    """
    if joint.dim > most_latents:
        return [], 0
    began = time.monotonic()
    deadline = began + _CLIMBING * seconds
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        thrift = Thrift.of(joint, known.loc, deadline)
        each = min(thrift.climbs, _CLIMBS)
        if draws is None:
            draws = known.draw(torch.randn(each, joint.dim).to(known.loc))
        outside = _outside(joint, known, -(-each // 2), thrift.candidates)
        inside = draws[torch.randint(len(draws), (each - len(outside),))]
        starts, paths, count = torch.cat([inside, outside]), list[Tensor](), 0
        while count == 0 or (count < _ROUNDS * each and time.monotonic() < deadline):
            paths += climb(joint, starts, max_iter=_STEPS, deadline=deadline)
            count += each
            # Where modes lie far apart all likely points are near one of them.
            starts = _wide(known, each)
        groups = _by_top(joint, [path for path in paths if len(path)])
        if len(groups) >= fewest:
            modes = _gaussians(joint, groups, began + seconds, thrift.hessians)
        else:
            modes = []
    return modes, count if count < _ENOUGH_CLIMBS else None


def unvisited_mass(joint: Joint, draws: Tensor, seconds: float) -> tuple[float, int | None]:
    """Share of the posterior's mass at modes that chains hardly visit, as far as a search finds.

    The second value is the number of climbs, as in :func:`modes_beside`.

    :param draws: unconstrained draws ``(N, D)`` of all chains.
    """
    draws = draws[draws.isfinite().all(-1)]
    if not len(draws):
        return 0.0, 0
    places = torch.linspace(0, len(draws) - 1, min(len(draws), _LOOKED_AT)).round().long()
    draws = draws[places.to(draws.device)].to(joint.start)
    loc = draws.double().mean(0)
    spread = draws - loc
    (factor,) = cholesky((spread.mT @ spread / len(draws))[None])
    known = Gaussian(loc.to(draws), factor.to(draws), math.nan)
    modes, climbs = modes_beside(joint, known, seconds, draws=draws, fewest=2)
    if len(modes) < 2:
        return 0.0, climbs
    with torch.no_grad(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        z, log_weights, _ = weighed(joint, widened([known, *modes]), known.loc, _WEIGHTED)
        # As in :func:`~pyro_naf.infer.mixture.several`, no single draw decides.
        log_weights = log_weights - log_weights.logsumexp(0)
        mass = _shares(modes, z, log_weights.clamp(max=-0.5 * math.log(len(z))).softmax(0))
        visited = _shares(modes, draws, draws.new_full((len(draws),), 1 / len(draws)))
    return float(mass[visited < _VISITED * mass].sum()), climbs


def _outside(joint: Joint, known: Gaussian, count: int, candidates: int) -> Tensor:
    """Choose starts outside of what is known, as many from either box and from wide Gaussians."""
    few, dim = -(-count // 3), joint.dim
    each = max(candidates // 3, few)
    cubes = [2 * torch.rand(each, dim).to(known.loc) - 1 for _ in _BOXES]
    parts = [box * cube for box, cube in zip(_BOXES, cubes, strict=True)]
    parts.append(_wide(known, each))
    factor = known.factor if known.factor.dim() == 2 else known.factor.diag()
    return torch.cat([_likely(joint, z, known.loc, factor, few) for z in parts])[:count]


def _wide(known: Gaussian, count: int) -> Tensor:
    """Draw from a Gaussian that is three to ten times as wide as what is known."""
    normal = torch.randn(count, len(known.loc)) * (3 + 7 * torch.rand(count, 1))
    return known.draw(normal.to(known.loc))


@torch.no_grad()
def _likely(joint: Joint, z: Tensor, loc: Tensor, factor: Tensor, count: int) -> Tensor:
    """Choose points by their density, far from a Gaussian where there are such."""
    away = torch.linalg.solve_triangular(factor, (z - loc).mT, upper=False).norm(dim=0)
    log_p = joint(z)
    usable = log_p.isfinite()
    far = usable & (away > len(loc) ** 0.5 + _OUTSIDE)
    chosen = far if far.any() else usable
    z, log_p = z[chosen], log_p[chosen]
    if len(z) <= count:
        return z
    # To a power that leaves a choice: of several modes those with mass are found first.
    return z[even_softmax(log_p, min(2 * count / len(z), 1.0)).multinomial(count)]


def _by_top(joint: Joint, paths: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group paths by the tops that they lead to, the highest top first."""
    groups: list[list[Tensor]] = []
    with torch.no_grad():
        order = sorted(paths, key=lambda path: -float(joint(path[-1:])))
    for path in order:
        for group in groups:
            if leads(joint, group[0][-1], path[-1]):
                group.append(path)
                break
        else:
            groups.append([path])
    return groups


def _gaussians(
    joint: Joint, groups: Sequence[Sequence[Tensor]], deadline: float, at_once: int
) -> list[Gaussian]:
    """Fit a Gaussian to the mode of each group of paths."""
    normal = matched_normal(max(_JUDGES, 4 * joint.dim), joint.start)
    found: list[Gaussian] = []
    for group in groups:
        if len(found) > 1 and time.monotonic() > deadline:
            break
        points = torch.cat([spread_along(path) for path in group[:_PATHS]])
        if best := best_of(joint, points, normal, deadline, at_once):
            found.append(match(joint, best, normal, steps=10, deadline=deadline))
    return distinct(joint, found)


def _shares(modes: Sequence[Gaussian], z: Tensor, weights: Tensor) -> Tensor:
    """Weight of the points ``(N, D)`` nearest to each mode."""
    nearest = torch.stack([mode.log_prob(z) for mode in modes]).argmax(0)
    return torch.zeros(len(modes)).to(weights).index_add(0, nearest, weights)
