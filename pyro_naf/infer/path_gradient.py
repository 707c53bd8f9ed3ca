r"""The score :math:`\nabla_z \log q(z)` of a guide's own draws, without a flow's inverse.

The ELBO's gradient by reparametrisation holds :math:`\nabla_\theta \log q_\theta(z)` at fixed z,
whose mean is zero but whose variance is not. Without it, what is left vanishes draw by draw where
q = p (Roeder et al. 2017 [arXiv:1703.09194]). It needs :math:`\nabla_z \log q(z)`, which is pushed
through the layers :math:`y = f(x)` with Jacobians J and log-determinants l as

.. math:: \nabla_y \log q = J^{-T} (\nabla_x \log q - \nabla_x l)

(Vaitl et al. 2024 [arXiv:2403.15881]).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions.transforms import ComposeTransform, Transform

from ..guides.wrapping import peel
from ..support.modes import values_are_unknown
from ..transforms import AutoregressiveFlow

#: Largest number of dimensions for which all iterations are recorded in a captured graph: how many
#: are needed depends on values, which a graph cannot read.
_MOST_RECORDED = 16


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


def _push(layer: Transform, x: Tensor, s: Tensor, tolerance: float | None) -> tuple[Tensor, Tensor]:
    """One layer: its image of x, and the score there from the score ``s`` at x."""
    if isinstance(layer, AutoregressiveFlow):
        return _push_through_flow(layer, x, s, tolerance)
    with torch.no_grad():
        y = layer(x)

    def log_prob(y: Tensor) -> Tensor:
        x = layer.inv(y)
        return (s * x).sum() - layer.log_abs_det_jacobian(x, y).sum()

    return y, _gradient(log_prob, y)


def _push_through_flow(
    layer: AutoregressiveFlow, x: Tensor, s: Tensor, tolerance: float | None
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y, log_slope = layer.value_and_log_slope(x)
    (of_log_det,) = torch.autograd.grad(log_slope.sum(), x, retain_graph=True)
    goal, slope = s - of_log_det, log_slope.detach().exp()
    if tolerance is None:  # 8e-5 in float32, where the arithmetic gives 1e-6 at best
        tolerance = torch.finfo(x.dtype).eps ** 0.6
    allowed = tolerance * goal.abs().amax()
    # J^T v = goal by Jacobi's iteration. J is triangular: D steps are exact, a few mostly enough.
    v, goes_on = goal / slope, torch.ones((), dtype=torch.bool, device=x.device)
    recorded = values_are_unknown() and x.shape[-1] <= _MOST_RECORDED
    for _ in range(x.shape[-1] - 1):
        (image,) = torch.autograd.grad(y, x, v, retain_graph=True)
        residual = goal - image
        v = torch.where(goes_on, v + residual / slope, v)
        goes_on = goes_on & (residual.abs() > allowed).any()
        if not recorded and not bool(goes_on):
            break
    return y.detach(), v


def _gradient(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        total = function(z).sum()
    if not total.requires_grad:  # a constant
        return torch.zeros_like(z)
    (gradient,) = torch.autograd.grad(total, z, allow_unused=True, materialize_grads=True)
    return gradient
