"""Flows that have the structure of a model's posterior."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from pyro.distributions.torch_transform import ComposeTransformModule
from torch import Tensor

from ..conditioners import GraphConditioner, Structure
from ..conditioners.choice import OPTIONS
from ..formulas.spec import count_params
from ..support.checks import check_integers
from ..transforms import AutoregressiveFlow, DeepDenseSigmoidalFlow, DeepSigmoidalFlow


def structured_flows(
    flow: type[DeepSigmoidalFlow] | type[DeepDenseSigmoidalFlow],
    structure: Structure,
    *,
    num_transforms: int = 1,
    hidden_dims: Sequence[int] | None = None,
    hidden_units: int = 8,
    affine: bool = False,
    inverse: bool = False,
    activation: Callable[[Tensor], Tensor] = torch.tanh,
    **kw: object,
) -> ComposeTransformModule:
    """Make a stack of sigmoidal flows on graph conditioners, all in the structure's order.

    :param hidden_dims: the width of each latent's network, a single number; 16 by default.
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
    if unknown := sorted({"conditioner", *OPTIONS} & kw.keys()):
        raise ValueError(f"{', '.join(unknown)} cannot be chosen with a structure")
    num_layers = 1 if flow is DeepSigmoidalFlow else cast(int, kw.get("num_layers", 2))
    num_params = count_params(hidden_units, num_layers, affine=affine)
    make: Callable[..., AutoregressiveFlow] = flow
    flows = []
    for _ in range(num_transforms):
        conditioner = GraphConditioner(
            structure, num_params, *widths, inverse=inverse, activation=activation
        )
        flows.append(make(conditioner, hidden_units, affine=affine, **kw))
    return ComposeTransformModule(flows)
