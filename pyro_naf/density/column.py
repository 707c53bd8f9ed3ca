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

#: Maps of a half line, or of an interval, to the real line.
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
      the difference of "softplus" of both distances, which is linear but for the scale s at each
      bound, or :math:`u = \Phi^{-1}\big((x - l) / (h - l)\big)` ("probit"), which makes uniform
      values normal
    * periodic: the same within one period from ``lower`` on, a point where values are few
    * integer: with uniform noise over a ``step`` added, as continuous, positive or bounded
    * categorical, boolean: none; the place of the value in ``values``

    A bound may be soft: beyond it the density fades, as the inverse square of the distance. With
    the width w, the distance z from the bound becomes :math:`(z + \sqrt{z^2 + 4 w^2}) / 2` in the
    formulas above. Values are drawn within the bounds nevertheless.

    A column of numbers may have ``spikes``, which are classes (:mod:`pyro_naf.density.spikes`); the
    map is then that of the rest.

    :param unit: what the table writes beside its numbers: %, a currency, s for durations.
    :param soft: widths of the lower and the upper bound; 0 for a hard one.
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
    soft: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        object.__setattr__(self, "spikes", tuple(sorted(map(float, self.spikes))))
        object.__setattr__(self, "soft", (float(self.soft[0]), float(self.soft[1])))
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        numbers = (
            min(self.slack, *self.soft) >= 0
            and 0 < self.scale < math.inf
            and 0 <= self.step < math.inf
        )
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
        if max(self.soft) == 0:
            return (x > low) & (x < high) | x.isnan()
        within = (x > low) | (self.soft[0] > 0), (x < high) | (self.soft[1] > 0)
        return within[0] & within[1] & ~x.isinf() | x.isnan()

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
        if low == -math.inf or high == math.inf:
            mirrored = low == -math.inf
            t, fading = _softened(high - x if mirrored else x - low, self.soft[mirrored])
            u, slope = self._half_line(t)
            return (-u if mirrored else u), slope + fading
        x = self.wrapped(x)
        above, below, fading = self._distances(x)
        if self.kind == "periodic":
            tiny = torch.finfo(x.dtype).eps * (high - low)
            above, below = above.clamp(min=tiny), below.clamp(min=tiny)
        _, length = self._lengths
        if self.curve == "probit":
            tail = torch.special.ndtri(torch.minimum(above, below) / length)
            u = torch.where(above < below, tail, -tail)
            slope = 0.5 * (u.square() + math.log(2 * math.pi)) - math.log(length)
        elif self.curve == "log":
            u = above.log() - below.log()
            slope = math.log(length) - above.log() - below.log()
        else:
            (up, rising), (down, falling) = self._half_line(above), self._half_line(below)
            u, slope = up - down, torch.logaddexp(rising, falling)
        return u, slope + fading

    @property
    def _lengths(self) -> tuple[float, float]:
        """Distance of the upper bound from the lower, softened by one of them and by both."""
        low, high = self._ends
        first = 0.5 * (high - low + math.hypot(high - low, 2 * self.soft[0]))
        return first, 0.5 * (first + math.hypot(first, 2 * self.soft[1]))

    def _distances(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distances from the lower and the upper bound, and the logarithm of their slope."""
        (low, high), (first, length) = self._ends, self._lengths
        t, lower = _softened(x - low, self.soft[0])
        rounded = (first - (high - low)) - (t - (x - low))  # 0 if the lower bound is hard
        below, upper = _softened((high - x) + rounded, self.soft[1])
        # No square of a width: it may be out of range where values are not.
        above = t / (1 + (self.soft[1] / length) * (self.soft[1] / below)) if self.soft[1] else t
        return above, below, lower + upper

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
            t, below = self._parts(u)
            if self.soft[1]:
                t = t + (self.soft[1] / self._lengths[1]) * (self.soft[1] / below) * t
            x = low + _hardened(t, self.soft[0])
        elif low > -math.inf:
            x = low + _hardened(self._from_half_line(u), self.soft[0])
        elif high < math.inf:
            x = high - _hardened(self._from_half_line(-u), self.soft[1])
        else:
            x = u
        if self.step > 0:
            return self._rounded(x)
        return x.clamp(min=self.lower, max=self.upper)

    def _parts(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Distances from the lower and the upper of two bounds, by their images."""
        (_, length), scale = self._lengths, self.scale
        if self.curve == "softplus":  # with E = exp(-|u| / s): (e^(t/s) - 1) = E (e^((l-t)/s) - 1)
            e, widest = (-u.abs() / scale).exp(), math.exp(length / scale)
            root = ((1 - e).square() + 4 * e * widest).sqrt()
            t = scale * (2 * e * (widest - 1) / (root + 1 + e)).log1p()
            return torch.where(u < 0, t, length - t), torch.where(u < 0, length - t, t)
        part = torch.special.ndtr if self.curve == "probit" else torch.sigmoid
        return length * part(u), length * part(-u)

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


def _softened(z: Tensor, width: float) -> tuple[Tensor, Tensor]:
    r"""Distances :math:`t = (z + \sqrt{z^2 + 4 w^2}) / 2` from a soft bound, and log-slopes.

    >>> t, _ = _softened(torch.tensor([-3.0, 0.0, 3.0]), 2.0)
    >>> t.tolist(), _hardened(t, 2.0).tolist()
    ([1.0, 2.0, 4.0], [-3.0, 0.0, 3.0])
    """
    if width == 0:
        return z, torch.zeros_like(z)
    root = torch.hypot(z, torch.full_like(z, 2 * width))
    t = torch.where(z < 0, 2 * width * (width / (root - z)), 0.5 * (z + root))
    return t, t.log() - root.log()


def _hardened(t: Tensor, width: float) -> Tensor:
    """Undo :func:`_softened`."""
    return t - width * (width / t) if width else t


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
