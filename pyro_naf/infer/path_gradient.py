r"""The score :math:`\nabla_z \log q(z)` of a guide's own draws, without a flow's inverse.

The ELBO's gradient by reparametrisation holds :math:`\nabla_\theta \log q_\theta(z)` at fixed z,
whose mean is zero but whose variance is not. Without it, what is left vanishes draw by draw where
q = p (Roeder et al. 2017 [arXiv:1703.09194]). It needs :math:`\nabla_z \log q(z)`, which is pushed
through the layers :math:`y = f(x)` with Jacobians J and log-determinants l as

.. math:: \nabla_y \log q = J^{-T} (\nabla_x \log q - \nabla_x l)

(Vaitl et al. 2024 [arXiv:2403.15881]).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeGuard

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions.transforms import ComposeTransform, Transform
from torch.distributions.utils import _sum_rightmost

from ..flows.autoregressive import Parts
from ..guides.wrapping import peel
from ..support.modes import values_are_unknown
from ..transforms import AutoregressiveFlow

#: Largest number of iterations that are recorded in a captured graph, so that they are exact: how
#: many are needed depends on values, which a graph cannot read.
_MOST_RECORDED = 16

#: Largest number of entries of the Jacobians that are computed; of more, products with them.
_MOST_ENTRIES = 1 << 20

_LOG_ROOT_TWO_PI = 0.5 * math.log(2 * math.pi)


def score(fn: TorchDistribution, z: Tensor, tolerance: float | None = None) -> Tensor:
    r""":math:`\nabla_z \log q(z)` with all parameters of q held fixed, shape of z, no gradient.

    :param fn: the distribution q. If it holds autoregressive flows, they recognise z as their own
        output, and no inverse is run; it is for any other z.
    :param z: a draw of ``fn`` in the autograd graph that made it, before a backward pass.
    :param tolerance: largest residual of the Jacobians' equations, relative to the largest entry;
        by default the dtype's precision to the power 0.6.

    >>> score(torch.distributions.Normal(1.0, 2.0), torch.tensor(5.0))
    tensor(-1.)
    """
    fn, mask = peel(fn)
    layers = list(_layers(getattr(fn, "transforms", ())))
    if not any(isinstance(layer, AutoregressiveFlow) for layer in layers):
        return scale_and_mask(_gradient(fn.log_prob, z), mask=mask)
    x = z
    for layer in reversed(layers):
        x = layer.inv(x)
    s = score(fn.base_dist, x, tolerance)
    for layer in layers:
        x, s = _push(layer, x, s, tolerance)
    return scale_and_mask(s, mask=mask)


def _layers(transforms: Iterable[Transform]) -> Iterator[Transform]:
    for transform in transforms:
        if isinstance(transform, ComposeTransform):
            yield from _layers(transform.parts)
        else:
            yield transform


class FlowPath:
    r"""Draws z of :math:`z = T(\epsilon)` from those of a standard normal, and their densities.

    What the flows compute on the way is kept in one autograd graph, for the score.

    :param transform: T, of vectors ``(N, D)``.
    :param normal: :math:`\epsilon` ``(N, D)``.
    :param is_finite: whether flows take what they map to be finite, without a look.
    :ivar normal: the same, from which the graph begins.
    :ivar z: draws ``(N, D)``.
    :ivar log_det: :math:`\log|\det \partial z/\partial\epsilon|`, ``(N,)``.
    :ivar log_q: log-density of the draws, ``(N,)``.

    >>> affine = torch.distributions.AffineTransform(1.0, 2.0, event_dim=1)
    >>> path = FlowPath(affine, torch.ones(1, 1))
    >>> path.z, path.score()
    (tensor([[3.]], grad_fn=<AddBackward0>), tensor([[-0.5000]]))
    """

    def __init__(self, transform: Transform, normal: Tensor, is_finite: bool = False) -> None:
        x = self.normal = normal.detach().requires_grad_(torch.is_grad_enabled())
        log_det = torch.zeros_like(x[..., 0])
        self._steps: list[tuple[Transform, Tensor, Parts | None]] = []
        for layer in _layers([transform]):
            parts = layer.in_parts(x, is_finite=is_finite) if _has_parts(layer) else None
            self._steps.append((layer, x, parts))
            if parts is None:
                x, before = layer(x), x
                added = layer.log_abs_det_jacobian(before, x)
                log_det = log_det + _sum_rightmost(added, 1 - layer.domain.event_dim)
            else:
                x = parts.sort(parts.y, back=True)
                log_det = log_det + parts.log_slope.sum(-1)
        log_base = self.normal.square().sum(-1) / -2 - x.shape[-1] * _LOG_ROOT_TWO_PI
        self.z, self.log_det, self.log_q = x, log_det, log_base - log_det

    def score(self, tolerance: float | None = None) -> Tensor:
        r""":math:`\nabla_z \log q(z)` with T held fixed, ``(N, D)``, no gradient.

        :param tolerance: as in :func:`score`.
        :raises RuntimeError: for a path that was made without gradients.
        """
        if not self.normal.requires_grad:
            raise RuntimeError("the score needs a FlowPath that was made with gradients enabled")
        s = -self.normal.detach()
        for layer, x, parts in self._steps:
            if parts is None:
                s = _push(layer, x, s, tolerance)[1]
            else:
                s = _pull_through(parts, s, tolerance)
        return s

    def gradients(
        self, weights: Sequence[Tensor], by_log_q: Tensor, by_z: Tensor
    ) -> list[Tensor | None]:
        r"""Gradients of :math:`\sum_i a_i \log q(z_i) + b_i^T z_i` with respect to weights of T.

        :param weights: leaves of the graph, any number.
        :param by_log_q: a, shape ``(N,)``.
        :param by_z: b, shape ``(N, D)``.
        :return: one each, None where nothing depends on a weight.
        """
        outputs, by = (self.z, self.log_q), (by_z, by_log_q)
        return list(torch.autograd.grad(outputs, weights, by, allow_unused=True))


def _has_parts(layer: Transform) -> TypeGuard[AutoregressiveFlow]:
    """Whether a layer is a flow that maps as :class:`AutoregressiveFlow` does."""
    return isinstance(layer, AutoregressiveFlow) and not layer.has_own_map


def _push(layer: Transform, x: Tensor, s: Tensor, tolerance: float | None) -> tuple[Tensor, Tensor]:
    """One layer: its image of x, and the score there from the score ``s`` at x."""
    if _has_parts(layer):
        with torch.enable_grad():
            parts = layer.in_parts(x.detach().requires_grad_())
        return parts.sort(parts.y.detach(), back=True), _pull_through(parts, s, tolerance)
    with torch.no_grad():
        y = layer(x)

    def log_prob(y: Tensor) -> Tensor:
        x = layer.inv(y)
        return (s * x).sum() - layer.log_abs_det_jacobian(x, y).sum()

    return y, _gradient(log_prob, y)


def _pull_through(parts: Parts, s: Tensor, tolerance: float | None) -> Tensor:
    """Return the score at a flow's image from the score ``s`` at x."""
    x, phi = parts.x, parts.phi
    goal = parts.sort(s) - _derivative(parts.log_slope, x)
    slope = parts.log_slope.detach().exp()
    # As y_t depends on phi_t and x_t alone, J^T v = slope v + (d phi/dx)^T (dy/dphi v).
    by_phi = _derivative(parts.y, phi)
    if parts.jacobian is not None and x.numel() * x.shape[-1] <= _MOST_ENTRIES:
        jacobian = torch.diag_embed(slope) + parts.jacobian(by_phi)
        v = torch.linalg.solve_triangular(jacobian.mT, goal.unsqueeze(-1), upper=True)
        return parts.sort(v.squeeze(-1), back=True)
    if tolerance is None:  # 8e-5 in float32, where the arithmetic gives 1e-6 at best
        tolerance = torch.finfo(x.dtype).eps ** 0.6
    allowed = tolerance * goal.abs().amax()
    # Jacobi's iteration: as many steps as the longest chain are exact, a few mostly enough.
    if parts.products is not None:
        product = parts.products(by_phi)
    else:
        product = lambda v: _derivative(phi, x, by_phi * v.unsqueeze(-1))  # noqa: E731
    v, goes_on = goal / slope, torch.ones((), dtype=torch.bool, device=x.device)
    recorded = values_are_unknown() and parts.depth <= _MOST_RECORDED
    for _ in range(parts.depth):
        residual = goal - slope * v - product(v)
        v = torch.where(goes_on, v + residual / slope, v)
        goes_on = goes_on & (residual.abs() > allowed).any()
        if not recorded and not bool(goes_on):
            break
    return parts.sort(v, back=True)


def _derivative(of: Tensor, by: Tensor, weights: Tensor | None = None) -> Tensor:
    """Gradient of the weighted sum of a tensor; the graph stays."""
    if not (of.requires_grad and by.requires_grad):  # a constant
        return torch.zeros_like(by)
    weights = torch.ones_like(of) if weights is None else weights
    options = dict(retain_graph=True, allow_unused=True, materialize_grads=True)
    return torch.autograd.grad(of, by, weights, **options)[0]


def _gradient(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        total = function(z).sum()
    if not total.requires_grad:  # a constant
        return torch.zeros_like(z)
    (gradient,) = torch.autograd.grad(total, z, allow_unused=True, materialize_grads=True)
    return gradient
