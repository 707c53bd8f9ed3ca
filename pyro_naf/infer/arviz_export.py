"""Results as ArviZ takes them: InferenceData of ArviZ 0.x, a DataTree of 1.x."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..guides.sites import sample_sites
from .joint import Joint
from .pointwise import example

#: Group to its variables, each ``(num_chains, num_samples, ...)``; observed data as it is.
Groups = Mapping[str, Mapping[str, Tensor]]


class ArvizData(Protocol):
    """What InferenceData of ArviZ 0.x and the DataTree of 1.x have in common."""

    def __getitem__(self, group: str) -> object:
        """Return a group by its name."""

    def to_netcdf(self, filename: str) -> object:
        """Write all groups to a file."""


def export(groups: Groups, joint: Joint, attributes: Mapping[str, object]) -> ArvizData:
    """ArviZ's container of groups of draws, plates being the names of dimensions.

    :param attributes: what is known of the draws, as attributes of the group sample_stats.
    :raises ImportError: without ArviZ.
    """
    from_dict, is_tree = _from_dict()
    arrays = {
        group: {name: value.detach().cpu().numpy() for name, value in variables.items()}
        for group, variables in groups.items()
        if variables
    }
    dims = _dimensions(arrays, joint)
    if is_tree:
        data = from_dict(arrays, dims=dims, save_warmup=False)
    else:
        data = from_dict(**arrays, dims=dims)
    data["sample_stats"].attrs.update(attributes)
    return data


def _from_dict() -> tuple[Callable[..., Any], bool]:
    """Import ``from_dict`` of the ArviZ that is there, and tell whether it makes a DataTree."""
    for name in ("arviz_base", "arviz"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        is_tree = name == "arviz_base" or not hasattr(module, "InferenceData")
        if is_tree or not _has("arviz_base"):
            return module.from_dict, is_tree
    raise ImportError("to_arviz needs ArviZ: pip install 'pyro_naf[arviz]'")


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _dimensions(
    arrays: Mapping[str, Mapping[str, np.ndarray]], joint: Joint
) -> dict[str, list[str]]:
    """Variable to names of its dimensions behind chain and draw, where its plates tell them."""
    found: dict[str, list[str]] = {}
    taken: dict[str, int] = {}
    for name, site in sample_sites(example(joint)):
        shape = torch.as_tensor(site["value"]).shape
        event_dim = site["fn"].event_dim
        if site["infer"].get("_deterministic"):
            event_dim = 0
        names = [f"{name}_dim_{i}" for i in range(len(shape))]
        for frame in site["cond_indep_stack"]:
            place = None if frame.dim is None else len(shape) - event_dim + frame.dim
            if place is None or place < 0 or shape[place] == 1:
                continue
            if taken.setdefault(frame.name, shape[place]) == shape[place]:
                names[place] = frame.name
        found[name] = names
    # A variable may have another shape in some group, as predictions for other arguments have.
    widths: dict[str, set[int]] = {}
    for group, variables in arrays.items():
        for name, array in variables.items():
            widths.setdefault(name, set()).add(array.ndim - 2 * (group != "observed_data"))
    return {name: dims for name, dims in found.items() if widths.get(name, set()) == {len(dims)}}
