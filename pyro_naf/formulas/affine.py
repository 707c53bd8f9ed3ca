"""The log-scale of an affine map, kept within a bound."""

from __future__ import annotations

from torch import Tensor

#: Argument at which the bound is reached to rounding: the square of a larger one could overflow.
_MOST = 1e9


def bounded(raw: Tensor, limits: Tensor) -> Tensor:
    r"""The log-scale :math:`s = B r / \sqrt{1 + r^2}` with :math:`r = g\,\mathrm{raw} / B`.

    Smooth, odd, of slope g at zero, and within :math:`\pm B`: the exponential of an unbounded
    output of a network is what a few steps of an optimiser make infinite. The derivative falls
    slowly, as :math:`|r|^{-3}`, so that training finds back from a far log-scale.

    :param raw: the pseudo-parameter, any shape.
    :param limits: B and g, shape ``(2,)``.
    :return: s, of the shape of ``raw``.

    >>> import torch
    >>> bounded(torch.tensor([0.01, 4.0, 1e20]), torch.tensor([4.0, 1.0]))
    tensor([0.0100, 2.8284, 4.0000])
    """
    bound, slope = limits.unbind()
    r = (raw * (slope / bound)).clamp(-_MOST, _MOST)
    return bound * r * (1 + r.square()).rsqrt()


def unbounded(log_scale: Tensor, limits: Tensor) -> Tensor:
    """The pseudo-parameter of a log-scale, which is brought within the bound.

    >>> import torch
    >>> limits = torch.tensor([4.0, 0.1])
    >>> bounded(unbounded(torch.tensor([-1.0, 2.0]), limits), limits)
    tensor([-1.,  2.])
    """
    bound, slope = limits.unbind()
    part = (log_scale / bound).clamp(-0.99, 0.99)
    return bound / slope * part * (1 - part.square()).rsqrt()
