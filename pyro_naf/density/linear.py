"""Linear layers between autoregressive ones: a full matrix by its LU factors, or its diagonal."""

from __future__ import annotations

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn

from ..support.checks import check_integers
from ..support.precision import without_autocast


class Linear(TransformModule):
    """A layer of R^D to R^D."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    @property
    def sign(self) -> int:
        """Unknown, as torch says with an error of a kind that ends torch.jit.trace."""
        raise AttributeError(f"the sign of {type(self).__name__} is not known")


class LULinear(Linear):
    r"""An invertible linear map with a shift, :math:`y = L U P x + b`.

    P is a random permutation, fixed; L is lower triangular with a unit diagonal, U upper triangular
    with the diagonal :math:`e^s`, so that :math:`\log|\det J| = \sum_t s_t`. It starts as P.

    :param input_dim: D >= 1.

    Source: Oliva et al. 2018 [arXiv:1801.09819], section 3.1; Durkan et al. 2019
    [arXiv:1906.04032], section 3.

    >>> linear = LULinear(3)
    >>> x = torch.randn(5, 3)
    >>> bool((linear.inv(linear(x)) - x).abs().max() < 1e-5)
    True
    """

    permutation: Tensor

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        check_integers(input_dim=(input_dim, 1))
        self.register_buffer("permutation", torch.randperm(input_dim))
        self.lower = nn.Parameter(torch.zeros(input_dim, input_dim))
        self.upper = nn.Parameter(torch.zeros(input_dim, input_dim))
        self.log_diagonal = nn.Parameter(torch.zeros(input_dim))
        self.bias = nn.Parameter(torch.zeros(input_dim))

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower = self.lower.tril(-1) + torch.diag(torch.ones_like(self.bias))
        return lower, self.upper.triu(1) + torch.diag(self.log_diagonal.exp())

    def _call(self, x: Tensor) -> Tensor:
        with without_autocast(x):  # the log-determinant is that of the exact product
            lower, upper = self._factors()
            x = x.to(lower.dtype).index_select(-1, self.permutation)
            return x @ (lower @ upper).T + self.bias

    def _inverse(self, y: Tensor) -> Tensor:
        lower, upper = self._factors()
        columns = (y - self.bias).unsqueeze(-1)
        half = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        x = torch.linalg.solve_triangular(upper, half, upper=True).squeeze(-1)
        return x.index_select(-1, torch.argsort(self.permutation))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`\log|\det J|`, the same for every x ``(..., D)``: shape ``(...)``."""
        return self.log_diagonal.sum().expand(x.shape[:-1])


class Diagonal(Linear):
    r"""Scale and shift of every dimension, :math:`y = e^s \odot x + b`, the identity at start.

    The NAF paper ends its flows with one.

    :param input_dim: D >= 1.

    >>> Diagonal(3)(torch.ones(5, 3)).shape
    torch.Size([5, 3])
    """

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        check_integers(input_dim=(input_dim, 1))
        self.log_scale = nn.Parameter(torch.zeros(input_dim))
        self.bias = nn.Parameter(torch.zeros(input_dim))

    def _call(self, x: Tensor) -> Tensor:
        return self.log_scale.exp() * x + self.bias

    def _inverse(self, y: Tensor) -> Tensor:
        return (y - self.bias) * torch.exp(-self.log_scale)

    @property
    def lower(self) -> Tensor:
        """The matrix ``(D, D)``."""
        return torch.diag(self.log_scale.exp())

    @property
    def centre(self) -> Tensor:
        """What is mapped to zero, ``(D,)``."""
        return -self.bias * torch.exp(-self.log_scale)

    @property
    def log_slopes(self) -> Tensor:
        """The logarithm ``(D,)`` of the slope of each dimension."""
        return self.log_scale

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        r""":math:`\sum_t s_t`, the same for every x ``(..., D)``: shape ``(...)``."""
        return self.log_scale.sum().expand(x.shape[:-1])


class Reversal(Linear):
    """The dimensions in reverse, so that the next autoregressive layer reads them from the end.

    >>> Reversal()(torch.tensor([1.0, 2.0, 3.0]))
    tensor([3., 2., 1.])
    """

    def _call(self, x: Tensor) -> Tensor:
        return x.flip(-1)

    _inverse = _call

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero, of shape ``(...)``."""
        return x.new_zeros(x.shape[:-1])
