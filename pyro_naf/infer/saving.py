"""Results in files: tensors, numbers and strings, read without running code."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..conditioners import Structure
from ..files.stored import ModelFileError, load, save
from .autoguides import AutoFlowNormal
from .correction import Correction
from .diagnostics import ImportanceDiagnostics
from .gaussian import Gaussian
from .joint import Joint
from .refined_guides import flow_guide, gaussian_guide
from .results import Origin, Refinement
from .start import Start

VERSION = 1

#: Fields of results that are written as they are.
_PLAIN = ("losses", "skipped", "seconds", "missed", "density", "ended")


def save_refinement(result: Refinement, path: str | os.PathLike[str]) -> None:
    """:meth:`~pyro_naf.infer.Refinement.save`."""
    if result.joint is None or result.origin is None:
        raise ValueError("only what refine returned can be saved, not a result made by hand")
    start = result.origin.start
    content = {
        "kind": "pyro_naf refinement",
        "version": VERSION,
        "sites": _sites(result.joint),
        "dtype": str(start.loc.dtype),
        "covers": result.origin.covers,
        "options": result.origin.options,
        "start": {
            "loc": start.loc,
            "factor": start.factor,
            "widths": start.widths,
            "pattern": start.pattern,
            "modes": [asdict(mode) for mode in start.modes],
            "structure": _tensors(start.structure),
        },
        "has_flow": type(result.guide) is not AutoFlowNormal,
        "state": {name: t.detach().cpu() for name, t in result.guide.state_dict().items()},
        "before": _tensors(result.before),
        "after": _tensors(result.after),
        **{name: getattr(result, name) for name in _PLAIN},
    }
    save(Path(path), _on_cpu(content))


def load_refinement(
    path: str | os.PathLike[str],
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Refinement:
    """:meth:`~pyro_naf.infer.Refinement.load`."""
    content = load(Path(path), "refinement", VERSION)
    joint = Joint(model, args, kwargs)
    _check_sites(path, content, joint)
    try:
        origin = _origin(content, joint)
        before, after = (ImportanceDiagnostics(**content[name]) for name in ("before", "after"))
        if content["has_flow"]:
            guide = flow_guide(origin)
        else:
            guide = gaussian_guide(joint, origin.start.loc, origin.start.factor)
        guide.load_state_dict(content["state"])
        plain = {name: content[name] for name in _PLAIN}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        raise ModelFileError(f"{path} does not hold a whole refinement: {reason}") from None
    return Refinement(guide, before, after, joint=joint, origin=origin, **plain)


def save_correction(result: Correction, path: str | os.PathLike[str]) -> None:
    """:meth:`~pyro_naf.infer.Correction.save`."""
    content = {field.name: getattr(result, field.name) for field in fields(result)}
    del content["joint"]
    save(Path(path), _on_cpu({"kind": "pyro_naf correction", "version": VERSION, **content}))


def load_correction(
    path: str | os.PathLike[str],
    model: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Correction:
    """:meth:`~pyro_naf.infer.Correction.load`."""
    content = load(Path(path), "correction", VERSION)
    del content["kind"], content["version"]
    joint = None if model is None else Joint(model, args, kwargs)
    try:
        result = Correction(**content, joint=joint)
    except TypeError as error:
        raise ModelFileError(f"{path} does not hold a whole correction: {error}") from None
    if joint is not None:
        shapes = {name: list(v.shape[2:]) for name, v in result.draws.items()}
        sites = {name: shapes[name] for name in joint.sites if name in shapes}
        _check_sites(path, {"sites": sites}, joint)
    return result


def _sites(joint: Joint) -> dict[str, list[int]]:
    return {name: list(site.shape) for name, site in joint.sites.items()}


def _check_sites(path: Any, content: dict[str, Any], joint: Joint) -> None:
    found, given = content.get("sites"), _sites(joint)
    if found != given:
        raise ValueError(
            f"{path} is the result of a model with the latents {found}, but the model that is "
            f"given has {given}; give the model, and data of the size, that was refined"
        )
    dtype = str(joint.start.dtype)
    if content.get("dtype", dtype) != dtype:
        raise ValueError(
            f"{path} holds latents in {content['dtype']}, those of the model are in {dtype}; call "
            f"torch.set_default_dtype({content['dtype']}) first"
        )


def _tensors(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass."""
    return None if value is None else {f.name: getattr(value, f.name) for f in fields(value)}


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {name: _on_cpu(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_on_cpu(item) for item in value]
    return value


def _origin(content: dict[str, Any], joint: Joint) -> Origin:
    saved = content["start"]
    like = joint.start
    modes = [
        Gaussian(m["loc"].to(like), m["factor"].to(like), float(m["elbo"])) for m in saved["modes"]
    ]
    structure = None if saved["structure"] is None else Structure(**saved["structure"])
    pattern = None if saved["pattern"] is None else saved["pattern"].to(like)
    loc, factor = (saved[name].to(like) for name in ("loc", "factor"))
    _check_shapes(joint.dim, loc, factor)
    start = Start(joint, loc, factor, modes, list(saved["widths"]), structure, pattern)
    return Origin(start, bool(content["covers"]), dict(content["options"]))


def _check_shapes(dim: int, loc: Tensor, factor: Tensor) -> None:
    if loc.shape != torch.Size([dim]) or factor.shape not in {(dim,), (dim, dim)}:
        raise ValueError(f"its Gaussian is not one of {dim} latents")
