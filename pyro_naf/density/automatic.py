"""``architecture="auto"``: densities of several sizes in one mixture, weighted by held-out rows.

A Gaussian, mixtures of Gaussians and of Student's t's, and two flows that start at the data's
Gaussian are fitted: where rows are few, each to the rows outside of one fold after another; where
they are many, once, beside validation rows. The likelihood that each gives the rows left out
decides its weight in a mixture of all of them (Smyth & Wolpert 1998, Stacked density estimation).
No flow is fitted again: the flow of a fold has learnt from four fifths of the rows, and the five
flows together from all. Gaussians and mixtures, which take no time, have a sixth part: it is fitted
to all rows and has as much weight as the five.

Classes that are not missing are a context of flows, and of mixtures that are fitted to both
(:mod:`pyro_naf.density.given_classes`).

Where cells are missing, all candidates are Gaussians, and mixtures of them, of t's and of normal
scores, whose likelihood of the cells seen is a closed form. Classes are then part of the rows, and
mixtures of t's, which take none, are left out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..files.archive import plain
from ..support.seeding import seeded
from ..training import parallel
from ..training.limits import Limits
from ..training.progress import Progress
from . import overfitting
from .architectures import build, parse
from .candidates import FEW_ROWS, FOLDS, Candidate, candidates
from .closed_form import CLOSED
from .flow import NormalizingFlow
from .given_classes import GivenClasses
from .scoring import Scored, averaged
from .settings import Compared, Evaluation, History, OnEvaluation, Stop, Training
from .stacked import Folds, Stacked, stacking_weights
from .training import Rows, train

#: Rows up to which densities are chosen by cross-validation instead of validation rows.
CROSS_VALIDATED = 4000

#: Number of rows times squared number of columns from which mixtures of rows with missing cells are
#: fitted once, beside validation rows: each such row has a covariance of its own to invert.
COSTLY_WITH_GAPS = 2**21

#: Weight below which a density is left out of the mixture; the Gaussian always stays.
NEGLIGIBLE = 0.02

#: Number of rows that Gaussian mixtures, and the linear maps in front of flows, are fitted to.
MIXTURE_ROWS = 20_000

#: Part of the time limit in which mixtures are begun, and their steps made.
MIXTURES_SHARE = 0.5

#: Part of the time limit that the two flows get; the rest is for what has no steps.
FLOWS_SHARE = 0.95

#: What is fitted.
Density = NormalizingFlow | GivenClasses


@dataclass
class Fitted:
    """What :func:`fit` found.

    :ivar density: the mixture.
    :ivar parts: architecture and options of each of its parts.
    :ivar held_out: the log-density of each row that was left out, under the parts that were fitted
        without it, ``(N,)``.
    :ivar folds: which of the parts these are; None without cross-validation.
    """

    density: Stacked
    parts: list[tuple[str, dict[str, object]]]
    history: History
    held_out: Tensor
    folds: Folds | None


@dataclass(frozen=True)
class Task:
    """Rows to fit a density to, and what is known of them and asked for.

    :ivar rows: x ``(N, D)`` and, where there is one, the context ``(N, C)``, standardised.
    :ivar held_out: the same for validation; None for cross-validation.
    :ivar training: budget, seed, and how to report.
    :ivar given: fields of :class:`Training` that the user chose, for all flows.
    :ivar overrides: options of an architecture that the user chose, for all flows.
    :ivar scored: the rows to be left out, or for validation, with each point of their noise.
    :ivar weight: of the rows, ``(N,)``; 1 by default.
    :ivar gaps: cells of x are missing, here or in the rows left out.
    :ivar sizes: number of values of each class that x holds behind its numbers.
    :ivar holes: dimensions of x that rows may lack, as :func:`architectures.build` takes them.
    :ivar classes: number of values of each class in the context, where it holds nothing else.
    """

    rows: Rows
    held_out: Rows | None
    training: Training
    given: dict[str, object]
    overrides: dict[str, object]
    scored: Sequence[Scored]
    weight: Tensor | None = None
    dtype: torch.dtype = torch.float32
    gaps: bool = False
    sizes: Sequence[int] = ()
    holes: Mapping[int, int] | None = None
    classes: Sequence[int] = ()

    @property
    def dim(self) -> int:
        """Number of columns of x that are numbers."""
        return self.rows[0].shape[1] - len(self.sizes)

    @property
    def context_dim(self) -> int:
        """Width of the context."""
        return self.rows[1].shape[1] if len(self.rows) > 1 else 0


def fit(
    task: Task, keep: Callable[[Fitted], None], on_evaluation: OnEvaluation | None = None
) -> None:
    """Fit and weight the candidates.

    :param keep: is given what was found, also when an exception or Ctrl-C ends the search after the
        first density.
    """
    with seeded(task.training.seed + parallel.rank()):
        search = _Search(task)
        try:
            search.run(on_evaluation)
        finally:
            if search.done:
                keep(search.result())


class _Split(NamedTuple):
    """One fold: its number, rows to fit to and their weights, rows left out, and where."""

    number: int
    kept: Rows
    weight: Tensor | None
    out: Rows
    at: Tensor


class _Search:
    """The candidates, the folds, and the likelihoods of the rows that were left out."""

    def __init__(self, task: Task) -> None:
        self.task, self.device = task, task.rows[0].device
        n, crossed = len(task.rows[0]), task.held_out is None
        self.tried = candidates(
            n,
            task.rows[0].shape[1],
            task.context_dim,
            crossed=crossed,
            gaps=task.gaps,
            classes=bool(task.sizes),
            given_classes=bool(task.classes),
        )
        self.folds = FOLDS if crossed and n >= FEW_ROWS else 1
        self.fold = torch.randperm(n, device=self.device) % self.folds
        _, shift = task.scored[0]
        self.left_out, self.offset = len(shift), float(shift.mean())
        self.log_probs = torch.full((self.left_out, len(self.tried)), -math.inf).double()
        self.parts: dict[tuple[int, int], Density] = {}
        self.done: list[int] = []
        self.cut: set[int] = set()
        self.history = History()
        self.limits = Limits(None, task.training.max_seconds)
        self.overfit: list[tuple[float, float]] = []

    def splits(self) -> Iterator[_Split]:
        """Yield every fold."""
        if self.folds == 1:
            validation = self.task.rows if self.task.held_out is None else self.task.held_out
            everywhere = torch.arange(self.left_out, device=self.device)
            yield _Split(0, self.task.rows, self.task.weight, validation, everywhere)
            return
        for k in range(self.folds):
            kept, out = self.fold != k, self.fold == k
            weight = None if self.task.weight is None else self.task.weight[kept]
            left_out = [t[out] for t in self.task.rows]
            yield _Split(k, [t[kept] for t in self.task.rows], weight, left_out, out)

    def run(self, on_evaluation: OnEvaluation | None) -> None:
        total = self.folds * len(self.tried)
        shown = self.task.training.progress and parallel.rank() == 0 and self.folds > 1
        with Progress(shown, name="fit") as bar:
            for i, candidate in enumerate(self.tried):
                if self.done and self.spent(candidate):
                    continue
                try:
                    for split in self.splits():
                        part, stop = self.make(candidate), partial(self.cut_off, i)
                        self.begin(part, candidate, split.kept, split.weight, stop)
                        if candidate.share:
                            self.train(part, candidate, split, on_evaluation)
                        part.eval()
                        found = averaged(part, self.task.scored, split.at)
                        self.log_probs[split.at.cpu(), i] = found.cpu()
                        self.parts[i, split.number] = part
                        bar.at(candidate.architecture, len(self.parts) / total, {})
                    self.done.append(i)
                except RuntimeError as error:  # of a flow: the others stand
                    if i == 0:
                        raise
                    warnings.warn(f"{candidate.architecture} is left out: {error}", stacklevel=2)

    def spent(self, candidate: Candidate) -> bool:
        """Whether the time limit is over, or the part of it for what is not trained."""
        if self.limits.seconds is None:
            return False
        part = 1.0 if candidate.share else MIXTURES_SHARE
        # All processes must agree on it.
        return parallel.same(self.limits.passed()) > part * self.limits.seconds

    def make(self, candidate: Candidate) -> Density:
        task = self.task
        part = build(
            candidate.architecture, task.dim, task.context_dim,
            sizes=task.sizes, holes=task.holes, classes=task.classes, **self.options(candidate),
        )  # fmt: skip
        return part.to(self.device, task.dtype)

    def options(self, candidate: Candidate) -> dict[str, object]:
        return {**candidate.overrides, **(self.task.overrides if candidate.share else {})}

    def cut_off(self, i: int) -> bool:
        """Whether a candidate's fit has to end now, which is remembered."""
        over = self.spent(self.tried[i])
        if over:
            self.cut.add(i)
        return over

    def begin(
        self,
        part: Density,
        candidate: Candidate,
        kept: Rows,
        weight: Tensor | None,
        stop: Stop | None = None,
    ) -> None:
        """Fit what is not trained; a mixture of very many rows is fitted to some of them."""
        every = candidate.architecture == "gaussian" and not kept[0].isnan().any()
        step = 1 if every else max(1, len(kept[0]) // MIXTURE_ROWS)
        context = kept[1][::step] if len(kept) > 1 else None
        weight = None if weight is None else weight[::step]
        part.start(kept[0][::step], context, weight, stop)

    def train(
        self,
        part: Density,
        candidate: Candidate,
        split: _Split,
        on_evaluation: OnEvaluation | None,
    ) -> None:
        """Train a flow within its part of the time that is left."""
        given = self.task.given
        chosen = {**candidate.training, **given}
        if {"max_epochs", "max_seconds"} & {*given} and "max_steps" not in given:
            chosen["max_steps"] = None
        if self.task.training.max_seconds is not None:
            chosen["max_seconds"] = self.seconds_for(candidate, split.number)
        if self.folds > 1:
            chosen["progress"] = False
        if self.folds > 1 or candidate is not self.tried[-1]:
            chosen |= {"checkpoint": None, "resume": False}
        changed: Callable[..., Training] = partial(replace, self.task.training)
        options = changed(**chosen)
        before = self.history.steps

        def evaluated(entry: Evaluation) -> None:
            entry |= {"density": candidate.architecture, "fold": split.number}
            if on_evaluation is not None:
                on_evaluation(entry)

        model: dict[str, object] = {
            "architecture": candidate.architecture,
            "overrides": self.options(candidate),
        }
        found = train(
            part, split.kept, split.out, options, evaluated,
            offset=self.offset, model=model, weight=split.weight,
        )  # fmt: skip
        self.overfit.append(overfitting.drop(found))
        for entry in found.evaluations:
            entry["step"] += before
        self.history.evaluations += found.evaluations
        self.history.steps += found.steps
        self.history.skipped += found.skipped
        self.history.stopped = found.stopped

    def seconds_for(self, candidate: Candidate, k: int) -> float:
        """Return the time that one flow gets: a share of what is left for it and those after it."""
        assert self.limits.seconds is not None
        left = FLOWS_SHARE * self.limits.seconds - self.limits.passed()
        after = self.tried[self.tried.index(candidate) :]
        rest = candidate.share * (self.folds - k) + self.folds * sum(c.share for c in after[1:])
        return parallel.same(max(left * candidate.share / rest, 1e-3))

    # ------------------------------------------------------------------------------- the mixture

    def result(self) -> Fitted:
        chosen, weights = self.weigh()
        total = torch.logsumexp(self.log_probs[:, chosen] + weights.log(), 1)
        parts, each, made, origins = [], [], [], []
        for i, weight in zip(chosen, weights.tolist(), strict=True):
            options = self.options(self.tried[i])
            own = self.fold_weights(i)
            for k, share in own.items():
                made.append(self.parts[i, k])
                origins.append((i, k))
                kept = cast("dict[str, object]", plain("options", options))
                parts.append((self.tried[i].architecture, kept))
                each.append(weight * share)
        density = Stacked(self.task.rows[0].shape[1], made, torch.tensor(each, dtype=torch.double))
        density = density.to(self.device, self.task.dtype)
        self.finish(total)
        folds = Folds(origins, self.fold.cpu()) if self.folds > 1 else None
        return Fitted(density, parts, self.history, total, folds)

    def fold_weights(self, i: int) -> dict[int, float]:
        """Weight a candidate's parts; what has no steps is fitted to all rows too.

        A candidate that the time limit has cut off is not fitted again: all rows take longer.
        """
        shares = dict.fromkeys(range(self.folds), 1 / self.folds)
        if self.tried[i].share or self.folds == 1 or i in self.cut:
            return shares
        whole = self.make(self.tried[i])
        self.begin(whole, self.tried[i], self.task.rows, self.task.weight)
        self.parts[i, self.folds] = whole.eval()
        return {**{k: 0.5 * share for k, share in shares.items()}, self.folds: 0.5}

    def weigh(self) -> tuple[list[int], Tensor]:
        """Return the candidates that stay, and their weights."""
        crossed, weight = self.task.held_out is None, self.task.weight
        weight = weight.cpu() if crossed and weight is not None else None
        weights = stacking_weights(self.log_probs[:, self.done], weight).tolist()
        chosen = [i for i, w in zip(self.done, weights, strict=True) if i == 0 or w >= NEGLIGIBLE]
        return chosen, stacking_weights(self.log_probs[:, chosen], weight)

    def finish(self, total: Tensor) -> None:
        """Add the comparison to the history, and the mixture as its last evaluation."""
        history = self.history
        history.seconds = self.limits.passed()
        value = float(total.mean())
        epoch = history.evaluations[-1]["epoch"] if history.evaluations else 0.0
        last = Evaluation(step=history.steps, epoch=epoch, seconds=history.seconds, lr=0.0)
        last |= {"train": None, "validation": value, "density": "auto", "fold": None}
        history.evaluations.append(last)
        history.best_step = history.steps
        means = self.log_probs.mean(0)
        kinds = [parse(tried.architecture)[0] for tried in self.tried]
        mixtures = [i for i in self.done if kinds[i] in CLOSED[1:]]
        flows = [i for i in self.done if self.tried[i].share]
        for kind in ([0], mixtures, flows):
            if kind:
                i = max(kind, key=lambda i: float(means[i]))
                name = self.tried[i].architecture
                history.comparison.append(self.compared(name, self.log_probs[:, i]))
        history.comparison.append(self.compared("auto", total))
        history.overfit = overfitting.sentence(self.overfit)

    def compared(self, name: str, values: Tensor) -> Compared:
        error = 2 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else None
        return {"name": name, "mean": float(values.mean()), "2se": error}
