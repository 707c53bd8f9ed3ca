"""What DSF and DDSF share: hidden units with spread biases and positive slopes, and kernels."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from .. import formulas, kernels
from ..formulas import SigmoidSpec
from ..formulas.elementary import softplus_inverse
from ..formulas.spec import count_params, spread_biases
from ..support.checks import check_integers
from ..support.overrides import parent, redefined
from ..support.precision import in_float32
from .base import Transformer


class SigmoidOptions(TypedDict, total=False):
    """Further arguments of :class:`~pyro_naf.transformers.DeepSigmoidal` and its dense kin."""

    min_slope: float
    spread: float
    kernel: str


class SigmoidalTransformer(Transformer):
    """A transformer made of sigmoids; :meth:`spec` is what the kernels are handed of it.

    :ivar num_layers: L; a DSF has one.
    """

    num_layers = 1
    initial_biases: Tensor
    #: Whether the kernels evaluate this class: not one that puts another formula in their place.
    has_kernels = True

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        formula = {"constrain", "evaluate", "plain"}
        if parent(cls, SigmoidalTransformer) is not SigmoidalTransformer:
            formula |= {"spec", "matrices"}
        cls.has_kernels &= formula.isdisjoint(redefined(cls, SigmoidalTransformer))

    def __init__(
        self,
        hidden_units: int = 16,
        min_slope: float = 1e-3,
        spread: float = 0.25,
        kernel: str = "auto",
        *,
        num_layers: int = 1,
    ) -> None:
        super().__init__()
        check_integers(hidden_units=(hidden_units, 1), num_layers=(num_layers, 1))
        if not 0 < min_slope < 0.5:
            raise ValueError(f"min_slope must lie in (0, 0.5), got {min_slope}")
        if not 0 <= spread <= 10:
            raise ValueError(f"spread must lie in [0, 10], got {spread}")
        self.hidden_units, self.num_layers, self.min_slope = hidden_units, num_layers, min_slope
        self.num_params = count_params(hidden_units, num_layers)
        self.kernel = kernels.check_kernel(kernel)
        biases, self.initial_slope = spread_biases(hidden_units, spread)
        self.register_buffer("initial_biases", torch.tensor(biases), persistent=False)

    def matrices(self) -> tuple[Tensor, ...]:
        """Return the matrices that all samples share, in float32 at least; a DSF has none."""
        return ()

    def spec(self) -> SigmoidSpec:
        """Return the transformer as the formulas and kernels know it."""
        return SigmoidSpec(
            self.hidden_units,
            self.num_layers,
            softplus_inverse(self.initial_slope - self.min_slope),
            self.min_slope,
            self.initial_biases,
            self.matrices(),
        )

    def constrain(self, phi: Tensor) -> tuple[Tensor, ...]:
        """As :meth:`~pyro_naf.formulas.SigmoidSpec.constrain`, each ``(..., K)``."""
        return self.spec().constrain(phi)

    def evaluate(self, x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``."""
        return formulas.sigmoids(x, params, self.matrices())

    def bracket(self, y: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """As :func:`pyro_naf.formulas.bracket`."""
        return formulas.bracket(y, params)

    @in_float32
    def forward(self, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope, each ``(...)``, of ``x`` ``(...)`` under ``phi`` ``(..., P)``."""
        if not self.has_kernels:
            return self.plain(x, phi)
        spec = self.spec()
        return kernels.choose(self.kernel, spec, x, phi).evaluate(spec, x, phi)

    def reads_half(self, x: Tensor, phi: Tensor) -> bool:
        """Whether the kernel for these tensors reads half precision as it is."""
        return self.has_kernels and kernels.choose(self.kernel, self.spec(), x, phi).reads_half

    @torch.no_grad()
    def root(self, y: Tensor, phi: Tensor) -> tuple[Tensor, Tensor | None]:
        """Solve for x by the kernel for these tensors; also an estimate of the error, or None."""
        if not self.has_kernels:
            return super().root(y, phi)
        spec = self.spec()
        return kernels.choose(self.kernel, spec, y, phi).root(spec, y, phi)

    def extra_repr(self) -> str:
        """Describe the options, for ``repr``."""
        return f"hidden_units={self.hidden_units}, min_slope={self.min_slope}"
