r"""Gaussian mixtures of rows with missing cells: likelihood of the cells seen, and draws.

Beside its D numbers, a row may hold M classes. They are independent of the numbers, and of one
another, given the Gaussian that a row is of: a latent class model, whose marginals and conditionals
are closed forms too. Classes are given by their places, 0.0 and on, behind the numbers.

Rows are grouped by which of their cells are missing. Let M be the missing cells of a row, O the
others, and :math:`Q = \Sigma^{-1}`. Given the cells O, the cells M have the covariance
:math:`Q_{MM}^{-1}` and the mean :math:`\mu_M - Q_{MM}^{-1} Q_{MO} (x_O - \mu_O)`. Let d be the
distance :math:`x - \mu`, 0 in missing cells, and :math:`h = (Q d)_M`. The density of the cells seen
is

.. math:: \log N(x_O) = -\tfrac12 \big(d^\top Q d - h^\top Q_{MM}^{-1} h + \log|\Sigma| +
    \log|Q_{MM}| + |O| \log 2\pi\big).

The same moments serve Student's t, with :math:`\Sigma / u` for :math:`\Sigma`, where u is a factor
that the cells seen have a say in (:mod:`pyro_naf.density.student`).

Source: Ghahramani & Jordan 1994, Supervised learning from incomplete data via an EM approach; for
t's Liu & Rubin 1995, ML estimation of the t distribution using EM and its extensions; for classes
Hunt & Jorgensen 2003, Mixture model clustering for mixed data with missing information.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import student

#: Numbers in the matrices that are gathered for the rows at once.
CHUNK = 2**22


@dataclass(frozen=True)
class Gaussians:
    """K weighted Gaussians or Student's t's of D dimensions, and M classes, in double precision.

    :ivar log_weights: ``(K,)``.
    :ivar means: ``(K, D)``.
    :ivar covariances: ``(K, D, D)``; the matrices of t's are not their covariances.
    :ivar degrees: degrees of freedom ``(K,)``; None for Gaussians.
    :ivar tables: for each class the logarithms ``(K, S)`` of the probabilities of its S values.
    """

    log_weights: Tensor
    means: Tensor
    covariances: Tensor
    degrees: Tensor | None = None
    tables: tuple[Tensor, ...] = ()

    @property
    def dim(self) -> int:
        """D."""
        return self.means.shape[1]

    def class_terms(self, codes: Tensor) -> Tensor:
        """Return the log-probabilities ``(N, K)`` of the classes ``(N, M)`` that are not NaN."""
        none = codes.new_zeros(len(codes), len(self.log_weights))
        return class_terms(self.tables, codes) if self.tables else none

    def marginal(self, at: Tensor) -> Gaussians:
        """Return the law of dimensions and classes ``(E,)``; classes are numbered from D on."""
        real, classes = at[at < self.dim], (at[at >= self.dim] - self.dim).tolist()
        return Gaussians(
            self.log_weights,
            self.means[:, real],
            self.covariances[:, real.unsqueeze(1), real],
            self.degrees,
            tuple(self.tables[m] for m in classes),
        )

    def conditional(self, x: Tensor) -> Gaussians:
        """Return the law of dimensions and classes where x ``(D + M,)`` is NaN, given the others.

        >>> joint = Gaussians(torch.zeros(1), torch.zeros(1, 2), torch.eye(2).unsqueeze(0) + 1)
        >>> round(joint.conditional(torch.tensor([2.0, math.nan])).means.item(), 4)
        1.0
        """
        real, codes = x[: self.dim].unsqueeze(0), x[self.dim :].unsqueeze(0)
        group = _Group(self, ~real.isnan())
        here = torch.zeros(1, dtype=torch.long, device=x.device)
        centred, square = group.expected(group.centred(real), here)
        terms = (group.terms(square, here) + self.class_terms(codes))[0]
        rest = real[0].isnan().nonzero().squeeze(1)
        means = self.means[:, rest] + centred[0][:, rest]
        spread, degrees = group.left_open[0], None
        if self.degrees is not None:
            degrees = self.degrees + group.count[0]
            spread = spread * ((self.degrees + square[0]) / degrees)[:, None, None]
        open_classes = codes[0].isnan().nonzero().squeeze(1).tolist()
        tables = tuple(self.tables[m] for m in open_classes)
        return Gaussians(terms - terms.logsumexp(0), means, spread, degrees, tables)


class _Group:
    """What rows that see one of P sets of cells need of K Gaussians.

    :param seen: ``(P, D)``.
    """

    def __init__(self, law: Gaussians, seen: Tensor) -> None:
        self.law, self.dim = law, seen.shape[1]
        lower = torch.linalg.cholesky(law.covariances)
        self.precisions = torch.cholesky_inverse(lower)
        number = int((~seen).sum(1).max())
        self.gone = seen.long().argsort(dim=1, stable=True)[
            :, :number
        ]  # the missing cells come first
        self.real = ~seen.gather(1, self.gone)
        i, j = self.gone.unsqueeze(-1), self.gone.unsqueeze(-2)
        both = (self.real.unsqueeze(-1) & self.real.unsqueeze(-2)).unsqueeze(1)
        eye = torch.eye(number).to(law.means)
        own = torch.where(both, self.precisions[:, i, j].transpose(0, 1), eye)
        factors = torch.linalg.cholesky(own)
        self.left_open = torch.cholesky_inverse(factors) if number else own  # (P, K, M, M)
        log_det = 2 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_det = log_det + 2 * factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        self.count = seen.to(law.means).sum(1, keepdim=True)
        self.constants = law.log_weights - 0.5 * log_det

    def centred(self, x: Tensor) -> Tensor:
        """Return the distances ``(n, K, D)`` of rows from the means, 0 in missing cells."""
        return (x.unsqueeze(1) - self.law.means).nan_to_num(nan=0.0)

    def expected(self, centred: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Distances with their conditional means in the missing cells, and their squared length.

        The length, in units of the covariance, covers the cells seen alone.

        :param centred: ``(n, K, D)``, 0 in missing cells.
        """
        pulled = torch.einsum("kij,nkj->nki", self.precisions, centred)
        square = (pulled * centred).sum(-1)
        places = self.gone[at].unsqueeze(1).expand(-1, centred.shape[1], -1)
        force = pulled.gather(2, places) * self.real[at].unsqueeze(1)
        moved = (self.left_open[at] @ force.unsqueeze(-1)).squeeze(-1)
        return centred.scatter_add(2, places, -moved), square - (force * moved).sum(-1)

    def terms(self, square: Tensor, at: Tensor) -> Tensor:
        """Return the logarithms ``(n, K)`` of the weighted densities of the cells seen."""
        if self.law.degrees is not None:
            values = student.log_density(square, self.law.degrees, self.count[at])
        else:
            values = -0.5 * (square + math.log(2 * math.pi) * self.count[at])
        return self.constants[at] + values

    def factors(self, square: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Means ``(n, K)`` of the factor u of t's and of its logarithm; of Gaussians, 1 and 0."""
        if self.law.degrees is None:
            return torch.ones_like(square), torch.zeros_like(square)
        return student.factors(square, self.law.degrees, self.count[at])

    def spread(self, member: Tensor, at: Tensor) -> Tensor:
        """Sum the conditional covariances of rows with weights ``(n, K)``: ``(K, D, D)``."""
        each = member.new_zeros(len(self.gone), member.shape[1]).index_add(0, at, member)
        both = (self.real.unsqueeze(-1) & self.real.unsqueeze(-2)).unsqueeze(1)
        parts = self.left_open * both * each[:, :, None, None]
        places = (self.gone.unsqueeze(-1) * self.dim + self.gone.unsqueeze(-2)).flatten()
        parts = parts.transpose(0, 1).flatten(1)
        found = member.new_zeros(member.shape[1], self.dim**2).index_add(1, places, parts)
        return found.view(len(found), self.dim, self.dim)


class Patterns:
    """Rows with missing cells, grouped by which are seen.

    :param x: ``(N, D + M)``, NaN where a cell is missing.
    :param law: Gaussians like those that the rows will meet.
    """

    def __init__(self, x: Tensor, law: Gaussians) -> None:
        self.x, self.codes = x[:, : law.dim], x[:, law.dim :]
        if law.dim:
            seen, which = (~self.x.isnan()).unique(dim=0, return_inverse=True)
        else:
            seen, which = torch.ones(1, 0).to(x).bool(), torch.zeros(len(x)).to(x).long()
        size = max(1, CHUNK // (len(law.log_weights) * max(law.dim, 1) ** 2))
        self.chunks = []
        for rows in which.argsort(stable=True).split(size):
            own, at = which[rows].unique(return_inverse=True)
            self.chunks.append((rows, seen[own], at))

    def groups(self, law: Gaussians) -> Iterator[tuple[Tensor, Tensor, _Group]]:
        """Rows by number, the place of their set of cells in the group, and the group."""
        for rows, seen, at in self.chunks:
            yield rows, at, _Group(law, seen)


def log_terms(law: Gaussians, x: Tensor) -> Tensor:
    """Logarithms ``(N, K)`` of the weighted densities of the cells of rows that are seen.

    :param x: ``(N, D + M)``.
    """
    patterns = Patterns(x, law)
    found = law.class_terms(patterns.codes)
    for rows, at, group in patterns.groups(law):
        _, square = group.expected(group.centred(patterns.x[rows]), at)
        found[rows] += group.terms(square, at)
    return found


def filled(law: Gaussians, x: Tensor) -> Tensor:
    """Rows ``(N, D)`` with the conditional means of one Gaussian in the missing cells."""
    found = x.clone()
    for rows, at, group in Patterns(x, law).groups(law):
        centred, _ = group.expected(group.centred(x[rows]), at)
        found[rows] = torch.where(x[rows].isnan(), law.means[0] + centred[:, 0], x[rows])
    return found


def drawn(law: Gaussians, x: Tensor) -> Tensor:
    r"""Rows ``(N, D + M)`` with draws from their conditional law in the missing cells.

    A draw y of all cells is moved by what the cells seen say of its error, :math:`x_O - y_O`.
    """
    lower, result = torch.linalg.cholesky(law.covariances), x.clone()
    patterns = Patterns(x, law)
    classes = law.class_terms(patterns.codes)
    for rows, at, group in patterns.groups(law):
        own = patterns.x[rows]
        _, square = group.expected(group.centred(own), at)
        terms = group.terms(square, at) + classes[rows]
        k = torch.multinomial(terms.softmax(1), 1).squeeze(1)
        noise = torch.randn(len(rows), law.dim, dtype=torch.double).to(x).unsqueeze(-1)
        if law.degrees is not None:
            here = torch.arange(len(rows), device=x.device)
            shape = (law.degrees[k] + group.count[at, 0]) / 2
            rate = (law.degrees[k] + square[here, k]) / 2
            noise = noise * torch.distributions.Gamma(shape, rate).sample().rsqrt()[:, None, None]
        y = law.means[k] + (lower[k] @ noise).squeeze(-1)
        error = (own - y).nan_to_num(nan=0.0).unsqueeze(1).expand(-1, len(law.means), -1)
        moved, _ = group.expected(error, at)
        chosen = moved[torch.arange(len(rows), device=x.device), k]
        result[rows, : law.dim] = torch.where(own.isnan(), y + chosen, own)
        for m, table in enumerate(law.tables, law.dim):
            code, drawn_code = x[rows, m], torch.multinomial(table[k].exp(), 1).squeeze(1)
            result[rows, m] = torch.where(code.isnan(), drawn_code.to(x), code)
    return result


def class_terms(tables: Sequence[Tensor], codes: Tensor) -> Tensor:
    """Log-probabilities ``(N, K)`` by M >= 1 tables ``(K, S)`` of codes ``(N, M)`` not NaN."""
    terms = [
        torch.where(code.isnan().unsqueeze(1), 0.0, table.T[code.nan_to_num(nan=0.0).long()])
        for code, table in zip(codes.unbind(1), tables, strict=True)
    ]
    return torch.stack(terms).sum(0)
