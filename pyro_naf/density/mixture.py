"""Base distributions: the standard normal, and an autoregressive mixture of Gaussians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Protocol

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from ..conditioners import sweep
from ..conditioners.protocol import Conditioner
from ..formulas.elementary import log_sum_exp, positive
from ..rootfinding import attach_gradient
from ..support.checks import check_integers
from ..support.precision import at_least_float32, without_autocast

_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class StandardNormal(nn.Module):
    """The base distribution N(0, I) of a flow.

    :param input_dim: number D of dimensions.

    >>> StandardNormal(3).log_prob(torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    zero: Tensor

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(input_dim), persistent=False)

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density ``(...)`` of z ``(..., D)``."""
        z = at_least_float32(z)
        return -0.5 * z.square().sum(-1) - z.shape[-1] * _LOG_SQRT_2PI

    def log_probs(self, z: Tensor) -> Tensor:
        """Return the log-density ``(..., D)`` of each dimension of z ``(..., D)``."""
        return -0.5 * at_least_float32(z).square() - _LOG_SQRT_2PI

    def distribution(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """N(0, I), of the context's batch shape."""
        batch = () if context is None else context.shape[:-1]
        loc = self.zero.expand(*batch, -1)
        return dist.Normal(loc, torch.ones_like(loc)).to_event(1)


class Mixing(Conditioner, Protocol):
    """A conditioner that tells how many pseudo-parameters it gives a dimension."""

    num_params: int


class AutoregressiveMixture(nn.Module):
    r"""MADE-MoG: :math:`p(z) = \prod_t \sum_k \pi_{tk}\, N(z_t; \mu_{tk}, \sigma_{tk}^2)`.

    Weights, means and scales of dimension t come from a conditioner that reads :math:`z_{<t}` (and
    a context). Its pseudo-parameters are the logits of the weights, the means' displacements and
    the raw scales, K of each; at zero the means lie evenly over [-1.5, 1.5], and the mixture has
    about unit variance.

    :param conditioner: P = 3 * components.
    :param components: K >= 1.
    :param min_scale: a floor under every scale, so that no component collapses on a datum.
    :raises ValueError: when the conditioner's P is another.

    Source: Germain et al. 2015 [arXiv:1502.03509]; Papamakarios et al. 2017 [arXiv:1705.07057],
    section 3.

    >>> from pyro_naf.conditioners import MADE
    >>> mixture = AutoregressiveMixture(MADE(3, [16], num_params=12), components=4)
    >>> z = mixture.distribution().sample([5])
    >>> mixture.log_prob(z).shape
    torch.Size([5])
    """

    initial_means: Tensor

    def __init__(self, conditioner: Mixing, components: int = 10, min_scale: float = 1e-3) -> None:
        super().__init__()
        check_integers(components=(components, 1))
        if not 0 < min_scale < 0.3:
            raise ValueError(f"min_scale must lie in (0, 0.3), got {min_scale}")
        if conditioner.num_params != 3 * components:
            raise ValueError(
                f"conditioner gives {conditioner.num_params} pseudo-parameters a dimension, but "
                f"{components} components need {3 * components}"
            )
        self.conditioner, self.components, self.min_scale = conditioner, components, min_scale
        self.input_dim = conditioner.input_dim
        means = torch.linspace(-1.5, 1.5, components) if components > 1 else torch.zeros(1)
        self.register_buffer("initial_means", means, persistent=False)
        self.initial_scale = max(1 - float(means.square().mean()), 0.09) ** 0.5

    def constrain(self, phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, means and scales, each ``(..., K)``, of phi ``(..., P)``."""
        logits, means, scales = phi.unflatten(-1, (3, self.components)).unbind(-2)
        scales = positive(scales, self.initial_scale, self.min_scale)
        return logits - log_sum_exp(logits), means + self.initial_means, scales

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density ``(...)`` of z ``(..., D)``: one pass of the conditioner."""
        phi = self.conditioner(z) if context is None else self.conditioner(z, context)
        with without_autocast(z):
            z = at_least_float32(z)
            return self._log_density(z, *self.constrain(phi.to(z.dtype))).sum(-1)

    def _log_density(self, z: Tensor, log_weights: Tensor, means: Tensor, scales: Tensor) -> Tensor:
        standard = (z.unsqueeze(-1) - means) / scales
        terms = log_weights - scales.log() - 0.5 * standard.square()
        return log_sum_exp(terms).squeeze(-1) - _LOG_SQRT_2PI

    def rsample(self, rows: int, context: Tensor | None = None) -> Tensor:
        r"""Exact draws ``(rows, D)``, one dimension after another, at the cost of one pass.

        A component is drawn, then the value. The gradient is that of the mixture's quantile at a
        fixed level, :math:`dz = -dF / f` (implicit reparametrisation, Figurnov et al. 2018
        [arXiv:1805.08498]): exact although the choice of a component has none.

        Autocast is left out, as in the inverse of a flow.

        :param context: ``(rows, C)``.
        """
        with without_autocast(self.initial_means):
            return self._rsample(rows, context)

    def _rsample(self, rows: int, context: Tensor | None) -> Tensor:
        order = self.conditioner.get_permutation().tolist()
        steps = sweep(self.conditioner, rows, context, like=self.initial_means)
        phi, columns = next(steps), [self.initial_means] * len(order)
        for place, dim in enumerate(order):
            columns[dim] = self._draw(*self.constrain(phi))
            if place < len(order) - 1:
                phi = steps.send(columns[dim])
        return torch.stack(columns, -1)

    def _draw(self, log_weights: Tensor, means: Tensor, scales: Tensor) -> Tensor:
        with torch.no_grad():
            k = torch.multinomial(log_weights.exp(), 1)
            mean, scale = (t.gather(-1, k).squeeze(-1) for t in (means, scales))
            z = mean + scale * torch.randn_like(mean)
        level = self._level(z, log_weights, means, scales)[0].detach()
        return attach_gradient(self._level, z, level, log_weights, means, scales)

    def _level(self, z: Tensor, *params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distribution function at z, and the logarithm of its slope, the density."""
        log_weights, means, scales = params
        below = torch.special.ndtr((z.unsqueeze(-1) - means) / scales)
        return (log_weights.exp() * below).sum(-1), self._log_density(z, *params)

    def distribution(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """Return the mixture as a Pyro distribution, of the context's batch shape."""
        return ModuleDistribution(self, context)


class Drawable(Protocol):
    """A density of D dimensions that can be drawn from."""

    input_dim: int

    def log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Log-density ``(...)`` of x ``(..., D)``."""

    def rsample(self, rows: int, context: Tensor | None) -> Tensor:
        """Draws ``(rows, D)``, with gradients, each of its row of the context."""


class ModuleDistribution(dist.TorchDistribution):
    """A density that a module holds, as a Pyro distribution.

    :param module: has ``input_dim``, ``log_prob(x, context)`` and ``rsample(rows, context)``, whose
        draws ``(rows, D)`` have a context ``(rows, C)`` each.
    :param context: ``(..., C)``, whose batch shape the distribution has.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, module: Drawable, context: Tensor | None) -> None:
        self.module, self.context = module, context
        batch = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch, torch.Size([module.input_dim]), validate_args=False)

    def expand(
        self, batch_shape: Sequence[int], _instance: ModuleDistribution | None = None
    ) -> ModuleDistribution:
        """Return a copy that is broadcast to a batch shape."""
        batch_shape = torch.Size(batch_shape)
        if self.context is None:
            expanded = ModuleDistribution(self.module, None)
            expanded._batch_shape = batch_shape
            return expanded
        return ModuleDistribution(self.module, self.context.expand(*batch_shape, -1))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw with gradients, shape ``(*sample_shape, ..., D)``."""
        shape = torch.Size(sample_shape) + self.batch_shape
        context = self.context
        if context is not None:
            context = context.expand(*shape, -1).reshape(-1, context.shape[-1])
        return self.module.rsample(shape.numel(), context).view(*shape, -1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw without gradients, shape ``(*sample_shape, ..., D)``."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density ``(...)`` of values ``(..., D)``."""
        log_prob = self.module.log_prob(value, self.context)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))
