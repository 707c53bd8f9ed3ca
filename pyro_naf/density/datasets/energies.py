r"""The energies U1 to U4 of Rezende and Mohamed (2015) [arXiv:1505.05770], table 1.

.. math::
    U_1 &= \tfrac12 \big(\tfrac{\|z\| - 2}{0.4}\big)^2
           - \ln\big(e^{-\frac12 (\frac{z_1 - 2}{0.6})^2}
           + e^{-\frac12 (\frac{z_1 + 2}{0.6})^2}\big) \\
    U_2 &= \tfrac12 \big(\tfrac{z_2 - w_1}{0.4}\big)^2 \\
    U_3 &= -\ln\big(e^{-\frac12 (\frac{z_2 - w_1}{0.35})^2}
           + e^{-\frac12 (\frac{z_2 - w_1 + w_2}{0.35})^2}\big) \\
    U_4 &= -\ln\big(e^{-\frac12 (\frac{z_2 - w_1}{0.4})^2}
           + e^{-\frac12 (\frac{z_2 - w_1 + w_3}{0.35})^2}\big)

with :math:`w_1 = \sin(\pi z_1 / 2)`, :math:`w_2 = 3 e^{-\frac12 ((z_1 - 1) / 0.6)^2}` and
:math:`w_3 = 3 \sigma((z_1 - 1) / 0.3)`. As they stand U2 to U4 do not depend on z1 alone, and are
no densities; here walls :math:`\tfrac12 ((|z_1| - 4) / 0.4)^2` beyond :math:`|z_1| = 4`, the edge
of the paper's pictures, make them so, and their normalisers are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Energy = Callable[[Tensor], Tensor]

#: Where the walls of U2 to U4 begin, and how wide they are.
EDGE, WALL = 4.0, 0.4


def u1(z: Tensor) -> Tensor:
    """Evaluate the energy of a ring, heavy at its left and right."""
    z1 = z[..., 0]
    left, right = (-0.5 * ((z1 - c) / 0.6).square() for c in (-2, 2))
    return 0.5 * ((z.norm(dim=-1) - 2) / 0.4).square() - torch.logaddexp(left, right)


def u2(z: Tensor) -> Tensor:
    """Evaluate the energy of a sine wave."""
    z1, z2 = z.unbind(-1)
    return 0.5 * ((z2 - _w1(z1)) / 0.4).square() + _walls(z1)


def u3(z: Tensor) -> Tensor:
    """Evaluate the energy of a sine wave that parts and meets again."""
    z1, z2 = z.unbind(-1)
    w2 = 3 * torch.exp(-0.5 * ((z1 - 1) / 0.6).square())
    return -_either((z2 - _w1(z1)) / 0.35, (z2 - _w1(z1) + w2) / 0.35) + _walls(z1)


def u4(z: Tensor) -> Tensor:
    """Evaluate the energy of a sine wave that parts for good."""
    z1, z2 = z.unbind(-1)
    w3 = 3 * torch.sigmoid((z1 - 1) / 0.3)
    return -_either((z2 - _w1(z1)) / 0.4, (z2 - _w1(z1) + w3) / 0.35) + _walls(z1)


ENERGIES: dict[str, Energy] = {"U1": u1, "U2": u2, "U3": u3, "U4": u4}


def log_normaliser(name: str) -> float:
    r""":math:`\ln \int e^{-U(z)} dz`: in closed form, for U1 by quadrature of its radius and angle.

    >>> round(log_normaliser("U2"), 4)
    2.2002
    """
    if name == "U1":
        return _log_normaliser_of_u1()
    # For every z1 the integral over z2 is that of one or two Gaussians.
    widths = {"U2": (0.4,), "U3": (0.35, 0.35), "U4": (0.4, 0.35)}[name]
    root = math.sqrt(2 * math.pi)
    return math.log(sum(widths) * root) + math.log(2 * EDGE + WALL * root)


def _log_normaliser_of_u1() -> float:
    radius = torch.linspace(0, 8, 8001, dtype=torch.double)
    angle = torch.arange(720, dtype=torch.double) * (2 * math.pi / 720)
    r, a = torch.meshgrid(radius, angle, indexing="ij")
    inner = torch.exp(-u1(torch.stack([r * a.cos(), r * a.sin()], -1))).mean(1) * 2 * math.pi
    return math.log(float(torch.trapezoid(inner * radius, radius)))


def _w1(z1: Tensor) -> Tensor:
    return torch.sin(math.pi * z1 / 2)


def _either(a: Tensor, b: Tensor) -> Tensor:
    return torch.logaddexp(-0.5 * a.square(), -0.5 * b.square())


def _walls(z1: Tensor) -> Tensor:
    return 0.5 * ((z1.abs() - EDGE).clamp(min=0) / WALL).square()
