"""The formula itself, under autograd."""

from __future__ import annotations

from torch import Tensor

from .. import formulas
from ..formulas import SigmoidSpec
from ..rootfinding import find_root


class Plain:
    """The kernel that supports everything, and that the others are tested against."""

    name = "plain"
    reads_half = False

    def supports(self, spec: SigmoidSpec, x: Tensor, phi: Tensor) -> bool:
        """Whether the kernel can evaluate this: it always can."""
        return True

    def evaluate(self, spec: SigmoidSpec, x: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Value and log-slope by the formula itself."""
        return formulas.evaluate(spec, x, phi)

    def root(self, spec: SigmoidSpec, y: Tensor, phi: Tensor) -> tuple[Tensor, None]:
        """Solve for x by bracketed Newton steps on the formula; None: no error estimate."""

        def evaluate(x: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
            return formulas.sigmoids(x, params, spec.matrices)

        params = spec.constrain(phi)
        return find_root(evaluate, y, params, *formulas.bracket(y, params)), None
