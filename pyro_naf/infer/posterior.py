"""What draws of a posterior can be used for: tables, pictures, predictions, other packages."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from ..support.calls import Model
from ..support.checks import check_integers
from ..support.labels import scalar_parameters
from ..support.seeding import seeded
from ..support.tables import Shown, Table
from . import pointwise
from .arviz_export import ArvizData, export
from .diagnostics import MIN_PARTICLES, ImportanceDiagnostics, diagnose, weighted_draws
from .joint import Joint
from .loo import Loo, psis_loo
from .proposals import GuideProposal
from .psis import smooth
from .sample import Sample, resampled
from .summaries import Summary, pandas, summarise

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

_Self = TypeVar("_Self", bound="Results")

#: Number of draws behind tables and pictures where none is given.
_DRAWS = 4000

#: Number of weighted draws for each draw that resampling returns, and the smallest number of
#: weighted draws.
_PARTICLES, _FEWEST = 5, 20_000

#: Number of chains that a guide's independent draws are presented as to ArviZ, which expects some.
_CHAINS = 4

#: Attributes that belong to the model, and stay behind when a result is pickled.
_OF_THE_MODEL = ("joint", "origin")

#: Number of panels of a picture.
_PANELS = 8


class Results:
    """Base of results: whatever has draws of a posterior has these methods.

    Where draws are a guide's, their importance weights are used as far as they can be relied on:
    where their k-hat is below its threshold (0.7 for 2200 draws and more), and else the draws
    count equally. ``summary().notes`` says which.
    """

    joint: Joint | None

    def __getstate__(self) -> dict[str, object]:
        # As guides are pickled without their model, which may be a local function.
        return {n: None if n in _OF_THE_MODEL else v for n, v in self.__dict__.items()}

    def __deepcopy__(self: _Self, memo: dict[int, object]) -> _Self:
        new = type(self).__new__(type(self))
        for name, value in self.__dict__.items():
            shared = name in _OF_THE_MODEL
            new.__dict__[name] = value if shared else copy.deepcopy(value, memo)
        return new

    def _sample(self, num_samples: int | None, seed: int | None) -> Sample:
        raise NotImplementedError

    def _known_joint(self) -> Joint:
        if self.joint is None:
            raise ValueError(
                f"this {type(self).__name__} does not know its model, which is not pickled: save "
                f"it, and load it with {type(self).__name__}.load(path, model, *args)"
            )
        return self.joint

    def summary(self, num_samples: int | None = None, *, seed: int | None = 0) -> Summary:
        """Mean, sd, intervals and Monte Carlo errors of every scalar entry.

        :param num_samples: number of draws behind it; 4000, and all of a correction.
        :param seed: of these draws.
        """
        sample = self._sample(num_samples, seed)
        count = len(next(iter(sample.flat.values())))
        if sample.log_weights is None:
            return summarise(sample.values, torch.zeros(count))
        found = summarise(sample.values, smooth(sample.log_weights), weighted=sample.is_weightable)
        how = "weighted" if sample.is_weightable else "not weighted"
        return replace(found, notes=(f"{count} draws of the guide, {how}; {sample.trust}",))

    def to_dataframe(self, num_samples: int | None = None, *, seed: int | None = 0) -> DataFrame:
        """Draws as a pandas DataFrame: a row for each, a column for each scalar entry.

        A guide's draws are resampled by their weights, where k-hat allows that.

        :raises ImportError: without pandas.
        """
        return pandas().DataFrame(scalar_parameters(self.even_draws(num_samples, seed=seed)))

    def to_arviz(
        self,
        num_samples: int | None = None,
        *,
        predictive: bool = False,
        log_likelihood: bool = True,
        seed: int | None = 0,
    ) -> ArvizData:
        """Return the result as ArviZ takes it: InferenceData of ArviZ 0.x, a DataTree of 1.x.

        Groups: posterior; sample_stats with ``lp`` (log p of the draw and the data, in the latents'
        own space), of a guide also ``log_q`` and ``log_weight``, k-hat being an attribute;
        log_likelihood and observed_data; posterior_predictive if it is asked for. A guide's draws
        are resampled by their weights, where k-hat allows that (attribute ``resampled``).

        :param predictive: also draw the data anew at each draw.
        :param log_likelihood: also give the log-likelihood of each observation; left out, with a
            warning, where discrete latents join the observations.
        :raises ImportError: without ArviZ.
        """
        joint = self._known_joint()
        raw = self._sample(num_samples, seed)
        sample = resampled(raw, seed)
        latents = {name: sample.flat[name].to(joint.start.device) for name in joint.sites}
        shape = next(iter(sample.values.values())).shape[:2]
        if sample.log_weights is not None and shape[1] % _CHAINS == 0:
            shape = torch.Size([_CHAINS, shape[1] // _CHAINS])
        lp = joint.log_prob(latents)
        stats = {"lp": lp}
        if sample.log_weights is not None:
            stats |= {"log_q": lp - sample.log_weights.to(lp), "log_weight": sample.log_weights}
        groups: dict[str, dict[str, Tensor]] = {"sample_stats": stats}
        observed = pointwise.observed_data(joint)
        if log_likelihood and observed:
            try:
                groups["log_likelihood"] = pointwise.log_likelihood(joint, latents)
            except ValueError as error:
                warnings.warn(f"the group log_likelihood is left out: {error}", stacklevel=2)
        if predictive:
            with seeded(seed):
                drawn = pointwise.predictive(joint, latents, joint.args, joint.kwargs)
            groups["posterior_predictive"] = drawn
        grouped = {
            group: {name: value.unflatten(0, shape) for name, value in variables.items()}
            for group, variables in groups.items()
        }
        attributes: dict[str, object] = {"khat": raw.khat, "resampled": int(sample is not raw)}
        attributes["inference_library"] = "pyro_naf"
        posterior = {name: value.unflatten(0, shape) for name, value in sample.flat.items()}
        everything = {"posterior": posterior, **grouped, "observed_data": observed}
        return export(everything, joint, attributes)

    def log_likelihood(
        self, num_samples: int | None = None, *, seed: int | None = 0
    ) -> dict[str, Tensor]:
        """Log-likelihood of each observation at the draws behind :meth:`summary`.

        :return: observed site to ``(N, *batch shape)``; zero for an observation behind a mask.
        :raises ValueError: for a model without observed sites, and where discrete latents that are
            summed out join the observations.
        """
        sample = self._sample(num_samples, seed)
        return pointwise.log_likelihood(self._known_joint(), sample.flat)

    def loo(self, num_samples: int | None = None, *, seed: int | None = 0) -> Loo:
        """Leave-one-out cross-validation, corrected for a guide that is not the posterior.

        :raises ValueError: as :meth:`log_likelihood`.
        """
        sample = self._sample(num_samples, seed)
        likelihood = pointwise.log_likelihood(self._known_joint(), sample.flat)
        return psis_loo(likelihood, sample.log_weights)

    def predictive(
        self, *args: object, num_samples: int = 1000, seed: int | None = None, **kwargs: object
    ) -> dict[str, Tensor]:
        """Posterior predictive draws: data, and ``pyro.deterministic`` sites, drawn anew.

        :param args: arguments of the model, such as new covariates, as are ``kwargs``; by default
            the arguments of the fit. Data among them is not used.
        :param num_samples: number of draws.
        :param seed: of the draws; by default torch's generator goes on.
        :return: site to ``(num_samples, ...)``.
        :raises ValueError: where a latent has another shape with these arguments.
        """
        joint = self._known_joint()
        with seeded(seed):
            sample = self.even_draws()
            count = len(next(iter(sample.values())))
            chosen = torch.randint(count, (num_samples,))
            latents = {name: sample[name][chosen] for name in joint.sites}
            if not args and not kwargs:
                args, kwargs = joint.args, joint.kwargs
            return pointwise.predictive(joint, latents, args, kwargs)

    def plot(self, num_samples: int | None = None, *, seed: int | None = 0) -> Figure:
        """Marginals of the first eight scalar entries.

        :raises ImportError: without matplotlib.
        """
        from ..plot.figures import plot_marginals

        columns = scalar_parameters(self.even_draws(num_samples, seed=seed))
        return plot_marginals({"posterior": dict(list(columns.items())[:_PANELS])})

    def even_draws(
        self, num_samples: int | None = None, *, seed: int | None = None
    ) -> dict[str, Tensor]:
        """Draws that count equally, site to ``(N, ...)``: resampled where k-hat allows it."""
        return self._even(num_samples, seed).flat

    def _even(self, num_samples: int | None, seed: int | None) -> Sample:
        """Draws that count equally."""
        return resampled(self._sample(num_samples, seed), seed)


class GuideResults(Results):
    """Results whose draws are a guide's."""

    guide: Model

    def _proposal(self) -> GuideProposal:
        joint = self._known_joint()
        return GuideProposal(joint, self.guide, joint.args, joint.kwargs)

    def _weighted(self, count: int, seed: int | None) -> tuple[dict[str, Tensor], Tensor]:
        with torch.no_grad(), seeded(seed):
            chunks = list(weighted_draws(self._proposal(), count))
        names = chunks[0].values
        values = {n: torch.cat([chunk.values[n] for chunk in chunks]) for n in names}
        return values, torch.cat([chunk.log_weights for chunk in chunks])

    def _sample(self, num_samples: int | None, seed: int | None) -> Sample:
        count = _DRAWS if num_samples is None else num_samples
        check_integers(num_samples=(count, MIN_PARTICLES))
        values, log_weights = self._weighted(count, seed)
        values = self._with_deterministic(values)
        return Sample({name: value[None] for name, value in values.items()}, log_weights)

    def _with_deterministic(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        found = pointwise.deterministic(self._known_joint(), values)
        return values | {name: value.cpu() for name, value in found.items()}

    def draws(self, num_samples: int = _DRAWS, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draws of the guide as it is, site to ``(num_samples, ...)``.

        ``pyro.deterministic`` sites are among them.

        :param seed: of the draws; by default torch's generator goes on.
        """
        check_integers(num_samples=(num_samples, 1))
        return self._with_deterministic(self._weighted(num_samples, seed)[0])

    def resampled(
        self,
        num_samples: int = 1000,
        *,
        num_particles: int | None = None,
        seed: int | None = None,
    ) -> dict[str, Tensor]:
        """Draws of the posterior: the guide's, resampled by their Pareto-smoothed weights.

        :param num_samples: number of draws returned, with replacement.
        :param num_particles: number of the guide's draws that are weighted; by default five times
            as many, and 20,000 at least.
        :param seed: of the draws; by default torch's generator goes on.
        :return: site to ``(num_samples, ...)``; ``pyro.deterministic`` sites are among them.
        """
        count = max(_PARTICLES * num_samples, _FEWEST) if num_particles is None else num_particles
        check_integers(num_samples=(num_samples, 1), num_particles=(count, MIN_PARTICLES))
        with seeded(seed):
            values, log_weights = self._weighted(count, None)
            weights = smooth(log_weights).exp()
            chosen = torch.multinomial(weights, num_samples, replacement=True)
        return self._with_deterministic({name: value[chosen] for name, value in values.items()})


class Posterior(GuideResults, Shown):
    """Results of any fitted guide, such as an amortised one for the data that is given.

    It has the methods of what :func:`~pyro_naf.infer.refine` returns: ``draws``, ``resampled``,
    ``summary``, ``to_dataframe``, ``to_arviz``, ``log_likelihood``, ``loo``, ``predictive`` and
    ``plot``.

    :param model: any model that Pyro's NUTS takes.
    :param guide: a guide for its latents, of this package, Pyro's, or written by hand.
    :param args: arguments of model and guide, as are ``kwargs``.
    :raises ValueError: for a guide that does not draw the model's latents in their shapes.

    Shapes: draws ``(num_samples, *site shape)``.

    >>> import pyro, pyro.distributions as dist
    >>> from pyro.infer.autoguide import AutoNormal
    >>> def model():
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     pyro.deterministic("square", x**2)
    >>> posterior = Posterior(model, AutoNormal(model, init_scale=1.0))
    >>> posterior.summary(seed=0).names
    ['x', 'square']
    """

    def __init__(self, model: Model, guide: Model, *args: object, **kwargs: object) -> None:
        self.joint, self.guide = Joint(model, args, kwargs), guide
        self._proposal()

    def diagnostics(
        self, num_particles: int = 20_000, *, seed: int | None = 0
    ) -> ImportanceDiagnostics:
        """:class:`~pyro_naf.infer.ImportanceDiagnostics` of the guide for these arguments."""
        check_integers(num_particles=(num_particles, MIN_PARTICLES))
        with seeded(seed):
            return diagnose(self._proposal(), num_particles)

    def table(self) -> Table:
        """Return the summary, with the kind of the guide as title."""
        name = getattr(type(self.guide), "__name__", "guide")
        return replace(self.summary().table(), title=f"posterior by {name}")
