"""The guides that a refinement trains and returns: with flows, for several modes, or a Gaussian."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable
from dataclasses import replace

import pyro
import torch
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.infer.autoguide import init_to_value
from torch import Tensor

from ..flows.starts import sigmoids_at
from ..transformers import Scaled
from .autoguides import AutoDDSFNormal, AutoDSFNormal, AutoFlowNormal
from .gaussian import free_name
from .joint import Joint
from .refined import Origin

FLOWS: dict[str, Callable[..., AutoFlowNormal]] = {"dsf": AutoDSFNormal, "ddsf": AutoDDSFNormal}

#: Guide options for multimodal posteriors. ``min_slope`` bounds the tails of the conditionals: no
#: training data lies between modes, and a draw that lands there must not be thrown far away.
_SEVERAL: dict[str, object] = {"inverse": True, "min_slope": 0.2}

#: Default number of flows and of sigmoids in each, without and with a structure. A posterior with a
#: structure has many latents and simple conditionals.
_FULL: dict[str, object] = {"num_transforms": 2, "hidden_units": 16, "hidden_dims": None}
_STRUCTURED: dict[str, object] = {"num_transforms": 1, "hidden_units": 8}

#: Default sizes of a flow without a structure where there is no time for those above.
_SMALL: dict[str, object] = {"num_transforms": 1, "hidden_units": 8}

#: Widest hidden layer of a flow by default, and of a small one.
_WIDEST, _NARROW = 512, 128

#: Operations per second that no processor core exceeds in training a flow; a weight costs six for
#: each draw, forwards and backwards.
_FASTEST = 2e11

#: Numbers that training holds for each weight: itself, gradient, two moments, average, two copies.
_COPIES = 7


def sizes(origin: Origin, seconds: float = math.inf) -> list[Origin]:
    """With sizes of flows that there is memory for, larger ones first.

    :param seconds: time for a step; of a flow that takes longer on any processor only the smallest
        size is left.

    :raises ValueError: when not even small flows fit into the memory that is free.
    """
    if origin.start.structure is not None and not origin.covers:
        return [origin]
    free = _free_memory(origin.start.loc.device)
    found, quick, needed = [], list[Origin](), 0.0
    narrow = [min(_NARROW, _width(origin.start.joint.dim))]
    for usual in (_FULL, _SMALL | {"hidden_dims": narrow}):
        options = {name: origin.options[name] or value for name, value in usual.items()}
        sized = replace(origin, options=origin.options | options)
        weights = _num_weights(sized)
        needed = origin.start.loc.element_size() * _COPIES * weights
        if needed <= free and sized not in found:
            found.append(sized)
            if 6 * weights * sized.options["num_particles"] / _FASTEST < seconds:
                quick.append(sized)
    if found:
        return quick or found[-1:]
    raise ValueError(
        f"a flow for all {origin.start.joint.dim} latents without a structure needs "
        f"{needed / 2**30:.2g} GiB for training, and {free / 2**30:.2g} are free; give the "
        "latents' structure (an adjacency), or smaller hidden_dims, hidden_units or "
        "num_transforms"
    )


def _num_weights(origin: Origin) -> int:
    """Count the weights of the flows without a structure, but for the biases."""
    options, dim = origin.options, origin.start.joint.dim
    widths = options["hidden_dims"]
    if widths is None:
        widths = [_width(dim)]
    outputs = (3 if options["flow"] == "dsf" else 7) * options["hidden_units"] + 2
    layers = [dim, *widths, dim * outputs]
    count = sum(a * b for a, b in itertools.pairwise(layers))
    return count * options["num_transforms"]


def _width(dim: int) -> int:
    """Of the hidden layer of a flow by default."""
    return min(max(3 * dim + 1, 32), _WIDEST)


def _free_memory(device: torch.device) -> float:
    """Bytes, infinitely many where the system does not say."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def flow_guide(origin: Origin) -> AutoFlowNormal:
    """Make a flow guide with the options of a refinement, set up and not trained."""
    start, options = origin.start, origin.options
    structured = start.structure is not None and not origin.covers
    usual = _STRUCTURED if structured else _FULL
    return _flow_guide(
        start.joint,
        options["flow"],
        num_transforms=options["num_transforms"] or usual["num_transforms"],
        hidden_dims=options["hidden_dims"],
        hidden_units=options["hidden_units"] or usual["hidden_units"],
        full_rank=start.factor.dim() == 2,
        kernel="ready",
        **({"structure": start.structure} if structured else {}),
        **(_SEVERAL if origin.covers else {}),
    )


def _flow_guide(joint: Joint, flow: str, **options: object) -> AutoFlowNormal:
    """Make a flow guide for all the latents of a joint density, set up."""
    guide = _set_up(joint, FLOWS[flow], **options)
    for part in guide.modules():
        if isinstance(part, Scaled):  # many draws a step: no caution is needed
            part.set_slope(1.0)
    return guide


def _set_up(
    joint: Joint, kind: Callable[..., AutoFlowNormal], *args: object, **options: object
) -> AutoFlowNormal:
    start = {name: value[0] for name, value in joint.constrained(joint.start[None]).items()}
    guide = kind(joint.model, *args, init_loc_fn=init_to_value(values=start), **options)
    guide._pyro_name = free_name(f"{type(guide).__name__}_refined")
    with joint.in_full():
        guide._setup_prototype(*joint.args, **joint.kwargs)
    return guide


def gaussian_guide(joint: Joint, loc: Tensor, factor: Tensor) -> AutoFlowNormal:
    """Make a guide that is this Gaussian: an affine map around no flow."""
    options: dict[str, object] = {"full_rank": factor.dim() == 2}
    guide = _set_up(joint, AutoFlowNormal, _no_flow, **options)
    guide.set_affine(loc, factor)
    return guide


def forget(guide: AutoFlowNormal) -> None:
    """Take a guide that is not returned out of Pyro's param store."""
    store = pyro.get_param_store()
    for key in [key for key in store if key.partition(".")[0] == guide._pyro_name]:
        del store[key]


def _no_flow(dim: int) -> ComposeTransformModule:
    return ComposeTransformModule([])


@torch.no_grad()
def start_at(guide: AutoFlowNormal, z: Tensor) -> None:
    """Give the first flow, from latents to base, the marginals of draws ``(N, D)``."""
    for outer in reversed(guide.affine_parts()):
        z = outer.inv(z)
    first = guide.flow.parts[0]
    sigmoids_at(first.arn, first.transformer, z)
