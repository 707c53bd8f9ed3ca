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

import time

import torch
from torch import Tensor

from ..conditioners.structure import Structure
from .climbs import climb
from .gaussian import DIP, NEGLIGIBLE, dip
from .graph import LogDensity
from .pace import Pace
from .sparse_family import Family, SparseGaussian
from .sparse_starts import Starts
from .sparse_steps import Steps

#: Largest number of common random draws per ELBO estimate, and the share of the time for one
#: estimate.
_ELBO_DRAWS, _JUDGING = 512, 0.03

#: Number of times that other modes are looked for, each from origins of its own.
_ROUNDS = 3

#: Share of the time that is left for steps, however long the starts took.
_STEPPING = 0.25

#: Time for other modes, in units of the time for the first.
_OTHERS = 0.25

#: Largest number of other modes, and the number of steps of the Gaussian at each.
_MODES, _MODE_STEPS = 3, 6


def sparse_gaussians(
    target: LogDensity, structure: Structure, middle: Tensor, *, seconds: float, pace: Pace
) -> tuple[list[SparseGaussian], int | None]:
    """Fit the Gaussian with the largest ELBO, and one at each other mode found, the best first.

    Where starts have taken all of the seconds, steps and other modes take a quarter as long each.
    The second value is the number of climbs where they are fewer than were to be made.

    :param target: a log-density ``(N, D)`` to ``(N,)``, of each row on its own, in the dtype of
        ``middle``; it may be a compiled one that takes a gradient only once.
    :param structure: of the D latents; a dense one for a full covariance.
    :param middle: the point ``(D,)`` to start from.
    :param seconds: time for all of it. The starts, and one step, are made in any case.
    :param pace: what the density costs, by which the starts are as many as the time allows.
    :raises ValueError: when the density is finite at none of the starts' draws.

    A Gaussian random walk is met exactly:

    >>> from pyro_naf.infer.graph import find_structure
    >>> def target(z):
    ...     return -0.5 * (z[:, 0].square() + (z[:, 1:] - z[:, :-1] - 1).square().sum(-1))
    >>> structure = find_structure(target, torch.zeros(4))
    >>> free = Pace(one=1e-6, further=0.0)
    >>> (best,), _ = sparse_gaussians(target, structure, torch.zeros(4), seconds=60.0, pace=free)
    >>> torch.allclose(best.loc, torch.arange(4.0).double(), atol=1e-3)
    True
    """
    begin = time.monotonic()
    judges = min(pace.values(_JUDGING * seconds), _ELBO_DRAWS)
    family = Family(target, structure, middle, judges)
    starts, steps = Starts(family, pace), Steps(family, pace, seconds)
    first = list(starts.first(begin + seconds))
    deadline = max(begin + seconds, time.monotonic() + _STEPPING * seconds)
    modes = _Modes(family, starts, steps, steps.best(first, deadline))
    others = modes.others(first, time.monotonic() + _OTHERS * seconds)
    return modes.with_mass(others, begin + seconds), starts.climbs


class _Modes:
    """Gaussians of a structure at the modes of a density."""

    def __init__(self, family: Family, starts: Starts, steps: Steps, best: SparseGaussian) -> None:
        self.family, self.starts, self.steps, self.best = family, starts, steps, best

    def others(self, starts: list[SparseGaussian], deadline: float) -> list[SparseGaussian]:
        """Fit Gaussians to other modes that hold mass, from the starts and from new origins."""
        known, found = [self.best], list[SparseGaussian]()
        for _ in range(_ROUNDS):
            fresh = [
                self.steps.risen(self.family.scored(start, few=False), deadline, _MODE_STEPS)
                for start in self._apart(known, starts, deadline)[: _MODES - len(found)]
            ]
            new = self._apart(known, fresh, deadline)
            known += fresh
            found += [g for g in new if g.elbo > self.best.elbo - NEGLIGIBLE]
            if len(found) >= _MODES or time.monotonic() > deadline:
                break
            starts = self.starts.more(deadline)
        return found

    def with_mass(self, others: list[SparseGaussian], deadline: float) -> list[SparseGaussian]:
        """Make steps at all modes in the time that is left, and keep those with mass, best first.

        What independent latents, or a few steps, make of a mode says little of its mass.
        """
        modes = [self.best, *others]
        if others:
            for i, mode in enumerate(modes):
                part = (deadline - time.monotonic()) / (len(modes) - i)
                if part > 0:
                    modes[i] = self.steps.risen(mode, time.monotonic() + part)
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
        means = [g.loc.to(self.family.middle) for g in (*known, *others)]
        paths = climb(self.family.target, torch.stack(means), deadline=deadline)
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
        return all(dip(self.family.target, *ends) > DIP for ends in zip(a, b, strict=False))
