"""What a column of a table is: its kind, and the map between its values and the real line."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Kinds whose values a flow models, and kinds that a softmax does.
REAL = ("continuous", "positive", "bounded", "periodic", "integer", "date")
CLASSES = ("categorical", "boolean")
KINDS = (*REAL, *CLASSES)

#: Maps of a half line to the real line; the first and last are maps of an interval too.
CURVES = ("log", "softplus", "probit")

#: Distance from the bound, in units of the scale, from which on the map "probit" is computed by
#: Newton's method, whose start is right to 1 % there: the probability beyond may underflow.
FAR, NEWTON_STEPS = 30.0, 3

#: Classes of a column beyond which it is refused.
MANY_CLASSES = 200


@dataclass(frozen=True)
class Column:
    r"""One column: its kind, and what maps its values x to real numbers u.

    * continuous, date (in days, with a ``step`` where all are whole): :math:`u = x`
    * positive, above ``lower``: with :math:`t = x - l` and by ``curve`` :math:`u = \log t` ("log"),
      or :math:`u = s \log(e^{t/s} - 1)` ("softplus"), which is linear from the scale s on, or
      :math:`u = \Phi^{-1}(1 - e^{-t/s})` ("probit"), which makes exponential values normal;
      mirrored below ``upper`` where ``lower`` is minus infinity
    * bounded, within (``lower``, ``upper``): :math:`u = \log(x - l) - \log(h - x)` ("log"), or
      :math:`u = \Phi^{-1}\big((x - l) / (h - l)\big)` ("probit"), which makes uniform values normal
    * periodic: the same within one period from ``lower`` on, a point where values are few
    * integer: with uniform noise over a ``step`` added, as continuous, positive or bounded
    * categorical, boolean: none; the place of the value in ``values``

    A column of numbers may have ``spikes``, which are classes (:mod:`pyro_naf.density.spikes`); the
    map is then that of the rest.

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
    spikes: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        object.__setattr__(self, "spikes", tuple(sorted(map(float, self.spikes))))
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        numbers = self.slack >= 0 and 0 < self.scale < math.inf and 0 <= self.step < math.inf
        if not (self.lower < self.upper and numbers) or self.curve not in CURVES:
            raise ValueError(f"column {self.name!r} has bounds or a scale that make no map")
        if self.kind in CLASSES and (not self.values or self.spikes):
            raise ValueError(f"column {self.name!r} is {self.kind}, and has no values, or spikes")

    @property
    def is_real(self) -> bool:
        """Whether the column's values are real numbers to a flow."""
        return self.kind in REAL

    @property
    def is_number(self) -> bool:
        """Whether a table holds its values as plain numbers, and not as text or dates."""
        if self.kind == "categorical":
            return not any(isinstance(value, str) for value in self.values)
        return self.is_real and self.kind != "date" and self.unit != "s"

    @property
    def is_plain(self) -> bool:
        """Whether its values are the real numbers that a flow models."""
        plain = self.is_real and self.step == 0 and not self.spikes
        return plain and self._ends == (-math.inf, math.inf)

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
            if self.curve == "probit":
                tail = torch.special.ndtri(torch.minimum(above, below) / (high - low))
                u = torch.where(above < below, tail, -tail)
                return u, 0.5 * (u.square() + math.log(2 * math.pi)) - math.log(high - low)
            slope = math.log(high - low) - above.log() - below.log()
            return above.log() - below.log(), slope
        u, slope = self._half_line(x - low if low > -math.inf else high - x)
        return (u if low > -math.inf else -u), slope

    def _half_line(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.curve == "log":
            return t.log(), -t.log()
        if self.curve == "probit":
            u = _exponential_score(t / self.scale)
            return u, 0.5 * (u.square() + math.log(2 * math.pi)) - t / self.scale - math.log(
                self.scale
            )
        rest = (-(-t / self.scale).expm1()).log()  # log(1 - exp(-t/s))
        return t + self.scale * rest, -rest

    def from_real(self, u: Tensor) -> Tensor:
        """Map real numbers to values: the inverse of :meth:`to_real`, within the bounds."""
        low, high = self._ends
        if low > -math.inf and high < math.inf:
            part = torch.special.ndtr(u) if self.curve == "probit" else u.sigmoid()
            x = low + (high - low) * part
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
        if self.curve == "probit":
            t = -self.scale * torch.special.log_ndtr(-u)
            return t.clamp(min=torch.finfo(u.dtype).tiny)
        return self.scale * torch.nn.functional.softplus(u / self.scale, threshold=700)

    def _rounded(self, x: Tensor) -> Tensor:
        anchor = self.lower if self.lower > -math.inf else 0.0
        if self.lower == -math.inf and self.upper < math.inf:
            anchor = self.upper
        x = anchor + self.step * torch.floor((x - anchor) / self.step + 1e-9)
        return x.clamp(min=self.lower, max=self.upper)


def _exponential_score(a: Tensor) -> Tensor:
    r"""Return normal scores u of a standard exponential law's values: :math:`\Phi(-u) = e^{-a}`.

    >>> u = _exponential_score(torch.tensor([1e-3, 0.5, 20.0, 40.0, 1e4]).double())
    >>> [round(-float(a), 6) for a in torch.special.log_ndtr(-u)]
    [0.001, 0.5, 20.0, 40.0, 10000.0]
    """
    near = a.clamp(max=FAR)
    score = torch.where(
        a < 0.5, torch.special.ndtri(-(-near).expm1()), -torch.special.ndtri((-near).exp())
    )
    far = a.clamp(min=FAR)
    u = (2 * far - (4 * math.pi * far).log()).sqrt()
    for _ in range(NEWTON_STEPS):
        log_tail = torch.special.log_ndtr(-u)
        log_density = -0.5 * (u.square() + math.log(2 * math.pi))
        u = u + (log_tail + far) * (log_tail - log_density).exp()
    return torch.where(a < FAR, score, u)
