"""Latent sites of a model: their place in the vector of latents, and a handler that sets them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions import Delta
from pyro.infer.autoguide.utils import helpful_support_errors
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import Message
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import biject_to
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import Transform

from .angles import PERIODIC, OnePeriod
from .pyro_internals import is_subsample
from .wrapping import peel


@dataclass(frozen=True)
class Site:
    """A continuous latent site and its place in the vector u.

    :ivar shape: shape of the constrained value.
    :ivar free_shape: shape of the unconstrained value.
    :ivar event_dim: number of dimensions of one event of the constrained value.
    :ivar start: index of its first entry in u.
    :ivar dtype: dtype of the constrained value.
    :ivar transform: from unconstrained to constrained; None where it depends on other latents.
    :ivar idle: elements of the batch shape that no density depends on; None where there are none.
    """

    name: str
    shape: torch.Size
    free_shape: torch.Size
    event_dim: int
    start: int
    dtype: torch.dtype
    transform: Any
    idle: Tensor | None = None

    @property
    def size(self) -> int:
        """Number of entries in u."""
        return self.free_shape.numel()

    @property
    def batch_dim(self) -> int:
        """Number of dimensions of the batch shape."""
        return len(self.shape) - self.event_dim


class Latents(Messenger):
    """Handler that gives latent sites their values, with the support that each has in this run.

    :param sites: the sites by name.
    :param given: site to unconstrained (or ``constrained``) value.
    :param elements: plate to the indices of its subsample, for latents inside that plate.
    :ivar values: site to constrained value, after the run.
    :ivar transforms: site to the transform of this run.
    :ivar log_det: log-determinant of the map from unconstrained to constrained values; for idle
        elements a standard normal log-density instead.
    """

    def __init__(
        self,
        sites: Mapping[str, Site],
        given: Mapping[str, Tensor],
        *,
        constrained: bool = False,
        elements: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.sites, self.given, self.constrained = sites, given, constrained
        self.elements = elements or {}
        self.values: dict[str, Tensor] = {}
        self.transforms: dict[str, Transform] = {}
        self.log_det: Tensor | float = 0.0

    def _pyro_sample(self, msg: Message) -> None:
        """Pyro calls this at every sample statement, from the innermost handler outwards."""
        site = self.sites.get(msg["name"])
        if site is None or msg["is_observed"] or msg["done"]:
            return
        transform = self.transforms[site.name] = biject_to(msg["fn"].support)
        given, scale = self._subsample(msg, site)
        if self.constrained:
            value = given
            if site.idle is not None:
                free = transform.inv(value)
                log_det = -transform.log_abs_det_jacobian(free, value)
                log_det = torch.where(site.idle, standard_normal(free, site) + log_det, 0.0)
                self.log_det = self.log_det + scale * log_det.sum()
        else:
            value = transform(given.to(site.dtype))
            log_det = transform.log_abs_det_jacobian(given, value)
            if site.idle is not None:
                log_det = torch.where(site.idle, standard_normal(given, site), log_det)
            self.log_det = self.log_det + scale * log_det.sum()
        self.values[site.name] = msg["value"] = value
        msg["done"] = True

    def _subsample(self, msg: Message, site: Site) -> tuple[Tensor, float]:
        """Return the elements of the site's value that this run has, and how often each counts."""
        given, scale = self.given[site.name], 1.0
        for frame in msg["cond_indep_stack"]:
            if frame.name in self.elements and frame.dim is not None:
                indices = self.elements[frame.name]
                given = given.index_select(site.batch_dim + frame.dim, indices)
                scale *= frame.full_size / len(indices)
        return given, scale


def standard_normal(free: Tensor, site: Site) -> Tensor:
    """Evaluate the standard normal log-density of each unconstrained value ``(..., shape)``."""
    squares = free.square() + math.log(2 * math.pi)
    batch_dim = free.dim() - len(site.free_shape) + site.batch_dim
    return -0.5 * squares.reshape(*squares.shape[:batch_dim], -1).sum(-1)


class VectorizedPlates(Messenger):
    """Handler that hides sequential plates, which autoguides do not know, from its surroundings."""

    def _pyro_sample(self, msg: Message) -> None:
        msg["cond_indep_stack"] = tuple(f for f in msg["cond_indep_stack"] if f.vectorized)


class Angles(Messenger):
    """Handler that keeps latent angles on one period."""

    def _pyro_sample(self, msg: Message) -> None:
        if not msg["is_observed"] and isinstance(peel(msg["fn"])[0], PERIODIC):
            msg["fn"] = OnePeriod(msg["fn"])


class Deltas(Messenger):
    """Handler that makes a latent whose value a Delta fixes deterministic: it has no density."""

    def _pyro_sample(self, msg: Message) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or msg["value"] is not None or not isinstance(peel(fn)[0], Delta):
            return
        msg["value"], msg["is_observed"] = fn.rsample(), True
        msg["infer"]["_deterministic"] = True


def sample_sites(trace: Trace) -> Iterator[tuple[str, Message]]:
    """Name and site of all sample statements of a trace, plates' choices left out."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not is_subsample(site):
            yield name, site


def latent_sites(trace: Trace) -> dict[str, Message]:
    """Sample sites that are not observed, by name."""
    return {name: site for name, site in sample_sites(trace) if not site["is_observed"]}


def find_sites(trace: Trace) -> dict[str, Site]:
    """Return the continuous latent sites of a trace, in their order in u."""
    sites: dict[str, Site] = {}
    start = 0
    for name, site in latent_sites(trace).items():
        fn, value = site["fn"], site["value"]
        if fn.support.is_discrete:
            continue
        with _named(site):
            transform = biject_to(fn.support)
            free_shape = transform.inv(value).shape
        sites[name] = Site(
            name, value.shape, free_shape, fn.event_dim, start, value.dtype, transform
        )
        start += free_shape.numel()
    return sites


def split(u: Tensor, sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """Unconstrained values of the sites from points ``(..., D)``."""
    parts = u.split([site.size for site in sites.values()], -1)
    return {
        name: part.reshape(u.shape[:-1] + site.free_shape)
        for (name, site), part in zip(sites.items(), parts, strict=True)
    }


@contextmanager
def _named(site: Message) -> Iterator[None]:
    """Errors about a support that has no bijection name the site, and what to write instead."""
    try:
        with helpful_support_errors(site):
            yield
    except NotImplementedError as error:
        if repr(site["name"]) in str(error):
            raise
        raise NotImplementedError(
            f"latent {site['name']!r} has the support {site['fn'].support}, to which torch knows "
            "no bijection from the real numbers; write it by latents that have one, as a "
            "covariance matrix by LKJCholesky and standard deviations"
        ) from error


def site_log_probs(trace: Trace) -> dict[str, Tensor]:
    """Log-density of every sample site of a trace, by name."""
    with pyro.validation_enabled(False):
        trace.compute_log_prob()
    return {name: site["log_prob"] for name, site in sample_sites(trace)}


def plate_nesting(trace: Trace) -> int:
    """Count the dimensions, from the right, that the plates of a trace use."""
    frames = [frame for _, site in sample_sites(trace) for frame in site["cond_indep_stack"]]
    return max((-frame.dim for frame in frames if frame.dim is not None), default=0)


def batch_depth(trace: Trace) -> int:
    """Count the dimensions, from the right, of the batch shapes of latents, plates or not."""
    latents = latent_sites(trace).values()
    depths = [site["value"].dim() - site["fn"].event_dim for site in latents]
    return max([plate_nesting(trace), *depths])


def may_depend(support: Constraint) -> bool:
    """Whether a constraint holds tensors, and so may depend on other latents."""
    parts = list(vars(support).values())
    return any(
        isinstance(part, Tensor) or (isinstance(part, Constraint) and may_depend(part))
        for part in parts
    )


def masked_out(site: Message) -> Tensor:
    """Elements of a site's batch shape whose own log-density a mask leaves out, boolean."""
    mask = peel(site["fn"])[1]
    if isinstance(mask, Tensor) and site["fn"].event_dim:
        # A mask below to_event leaves out a part of an event.
        mask = mask.flatten(len(site["fn"].batch_shape)).any(-1)
    if site["mask"] is not None:
        mask = mask & site["mask"]
    shape = site["value"].shape[: site["value"].dim() - site["fn"].event_dim]
    return ~torch.as_tensor(mask).expand(shape)
