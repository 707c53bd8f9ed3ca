"""What each column of a table is: its kind, and the map between its values and the real line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import Transform

#: Kinds whose values a flow models, and kinds that a softmax does.
REAL = ("continuous", "positive", "bounded", "periodic", "integer", "date")
CLASSES = ("categorical", "boolean")
KINDS = (*REAL, *CLASSES)

#: Points that the noise of integer columns takes when a probability is computed.
NOISE_POINTS = 16

#: Golden-ratio steps of these points (a Kronecker sequence), from one column to the next.
GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Column:
    r"""One column: its kind, and what maps its values x to real numbers u.

    * continuous, date (in days, with a ``step`` where all are whole): :math:`u = x`
    * positive, above ``lower``: with :math:`t = x - l`, either :math:`u = \log t` (``curve`` "log")
      or :math:`u = s \log(e^{t/s} - 1)` ("softplus"), which is linear from the scale s on; mirrored
      below ``upper`` where ``lower`` is minus infinity
    * bounded, within (``lower``, ``upper``): :math:`u = \log(x - l) - \log(h - x)`
    * periodic: the same within one period from ``lower`` on, a point where values are few
    * integer: with uniform noise over a ``step`` added, as continuous, positive or bounded
    * categorical, boolean: none; the place of the value in ``values``

    :param unit: what the table writes beside its numbers: %, a currency, s for durations.
    :param slack: number by which bounds are moved out, so that values on them have an image.
    :raises ValueError: for an unknown kind, or numbers that make no map.
    """

    kind: str = "continuous"
    name: str | None = None
    lower: float = -math.inf
    upper: float = math.inf
    slack: float = 0.0
    curve: str = "log"
    scale: float = 1.0
    step: float = 0.0
    values: tuple[float | str, ...] = ()
    unit: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        numbers = self.slack >= 0 and 0 < self.scale < math.inf and 0 <= self.step < math.inf
        if not (self.lower < self.upper and numbers) or self.curve not in ("log", "softplus"):
            raise ValueError(f"column {self.name!r} has bounds or a scale that make no map")
        if self.kind in CLASSES and not self.values:
            raise ValueError(f"column {self.name!r} is {self.kind}, and has no values")

    @property
    def is_real(self) -> bool:
        """Whether the column's values are real numbers to a flow."""
        return self.kind in REAL

    @property
    def is_number(self) -> bool:
        """Whether a table holds its values as plain numbers, and not as text or dates."""
        return self.is_real and self.kind != "date" and self.unit != "s"

    @property
    def is_plain(self) -> bool:
        """Whether its values are the real numbers that a flow models."""
        return self.is_real and self.step == 0 and self._ends == (-math.inf, math.inf)

    @property
    def period(self) -> float:
        """Length of the period of a periodic column."""
        return self.upper - self.lower

    @property
    def _ends(self) -> tuple[float, float]:
        """The open interval that is mapped to the real line."""
        top = self.upper + self.step if self.step > 0 else self.upper
        return self.lower - self.slack, top + self.slack

    def inside(self, x: Tensor) -> Tensor:
        """Which values lie where the column has a density."""
        low, high = self._ends
        if self.kind == "periodic":
            return torch.ones_like(x, dtype=torch.bool)
        return (x > low) & (x < high) | x.isnan()

    def wrapped(self, x: Tensor) -> Tensor:
        """Values of a periodic column within their period; others as they are."""
        if self.kind != "periodic":
            return x
        return self.lower + torch.remainder(x - self.lower, self.period)

    def to_real(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""u and :math:`\log du/dx` of values that lie inside."""
        low, high = self._ends
        if low == -math.inf and high == math.inf:
            return x, torch.zeros_like(x)
        if low > -math.inf and high < math.inf:
            x = self.wrapped(x)
            tiny = torch.finfo(x.dtype).eps * (high - low) if self.kind == "periodic" else 0.0
            above, below = (x - low).clamp(min=tiny), (high - x).clamp(min=tiny)
            slope = math.log(high - low) - above.log() - below.log()
            return above.log() - below.log(), slope
        u, slope = self._half_line(x - low if low > -math.inf else high - x)
        return (u if low > -math.inf else -u), slope

    def _half_line(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.curve == "log":
            return t.log(), -t.log()
        rest = (-(-t / self.scale).expm1()).log()  # log(1 - exp(-t/s))
        return t + self.scale * rest, -rest

    def from_real(self, u: Tensor) -> Tensor:
        """Map real numbers to values: the inverse of :meth:`to_real`, within the bounds."""
        low, high = self._ends
        if low > -math.inf and high < math.inf:
            x = low + (high - low) * u.sigmoid()
        elif low > -math.inf:
            x = low + self._from_half_line(u)
        elif high < math.inf:
            x = high - self._from_half_line(-u)
        else:
            x = u
        if self.step > 0:
            return self._rounded(x)
        return x.clamp(min=self.lower, max=self.upper)

    def _from_half_line(self, u: Tensor) -> Tensor:
        if self.curve == "log":
            return u.exp().clamp(min=torch.finfo(u.dtype).tiny)
        return self.scale * torch.nn.functional.softplus(u / self.scale, threshold=700)

    def _rounded(self, x: Tensor) -> Tensor:
        anchor = self.lower if self.lower > -math.inf else 0.0
        if self.lower == -math.inf and self.upper < math.inf:
            anchor = self.upper
        x = anchor + self.step * torch.floor((x - anchor) / self.step + 1e-9)
        return x.clamp(min=self.lower, max=self.upper)


@dataclass
class Encoded:
    """Rows of a table as a density models them.

    :ivar real: ``(..., D)``, of the columns that are real numbers.
    :ivar codes: ``(..., M)``, of those that are classes; -1 where a cell is missing.
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

    >>> price = Column("positive", "price", lower=0.0)
    >>> schema = Schema([price, Column("boolean", "sold", values=(0.0, 1.0))])
    >>> found = schema.encode(torch.tensor([[100.0, 1.0]]).double())
    >>> round(float(found.real), 3), found.codes.tolist()
    (4.605, [[1]])
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        self.real = [i for i, c in enumerate(self.columns) if c.is_real]
        self.classes = [i for i, c in enumerate(self.columns) if not c.is_real]
        self.integers = [i for i, c in enumerate(self.columns) if c.step > 0]
        self.sizes = [len(self.columns[i].values) for i in self.classes]

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
            if column.step > 0 and noise is not None:
                value = value + column.step * noise[..., self.integers.index(i)]
            valid = column.inside(value)
            middle = column.from_real(torch.zeros((), dtype=x.dtype)).to(x)
            u, slope = column.to_real(torch.where(valid, value, middle))
            slope = torch.where(value.isnan(), 0.0, slope + math.log(column.step or 1.0))
            inside, log_slope = inside & valid, log_slope + slope
            real.append(u)
        codes = torch.zeros(*x.shape[:-1], len(self.classes), dtype=torch.long, device=x.device)
        for m, i in enumerate(self.classes):
            codes[..., m], known = self._codes(self.columns[i], x[..., i])
            inside = inside & known
        stacked = torch.stack(real, -1) if real else x.new_zeros(*x.shape[:-1], 0)
        return Encoded(stacked, codes, log_slope, inside)

    def _codes(self, column: Column, x: Tensor) -> tuple[Tensor, Tensor]:
        """Find the places of a column's values among the known ones, and whether they are there."""
        if any(isinstance(value, str) for value in column.values):
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
        for m, i in enumerate(self.classes):
            values, code = self.columns[i].values, codes[..., m]
            if any(isinstance(value, str) for value in values):
                found[i] = code.to(real)
            else:
                numbers = torch.tensor([float(v) for v in values], device=code.device)
                found[i] = numbers.double()[code].to(real)
        return torch.stack(found, -1)

    def noise(self, device: torch.device) -> Tensor:
        """Noise ``(S, I)`` over which the density of integer columns is averaged."""
        s = torch.arange(NOISE_POINTS, dtype=torch.double, device=device).unsqueeze(1)
        j = torch.arange(len(self.integers), dtype=torch.double, device=device)
        rational = (s + 0.5) / NOISE_POINTS
        return torch.where(j == 0, rational, torch.remainder(rational * 0 + s * GOLDEN**j + 0.5, 1))

    def one_hot(self, codes: Tensor) -> Tensor:
        """Zeros and ones ``(..., E)``, one for each class of each column."""
        parts = [
            torch.nn.functional.one_hot(codes[..., m], size) for m, size in enumerate(self.sizes)
        ]
        return torch.cat(parts, -1).double()

    def content(self) -> list[dict[str, object]]:
        """Return the columns as a file holds them."""
        return [{**asdict(column), "values": list(column.values)} for column in self.columns]

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
