"""The shift, whose slope is one: what a volume-preserving flow is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from ..support.precision import in_float32
from .base import Transformer


class Shift(Transformer):
    r""":math:`y = x + m`: the additive transformer of NICE and of TAN's recurrent shift.

    Source: Dinh et al. 2014 [arXiv:1410.8516]; Oliva et al. 2018 [arXiv:1801.09819], eq. 8.

    >>> y, log_slope = Shift()(torch.tensor(3.0), torch.tensor([1.0]))
    >>> y.item(), log_slope.item()
    (4.0, 0.0)
    """

    num_params = 1

    def constrain(self, phi: Tensor) -> tuple[Tensor, ...]:
        """Return the shift ``(...)``."""
        return (phi.squeeze(-1),)

    def evaluate(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``."""
        y = x + params[0]
        return y, torch.zeros_like(y)

    def bracket(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the preimage itself, twice."""
        x = y - params[0]
        return x, x

    @in_float32
    def preimage(self, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the preimage of ``y``, in closed form; the error is NaN where it is not finite."""
        x, _ = self.bracket(y, *self.constrain(phi))
        return x, (x - x).detach()
