"""Latents that an autoguide cannot treat by its first run: idle elements, dependent supports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import pyro
import torch
from pyro import poutine
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions.transforms import Transform

from ..support.calls import Args, Kwargs, Model
from .pyro_internals import without_start
from .quantiles import sorted_quantiles
from .sites import Latents, Site, masked_out, may_depend, standard_normal


class JointDensity(Protocol):
    """The joint log-density of a model, as :class:`~pyro_naf.infer.joint.Joint` is one."""

    @property
    def sites(self) -> Mapping[str, Site]:
        """The continuous latent sites, by name."""

    def __call__(self, u: Tensor) -> Tensor:
        """Log-density ``(N,)`` of unconstrained latents ``(N, D)``."""

    def constrained(self, u: Tensor) -> dict[str, Tensor]:
        """Values of the sites at unconstrained latents."""


@dataclass
class SpecialSites:
    """Sites of a guide's model that need care at every run.

    Elements behind a mask that no density depends on (the observed half of ``obs_mask``) would let
    a flow run away along them: to the ELBO a standard normal density is added there. Supports that
    depend on other latents, as in ``Uniform(0, b)``, are found by running the model.

    :ivar sites: all sites, or none where no site is special.
    """

    sites: dict[str, Site] = field(default_factory=dict)

    @classmethod
    def of(cls, prototypes: Iterable[Message], joint: Callable[[], JointDensity]) -> SpecialSites:
        """Return the special sites of a model that was run once.

        :param prototypes: the latent sites of that run.
        :param joint: called for the model's joint density, where there may be special sites.
        """
        prototypes = list(prototypes)
        masked = any(bool(masked_out(site).any()) for site in prototypes)
        if not masked and not any(may_depend(site["fn"].support) for site in prototypes):
            return cls()
        try:
            sites = dict(joint().sites)
        except (NotImplementedError, RuntimeError, ValueError):  # a simulator, for ForwardKL
            return cls()
        special = any(site.transform is None or site.idle is not None for site in sites.values())
        return cls(sites) if special else cls()

    def __bool__(self) -> bool:
        return bool(self.sites)

    @property
    def dependent(self) -> list[str]:
        """Sites whose support depends on other latents."""
        return [name for name, site in self.sites.items() if site.transform is None]

    def deltas(
        self,
        free: Mapping[str, Tensor],
        model: Model | None,
        args: Args,
        kwargs: Kwargs,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Constrained values of unconstrained ones, and what log q gains by the map.

        Shapes: ``(..., *site shape)`` and ``(..., *batch shape)``.

        :param model: None for a guide that has lost its model.
        :raises RuntimeError: without a model, when a support depends on other latents.
        """
        transforms = self._transforms(free, model, args, kwargs)
        found = {}
        for name, site in self.sites.items():
            value = transforms[name](free[name])
            log_density = -transforms[name].log_abs_det_jacobian(free[name], value)
            if site.idle is not None:
                normal = standard_normal(free[name], site)
                log_density = torch.where(site.idle, -normal, log_density)
            found[name] = value, log_density
        return found

    def _transforms(
        self,
        free: Mapping[str, Tensor],
        model: Model | None,
        args: Args,
        kwargs: Kwargs,
    ) -> dict[str, Transform]:
        if not self.dependent:
            return {name: site.transform for name, site in self.sites.items()}
        if model is None:
            raise RuntimeError(
                f"the support of {self.dependent} depends on other latents: a guide that was "
                "pickled, and so has lost its model, cannot draw them"
            )
        latents = Latents(self.sites, free)
        with poutine.block(), pyro.validation_enabled(False):
            latents(without_start(model))(*args, **kwargs)
        return latents.transforms

    def refuse_log_prob(self) -> None:
        """Raise NotImplementedError where the unconstrained values cannot be told."""
        if self.dependent:
            raise NotImplementedError(
                f"the support of {self.dependent} depends on other latents: log_prob is not known "
                "for such a guide; importance_diagnostics weights its draws"
            )

    def quantiles(self, values: Mapping[str, Tensor], levels: Tensor) -> dict[str, Tensor]:
        """Marginal quantiles of the sites with dependent supports, from draws ``(N, ...)``."""
        return {
            name: sorted_quantiles(values[name].reshape(len(values[name]), -1), levels).reshape(
                -1, *self.sites[name].shape
            )
            for name in self.dependent
        }
