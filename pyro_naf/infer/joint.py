"""The joint log-density of a model at many points at once, in a guide's unconstrained space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
from pyro import poutine
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to


class Joint:
    r""":math:`\log p(x, z(u)) + \log|\det \partial z/\partial u|` of latent vectors u.

    Where the density is not finite, or an argument of it no longer valid, that is what is returned:
    validation is off.

    :param model: a model, vectorised over particles by plates.
    :param guide: a guide that was run, for where the sites lie in u and how they are constrained.
    :param nesting: the depth of the deepest plate.

    Shapes: u ``(N, D)``, or ``(N, *rows, D)`` with the rows of a guide's context; result ``(N,)``.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: AutoContinuous,
        nesting: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.model, self.guide, self.nesting = model, guide, nesting
        self.args, self.kwargs = args, kwargs

    def __call__(self, u: Tensor) -> Tensor:
        total = u.new_zeros(len(u))
        point = {}
        for name, transform, free in self._sites(u):
            value = point[name] = transform(free)
            log_det = transform.log_abs_det_jacobian(free, value)
            total = total + log_det.reshape(len(u), -1).sum(-1)
        plate = pyro.plate("_points", len(u), dim=-self.nesting - 1)
        with poutine.block(), pyro.validation_enabled(False), plate:
            conditioned = poutine.condition(self.model, data=point)
            trace = poutine.trace(conditioned).get_trace(*self.args, **self.kwargs)
            trace.compute_log_prob()
        for site in prune_subsample_sites(trace).nodes.values():
            if "log_prob" in site:
                total = total + site["log_prob"].reshape(len(u), -1).sum(-1)
        return total

    def constrained(self, u: Tensor) -> dict[str, Tensor]:
        """The sites' values at u: axes of length one may stand between N and a site's shape."""
        return {name: transform(free) for name, transform, free in self._sites(u)}

    def _sites(self, u: Tensor) -> Iterator[tuple[str, Any, Tensor]]:
        between = [1] * (self.nesting + 2 - u.dim())
        aligned = u.reshape(len(u), *between, *u.shape[1:])
        for site, free in self.guide._unpack_latent(aligned):
            yield site["name"], biject_to(site["fn"].support), free
