"""Latents that an autoguide cannot treat by its first run: idle elements, dependent supports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ..guides.pyro_internals import without_start
from .joint import Joint
from .quantiles import sorted_quantiles
from .sites import Latents, Site, masked_out, may_depend, standard_normal


@dataclass
class SpecialSites:
    """Sites of a guide's model that need care at every run.

    Elements behind a mask that no density depends on (the observed half of ``obs_mask``) would let
    a flow run away along them: to the ELBO a standard normal density is added there. Supports that
    depend on other latents, as that of ``Uniform(0, b)``, are found by running the model.

    :ivar sites: all sites, or none where no site is special.
    """

    sites: dict[str, Site] = field(default_factory=dict)

    @classmethod
    def of(cls, guide: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> SpecialSites:
        """The special sites of an autoguide that has run its model once.

        :raises ValueError: for a guide with a context, when the support of a latent depends on
            another.
        """
        prototypes = [site for _, site in guide.prototype_trace.iter_stochastic_nodes()]
        masked = any(bool(masked_out(site).any()) for site in prototypes)
        if not masked and not any(may_depend(site["fn"].support) for site in prototypes):
            return cls()
        try:
            joint = Joint(guide.model, args, kwargs)
        except (NotImplementedError, RuntimeError, ValueError):  # a simulator, for ForwardKL
            return cls()
        dependent = [name for name, site in joint.sites.items() if site.transform is None]
        if dependent and guide.context_dim:
            raise ValueError(
                f"the support of {dependent} depends on other latents, which a guide with a "
                "context_fn cannot follow; write x = lower + (upper - lower) * fraction with a "
                "latent fraction in (0, 1)"
            )
        idle = any(site.idle is not None for site in joint.sites.values())
        return cls(joint.sites) if dependent or idle else cls()

    def __bool__(self) -> bool:
        return bool(self.sites)

    @property
    def dependent(self) -> list[str]:
        """Sites whose support depends on other latents."""
        return [name for name, site in self.sites.items() if site.transform is None]

    def deltas(
        self, free: Mapping[str, Tensor], guide: Any, args: tuple[Any, ...], kwargs: Any
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Constrained values of unconstrained ones, and what log q gains by the map.

        Shapes: ``(..., *site shape)`` and ``(..., *batch shape)``.
        """
        transforms = self._transforms(free, guide, args, kwargs)
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
        self, free: Mapping[str, Tensor], guide: Any, args: tuple[Any, ...], kwargs: Any
    ) -> dict[str, Any]:
        if not self.dependent:
            return {name: site.transform for name, site in self.sites.items()}
        if guide._model is None:
            raise RuntimeError(
                f"the support of {self.dependent} depends on other latents: a guide that was "
                "pickled, and so has lost its model, cannot draw them"
            )
        latents = Latents(self.sites, free)
        with poutine.block(), pyro.validation_enabled(False):
            latents(without_start(guide.model))(*args, **kwargs)
        return latents.transforms

    def refuse_log_prob(self) -> None:
        """Raises NotImplementedError where the unconstrained values cannot be told."""
        if self.dependent:
            raise NotImplementedError(
                f"the support of {self.dependent} depends on other latents: log_prob is not known "
                "for such a guide; importance_diagnostics weights its draws"
            )

    def quantiles(
        self, latents: Tensor, levels: Tensor, guide: Any, args: tuple[Any, ...], kwargs: Any
    ) -> dict[str, Tensor]:
        """Marginal quantiles of the sites with dependent supports, from latent vectors."""
        values = Joint(guide.model, args, kwargs).constrained(latents)
        return {
            name: sorted_quantiles(values[name].reshape(len(latents), -1), levels).reshape(
                -1, *self.sites[name].shape
            )
            for name in self.dependent
        }
