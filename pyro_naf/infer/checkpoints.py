"""Checkpoints of a refinement: what it has reached, in a file that outlives a killed process."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ..conditioners import Structure
from ..files.archive import plain
from ..files.atomic import check_file
from ..files.stored import ModelFileError, load, save
from ..support.seeding import seeded
from ..training.checkpoints import Interval
from .autoguides import AutoFlowNormal
from .budget import Budget
from .diagnostics import ImportanceDiagnostics
from .joint import Joint
from .laplace import Gaussian
from .refined import Origin, Refined
from .saving import (
    VERSION,
    SavedGaussian,
    check_sites,
    described,
    on_cpu,
    restored,
    restored_start,
    save_refinement,
    shortened,
    tensors,
)
from .settings import RefineSettings
from .start import Start
from .training import Training

#: Relative difference of log-densities at the same points from which on the model, or its data, is
#: taken to be another. Single precision and other orders of a sum differ by less.
_SAME = 1e-4


@dataclass
class Found:
    """What a killed process had reached.

    :ivar start: the Gaussian that it began from.
    :ivar before: diagnostics of that.
    :ivar stage: "one mode"; "trial" or "learning" for a guide for several modes.
    :ivar options: those that were asked for; ``sized`` with the sizes of the flow that is trained.
    :ivar others: Gaussians that the mass missed by the guide is looked for with.
    :ivar generators: states of the random generator, now and before the modes' draws were made.
    :ivar budget: what was spent; ``training`` the weights and the optimiser's state.
    """

    start: Start
    before: ImportanceDiagnostics
    stage: str
    options: dict[str, Any]
    sized: dict[str, Any]
    others: list[Gaussian]
    generators: list[Tensor]
    budget: dict[str, Any]
    training: dict[str, Any]
    has_flow: bool


class Reached(Protocol):
    """What a plan tells a checkpoint; see :class:`Found`."""

    joint: Joint
    origin: Origin
    start: Start
    before: ImportanceDiagnostics
    stage: str
    options: dict[str, object]
    others: list[Gaussian]
    generator: Tensor
    budget: Budget


class Checkpoint:
    """The file that a refinement is written to while it trains, and at its end.

    :param path: the file; it may not exist yet.
    :param seconds: between two writes, at least; with 0 one follows each step.
    :param asked: the options of the call, which another process that goes on must give again.
    :ivar content: what an earlier call has left in the file, or None.
    :raises ValueError: when the file is of a call with other options.
    :raises ModelFileError: when it is truncated, foreign or of another version.
    :raises OSError: when it cannot be read, or cannot be written to.
    """

    def __init__(self, path: str | os.PathLike[str], seconds: float, asked: dict[str, Any]) -> None:
        if not 0 <= seconds < math.inf:
            raise ValueError(f"checkpoint_seconds must be at least 0 and finite, got {seconds}")
        self.path, self.writes = Path(path), Interval(seconds)
        short = {name: _short(value) for name, value in asked.items()}
        self.asked = cast("dict[str, object]", plain("call", short))
        self.content: dict[str, Any] | None = None
        if check_file(path).exists():
            self.content = load(self.path, "refinement", VERSION)
            self._check_call(self.content.get("call"))

    def _check_call(self, call: object) -> None:
        if not isinstance(call, dict):
            raise ValueError(
                f"checkpoint {self.path} is a result that Refinement.save wrote; name another "
                "file, or go on from it with Refinement.load and refine"
            )
        differs = [
            f"{name}={call.get(name)!r} there, {value!r} here"
            for name, value in self.asked.items()
            if call.get(name) != value
        ]
        if differs:
            raise ValueError(
                f"checkpoint {self.path} is of another call ({'; '.join(differs)}): repeat that "
                "call, name another file, or go on from a finished one with Refinement.load and "
                "refine"
            )

    def found(self, joint: Joint) -> Found | Refined | None:
        """Load what a killed process had reached, or the result of one that ended; None if no file.

        :raises ValueError: for a model with other latents, or with another log-density.
        :raises ModelFileError: when parts are missing.
        """
        if self.content is None:
            return None
        content = self.content
        check_sites(self.path, content, joint)
        try:
            start = restored_start(content["start"], joint)
            self._check_density(start, content["density at"])
            if "training" not in content:
                return restored(self.path, content, joint)
            return Found(
                start=start,
                before=ImportanceDiagnostics(**content["before"]),
                others=[_gaussian(g, start.loc) for g in content["others"]],
                **{name: content[name] for name in _PLAIN},
            )
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise ModelFileError(
                f"{self.path} does not hold a whole checkpoint: {shortened(error)}"
            ) from None

    def _check_density(self, start: Start, expected: list[float]) -> None:
        for given, value in zip(_density_at(start), expected, strict=True):
            same = math.isclose(given, value, rel_tol=_SAME, abs_tol=_SAME)
            if not (same or (math.isnan(given) and math.isnan(value))):
                raise ValueError(
                    f"checkpoint {self.path} is of another model, or of other data: where the log-"
                    f"density was {value:.6g} it is {given:.6g}; name another file"
                )

    def write(self, plan: Reached, training: Training) -> None:
        """Write what a plan has reached, where that is due."""
        if not self.writes.is_over():
            return
        with self.writes.writing():
            content = self._content(plan, training)
            save(self.path, {name: on_cpu(item) for name, item in content.items()})

    def _content(self, plan: Reached, training: Training) -> dict[str, object]:
        return described(plan.joint, plan.origin) | {
            "call": self.asked,
            "density at": _density_at(plan.start),
            "before": tensors(plan.before),
            "stage": plan.stage,
            "options": plan.options,
            "sized": plan.origin.options,
            "others": [asdict(g) for g in plan.others],
            "generators": [torch.get_rng_state(), plan.generator],
            "budget": plan.budget.state(),
            "training": training.state(),
            "has_flow": type(training.guide) is not AutoFlowNormal,
        }

    def finish(self, result: Refined) -> None:
        """Write the result in place of the state, unless Ctrl-C has broken training off."""
        if result.ended != "interrupted" and result.origin is not None:
            at = _density_at(result.origin.start)
            save_refinement(result, self.path, {"call": self.asked, "density at": at})


#: Fields of a checkpoint that are read as they are.
_PLAIN = ("stage", "options", "sized", "generators", "budget", "training", "has_flow")


@torch.no_grad()
def _density_at(start: Start) -> list[float]:
    """Return the log-density at four points around the start: other data has another there."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(4, start.joint.dim, generator=generator).to(start.loc)
    normal[0] = 0.0
    spread = normal * start.factor if start.factor.dim() == 1 else normal @ start.factor.mT
    with seeded(0):  # latents that are left out are drawn from their prior
        return start.joint(start.loc + spread).double().tolist()


def _gaussian(saved: SavedGaussian, like: Tensor) -> Gaussian:
    return Gaussian(saved["loc"].to(like), saved["factor"].to(like), float(saved["elbo"]))


def _short(option: object) -> object:
    """Return an option: a word in place of a structure, the changed numbers of settings."""
    if isinstance(option, RefineSettings):
        return option.changed() or None
    return "given" if isinstance(option, Structure | Tensor) else option
