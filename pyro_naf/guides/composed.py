"""A composition of transforms of R^D that is cheap to ask for its domain."""

from __future__ import annotations

from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.transforms import ComposeTransform


class Composed(ComposeTransform):
    """Transforms of R^D one after another; torch asks each for its domain a dozen times a step."""

    bijective = True
    domain = codomain = constraints.real_vector

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-determinant ``(...)`` of the composition at x ``(..., D)``, whose image is y."""
        total = x.new_zeros(())
        for i, part in enumerate(self.parts):
            image = part(x) if i < len(self.parts) - 1 else y
            log_det = part.log_abs_det_jacobian(x, image)
            total = total + (log_det if part.domain.event_dim else log_det.sum(-1))
            x = image
        return total
