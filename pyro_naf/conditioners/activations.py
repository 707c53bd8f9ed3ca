"""Derivatives of the elementwise nonlinearities of networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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
