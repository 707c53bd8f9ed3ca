"""An affine map around another transformer."""

from __future__ import annotations

from torch import Tensor

from .base import Transformer


class Scaled(Transformer):
    r"""Another transformer within an affine map: :math:`y = e^s \tau(x) + m`.

    The slope of a sigmoidal transformer changes slowly with its pseudo-parameters, that of an
    affine one exponentially: together they follow a funnel, whose width spans orders of magnitude,
    and keep the sigmoids for the shape. The pseudo-parameters are those of :math:`\tau`, then
    :math:`(m, s)`.

    :param inner: the transformer :math:`\tau`.

    >>> import torch
    >>> from pyro_naf.transformers import DeepSigmoidal
    >>> transformer = Scaled(DeepSigmoidal(8))
    >>> y, log_slope = transformer(torch.zeros(5), torch.zeros(5, 26))
    >>> y.shape, transformer.num_params
    (torch.Size([5]), 26)
    """

    def __init__(self, inner: Transformer) -> None:
        super().__init__()
        self.inner = inner
        self.num_params = inner.num_params + 2

    def forward(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``, of ``x`` ``(...)`` under ``phi`` ``(..., P)``."""
        phi, m, s = _split(phi)
        y, log_slope = self.inner(x, phi)
        return s.exp() * y + m, log_slope + s

    def constrain(self, phi: Tensor) -> tuple[Tensor, ...]:
        """Shift and log-scale, each ``(...)``, and what the inner transformer has."""
        phi, m, s = _split(phi)
        return m, s, *self.inner.constrain(phi)

    def evaluate(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``."""
        m, s, *inner = params
        y, log_slope = self.inner.evaluate(x, *inner)
        return s.exp() * y + m, log_slope + s

    def bracket(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """That of the inner transformer."""
        m, s, *inner = params
        return self.inner.bracket((y - m) * s.neg().exp(), *inner)

    def preimage(self, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor | None]:
        """The inner transformer's preimage of ``(y - m) / e^s``."""
        phi, m, s = _split(phi)
        return self.inner.preimage((y - m) * s.neg().exp(), phi)


def _split(phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return phi[..., :-2], phi[..., -2], phi[..., -1]
