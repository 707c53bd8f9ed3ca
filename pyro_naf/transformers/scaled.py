"""An affine map around another transformer."""

from __future__ import annotations

from torch import Tensor

from .. import kernels
from ..kernels.eager import Formula
from ..kernels.scaled import ScaledFormula
from .base import SigmoidalTransformer, Transformer


class Scaled(Transformer):
    r"""A sigmoidal transformer within an affine map: :math:`y = e^s \tau(x) + m`.

    The slope of a sigmoidal transformer changes slowly with its pseudo-parameters, that of an
    affine one exponentially: together they follow a funnel, whose width spans orders of magnitude,
    and keep the sigmoids for the shape. The pseudo-parameters are those of :math:`\tau`, then
    :math:`(m, s)`.

    :param inner: the transformer :math:`\tau`; its kernel evaluates the whole.

    >>> import torch
    >>> from pyro_naf.transformers import DeepSigmoidal
    >>> transformer = Scaled(DeepSigmoidal(8))
    >>> y, log_slope = transformer(torch.zeros(5), torch.zeros(5, 26))
    >>> y.shape, transformer.num_params
    (torch.Size([5]), 26)
    """

    def __init__(self, inner: SigmoidalTransformer) -> None:
        super().__init__()
        self.inner = inner
        self.num_params = inner.num_params + 2

    def forward(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``, of ``x`` ``(...)`` under ``phi`` ``(..., P)``."""
        kernel = kernels.choose(self.inner, x, phi)
        if kernel != "triton":
            return kernels.evaluate_by(kernel, self, x, phi)
        phi, m, s = _split(phi)
        y, log_slope = self.inner(x, phi)
        return s.exp() * y + m, log_slope + s

    def plain(self, x: Tensor, phi: Tensor, *shared: Tensor) -> tuple[Tensor, Tensor]:
        phi, m, s = _split(phi)
        y, log_slope = self.inner.plain(x, phi, *shared)
        return s.exp() * y + m, log_slope + s

    def formula(self) -> Formula:
        """The same map in linear space, with gradients by hand."""
        return ScaledFormula(self.plain, self.inner.formula())

    def shared(self) -> tuple[Tensor, ...]:
        """Those of the inner transformer."""
        return self.inner.shared()

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
    # One gradient for the three, where slices would each fill one with zeros.
    inner, m, s = phi.split([phi.shape[-1] - 2, 1, 1], -1)
    return inner, m.squeeze(-1), s.squeeze(-1)
