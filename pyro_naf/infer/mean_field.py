"""A mean-field Gaussian on the unconstrained latents of a joint density, by stochastic ascent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from .joint import Joint

#: Number of steps over which the reported ELBO is averaged.
_MEMORY = 50


#: Standard deviations that a fit may begin with, and draws that choose among them.
_SCALES, _CHOOSING = (0.5, 0.1, 0.02), 16


def falling(seconds: float) -> Iterator[float]:
    """Yield the fraction of these seconds that is left, until they are over."""
    begin = time.monotonic()
    while (left := 1 - (time.monotonic() - begin) / seconds) > 0:
        yield left


def fit_mean_field(
    joint: Joint,
    rates: Iterable[float],
    num_particles: int = 64,
    lr: float = 0.2,
    report: Callable[[float], object] = lambda elbo: None,
) -> tuple[Tensor, Tensor, list[float]]:
    """Maximise the ELBO of independent normals.

    :param joint: the joint density.
    :param rates: the learning rate of each step, in multiples of ``lr``.
    :param num_particles: draws for each gradient.
    :param lr: learning rate of Adam.
    :param report: called with the running mean of the ELBO after every step.
    :return: mean ``(D,)``, standard deviation ``(D,)``, and the ELBO's running mean at every step.
    :raises ValueError: when no draw of a step has a finite density, naming the sites.
    """
    loc = joint.start.clone().requires_grad_()
    log_scale = torch.full_like(loc, math.log(_first_scale(joint)), requires_grad=True)
    optimiser = ClippedAdam([loc, log_scale], lr=lr)
    elbos: list[float] = []
    for rate in rates:
        optimiser.param_groups[0]["lr"] = lr * rate
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


@torch.no_grad()
def _first_scale(joint: Joint) -> float:
    """Find the first standard deviation, by the ELBO; dozens of weights want a smaller one."""
    normal = torch.randn(_CHOOSING, joint.dim).to(joint.start)
    elbos = [
        float(joint(joint.start + scale * normal).double().mean()) + joint.dim * math.log(scale)
        for scale in _SCALES
    ]
    return max(zip(elbos, _SCALES, strict=True))[1]
