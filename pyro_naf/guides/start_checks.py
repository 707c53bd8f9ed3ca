"""What is wrong with a model where a guide starts, said before the first step of training."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence

import pyro
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from ..support.calls import Args, Kwargs, Model
from .sites import site_log_probs


def refuse_local_latents(
    stacks: Mapping[str, Sequence[CondIndepStackFrame]],
    row_frames: Collection[CondIndepStackFrame],
    kind: str,
) -> None:
    """Raise NotImplementedError for latents local to a subsampled plate.

    :param stacks: site to the frames of its plates.
    :param row_frames: frames whose elements have latent vectors of their own.
    :param kind: the name of the guide.
    """
    for name, frames in stacks.items():
        for frame in frames:
            if frame in row_frames:
                continue
            if frame.full_size is not None and frame.full_size != frame.size:
                raise NotImplementedError(
                    f"site {name!r} is local to plate {frame.name!r}, which is subsampled "
                    f"({frame.size} of {frame.full_size}); use {kind} for the "
                    "global latents and AutoNormal for this site, joined in an AutoGuideList"
                )


def warn_of_start(
    model: Model,
    point: Mapping[str, Tensor],
    args: Args,
    kwargs: Kwargs,
) -> None:
    """Warn of sites, data among them, whose log-density at the start is not finite.

    :param point: site to constrained value.
    :raises ValueError: when the model refuses the values it was started with.
    """
    if torch.jit.is_tracing():
        return
    try:
        with poutine.block(), pyro.validation_enabled(False):
            conditioned = poutine.condition(model, data=point)
            trace = poutine.trace(conditioned).get_trace(*args, **kwargs)
            found = site_log_probs(trace)
    except NotImplementedError:  # a simulator, for ForwardKL
        return
    except (RuntimeError, ValueError) as error:
        with poutine.block():
            nodes = poutine.trace(model).get_trace(*args, **kwargs).nodes
        changed = [
            name
            for name, value in point.items()
            if name not in nodes or nodes[name]["value"].shape != value.shape
        ]
        raise ValueError(
            f"the model cannot be run again with its first latents ({error}): latents must "
            f"have a fixed shape, see {changed or sorted(point)}; pad those that have not, and "
            "mask"
        ) from error
    if bad := [name for name, value in found.items() if not bool(value.isfinite().all())]:
        warnings.warn(
            f"the model's log-density is not finite where the guide starts, because of {bad}; "
            "look for NaN or impossible values in their data, or try another init_loc_fn",
            stacklevel=2,
        )
