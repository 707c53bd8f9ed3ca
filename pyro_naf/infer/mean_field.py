"""A mean-field Gaussian on the unconstrained latents of a joint density, by stochastic ascent."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from .joint import Joint

#: Steps over which the reported ELBO is averaged.
_MEMORY = 50


def fit_mean_field(
    joint: Joint,
    steps: Iterable[int],
    num_particles: int = 64,
    lr: float = 0.2,
    decay: float = 1.0,
    report: Callable[[float], Any] = lambda elbo: None,
) -> tuple[Tensor, Tensor, list[float]]:
    """Maximise the ELBO of independent normals.

    :param joint: the joint density.
    :param steps: an iterable with one entry a step, such as a progress bar.
    :param num_particles: draws for each gradient.
    :param lr: learning rate at the start, which each step multiplies by ``decay``.
    :param report: called with the running mean of the ELBO after every step.
    :return: mean ``(D,)``, standard deviation ``(D,)``, and the ELBO's running mean at every step.
    :raises ValueError: when no draw of a step has a finite density, naming the sites.
    """
    loc = joint.start.clone().requires_grad_()
    log_scale = torch.full_like(loc, math.log(0.1), requires_grad=True)
    optimiser = ClippedAdam([loc, log_scale], lr=lr, lrd=decay)
    elbos: list[float] = []
    for _ in steps:
        u = loc + log_scale.exp() * torch.randn(num_particles, joint.dim).to(loc)
        log_p = joint(u)
        possible = log_p.isfinite()
        if not bool(possible.any()):
            point = {name: value[0] for name, value in joint.constrained(u.detach()).items()}
            raise ValueError(
                f"the log-density is not finite at step {len(elbos) + 1} of the fit, because of "
                f"the sites {sorted(joint.culprits(point))}"
            )
        entropy = log_scale.sum() + 0.5 * joint.dim * (1 + math.log(2 * math.pi))
        elbo = log_p[possible].mean() + entropy
        # Not backward(): the model's own parameters must not collect gradients.
        grads = torch.autograd.grad(-elbo, [loc, log_scale])
        for weight, grad in zip((loc, log_scale), grads, strict=True):
            weight.grad = grad.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        optimiser.step()
        now = elbo.item()
        elbos.append(now if not elbos else elbos[-1] + (now - elbos[-1]) / _MEMORY)
        report(elbos[-1])
    return loc.detach(), log_scale.detach().exp(), elbos
