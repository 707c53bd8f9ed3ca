"""Densities whose marginals and conditionals are closed forms: Gaussians, t's and their mixtures.

Rows x ``(N, D + M)`` hold D numbers and M classes, the latter by their places (see
:mod:`~pyro_naf.density.incomplete`).

Such a density is a mixture of parts, each a mixture of Gaussians or Student's t's behind a monotone
map of every column by itself. Marginals and conditionals of it are again such mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import incomplete
from .incomplete import Gaussians
from .normal_scores import NormalScores

#: Kinds of architectures that are such densities.
CLOSED = ("gaussian", "gmm", "student", "copula")


#: Rows drawn at once.
DRAWN = 65_536


@dataclass(frozen=True)
class Part:
    """A weighted mixture of Gaussians behind maps of the columns.

    :ivar scores: the maps, None for none.
    """

    log_weight: float
    scores: NormalScores | None
    law: Gaussians

    def mapped(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows as the Gaussians have them, and the log of the slopes ``(N,)``."""
        if self.scores is None:
            return x, x.new_zeros(len(x))
        z, log_slope = self.scores.value_and_log_slope(x)
        return z, log_slope.nan_to_num(nan=0.0).sum(-1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density ``(N,)`` of the cells of x that are not NaN."""
        z, log_slope = self.mapped(x)
        return incomplete.log_terms(self.law, z).logsumexp(1) + log_slope

    def drawn(self, x: Tensor) -> Tensor:
        """Fill the cells that are NaN with draws."""
        z = incomplete.drawn(self.law, self.mapped(x)[0])
        if self.scores is None:
            return z
        found = torch.where(x.isnan(), z, x)
        gone = x.isnan()
        gone[:, self.law.dim :] = False
        found[gone] = self.scores.values(z[gone], gone.nonzero()[:, 1])
        return found


def log_prob(parts: Sequence[Part], x: Tensor) -> Tensor:
    """Return the log-density ``(N,)`` of the cells of x, in double precision, that are seen."""
    return torch.stack([part.log_prob(x) + part.log_weight for part in parts], 1).logsumexp(1)


def imputed(
    parts: Sequence[Part], variants: Sequence[Tensor], shifts: Sequence[Tensor], number: int
) -> Tensor:
    """Rows ``(S, N, D + M)`` with draws from their conditional law in the cells that are NaN.

    :param variants: the rows, in double precision, in each of the forms that they may
        have; more than one where the noise on integers is not known.
    :param shifts: ``(N,)``, the logarithm of each form's prior weight.
    :param number: S, the draws of each row.
    """
    terms = torch.stack(
        [
            part.log_prob(x) + part.log_weight + shift
            for x, shift in zip(variants, shifts, strict=True)
            for part in parts
        ],
        1,
    )
    chosen = torch.multinomial(terms.softmax(1), number, replacement=True).T.flatten()
    n, found = len(terms), variants[0].repeat(number, 1)
    for i in chosen.unique().tolist():
        x, part = variants[i // len(parts)], parts[i % len(parts)]
        for mine in (chosen == i).nonzero().squeeze(1).split(DRAWN):
            found[mine] = part.drawn(x[mine % n])
    return found.view(number, n, -1)


def marginal(parts: Sequence[Part], at: Tensor) -> list[Part]:
    """Return the law of these dimensions and classes ``(E,)``."""
    return [
        replace(p, scores=_of(p.scores, at[at < p.law.dim]), law=p.law.marginal(at)) for p in parts
    ]


def conditional(parts: Sequence[Part], x: Tensor) -> list[Part]:
    """Return the law of dimensions and classes where x ``(D + M,)`` is NaN, given the others.

    The weights of the joint density are kept: their sum is the density of the given values.
    """
    rest, found = x.isnan().nonzero().squeeze(1), []
    for p in parts:
        z = p.mapped(x.unsqueeze(0))[0].squeeze(0)
        weight = p.log_weight + float(p.log_prob(x.unsqueeze(0)))
        found.append(Part(weight, _of(p.scores, rest[rest < p.law.dim]), p.law.conditional(z)))
    return found


def _of(scores: NormalScores | None, at: Tensor) -> NormalScores | None:
    """Return the maps of these columns."""
    if scores is None or len(at) == 0:
        return None
    found = NormalScores(len(at), scores.components).to(scores.means)
    for name, own in found.named_buffers():
        own.copy_(getattr(scores, name)[at])
    return found
