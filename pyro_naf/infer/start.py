"""Where a refinement begins: the joint density of a model or a guide, and a Gaussian near it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuide,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import biject_to

from ..conditioners import Structure
from ..guides.angles import PERIODIC, OnePeriod
from ..guides.pyro_internals import without_block, without_start
from ..support.calls import Args, Model
from .gaussian import distinct, find_gaussian, raise_for_start, search
from .graph import structure_of
from .joint import Joint
from .laplace import Gaussian, cholesky, matched_normal
from .mean_field import falling, fit_mean_field
from .pace import Pace
from .path_gradient import peel
from .progress import Progress
from .rough_gaussian import fit_roughly
from .sparse_gaussian import SparseGaussian, sparse_gaussians

#: The part of the seconds for the search for modes, at most.
_SEARCH = 0.1

#: Gradients of the density that a search for modes, or for a structure, takes at least, and batches
#: that follow one another; where twice the time for it allows fewer, a few climbs have to do.
_FEWEST_GRADIENTS, _FEWEST_BATCHES = 2000, 60

#: Seconds that the matrices of a Gaussian take, for each cube of the number of latents, and the
#: share of the time that they may take.
_MATRICES, _MATRICES_SHARE = 5e-10, 0.5

#: Gradients for each latent, at each of four points, in looking for a structure.
_STRUCTURE_GRADIENTS = 12

#: Number of latents from which on no modes are searched for: one Gaussian takes the time, and so
#: many gradients for each latent, half of them in the time that a search would take.
_MANY, _OF_MANY = 60, 15

#: And from which on one of independent latents is fitted where there is no structure; its learning
#: rate, steps that it takes at least, and draws that judge it.
_INDEPENDENT, _RATE, _ASCENT, _JUDGES = 200, 0.04, 300, 512

#: Regressions of the score that a Gaussian of full rank takes at least; draws of each by latent.
_REGRESSIONS, _REGRESSION = 5, 6

#: The part of the seconds for that Gaussian, and its seconds where there is no limit.
_FITTING, _PATIENCE = 0.2, 20.0

#: The part of the seconds for modes beside a given guide, the seconds where there is no limit, and
#: the climbs in a row that find no other.
_BESIDE, _USUAL, _FEW_STARTS = 0.03, 60.0, 4

#: The part of the seconds for a rough start, where steps of training are dear.
_ROUGH = 0.3


@dataclass(frozen=True)
class Start:
    """A joint density and a Gaussian near it, from which refinement begins.

    :ivar joint: the joint density.
    :ivar loc: mean ``(D,)``.
    :ivar factor: standard deviation ``(D,)``, or lower triangular factor ``(D, D)``.
    :ivar modes: a Gaussian at every mode that was found.
    :ivar structure: structure of the joint density, where it pays to use it.
    :ivar pattern: factor ``(D, D)`` of the covariance with the pattern of the structure.
    :ivar climbs: number of climbs after which the time for the search for modes was over; None
        where it had ended, and where a Gaussian was given.
    :ivar others: beside a Gaussian that was given, one at every mode that was found.
    :ivar widths: with tempering, widths in multiples of this Gaussian's that are to be covered.
    """

    joint: Joint
    loc: Tensor
    factor: Tensor
    modes: list[Gaussian] = field(default_factory=list)
    widths: list[float] = field(default_factory=lambda: [1.0])
    structure: Structure | None = None
    pattern: Tensor | None = None
    climbs: int | None = None
    others: list[Gaussian] | None = None


def density_of(
    guide: Model | AutoGuide | Start, args: Args, kwargs: dict[str, object]
) -> tuple[Joint, AutoGuide | None]:
    """Return the joint density of a model, or of a fitted guide's model; and that guide."""
    if isinstance(guide, Start):
        return guide.joint, None
    if isinstance(guide, AutoGuide):
        guide = _gaussian(guide, *args, **kwargs)
        return _density_of_guide(guide, args, kwargs), guide
    if not callable(guide):
        raise TypeError(f"guide must be a model or a fitted Gaussian guide, got {guide!r}")
    return Joint(guide, args, kwargs), None


def _density_of_guide(guide: AutoGuide, args: Args, kwargs: dict[str, object]) -> Joint:
    """Make the joint density of a guide's model, with blocked discrete latents summed out.

    A model whose continuous latents are blocked is taken as it is: it draws them from their prior.
    """
    inner = without_block(guide.model)
    if inner is not without_start(guide.model):
        joint = Joint(inner, args, kwargs)
        trace: Trace = guide.prototype_trace
        if joint.sites.keys() == {name for name, _ in trace.iter_stochastic_nodes()}:
            return joint
    return Joint(guide.model, args, kwargs)


def find_start(
    given: object,
    joint: Joint,
    guide: AutoGuide | None,
    tempering: float,
    num_starts: int,
    seconds: float | None,
    structure: str | Structure = "auto",
    progress: Progress | None = None,
) -> Start:
    """Take the Gaussian of a fitted guide, or find one for a model.

    :param seconds: time for the whole refinement, of which this takes a part; None without a limit.
    """
    if isinstance(given, Start):
        return given
    if guide is not None:
        loc, factor = _in_order(joint, guide, *affine_of(guide))
        widths = [tempering ** (-power / 4) for power in range(3)]  # the Gaussian's own the first
        others, climbs = ([], None) if tempering < 1 else _modes_beside(joint, loc, seconds)
        return Start(joint, loc, factor, widths=widths, climbs=climbs, others=others)
    progress = progress or Progress(is_shown=False)
    gradients = _affordable(joint, seconds)
    found, needed = None, _FEWEST_GRADIENTS
    if tempering == 1 and 2 * gradients >= _STRUCTURE_GRADIENTS * joint.dim:
        progress.phase("looking for the model's structure")
        found = _structure(joint, structure)
    is_large = tempering == 1 and joint.dim >= _MANY
    if found is None:
        needed = _OF_MANY * joint.dim if is_large else max(needed, 10 * joint.dim)
    if seconds is not None and gradients < needed:
        if joint.dim >= _INDEPENDENT and _ASCENT * joint.pace.one < _FITTING * seconds:
            progress.phase("fitting a Gaussian")
            return _mean_field(joint, _FITTING * seconds)
        progress.phase("climbing to a mode")
        return _rough_start(joint, seconds, joint.pace)
    if found is not None or is_large:
        progress.phase("fitting a Gaussian")
        return _start_of_many(joint, found, seconds)
    progress.phase("looking for modes")
    search_seconds = None if seconds is None else _SEARCH * seconds
    best, modes, climbs = find_gaussian(joint, num_starts, 1 / tempering, search_seconds)
    # The Gaussian is as wide as p^tempering.
    return Start(joint, best.loc, best.factor, modes, climbs=climbs)


def _modes_beside(
    joint: Joint, loc: Tensor, seconds: float | None
) -> tuple[list[Gaussian], int | None]:
    """Gaussians at modes, for what a given guide may lack; the climbs where time has ended them.

    The user's generator is left as it is, and training with it.
    """
    if joint.dim > _INDEPENDENT:
        return [], 0
    deadline = time.monotonic() + _BESIDE * (_USUAL if seconds is None else seconds)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        normal = matched_normal(max(_JUDGES // 2, 4 * joint.dim), loc)
        _, modes, climbs = search(joint, loc, normal, _FEW_STARTS, deadline)
    return modes, climbs if climbs < _FEW_STARTS else None


def _affordable(joint: Joint, seconds: float | None) -> int:
    """Gradients that the time for a search allows; none where it allows too few batches."""
    if seconds is None:
        return joint.pace.points(math.inf)
    is_slow = _FEWEST_BATCHES * joint.pace.one > 2 * _SEARCH * seconds
    has_many_latents = _MATRICES * joint.dim**3 > _MATRICES_SHARE * seconds
    return 0 if is_slow or has_many_latents else joint.pace.points(_SEARCH * seconds)


def _rough_start(joint: Joint, seconds: float, pace: Pace) -> Start:
    """Make a Gaussian from one climb, where nothing else can be afforded."""
    found = fit_roughly(joint, joint.start, _ROUGH * seconds, pace)
    if not found:
        raise_for_start(joint)
    modes = distinct(joint, found)
    return Start(joint, found[0].loc, found[0].factor, modes, climbs=len(found))


def _structure(joint: Joint, asked: str | Structure) -> Structure | None:
    """Find the structure that a guide is to have; one that is looked for may not be found."""
    try:
        return structure_of(asked, lambda: joint, joint.start)
    except (ValueError, RuntimeError):
        if isinstance(asked, Structure):
            raise
        return None


def _start_of_many(joint: Joint, structure: Structure | None, seconds: float | None) -> Start:
    """Find the best Gaussian of a structure, or of full rank, for dozens to hundreds of latents.

    Without a structure hundreds have a Gaussian of independent latents as well: one of full rank
    has more numbers than the time settles.
    """
    limit = _PATIENCE if seconds is None else _FITTING * seconds
    mean_field = None
    if structure is None and joint.dim >= _INDEPENDENT:
        limit = limit / 2
        mean_field = _mean_field(joint, limit)
        if _REGRESSIONS * joint.pace.seconds(_REGRESSION * joint.dim) > limit:
            return mean_field
    dense = torch.ones(joint.dim, joint.dim, dtype=torch.bool).fill_diagonal_(False)
    structure_or_all = structure or Structure.from_adjacency(dense)
    (best, *others), climbs = sparse_gaussians(
        joint, structure_or_all, joint.start, seconds=limit, pace=joint.pace
    )
    if mean_field is not None and _elbo(mean_field) > best.elbo:
        return mean_field
    pattern = None if structure is None else best.factor.to(joint.start)
    modes = [_full_rank(g, joint.start) for g in (best, *others)]
    return Start(
        joint,
        modes[0].loc,
        modes[0].factor,
        modes if others else [],
        structure=structure,
        pattern=pattern,
        climbs=climbs,
    )


def _full_rank(gaussian: SparseGaussian, like: Tensor) -> Gaussian:
    """With a lower triangular factor."""
    (factor,) = cholesky((gaussian.factor @ gaussian.factor.mT)[None])
    return Gaussian(gaussian.loc.to(like), factor.to(like), gaussian.elbo)


def _mean_field(joint: Joint, seconds: float) -> Start:
    affordable = joint.pace.points(seconds / _ASCENT)
    count = min(max(affordable, 1), 64) if joint.graph is None else joint.graph.count
    loc, scale, _ = fit_mean_field(joint, falling(seconds), count, lr=_RATE)
    return Start(joint, loc, scale, climbs=1)


@torch.no_grad()
def _elbo(start: Start) -> float:
    """Of a Gaussian of independent latents."""
    normal = torch.randn(_JUDGES, start.joint.dim).to(start.loc)
    energy = start.joint(start.loc + normal * start.factor).double().mean()
    entropy = start.factor.log().sum() + 0.5 * normal.shape[1] * (1 + math.log(2 * math.pi))
    return float(energy + entropy)


def _in_order(joint: Joint, guide: AutoGuide, loc: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Put the entries of a guide's Gaussian in the order of the joint density."""
    trace: Trace = guide.prototype_trace
    places, start = {}, 0
    for name, site in trace.iter_stochastic_nodes():
        size = biject_to(site["fn"].support).inv(site["value"]).numel()
        places[name] = torch.arange(start, start + size)
        if isinstance(peel(site["fn"])[0], PERIODIC):
            loc, factor = _on_one_period(OnePeriod(site["fn"]), places[name], loc, factor)
        start += size
    if places.keys() != joint.sites.keys() or start != joint.dim:
        raise ValueError(
            f"the guide was fitted to the latents {sorted(places)} of {start} entries, the model "
            f"has {sorted(joint.sites)} of {joint.dim}; fit it again"
        )
    order = torch.cat([places[name] for name in joint.sites]).to(loc.device)
    if torch.equal(order, torch.arange(start, device=loc.device)):
        return loc, factor
    if factor.dim() == 1:
        return loc[order], factor[order]
    (factor,) = cholesky((factor @ factor.T)[order][:, order][None])
    return loc[order], factor


def _on_one_period(
    fn: OnePeriod, places: Tensor, loc: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Transform a Gaussian of angles on the real line to the unconstrained values of one period."""
    transform, angles = biject_to(fn.support), loc[places].reshape(fn.shape())
    free = transform.inv(fn.turned(angles))
    slope = torch.ones_like(loc)
    slope[places] = transform.log_abs_det_jacobian(free, angles).exp().reshape(-1)
    loc = loc.index_copy(0, places, free.reshape(-1))
    return loc, factor / slope.reshape(-1, *[1] * (factor.dim() - 1))


def _gaussian(guide: object, *args: object, **kwargs: object) -> AutoGuide:
    """Check that the guide was fitted; of a Laplace guide, the Gaussian at its mode."""
    if not isinstance(guide, AutoGuide) or getattr(guide, "_model", None) is None:
        raise TypeError(f"guide must be a fitted Gaussian autoguide, got {guide!r}")
    if guide.prototype_trace is None:
        raise ValueError(f"guide must be fitted first: this {type(guide).__name__} was never run")
    if not isinstance(guide, AutoLaplaceApproximation):
        return guide
    try:
        return guide.laplace_approximation(*args, **kwargs)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            "guide must be an AutoLaplaceApproximation at a mode, but the Hessian is not positive "
            f"definite where this one is; train it for longer ({error})"
        ) from None


@torch.no_grad()
def affine_of(guide: AutoGuide) -> tuple[Tensor, Tensor]:
    """Return a Gaussian guide's loc ``(D,)``, and its scale ``(D,)`` or lower factor ``(D, D)``."""
    if isinstance(guide, AutoNormal):
        trace: Trace = guide.prototype_trace
        names = [name for name, _ in trace.iter_stochastic_nodes()]
        pairs: list[tuple[Tensor, Tensor]] = [guide._get_loc_and_scale(name) for name in names]
        loc, scale = (torch.cat([t.reshape(-1) for t in ts]) for ts in zip(*pairs, strict=True))
        return loc.clone(), scale.clone()
    if isinstance(guide, AutoDiagonalNormal):
        loc, scale = guide._loc_scale()
        return loc.clone(), scale.clone()
    if isinstance(guide, AutoMultivariateNormal):
        posterior = guide.get_posterior()
        return posterior.mean.clone(), posterior.scale_tril.clone()
    if isinstance(guide, AutoLowRankMultivariateNormal):
        posterior = guide.get_posterior()
        return posterior.mean.clone(), torch.linalg.cholesky(posterior.covariance_matrix)
    raise TypeError(
        "guide must be an AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, "
        f"AutoLowRankMultivariateNormal or AutoLaplaceApproximation, got {type(guide).__name__}"
    )
