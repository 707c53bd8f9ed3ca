"""The contenders behind one interface: conditioners alone, and flows of one layer.

This package's, Pyro's and, where it is installed, zuko's. Every neural layer has 16 units a
dimension, every network one hidden layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import pyro.distributions.transforms as pyro_transforms
import pyro.nn
import torch
from torch import Tensor, nn

import pyro_naf
from pyro_naf.conditioners import MADE

UNITS = 16
#: Pseudo-parameters of DSF and of Pyro's NAF, hence the outputs of a conditioner alone.
OUTPUTS = 3 * UNITS


class Layer(nn.Module):
    """A flow of one layer. Inputs must be new tensors: Pyro's transforms and ours have caches."""

    def evaluate(self, x: Tensor) -> tuple[Tensor, ...]:
        """Value ``(B, D)`` and log-determinant ``(B,)``."""
        raise NotImplementedError

    def inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError

    def forward_pass(self, x: Tensor) -> None:
        with torch.no_grad():
            self.evaluate(x.clone())

    def training_pass(self, x: Tensor) -> None:
        """Forward and backward, with the gradient of a density's or a guide's loss."""
        self.zero_grad(set_to_none=True)
        y, log_det = self.evaluate(x.clone())
        (log_det.sum() - 0.5 * y.pow(2).sum()).backward()

    def inverse_pass(self, y: Tensor) -> None:
        with torch.no_grad():
            self.inverse(y.clone())


class Bare(Layer):
    """A conditioner alone. The gradient of its output is given, so that no loss is timed.

    That gradient is made in the first pass and counts in its peak memory, as a flow's does.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._gradient = torch.empty(0)

    def evaluate(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.network(x),)

    def training_pass(self, x: Tensor) -> None:
        self.zero_grad(set_to_none=True)
        (phi,) = self.evaluate(x.clone())
        if self._gradient.shape != phi.shape:
            self._gradient = torch.ones_like(phi)
        phi.backward(self._gradient)


class OfPyro(Layer):
    """A transform with Pyro's interface, this package's among them."""

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform

    def evaluate(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.transform(x)
        return y, self.transform.log_abs_det_jacobian(x, y)

    def inverse(self, y: Tensor) -> Tensor:
        return self.transform.inv(y)


class OfZuko(Layer):
    """zuko's flows map data to base and build their transform at every call."""

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow = flow

    @property
    def transform(self) -> Any:
        return self.flow().transform

    def evaluate(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.transform.call_and_ladj(x)

    def inverse(self, y: Tensor) -> Tensor:
        return self.transform.inv(y)


class Contender(NamedTuple):
    name: str
    #: From the dimension and the hidden width.
    make: Callable[[int, int], Layer]
    invertible: bool = True

    def try_make(self, dim: int, hidden: int) -> Layer | None:
        """None where the contender cannot be built: Pyro's networks need hidden >= D."""
        try:
            return self.make(dim, hidden)
        except ValueError:
            return None


OUR_MADE, PYRO_MADE = "MADE (pyro_naf)", "MADE (Pyro)"

# In natural order, as another order has our network alone sort its output, which a flow does not.
CONDITIONERS = [
    Contender(OUR_MADE, lambda d, h: Bare(MADE(d, [h], OUTPUTS, order="natural")), False),
    Contender(
        PYRO_MADE,
        lambda d, h: Bare(pyro.nn.AutoRegressiveNN(d, [h], param_dims=[OUTPUTS])),
        False,
    ),
]


def named(flow: str, kernel: str) -> str:
    """A flow's name with its kernel, where that is not left to the package."""
    return flow if kernel == "auto" else f"{flow} {kernel}"


def ours(kernel: str = "auto", layers: Sequence[int] = (2, 4)) -> list[Contender]:
    """DSF, and DDSF of so many layers, evaluated by that kernel."""

    def ddsf(num_layers: int) -> Contender:
        return Contender(
            named(f"DDSF {num_layers}", kernel),
            lambda d, h: OfPyro(
                pyro_naf.deep_dense_sigmoidal_flow(
                    d, [h], UNITS, num_layers=num_layers, kernel=kernel
                )
            ),
        )

    dsf = Contender(
        named("DSF", kernel),
        lambda d, h: OfPyro(pyro_naf.deep_sigmoidal_flow(d, [h], UNITS, kernel=kernel)),
    )
    return [dsf, *map(ddsf, layers)]


def rough(contender: Contender) -> Contender:
    """Away from its start, where our flows are near the identity and easier to invert."""

    @torch.no_grad()
    def make(dim: int, hidden: int) -> Layer:
        layer = contender.make(dim, hidden)
        for p in layer.parameters():
            fan_in = p.shape[-1] if p.dim() > 1 else 1
            p.add_(torch.randn_like(p), alpha=fan_in**-0.5)
        return layer

    return contender._replace(name=f"{contender.name} rough", make=make)


OF_PYRO = [
    Contender(
        "Pyro NAF",
        lambda d, h: OfPyro(pyro_transforms.neural_autoregressive(d, [h], width=UNITS)),
        False,
    ),
    Contender("Pyro spline", lambda d, h: OfPyro(pyro_transforms.spline_autoregressive(d, [h]))),
    Contender("Pyro affine", lambda d, h: OfPyro(pyro_transforms.affine_autoregressive(d, [h]))),
]


def of_zuko() -> list[Contender]:
    """zuko's, or none where it is not installed."""
    if find_spec("zuko") is None:
        return []
    import zuko  # type: ignore[import-untyped]

    def contender(name: str) -> Contender:
        flow = getattr(zuko.flows, name)
        return Contender(
            f"zuko {name}", lambda d, h: OfZuko(flow(d, transforms=1, hidden_features=[h]))
        )

    return [contender(name) for name in ("NAF", "NSF", "MAF")]
