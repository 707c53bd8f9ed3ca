"""The deep dense sigmoidal transformer, DDSF (Huang et al. 2018, eq. 9)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..support.precision import at_least_float32
from .sigmoids import SigmoidalTransformer


class DeepDenseSigmoidal(SigmoidalTransformer):
    r"""Dense layers of sigmoids, :math:`h^{l+1} = \sigma^{-1}(w\,\sigma(a \odot u\,h^l + b))`.

    :math:`h^0 = x` and :math:`y = h^L` are scalars, every layer between has K units; the rows of w
    and u are softmax-weighted. The logits of these rows are a matrix that all samples share, a
    parameter, plus a vector of pseudo-parameters. How that becomes one product with a K x K matrix
    is said in :func:`pyro_naf.formulas.sigmoidal.deep_dense_sigmoid`.

    The pseudo-parameters are, layer by layer, the raw a, b and e of w (K each), and from the
    second layer on the e of u (K).

    :param hidden_units: K >= 1.
    :param num_layers: L >= 1; one layer is DSF.
    :param min_slope: a floor under every a, as in
        :class:`~pyro_naf.transformers.DeepSigmoidal`.
    :param spread: at zero pseudo-parameters the biases lie evenly over ``[-spread, spread]``.
    :param kernel: as in :class:`~pyro_naf.transformers.DeepSigmoidal`.
    :raises ValueError: when an argument is out of its range.

    Source: Huang et al. 2018 [arXiv:1804.00779], eq. 9 and appendix C.

    >>> transformer = DeepDenseSigmoidal(hidden_units=8, num_layers=2)
    >>> y, log_slope = transformer(torch.tensor([-1e6, 0.0, 1e6]), torch.zeros(3, 56))
    >>> y.shape, bool(torch.isfinite(y).all()), bool(log_slope.abs().max() < 0.5)
    (torch.Size([3]), True, True)
    """

    def __init__(
        self,
        hidden_units: int = 16,
        num_layers: int = 2,
        min_slope: float = 1e-3,
        spread: float = 0.25,
        kernel: str = "auto",
    ) -> None:
        super().__init__(hidden_units, min_slope, spread, kernel, num_layers=num_layers)
        widths = [hidden_units] * (num_layers - 1)
        self.w = nn.ParameterList(torch.randn(out, hidden_units) / 2 for out in [*widths, 1])
        self.u = nn.ParameterList(torch.randn(hidden_units, width) / 2 for width in widths)

    def matrices(self) -> tuple[Tensor, ...]:
        """Return the matrices W of all layers, then U between them, in float32 at least."""
        # By index: torch.compile cannot iterate a ParameterList before torch 2.13.
        w = [self.w[i] for i in range(self.num_layers)]
        u = [self.u[i] for i in range(self.num_layers - 1)]
        return tuple(at_least_float32(matrix) for matrix in (*w, *u))

    def extra_repr(self) -> str:
        """Describe the options, for ``repr``."""
        return f"{super().extra_repr()}, num_layers={self.num_layers}"
