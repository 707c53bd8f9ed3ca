"""The columns of a table together: rows as a density models them, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform

from . import spikes
from .column import CLASSES as CLASSES
from .column import KINDS as KINDS
from .column import REAL as REAL
from .column import Column as Column

#: Points that the noise of integer columns takes when a probability is computed.
NOISE_POINTS = 16


@dataclass
class Encoded:
    """Rows of a table as a density models them.

    :ivar real: ``(..., D)``, of the columns that are real numbers.
        NaN where a cell is missing, or on a spike.
    :ivar codes: ``(..., M)``, of those that are classes or have spikes; -1 where a cell is missing.
    :ivar log_slope: ``(...)``, the logarithm of the map's slope, and of the steps of integers,
        whose density over a step is their probability; a missing cell adds nothing.
    :ivar inside: ``(...)``, whether all values lie where the columns have a density.
    """

    real: Tensor
    codes: Tensor
    log_slope: Tensor
    inside: Tensor


def beside(real: Tensor, codes: Tensor) -> Tensor:
    """Numbers ``(..., D)`` and, behind them, classes ``(..., M)`` by their places, NaN for -1."""
    known = torch.where(codes < 0, math.nan, codes.to(real))
    return torch.cat([real, known], -1)


class Schema:
    """The columns of a table.

    :ivar real: the columns that are real numbers, those with spikes last.
    :ivar classes: the columns that are classes.
    :ivar coded: the columns with a class, behind ``classes`` those with spikes.
    :ivar sizes: the number of values of each such class.

    >>> price = Column("positive", "price", lower=0.0)
    >>> schema = Schema([price, Column("boolean", "sold", values=(0.0, 1.0))])
    >>> found = schema.encode(torch.tensor([[100.0, 1.0]]).double())
    >>> round(float(found.real), 3), found.codes.tolist()
    (4.605, [[1]])
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        self.spiked = [i for i, c in enumerate(self.columns) if c.spikes]
        whole = [i for i, c in enumerate(self.columns) if c.is_real and not c.spikes]
        self.real = [*whole, *self.spiked]
        self.classes = [i for i, c in enumerate(self.columns) if not c.is_real]
        self.coded = [*self.classes, *self.spiked]
        self.integers = [i for i, c in enumerate(self.columns) if c.step > 0]
        coded = [self.columns[i] for i in self.coded]
        self.sizes = [len(c.values) or 1 + len(c.spikes) for c in coded]

    @property
    def holes(self) -> dict[int, int]:
        """For each real number that rows may lack, the place of "rest" in :meth:`one_hot`."""
        first = len(self.real) - len(self.spiked)
        before = [sum(self.sizes[:m]) for m in range(len(self.classes), len(self.coded))]
        return {first + j: place for j, place in enumerate(before)}

    @property
    def is_plain(self) -> bool:
        """Whether rows are modelled as they are."""
        return all(column.is_plain for column in self.columns)

    @property
    def names(self) -> list[str] | None:
        """Names of the columns; None where they have none."""
        names = [c.name for c in self.columns]
        return None if None in names else [str(name) for name in names]

    def called(self, i: int) -> str:
        """Name a column as messages do."""
        name = self.columns[i].name
        return str(i) if name is None else name

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Encoded:
        """Rows ``(..., P)`` as a density models them.

        NaN, a missing cell, stays NaN.

        :param noise: from 0 to 1, ``(..., I)``, for the integer columns, in units of their steps.
        """
        inside = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        if self.is_plain:
            none = torch.zeros(*x.shape[:-1], 0, dtype=torch.long, device=x.device)
            return Encoded(x, none, x.new_zeros(x.shape[:-1]), inside)
        x = x.double()
        log_slope, real = x.new_zeros(x.shape[:-1]), []
        for i in self.real:
            column, value = self.columns[i], x[..., i]
            if column.spikes:
                value = spikes.rest_of(value, column.spikes, column.step)
            if column.step > 0 and noise is not None:
                value = value + column.step * noise[..., self.integers.index(i)]
            valid = column.inside(value)
            middle = column.from_real(torch.zeros((), dtype=x.dtype)).to(x)
            u, slope = column.to_real(torch.where(valid, value, middle))
            slope = torch.where(value.isnan(), 0.0, slope + math.log(column.step or 1.0))
            inside, log_slope = inside & valid, log_slope + slope
            real.append(u)
        codes = torch.zeros(*x.shape[:-1], len(self.coded), dtype=torch.long, device=x.device)
        for m, i in enumerate(self.coded):
            codes[..., m], known = self._codes(self.columns[i], x[..., i])
            inside = inside & known
        stacked = torch.stack(real, -1) if real else x.new_zeros(*x.shape[:-1], 0)
        return Encoded(stacked, codes, log_slope, inside)

    def without_spikes(self, x: Tensor) -> Tensor:
        """Rows ``(..., P)`` with NaN in the cells that are on a spike."""
        cells = list(x.unbind(-1))
        for i in self.spiked:
            cells[i] = spikes.rest_of(cells[i], self.columns[i].spikes, 0.0)
        return torch.stack(cells, -1) if self.spiked else x

    def _codes(self, column: Column, x: Tensor) -> tuple[Tensor, Tensor]:
        """Find the places of a column's values among the known ones, and whether they are there."""
        if column.spikes:
            codes = spikes.places(x, column.spikes)
            known = torch.ones_like(x, dtype=torch.bool)
        elif any(isinstance(value, str) for value in column.values):
            known = (x >= 0) & (x < len(column.values))  # text is coded before
            codes = torch.where(known, x, 0.0).long()
        else:
            values = torch.tensor([float(v) for v in column.values], dtype=x.dtype, device=x.device)
            equal = x.unsqueeze(-1) == values
            codes, known = equal.long().argmax(-1), equal.any(-1)
        return torch.where(x.isnan(), -1, codes), known | x.isnan()

    def decode(self, real: Tensor, codes: Tensor) -> Tensor:
        """Decode rows ``(..., P)``; text as its place among the column's values."""
        if self.is_plain:
            return real
        found = [real.new_zeros(real.shape[:-1])] * len(self.columns)
        for d, i in enumerate(self.real):
            found[i] = self.columns[i].from_real(real[..., d])
        for m, i in enumerate(self.coded):
            column = self.columns[i]
            if column.spikes:
                found[i] = spikes.with_spikes(found[i], codes[..., m], column.spikes, column.step)
                continue
            values, code = self.columns[i].values, codes[..., m]
            if any(isinstance(value, str) for value in values):
                found[i] = code.to(real)
            else:
                numbers = torch.tensor([float(v) for v in values], dtype=torch.double)
                found[i] = numbers.to(code.device)[code].to(real)
        return torch.stack(found, -1)

    def noise(self, device: torch.device) -> Tensor:
        """Noise ``(S, I)`` over which the density of integer columns is averaged.

        Each column has the middles of S equal parts, in an order of its own (a Latin hypercube).
        """
        generator = torch.Generator().manual_seed(0)
        order = torch.rand(len(self.integers), NOISE_POINTS, generator=generator).argsort(1)
        return (order.T.to(device).double() + 0.5) / NOISE_POINTS

    def one_hot(self, codes: Tensor) -> Tensor:
        """Zeros and ones ``(..., E)``, one for each class of each column."""
        parts = [
            torch.nn.functional.one_hot(codes[..., m], size) for m, size in enumerate(self.sizes)
        ]
        return torch.cat(parts, -1).double()

    def content(self) -> list[dict[str, object]]:
        """Return the columns as a file holds them."""
        return [
            {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(c).items()}
            for c in self.columns
        ]

    @classmethod
    def of(cls, content: Sequence[Mapping[str, object]]) -> Schema:
        """Make the schema that :meth:`content` described."""
        make: Callable[..., Column] = Column
        return cls([make(**column) for column in content])


class ToData(Transform):
    """The map from the real numbers of a schema without classes or integers to its values."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, schema: Schema) -> None:
        super().__init__(cache_size=1)
        self.schema = schema

    def _call(self, u: Tensor) -> Tensor:
        return self.schema.decode(u, u.new_zeros(*u.shape[:-1], 0).long())

    def _inverse(self, x: Tensor) -> Tensor:
        return self.schema.encode(x).real.to(x.dtype)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-determinant ``(...)`` of the map from coordinates to the columns' values."""
        return -self.schema.encode(y).log_slope.to(y.dtype)
