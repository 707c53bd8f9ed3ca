"""The tuned numbers behind ``refine``, with the meaning and the range of each."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, fields
from typing import Annotated, NamedTuple, cast, get_args, get_type_hints


class Bounds(NamedTuple):
    """What a setting may be; a whole number may equal its lower bound."""

    low: float
    high: float = math.inf


Share = Annotated[float, Bounds(0.0, 1.0)]
Positive = Annotated[float, Bounds(0.0)]
Finite = Annotated[float, Bounds(-math.inf)]
Count = Annotated[int, Bounds(1)]
Hundreds = Annotated[int, Bounds(100)]
Thousands = Annotated[int, Bounds(1000)]

#: Settings of which the first must not exceed the second.
_ORDERED = (
    ("fewest_particles", "most_particles"),
    ("fewest_steps", "fewest_steps_large"),
    ("uneven_shift", "largest_shift"),
    ("uneven_ess", "even_ess"),
    ("even_ess", "nearly_even_ess"),
)

#: Shares that must leave time for training beside ``kept_share``.
_BEFORE_TRAINING = ("search_share", "fit_share", "rough_share")


@dataclass(frozen=True, kw_only=True)
class RefineSettings:
    """Numbers that :func:`~pyro_naf.infer.refine` decides by, beside its options.

    The defaults were tuned on some thirty posteriors of 1 to 1,000 latents. They are worth changing
    for a family of models that differs from those, or for other demands on the verdict. A result
    and its file keep them, and :meth:`Refinement.refine <pyro_naf.infer.Refinement.refine>` goes on
    with them.

    A *share* is a part of the ``seconds`` given to ``refine``, and lies between 0 and 1.

    *The start: modes and a Gaussian.*

    :ivar search_share: largest share for the search for modes of a model.
    :ivar search_beside_share: largest share for the search for modes beside a Gaussian guide that
        is given; of 60 seconds where the time has no limit.
    :ivar fit_share: share for a Gaussian of many latents, in place of the search for modes.
    :ivar rough_share: share for a Gaussian of a density so expensive that there is no time for a
        search.
    :ivar many_latents: number of latents from which on climbs towards one Gaussian replace the
        search for modes; at least 1.
    :ivar independent_latents: number of latents from which on a Gaussian of independent latents is
        fitted too, where the model has no structure, and above which no modes are looked for beside
        a guide that is given; at least 1.
    :ivar mixture_draws: number of draws that find the mass of each mode; at least 1,000.
    :ivar second_mode_mass: mass outside the heaviest mode from which on the guide is to cover
        several modes; between 0 and 1.

    *Training.*

    :ivar climb_share: largest part of the time for training in which the ELBO is maximised at a
        constant rate; in the rest the rate falls. Between 0 and 1.
    :ivar trial_share: part of the time for training in which a guide tries to reach several modes
        from one, where draws of Gaussians at the modes are worth little; between 0 and 1.
    :ivar capturing_share: share after which the log-density is not captured as a graph.
    :ivar compiling_seconds: ``seconds`` from which on the log-density is compiled in another
        process, and four times of which on a single core: compiling takes 10 to 20 seconds.
    :ivar most_particles: number of draws for each gradient where the time allows it; at least 1.
    :ivar fewest_particles: number of draws down to which these are halved where steps would be
        few; at least 1.
    :ivar many_steps: number of training steps from which on draws are not halved; at least 1.
    :ivar fewest_steps: number of training steps below which there is no flow, only a Gaussian; at
        least 1.
    :ivar fewest_steps_large: the same for a large flow of 30 latents or more, in whose place a
        small one is trained; at least 1.
    :ivar plateau_steps: number of steps whose mean ELBO must exceed the preceding mean by its noise
        for the climb to go on; at least 1.
    :ivar judging_draws: number of draws for the ELBO and k-hat of the weights after each landing;
        at least 100.
    :ivar judging_share: share after which no further of these draws are made.
    :ivar landing_khat: k-hat above which the guide lands again, where time allows it; a number.
    :ivar level_elbo: difference of ELBOs, in nats, up to which the weights with the smaller k-hat
        are kept; positive.

    *The end.*

    :ivar kept_share: smallest share that is kept for the diagnostics after training.
    :ivar diagnosis_share: share after which a diagnosis weights no further draws.
    :ivar good_khat: k-hat below which a Gaussian is returned without training a flow, if its
        effective sample size is large as well; a number.
    :ivar good_ess: that effective sample size, divided by the number of draws; between 0 and 1.
    :ivar largest_fall: fall of the ELBO below the start's, in nats, from which on the start is
        returned, even where noise could explain the fall; positive.

    *The verdict.*

    :ivar largest_missed_mass: largest posterior mass that a trusted guide may miss; between 0 and
        1.
    :ivar weighted_ess: smallest effective number of draws for which weights are recommended;
        positive.
    :ivar largest_shift: largest distance that the weights may move a latent of a trusted guide, in
        standard deviations; positive.
    :ivar uneven_shift: the smaller distance where the weights are uneven; positive.
    :ivar even_ess: effective draws per draw above which weights are even; between 0 and 1.
    :ivar nearly_even_ess: the same for weights so even that k-hat does not matter.
    :ivar uneven_ess: the same for weights so uneven that no guide is trusted without them.

    :raises TypeError: for a value that is no number, or no integer where a number of things is
        meant.
    :raises ValueError: for a value out of its range, or out of order with another, naming it.

    Weights are recommended from 1,000 effective draws on:

    >>> import pyro, pyro.distributions as dist
    >>> from pyro_naf.infer import refine
    >>> def model():
    ...     pyro.sample("x", dist.Gamma(2.0, 1.0))
    >>> strict = RefineSettings(weighted_ess=1000, largest_shift=0.05)
    >>> result = refine(model, steps=20, num_draws=2000, seed=0, settings=strict, progress=False)
    >>> strict.changed()
    {'weighted_ess': 1000, 'largest_shift': 0.05}
    """

    search_share: Share = 0.1
    search_beside_share: Share = 0.03
    fit_share: Share = 0.2
    rough_share: Share = 0.3
    many_latents: Count = 60
    independent_latents: Count = 200
    mixture_draws: Thousands = 20_000
    second_mode_mass: Share = 0.01

    climb_share: Share = 0.5
    trial_share: Share = 0.25
    capturing_share: Share = 0.35
    compiling_seconds: Positive = 30.0
    most_particles: Count = 64
    fewest_particles: Count = 8
    many_steps: Count = 1000
    fewest_steps: Count = 300
    fewest_steps_large: Count = 2000
    plateau_steps: Count = 250
    judging_draws: Hundreds = 50_000
    judging_share: Share = 0.03
    landing_khat: Finite = 0.6
    level_elbo: Positive = 0.005

    kept_share: Share = 0.15
    diagnosis_share: Share = 0.06
    good_khat: Finite = 0.5
    good_ess: Share = 0.95
    largest_fall: Positive = 0.1

    largest_missed_mass: Share = 0.05
    weighted_ess: Positive = 400.0
    largest_shift: Positive = 0.1
    uneven_shift: Positive = 0.05
    even_ess: Share = 0.8
    nearly_even_ess: Share = 0.95
    uneven_ess: Share = 0.5

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            _check(name, getattr(self, name), *get_args(hint))
        for low, high in _ORDERED:
            if getattr(self, low) > getattr(self, high):
                raise ValueError(
                    f"{low} must not exceed {high}, got {getattr(self, low)} and "
                    f"{getattr(self, high)}; set both"
                )
        for name in _BEFORE_TRAINING:
            if getattr(self, name) + self.kept_share >= 1:
                raise ValueError(
                    f"{name} and kept_share must leave time for training, with a sum below 1, got "
                    f"{getattr(self, name)} and {self.kept_share}"
                )

    def changed(self) -> dict[str, float]:
        """Return the values that differ from their defaults, by name."""
        values = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}


def _check(name: str, value: object, kind: type, bounds: Bounds) -> None:
    """Raise TypeError or ValueError for a value of another kind, or out of its bounds."""
    low, high = bounds
    expected = f"a whole number of at least {low}" if kind is int else f"a number above {low:g}"
    if math.isinf(low):
        expected = "a finite number"
    elif not math.isinf(high):
        expected += f" and below {high:g}"
    is_of_kind = isinstance(value, numbers.Integral if kind is int else numbers.Real)
    if not is_of_kind or isinstance(value, bool):
        raise TypeError(f"{name} must be {expected}, got {value!r}")
    number = float(cast("float", value))
    if not (low < number < high or (kind is int and number == low)):
        raise ValueError(f"{name} must be {expected}, got {value!r}")


#: Settings that nobody has changed.
DEFAULTS = RefineSettings()
