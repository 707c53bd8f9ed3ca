"""Affine maps :math:`y = e^s x + m`, alone or around another map, and the bound on a log-scale."""

from __future__ import annotations

import torch
from torch import Tensor

#: Argument at which the bound is reached to rounding: the square of a larger one could overflow.
_MOST = 1e9


def evaluate(x: Tensor, shift: Tensor, log_scale: Tensor) -> Tensor:
    """Evaluate the map; its log-slope is the log-scale."""
    return log_scale.exp() * x + shift


def inverse(y: Tensor, shift: Tensor, log_scale: Tensor) -> Tensor:
    """Invert the map at y."""
    return (y - shift) * torch.exp(-log_scale)


def bounded(raw: Tensor, limits: Tensor) -> Tensor:
    r"""Return the log-scale :math:`s = B r / \sqrt{1 + r^2}` with :math:`r = g\,\mathrm{raw} / B`.

    Smooth, odd, of slope g at zero, and within :math:`\pm B`: the exponential of an unbounded
    output of a network is what a few steps of an optimiser make infinite. The derivative falls
    slowly, as :math:`|r|^{-3}`, so that training finds back from a far log-scale.

    :param raw: the pseudo-parameter, any shape.
    :param limits: B and g, shape ``(2,)``.
    :return: s, of the shape of ``raw``.

    >>> bounded(torch.tensor([0.01, 4.0, 1e20]), torch.tensor([4.0, 1.0]))
    tensor([0.0100, 2.8284, 4.0000])
    """
    bound, slope = limits.unbind()
    r = (raw * (slope / bound)).clamp(-_MOST, _MOST)
    return bound * r * (1 + r.square()).rsqrt()


def unbounded(log_scale: Tensor, limits: Tensor) -> Tensor:
    """Return the pseudo-parameter of a log-scale, which is brought within the bound.

    >>> limits = torch.tensor([4.0, 0.1])
    >>> bounded(unbounded(torch.tensor([-1.0, 2.0]), limits), limits)
    tensor([-1.,  2.])
    """
    bound, slope = limits.unbind()
    part = (log_scale / bound).clamp(-0.99, 0.99)
    return bound / slope * part * (1 - part.square()).rsqrt()
