"""The tuned numbers behind ``refine``, with the meaning and the range of each."""

from __future__ import annotations

import math
import numbers
from dataclasses import Field, dataclass, field, fields
from typing import TypeVar, cast

N = TypeVar("N", int, float)


def _within(default: N, low: float, high: float = math.inf) -> N:
    """Declare a number between two bounds; a whole number may equal the lower one."""
    return field(default=default, metadata={"bounds": (low, high)})


def _share(default: float) -> float:
    return _within(default, 0.0, 1.0)


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
    :ivar starts_beside: number of climbs in a row without a new mode that ends that search; at
        least 1.
    :ivar fit_share: share for a Gaussian of many latents, in place of the search for modes.
    :ivar rough_share: share for a Gaussian of a density so dear that no search can be afforded.
    :ivar many_latents: number of latents from which on climbs towards one Gaussian replace the
        search for modes; at least 1.
    :ivar independent_latents: number of latents from which on a Gaussian of independent latents is
        fitted too, where the model has no structure; at least 1.
    :ivar mixture_draws: number of draws that find the mass of each mode; at least 1,000.
    :ivar second_mode_mass: mass outside the heaviest mode from which on the guide is to cover
        several modes; between 0 and 1.

    *Training.*

    :ivar climb_share: largest part of the time for training in which the ELBO is maximised at a
        constant rate; in the rest the rate falls. Between 0 and 1.
    :ivar trial_share: part of the time for training in which a guide tries to reach several modes
        from one, where draws of Gaussians at the modes are worth little; between 0 and 1.
    :ivar fewest_steps: number of training steps below which there is no flow, only a Gaussian; at
        least 1.
    :ivar fewest_steps_large: the same for a large flow of 30 latents or more, in whose place a
        small one is trained; at least 1.

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
    :raises ValueError: for a value out of its range, naming it.

    Weights are recommended from 1,000 effective draws on:

    >>> import pyro, pyro.distributions as dist
    >>> from pyro_naf.infer import refine
    >>> def model():
    ...     pyro.sample("x", dist.Gamma(2.0, 1.0))
    >>> strict = RefineSettings(weighted_ess=1000, largest_shift=0.05)
    >>> result = refine(model, steps=100, num_draws=2000, seed=0, settings=strict, progress=False)
    >>> strict.changed()
    {'weighted_ess': 1000, 'largest_shift': 0.05}
    """

    search_share: float = _share(0.1)
    search_beside_share: float = _share(0.03)
    starts_beside: int = _within(4, 1)
    fit_share: float = _share(0.2)
    rough_share: float = _share(0.3)
    many_latents: int = _within(60, 1)
    independent_latents: int = _within(200, 1)
    mixture_draws: int = _within(20_000, 1000)
    second_mode_mass: float = _share(0.01)

    climb_share: float = _share(0.5)
    trial_share: float = _share(0.25)
    fewest_steps: int = _within(300, 1)
    fewest_steps_large: int = _within(2000, 1)

    kept_share: float = _share(0.15)
    diagnosis_share: float = _share(0.06)
    good_khat: float = _within(0.5, -math.inf)
    good_ess: float = _share(0.95)
    largest_fall: float = _within(0.1, 0.0)

    largest_missed_mass: float = _share(0.05)
    weighted_ess: float = _within(400.0, 0.0)
    largest_shift: float = _within(0.1, 0.0)
    uneven_shift: float = _within(0.05, 0.0)
    even_ess: float = _share(0.8)
    nearly_even_ess: float = _share(0.95)
    uneven_ess: float = _share(0.5)

    def __post_init__(self) -> None:
        for item in fields(self):
            _check(item, getattr(self, item.name))

    def changed(self) -> dict[str, float]:
        """Return the values that differ from their defaults, by name."""
        values = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}


def _check(item: Field[float], value: object) -> None:
    """Raise TypeError or ValueError for a value out of the bounds of its field."""
    low, high = item.metadata["bounds"]
    is_whole = isinstance(item.default, int)
    kind = numbers.Integral if is_whole else numbers.Real
    expected = f"a whole number of at least {low}" if is_whole else f"a number above {low:g}"
    if math.isinf(low):
        expected = "a finite number"
    elif not math.isinf(high):
        expected += f" and below {high:g}"
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{item.name} must be {expected}, got {value!r}")
    number = float(cast("float", value))
    if not (low < number < high or (is_whole and number == low)):
        raise ValueError(f"{item.name} must be {expected}, got {value!r}")


#: Settings that nobody has changed.
DEFAULTS = RefineSettings()
