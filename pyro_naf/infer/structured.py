"""A guide whose flow and affine map have the structure of the model's posterior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions.torch_transform import ComposeTransformModule
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform, Transform

from ..conditioners import GraphConditioner, Structure
from ..flows.linear import StructuredAffine, factor_of, has_pattern, triangular
from ..formulas.spec import count_params
from ..support.checks import check_integers
from ..transforms import DeepDenseSigmoidalFlow, DeepSigmoidalFlow
from .graph import structure_of


class StructuredAffineMap:
    r"""The part of a guide that makes its affine map, if the guide has a structure.

    :math:`z = \mathrm{centre} + F (\mathrm{loc} + T x)` with a fixed frame F and a trainable T,
    both of the pattern of the structure; T is ``diag(scale) (I + coupling)``, or ``diag(scale)``
    without ``full_rank``.
    """

    structure: Structure | None
    full_rank: bool
    loc: Tensor
    centre: Tensor
    frame: Tensor
    scale: Any
    coupling: Tensor

    def _find_structure(self, asked: Any, target: Callable[[], Any]) -> Structure | None:
        return structure_of(asked, target, self.loc.detach())

    def _set_up_coupling(self, structure: Structure) -> None:
        if self.full_rank:
            pairs = int(structure.ancestors.sum())
            self.coupling = nn.Parameter(self.loc.new_zeros(pairs))

    def _inner_factor(self, structure: Structure) -> Tensor:
        """T, shape ``(D, D)``."""
        if not self.full_rank:
            return torch.diag(self.scale)
        return triangular(structure, self.scale, self.coupling)

    def _structured_outer(self, structure: Structure) -> list[Transform]:
        order = structure.order.to(self.loc.device)
        outer = StructuredAffine(self.centre, self.frame, order)
        if not self.full_rank:
            return [AffineTransform(self.loc, self.scale, event_dim=1, cache_size=1), outer]
        return [StructuredAffine(self.loc, self._inner_factor(structure), order), outer]

    def _structured_affine(self, structure: Structure) -> tuple[Tensor, Tensor]:
        factor = self.frame @ self._inner_factor(structure)
        return self.centre + self.frame @ self.loc, factor

    @torch.no_grad()
    def _set_structured_affine(self, structure: Structure, loc: Tensor, factor: Tensor) -> None:
        if factor.dim() == 1:
            factor = torch.diag(factor)
        elif not has_pattern(structure, factor):
            factor = factor_of(structure, covariance=factor @ factor.mT)
        self.centre.copy_(loc)
        self.frame.copy_(factor)
        self.loc.zero_()
        self.scale = torch.ones_like(self.loc)
        if self.full_rank:
            self.coupling.zero_()


def structured_flows(
    flow: type[DeepSigmoidalFlow] | type[DeepDenseSigmoidalFlow],
    structure: Structure,
    *,
    num_transforms: int = 1,
    hidden_dims: Sequence[int] | None = None,
    hidden_units: int = 8,
    affine: bool = True,
    inverse: bool = False,
    activation: Callable[[Tensor], Tensor] = torch.tanh,
    **kw: Any,
) -> ComposeTransformModule:
    """A stack of sigmoidal flows on graph conditioners, all in the structure's order.

    :param hidden_dims: one width, that of each latent's network; 16 by default.
    :param inverse: the flows map latents to base, and read the parents at elimination.
    :param kw: further arguments of the transformer.
    :raises ValueError: for several hidden layers, which such networks do not have, and for options
        of a :class:`~pyro_naf.conditioners.MADE`.

    >>> chain = Structure.from_adjacency(torch.ones(5, 5).tril(1).triu(-1))
    >>> structured_flows(DeepSigmoidalFlow, chain)(torch.randn(7, 5)).shape
    torch.Size([7, 5])
    """
    check_integers(num_transforms=(num_transforms, 1), hidden_units=(hidden_units, 1))
    widths = [16] if hidden_dims is None else list(hidden_dims)
    if len(widths) != 1:
        raise ValueError(f"hidden_dims must be one width with a structure, got {widths}")
    if unknown := sorted({"order", "residual", "head_dim"} & kw.keys()):
        raise ValueError(f"{', '.join(unknown)} cannot be chosen with a structure")
    num_layers = 1 if flow is DeepSigmoidalFlow else kw.get("num_layers", 2)
    num_params = count_params(hidden_units, num_layers, affine=affine)
    flows = []
    for _ in range(num_transforms):
        conditioner = GraphConditioner(
            structure, num_params, *widths, inverse=inverse, activation=activation
        )
        flows.append(flow(conditioner, hidden_units, affine=affine, **kw))
    return ComposeTransformModule(flows)
