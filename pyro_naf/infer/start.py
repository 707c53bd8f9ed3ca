"""Where a refinement begins: the joint density of a model or a guide, and a Gaussian near it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from ..conditioners import Structure
from ..support.calls import Args, Model
from ..training.progress import Progress
from .gaussian import distinct, find_gaussian, raise_for_start
from .given_guides import affine_in_order, density_of_guide, fitted_gaussian
from .graph import structure_of
from .joint import Joint
from .laplace import Gaussian, cholesky
from .mean_field import falling, fit_mean_field
from .rough_gaussian import fit_roughly
from .settings import DEFAULTS, RefineSettings
from .sparse_gaussian import SparseGaussian, sparse_gaussians
from .unvisited import modes_beside

#: Fewest gradients that a search for modes, or for a structure, takes, and fewest batches of them
#: in a row. Where twice the time for a search allows fewer, a few climbs replace it.
_FEWEST_GRADIENTS, _FEWEST_BATCHES = 2000, 60

#: Seconds that the matrices of a Gaussian take, for each cube of the number of latents, and the
#: largest share of the time for them.
_MATRICES, _MATRICES_SHARE = 5e-10, 0.5

#: Number of gradients for each latent, at each of four points, in looking for a structure.
_STRUCTURE_GRADIENTS = 12

#: Number of gradients for each of many latents that their Gaussian takes in place of a search for
#: modes. Half of them must be affordable in the time of a search.
_OF_MANY = 15

#: For a Gaussian of independent latents: the learning rate, the fewest steps, and the number of
#: draws for its ELBO.
_RATE, _ASCENT, _JUDGES = 0.04, 300, 512

#: Fewest regressions of the score for a Gaussian of full rank, and the draws of each per latent.
_REGRESSIONS, _REGRESSION = 5, 6

#: Seconds for that Gaussian, and for a refinement, where the time has no limit.
_PATIENCE, _USUAL = 20.0, 60.0


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
        guide = fitted_gaussian(guide, *args, **kwargs)
        return density_of_guide(guide, args, kwargs), guide
    if not callable(guide):
        raise TypeError(f"guide must be a model or a fitted Gaussian guide, got {guide!r}")
    return Joint(guide, args, kwargs), None


@dataclass(frozen=True)
class StartFinder:
    """Finds the Gaussian that a refinement begins from, in a part of its time.

    :ivar joint: the joint density.
    :ivar tempering: power of the posterior that the Gaussian is to fit, in (0, 1].
    :ivar num_starts: number of climbs in a row without a new mode that ends the search for modes.
    :ivar seconds: time for the whole refinement; None without a limit.
    :ivar structure: "auto", "full" or the structure that a guide is to have.
    :ivar settings: the shares of the time.
    :ivar progress: the bar that names what is done.
    """

    joint: Joint
    tempering: float = 1.0
    num_starts: int = 16
    seconds: float | None = None
    structure: str | Structure = "auto"
    settings: RefineSettings = DEFAULTS
    progress: Progress = field(default_factory=lambda: Progress(is_shown=False))

    def of_guide(self, guide: AutoGuide) -> Start:
        """Take the Gaussian of a fitted guide, and look for modes beside it."""
        loc, factor = affine_in_order(self.joint, guide)
        # The Gaussian's own width comes first.
        widths = [self.tempering ** (-power / 4) for power in range(3)]
        known = Gaussian(loc, factor, math.nan)
        others, climbs = ([], None) if self.tempering < 1 else self._modes_beside(known)
        return Start(self.joint, loc, factor, widths=widths, climbs=climbs, others=others)

    def of_model(self) -> Start:
        """Find a Gaussian for the model."""
        joint, settings, seconds = self.joint, self.settings, self.seconds
        gradients = self._affordable()
        found, needed = None, _FEWEST_GRADIENTS
        if self.tempering == 1 and 2 * gradients >= _STRUCTURE_GRADIENTS * joint.dim:
            self.progress.phase("looking for the model's structure")
            found = _structure(joint, self.structure)
        is_large = self.tempering == 1 and joint.dim >= settings.many_latents
        if found is None:
            needed = _OF_MANY * joint.dim if is_large else max(needed, 10 * joint.dim)
        if seconds is not None and gradients < needed:
            fitting = settings.fit_share * seconds
            if joint.dim >= settings.independent_latents and _ASCENT * joint.pace.one < fitting:
                self.progress.phase("fitting a Gaussian")
                return self._mean_field(fitting)
            self.progress.phase("climbing to a mode")
            return self._rough(seconds)
        if found is not None or is_large:
            self.progress.phase("fitting a Gaussian")
            return self._of_many(found)
        self.progress.phase("looking for modes")
        limit = None if seconds is None else settings.search_share * seconds
        best, modes, climbs = find_gaussian(joint, self.num_starts, 1 / self.tempering, limit)
        # The Gaussian is as wide as p^tempering.
        return Start(joint, best.loc, best.factor, modes, climbs=climbs)

    def _modes_beside(self, known: Gaussian) -> tuple[list[Gaussian], int | None]:
        """Gaussians at modes, for what a given guide may lack; the climbs where time ended them."""
        seconds = _USUAL if self.seconds is None else self.seconds
        limit = self.settings.search_beside_share * seconds
        return modes_beside(self.joint, known, limit, self.settings.independent_latents)

    def _affordable(self) -> int:
        """Gradients that the time for a search allows; none where it allows too few batches."""
        joint, seconds = self.joint, self.seconds
        if seconds is None:
            return joint.pace.points(math.inf)
        limit = self.settings.search_share * seconds
        is_slow = _FEWEST_BATCHES * joint.pace.one > 2 * limit
        has_many_latents = _MATRICES * joint.dim**3 > _MATRICES_SHARE * seconds
        return 0 if is_slow or has_many_latents else joint.pace.points(limit)

    def _rough(self, seconds: float) -> Start:
        """Make a Gaussian from one climb, where nothing else can be afforded."""
        joint = self.joint
        limit = self.settings.rough_share * seconds
        found = fit_roughly(joint, joint.start, limit, joint.pace)
        if not found:
            raise_for_start(joint)
        modes = distinct(joint, found)
        return Start(joint, found[0].loc, found[0].factor, modes, climbs=len(found))

    def _of_many(self, structure: Structure | None) -> Start:
        """Find the best Gaussian of a structure, or of full rank, for many latents.

        Without a structure hundreds have a Gaussian of independent latents as well: one of full
        rank has more numbers than the time settles.
        """
        joint, settings = self.joint, self.settings
        limit = _PATIENCE if self.seconds is None else settings.fit_share * self.seconds
        mean_field = None
        if structure is None and joint.dim >= settings.independent_latents:
            limit = limit / 2
            mean_field = self._mean_field(limit)
            if _REGRESSIONS * joint.pace.seconds(_REGRESSION * joint.dim) > limit:
                return mean_field
        structure_or_all = structure or Structure.dense(joint.dim)
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

    def _mean_field(self, seconds: float) -> Start:
        """Fit a Gaussian of independent latents."""
        joint = self.joint
        affordable = joint.pace.points(seconds / _ASCENT)
        count = min(max(affordable, 1), 64) if joint.graph is None else joint.graph.count
        loc, scale, _ = fit_mean_field(joint, falling(seconds), count, lr=_RATE)
        return Start(joint, loc, scale, climbs=1)


def _structure(joint: Joint, asked: str | Structure) -> Structure | None:
    """Find the structure that a guide is to have; one that is looked for may not be found."""
    try:
        return structure_of(asked, lambda: joint, joint.start)
    except (ValueError, RuntimeError):
        if isinstance(asked, Structure):
            raise
        return None


def _full_rank(gaussian: SparseGaussian, like: Tensor) -> Gaussian:
    """With a lower triangular factor."""
    (factor,) = cholesky((gaussian.factor @ gaussian.factor.mT)[None])
    return Gaussian(gaussian.loc.to(like), factor.to(like), gaussian.elbo)


@torch.no_grad()
def _elbo(start: Start) -> float:
    """Of a Gaussian of independent latents."""
    normal = torch.randn(_JUDGES, start.joint.dim).to(start.loc)
    energy = start.joint(start.loc + normal * start.factor).double().mean()
    entropy = start.factor.log().sum() + 0.5 * normal.shape[1] * (1 + math.log(2 * math.pi))
    return float(energy + entropy)
