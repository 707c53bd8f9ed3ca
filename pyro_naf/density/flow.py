"""A stack of transforms over a base distribution: a density, and draws from it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, cast

import pyro.distributions as dist
import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor, nn
from torch.distributions.transforms import Transform

from ..rootfinding import RootNotFoundError
from ..transforms import AutoregressiveFlow
from . import closed_form, holes
from .gaussian import Whitening
from .gaussian_mixture import GaussianMixture
from .mixture import StandardNormal
from .normal_scores import NormalScores
from .settings import Stop
from .student import Student

#: Times that a single row is drawn before it is given up.
TRIES = 50

#: Number of standard deviations beyond which a log-density that cannot be computed is minus
#: infinity.
FAR = 1e6


class Base(Protocol):
    """The distribution that a flow starts from."""

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density ``(...)`` of z ``(..., D)``."""

    def distribution(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """Return the base as a Pyro distribution, of the context's batch shape."""


class Sampler(Protocol):
    """What draws can be made of."""

    def rsample(self, n: int, context: Tensor | None = None) -> Tensor:
        """n draws ``(n, ..., D)``, for each row of a context."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode, without dropout; each submodule has its own mode again afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def finite_draws(flow: Sampler, rows: int, given: Tensor | None = None) -> Tensor:
    """Draws ``(rows, D)``, those that overflow drawn again, with a warning.

    Affine flows of few rows send a draw in a thousand so far out that the next layer overflows.
    Rows that cannot be drawn together are drawn anew in two parts, so that each part is of the law
    of draws that are finite.

    :param given: a context ``(rows, C)`` for each.
    :raises RootNotFoundError: when a single row cannot be drawn at all.
    """

    def drawn(start: int, stop: int, tries: int = TRIES) -> Tensor:
        number = stop - start
        try:
            found = flow.rsample(number) if given is None else flow.rsample(1, given[start:stop])[0]
            if found.isfinite().all():
                return found
            raise RootNotFoundError(int((~found.isfinite()).any(1).sum()), number, math.inf)
        except RootNotFoundError:
            if tries == 0:
                raise
        again.append(number)
        if number == 1:
            return drawn(start, stop, tries - 1)
        middle = start + number // 2
        return torch.cat([drawn(start, middle), drawn(middle, stop)])

    again: list[int] = []
    found = drawn(0, rows)
    if again:
        warnings.warn(
            f"some of {rows} draws were so far out that the flow overflowed, and were drawn again: "
            "it was fitted to few rows for its size",
            stacklevel=4,
        )
    return found


class NormalizingFlow(nn.Module):
    r"""A base distribution p(z) and layers between it and the data.

    In the density direction the layers map data to base, one after another, so that

    .. math:: \log p(x) = \log p_z(f(x)) + \log|\det f'(x)|

    is one pass, and a draw inverts them. In the ``sampling`` direction (IAF, planar flows) they map
    base to data: a draw is one pass, and the density of data inverts them.

    :param layers: Pyro transform modules, conditional or not, in the order in which they act.
    :param base: a :class:`~pyro_naf.density.mixture.StandardNormal` or
        :class:`~pyro_naf.density.mixture.AutoregressiveMixture`.
    :param sampling: the layers map base to data.
    :param no_inverse: why the layers cannot be inverted, where they cannot.
    :param holes: dimensions that rows lack where an entry of the context, by its number, is 0; the
        density is then that of the others (:mod:`pyro_naf.density.holes`).

    Shapes: x ``(..., D)``, context ``(..., C)``, log-density ``(...)``.

    >>> from pyro_naf.density.mixture import StandardNormal
    >>> from pyro_naf import deep_sigmoidal_flow
    >>> flow = NormalizingFlow([deep_sigmoidal_flow(3)], StandardNormal(3))
    >>> flow.log_prob(flow.distribution().sample([5])).shape
    torch.Size([5])
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        base: Base,
        *,
        sampling: bool = False,
        no_inverse: str | None = None,
        holes: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.base = nn.ModuleList(layers), base
        self.sampling, self.no_inverse, self.holes = sampling, no_inverse, dict(holes or {})

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """:meth:`log_prob`: what a training loop, or torch's parallel wrappers, call."""
        return self.log_prob(x, context)

    def start(
        self,
        x: Tensor,
        context: Tensor | None = None,
        weight: Tensor | None = None,
        stop: Stop | None = None,
    ) -> None:
        """Fit the parts that are not trained, Gaussians and their mixtures, to rows ``(N, D)``.

        :param weight: of the rows, ``(N,)``; 1 by default.
        :param stop: asked between a mixture's steps whether the time is over.
        """
        for layer in self.layers:
            start = getattr(layer, "start", None)
            if start is not None:
                start(x, context, weight)
        if isinstance(self.base, GaussianMixture):
            self.base.start(self._through(x, context)[0], weight, stop)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density ``(...)`` of x ``(..., D)`` given the context ``(..., C)``.

        It is minus infinity where x is infinite. Where x is NaN, it is the log-density of the other
        dimensions, if that is a closed form, and else NaN.

        :raises NotImplementedError: where that needs an inverse which the layers do not have.
        """
        if self.sampling and self.no_inverse is not None:
            raise NotImplementedError(self.no_inverse)
        if self.holes and context is not None:
            x = torch.where(holes.present(x, context, self.holes), x, 0.0)
        value = self._log_prob(torch.where(x.isfinite(), x, 0.0), context)
        # So far out that squares and exponentials overflow, their difference is NaN.
        far = (x.abs() > FAR).any(-1)
        value = torch.where(x.isinf().any(-1) | (far & value.isnan()), -torch.inf, value)
        gaps, parts = x.isnan().any(-1), self.closed_form()
        if parts is None or not gaps.any():
            return torch.where(gaps, torch.nan, value)
        seen = closed_form.log_prob(parts, x[gaps].double()).to(value)
        return value.masked_scatter(gaps & ~x.isinf().any(-1), seen[~x[gaps].isinf().any(-1)])

    def closed_form(self) -> list[closed_form.Part] | None:
        """Return the density by Gaussians, with closed forms for marginals; None if it has none.

        >>> from pyro_naf.density.architectures import build
        >>> len(build("gmm-3", 2).closed_form()), build("maf-dsf-1", 2).closed_form()
        (1, None)
        """
        layer = self.layers[0] if len(self.layers) else None
        if len(self.layers) > 1 or self.sampling:
            return None
        if isinstance(self.base, GaussianMixture) and isinstance(layer, NormalScores | None):
            return [closed_form.Part(0.0, layer, self.base.gaussians)]
        if isinstance(self.base, StandardNormal) and isinstance(layer, Whitening):
            return [closed_form.Part(0.0, None, layer.gaussians)]
        return None

    def _log_prob(self, x: Tensor, context: Tensor | None) -> Tensor:
        if self.sampling:
            return self.distribution(context).log_prob(x)
        if self.holes and context is not None:
            assert isinstance(self.base, StandardNormal | Student)
            here = holes.present(x, context, self.holes)
            return holes.log_prob(list(self._conditioned(context)), self.base, x, here)
        x, log_det = self._through(x, context)
        return self.base.log_prob(x, context) + log_det

    def rsample_and_log_prob(self, n: int, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """n draws ``(n, ..., D)`` and their log-density ``(n, ...)``, both with gradients."""
        z = self.base.distribution(context).rsample([n])
        if self.sampling:
            x, log_det = self._through(z, context)
            return x, self.base.log_prob(z, context) - log_det
        x = self._draw(z, context)
        return x, self.log_prob(x, context)

    def rsample(self, n: int, context: Tensor | None = None) -> Tensor:
        """n draws ``(n, ..., D)``.

        :raises NotImplementedError: where that needs an inverse which the layers do not have.
        """
        return self._draw(self.base.distribution(context).rsample([n]), context)

    def distribution(self, context: Tensor | None = None) -> dist.TransformedDistribution:
        """Return the density as a Pyro distribution with batch shape ``(...)`` of the context."""
        layers = list(self._conditioned(context))
        transforms = layers if self.sampling else [layer.inv for layer in reversed(layers)]
        return dist.TransformedDistribution(self.base.distribution(context), transforms)

    def _draw(self, z: Tensor, context: Tensor | None) -> Tensor:
        if self.sampling:
            return self._through(z, context)[0]
        if self.no_inverse is not None:
            raise NotImplementedError(self.no_inverse)
        if self.holes and context is not None:
            return holes.drawn(list(self.layers), z, context, self.holes)
        for layer in reversed(list(self._conditioned(context))):
            z = layer.inv(z)
        return z

    def _through(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """All layers, past their caches: value and log-determinant."""
        total: Tensor | None = None
        for layer in self._conditioned(context):
            if isinstance(layer, AutoregressiveFlow):
                x, log_slope = layer.value_and_log_slope(x)
                log_det = log_slope.sum(-1)
            else:
                # A new tensor: Pyro's own layers remember by identity, past optimiser steps.
                x = x.view_as(x)
                y = layer(x)
                x, log_det = y, layer.log_abs_det_jacobian(x, y)
            total = log_det if total is None else total + log_det
        return x, x.new_zeros(x.shape[:-1]) if total is None else total

    def _conditioned(self, context: Tensor | None) -> Iterator[Transform]:
        for layer in self.layers:
            made = layer.condition(context) if isinstance(layer, ConditionalTransform) else layer
            yield cast(Transform, made)
