r"""Leave-one-out cross-validation by importance sampling, of approximate posteriors too.

The posterior without observation i has, relative to the distribution q that draws come from, the
weights

.. math:: r_i(z) = \frac{p(x, z)}{q(z)} \frac{1}{p(x_i \mid z)}

whose tails are smoothed for each i. Draws of a Markov chain have p(x, z) / q(z) = 1.

Sources: Vehtari, Gelman & Gabry 2017 [arXiv:1507.04544]; for approximations, Magnusson, Andersen,
Jonasson & Vehtari 2019 [arXiv:1904.10679].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..support.labels import entry_labels
from ..support.tables import Shown, Table
from .psis import khat_threshold, pareto_khat, smooth
from .summaries import pandas

if TYPE_CHECKING:
    from pandas import DataFrame

#: Difference in elpd below which standard errors of differences cannot be relied on.
_SMALL = 4.0


@dataclass(frozen=True, repr=False)
class Loo(Shown):
    r"""Expected log predictive density of data like each observation, from the others.

    :ivar elpd: :math:`\sum_i \log p(x_i \mid x_{-i})`; ``se`` its standard error over observations.
    :ivar p_loo: effective number of parameters, the log-likelihood of the data under the whole
        posterior minus ``elpd``.
    :ivar pointwise: the terms ``(n,)``; ``khat`` the k-hat of each, below ``threshold`` where the
        term can be relied on.
    :ivar labels: names of the observations, such as ``y[3]``.
    :ivar spoiled: number of observations whose k-hat is too high because of the weights that the
        draws have as a guide's, and would be low enough for draws of the posterior like these.
    """

    elpd: float
    se: float
    p_loo: float
    pointwise: Tensor = field(repr=False)
    khat: Tensor = field(repr=False)
    threshold: float
    labels: tuple[str, ...] = ()
    spoiled: int = 0

    @property
    def unreliable(self) -> list[str]:
        """Observations whose k-hat is above the threshold."""
        high = (self.khat > self.threshold).nonzero().flatten().tolist()
        return [self.labels[i] if self.labels else str(i) for i in high]

    def table(self) -> Table:
        """elpd, its error, and how far to trust them."""
        bad = self.unreliable
        note = f"k-hat is below {self.threshold:.2f} for all {len(self.khat)} observations"
        if bad:
            shown = ", ".join(bad[:5]) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
            note = (
                f"k-hat is above {self.threshold:.2f} for {len(bad)} of {len(self.khat)} "
                f"observations ({shown}): {self._remedy(len(bad))}"
            )
        row = ["LOO", f"{self.elpd:.2f}", f"{self.se:.2f}", f"{self.p_loo:.2f}"]
        return Table(["", "elpd", "se", "p_loo"], [row], [note])

    def _remedy(self, bad: int) -> str:
        """Say what to do about observations whose k-hat is too high."""
        without, better = "fit the model again without them", "refine it for longer, or correct it"
        if self.spoiled == 0:
            return without
        if self.spoiled == bad:
            return f"the guide is too far from the posterior without them; {better} by mcmc_correct"
        return (
            f"for {self.spoiled} because the guide is too far from the posterior without them "
            f"({better} by mcmc_correct); for the others, {without}"
        )


def psis_loo(log_likelihood: Mapping[str, Tensor], log_weights: Tensor | None = None) -> Loo:
    """Leave-one-out cross-validation from draws and the log-likelihood of each observation.

    :param log_likelihood: observed site to ``(N, *batch shape)``; observations whose log-likelihood
        is zero at all draws, as those that a mask leaves out, do not count.
    :param log_weights: log p - log q of the draws ``(N,)``; None for draws of the posterior itself.
    :raises ValueError: when there are fewer than two observations, or weights of another length.

    >>> z = torch.linspace(-2, 2, 1000)[:, None]
    >>> data = torch.tensor([0.5, -0.5, 1.0])
    >>> psis_loo({"y": torch.distributions.Normal(z, 1.0).log_prob(data)}).labels
    ('y[0]', 'y[1]', 'y[2]')
    """
    labels = [label for n, v in log_likelihood.items() for label in entry_labels(n, v.shape[1:])]
    matrix = torch.cat([v.double().cpu().reshape(len(v), -1) for v in log_likelihood.values()], 1)
    counted = (matrix != 0).any(0)
    matrix, labels = matrix[:, counted], [x for x, c in zip(labels, counted, strict=True) if c]
    if matrix.shape[1] < 2:
        raise ValueError(
            f"LOO needs at least 2 observations, got {matrix.shape[1]}; an event of several "
            "numbers, as of a MultivariateNormal, is one observation"
        )
    base = matrix.new_zeros(len(matrix)) if log_weights is None else log_weights.double().cpu()
    if len(base) != len(matrix):
        raise ValueError(
            f"log_weights must have shape ({len(matrix)},), one for each draw, got "
            f"{tuple(base.shape)}"
        )
    # A draw at which an observation is impossible has no weight where that is left out either.
    ratios = torch.where(matrix.isfinite(), base[:, None] - matrix, -math.inf)
    threshold, spoiled = khat_threshold(len(matrix)), 0
    terms, khats = [], []
    for ratio, ll in zip(ratios.T, matrix.T, strict=True):
        khats.append(pareto_khat(ratio))
        if log_weights is not None and khats[-1] > threshold:
            spoiled += pareto_khat(torch.where(ll.isfinite(), -ll, -math.inf)) <= threshold
        terms.append((smooth(ratio) + ll).nan_to_num(nan=-math.inf).logsumexp(0))
    pointwise, khat = torch.stack(terms), torch.tensor(khats, dtype=torch.double)
    whole = (matrix + smooth(base)[:, None]).logsumexp(0)
    return Loo(
        elpd=float(pointwise.sum()),
        se=math.sqrt(len(pointwise)) * float(pointwise.std()),
        p_loo=float((whole - pointwise).sum()),
        pointwise=pointwise,
        khat=khat,
        threshold=threshold,
        labels=tuple(labels),
        spoiled=spoiled,
    )


@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Models in the order of their expected log predictive density, the best first.

    :ivar names: names of the models.
    :ivar loo: :class:`Loo` of each.
    :ivar log_evidence: log evidence of each, NaN where it is not known; with its standard error.
    :ivar why_no_loo: where a model has no LOO, as one without observations; then the largest
        evidence is the first, and :attr:`loo` is empty.
    """

    names: tuple[str, ...]
    loo: tuple[Loo, ...]
    log_evidence: tuple[tuple[float, float], ...]
    why_no_loo: str = ""

    @property
    def columns(self) -> dict[str, list[float]]:
        """Statistic to its values, in the order of :attr:`names`."""
        evidence = [value for value, _ in self.log_evidence]
        known = [value for value in evidence if not math.isnan(value)]
        return self._loo_columns() | {
            "log_evidence": evidence,
            "se_evidence": [error for _, error in self.log_evidence],
            "log_bayes_factor": [value - max(known, default=math.nan) for value in evidence],
        }

    def _loo_columns(self) -> dict[str, list[float]]:
        if not self.loo:
            return {}
        best = self.loo[0]
        n = len(best.pointwise)
        differences = [found.pointwise - best.pointwise for found in self.loo]
        return {
            "elpd": [found.elpd for found in self.loo],
            "se": [found.se for found in self.loo],
            "difference": [float(d.sum()) for d in differences],
            "se_difference": [math.sqrt(n) * float(d.std()) for d in differences],
            "p_loo": [found.p_loo for found in self.loo],
            "unreliable": [len(found.unreliable) for found in self.loo],
        }

    def to_dataframe(self) -> DataFrame:
        """Return the table as a pandas DataFrame, indexed by model.

        :raises ImportError: without pandas.
        """
        return pandas().DataFrame(self.columns, index=list(self.names))

    @property
    def verdict(self) -> str:
        """Which model predicts best, if the data can tell."""
        columns = self.columns
        if not self.loo:
            return self._by_evidence()
        if bad := [n for n, found in zip(self.names, self.loo, strict=True) if found.unreliable]:
            return f"LOO of {', '.join(bad)} rests on observations with a k-hat that is too high"
        if len(self.names) == 1:
            return "one model alone has nothing to be compared with"
        gap, error = -columns["difference"][1], columns["se_difference"][1]
        pair = f"{self.names[0]} and {self.names[1]}"
        if gap < _SMALL or gap < 2 * error:
            return f"{pair} predict about equally well (difference {gap:.1f} +- {error:.1f})"
        return f"{self.names[0]} predicts best, by {gap:.1f} +- {error:.1f} nats"

    def _by_evidence(self) -> str:
        if len(self.names) == 1:
            return f"no LOO: {self.why_no_loo}"
        (best, error), (second, other) = self.log_evidence[:2]
        gap, noise = best - second, math.hypot(error, other)
        return (
            f"{self.names[0]} has the largest evidence, by {gap:.2f} +- {noise:.2f} nats; no LOO: "
            f"{self.why_no_loo}"
        )

    def table(self) -> Table:
        """List a row for each model."""
        columns = {t: c for t, c in self.columns.items() if t != "se_evidence"}
        rows = [
            [name, *(f"{c[i]:.{0 if t == 'unreliable' else 2}f}" for t, c in columns.items())]
            for i, name in enumerate(self.names)
        ]
        return Table(["", *(t.replace("_", " ") for t in columns)], rows, [self.verdict])


class Comparable(Protocol):
    """A result of inference that can be compared with others."""

    def loo(self) -> Loo:
        """Leave-one-out cross-validation of the model."""


def compare(results: Mapping[str, Loo | Comparable]) -> Comparison:
    """Compare models of one data set by leave-one-out cross-validation and by evidence.

    The evidence asks how probable the data was a priori, and depends on the width of priors; LOO
    asks how well new data is predicted, and hardly does.

    :param results: name to what :func:`~pyro_naf.infer.refine`,
        :func:`~pyro_naf.infer.mcmc_correct` or :class:`~pyro_naf.infer.Posterior` returned, or to a
        :class:`Loo`. A correction has no evidence.
    :return: the best by LOO first; by evidence where a model has no LOO (no observations, or one,
        or some that depend on one another).
    :raises ValueError: for no results, models with different numbers of observations, or where
        neither LOO nor evidence is known of all.

    >>> import pyro, pyro.distributions as dist
    >>> from pyro_naf.infer import refine
    >>> def model(scale):
    ...     x = pyro.sample("x", dist.Normal(0.0, scale))
    ...     with pyro.plate("n", 3):
    ...         pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor([0.5, 1.0, 0.2]))
    >>> found = {f"sd {s:g}": refine(model, s, seed=0, progress=False) for s in (1.0, 50.0)}
    >>> compare(found).names[0]
    'sd 1'
    """
    if not results:
        raise ValueError("there must be at least one result to compare, got none")
    try:
        found = {name: r if isinstance(r, Loo) else r.loo() for name, r in results.items()}
    except ValueError as error:
        return _compare_evidence(results, error)
    first, *others = found
    for name in others:
        if len(found[name].pointwise) != len(found[first].pointwise):
            raise ValueError(
                f"models must have the same observations, but {first!r} has "
                f"{len(found[first].pointwise)} and {name!r} has {len(found[name].pointwise)}"
            )
    names = sorted(found, key=lambda name: -found[name].elpd)
    evidence = (_evidence(results[name]) for name in names)
    return Comparison(tuple(names), tuple(found[name] for name in names), tuple(evidence))


def _compare_evidence(results: Mapping[str, Loo | Comparable], error: ValueError) -> Comparison:
    """Compare models by evidence, as one of them has no LOO for this reason."""
    found = {name: _evidence(result) for name, result in results.items()}
    if any(math.isnan(value) for value, _ in found.values()):
        raise error
    names = sorted(found, key=lambda name: -found[name][0])
    return Comparison(tuple(names), (), tuple(found[name] for name in names), str(error))


def _evidence(result: object) -> tuple[float, float]:
    found = getattr(result, "after", None)
    if found is None and hasattr(result, "diagnostics"):
        found = result.diagnostics()
    return (math.nan, math.nan) if found is None else (found.log_evidence, found.log_evidence_se)
