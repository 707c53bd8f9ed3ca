"""How a density is fitted to a table: columns, splits, standardisation, training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import cast

import torch
from torch import Tensor

from ..training.limits import Limits
from . import automatic, codes, kinds, preparation, said, tables
from .architectures import WITH_CLASSES, WITH_HOLES, check_options, parse
from .arrays import RowsLike, TableLike
from .closed_form import CLOSED
from .columns import Schema
from .modelled import Modelled
from .said import Said
from .scoring import Scored, averaged
from .settings import History, OnEvaluation, Training
from .sklearn_api import SETTINGS
from .table_density import TableDensity
from .training import Rows, train, untrained

#: Part of the rows that decides when the softmax of classes has learnt enough.
CLASSES_VALIDATION = 0.2

#: Steps of the softmax of classes, at most, and its part of the time limit.
CLASSES_STEPS = 1000
CLASSES_SHARE = 0.1

#: Held-out rows of a table with integers that are scored, at most: with each point of their noise.
MANY_SCORED = 1000


class Fitting:
    """One fit of a density.

    :param density: is given its columns, moments, flow and history.
    :param given: what the user said: ``validation``, ``columns``, and fields of
        :class:`~pyro_naf.density.settings.Training`, the seed among them.
    :param on_evaluation: is given each entry of ``history.evaluations``.
    """

    def __init__(
        self,
        density: TableDensity,
        given: dict[str, object],
        on_evaluation: OnEvaluation | None,
    ) -> None:
        self.density, self.on_evaluation = density, on_evaluation
        self.given = dict(given)
        self.validation = self.given.pop("validation", SETTINGS["validation"])
        self.said = cast("Said | None", self.given.pop("columns", None))
        make: Callable[..., Training] = Training
        self.options = make(**self.given)
        self.limits = Limits(None, self.options.max_seconds)

    def run(self, x: TableLike, context: RowsLike | None, sample_weight: RowsLike | None) -> None:
        """Fit the density to rows, as ``FlowDensity.fit`` says."""
        density = self.density
        self._find_columns(x)
        whole = density.checked_rows(x, context, *density.names, gaps=self.gaps)
        weight = preparation.as_weight(sample_weight, whole[0])
        whole, weight = self._without_empty(whole, weight)
        real, near = self._real_parts(whole[0]), None
        if isinstance(self.validation, Real | None):
            near = preparation.near_rows(real)
        rows = whole if near is None else [t[near] for t in whole]
        weight = weight if near is None or weight is None else weight[near]
        rows, weight, held_out = self._split(rows, weight)
        self._refuse_few(len(rows[0]), len(whole[0]), held_out)
        density.data_dtype = whole[0].dtype
        noise = torch.Generator().manual_seed(self.options.seed)
        modelled = Modelled.of(density.schema, rows, noise)
        self._set_statistics(modelled)
        self._warn(whole, real, left_out=near is not None)
        density.history = density.held_out = density.folds = None
        validated = None if held_out is None else Modelled.of(density.schema, held_out, noise)
        self._train(modelled, weight, validated, rows if held_out is None else held_out)

    def _refuse_few(self, kept: int, n: int, held_out: list[Tensor] | None) -> None:
        if kept >= 2:
            return
        taken = len(held_out[0]) if held_out is not None else 0
        raise ValueError(
            f"{self.density.names[0]} must have at least 2 rows to train on, got {n} "
            + ("rows" if n > 1 else "row")
            + (f", of which {taken} held out for validation" if taken else "")
            + f" (n_samples={n})"
        )

    def _find_columns(self, x: TableLike) -> None:
        """Learn the schema from rows: what the columns are called, and of which kinds."""
        name, table = self.density.names[0], tables.matrix(x, self.density.names[0])
        self.density.from_table = table.names is not None
        if table.names is not None:
            self.density.columns = table.names
        width = (
            self.density.width
            if self.density.input_dim is not None
            else preparation.width_of(table.rows, name)
        )
        rows = preparation.as_rows(table.rows, name, width)
        if len(rows) == 0:
            raise ValueError(f"{name} must have rows, got none")
        self._check_gaps(rows)
        schema = kinds.infer(
            rows, name=name, tables=table.columns, whole=table.whole, names=self.density.columns,
            said=self.said, units=table.units, finds_spikes=self._takes_spikes(found=True),
        )  # fmt: skip
        if schema.spiked and not self._takes_spikes(found=False):
            at = preparation.listed("column", [schema.called(i) for i in schema.spiked])
            raise ValueError(
                f"{name} has spikes in {at}, which architecture {self.density.architecture!r} "
                "cannot fit: choose 'auto', 'gmm-5' or 'maf-dsf-5'"
            )
        self._check_classes(rows, schema)
        self.density.note = said.described(schema, self.said, self.density.columns)
        self.density.build_for(schema, self.gaps)

    def _takes_spikes(self, found: bool) -> bool:
        """Whether the density can have columns with spikes: what was said, or found.

        A Gaussian that was asked for stays one, and is given no spikes that are found.
        """
        density = self.density
        kind = parse(density.architecture)[0]
        if kind in WITH_CLASSES or (self.gaps and kind == "auto"):
            return True
        plain = check_options(density.architecture, density.overrides).linear != "lu"
        return not self.gaps and plain and kind in (WITH_HOLES if not found else WITH_HOLES[1:])

    def _check_gaps(self, rows: Tensor) -> None:
        """Refuse what is not finite, but missing cells where the density takes them."""
        density, name = self.density, self.density.names[0]
        closed = parse(density.architecture)[0] in ("auto", *CLOSED)
        try:
            preparation.check_finite(rows, name, gaps=closed and density.context_dim == 0)
        except ValueError as error:
            if rows.isinf().any():
                raise
            what = "with a context" if closed else f"by architecture {density.architecture!r}"
            raise ValueError(
                f"{error}; missing cells cannot be fitted {what}: leave these rows out "
                "(--drop-missing)" + ("" if closed else ", or choose 'auto'")
            ) from None
        self.gaps = bool(rows.isnan().any())
        empty = rows.isnan().all(0)
        if empty.any():
            names = density.columns or [str(i) for i in range(rows.shape[1])]
            at = [names[i] for i in empty.nonzero().squeeze(1).tolist()]
            raise ValueError(
                f"{name} has no value in {preparation.listed('column', at)}: leave the column out"
            )

    def _check_classes(self, rows: Tensor, schema: Schema) -> None:
        """Refuse missing cells beside classes where these are no part of the mixture."""
        kind = parse(self.density.architecture)[0]
        if not (self.gaps and schema.coded) or kind in ("auto", *WITH_CLASSES):
            return
        classes = preparation.listed("column", [schema.called(i) for i in schema.coded])
        gone = rows.isnan().any(0).nonzero().squeeze(1).tolist()
        cells = preparation.listed("column", [schema.called(i) for i in gone])
        raise ValueError(
            f"{self.density.names[0]} has missing cells in {cells}, and classes in {classes}, "
            f"which architecture {kind!r} cannot fit together: choose 'auto' or 'gmm-5', or leave "
            "these rows out (--drop-missing)"
        )

    def _without_empty(
        self, rows: list[Tensor], weight: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None]:
        """Keep the rows with at least one cell that is not missing; the others are named."""
        empty = rows[0].isnan().all(1)
        if not empty.any():
            return rows, weight
        at = preparation.listed("row", empty.nonzero().squeeze(1).tolist())
        warnings.warn(
            f"{self.density.names[0]} has no value in {at}, which are left out", stacklevel=4
        )
        return [t[~empty] for t in rows], None if weight is None else weight[~empty]

    def _split(
        self, rows: list[Tensor], weight: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None, list[Tensor] | None]:
        """Rows to train on, their weights, and rows for validation, if there are any."""
        validation = self.validation
        if validation is not None and not isinstance(validation, Real):
            x, c = validation if isinstance(validation, tuple) else (validation, None)
            names = ("validation", "the context of validation")
            return rows, weight, self.density.checked_rows(x, c, *names, gaps=self.gaps)
        part = float(validation or 0)
        if not 0 <= part < 1:
            raise ValueError(f"validation must lie in [0, 1), or be rows, got {validation}")
        n = len(rows[0])
        if self.density.architecture == "auto":
            costly = self.gaps and n * rows[0].shape[1] ** 2 > automatic.COSTLY_WITH_GAPS
            if n <= automatic.CROSS_VALIDATED and not costly:
                return rows, weight, None
            part = part or SETTINGS["validation"]
        if part == 0:
            return rows, weight, None
        taken = max(1, int(part * n))
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.options.seed))
        order = order.to(rows[0].device)
        kept = order[taken:]
        weight = None if weight is None else weight[kept]
        return [t[kept] for t in rows], weight, [t[order[:taken]] for t in rows]

    def _real_parts(self, rows: Tensor) -> Tensor:
        """Return the columns of real numbers ``(N, D)``, integers in the middle of their steps.

        :raises ValueError: where a column has no density.
        """
        schema = self.density.schema
        middle = rows.new_full((len(rows), len(schema.integers)), 0.5).double()
        found = schema.encode(rows, middle)
        if not found.inside.all():
            at = preparation.listed("row", (~found.inside).nonzero().squeeze(1).tolist())
            name = self.density.names[0]
            raise ValueError(f"{name} lies outside the bounds of its columns in {at}")
        return found.real

    def _set_statistics(self, rows: Modelled) -> None:
        density = self.density
        named = [density.schema.called(i) for i in density.schema.real]
        loc, scale = preparation.statistics(rows.real, density.names[0], named)
        density.loc.copy_(loc)
        density.scale.copy_(scale)
        if rows.context is not None:
            loc, scale = preparation.context_statistics(
                rows.context, density.names[1], density.context_columns
            )
            density.context_loc.copy_(loc)
            density.context_scale.copy_(scale)

    def _warn(self, rows: list[Tensor], real: Tensor, left_out: bool) -> None:
        """Warn of what a density does badly with: atoms, outliers, dependence."""
        density, schema, name = self.density, self.density.schema, self.density.names[0]
        called = [schema.called(i) for i in range(density.width)]
        plain = [i for i in schema.real if i not in schema.integers]
        preparation.warn_of_atoms(schema.without_spikes(rows[0]), name, called, plain)
        told = said.kinds_said(self.said, density.columns, density.width, name)
        meant = [i for i, (kind, _) in told.items() if kind in said.SPIKED]
        numbers = [i for i in schema.real if schema.columns[i].kind not in ("date", "periodic")]
        codes.warn_of_codes(rows[0], name, called, [i for i in numbers if i not in meant])
        named = [called[i] for i in schema.real]
        preparation.warn_of_outliers(real, name, named, left_out)
        if len(rows) > 1:
            preparation.warn_of_outliers(rows[1], density.names[1], density.context_columns)
        numbers = [i for i in schema.real if i not in schema.spiked]
        preparation.warn_of_dependence(rows[0][:, numbers], name, [called[i] for i in numbers])
        if not schema.is_plain:
            preparation.warn_of_dependence(real, name, named)

    def _train(
        self,
        rows: Modelled,
        weight: Tensor | None,
        held_out: Modelled | None,
        left_out: list[Tensor],
    ) -> None:
        """Train on rows as they are modelled.

        :param left_out: rows of the table that are, or will be, left out of a fit.
        """
        density, schema, dtype = self.density, self.density.schema, self.density.dtype
        if density.head is not None:
            history, out = self._train_classes(rows, weight, held_out)
            if not density.has_flow:
                density.history = history
                density.held_out = None if out is None else self._shift(out)
                return
        data, validation = self._standardised(rows), None
        if held_out is not None:
            validation = self._standardised(held_out)
        if parse(density.architecture)[0] == "auto":
            density.flow = None
            options = self.options
            if options.max_seconds is not None:
                options = replace(options, max_seconds=max(self.limits.left(), 0.1))
            task = automatic.Task(
                data, validation, options, self.given, density.overrides,
                scored=self._scored(left_out, cut=held_out is not None), weight=weight, dtype=dtype,
                gaps=self.gaps, sizes=schema.sizes if density.together else (),
                holes=density.holes, classes=density.given_classes,
            )  # fmt: skip
            automatic.fit(task, self._keep, self.on_evaluation)
            return
        offset = self._shift(rows if held_out is None else held_out).mean()
        self._train_flow(data, validation, weight, float(offset))
        if validation is not None:
            density.held_out = averaged(density.flow, self._scored(left_out, cut=True))

    def _train_flow(
        self, data: Rows, validation: Rows | None, weight: Tensor | None, offset: float
    ) -> None:
        """Train a named architecture, and keep what is known when Ctrl-C ends the fit."""
        density, flow, history = self.density, self.density.flow, History()
        flow.start(data[0], data[1] if len(data) > 1 else None, weight)
        if next(flow.parameters(), None) is None:
            density.history = untrained(flow, data, validation, offset)
            return

        try:
            density.history = train(
                flow, data, validation, self.options, self.on_evaluation, history=history,
                offset=offset, model=density.description(), weight=weight,
            )  # fmt: skip
        except KeyboardInterrupt:
            density.history = history if history.evaluations else None
            raise

    def _standardised(self, rows: Modelled) -> list[Tensor]:
        density = self.density
        return density.moments.standardised(rows, density.schema, density.dtype, density.together)

    def _keep(self, found: automatic.Fitted) -> None:
        self.density.flow, self.density.parts = found.density, found.parts
        self.density.history, self.density.held_out = found.history, found.held_out
        self.density.folds = found.folds

    def _scored(self, rows: list[Tensor], cut: bool) -> list[Scored]:
        """Rows to be scored: as they are modelled with each of the points of noise on integers.

        :param cut: keep the first rows alone, where there are many and noise on them.
        """
        density, schema = self.density, self.density.schema
        points = schema.noise(density.loc.device)[: None if schema.integers else 1]
        if cut and schema.integers:
            rows = [t[:MANY_SCORED] for t in rows]
        each = [Modelled.of(schema, rows, point) for point in points]
        return [(self._standardised(e), self._shift(e)) for e in each]

    @torch.no_grad()
    def _shift(self, rows: Modelled) -> Tensor:
        """Return what rows add to the flow's log-density, ``(N,)``: slopes, and classes."""
        density = self.density
        shift = rows.log_slope.double() - density.log_scale(rows.real)
        if density.head is None:
            return shift
        context = density.moments.context(rows.context, density.dtype)
        return shift + density.head.log_prob(rows.codes, context)

    def _train_classes(
        self, rows: Modelled, weight: Tensor | None, held_out: Modelled | None
    ) -> tuple[History, Modelled | None]:
        """Train the softmax of the classes, until rows left out say that it has learnt enough.

        :return: what is known of the training, and the rows that were left out of it.
        """
        if held_out is None:
            generator = torch.Generator().manual_seed(self.options.seed)
            out = torch.rand(len(rows), generator=generator) < CLASSES_VALIDATION
            out = out.to(rows.real.device)
            if 0 < int(out.sum()) < len(out):
                rows, held_out = rows[~out], rows[out]
                weight = None if weight is None else weight[~out]
        head, limit = self.density.head, self.options.max_seconds
        head.start(rows.codes, weight)
        training = Training(
            max_steps=CLASSES_STEPS, max_seconds=None if limit is None else CLASSES_SHARE * limit,
            batch_size=256, lr=1e-2, weight_decay=1e-2, patience=20, evaluate_every=10, polyak=0.9,
            seed=self.options.seed, progress=False,
        )  # fmt: skip
        validation = None if held_out is None else self._classes_of(held_out)
        return train(head, self._classes_of(rows), validation, training, weight=weight), held_out

    def _classes_of(self, rows: Modelled) -> list[Tensor]:
        dtype = self.density.dtype
        context = self.density.moments.context(rows.context, dtype)
        codes = rows.codes.to(dtype)
        return [codes] if context is None else [codes, context]
