"""FlowDensity: a density estimator for rows of numbers, and for tables."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..support.checks import check_integers
from ..support.seeding import seeded
from ..support.tables import Shown, Table
from . import cross_conformal, discrete, preparation, questions, weighted
from .arrays import RowsLike, TableLike
from .fitting import Fitting
from .flow import evaluating
from .model_file import load_model, save_model
from .settings import OnEvaluation
from .shown import table_of
from .table_density import TableDensity
from .weighted import COMPARED, WeightedDensity


class FlowDensity(Shown, TableDensity):
    r"""A density fitted to rows of numbers by maximum likelihood.

    By default it is a mixture of Gaussians, Student's t's and flows, weighted by rows that they
    were not fitted to (:mod:`pyro_naf.density.automatic`); ``architecture`` names a single flow
    instead. The rows are standardised inside: with means :math:`m` and standard deviations
    :math:`s` of the columns and the flow's density p,

    .. math:: \log p(x) = \log p\big((x - m) / s\big) - \textstyle\sum_t \log s_t

    in nats, for x in the units of the data. Numpy arrays and tensors of any floating-point dtype
    are taken; the flow computes in its own, that of torch's default at construction.

    Cells may be missing (NaN, None, NaT) in tables without a context: by default, and with the
    architectures of Gaussians and t's ("gaussian", "gmm-K", "student-K", "copula-K"), the
    likelihood of the cells seen is what is fitted and scored. Classes are then part of the mixture
    (of "gmm-K" and "copula-K"): within each Gaussian they are independent of the other columns.

    scikit-learn takes it for an estimator, whose y is the context: ``clone``, ``Pipeline``,
    ``cross_val_score`` and ``GridSearchCV`` over any argument work.

    :param input_dim: D >= 1, the number of columns; by default that of the rows given to fit.
    :param context_dim: width C of a context; p is then the density of x given it.
    :param architecture: a name of :mod:`pyro_naf.density.architectures`.
    :param options: fields of :class:`~pyro_naf.density.options.Options`, and the arguments of
        :meth:`fit`, which are then its defaults.
    :raises ValueError: for an unknown architecture or an option out of its range.
    :raises TypeError: for an unknown option.

    :ivar history: of the last fit, a :class:`~pyro_naf.density.settings.History`; its
        ``comparison`` sets the Gaussian, the best Gaussian mixture, the best flow and the density
        beside each other.
    :ivar held_out: log-densities ``(N,)`` of the rows that were held out in the last fit; of the
        first 1000 where many were, of a table with integers.
    :ivar columns: names of the columns, where they are known; ``context_columns`` likewise.
    :ivar names: what messages of :meth:`fit` call the rows and the contexts.
    :ivar noise: width of the noise that was added to discrete columns before the fit, by column;
        rows to be scored need it too (the command line sees to it).
    :ivar values: the values that these columns can take, ascending, by column; draws are such.

    Source: Huang et al. 2018 [arXiv:1804.00779], section 6.2.

    >>> x = torch.randn(200, 2).exp()
    >>> density = FlowDensity().fit(x, max_seconds=1, seed=0, progress=False)
    >>> density.log_prob(x).shape, density.sample(5).shape
    (torch.Size([200]), torch.Size([5, 2]))
    """

    def table(self) -> Table:
        """Return the columns with their kinds, and the held-out log-likelihoods of the last fit."""
        return table_of(self)

    # ------------------------------------------------------------------------------------ fitting

    def fit(
        self,
        x: TableLike,
        context: RowsLike | None = None,
        sample_weight: ArrayLike | Tensor | None = None,
        *,
        y: RowsLike | None = None,
        on_evaluation: OnEvaluation | None = None,
        **settings: object,
    ) -> FlowDensity:
        """Fit the density to rows, and return it.

        A named architecture goes on from its present weights. The weights with the best likelihood
        of the validation rows are kept, also when an exception or Ctrl-C ends the fit. The rows are
        moved to the module's device.

        :param x: rows ``(N, D)``, N >= 2.
        :param context: ``(N, C)``, with ``context_dim`` = C; ``(N,)`` where C = 1. Labels ``(N,)``
            are not looked at where C = 0, as in scikit-learn's unsupervised estimators.
        :param y: another name of the context, that of scikit-learn.
        :param sample_weight: of the rows, ``(N,)``, at least 0; 1 by default.
        :param on_evaluation: called with each entry of ``history.evaluations`` as it is made.
        :param settings: fields of :class:`~pyro_naf.density.settings.Training`, and ``validation``:
            the part of the rows that is held out, by default 0.1, 0 for none; or such rows, with a
            context a pair of rows and contexts. ("auto" cross-validates up to 4000 rows instead,
            unless rows are given.) ``seed`` is that of the held out rows, the batches and dropout,
            by default from torch's generator; weights of a named architecture were initialised when
            the module was made.
        :raises TypeError: when the data holds no real numbers, or for an unknown setting.
        :raises ValueError: for another shape, infinity, NaN where missing cells cannot be fitted
            (counted, rows named), a column without any value, a constant column, too few rows, or
            an argument out of its range.
        :raises RuntimeError: when the likelihood is not finite for 50 steps in a row, or never
            is for the validation rows.
        """
        given = {**self.settings, **settings}
        if given.get("seed") is None:
            given["seed"] = int(torch.randint(2**31, ()))
        context = preparation.as_context(context if y is None else y, self.context_dim)
        try:
            Fitting(self, given, on_evaluation).run(x, context, sample_weight)
        finally:
            self.eval()
        return self

    # --------------------------------------------------------------------------- scores of rows

    def score(
        self, x: TableLike, context: RowsLike | None = None, *, y: RowsLike | None = None
    ) -> float:
        """Return the mean log-density of rows ``(N, D)`` in nats.

        :raises ValueError: as :meth:`fit`, for shapes and values.
        """
        self._fitted()
        context = preparation.as_context(context if y is None else y, self.context_dim)
        with torch.no_grad():
            return float(
                self.log_prob(*self.checked_rows(x, context, "x", "context")).double().mean()
            )

    def score_samples(self, x: TableLike, context: RowsLike | None = None) -> np.ndarray:
        """Return the log-density of each of the rows ``(N, D)`` in nats, as a numpy array ``(N,)``.

        :raises ValueError: as :meth:`fit`, for shapes and values.
        """
        self._fitted()
        context = preparation.as_context(context, self.context_dim)
        with torch.no_grad():
            rows = self.checked_rows(x, context, "x", "context")
            values = self.log_prob(*rows).cpu()
        return values.to(torch.promote_types(values.dtype, torch.float32)).numpy()

    def anomaly_score(self, x: TableLike, context: RowsLike | None = None) -> np.ndarray:
        """Return the p-value ``(N,)`` of each of the rows ``(N, D)``: small where a row is unusual.

        It is the share of held-out rows whose density is no higher, the row itself counted among
        them: under the law of those rows it is at most p with probability p or less. Each row that
        cross-validation left out counts under its own fold's density, as x is then
        (cross-conformal, Vovk 2015). Rows whose score is above :math:`1 - a` are a
        region of high density that holds the part a of new rows. A marginal or
        conditional density, which no rows were held out from, compares with its own draws.

        :raises ValueError: as :meth:`fit`; or when no rows were held out.

        >>> density = FlowDensity(architecture="gaussian").fit(torch.randn(500, 2), progress=False)
        >>> bool(density.anomaly_score(torch.tensor([[9.0, 9.0]]))[0] < 0.03)
        True
        """
        if self.folds is not None:
            context = preparation.as_context(context, self.context_dim)
            rows = self.checked_rows(x, context, "x", "context")
            return cross_conformal.p_values(self, rows)
        if self.held_out is not None:
            known = self.held_out.cpu().numpy()
        elif self.history is None and self.parts:  # of condition or marginal
            with seeded(0):
                drawn = self.sample(COMPARED, as_table=False)
            known = self.score_samples(drawn)
        else:
            raise ValueError("no rows were held out in the fit: validation must be above 0")
        return preparation.p_values(self.score_samples(x, context), np.sort(known))

    # ------------------------------------------------------------- missing cells and conditionals

    def impute(
        self, x: TableLike, num_samples: int = 1, *, seed: int | None = None
    ) -> Tensor | np.ndarray:
        """Draws of the missing cells of rows ``(N, P)`` from their law given the other cells.

        Cells that are not missing stay as they are. Without a closed form (of Gaussians, t's and
        copulas, and what "auto" fits to tables with missing cells), the draws are chosen among
        weighted ones (:mod:`pyro_naf.density.weighted`), with a warning where too few count.

        :param num_samples: S >= 1 draws of each row.
        :param seed: seeds the draws; by default they come from torch's generator.
        :return: ``(S, N, P)``: a tensor for a tensor, and else a numpy array.
        :raises ValueError: as :meth:`score`; or when the density has a context.

        >>> x = torch.randn(300, 1).repeat(1, 2) + 0.1 * torch.randn(300, 2)
        >>> density = FlowDensity(architecture="gaussian").fit(x, progress=False)
        >>> bool((density.impute([[1.0, float("nan")]], 50, seed=0)[..., 1].mean() - 1) < 0.2)
        True
        """
        check_integers(num_samples=(num_samples, 1))
        self._asked("impute")
        (rows,) = self.checked_rows(x, None, "x", "context", gaps=True)
        answer = weighted.imputed if questions.closed_parts(self) is None else questions.imputed
        with torch.no_grad(), evaluating(self), seeded(seed):
            found = answer(self, rows, operator.index(num_samples))
        found = discrete.quantised(found, self.noise, self.values)
        return found if isinstance(x, Tensor) else found.cpu().numpy()

    @torch.no_grad()
    def marginal(
        self, columns: Sequence[str | int], *, num_particles: int = 1000
    ) -> FlowDensity | WeightedDensity:
        """Return the density of some of the columns: exact where it is a closed form.

        :param columns: names, or numbers from 0, in the order that the density is to have.
        :param num_particles: weighted draws that the density of each row is estimated with, where
            there is no closed form.
        :raises ValueError: when there is no such column, or the density has a context.

        >>> density = FlowDensity(architecture="gmm-2").fit(torch.randn(300, 3), progress=False)
        >>> density.marginal([2, 0]).sample(5).shape
        torch.Size([5, 2])
        """
        self._asked("marginal", num_particles)
        if questions.closed_parts(self) is not None:
            return questions.marginal(self, columns)
        at = questions.positions(self, columns, "columns")
        nothing = torch.full((1, self.width), torch.nan, dtype=torch.double, device=self.loc.device)
        return WeightedDensity(self, weighted.proposal(self), at, nothing, num_particles)

    @torch.no_grad()
    def condition(
        self, given: Mapping[str, object] | Mapping[int, object], *, num_particles: int = 1000
    ) -> FlowDensity | WeightedDensity:
        """Return the density of the other columns, given values of some: exact if a closed form.

        Where a given column is one of integers, it is as exact as their probabilities are. Without
        a closed form, the answer is a :class:`~pyro_naf.density.weighted.WeightedDensity`, whose
        ``ess`` is the effective number of draws behind it.

        :param given: a number, date or class for each of some columns, by name or number.
        :param num_particles: weighted draws, where there is no closed form.
        :raises ValueError: when there is no such column, a value is outside its bounds, or the
            density has a context.

        >>> density = FlowDensity(architecture="gmm-2").fit(torch.randn(300, 3), progress=False)
        >>> density.condition({1: 0.5}).log_prob(torch.zeros(4, 2)).shape
        torch.Size([4])
        """
        self._asked("condition", num_particles)
        if questions.closed_parts(self) is not None:
            return questions.condition(self, given)
        _, rest, row = questions.given_row(self, given)
        by, row = weighted.proposal(self), row.to(self.loc.device)
        return WeightedDensity(self, by, rest, row, num_particles)

    def _asked(self, what: str, num_particles: int = 1) -> None:
        """Refuse questions to what is not fitted, or depends on a context."""
        check_integers(num_particles=(num_particles, 1))
        self._fitted()
        if self.context_dim:
            raise ValueError(
                f"{what} needs a density without a context: fit the columns of the context too"
            )

    def set_params(self, **params: object) -> FlowDensity:
        """Make the density anew with some of :meth:`get_params` changed: it is no longer fitted.

        :raises TypeError: for an unknown option.
        :raises ValueError: as the constructor.

        >>> FlowDensity(2, architecture="maf-dsf-1").set_params(dropout=0.1).get_params()["dropout"]
        0.1
        """
        if params:
            device, dtype, training = self.loc.device, self.dtype, self.training
            make: Callable[..., FlowDensity] = FlowDensity
            made = make(**self._changed(params)).to(device, dtype)
            self.__dict__.update(vars(made.train(training)))
        return self

    # --------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a file; an older one stands until the new one is whole.

        :raises OSError: when the file cannot be written.
        """
        save_model(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FlowDensity:
        """Load the model that :meth:`save` wrote, on the CPU. No code in the file is run.

        :raises ModelFileError: (a ValueError) when it is truncated, foreign or of another version.
        :raises OSError: when it cannot be read.
        """
        return load_model(cls, path)
