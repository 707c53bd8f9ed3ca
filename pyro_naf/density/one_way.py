"""Pyro's layers that run one way only, for the rows of the NAF paper's table that use them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from pyro.distributions.transforms import BlockAutoregressive, Planar
from torch import Tensor, nn


class OneWay(nn.Module):
    """Pyro's layers without an inverse: they say so, and can be copied.

    They keep their last evaluation with its graph, which cannot be.
    """

    no_inverse: str

    def _inverse(self, _: Tensor) -> NoReturn:
        raise NotImplementedError(self.no_inverse)

    def __getstate__(self) -> dict[str, object]:
        kept = {k: v for k, v in self.__dict__.items() if not k.startswith("_cached")}
        return {**kept, "_cached_x_y": (None, None), "_cached_logDetJ": None, "_inv": None}


class GatedBlock(OneWay, BlockAutoregressive):
    """A block neural autoregressive flow of Pyro with a gate, which starts near the identity.

    Without a gate Pyro's layer has a bounded range, and the density does not integrate to one.
    """

    gate: nn.Parameter
    no_inverse = "bnaf has no inverse, so that nothing can be drawn: choose maf-dsf-5, say"

    def __init__(self, input_dim: int, hidden_factors: Sequence[int]) -> None:
        super().__init__(input_dim, list(hidden_factors), residual="gated")
        nn.init.constant_(self.gate, 2.0)


class PlanarLayer(OneWay, Planar):
    """Pyro's planar flow."""

    no_inverse = (
        "planar flows have no inverse, so that data cannot be scored: fit them to an energy "
        "(fit_energy), or choose maf-dsf-5, say"
    )
