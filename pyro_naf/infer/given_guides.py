"""Gaussian guides of Pyro's that are given: their model's density, and their mean and factor."""

from __future__ import annotations

import torch
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuide,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import biject_to

from ..guides.angles import PERIODIC, OnePeriod
from ..guides.pyro_internals import without_block, without_start
from ..support.calls import Args
from .joint import Joint
from .laplace import cholesky
from .path_gradient import peel


def fitted_gaussian(guide: object, *args: object, **kwargs: object) -> AutoGuide:
    """Check that the guide was fitted; of a Laplace guide, the Gaussian at its mode."""
    if not isinstance(guide, AutoGuide) or getattr(guide, "_model", None) is None:
        raise TypeError(f"guide must be a fitted Gaussian autoguide, got {guide!r}")
    if guide.prototype_trace is None:
        raise ValueError(f"guide must be fitted first: this {type(guide).__name__} was never run")
    if not isinstance(guide, AutoLaplaceApproximation):
        return guide
    try:
        return guide.laplace_approximation(*args, **kwargs)
    except torch.linalg.LinAlgError as error:
        raise ValueError(
            "guide must be an AutoLaplaceApproximation at a mode, but the Hessian is not positive "
            f"definite where this one is; train it for longer ({error})"
        ) from None


def density_of_guide(guide: AutoGuide, args: Args, kwargs: dict[str, object]) -> Joint:
    """Make the joint density of a guide's model, with blocked discrete latents summed out.

    A model whose continuous latents are blocked is taken as it is: it draws them from their prior.
    """
    inner = without_block(guide.model)
    if inner is not without_start(guide.model):
        joint = Joint(inner, args, kwargs)
        trace: Trace = guide.prototype_trace
        if joint.sites.keys() == {name for name, _ in trace.iter_stochastic_nodes()}:
            return joint
    return Joint(guide.model, args, kwargs)


def affine_in_order(joint: Joint, guide: AutoGuide) -> tuple[Tensor, Tensor]:
    """Return :func:`affine_of` a guide, with entries in the order of the joint density."""
    loc, factor = affine_of(guide)
    trace: Trace = guide.prototype_trace
    places, start = {}, 0
    for name, site in trace.iter_stochastic_nodes():
        size = biject_to(site["fn"].support).inv(site["value"]).numel()
        places[name] = torch.arange(start, start + size)
        if isinstance(peel(site["fn"])[0], PERIODIC):
            loc, factor = _on_one_period(OnePeriod(site["fn"]), places[name], loc, factor)
        start += size
    if places.keys() != joint.sites.keys() or start != joint.dim:
        raise ValueError(
            f"the guide was fitted to the latents {sorted(places)} of {start} entries, the model "
            f"has {sorted(joint.sites)} of {joint.dim}; fit it again"
        )
    order = torch.cat([places[name] for name in joint.sites]).to(loc.device)
    if torch.equal(order, torch.arange(start, device=loc.device)):
        return loc, factor
    if factor.dim() == 1:
        return loc[order], factor[order]
    (factor,) = cholesky((factor @ factor.T)[order][:, order][None])
    return loc[order], factor


def _on_one_period(
    fn: OnePeriod, places: Tensor, loc: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Transform a Gaussian of angles on the real line to the unconstrained values of one period."""
    transform, angles = biject_to(fn.support), loc[places].reshape(fn.shape())
    free = transform.inv(fn.turned(angles))
    slope = torch.ones_like(loc)
    slope[places] = transform.log_abs_det_jacobian(free, angles).exp().reshape(-1)
    loc = loc.index_copy(0, places, free.reshape(-1))
    return loc, factor / slope.reshape(-1, *[1] * (factor.dim() - 1))


@torch.no_grad()
def affine_of(guide: AutoGuide) -> tuple[Tensor, Tensor]:
    """Return a Gaussian guide's loc ``(D,)``, and its scale ``(D,)`` or lower factor ``(D, D)``."""
    if isinstance(guide, AutoNormal):
        trace: Trace = guide.prototype_trace
        names = [name for name, _ in trace.iter_stochastic_nodes()]
        pairs: list[tuple[Tensor, Tensor]] = [guide._get_loc_and_scale(name) for name in names]
        loc, scale = (torch.cat([t.reshape(-1) for t in ts]) for ts in zip(*pairs, strict=True))
        return loc.clone(), scale.clone()
    if isinstance(guide, AutoDiagonalNormal):
        loc, scale = guide._loc_scale()
        return loc.clone(), scale.clone()
    if isinstance(guide, AutoMultivariateNormal):
        posterior = guide.get_posterior()
        return posterior.mean.clone(), posterior.scale_tril.clone()
    if isinstance(guide, AutoLowRankMultivariateNormal):
        posterior = guide.get_posterior()
        return posterior.mean.clone(), torch.linalg.cholesky(posterior.covariance_matrix)
    raise TypeError(
        "guide must be an AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal, "
        f"AutoLowRankMultivariateNormal or AutoLaplaceApproximation, got {type(guide).__name__}"
    )
