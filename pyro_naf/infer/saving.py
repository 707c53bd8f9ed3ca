"""Results in files: tensors, numbers and strings, read without running code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from ..conditioners import Structure
from ..files.stored import ModelFileError, load, save
from ..support.calls import Args, Model
from .autoguides import AutoFlowNormal
from .diagnostics import ImportanceDiagnostics
from .joint import Joint
from .laplace import Gaussian
from .refined import Origin, Refined
from .refined_guides import flow_guide, gaussian_guide
from .settings import RefineSettings
from .start import Start

if TYPE_CHECKING:
    from typing_extensions import NotRequired

VERSION = 1

#: Fields of results that are written as they are.
_PLAIN = ("losses", "skipped", "seconds", "missed", "density", "ended")

#: Settings of former versions, which files may hold.
_FORMER_SETTINGS = {"starts_beside"}


class SavedGaussian(TypedDict):
    """:class:`~pyro_naf.infer.laplace.Gaussian` in a file."""

    loc: Tensor
    factor: Tensor
    elbo: float


class SavedStart(TypedDict):
    """:class:`~pyro_naf.infer.start.Start` in a file."""

    loc: Tensor
    factor: Tensor
    widths: list[float]
    pattern: Tensor | None
    modes: list[SavedGaussian]
    structure: dict[str, Tensor] | None
    climbs: NotRequired[int | None]
    others: NotRequired[list[SavedGaussian] | None]


def save_refinement(
    result: Refined, path: str | os.PathLike[str], more: dict[str, object] | None = None
) -> None:
    """:meth:`~pyro_naf.infer.Refinement.save`.

    :param more: what a checkpoint holds beside the result.
    """
    if result.joint is None or result.origin is None:
        raise ValueError("only what refine returned can be saved, not a result made by hand")
    content = described(result.joint, result.origin) | {
        "has_flow": type(result.guide) is not AutoFlowNormal,
        "state": {name: t.detach().cpu() for name, t in result.guide.state_dict().items()},
        "before": tensors(result.before),
        "after": tensors(result.after),
        **{name: getattr(result, name) for name in _PLAIN},
        **(more or {}),
    }
    save(Path(path), {name: on_cpu(item) for name, item in content.items()})


def described(joint: Joint, origin: Origin) -> dict[str, object]:
    """Collect what a file says of the model and of the Gaussian that a refinement began from."""
    start = origin.start
    return {
        "kind": "pyro_naf refinement",
        "version": VERSION,
        "sites": _sites(joint),
        "dtype": str(start.loc.dtype),
        "covers": origin.covers,
        "options": origin.options,
        "settings": origin.settings.changed(),
        "start": {
            "loc": start.loc,
            "factor": start.factor,
            "widths": start.widths,
            "pattern": start.pattern,
            "modes": [asdict(mode) for mode in start.modes],
            "structure": tensors(start.structure),
            "climbs": start.climbs,
            "others": None if start.others is None else [asdict(g) for g in start.others],
        },
    }


def load_refinement(
    path: str | os.PathLike[str],
    model: Model,
    args: Args,
    kwargs: dict[str, object],
) -> Refined:
    """:meth:`~pyro_naf.infer.Refinement.load`."""
    content = load(Path(path), "refinement", VERSION)
    if "training" in content:
        raise ModelFileError(
            f"{path} is the checkpoint of a refinement that has not ended: repeat the call of "
            "refine that wrote it, and it goes on"
        )
    joint = Joint(model, args, kwargs)
    check_sites(path, content, joint)
    return restored(path, content, joint)


def restored(path: str | os.PathLike[str], content: dict[str, Any], joint: Joint) -> Refined:
    """Restore the result that a file holds, for a joint density with its latents."""
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
        raise ModelFileError(
            f"{path} does not hold a whole refinement: {shortened(error)}"
        ) from None
    return Refined(guide, before, after, joint=joint, origin=origin, **plain)


def save_correction(content: Mapping[str, object], path: str | os.PathLike[str]) -> None:
    """Write the fields of a :class:`~pyro_naf.infer.Correction`, but for the model."""
    about = {"kind": "pyro_naf correction", "version": VERSION}
    save(Path(path), about | {name: on_cpu(item) for name, item in content.items()})


def load_correction(
    path: str | os.PathLike[str],
    model: Model | None,
    args: Args,
    kwargs: dict[str, object],
) -> dict[str, Any]:
    """Read the fields of a :class:`~pyro_naf.infer.Correction`."""
    content = load(Path(path), "correction", VERSION)
    del content["kind"], content["version"]
    joint = None if model is None else Joint(model, args, kwargs)
    if joint is not None and isinstance(draws := content.get("draws"), dict):
        shapes = {name: list(v.shape[2:]) for name, v in draws.items()}
        sites = {name: shapes[name] for name in joint.sites if name in shapes}
        check_sites(path, {"sites": sites}, joint)
    return content | {"joint": joint}


def _sites(joint: Joint) -> dict[str, list[int]]:
    return {name: list(site.shape) for name, site in joint.sites.items()}


def check_sites(path: str | os.PathLike[str], content: dict[str, object], joint: Joint) -> None:
    """Raise ValueError where a file is of a model with other latents."""
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


def tensors(value: ImportanceDiagnostics | Structure | None) -> dict[str, object] | None:
    """Collect the fields of a dataclass."""
    return None if value is None else {f.name: getattr(value, f.name) for f in fields(value)}


def shortened(error: Exception) -> str:
    """Return the first line of an error of torch's."""
    return (str(error).splitlines() or [""])[0][:300]


def on_cpu(value: object) -> object:
    """Copy tensors, and dicts and lists of tensors, to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, dict):
        return {name: on_cpu(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [on_cpu(item) for item in value]
    return value


def _origin(content: dict[str, Any], joint: Joint) -> Origin:
    start = restored_start(content["start"], joint)
    stored = content.get("settings", {})
    settings = RefineSettings(**{k: v for k, v in stored.items() if k not in _FORMER_SETTINGS})
    return Origin(start, bool(content["covers"]), dict(content["options"]), settings)


def restored_start(saved: SavedStart, joint: Joint) -> Start:
    """Restore the Gaussian of a file, for a joint density."""
    like = joint.start

    def gaussians(many: list[SavedGaussian]) -> list[Gaussian]:
        return [Gaussian(m["loc"].to(like), m["factor"].to(like), float(m["elbo"])) for m in many]

    structure = None if saved["structure"] is None else Structure(**saved["structure"])
    pattern = None if saved["pattern"] is None else saved["pattern"].to(like)
    loc, factor = saved["loc"].to(like), saved["factor"].to(like)
    _check_shapes(joint.dim, loc, factor)
    others = saved.get("others")
    return Start(
        joint,
        loc,
        factor,
        gaussians(saved["modes"]),
        list(saved["widths"]),
        structure,
        pattern,
        saved.get("climbs"),
        None if others is None else gaussians(others),
    )


def _check_shapes(dim: int, loc: Tensor, factor: Tensor) -> None:
    if loc.shape != torch.Size([dim]) or factor.shape not in {(dim,), (dim, dim)}:
        raise ValueError(f"its Gaussian is not one of {dim} latents")
