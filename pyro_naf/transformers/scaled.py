"""An affine map around another transformer."""

from __future__ import annotations

from torch import Tensor

from .. import kernels
from ..formulas import SigmoidSpec, affine
from ..support.precision import in_float32
from .base import Transformer
from .sigmoids import SigmoidalTransformer

#: Bound on the log-scale: each flow of a stack may widen or narrow its input by exp(6) = 403.
MAX_LOG_SCALE = 6.0

#: Slope of the log-scale by its pseudo-parameter, at zero. A step of Adam moves every weight of a
#: conditioner's last layer by the learning rate, and the pseudo-parameter by the sum over the
#: hidden units: at slope 1 one step of 0.01 widens draws by e, and a model's exponential overflows.
LOG_SCALE_SLOPE = 0.1

#: Bound and slope of models that were saved before there were any: in effect no bound.
_UNBOUNDED = (2.0**60, 1.0)


class Scaled(Transformer):
    r"""A sigmoidal transformer within an affine map: :math:`y = e^s \tau(x) + m`.

    The slope of a sigmoidal transformer changes slowly with its pseudo-parameters, the slope of
    an affine one exponentially: together they follow a funnel, whose width spans orders of
    magnitude, and keep the sigmoids for the shape. The pseudo-parameters are :math:`\tau`'s, then m
    and the raw log-scale, which :func:`~pyro_naf.formulas.affine.bounded` keeps within
    :math:`\pm B`: an unbounded one lets a few steps of an optimiser throw draws to infinity.

    :param inner: the transformer :math:`\tau`; its kernel evaluates the whole.
    :param log_scale_slope: slope of the log-scale by its pseudo-parameter. One is for training that
        averages over many draws, and then learns narrow funnels sooner.
    :ivar log_scale_limits: B and the slope of :func:`~pyro_naf.formulas.affine.bounded`, a buffer.
        What was saved without them is loaded as the map without a bound that it was.

    >>> import torch
    >>> from pyro_naf.transformers import DeepSigmoidal
    >>> transformer = Scaled(DeepSigmoidal(8))
    >>> y, log_slope = transformer(torch.zeros(5), torch.zeros(5, 26))
    >>> y.shape, transformer.num_params
    (torch.Size([5]), 26)
    """

    log_scale_limits: Tensor

    def __init__(
        self, inner: SigmoidalTransformer, log_scale_slope: float = LOG_SCALE_SLOPE
    ) -> None:
        super().__init__()
        self.inner = inner
        self.num_params = inner.num_params + 2
        self._set_limits(MAX_LOG_SCALE, log_scale_slope)

    def set_slope(self, log_scale_slope: float) -> None:
        """Change the slope of the log-scale, before training: it changes the map."""
        self.log_scale_limits[1] = log_scale_slope

    def _set_limits(self, bound: float, slope: float) -> None:
        like = self.inner.initial_biases
        self.register_buffer("log_scale_limits", like.new_tensor([bound, slope]))

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: object, **kwargs: object
    ) -> None:
        unbounded = self.log_scale_limits.new_tensor(_UNBOUNDED)
        state_dict.setdefault(f"{prefix}log_scale_limits", unbounded)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        if "log_scale_limits" not in self._buffers:
            self._set_limits(*_UNBOUNDED)

    def reads_half(self, x: Tensor, phi: Tensor) -> bool:
        """Whether the inner transformer reads half precision as it is."""
        return self.inner.reads_half(x, phi)

    @in_float32
    def forward(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``, of ``x`` ``(...)`` under ``phi`` ``(..., P)``."""
        if not self.inner.has_kernels:
            return self.plain(x, phi)
        spec = self.spec()
        return kernels.choose(self.inner.kernel, spec, x, phi).evaluate(spec, x, phi)

    def plain(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope by the formula itself."""
        phi, m, s = self.spec().split(phi)
        y, log_slope = self.inner.plain(x, phi)
        return affine.evaluate(y, m, s), log_slope + s

    def spec(self) -> SigmoidSpec:
        """Return the spec of the inner transformer, with an affine map."""
        return self.inner.spec()._replace(limits=self.log_scale_limits)

    def constrain(self, phi: Tensor) -> tuple[Tensor, ...]:
        """Shift and log-scale, each ``(...)``, and what the inner transformer has."""
        phi, m, s = self.spec().split(phi)
        return m, s, *self.inner.constrain(phi)

    def evaluate(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``."""
        m, s, *inner = params
        y, log_slope = self.inner.evaluate(x, *inner)
        return affine.evaluate(y, m, s), log_slope + s

    def bracket(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bracket of the inner transformer."""
        m, s, *inner = params
        return self.inner.bracket(affine.inverse(y, m, s), *inner)

    @in_float32
    def preimage(self, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the inner transformer's preimage of ``(y - m) / e^s``."""
        phi, m, s = self.spec().split(phi)
        return self.inner.preimage(affine.inverse(y, m, s), phi)
