r"""Questions to densities without a closed form, answered by weighted draws.

A mixture q of Gaussians, of t's and of normal scores, whose conditionals are closed forms, is
fitted to draws of the density p. Where a row has the cells o, the others are drawn from
:math:`q(m \mid o)`, and weigh :math:`w = p(o, m) / q(m \mid o)`. The mean of the weights is an
unbiased estimate of :math:`p(o)`, and draws chosen by their weights are of :math:`p(m \mid o)`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from torch import Tensor

from ..support.checks import check_integers
from ..support.seeding import seeded
from . import discrete, preparation, questions, tables
from .architectures import WITH_CLASSES, build, parse
from .arrays import TableLike
from .columns import Schema
from .flow import NormalizingFlow, evaluating
from .given_classes import GivenClasses
from .modelled import Modelled
from .stacked import Stacked, stacking_weights
from .table_density import TableDensity

if TYPE_CHECKING:
    from pandas import DataFrame

#: Draws that a proposal is fitted to, and the part of them that weights its members.
FITTED_TO = 3000
WEIGHTED_BY = 0.25

#: Members of a proposal: skewed columns, several modes, heavy tails.
MEMBERS: tuple[tuple[str, dict[str, object]], ...] = (
    ("gmm-1", {}),
    ("copula-3", {"components": 8}),
    ("gmm-5", {}),
    ("student-1", {}),
)

#: Number of effective draws below which a warning says that an answer is doubtful.
FEW = 50

#: Number of weighted candidates for each draw returned.
CANDIDATES = 10

#: Rows evaluated at once.
CHUNK = 2**17

#: Draws of a density that its own rows are compared with.
COMPARED = 500


def proposal(density: TableDensity) -> TableDensity:
    """Fit a density of Gaussians, t's and normal scores to draws of this one.

    The density remembers it until its weights change.

    :raises NotImplementedError: when the density cannot be drawn from.
    """
    state = [*density.parameters(), *density.buffers()]
    key = [(id(t), t._version) for t in state]
    if density.remembered is None or density.remembered[0] != key:
        density.remembered = key, _proposal(density)
    return density.remembered[1]


@torch.no_grad()
def _proposal(density: TableDensity) -> TableDensity:
    with seeded(0), evaluating(density):
        rows = density.sample(FITTED_TO, as_table=False).double()
        generator = torch.Generator().manual_seed(0)
        rows = discrete.dequantised(rows.cpu(), density.noise, generator).to(density.loc.device)
        found = Modelled.of(density.schema, [rows], generator)
        (u,) = density.moments.standardised(found, density.schema, torch.double, together=True)
        dim, sizes = len(density.schema.real), density.schema.sizes
        taken = int(len(u) * (1 - WEIGHTED_BY))
        members = list[NormalizingFlow | GivenClasses]()
        for name, options in MEMBERS:
            if not sizes or parse(name)[0] in WITH_CLASSES:
                members.append(
                    build(name, dim, 0, sizes=sizes, holes=None, classes=(), **options).to(u)
                )
                members[-1].start(u[:taken])
        values = torch.stack([member.log_prob(u[taken:]) for member in members], 1)
        law = Stacked(u.shape[1], members, stacking_weights(values)).to(u).closed_form()
    assert law is not None
    made = questions.made(density, list(range(density.width)), law)
    return made.to(torch.double)


@dataclass
class Weighted:
    """Draws of the missing cells of rows, and their weights.

    :ivar rows: ``(S, N, P)``.
    :ivar log_weights: ``(S, N)``.
    """

    rows: Tensor
    log_weights: Tensor

    @property
    def log_prob(self) -> Tensor:
        """The log-density ``(N,)`` of the cells that are seen."""
        return self.log_weights.logsumexp(0) - math.log(len(self.log_weights))

    @property
    def ess(self) -> Tensor:
        """The effective number ``(N,)`` of draws (Kish 1965); 0 where all weights are zero."""
        total = 2 * self.log_weights.logsumexp(0) - (2 * self.log_weights).logsumexp(0)
        return total.exp().nan_to_num(nan=0.0)

    def chosen(self, number: int) -> Tensor:
        """Rows ``(number, N, P)``, drawn from those there are with their weights."""
        at = torch.multinomial(self.log_weights.T.softmax(1), number, replacement=True).T
        return self.rows.gather(0, at.unsqueeze(-1).expand(*at.shape, self.rows.shape[-1]))


@torch.no_grad()
def weighted(density: TableDensity, by: TableDensity, rows: Tensor, number: int) -> Weighted:
    """Weighted draws of the cells of rows ``(N, P)`` that are NaN.

    :param by: the proposal.
    :param number: S, the draws of each row.
    """
    found, values = list[Tensor](), list[Tensor]()
    for part in rows.double().split(max(1, CHUNK // number)):
        drawn = questions.imputed(by, part, number)
        target, proposed = (law.log_prob(drawn).double() for law in (density, by))
        found.append(drawn)
        weights = target - proposed + by.log_prob(part)
        values.append(torch.where(weights.isnan(), -math.inf, weights))
    return Weighted(torch.cat(found, 1), torch.cat(values, 1))


def imputed(density: TableDensity, rows: Tensor, number: int) -> Tensor:
    """Rows ``(number, N, P)`` with draws in the cells that are NaN."""
    gone = rows.isnan().any(1)
    found = rows.expand(number, *rows.shape).clone()
    if gone.any():
        each = max(CANDIDATES * number, 10 * FEW)
        draws = weighted(density, proposal(density), rows[gone], each)
        _warn_of_few(draws.ess, each, "impute")
        found[:, gone] = draws.chosen(number).to(rows)
    return found


def _warn_of_few(ess: Tensor, number: int, what: str) -> None:
    low = float(ess.min())
    if low < FEW:
        warnings.warn(
            f"{what} rests on {low:.0f} effective draws of {number}, at least {FEW} are needed: "
            "ask for more (num_particles), or fit a density with a closed form, as "
            "architecture='copula-3' or 'gmm-5'",
            stacklevel=4,
        )


class WeightedDensity:
    r"""Some columns of a density without a closed form, given values of some others.

    With x the columns, g the values given and :math:`\hat p` estimates by weighted draws,
    :math:`\log p(x \mid g) = \log \hat p(x, g) - \log \hat p(g)`; where x and g are all columns of
    the density, the first is exact.

    :param density: of all columns.
    :param by: a closed form that is close to it.
    :param at: where the columns are.
    :param row: ``(1, P)``, what is given, and NaN elsewhere.
    :param num_particles: draws for each row.

    :ivar ess: effective number of the draws that :math:`\hat p(g)` rests on; without g, infinity.
    :ivar log_given: :math:`\log \hat p(g)`, the log-density of what is given.
    :ivar columns: the names of the columns, where they are known.

    :raises ValueError: where the density of what is given is zero.
    """

    def __init__(
        self,
        density: TableDensity,
        by: TableDensity,
        at: Sequence[int],
        row: Tensor,
        num_particles: int,
    ) -> None:
        self.density, self.by, self.at, self.row = density, by, list(at), row
        self.num_particles = num_particles
        self.schema = Schema([density.schema.columns[i] for i in self.at])
        self.columns = density.columns and [density.columns[i] for i in self.at]
        self.width, self.ess, self.log_given = len(self.at), math.inf, 0.0
        if not row.isnan().all():
            found = weighted(density, by, row, num_particles)
            self.ess, self.log_given = float(found.ess), float(found.log_prob)
            if self.log_given == -math.inf:
                raise ValueError(
                    "given is so far from all rows of the fit that its density is zero"
                )
            _warn_of_few(found.ess, num_particles, "condition")

    @overload
    def log_prob(self, x: Tensor) -> Tensor: ...

    @overload
    def log_prob(self, x: TableLike) -> Tensor | np.ndarray: ...

    def log_prob(self, x: TableLike) -> Tensor | np.ndarray:
        """Return the log-density of x ``(..., E)`` in nats, shape ``(...)``; cells may be missing.

        A tensor for a tensor, with gradients where no column is left out; an array for an array.

        :raises ValueError: for another width.
        """
        given = tables.matrix(x, "x", self.schema).rows
        if given.dim() == 0 or given.shape[-1] != self.width:
            raise ValueError(f"x must have shape (..., {self.width}), got {tuple(given.shape)}")
        batch, flat = given.shape[:-1], given.reshape(-1, self.width).to(self.row.device)
        cells = [self.row[:, i].expand(len(flat)) for i in range(self.row.shape[1])]
        for place, i in enumerate(self.at):
            cells[i] = flat[:, place].double()
        full = torch.stack(cells, 1)
        values = self.density.log_prob(full)
        gone = full.isnan().any(1)
        if gone.any():
            found = weighted(self.density, self.by, full[gone].detach(), self.num_particles)
            _warn_of_few(found.ess, self.num_particles, "log_prob")
            values = values.double().masked_scatter(gone, found.log_prob)
        values = (values - self.log_given).to(torch.promote_types(given.dtype, self.density.dtype))
        values = values.reshape(batch)
        return values if isinstance(x, Tensor) else values.detach().cpu().numpy()

    def score_samples(self, x: TableLike) -> np.ndarray:
        """Return the log-density of each of the rows ``(N, E)`` in nats, as an array ``(N,)``."""
        with torch.no_grad():
            rows = tables.matrix(x, "x", self.schema).rows
            return self.log_prob(rows).float().cpu().numpy()

    def score(self, x: TableLike) -> float:
        """Return the mean log-density of rows ``(N, E)`` in nats."""
        return float(self.score_samples(x).astype(np.float64).mean())

    def sample(
        self, n: int = 1, *, as_table: bool | None = None, seed: int | None = None
    ) -> Tensor | DataFrame:
        """n draws ``(n, E)``, from weighted ones: some may be the same.

        :param as_table: draws as a DataFrame; by default as of the whole density.
        :param seed: of the draws; by default they are from torch's generator.
        """
        check_integers(n=(n, 0))
        with seeded(seed):
            rows = self._drawn(n)
        rows = rows.to(self.density.data_dtype)
        told = self.density.from_table and not all(c.is_number for c in self.schema.columns)
        return (
            tables.as_frame(rows, self.schema) if as_table or (as_table is None and told) else rows
        )

    def _drawn(self, n: int) -> Tensor:
        if self.row.isnan().all():
            return self.density.sample(n, as_table=False)[:, self.at]
        if n == 0:
            return self.row.new_zeros(0, self.width)
        each = max(self.num_particles, CANDIDATES * n)
        rows = weighted(self.density, self.by, self.row, each).chosen(n)[:, 0]
        return discrete.quantised(rows, self.density.noise, self.density.values)[:, self.at]

    def anomaly_score(self, x: TableLike) -> np.ndarray:
        """Return the p-value ``(N,)`` of each of the rows ``(N, E)``: small where a row is unusual.

        It is the share of draws whose density is no higher, the row itself counted among them.
        """
        known = np.sort(self.score_samples(self.sample(COMPARED, as_table=False)))
        return preparation.p_values(self.score_samples(x), known)

    def condition(self, given: Mapping[str, object] | Mapping[int, object]) -> WeightedDensity:
        """Return the density of the other columns, where some have these values too.

        :raises ValueError: as ``FlowDensity.condition``.
        """
        at, rest, row = questions.given_row(self, given)
        whole = self.row.clone()
        whole[0, [self.at[i] for i in at]] = row[0, at].to(whole)
        return self._of([self.at[i] for i in rest], whole)

    def marginal(self, columns: Sequence[str | int]) -> WeightedDensity:
        """Return the density of some of the columns.

        :raises ValueError: when there is no such column.
        """
        at = questions.positions(self, columns, "columns")
        return self._of([self.at[i] for i in at], self.row)

    def _of(self, at: list[int], row: Tensor) -> WeightedDensity:
        return WeightedDensity(self.density, self.by, at, row, self.num_particles)
