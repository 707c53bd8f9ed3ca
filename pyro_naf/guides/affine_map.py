"""The affine map of a guide: diagonal, lower triangular, or of the pattern of a structure."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.nn.module import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform, Transform

from ..conditioners import Structure
from ..flows.linear import StructuredAffine, factor_of, has_pattern, triangular


class AffineMap(PyroModule):
    r"""The part of a guide that makes its affine map :math:`z = \mathrm{centre} + F (l + T x)`.

    The location l and the factor T are trained; the frame F and the centre are fixed, and set by
    :meth:`set_affine`. T is ``diag(scale)``, ``diag(scale) scale_tril`` with ``full_rank``, or, for
    a guide with a structure and ``full_rank``, ``diag(scale) (I + coupling)`` with the pattern of
    the structure.
    """

    latent_dim: int
    full_rank: bool
    #: Found at set-up where one was asked for; None for a full guide.
    structure: Structure | None = None
    loc: Tensor
    centre: Tensor
    frame: Tensor
    scale: Tensor  # set as a PyroParam, as is scale_tril
    scale_tril: Tensor
    coupling: Tensor
    scale_constraint = constraints.softplus_positive
    scale_tril_constraint = constraints.unit_lower_cholesky

    def _set_up_affine(self, loc: Tensor, init_scale: float) -> None:
        """Make the parameters that there are with and without a structure."""
        self.loc = nn.Parameter(loc)
        self.scale = PyroParam(torch.full_like(self.loc, init_scale), self.scale_constraint)

    def _set_up_factor(self) -> None:
        """Make the parameters of T off its diagonal, and the frame, once the structure is known."""
        frame = torch.ones_like(self.loc)
        if self.structure is not None or self.full_rank:
            frame = torch.diag(frame)
        if self.structure is not None and self.full_rank:
            pairs = int(self.structure.ancestors.sum())
            self.coupling = nn.Parameter(self.loc.new_zeros(pairs))
        elif self.full_rank:
            self.scale_tril = PyroParam(frame.clone(), self.scale_tril_constraint)
        self.register_buffer("centre", torch.zeros_like(self.loc))
        self.register_buffer("frame", frame)

    def affine_parts(self) -> list[Transform]:
        """Return the affine map as transforms, which remember their last value.

        So the flow before them recognises its own samples.
        """
        if self.structure is not None:
            order = self.structure.order.to(self.loc.device)
            outer = StructuredAffine(self.centre, self.frame, order)
            if not self.full_rank:
                return [AffineTransform(self.loc, self.scale, event_dim=1, cache_size=1), outer]
            return [StructuredAffine(self.loc, self._inner_factor(), order), outer]
        loc, factor = self.affine()
        if self.full_rank:
            return [dist.transforms.LowerCholeskyAffine(loc, factor, cache_size=1)]
        return [AffineTransform(loc, factor, event_dim=1, cache_size=1)]

    def _inner_factor(self) -> Tensor:
        """T of a guide with a structure, or with ``full_rank``: ``(D, D)``."""
        if self.structure is None:
            return self.scale[:, None] * self.scale_tril
        if not self.full_rank:
            return torch.diag(self.scale)
        return triangular(self.structure, self.scale, self.coupling)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return loc ``(D,)``, and scale ``(D,)`` or factor ``(D, D)``, of the outermost map."""
        if self.structure is None and not self.full_rank:
            return self.centre + self.frame * self.loc, self.frame * self.scale
        return self.centre + self.frame @ self.loc, self.frame @ self._inner_factor()

    @torch.no_grad()
    def set_affine(self, loc: Tensor, factor: Tensor) -> None:
        """Make this the outermost map, and the unit in which it is trained from now on.

        An optimiser's step is then the same part of the posterior's width in every direction,
        however badly scaled and correlated the latents are. For guides without a context.

        :param loc: shape ``(D,)``.
        :param factor: scale ``(D,)``, or lower triangular factor ``(D, D)`` with ``full_rank``. A
            guide with a structure takes both, and of any other factor the Gaussian of the
            structure that is closest.
        """
        if self.structure is not None:
            factor = _with_pattern(self.structure, factor)
        self.centre.copy_(loc)
        self.frame.copy_(factor)
        self.loc.zero_()
        self.scale = torch.ones_like(self.loc)
        if self.structure is None and self.full_rank:
            self.scale_tril = torch.eye(self.latent_dim).to(self.loc)
        elif self.full_rank:
            self.coupling.zero_()


def _with_pattern(structure: Structure, factor: Tensor) -> Tensor:
    """Compute the factor of the closest Gaussian that has the structure, ``(D, D)``."""
    if factor.dim() == 1:
        return torch.diag(factor)
    if has_pattern(structure, factor):
        return factor
    return factor_of(structure, covariance=factor @ factor.mT)
