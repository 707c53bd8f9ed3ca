"""The affine transformers of MAF and IAF (Kingma et al. 2016, Papamakarios et al. 2017)."""

from __future__ import annotations

from torch import Tensor

from ..formulas import affine
from ..formulas.elementary import log_sigmoids
from ..support.precision import in_float32
from .base import Transformer


class Affine(Transformer):
    r"""Shift and scale: :math:`y = e^s x + m`, or IAF's gated form :math:`y = g x + (1 - g) m`.

    The pseudo-parameters are :math:`(m, s)`, the gate is
    :math:`g = \sigma(s + \mathrm{gate\_bias})`. Both invert in closed
    form on all of R. The scale is not clamped: :math:`s` is the log-slope.

    :param gated: use the gated form, whose slope lies in (0, 1).
    :param gate_bias: starts the gate open (Kingma et al. 2016, section 4, use 1 or 2).

    Source: Kingma et al. 2016 [arXiv:1606.04934], eq. 10 to 14; Papamakarios et al. 2017
    [arXiv:1705.07057].

    >>> import torch
    >>> y, log_slope = Affine()(torch.tensor(3.0), torch.tensor([1.0, 0.0]))
    >>> y.item(), log_slope.item()
    (4.0, 0.0)
    """

    num_params = 2

    def __init__(self, gated: bool = False, gate_bias: float = 2.0) -> None:
        super().__init__()
        self.gated, self.gate_bias = gated, gate_bias

    def constrain(self, phi: Tensor) -> tuple[Tensor, ...]:
        """Shift and log-scale, each ``(...)``."""
        m, s = phi.unbind(-1)
        if not self.gated:
            return m, s
        log_gate, log_closed = log_sigmoids(s + self.gate_bias)
        return log_closed.exp() * m, log_gate

    def evaluate(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``."""
        shift, log_scale = params
        y = affine.evaluate(x, shift, log_scale)
        return y, log_scale.expand_as(y)

    def bracket(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the preimage itself, twice."""
        shift, log_scale = params
        x = affine.inverse(y, shift, log_scale)
        return x, x

    @in_float32
    def preimage(self, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the preimage of ``y``, in closed form; the error is NaN where it is not finite."""
        x, _ = self.bracket(y, *self.constrain(phi))
        return x, (x - x).detach()
