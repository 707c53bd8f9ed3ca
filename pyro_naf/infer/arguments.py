"""Checks of the arguments of refine."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping

from ..support.calls import Args, Model
from ..support.checks import check_integers
from .diagnostics import MIN_PARTICLES
from .refined_guides import FLOWS
from .settings import RefineSettings


def refuse_swallowed(
    model: Model,
    args: Args,
    options: Mapping[str, object],
    defaults: Mapping[str, object],
) -> None:
    """Raise TypeError when an option of refine took what may be meant for the model.

    :param options: the options of refine by name, with their values; ``defaults`` those unset.
    """
    try:
        parameters = list(inspect.signature(model).parameters.values())
    except (TypeError, ValueError):  # a callable without a signature
        return
    bound = getattr(model, "keywords", {})  # of a functools.partial
    for parameter in parameters[len(args) :]:
        name = parameter.name
        if name not in options or name in bound or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.default is parameter.empty or options[name] != defaults[name]:
            raise TypeError(
                f"{name!r} is an argument of the model and an option of refine, which takes it; "
                f"bind the model's first, as in refine(functools.partial(model, {name}=...), ...)"
            )


def check_arguments(
    *,
    flow: str,
    steps: int | None,
    seconds: float | None,
    num_particles: int | None,
    num_draws: int,
    lr: float,
    tempering: float,
    num_starts: int,
    settings: RefineSettings,
) -> None:
    """Raise TypeError or ValueError, naming the argument."""
    if flow not in FLOWS:
        raise ValueError(f"flow must be one of {sorted(FLOWS)}, got {flow!r}")
    check_integers(
        steps=(1 if steps is None else steps, 1),
        num_particles=(2 if num_particles is None else num_particles, 2),
        num_draws=(num_draws, MIN_PARTICLES),
        num_starts=(num_starts, 1),
    )
    for name, value in {"seconds": seconds, "lr": lr}.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    if not 0 < tempering <= 1:
        raise ValueError(f"tempering must lie in (0, 1], got {tempering}")
    if not isinstance(settings, RefineSettings):
        raise TypeError(f"settings must be a RefineSettings, got {settings!r}")
