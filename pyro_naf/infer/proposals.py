"""Draws of guides and Gaussians, and the log-weights that a joint density gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoContinuous, AutoLaplaceApproximation
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ..guides.flat_priors import FlatPriors
from ..guides.pyro_internals import unconstrained_values
from ..guides.sites import batch_depth, latent_sites
from ..support.calls import Args, Kwargs, Model
from ..support.checks import check_callable
from .joint import Joint
from .lanes import Batched, Values, one_by_one, vmapped_with_help
from .laplace import Gaussian


class Weighted(NamedTuple):
    """Draws, site to constrained values ``(N, *shape)``, and their log-weights ``(N,)``."""

    values: dict[str, Tensor]
    log_weights: Tensor


class Proposal(Protocol):
    """Draws that a joint density weights."""

    joint: Joint

    def draw(self, count: int) -> Weighted:
        """Draw ``count`` times, and weight the draws."""


class GaussianProposal:
    """Draws of a Gaussian on the unconstrained latents, weighted by a joint density."""

    def __init__(self, joint: Joint, gaussian: Gaussian) -> None:
        self.joint, self.gaussian = joint, gaussian

    @torch.no_grad()
    def draw(self, count: int) -> Weighted:
        """Draw ``count`` times, and weight the draws."""
        u = self.gaussian.draw(torch.randn(count, self.joint.dim).to(self.gaussian.loc))
        log_weights = self.joint(u).double() - self.gaussian.log_prob(u).double()
        return Weighted(self.joint.constrained(u), log_weights)


class GuideProposal:
    """Draws of a guide, weighted by a joint density.

    An autoguide with a posterior on the unconstrained latents is drawn in one batch. Any other
    guide is run for one draw, and :func:`torch.vmap` makes the batch; where it cannot, one draw
    follows another.

    :param joint: the joint density.
    :param guide: a guide for its latents.
    :param args: the guide's arguments, as are ``kwargs``.
    :raises TypeError: for a guide that cannot be called.
    :raises ValueError: when the guide does not draw the latents of the joint density in their
        shapes, naming them.
    """

    def __init__(
        self,
        joint: Joint,
        guide: Model,
        args: Args,
        kwargs: Kwargs,
    ) -> None:
        check_callable(guide=(guide, "a guide of Pyro, called with the model's arguments"))
        self.joint, self.guide, self.args, self.kwargs = joint, guide, args, kwargs
        with torch.no_grad(), poutine.block(), FlatPriors():
            self.trace = self._trace()
        _check_sites(joint, self.trace)
        # A draw is written into an empty tensor.
        self._over_lanes: Callable[[Callable[[Values], object]], Batched] = vmapped_with_help
        self.draw = self._from_traces
        if isinstance(guide, AutoContinuous) and not isinstance(guide, AutoLaplaceApproximation):
            self.draw = self._from_posterior

    @torch.no_grad()
    def _from_posterior(self, count: int) -> Weighted:
        guide = self.guide
        assert isinstance(guide, AutoContinuous)
        with poutine.block():
            posterior = guide.get_posterior(*self.args, **self.kwargs)
        u = posterior.sample((count,))
        log_q = posterior.log_prob(u).reshape(count, -1).sum(-1)
        free = unconstrained_values(guide, u, batch_depth(self.trace))
        packed = torch.cat([free[name] for name in self.joint.sites], -1)
        log_weights = self.joint(packed).double() - log_q.double()
        return Weighted(self.joint.constrained(packed), log_weights)

    @torch.no_grad()
    def _from_traces(self, count: int) -> Weighted:
        def one(_: object) -> tuple[dict[str, Tensor], Tensor]:
            # Validation branches on data, which vmap cannot.
            with poutine.block(), pyro.validation_enabled(False):
                trace = self._trace()
                log_q = torch.as_tensor(trace.log_prob_sum())
            return {name: trace.nodes[name]["value"] for name in self.joint.sites}, log_q

        lanes = {"lane": torch.zeros(count)}
        try:
            values, log_q = self._over_lanes(one)(lanes)
        except Exception:  # noqa: BLE001 - what vmap cannot do, single runs can
            self._over_lanes = one_by_one
            values, log_q = self._over_lanes(one)(lanes)
        return Weighted(values, self.joint.log_prob(values).double() - log_q.double())

    def _trace(self) -> Trace:
        guide = poutine.unwrap(self.guide)
        if isinstance(guide, poutine.messenger.Messenger):  # it runs the model itself
            self.guide(*self.args, **self.kwargs)
            return guide.get_traces()[1]
        return poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)


def _check_sites(joint: Joint, trace: Trace) -> None:
    """Raise ValueError when a guide does not draw the latents of a joint density."""
    theirs = {
        name: site["value"].shape
        for name, site in latent_sites(trace).items()
        if not site["infer"].get("is_auxiliary")
    }
    ours = {name: site.shape for name, site in joint.sites.items()}
    if foreign := theirs.keys() - ours.keys():
        raise ValueError(
            f"the guide draws {sorted(foreign)}, which are no continuous latents of the model (its "
            f"latents are {sorted(ours)}): it is a guide for another model"
        )
    if missing := ours.keys() - theirs.keys():
        raise ValueError(
            f"the guide does not draw {sorted(missing)}, which the model does: weights need a "
            "guide for all of its latents, such as an AutoGuideList"
        )
    for name, shape in ours.items():
        if shape != theirs[name]:
            raise ValueError(
                f"the guide draws {name!r} with shape {tuple(theirs[name])}, the model with "
                f"{tuple(shape)}: it is a guide for another model, or for data of another size, "
                "which need a new guide or, without fitting again, one with a context_fn"
            )
