"""The one place that knows how the pseudo-parameters of DSF and DDSF lie in phi."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .affine import bounded
from .elementary import softplus


class SigmoidSpec(NamedTuple):
    r"""All that the samples share in a DSF or DDSF: what its formula needs beside x and phi.

    With K hidden units and L layers the P pseudo-parameters of one dimension are, layer by layer,
    the raw slopes, biases and logits of w (K each); then, from the second layer on, the logits of
    u (K each); then, with an affine map around the sigmoids, its shift and raw log-scale. So
    :math:`P = (4 L - 1) K`, and 2 more with an affine map. A DSF is the case L = 1.
    """

    #: K, the sigmoids of a layer.
    units: int
    #: L, the number of layers.
    layers: int
    #: Added to the raw slopes before their softplus.
    shift: float
    #: Added to the softplus: the smallest slope.
    floor: float
    #: Added to the raw biases, shape ``(K,)``.
    biases: Tensor
    #: Logits of the matrices that a DDSF shares: W of all layers, ``(K, K)`` and the last
    #: ``(1, K)``, then the L - 1 matrices U, ``(K, K)``. A DSF has none.
    matrices: tuple[Tensor, ...] = ()
    #: Bound and slope of the affine map's log-scale, ``(2,)``; None where there is no affine map.
    limits: Tensor | None = None

    @property
    def num_params(self) -> int:
        """P, the pseudo-parameters of one dimension."""
        return count_params(self.units, self.layers, affine=self.limits is not None)

    def constrain(self, phi: Tensor) -> tuple[Tensor, ...]:
        """Slopes a, biases b and logits of w of each layer, then logits of u: ``(..., K)`` each.

        :param phi: pseudo-parameters, without an affine map's, ``(..., (4 L - 1) K)``.
        """
        raw = phi.unflatten(-1, (4 * self.layers - 1, self.units)).unbind(-2)
        params: list[Tensor] = []
        for layer in range(self.layers):
            a, b, w = raw[3 * layer : 3 * layer + 3]
            if not self.matrices:
                # The softmax normaliser cancels; without its maximum, logits of +-10 would cost
                # digits of y.
                w = w - w.amax(-1, keepdim=True).detach()
            params += [self.floor + softplus(a + self.shift), b + self.biases, w]
        return (*params, *raw[3 * self.layers :])

    def unconstrain(self, a: Tensor, b: Tensor, w: Tensor) -> Tensor:
        """Pseudo-parameters ``(..., 3 K)`` of one layer, from what :meth:`constrain` makes of them.

        :param a: slopes above the floor, ``(..., K)``; b and w like them.
        """
        above = a - self.floor
        raw = above + (-(-above).expm1()).log() - self.shift
        return torch.cat([raw, b - self.biases.to(b), w], -1)

    def split(self, phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split phi: pseudo-parameters of sigmoids, then shift and log-scale, each ``(...)``."""
        assert self.limits is not None
        # One gradient for the three, where slices would each fill one with zeros.
        inner, shift, raw = phi.split([phi.shape[-1] - 2, 1, 1], -1)
        dtype = torch.promote_types(phi.dtype, torch.float)
        shift, raw = shift.squeeze(-1).to(dtype), raw.squeeze(-1).to(dtype)
        return inner, shift, bounded(raw, self.limits)

    def packed(self) -> Tensor:
        """Pack the matrices one after another into one vector; an empty one for a DSF."""
        if not self.matrices:
            return self.biases.new_empty(0)
        return torch.cat([matrix.flatten() for matrix in self.matrices])

    def unpack(self, vector: Tensor) -> tuple[Tensor, ...]:
        """Unpack the matrices from a vector of :meth:`packed`."""
        if not vector.numel():
            return ()
        rows = [self.units] * (self.layers - 1)
        heights = [*rows, 1, *rows]
        parts = vector.split([height * self.units for height in heights])
        return tuple(p.view(h, self.units) for p, h in zip(parts, heights, strict=True))


def count_params(units: int, layers: int = 1, *, affine: bool = False) -> int:
    """P, the pseudo-parameters of one dimension.

    >>> count_params(16), count_params(16, layers=2, affine=True)
    (48, 114)
    """
    return (4 * layers - 1) * units + 2 * affine


def spread_biases(units: int, spread: float) -> tuple[list[float], float]:
    r"""Biases evenly over ``[-spread, spread]``, and the slope that undoes their widening.

    Hidden units that start alike stay alike for long; with spread biases they differ from the
    first step. A mean of shifted sigmoids is flatter than one sigmoid, so the common slope is
    chosen to make :math:`dy/dx = 1` at zero: :math:`a = (4\, \mathrm{mean}_h \sigma'(b_h))^{-1}`.
    """
    if units == 1:
        return [0.0], 1.0
    b = torch.linspace(-spread, spread, units, dtype=torch.double)
    slope = torch.sigmoid(b) * torch.sigmoid(-b)
    return b.tolist(), float(1 / (4 * slope.mean()))
