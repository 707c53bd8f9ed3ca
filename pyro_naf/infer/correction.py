r"""mcmc_correct: exact draws, by Markov chains in the space where the guide is a standard normal.

A guide :math:`z = T(\epsilon)`, :math:`\epsilon \sim N(0, I)`, carries the posterior back to

.. math:: \pi(\epsilon) \propto w(\epsilon) N(\epsilon; 0, I),
    \qquad w(\epsilon) = p(x, T(\epsilon)) / q(T(\epsilon))

which is nearly normal where the guide is good, whatever the posterior's own geometry.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, fields

import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor

from ..files.stored import ModelFileError
from ..support.calls import Model
from ..support.checks import check_integers
from ..support.deprecation import renamed
from ..support.labels import entry_labels
from ..support.tables import Shown, Table
from .adaptive_chains import TORN
from .base_space import BaseSpace, find_starts
from .chain_methods import hamiltonian, neutra
from .chains import Counts, convergence, stood_still
from .independence import independence
from .joint import Joint
from .posterior import Results
from .sample import Sample
from .saving import load_correction, save_correction
from .settings import DEFAULTS
from .unvisited import unvisited_mass
from .verdict import cut_short

#: Effective draws below which means and R-hat itself are too rough.
_ENOUGH = 100

#: Share of the time for weighing draws of the guide, from which chains start, where it has a limit.
_STARTS = 0.03

#: Share of the time, or of the time of chains without a limit, that a search for modes beside them
#: may take; without a limit it may take these seconds in any case.
_SEARCH, _LEAST_SEARCH = 0.06, 4.0

#: Draws of a chain below which R-hat is not a number.
_FEWEST = 4

#: Number of entries of a site that a summary shows.
_SHOWN = 8


@dataclass(frozen=True, repr=False)
class Correction(Results, Shown):
    r"""Draws of the posterior, and whether to rely on them: what :func:`mcmc_correct` returns.

    ``summary``, ``to_dataframe``, ``to_arviz``, ``log_likelihood``, ``loo``, ``predictive`` and
    ``plot`` work as in :class:`Refinement`; ``save`` and ``load`` keep it in a file.

    :ivar draws: latent site to constrained draws ``(num_chains, num_samples, ...)``;
        ``pyro.deterministic`` sites are among them.
    :ivar rhat: site to rank-normalised split R-hat of each of its entries (see
        :mod:`~pyro_naf.infer.chains`, as for both ESS); NaN for an entry that never varies.
    :ivar ess: site to bulk effective sample size of each entry, over all chains.
    :ivar accept_rate: mean acceptance rate; for "imh" of the independence steps alone.
    :ivar khat: k-hat of the guide.
    :ivar method: "imh", "neutra" or "hmc".
    :ivar evaluations: of the log-density (for "neutra", of its gradient: leapfrog steps) after the
        warm-up, in all chains; for "hmc" the number of gradients, with the warm-up.
    :ivar divergences: number of transitions to these draws in which NUTS or HMC diverged. Those of
        the warm-up do not count, nor those of chains that were given up for ones with smaller steps
        or in another space: they say nothing of these draws.
    :ivar ess_tail: site to tail effective sample size of each entry, over all chains.
    :ivar fixed: site to whether each entry is a constant of the site's support, such as the upper
        triangle of a Cholesky factor. Any other entry has to vary.
    :ivar missed: share of the posterior's mass at modes that a short search has found and no chain
        has visited.
    :ivar climbs: number of climbs after which the time for that search was over; None where it was
        enough.
    :ivar out_of_time: whether ``max_seconds`` was over before the chains were as long as asked, or
        agreed.
    :ivar joint: the model's log-density; None for one loaded without the model.
    """

    draws: dict[str, Tensor] = field(repr=False)
    rhat: dict[str, Tensor]
    ess: dict[str, Tensor]
    accept_rate: float
    khat: float
    method: str
    evaluations: int
    divergences: int = 0
    ess_tail: dict[str, Tensor] = field(default_factory=dict)
    fixed: dict[str, Tensor] = field(default_factory=dict, repr=False)
    missed: float = 0.0
    climbs: int | None = None
    out_of_time: bool = False
    joint: Joint | None = field(default=None, repr=False)

    def get_samples(self) -> dict[str, Tensor]:
        """Site to the draws of all chains, ``(num_chains * num_samples, ...)``."""
        return {name: value.flatten(0, 1) for name, value in self.draws.items()}

    @property
    def max_rhat(self) -> float:
        """The largest R-hat of all parameters."""
        return max(float(r.nan_to_num(nan=1.0).max()) for r in self.rhat.values())

    @property
    def min_ess(self) -> float:
        """The smallest effective sample size, of bulk or tail, of all parameters."""
        both = [*self.ess.values(), *self.ess_tail.values()]
        return min(float(e.nan_to_num(nan=math.inf).min()) for e in both)

    @property
    def still(self) -> list[str]:
        """Entries, such as ``"theta[3]"``, that do not move for half a chain, though they could."""
        found = {name: stood_still(value) for name, value in self.draws.items()}
        return [
            label
            for name, mask in found.items()
            for label, still in zip(
                entry_labels(name, mask.shape),
                (mask & ~self.fixed.get(name, ~mask)).flatten().tolist(),
                strict=True,
            )
            if still
        ]

    @property
    def _limit(self) -> str:
        """The argument that ended the chains."""
        return "max_seconds" if self.out_of_time else "num_samples"

    @property
    def verdict(self) -> str:
        """Whether the chains agree, and a search found no mode that they lack, in one line."""
        chains, length = next(iter(self.draws.values())).shape[:2]
        moves = chains * length
        site = max(self.rhat, key=lambda name: float(self.rhat[name].nan_to_num(nan=1.0).max()))
        bad = [name for name, value in self.draws.items() if not value.isfinite().all()]
        if self.missed > DEFAULTS.largest_missed_mass:
            return (
                f"do not trust: no chain has visited other modes, with {self.missed:.0%} of the "
                "mass; refine the model itself, which covers the modes found, and correct that "
                "guide"
            )
        if length < _FEWEST:
            return (
                f"do not trust: only {length} draws of each chain, too few for R-hat; try a larger "
                f"{self._limit}"
            )
        if bad:
            reason = f"draws of {bad} are not finite"
        elif still := self.still:
            more = f" and {len(still) - _SHOWN} more" if len(still) > _SHOWN else ""
            reason = f"{', '.join(still[:_SHOWN])}{more} stood still for half a chain or longer"
        elif self.divergences > TORN * moves:
            reason = (
                f"{self.divergences} of {moves} transitions diverged, so that a narrow part of the "
                "posterior may lack"
            )
        elif not self.max_rhat < 1.01:
            reason = f"R-hat of {site!r} is {self.max_rhat:.3f}, above 1.01"
        elif self.min_ess < _ENOUGH:
            reason = f"the smallest ESS is {self.min_ess:.0f}, below {_ENOUGH}"
        else:
            agree = f"the chains agree (R-hat below 1.01, ESS above {_ENOUGH})"
            torn = f", though {self.divergences} of {moves} transitions diverged"
            return f"trust: {agree}{torn if self.divergences else ''}{cut_short(self.climbs)}"
        other = "method='hmc', " if self.method == "imh" else ""
        more = "a non-centred model" if "diverged" in reason else f"a larger {self._limit}"
        return f"do not trust: {reason}; try {more}, {other}or to refine the guide"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the draws and what is known of them to a file, without the model.

        An older file stands until the new one is whole.

        :raises OSError: when it cannot be written.
        """
        kept = [own.name for own in fields(self) if own.name != "joint"]
        save_correction({name: getattr(self, name) for name in kept}, path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Model | None = None,
        *args: object,
        **kwargs: object,
    ) -> Correction:
        """Load the result that :meth:`save` wrote; no code in the file is run.

        :param model: the model, without which ``log_likelihood``, ``loo``, ``predictive`` and
            ``to_arviz`` cannot be had.
        :param args: its arguments, as are ``kwargs``.
        :raises ModelFileError: when the file is truncated, foreign or of another version.
        :raises ValueError: for a model with other latents.
        :raises OSError: when it cannot be read.
        """
        content = load_correction(path, model, args, kwargs)
        try:
            return cls(**content)
        except TypeError as error:
            message = f"{path} does not hold a whole correction: {error}"
            raise ModelFileError(message) from None

    def _sample(self, num_samples: int | None, seed: int | None) -> Sample:
        chains, count = next(iter(self.draws.values())).shape[:2]
        if num_samples is None or num_samples >= chains * count:
            return Sample(self.draws)
        check_integers(num_samples=(num_samples, chains))
        places = torch.linspace(0, count - 1, num_samples // chains).round().long()
        return Sample({name: value[:, places] for name, value in self.draws.items()})

    def table(self) -> Table:
        """Mean, sd, R-hat and ESS of the first entries of each site, and the verdict."""
        rows, notes = [], []
        for name, value in self.get_samples().items():
            columns = value.reshape(len(value), -1).double()
            tail = self.ess_tail.get(name, torch.full_like(self.ess[name], math.nan))
            statistics = (columns.mean(0), columns.std(0), self.rhat[name], self.ess[name], tail)
            entries = torch.stack([c.reshape(-1).double() for c in statistics], -1).tolist()
            labels = entry_labels(name, value.shape[1:])
            for label, (mean, sd, rhat, *ess) in list(zip(labels, entries, strict=True))[:_SHOWN]:
                numbers = [f"{mean:.4g}", f"{sd:.4g}", f"{rhat:.3f}", *(f"{e:.0f}" for e in ess)]
                rows.append([label, *numbers])
            if len(entries) > _SHOWN:
                notes.append(f"{name} has {len(entries) - _SHOWN} more entries")
        chains, samples = next(iter(self.draws.values())).shape[:2]
        notes.append(
            f"{chains} chains of {samples}, acceptance rate {self.accept_rate:.2f}, k-hat of the "
            f"guide {self.khat:.2f}, {self.divergences} divergences"
        )
        header = ["", "mean", "sd", "R-hat", "ESS", "tail"]
        return Table(header, rows, [*notes, f"verdict {self.verdict}"])


@renamed(seconds="max_seconds")
def mcmc_correct(
    model: Model,
    guide: AutoContinuous,
    *args: object,
    num_samples: int | None = None,
    num_chains: int | None = None,
    warmup_steps: int | None = None,
    method: str = "imh",
    max_seconds: float | None = None,
    seed: int | None = None,
    progress: bool = True,
    **kwargs: object,
) -> Correction:
    r"""Draws of the posterior itself, by Markov chains that the guide makes short.

    "imh": independence Metropolis mixed with local steps. For each draw a chain tries eight draws
    of the guide, :math:`\epsilon' \sim N(0, I)`, and then one random walk, :math:`\epsilon' =
    \epsilon + h \xi`, :math:`\xi \sim N(0, I)`. They are taken with probability

    .. math:: \min(1, w(\epsilon') / w(\epsilon)) \quad \text{and} \quad
        \min(1, \pi(\epsilon') / \pi(\epsilon))

    The former jump through the whole posterior, the latter move a chain that sits where the guide
    hardly draws; h is adapted in the warm-up. No gradient is needed, and all chains run at once:
    for a good guide it takes seconds.

    "neutra": the no-U-turn sampler on :math:`\pi(\epsilon)`, all chains at once
    (:func:`~pyro_naf.infer.nuts.sample_nuts`). It is slower, and reaches where the guide has hardly
    any draws.

    "hmc": Hamiltonian Monte Carlo with 64 short chains at once that tune one another
    (:func:`~pyro_naf.infer.hmc.sample_hmc`), which share the price of a gradient. It is the method
    for many latents. Chains run in units of the Gaussian with the moments of the guide's draws,
    where a gradient is cheapest, and on :math:`\pi(\epsilon)` where they diverge or disagree
    there, as in a funnel.

    :param model: any model that Pyro's NUTS takes; finite discrete latents are summed out.
    :param guide: a fitted guide with a transform, of this package or Pyro's, such as
        ``refine(...).guide`` or an ``AutoMultivariateNormal``.
    :param args: the model's arguments, as are ``kwargs``.
    :param num_samples: draws of each chain >= 4; 1000, for "hmc" 400. For "hmc" with
        ``max_seconds`` chains go on by default until R-hat is below 1.01 and every latent has a
        thousand effective draws.
    :param num_chains: number of chains, which start at draws of the guide; 4, for "hmc" 64, of
        which it needs two.
    :param warmup_steps: steps of each chain before them; 500, for "hmc" 200.
    :param method: "imh", "neutra" or "hmc".
    :param max_seconds: time limit of the whole call, for "hmc" alone: it may return fewer draws.
    :param seed: seeds Python's, NumPy's and torch's generators for the duration of the call; on
        the CPU they are put back after.
    :param progress: show a progress bar.
    :raises TypeError: for a guide without a transform of a standard normal.
    :raises ValueError: for an argument out of range, a model with discrete latents or a subsampled
        plate, a guide for another model or for a part of its latents, or a density that is finite
        at too few of the guide's draws.
    :warns UserWarning: for "imh" when k-hat is above 1; when an R-hat is above 1.05, when a chain
        stood still, and when a search found modes that no chain has visited.

    Source: Gabrié et al. 2022 [arXiv:2105.12603]; Hoffman et al. 2019 [arXiv:1903.03704]; Hoffman,
    Radul & Sountsov 2021, *An Adaptive-MCMC Scheme for Setting Trajectory Lengths in HMC*.

    >>> import pyro, pyro.distributions as dist
    >>> from pyro.infer.autoguide import AutoMultivariateNormal
    >>> def model():
    ...     x = pyro.sample("x", dist.Normal(0.0, 1.0))
    ...     pyro.sample("y", dist.Normal(x.exp(), 1.0), obs=torch.tensor(2.0))
    >>> guide = AutoMultivariateNormal(model, init_scale=0.5)
    >>> result = mcmc_correct(model, guide, seed=0, progress=False)
    >>> result.draws["x"].shape, result.max_rhat < 1.01
    (torch.Size([4, 1000]), True)
    """
    if method not in _METHODS:
        raise ValueError(f"method must be one of {sorted(_METHODS)}, got {method!r}")
    defaults, given_samples = _DEFAULTS.get(method, (4, 1000, 500)), num_samples
    num_chains, num_samples, warmup_steps = (
        default if given is None else given
        for given, default in zip((num_chains, num_samples, warmup_steps), defaults, strict=True)
    )
    until_enough = method == "hmc" and max_seconds is not None and given_samples is None
    check_integers(
        num_samples=(num_samples, 4),
        num_chains=(num_chains, 2 if method == "hmc" else 1),
        warmup_steps=(warmup_steps, 0),
    )
    if max_seconds is not None and method != "hmc":
        raise ValueError(f"max_seconds is a limit for method='hmc', got {method!r}")
    began, limit = time.monotonic(), math.inf if max_seconds is None else max_seconds
    with nullcontext() if seed is None else poutine.seed(rng_seed=seed):
        space = BaseSpace(model, guide, args, kwargs)
        start, khat = find_starts(space, num_chains, _STARTS * limit)
        if khat > 1 and method == "imh":
            warnings.warn(
                f"k-hat of the guide is {khat:.2f}, above 1: its draws hardly reach parts of the "
                "posterior, and chains stay there for long; refine the guide, or use "
                "method='hmc'",
                stacklevel=2,
            )
        sizes = None if until_enough else num_samples, warmup_steps
        options = {"deadline": began + (1 - _SEARCH) * limit} if method == "hmc" else {}
        states, counts = _METHODS[method](space, start, *sizes, progress, **options)
        fixed, draws = space.fixed(), space.draws(states)
        found = {name: convergence(value) for name, value in draws.items()}
        now = time.monotonic()
        search_seconds = max(_SEARCH * (now - began), _LEAST_SEARCH)
        if max_seconds is not None:
            search_seconds = max(began + limit - now, 0.0)
        missed, climbs = unvisited_mass(space.joint, states.flatten(0, 1), search_seconds)
    result = Correction(
        draws,
        {name: each.rhat for name, each in found.items()},
        {name: each.ess for name, each in found.items()},
        khat=khat,
        method=method,
        ess_tail={name: each.ess_tail for name, each in found.items()},
        fixed=fixed,
        missed=missed,
        climbs=climbs,
        joint=space.joint,
        **counts,
    )
    if result.max_rhat > 1.05 or result.still or missed > DEFAULTS.largest_missed_mass:
        warnings.warn(result.verdict, stacklevel=2)
    return result


_METHODS: dict[str, Callable[..., tuple[Tensor, Counts]]] = {
    "imh": independence,
    "neutra": neutra,
    "hmc": hamiltonian,
}

#: Chains, draws of each and warm-up steps where none are given, if not 4, 1000 and 500.
_DEFAULTS = {"hmc": (64, 400, 200)}
