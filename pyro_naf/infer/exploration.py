"""What a few runs of a model tell: what cannot be sampled, its supports, the way to a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ..guides.pyro_internals import log_prob_sum
from ..guides.sites import Latents, Site, find_sites, masked_out, sample_sites, split
from ..support.calls import Args, Kwargs
from .lanes import REFUSALS, RUNGS, Values
from .runs import Runs

#: Largest number of points that are evaluated at once, and of the model's numbers that they hold
#: together.
_CHUNK, _CHUNK_NUMBERS = 1000, 2**24


def points_near(start: Tensor, *scales: float) -> Tensor:
    """Points at these distances from the start, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(scales), len(start), generator=generator).to(start)
    return start + torch.tensor(scales).to(noise)[:, None] * noise


def chunk_size(trace: Trace) -> int:
    """How many points may be evaluated at once, by the numbers that one run holds."""
    values = [site["value"] for _, site in sample_sites(trace)]
    numbers = sum(2 * value.numel() for value in values if isinstance(value, Tensor))
    return max(1, min(_CHUNK, _CHUNK_NUMBERS // max(numbers, 1)))


def refuse_iterators(args: Args, kwargs: Kwargs) -> None:
    """Look for arguments that the first run of the model would use up.

    :raises ValueError: when there is one.
    """
    for name, value in [*enumerate(args), *kwargs.items()]:
        if isinstance(value, Iterator):
            raise ValueError(
                f"argument {name!r} of the model is a {type(value).__name__}, which the model's "
                "first run uses up, so that later runs have no data; give list(...) of it"
            )


def refuse_given_subsamples(trace: Trace) -> None:
    """Look for plates whose subsample is given from outside.

    :raises ValueError: when there is one.
    """
    for name, site in sample_sites(trace):
        for frame in site["cond_indep_stack"]:
            if frame.full_size is not None and frame.full_size != frame.size:
                raise ValueError(
                    f"site {name!r} lies in plate {frame.name!r}, which has {frame.size} of "
                    f"{frame.full_size} elements because its subsample is given from outside; "
                    "give the model the whole data, and let the plate choose "
                    "(subsample_size=...)"
                )


def refuse_nan(trace: Trace) -> None:
    """Look for NaN in the data.

    :raises ValueError: when there are some.
    """
    for name, site in sample_sites(trace):
        value = site["value"]
        if not site["is_observed"] or site["infer"].get("_deterministic"):
            continue
        if isinstance(value, Tensor) and (bad := int(value.isnan().sum())):
            raise ValueError(
                f"the data of site {name!r} holds NaN in {bad} of {value.numel()} places; "
                "leave them out, or put any number there and mask it, by obs_mask or "
                "poutine.mask (behind a mask NaN would still spoil the gradient)"
            )


def refuse_changing_shapes(runs: Runs, sites: Mapping[str, Site]) -> None:
    """Look for latents that another run has in another shape.

    :raises ValueError: when there are some.
    """
    known = {name: site.shape for name, site in sites.items()}
    try:
        trace = runs.attempt(init_to_sample)
    except (NotImplementedError, *REFUSALS):  # a prior that cannot be sampled
        return
    found = {name: site.shape for name, site in find_sites(trace).items()}
    if changed := [n for n in known | found if known.get(n) != found.get(n)]:
        raise ValueError(
            f"latents must have a fixed shape, but that of {changed} changes from one run to "
            "the next; pad them, and mask"
        )


def with_dependent_supports(
    runs: Runs, sites: Mapping[str, Site], start: Tensor
) -> dict[str, Site]:
    """Drop the transforms of sites whose support changes with other latents."""
    found = dict(sites)
    for point in points_near(start, 0.1, 0.5, 0.01):
        latents = Latents(sites, split(point, sites))
        try:
            with torch.no_grad():
                runs.run(latents)
        except REFUSALS:
            continue
        for name, transform in latents.transforms.items():
            site = sites[name]
            probe = torch.full(site.free_shape, 0.3).to(start)
            if not torch.equal(transform(probe), site.transform(probe)):
                found[name] = replace(site, transform=None)
    return found


def with_idle(
    runs: Runs, sites: Mapping[str, Site], start: Tensor, trace: Trace
) -> dict[str, Site]:
    """Mark the elements of sites behind a mask of their own that no density depends on.

    :param trace: of a run at the start.
    """
    masks = {name: masked_out(trace.nodes[name]) for name in sites}
    found = dict(sites)
    if not any(bool(mask.any()) for mask in masks.values()):
        return found
    used = torch.zeros_like(start, dtype=torch.bool)
    for point in points_near(start, 0.1, 0.5, 1.0):
        free = point.requires_grad_()
        log_p = log_prob_sum(runs.run(Latents(sites, split(free, sites))), runs.nesting)
        if log_p.requires_grad:
            (grad,) = torch.autograd.grad(log_p, free, materialize_grads=True)
            used |= grad != 0
    for name, in_use in split(used, sites).items():
        site = sites[name]
        in_use = in_use.reshape(*in_use.shape[: site.batch_dim], -1).any(-1)
        idle = masks[name].to(in_use.device) & ~in_use
        if bool(idle.any()):
            found[name] = replace(site, idle=idle)
    return found


def find_rung(
    log_density: Callable[[Values], Tensor], sites: Mapping[str, Site], start: Tensor
) -> str:
    """Find the fastest way to a batch that agrees with single runs at two points."""
    points = points_near(start, 0.0, 0.01)
    *faster, slowest = RUNGS
    truth, again = (RUNGS[slowest](log_density)(split(points, sites)) for _ in range(2))
    repeats = torch.equal(truth.nan_to_num(), again.nan_to_num())
    if not repeats:
        warnings.warn(
            "the model's log-density changes from run to run at the same latents: it draws "
            "random numbers that are no latents, as a blocked site or dropout does",
            stacklevel=5,
        )
    for rung in faster:
        u = points.clone().requires_grad_()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = RUNGS[rung](log_density)(split(u, sites))
                torch.autograd.grad(found.sum(), u, allow_unused=True)
        except Exception:  # noqa: BLE001 - what vmap cannot do, single runs can
            continue
        if not repeats or torch.allclose(found, truth, rtol=1e-3, atol=1e-3, equal_nan=True):
            return rung
    return slowest
