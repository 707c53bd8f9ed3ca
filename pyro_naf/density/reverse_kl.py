"""A density fitted to an energy instead of data, by the reverse Kullback-Leibler divergence."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..support.deprecation import renamed
from .estimator import FlowDensity
from .settings import Training
from .training import mean_log_prob, train

#: Maps points ``(..., D)`` to energies ``(...)``: minus the log-density up to a constant.
Energy = Callable[[Tensor], Tensor]


class ReverseKL(nn.Module):
    r""":math:`-U(x) - \log q(x)` of as many fresh draws from q as it is given rows.

    Its mean is :math:`\ln Z - KL(q\,\|\,e^{-U} / Z)`, so that whatever maximises a likelihood
    minimises the divergence.
    """

    def __init__(self, density: FlowDensity, energy: Energy) -> None:
        super().__init__()
        self.density, self.energy = density, energy

    def forward(self, rows: Tensor) -> Tensor:
        """``(N,)``, for rows ``(N, ...)`` that are not looked at."""
        loc, scale = (t.to(rows.dtype) for t in (self.density.loc, self.density.scale))
        u, log_q = self.density.flow.rsample_and_log_prob(len(rows))
        return -self.energy(loc + scale * u) - log_q + scale.log().sum()


@renamed(steps="max_steps", num_samples="num_particles")
def fit_energy(
    density: FlowDensity,
    energy: Energy,
    *,
    max_steps: int = 3000,
    num_particles: int = 256,
    lr: float = 3e-3,
    seed: int | None = None,
    progress: bool = True,
    **training: object,
) -> FlowDensity:
    r"""Fit a density without a context to :math:`e^{-U}`, from its present weights.

    Draws have to be cheap: architectures of the sampling direction (``iaf-*``, ``planar-K``) give
    them in one pass.

    :param density: is trained, in its present units, and returned.
    :param energy: U, differentiable, of points ``(N, D)``.
    :param max_steps: number of steps, of the loop that maximises likelihoods.
    :param num_particles: draws for each gradient.
    :param training: further fields of :class:`~pyro_naf.density.settings.Training`.
    :raises RuntimeError: when the energy is not finite for 50 steps in a row.

    Source: Rezende & Mohamed 2015 [arXiv:1505.05770].

    >>> density = FlowDensity(2, architecture="planar-2")
    >>> density = fit_energy(density, lambda x: x.square().sum(-1), max_steps=20, progress=False)
    >>> density.sample(5).shape
    torch.Size([5, 2])
    """
    make: Callable[..., Training] = Training
    options = make(
        max_steps=max_steps,
        batch_size=num_particles,
        lr=lr,
        seed=int(torch.randint(2**31, ())) if seed is None else seed,
        progress=progress,
        **training,
    )
    density.history = train(
        ReverseKL(density, energy), _rows(density, num_particles), None, options
    )
    return density


@renamed(num_samples="num_particles")
def energy_bound(
    density: FlowDensity, energy: Energy, num_particles: int = 100_000
) -> tuple[float, float]:
    r"""Bound :math:`\ln \int e^{-U}` from below, by the divergence, with a standard error.

    >>> density = FlowDensity(1, architecture="iaf-affine-1")
    >>> bound, se = energy_bound(density, lambda x: 0.5 * x.square().sum(-1))
    >>> bound - 3 * se < 0.92  # half of log(2 pi)
    True
    """
    return mean_log_prob(ReverseKL(density, energy), _rows(density, num_particles))


def _rows(density: FlowDensity, n: int) -> tuple[Tensor]:
    if density.flow is None:
        raise ValueError(
            "density must have an input_dim and a named architecture, as in FlowDensity(2, "
            "architecture='iaf-dsf-2')"
        )
    return (density.like.new_zeros(n, density.width),)
