"""Summaries of draws: moments, intervals and their Monte Carlo errors, by scalar entry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..support.labels import entry_labels
from ..support.tables import Shown, Table
from .chains import convergence, mean_mcse
from .doubt import doubts

if TYPE_CHECKING:
    from pandas import DataFrame

#: Probability of the highest-density interval, as in ArviZ.
INTERVAL = 0.94

#: Levels of the quantiles.
LEVELS = (0.05, 0.5, 0.95)

#: Number of rows that are printed.
_SHOWN = 40

#: Decimals of the columns that are not in the unit of the latent.
_DECIMALS = {"rhat": 3, "ess": 0, "ess_tail": 0, "doubt": 2}


@dataclass(frozen=True, repr=False)
class Summary(Shown):
    """Summary of a posterior: a row for each scalar entry, a column for each statistic.

    :ivar names: labels of the rows, such as ``theta[0]``.
    :ivar columns: statistic to numpy array, an entry for each row: ``mean``, ``sd``, the ends of
        the highest-density interval, quantiles, ``mcse_mean`` and ``mcse_sd`` (Monte Carlo standard
        errors of mean and sd), ``ess`` (effective number of draws); of chains ``ess_tail`` and
        ``rhat``; of weighted draws ``doubt``, the distance in sd by which the importance weights
        move the draws (:func:`~pyro_naf.infer.doubt.doubts`): the guide is farthest from the
        posterior where it is largest.
    :ivar notes: lines on how the draws were made.

    >>> found = summarise({"x": torch.arange(5.0)[None]}, torch.zeros(5))
    >>> found.names, found["mean"]
    (['x'], array([2.]))
    """

    names: list[str]
    columns: dict[str, np.ndarray]
    notes: tuple[str, ...] = ()

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def row(self, name: str) -> dict[str, float]:
        """Return the statistics of one entry, such as ``theta[0]``."""
        if name not in self.names:
            raise KeyError(f"{name!r} is no row, those are {self.names}")
        i = self.names.index(name)
        return {title: float(column[i]) for title, column in self.columns.items()}

    def to_dataframe(self) -> DataFrame:
        """Return the table as a pandas DataFrame, indexed by label.

        :raises ImportError: without pandas.
        """
        return pandas().DataFrame(self.columns, index=self.names)

    def table(self) -> Table:
        """List the first forty rows."""
        rows = []
        for i, name in enumerate(self.names[:_SHOWN]):
            digits = _decimals(float(self.columns["sd"][i]))
            cells = [
                f"{column[i]:.{_DECIMALS.get(title, digits)}f}"
                for title, column in self.columns.items()
            ]
            rows.append([name, *cells])
        notes = list(self.notes)
        if len(self.names) > _SHOWN:
            notes.insert(0, f"... and {len(self.names) - _SHOWN} rows more")
        return Table(["", *self.columns], rows, notes)


def pandas() -> ModuleType:
    """Import pandas, or raise an ImportError that says how to get it."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "a DataFrame needs pandas: pip install 'pyro_naf[data]'; without it .columns of a "
            "summary, and .draws() of a result, hold arrays"
        ) from error
    return pandas


def summarise(
    draws: Mapping[str, Tensor], log_weights: Tensor, *, weighted: bool = False
) -> Summary:
    """Summary of independent draws, or of chains, or of weighted draws.

    :param draws: site to ``(num_chains, num_samples, ...)``; one chain holds independent draws.
    :param log_weights: normalised log-weights ``(num_chains * num_samples,)``, or all equal.
    :param weighted: whether the statistics use the weights; the doubt is told in either case.
    """
    names = [label for n, v in draws.items() for label in entry_labels(n, v.shape[2:])]
    parts = [v.detach().double().cpu().reshape(*v.shape[:2], -1) for v in draws.values()]
    chains = torch.cat(parts, -1)
    flat, weights = chains.flatten(0, 1), log_weights.double().softmax(0)
    even = torch.full_like(weights, 1 / len(weights))
    chosen = weights if weighted else even
    mean, sd = _moments(flat, chosen)
    columns = {"mean": mean, "sd": sd}
    ordered, places = flat.sort(0)
    mass = chosen[places]
    low, high = _interval(ordered, mass)
    tail = 100 * (1 - INTERVAL) / 2
    columns |= {f"hdi_{tail:g}%": low, f"hdi_{100 - tail:g}%": high}
    columns |= {f"{100 * level:g}%": _quantile(ordered, mass, level) for level in LEVELS}
    columns |= _errors(chains, chosen, mean, sd)
    if bool((log_weights != log_weights[0]).any()):
        columns["doubt"] = doubts(flat, weights)
    arrays = {title: column.numpy() for title, column in columns.items()}
    return Summary(names, arrays)


def _moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation ``(K,)`` of draws ``(N, K)``."""
    mean = weights @ x
    # The usual N - 1 for even weights.
    unbiased = 1 - weights.square().sum()
    return mean, (weights @ (x - mean).square() / unbiased).sqrt()


def _errors(chains: Tensor, weights: Tensor, mean: Tensor, sd: Tensor) -> dict[str, Tensor]:
    r"""Monte Carlo standard errors and effective numbers of draws.

    The error of a self-normalised mean of f is :math:`\sqrt{\sum_n w_n^2 (f_n - \bar f)^2}`; the
    error of sd is the error of the mean of squares, divided by 2 sd.
    """
    squares = (chains - mean).square()
    if len(chains) == 1:
        ess = torch.full_like(mean, 1 / float(weights.square().sum()))
        deviation = squares[0] - weights @ squares[0]
        squared = weights.square()
        mean_error = (squared @ squares[0]).sqrt()
        sd_error = (squared @ deviation.square()).sqrt() / (2 * sd)
        return {"mcse_mean": mean_error, "mcse_sd": sd_error, "ess": ess}
    found = convergence(chains)
    return {
        "mcse_mean": mean_mcse(chains),
        "mcse_sd": mean_mcse(squares) / (2 * sd),
        "ess": found.ess,
        "ess_tail": found.ess_tail,
        "rhat": found.rhat,
    }


def _quantile(ordered: Tensor, mass: Tensor, level: float) -> Tensor:
    """Weighted quantile ``(K,)`` of ordered draws ``(N, K)``, each in the middle of its mass."""
    middle = mass.cumsum(0) - mass / 2
    above = (middle < level).sum(0, keepdim=True).clamp(1, len(ordered) - 1)
    low, high = middle.gather(0, above - 1), middle.gather(0, above)
    part = ((level - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
    return torch.lerp(ordered.gather(0, above - 1), ordered.gather(0, above), part)[0]


def _interval(ordered: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends ``(K,)`` of the shortest interval with the mass of :data:`INTERVAL`."""
    total = mass.cumsum(0)
    before = total - mass
    ends = torch.searchsorted(total.T.contiguous(), (before.T + INTERVAL - 1e-12).contiguous()).T
    complete = ends < len(ordered)
    width = ordered.gather(0, ends.clamp(max=len(ordered) - 1)) - ordered
    start = torch.where(complete, width, torch.inf).argmin(0, keepdim=True)
    end = ends.gather(0, start).clamp(max=len(ordered) - 1)
    return ordered.gather(0, start)[0], ordered.gather(0, end)[0]


def _decimals(sd: float) -> int:
    """Decimals that show three digits of the standard deviation."""
    if not 0 < sd < np.inf:
        return 3
    return int(np.clip(2 - np.floor(np.log10(sd)), 0, 8))
