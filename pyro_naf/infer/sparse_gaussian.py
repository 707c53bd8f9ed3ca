r"""The best Gaussian of a given structure, by natural gradients from regressions of the score.

A Gaussian whose precision has the pattern of the posterior's graph has few numbers: those of the
graph's edges. At the optimum of the ELBO the precision is
:math:`\Lambda = -\mathrm{E}_q \nabla^2 \log p` and :math:`\mathrm{E}_q \nabla \log p = 0`. By
Stein's lemma a row of that Hessian is the regression of an entry of the score
:math:`\nabla \log p(z)`, z ~ q, on the latents adjacent to it, as it depends on no others: a few
hundred draws settle thousands of numbers, without a second derivative. A step towards it is a
natural gradient's (Khan & Lin 2017 [arXiv:1703.04265]); for a Gaussian posterior one is exact.

A latent with very many neighbours (a hub, such as the mean of all groups) has most of its row from
the rows of the others, by symmetry, and the rest from a regression on the hubs alone.

Steps start from the best of several Gaussians, judged by their ELBO: those with independent latents
from two origins, by L-BFGS on the ELBO of fixed draws (Giordano et al. 2024 [arXiv:2304.05527]),
which find the mass of a funnel that has no mode, and those with the Hessian at points of a climb to
the mode. All is float64 but the density.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..conditioners.structure import Structure
from ..flows.linear import factor_of
from .climbs import climb
from .gaussian import DIP, NEGLIGIBLE, dip
from .graph import Colouring, LogDensity, hessian
from .pace import Pace
from .rough_gaussian import independent_gaussians
from .score_regression import ScoreRegression

#: For the climbs to Gaussians with independent latents: the number of draws behind their ELBO, the
#: largest number of steps, and their share of the time.
_CLIMB_DRAWS, _CLIMB_STEPS, _CLIMB_SHARE = 32, 150, 0.3

#: Number of normal points, an even one, from which these climbs begin besides the start and zero.
_MORE_ORIGINS = 6

#: Number of steps of these climbs that the time must allow; otherwise there are fewer origins and
#: fewer draws. The second number is the smallest number of draws.
_FEWEST_CLIMB_STEPS, _FEWEST_CLIMB_DRAWS = 40, 8

#: Largest number of points on a climb's path at which a Gaussian is tried, their share of the time,
#: and the rough cost of a product with the Hessian in gradients.
_TRIED_POINTS, _TRIED_SHARE, _PRODUCT = 4, 0.2, 3

#: Largest number of common random draws per ELBO estimate, the number of draws that screen the
#: starts, and the share of the time for one estimate.
_ELBO_DRAWS, _FEW_DRAWS, _JUDGING = 512, 64, 0.03

#: Largest and smallest number of screened starts whose ELBO is estimated with all draws, since few
#: draws miss a heavy tail; and the share of the time for these estimates.
_FINALISTS, _FEWEST_FINALISTS, _CHOOSING = 16, 2, 0.15

#: Number of draws of a regression: smallest at first, per number of a row, and largest. It is
#: doubled where a step gains fewer nats than the last value.
_FEWEST_DRAWS, _DRAWS_A_NUMBER, _MOST_DRAWS, _SMALL_GAIN = 256, 6, 2048, 0.05

#: Number of draws in one batch.
_CHUNK = 256

#: Largest number of steps, largest number of halvings of a step, and the gain in nats below which a
#: step with the largest number of draws is the last one.
_STEPS, _HALVINGS, _LEAST_GAIN = 60, 6, 0.01

#: Number of times that other modes are looked for, each from origins of its own.
_ROUNDS = 3

#: Share of the time that is left for steps, however long the starts took.
_STEPPING = 0.25

#: Time for other modes, in units of the time for the first.
_OTHERS = 0.25

#: Largest number of other modes, and the number of steps of the Gaussian at each.
_MODES, _MODE_STEPS = 3, 6

#: Pace of a density whose cost does not matter.
_FREE = Pace(1e-6, 0.0)


@dataclass(frozen=True, eq=False)
class SparseGaussian:
    r"""N(loc, S S^T) on R^D, where S has the pattern of a structure; float64.

    :ivar loc: shape ``(D,)``.
    :ivar precision: :math:`\Lambda`, shape ``(D, D)``, zero where latents are not adjacent.
    :ivar factor: S, shape ``(D, D)``, zero but for the diagonal and the ancestors.
    :ivar elbo: of a model's density, from common draws.
    """

    loc: Tensor
    precision: Tensor
    factor: Tensor
    elbo: float

    def draw(self, normal: Tensor) -> Tensor:
        """Images of standard normal points ``(N, D)``."""
        return self.loc + normal @ self.factor.mT

    @property
    def entropy(self) -> float:
        """Entropy in nats."""
        half_log_det = float(self.factor.diagonal().log().sum())
        return half_log_det + 0.5 * len(self.loc) * (1 + math.log(2 * math.pi))


def fit_sparse_gaussian(
    target: LogDensity,
    structure: Structure,
    middle: Tensor,
    *,
    seconds: float = math.inf,
    max_steps: int = _STEPS,
    pace: Pace = _FREE,
    generator: torch.Generator | None = None,
) -> SparseGaussian:
    r"""Fit the Gaussian with this structure that has the largest ELBO.

    :param target: a log-density ``(N, D)`` to ``(N,)``, of each row on its own, in the dtype of
        ``middle``; it may be a compiled one that takes a gradient only once.
    :param structure: of the D latents; a dense one for a full covariance.
    :param middle: the point ``(D,)`` to start from.
    :param seconds: time for all of it. The starts, and one step, are made in any case.
    :param max_steps: natural-gradient steps at most.
    :param pace: what the density costs, by which the starts are as many as the time allows.
    :param generator: of the draws; torch's global one by default.
    :raises ValueError: when the density is finite at none of the starts' draws.

    A Gaussian random walk is met exactly:

    >>> from pyro_naf.infer.graph import find_structure
    >>> def target(z):
    ...     return -0.5 * (z[:, 0].square() + (z[:, 1:] - z[:, :-1] - 1).square().sum(-1))
    >>> structure = find_structure(target, torch.zeros(4))
    >>> gaussian = fit_sparse_gaussian(target, structure, torch.zeros(4))
    >>> torch.allclose(gaussian.loc, torch.arange(4.0).double(), atol=1e-3)
    True
    """
    deadline = time.monotonic() + seconds
    fit = _Fit(target, structure, middle, pace, seconds, generator)
    return fit.best(fit.starts(deadline), max_steps, deadline)


def sparse_gaussians(
    target: LogDensity, structure: Structure, middle: Tensor, *, seconds: float, pace: Pace
) -> tuple[list[SparseGaussian], int | None]:
    """Find that Gaussian, and the Gaussians of other modes that climbs have led to, best first.

    Where starts have taken all of the seconds, steps and other modes take a quarter as long each.
    The second value is the number of climbs where they are fewer than were to be made.
    """
    begin = time.monotonic()
    fit = _Fit(target, structure, middle, pace, seconds, None)
    starts = list(fit.starts(begin + seconds))
    deadline = max(begin + seconds, time.monotonic() + _STEPPING * seconds)
    best = fit.best(starts, _STEPS, deadline)
    others = fit.other_modes(best, starts, time.monotonic() + _OTHERS * seconds)
    return fit.with_mass([best, *others], begin + seconds), fit.climbs


class _Fit:
    """What all Gaussians of a fit share: density, pattern, common draws."""

    def __init__(
        self,
        target: LogDensity,
        structure: Structure,
        middle: Tensor,
        pace: Pace,
        seconds: float,
        generator: torch.Generator | None,
    ) -> None:
        self.target, self.structure, self.middle = target, structure, middle
        self.pace, self.generator = pace, generator
        device = middle.device
        self.rows = ScoreRegression(structure.adjacency, device)
        judges = min(max(pace.values(_JUDGING * seconds), _FEW_DRAWS), _ELBO_DRAWS)
        self.normal = _matched(self.draws(2 * math.ceil(judges / 2)))
        affordable = pace.values(_CHOOSING * seconds) // judges
        self.num_finalists = min(max(affordable, _FEWEST_FINALISTS), _FINALISTS)
        needed = _DRAWS_A_NUMBER * self.rows.most
        self.count = 2 * math.ceil(max(_FEWEST_DRAWS, needed) / 2)
        #: Draws behind the ELBO of climbs to independent latents; set by the first ones.
        self.climbing = self.normal.to(middle)
        #: Climbs from different points, where the time has ended them early.
        self.climbs: int | None = None

    def draws(self, count: int) -> Tensor:
        """Draw standard normal points ``(count, D)`` in opposite pairs: their mean is zero."""
        like = self.middle
        half = torch.randn(
            count // 2, len(like), generator=self.generator, device=like.device, dtype=torch.double
        )
        return torch.cat([half, -half])

    # ------------------------------------------------------------------------------------ density

    def values(self, z: Tensor) -> Tensor:
        """Log-densities ``(N,)`` in float64, minus infinity where not finite."""
        with torch.no_grad():
            found = torch.cat([self.target(part) for part in z.to(self.middle).split(_CHUNK)])
        found = found.double()
        return torch.where(found.isfinite(), found, -torch.inf)

    def scores(self, z: Tensor) -> Tensor:
        """Gradients ``(N, D)`` of the log-density in float64."""
        found = []
        for part in z.to(self.middle).split(_CHUNK):
            part = part.detach().requires_grad_()
            with torch.enable_grad():
                (grad,) = torch.autograd.grad(self.target(part).sum(), part)
            found.append(grad)
        return torch.cat(found).double()

    def scored(self, gaussian: SparseGaussian, few: bool) -> SparseGaussian:
        """Return the Gaussian with the ELBO from the common draws."""
        pairs = self.normal.unflatten(0, (2, -1))
        normal = pairs[:, : _FEW_DRAWS // 2].flatten(0, 1) if few else self.normal
        values = self.values(gaussian.draw(normal))
        elbo = float(values.mean()) + gaussian.entropy
        return SparseGaussian(gaussian.loc, gaussian.precision, gaussian.factor, elbo)

    def gaussian(self, loc: Tensor, precision: Tensor) -> SparseGaussian | None:
        """Make the Gaussian of this precision, None where it is not positive definite."""
        try:
            factor = factor_of(self.structure, precision=precision)
        except ValueError:
            return None
        if not bool(factor.isfinite().all()):
            return None
        return SparseGaussian(loc, precision, factor, -math.inf)

    # ------------------------------------------------------------------------------------- starts

    def starts(self, deadline: float) -> Iterator[SparseGaussian]:
        """Gaussians to step from: with independent latents, and with the Hessian on a climb."""
        yield from self._independent(deadline)
        if time.monotonic() > deadline:
            return
        colouring = Colouring.of(self.structure.adjacency)
        affordable = self.pace.points(_TRIED_SHARE * (deadline - time.monotonic()))
        tried = min(max(affordable // (_PRODUCT * len(colouring.directions)), 1), _TRIED_POINTS)
        for path in climb(self.target, self.middle[None], deadline=deadline):
            # The last ones come first: the time may not be enough for all.
            places = torch.linspace(len(path) - 1, 0, min(len(path), tried))
            for z in path[places.round().long()]:
                if found := self._laplace(z, colouring):
                    yield self.scored(found, few=True)
                if time.monotonic() > deadline:
                    return

    def _independent(self, deadline: float) -> Iterator[SparseGaussian]:
        """Gaussians with independent latents, which have the mass of a funnel."""
        left = _CLIMB_SHARE * (deadline - time.monotonic())
        affordable = self.pace.points(left / _FEWEST_CLIMB_STEPS)
        count = max(min(_CLIMB_DRAWS, affordable // 2), _FEWEST_CLIMB_DRAWS)
        self.climbing = _matched(self.draws(count)).to(self.middle)
        more = self.draws(_MORE_ORIGINS).to(self.middle)
        origins = torch.cat([torch.stack([self.middle, torch.zeros_like(self.middle)]), more])
        origins = origins[: max(affordable // count, 1)]
        limit = time.monotonic() + left
        if len(origins) < 2 + _MORE_ORIGINS:
            self.climbs = len(origins)
        found = list(self._climbed(origins, limit))
        yield from found
        if found and time.monotonic() > limit:  # broken off: the best goes on alone
            best = max(found, key=lambda g: g.elbo)
            scales = best.factor.diagonal()[None].to(self.middle)
            yield from self._climbed(best.loc[None].to(self.middle), limit + left, scales)

    def _climbed(
        self, origins: Tensor, deadline: float, scales: Tensor | None = None
    ) -> Iterator[SparseGaussian]:
        for loc, scale in independent_gaussians(
            self.target, origins, self.climbing, _CLIMB_STEPS, deadline, scales
        ):
            if found := self.gaussian(loc.double(), torch.diag(scale.double() ** -2)):
                yield self.scored(found, few=True)

    def _laplace(self, z: Tensor, colouring: Colouring) -> SparseGaussian | None:
        try:
            products = hessian(self.target, z, colouring.directions.to(z))
        except RuntimeError:  # a density that can be differentiated once only
            return None
        precision = -colouring.assemble(products.double().cpu()).to(z.device)
        if not bool(precision.isfinite().all()):
            return None
        # Where it curves upwards the diagonal is raised: a width of that curvature is a guess.
        raised = precision.abs().sum(1).clamp(min=1e-8)
        for weight in (0.0, 1e-3, 1e-2, 0.1, 0.3, 1.0):
            if found := self.gaussian(z.double(), precision + torch.diag(weight * raised)):
                return found
        return self.gaussian(z.double(), torch.diag(raised))

    def other_modes(
        self, best: SparseGaussian, starts: list[SparseGaussian], deadline: float
    ) -> list[SparseGaussian]:
        """Fit Gaussians to other modes that hold mass, from the starts and from new origins."""
        known, found = [best], list[SparseGaussian]()
        for _ in range(_ROUNDS):
            fresh = [
                self._risen(self.scored(start, few=False), _MODE_STEPS, deadline)
                for start in self._apart(known, starts, deadline)[: _MODES - len(found)]
            ]
            new = self._apart(known, fresh, deadline)
            known += fresh
            found += [g for g in new if g.elbo > best.elbo - NEGLIGIBLE]
            if len(found) >= _MODES or time.monotonic() > deadline:
                break
            starts = list(self._climbed(self.draws(_MORE_ORIGINS).to(self.middle), deadline))
        return found

    def with_mass(self, modes: list[SparseGaussian], deadline: float) -> list[SparseGaussian]:
        """Make steps at all modes in the time that is left, and keep those with mass, best first.

        What independent latents, or a few steps, make of a mode says little of its mass.
        """
        if len(modes) > 1:
            for i, mode in enumerate(modes):
                part = (deadline - time.monotonic()) / (len(modes) - i)
                if part > 0:
                    modes[i] = self._risen(mode, _STEPS, time.monotonic() + part)
        modes = sorted(modes, key=lambda g: -g.elbo)
        return [g for g in modes if g.elbo > modes[0].elbo - NEGLIGIBLE]

    def _apart(
        self, known: list[SparseGaussian], others: list[SparseGaussian], deadline: float
    ) -> list[SparseGaussian]:
        """Return the Gaussians separated by a dip from every known and every better one.

        The density dips between their means and between the tops above those. Nothing is returned
        once time is over: tops that no climb has reached are not known to be apart.
        """
        if not others:
            return []
        others = sorted(others, key=lambda g: -g.elbo)
        means = [g.loc.to(self.middle) for g in (*known, *others)]
        paths = climb(self.target, torch.stack(means), deadline=deadline)
        if time.monotonic() > deadline:
            return []
        lines = [torch.stack([z, *path[-1:]]) for z, path in zip(means, paths, strict=True)]
        kept = lines[: len(known)]
        found = []
        for line, other in zip(lines[len(known) :], others, strict=True):
            if time.monotonic() > deadline:
                break
            if len(line) == 2 and all(self._dips(line, k) for k in kept):
                kept.append(line)
                found.append(other)
        return found

    def _dips(self, a: Tensor, b: Tensor) -> bool:
        """Whether the density falls between two means, and between the tops above them."""
        return all(dip(self.target, *ends) > DIP for ends in zip(a, b, strict=False))

    # -------------------------------------------------------------------------------------- steps

    def best(
        self, starts: Iterable[SparseGaussian], max_steps: int, deadline: float
    ) -> SparseGaussian:
        """Return the best of the starts, after steps."""
        starts = sorted(starts, key=lambda g: -g.elbo)
        finalists = [self.scored(start, few=False) for start in starts[: self.num_finalists]]
        best = max(finalists, key=lambda g: g.elbo, default=None)
        if best is None or not math.isfinite(best.elbo):
            raise ValueError(
                "the model's log-density is finite nowhere around its start; look for NaN in its "
                "data and for impossible values, or try another init_loc_fn"
            )
        return self._risen(best, max_steps, deadline)

    def _risen(self, best: SparseGaussian, max_steps: int, deadline: float) -> SparseGaussian:
        """Make steps as long as they gain."""
        for _ in range(max_steps):
            found = self.step(best, deadline)
            gain = found.elbo - best.elbo
            best = found
            if time.monotonic() + self.pace.seconds(self.count) > deadline:
                break
            if gain < _SMALL_GAIN:  # no more than noise of the regressions
                if gain < _LEAST_GAIN and self.count >= _MOST_DRAWS:
                    break
                self.count = min(2 * self.count, max(self.count, _MOST_DRAWS))
        return best

    def step(self, start: SparseGaussian, deadline: float) -> SparseGaussian:
        """Choose the best of a natural-gradient step and its halvings, or the start."""
        z = start.draw(self.draws(self.count))
        scores = self.scores(z)
        good = scores.isfinite().all(1)
        if int(good.sum()) < max(self.count // 2, self.rows.most + 2):
            return start
        centred, scores = z[good] - start.loc, scores[good]
        hessian_mean = self.rows.regress(centred, scores)
        mean_score = scores.mean(0) - hessian_mean @ centred.mean(0)
        rate = 1.0
        for _ in range(_HALVINGS):
            precision = torch.lerp(start.precision, -hessian_mean, rate)
            if found := self.gaussian(start.loc, precision):
                move = found.factor @ (found.factor.mT @ mean_score)
                moved = self._moved(found, rate * move)
                if moved.elbo > start.elbo:
                    return self._farther(moved, rate * move, deadline)
            if time.monotonic() > deadline:
                break
            rate /= 2
        return start

    def _moved(self, gaussian: SparseGaussian, move: Tensor) -> SparseGaussian:
        loc = gaussian.loc + move
        return self.scored(SparseGaussian(loc, gaussian.precision, gaussian.factor, 0.0), few=False)

    def _farther(self, best: SparseGaussian, move: Tensor, deadline: float) -> SparseGaussian:
        """Move the Gaussian on by the same way, by twice, and so on, as long as that is better.

        Along a funnel the curvature falls, and each natural-gradient step is too short.
        """
        while time.monotonic() < deadline:
            found = self._moved(best, move)
            if not found.elbo > best.elbo:
                break
            best, move = found, 2 * move
        return best


def _matched(normal: Tensor) -> Tensor:
    """Give points ``(N, D)`` the covariance I, or, of few points, with unit variances.

    The ELBO of a Gaussian posterior is exact then, and near it without noise.
    """
    count, dim = normal.shape
    normal = normal / normal.square().mean(0).sqrt()
    if 4 * dim > count:
        return normal
    factor = torch.linalg.cholesky(normal.mT @ normal / count)
    return torch.linalg.solve_triangular(factor.mT, normal, upper=True, left=False)
