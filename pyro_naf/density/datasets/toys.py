"""Small targets in the plane: a grid of Gaussians, whose truth is known, and the usual shapes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: Maps a number n and a generator to n points ``(n, 2)``.
Sampler = Callable[[int, torch.Generator], Tensor]


class GaussianGrid:
    r"""``side`` x ``side`` Gaussians of the plane, equally likely, at distance 1 from their kin.

    The best mean log-likelihood that any density can reach is minus its entropy,
    :meth:`log_likelihood_bound`.

    :param side: modes in a row.
    :param scale: standard deviation of each mode.

    >>> grid = GaussianGrid(5)
    >>> x = grid.sample(1000, torch.Generator().manual_seed(0))
    >>> x.shape, abs(float(grid.log_prob(x).mean()) - grid.log_likelihood_bound()) < 0.1
    (torch.Size([1000, 2]), True)
    """

    def __init__(self, side: int = 5, scale: float = 0.1) -> None:
        self.side, self.scale = side, scale
        self.centres = torch.arange(side) - (side - 1) / 2

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws ``(n, 2)``."""
        modes = torch.randint(self.side, (n, 2), generator=generator)
        return self.centres[modes] + self.scale * torch.randn(n, 2, generator=generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density ``(...)`` of x ``(..., 2)``: the axes are independent."""
        return self._log_prob_1d(x).sum(-1)

    def _log_prob_1d(self, x: Tensor) -> Tensor:
        standard = (x.unsqueeze(-1) - self.centres.to(x)) / self.scale
        constant = math.log(self.side * self.scale) + 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(-0.5 * standard.square(), -1) - constant

    def log_likelihood_bound(self) -> float:
        r""":math:`E \log p`, minus the entropy in nats, by quadrature of one axis."""
        end = self.side / 2 + 12 * self.scale
        x = torch.linspace(-end, end, 20_001, dtype=torch.double)
        log_prob = self._log_prob_1d(x)
        return 2 * float(torch.trapezoid(log_prob.exp() * log_prob, x))


def two_moons(n: int, generator: torch.Generator) -> Tensor:
    """Two half circles that interlock."""
    angle = math.pi * torch.rand(n, generator=generator)
    upper = torch.rand(n, generator=generator) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return torch.stack([x, y], 1) + 0.1 * torch.randn(n, 2, generator=generator)


def rings(n: int, generator: torch.Generator) -> Tensor:
    """Four concentric circles."""
    radius = 1.0 + torch.randint(4, (n,), generator=generator)
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    points = radius.unsqueeze(1) * torch.stack([angle.cos(), angle.sin()], 1)
    return points + 0.08 * torch.randn(n, 2, generator=generator)


def pinwheel(n: int, generator: torch.Generator) -> Tensor:
    """Five blades, bent."""
    blade = torch.randint(5, (n,), generator=generator)
    along = 1 + 0.3 * torch.randn(n, generator=generator)
    across = 0.1 * torch.randn(n, generator=generator)
    angle = 2 * math.pi * blade / 5 + 0.25 * along.exp()
    cos, sin = angle.cos(), angle.sin()
    return 2 * torch.stack([cos * along - sin * across, sin * along + cos * across], 1)


def checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """Draw from the black fields of a board of 4 x 4, side 2."""
    x = 4 * torch.rand(n, generator=generator) - 2
    row = torch.randint(2, (n,), generator=generator)
    y = torch.rand(n, generator=generator) - 2 * row + x.floor().remainder(2)
    return 2 * torch.stack([x, y], 1)


def spirals(n: int, generator: torch.Generator) -> Tensor:
    """Two arms around the origin."""
    turn = 1.5 * 2 * math.pi * torch.rand(n, generator=generator).sqrt()
    sign = 2 * torch.randint(2, (n, 1), generator=generator) - 1
    arm = torch.stack([-turn.cos() * turn, turn.sin() * turn], 1) / 3
    return sign * arm + 0.1 * torch.randn(n, 2, generator=generator)


SHAPES: dict[str, Sampler] = {
    "two-moons": two_moons,
    "rings": rings,
    "pinwheel": pinwheel,
    "checkerboard": checkerboard,
    "spirals": spirals,
    "grid-5": GaussianGrid(5).sample,
    "grid-10": GaussianGrid(10).sample,
}
