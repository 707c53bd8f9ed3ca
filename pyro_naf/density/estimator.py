"""FlowDensity: a density estimator for rows of numbers, and for tables."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineTransform
from torch import Tensor, nn

from ..files.archive import plain
from ..support.checks import check_integers
from ..support.seeding import seeded
from . import discrete, preparation, questions, tables
from .architectures import WITH_CLASSES, build, check_options, parse
from .classes import SoftmaxHead
from .columns import Column, Encoded, Schema, ToData, beside
from .fitting import Fitting
from .flow import NormalizingFlow, evaluating, finite_draws
from .model_file import load_model, save_model
from .modelled import Moments, joined
from .settings import History
from .sklearn_api import SETTINGS, Estimator, not_fitted
from .stacked import Stacked
from .training import log_probs

#: Rows drawn at once by :meth:`FlowDensity.sample`.
DRAWN = 8192


class FlowDensity(Estimator, nn.Module):
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
    (of "gmm-K" and "copula-K"): independent of the other columns given the Gaussian that a row is
    of.

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
    :ivar held_out: log-densities ``(N,)`` of the rows that were held out in the last fit.
    :ivar columns: names of the columns, where they are known; ``context_columns`` likewise.
    :ivar names: what messages of :meth:`fit` call the rows and the contexts.
    :ivar noise: width of the noise that was added to discrete columns before the fit, by column;
        rows to be scored need it too (the command line sees to it).
    :ivar values: the values that these columns can take, ascending, by column; draws are such.

    Source: Huang et al. 2018 [arXiv:1804.00779], section 6.2.

    >>> x = torch.randn(200, 2).exp()
    >>> density = FlowDensity().fit(x, max_steps=20, seed=0, progress=False)
    >>> density.log_prob(x).shape, density.sample(5).shape
    (torch.Size([200]), torch.Size([5, 2]))
    """

    loc: Tensor
    scale: Tensor
    context_loc: Tensor
    context_scale: Tensor
    like: Tensor

    def __init__(
        self,
        input_dim: int | None = None,
        context_dim: int = 0,
        architecture: str = "auto",
        **options: Any,
    ) -> None:
        super().__init__()
        # As they were given: scikit-learn's clone compares them by identity.
        self.input_dim, self.context_dim, self.architecture = input_dim, context_dim, architecture
        self.settings = {name: options.pop(name) for name in SETTINGS if name in options}
        self.overrides = options
        check_options(architecture, options)
        check_integers(context_dim=(context_dim, 0))
        self.width = 0
        self.flow: Any = None
        self.head: Any = None
        self.schema = Schema([])
        self.register_buffer("like", torch.zeros(()), persistent=False)
        self.data_dtype = torch.get_default_dtype()
        self.history: History | None = None
        self.note: str | None = None
        self.held_out: Tensor | None = None
        self.names = ("x", "context")
        self.columns: list[str] | None = None
        self.context_columns: list[str] | None = None
        self.noise: dict[int, float] = {}
        self.values: dict[int, Tensor] = {}
        self.parts: list[tuple[str, dict[str, Any]]] = []
        self.from_table = self.together = False
        if input_dim is not None:
            check_integers(input_dim=(input_dim, 1))
        self.build_for(Schema([Column()] * operator.index(input_dim or 0)))

    def build_for(self, schema: Schema, gaps: bool = False) -> None:
        """Makes what depends on the columns; what there is stays where it fits them.

        :param gaps: cells are missing, so that classes and numbers are modelled together.
        """
        before, self.schema, self.width = self.schema, schema, len(schema.columns)
        kind, together = parse(self.architecture)[0], self.together
        self.together = bool(schema.sizes) and (kind in WITH_CLASSES or (kind == "auto" and gaps))
        same = (len(before.real), before.sizes) == (len(schema.real), schema.sizes)
        if self.width and same and together == self.together:
            return
        # In double precision whatever the flow's: a year is 2020, its hours are 1e-4 of that.
        for name, size in (("", len(schema.real)), ("context_", self.context_dim)):
            zeros = torch.zeros(size, dtype=torch.double, device=self.like.device)
            self.register_buffer(f"{name}loc", zeros)
            self.register_buffer(f"{name}scale", torch.ones_like(zeros))
        self.flow = self.head = None
        if schema.sizes and not self.together:
            self.head = SoftmaxHead(schema.sizes, self.context_dim).to(self.like)
        if kind != "auto" and self.has_flow:
            self.flow = self._built(self.architecture, self.overrides).to(self.like)

    @property
    def has_flow(self) -> bool:
        """Whether there is more to model than a softmax does."""
        return self.together or bool(self.schema.real)

    def _built(self, architecture: str, options: Mapping[str, Any]) -> NormalizingFlow:
        """A density of the numbers given context and classes, or of numbers and classes."""
        dim, sizes = len(self.schema.real), self.schema.sizes
        if self.together:
            return build(architecture, dim, self.context_dim, sizes=sizes, **options)
        return build(architecture, dim, self.context_dim + sum(sizes), **options)

    def restore_parts(self, parts: list[tuple[str, dict[str, Any]]]) -> None:
        """Makes the mixture of these architectures, with weights that are to be loaded."""
        if parts:
            dim = len(self.schema.real) + (len(self.schema.sizes) if self.together else 0)
            made = [self._built(name, options) for name, options in parts]
            self.flow = Stacked(dim, made, torch.full((len(made),), 1 / len(made)))
            self.parts = parts

    # ------------------------------------------------------------------------------------ fitting

    def fit(
        self,
        x: Any,
        context: Any = None,
        sample_weight: Any = None,
        *,
        y: Any = None,
        on_evaluation: Callable[[dict[str, Any]], None] | None = None,
        **settings: Any,
    ) -> FlowDensity:
        """Fits the density to rows, and returns itself.

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

    @property
    def moments(self) -> Moments:
        """Means and scales that rows and contexts are standardised with."""
        return Moments(self.loc, self.scale, self.context_loc, self.context_scale)

    def checked_rows(
        self, x: Any, context: Any, x_name: str, context_name: str, gaps: bool | None = None
    ) -> list[Tensor]:
        """x and, where there is one, the context: as finite rows, on the module's device.

        :param gaps: whether cells of x may be missing; by default where they can be scored.
        :raises ValueError: for another shape, NaN or infinity; the names are those given.
        """
        table = tables.matrix(x, x_name, self.schema if self.width else None)
        shape = tuple(table.rows.shape)
        if len(shape) == 2 and shape[1] != self.width:
            raise ValueError(
                f"{x_name} must have shape (N, {self.width}), got {shape}: X has {shape[1]} "
                f"features, but {type(self).__name__} is expecting {self.width} features as input"
            )
        rows = [preparation.as_rows(table.rows, x_name, self.width, self.loc.device)]
        self._check_context(context, context_name)
        if context is not None:
            rows.append(
                preparation.as_rows(context, context_name, self.context_dim, self.loc.device)
            )
            if len(rows[0]) != len(rows[1]):
                raise ValueError(
                    f"{context_name} must have as many rows as {x_name}, got {len(rows[1])} and "
                    f"{len(rows[0])}"
                )
        if len(rows[0]) == 0:
            raise ValueError(f"{x_name} must have rows, got none")
        gaps = self.takes_gaps if gaps is None else gaps
        try:
            preparation.check_finite(rows[0], x_name, gaps=gaps)
        except ValueError as error:
            if rows[0].isinf().any():
                raise
            raise ValueError(
                f"{error}; this density has no closed form for the other cells of a row: leave "
                "these rows out, or fit architecture 'auto' to a table with missing cells"
            ) from None
        for c in rows[1:]:
            preparation.check_finite(c, context_name)
        return rows

    @property
    def takes_gaps(self) -> bool:
        """Whether rows to be scored may have missing cells."""
        alone = self.context_dim == 0 and self.head is None and self.flow is not None
        return alone and self.flow.closed_form() is not None

    def description(self) -> dict[str, Any]:
        """The architecture and its options, of Python's own types."""
        return {"architecture": self.architecture, "overrides": plain("options", self.overrides)}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the flow's weights, in which the flow computes."""
        return self.like.dtype

    # ------------------------------------------------------------------------------------- scoring

    def forward(self, x: Any, context: Any = None) -> Any:
        """:meth:`log_prob`, but in the module's own mode: in training mode units are dropped."""
        return self._log_prob(x, context)

    def log_prob(self, x: Any, context: Any = None) -> Any:
        """The log-density of x ``(..., D)`` in nats, shape ``(...)``.

        A tensor for a tensor, with gradients where they are enabled; a numpy array for an array. It
        is minus infinity where x is infinite. Where x has NaN, it is the log-density of the other
        columns if that is a closed form (of gaussian, gmm-K, student-K, copula-K, and of what is
        fitted to tables with missing cells), and else NaN. Like all methods but :meth:`forward`, it
        evaluates the flow in evaluation mode, and puts the modes back.

        :param context: ``(..., C)``; batch shapes broadcast.
        :raises NotImplementedError: for an architecture that cannot score data (planar flows).
        """
        with evaluating(self):
            return self._log_prob(x, context)

    def _log_prob(self, x: Any, context: Any) -> Any:
        self._fitted()
        given = tables.matrix(x, "x", self.schema).rows
        self._check_last(given, "x", self.width)
        c = self._context(context)
        with_gradient = isinstance(x, Tensor) and torch.is_grad_enabled()
        rows = given.to(self.loc.device)
        if not self.schema.integers:
            values = self._encoded_log_prob(self.schema.encode(rows), c, with_gradient)
        else:
            noise = self.schema.noise(rows.device)
            each = [
                self._encoded_log_prob(
                    self.schema.encode(rows, u.expand(*rows.shape[:-1], -1)), c, with_gradient
                )
                for u in noise
            ]
            values = torch.stack(each).logsumexp(0) - math.log(len(noise))
        values = values.to(torch.promote_types(given.dtype, self.dtype))
        return values if isinstance(x, Tensor) else values.detach().cpu().numpy()

    def _encoded_log_prob(self, rows: Encoded, c: Tensor | None, with_gradient: bool) -> Tensor:
        """The log-density ``(...)`` of encoded rows, in the units of the data."""
        u = ((rows.real - self.loc) / self.scale).to(self.dtype)
        total = rows.log_slope - self.log_scale(u)
        if self.together:
            total = self._flow_log_prob(beside(u, rows.codes), None, with_gradient) + total
            return torch.where(rows.inside, total, -math.inf)
        codes, gaps = rows.codes.clamp(min=0), (rows.codes < 0).any(-1)
        if self.head is not None:
            total = total + self.head.log_prob(codes, c)
        if self.schema.real:
            given = joined(c, codes, self.schema, self.dtype)
            total = self._flow_log_prob(u, given, with_gradient) + total
        return torch.where(rows.inside, torch.where(gaps, math.nan, total), -math.inf)

    def log_scale(self, real: Tensor) -> Tensor:
        """The sum ``(...)`` of the logarithms of the scales, over the cells that are not NaN."""
        return torch.where(real.isnan(), 0.0, self.scale.log()).sum(-1)

    def _flow_log_prob(self, u: Tensor, given: Tensor | None, with_gradient: bool) -> Tensor:
        """The flow's log-density ``(...)``; without gradient in chunks that fit the memory."""
        if with_gradient:
            return self.flow.log_prob(u, given)
        batch = u.shape[:-1]
        if given is not None:
            batch = torch.broadcast_shapes(batch, given.shape[:-1])
            given = given.expand(*batch, -1).reshape(-1, given.shape[-1])
        flat = [u.expand(*batch, -1).reshape(-1, u.shape[-1]), *([] if given is None else [given])]
        parts = list(log_probs(self.flow, flat)) if len(flat[0]) else [u.new_zeros(0)]
        return torch.cat(parts).view(batch)

    def _fitted(self) -> None:
        """Raises where there is nothing yet that could be evaluated."""
        if self.width == 0 or (self.has_flow and self.flow is None):
            raise not_fitted(type(self).__name__)

    def score(self, x: Any, context: Any = None, *, y: Any = None) -> float:
        """The mean log-density of rows ``(N, D)`` in nats.

        :raises ValueError: as :meth:`fit`, for shapes and values.
        """
        self._fitted()
        context = preparation.as_context(context if y is None else y, self.context_dim)
        with torch.no_grad():
            return float(
                self.log_prob(*self.checked_rows(x, context, "x", "context")).double().mean()
            )

    def score_samples(self, x: Any, context: Any = None) -> np.ndarray:
        """The log-density of each of the rows ``(N, D)`` in nats, as a numpy array ``(N,)``.

        :raises ValueError: as :meth:`fit`, for shapes and values.
        """
        self._fitted()
        context = preparation.as_context(context, self.context_dim)
        with torch.no_grad():
            rows = self.checked_rows(x, context, "x", "context")
            values = self.log_prob(*rows).cpu()
        return values.to(torch.promote_types(values.dtype, torch.float32)).numpy()

    def anomaly_score(self, x: Any, context: Any = None) -> np.ndarray:
        """The p-value ``(N,)`` of each of the rows ``(N, D)``: small where a row is unusual.

        It is the share of held-out rows whose density is no higher, the row itself counted among
        them: under the law of those rows it is at most p with probability p or less.

        :raises ValueError: as :meth:`fit`; or when no rows were held out.

        >>> density = FlowDensity(architecture="gaussian").fit(torch.randn(500, 2), progress=False)
        >>> bool(density.anomaly_score(torch.tensor([[9.0, 9.0]]))[0] < 0.03)
        True
        """
        if self.held_out is None:
            raise ValueError("no rows were held out in the fit: validation must be above 0")
        known = np.sort(self.held_out.cpu().numpy())
        below = np.searchsorted(known, self.score_samples(x, context), side="right")
        return (1 + below) / (1 + len(known))

    # ------------------------------------------------------------- missing cells and conditionals

    def impute(self, x: Any, num_samples: int = 1, *, seed: int | None = None) -> Any:
        """Draws of the missing cells of rows ``(N, P)`` from their law given the other cells.

        Cells that are not missing stay as they are.

        :param num_samples: S >= 1 draws of each row.
        :param seed: of the draws; by default they are from torch's generator.
        :return: ``(S, N, P)``: a tensor for a tensor, and else a numpy array.
        :raises ValueError: as :meth:`score`; or when the density is none of Gaussians.

        >>> x = torch.randn(300, 1).repeat(1, 2) + 0.1 * torch.randn(300, 2)
        >>> density = FlowDensity(architecture="gaussian").fit(x, progress=False)
        >>> bool((density.impute([[1.0, math.nan]], 50, seed=0)[..., 1].mean() - 1) < 0.2)
        True
        """
        check_integers(num_samples=(num_samples, 1))
        self._fitted()
        questions.parts_of(self, "impute")
        (rows,) = self.checked_rows(x, None, "x", "context")
        with torch.no_grad(), evaluating(self), seeded(seed):
            found = questions.imputed(self, rows, operator.index(num_samples))
        found = discrete.quantised(found, self.noise, self.values)
        return found if isinstance(x, Tensor) else found.cpu().numpy()

    @torch.no_grad()
    def marginal(self, columns: Sequence[Any]) -> FlowDensity:
        """The density of some of the columns, exact.

        :param columns: names, or numbers from 0, in the order that the density is to have.
        :raises ValueError: when there is no such column, or the density is none of Gaussians.

        >>> density = FlowDensity(architecture="gmm-2").fit(torch.randn(300, 3), progress=False)
        >>> density.marginal([2, 0]).sample(5).shape
        torch.Size([5, 2])
        """
        self._fitted()
        return questions.marginal(self, columns)

    @torch.no_grad()
    def condition(self, given: Mapping[Any, Any]) -> FlowDensity:
        """The density of the other columns, given values of some, exact.

        Where a given column is one of integers, it is as exact as their probabilities are.

        :param given: a number, date or class for each of some columns, by name or number.
        :raises ValueError: when there is no such column, a value is outside its bounds, or the
            density is none of Gaussians.

        >>> density = FlowDensity(architecture="gmm-2").fit(torch.randn(300, 3), progress=False)
        >>> density.condition({1: 0.5}).log_prob(torch.zeros(4, 2)).shape
        torch.Size([4])
        """
        self._fitted()
        return questions.condition(self, given)

    def set_params(self, **params: Any) -> FlowDensity:
        """Makes the density anew with some of :meth:`get_params` changed: it is no longer fitted.

        :raises TypeError: for an unknown option.
        :raises ValueError: as the constructor.

        >>> FlowDensity(2, architecture="maf-dsf-1").set_params(dropout=0.1).get_params()["dropout"]
        0.1
        """
        if params:
            device, dtype, training = self.loc.device, self.dtype, self.training
            made = FlowDensity(**self._changed(params)).to(device, dtype)
            self.__dict__.update(vars(made.train(training)))
        return self

    # ------------------------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample(self, n: int, context: Any = None, *, as_table: bool | None = None) -> Any:
        """n draws ``(n, ..., P)``, a tensor of the dtype of the data on the module's device.

        Text is given by its place among ``schema.columns[i].values``.

        :param context: ``(..., C)``: n draws for each.
        :param as_table: draws as a pandas DataFrame, with text, dates and booleans; by default
            where the density was fitted to a table with names that holds any of these.
        :raises NotImplementedError: for an architecture that cannot be drawn from (bnaf).

        Draws so far out that the flow overflows are drawn again, with a warning.
        """
        if not isinstance(n, int | np.integer) or n < 0:
            raise ValueError(f"n must be an integer of at least 0, got {n!r}")
        self._fitted()
        c = self._context(context)
        batch = torch.Size([]) if c is None else c.shape[:-1]
        chunk = max(1, DRAWN // max(batch.numel(), 1))
        with evaluating(self):
            parts = [self._draw(min(chunk, n - i), c, batch) for i in range(0, n, chunk)]
        empty = self.loc.new_zeros(0, *batch, self.width)
        rows = torch.cat([part.to(self.data_dtype) for part in parts] or [empty])
        told = any(c.kind in ("categorical", "boolean", "date") for c in self.schema.columns)
        if as_table or (as_table is None and self.from_table and told and not batch):
            return tables.as_frame(rows, self.schema)
        return rows

    def _draw(self, n: int, c: Tensor | None, batch: torch.Size) -> Tensor:
        rows, dim = n * batch.numel(), len(self.schema.real)
        given = None if c is None else c.expand(n, *batch, -1).reshape(rows, -1)
        codes = torch.zeros(rows, 0, dtype=torch.long, device=self.loc.device)
        if self.head is not None:
            codes = self.head.sample(rows, given)
            given = joined(given, codes, self.schema, self.dtype)
        real = self.loc.new_zeros(rows, 0)
        if self.has_flow:
            drawn = finite_draws(self.flow, rows, given)
            real, codes = drawn[:, :dim], torch.cat([drawn[:, dim:].long(), codes], 1)
        real, codes = (t.view(n, *batch, -1) for t in (self.loc + self.scale * real, codes))
        return discrete.quantised(self.schema.decode(real, codes), self.noise, self.values)

    def distribution(self, context: Any = None) -> dist.TransformedDistribution:
        """The density as a Pyro distribution, in the flow's dtype; ``rsample`` has gradients.

        :param context: ``(..., C)``, whose batch shape it has.
        """
        self._fitted()
        if self.schema.classes or self.schema.integers:
            raise NotImplementedError(
                "a density with columns of classes or integers has no Pyro distribution: draw with "
                "sample, and score with log_prob"
            )
        standard = self.flow.distribution(self._context(context))
        affine = AffineTransform(
            self.loc.to(self.dtype), self.scale.to(self.dtype), event_dim=1, cache_size=1
        )
        maps = [affine] if self.schema.is_plain else [affine, ToData(self.schema)]
        return dist.TransformedDistribution(standard.base_dist, [*standard.transforms, *maps])

    def _context(self, context: Any) -> Tensor | None:
        """The context standardised, in the flow's dtype; None where there is none."""
        self._check_context(context, "context")
        if context is None:
            return None
        c = preparation.as_tensor(context, "context")
        self._check_last(c, "context", self.context_dim)
        return ((c.to(self.loc.device) - self.context_loc) / self.context_scale).to(self.dtype)

    def _check_context(self, context: Any, name: str) -> None:
        if (context is None) != (self.context_dim == 0):
            expected = f"of width {self.context_dim}" if self.context_dim else "None"
            given = "None" if context is None else f"shape {tuple(np.shape(context))}"
            raise ValueError(f"{name} must be {expected}, got {given}")

    @staticmethod
    def _check_last(t: Tensor, name: str, width: int) -> None:
        if t.dim() == 0 or t.shape[-1] != width:
            raise ValueError(f"{name} must have shape (..., {width}), got {tuple(t.shape)}")

    # --------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to a file; an older one stands until the new one is whole.

        :raises OSError: when the file cannot be written.
        """
        save_model(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> FlowDensity:
        """The model that :meth:`save` wrote, on the CPU. No code in the file is run.

        :raises ModelFileError: (a ValueError) when it is truncated, foreign or of another version.
        :raises OSError: when it cannot be read.
        """
        return load_model(cls, path)

    def _apply(self, fn: Any, recurse: bool = True) -> FlowDensity:
        # The moments move with the module, but stay in double precision.
        exact = {name: t for name, t in self._buffers.items() if name != "like"}
        super()._apply(fn, recurse)
        for name, before in exact.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self

    def extra_repr(self) -> str:
        """Describe the options, for ``repr``."""
        return f"input_dim={self.input_dim}, context_dim={self.context_dim}, {self.architecture!r}"
