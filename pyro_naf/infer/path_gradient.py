r"""The path gradient of the ELBO (sticking the landing) for guides made of autoregressive flows.

The ELBO's gradient by reparametrisation holds the score :math:`\nabla_\theta \log q_\theta(z)` at
fixed z, whose mean is zero but whose variance is not. Without it, what is left vanishes draw by
draw where q = p (Roeder et al. 2017 [arXiv:1703.09194]). It needs :math:`\nabla_z \log q(z)`, which
is pushed through the layers :math:`y = f(x)` with Jacobians J and log-determinants l as

.. math:: \nabla_y \log q = J^{-T} (\nabla_x \log q - \nabla_x l)

(Vaitl et al. 2024 [arXiv:2403.15881]): no inverse of a flow is run.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TransformedDistribution
from torch import Tensor

from ..transforms import AutoregressiveFlow
from .autoguides import AutoFlowNormal

#: Relative residual at which a triangular solve has converged; float32 gives 1e-6 at best.
_TOLERANCE = 1e-4


def path_log_prob(guide: AutoFlowNormal, site: dict[str, Any]) -> Tensor:
    r"""A stand-in for :math:`\log q(z)` with the gradient :math:`\nabla_z \log q(z) \, dz`.

    :param site: the guide trace's site of the latent vector; its value z is ``(..., D)``.
    :return: ``(...)``; only its gradient means anything.
    """
    posterior = site["fn"]
    while not isinstance(posterior, TransformedDistribution):
        posterior = posterior.base_dist  # plates expand the guide's posterior
    z = site["value"]
    # The transform knows its own sample: no inverse is run.
    base = posterior.transforms[0].inv(z).detach()
    return (score(guide, base) * z).sum(-1)


def score(guide: AutoFlowNormal, base: Tensor) -> Tensor:
    r""":math:`\nabla_z \log q(z)` at the images z of base draws ``(..., D)``, without gradient."""
    x, s = base, -base
    for layer in _layers(guide):
        x, s = _push(layer, x, s)
    with torch.no_grad():
        _, factor = guide.affine()
        if not guide.full_rank:
            return s / factor
        return torch.linalg.solve_triangular(factor.T, s.unsqueeze(-1), upper=True).squeeze(-1)


def _push(layer: AutoregressiveFlow, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """One layer: its image of x, and the score there from the score ``s`` at x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y, log_slope = layer.value_and_log_slope(x)
    (of_log_det,) = torch.autograd.grad(log_slope.sum(), x, retain_graph=True)
    goal, slope = s - of_log_det, log_slope.detach().exp()
    # J^T v = goal by Jacobi's iteration. J is triangular: D steps are exact, a few mostly enough.
    v = goal / slope
    for _ in range(x.shape[-1] - 1):
        (image,) = torch.autograd.grad(y, x, v, retain_graph=True)
        residual = goal - image
        v = v + residual / slope
        if not bool((residual.abs() > _TOLERANCE * goal.abs().amax()).any()):
            break
    return y.detach(), v


def _layers(guide: AutoFlowNormal) -> list[Any]:
    flow: Any = guide._modules["flow"]
    return list(getattr(flow, "parts", [flow]))
