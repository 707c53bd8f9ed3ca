"""What is known of the elementwise nonlinearities of networks, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

_FUNCTIONS = (
    *(torch.tanh, torch.sigmoid, torch.relu, functional.tanh, functional.sigmoid),
    *(functional.relu, functional.elu, functional.silu, functional.gelu),
    *(functional.softplus, functional.leaky_relu),
)
_MODULES = (nn.Tanh, nn.Sigmoid, nn.ReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Softplus, nn.LeakyReLU)


def is_plain(activation: Callable[[Tensor], Tensor]) -> bool:
    """Whether a function is known to draw nothing, and to leave its argument as it is.

    >>> is_plain(torch.tanh), is_plain(nn.ReLU(inplace=True)), is_plain(nn.RReLU())
    (True, False, False)
    """
    is_module = type(activation) in _MODULES and not getattr(activation, "inplace", False)
    return is_module or activation in _FUNCTIONS


def slope_of(activation: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Differentiate an elementwise function at every entry of z, without gradient.

    >>> slope_of(torch.tanh, torch.tensor([0.0, 50.0]))
    tensor([1., 0.])
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        slope: Tensor
        (slope,) = torch.autograd.grad(activation(z).sum(), z)
    return slope
