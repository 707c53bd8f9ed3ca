"""A density of the rows of a table: its columns, their moments, and a flow of what is left."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineTransform
from torch import Tensor, nn

from ..files.archive import plain
from ..support.checks import check_integers
from ..support.seeding import seeded
from . import discrete, preparation, tables
from .architectures import WITH_CLASSES, build, check_options, parse
from .arrays import RowsLike, TableLike
from .classes import SoftmaxHead
from .column import Column
from .columns import Encoded, Schema, ToData, beside
from .flow import NormalizingFlow, evaluating, finite_draws
from .given_classes import GivenClasses
from .modelled import Moments, chunked_log_prob, joined
from .settings import History
from .sklearn_api import SETTINGS, Estimator, not_fitted
from .stacked import Folds, Stacked

if TYPE_CHECKING:
    from pandas import DataFrame

#: Rows drawn at once by :meth:`TableDensity.sample`.
DRAWN = 8192


class TableDensity(Estimator, nn.Module):
    """What a fitted density is: it scores rows, and draws them.

    :class:`~pyro_naf.density.estimator.FlowDensity` says what its arguments and attributes are.

    >>> density = TableDensity(2, architecture="maf-dsf-1")
    >>> density.log_prob(density.sample(3)).shape
    torch.Size([3])
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
        **options: object,
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
        self.folds: Folds | None = None
        self.names = ("x", "context")
        self.columns: list[str] | None = None
        self.context_columns: list[str] | None = None
        self.noise: dict[int, float] = {}
        self.values: dict[int, Tensor] = {}
        self.parts: list[tuple[str, dict[str, object]]] = []
        self.remembered: tuple[list[tuple[int, int]], TableDensity] | None = (
            None  # of weighted.proposal
        )
        self.from_table = self.together = False
        if input_dim is not None:
            check_integers(input_dim=(input_dim, 1))
        self.build_for(Schema([Column()] * operator.index(input_dim or 0)))

    def build_for(self, schema: Schema, gaps: bool = False) -> None:
        """Make what depends on the columns; what there is stays where it fits them.

        :param gaps: cells are missing, so that classes and numbers are modelled together.
        """
        before, self.schema, self.width = self.schema, schema, len(schema.columns)
        kind, together = parse(self.architecture)[0], self.together
        self.together = bool(schema.sizes) and (kind in WITH_CLASSES or (kind == "auto" and gaps))
        same = all(
            getattr(before, name) == getattr(schema, name) for name in ("sizes", "holes")
        ) and len(before.real) == len(schema.real)
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

    @property
    def holes(self) -> dict[int, int]:
        """For each dimension that rows may lack, the entry of the flow's context that tells."""
        if self.together:
            return {}
        return {d: self.context_dim + place for d, place in self.schema.holes.items()}

    @property
    def given_classes(self) -> list[int]:
        """Sizes of the classes that the flow is given, where these are all that it is given."""
        return [] if self.together or self.context_dim else self.schema.sizes

    def _built(
        self, architecture: str, options: Mapping[str, object]
    ) -> NormalizingFlow | GivenClasses:
        """Build a density of the numbers given context and classes, or of numbers and classes."""
        dim, sizes = len(self.schema.real), self.schema.sizes
        if self.together:
            return build(
                architecture, dim, self.context_dim, sizes=sizes, holes=None, classes=(), **options
            )
        width, classes = self.context_dim + sum(sizes), self.given_classes
        return build(
            architecture, dim, width, sizes=(), holes=self.holes, classes=classes, **options
        )

    def restore_parts(self, parts: list[tuple[str, dict[str, object]]]) -> None:
        """Make the mixture of these architectures, with weights that are to be loaded."""
        if parts:
            dim = len(self.schema.real) + (len(self.schema.sizes) if self.together else 0)
            made = [self._built(name, options) for name, options in parts]
            self.flow = Stacked(dim, made, torch.full((len(made),), 1 / len(made)))
            self.parts = parts

    @property
    def moments(self) -> Moments:
        """Means and scales that rows and contexts are standardised with."""
        return Moments(self.loc, self.scale, self.context_loc, self.context_scale)

    def checked_rows(
        self,
        x: TableLike,
        context: RowsLike | None,
        x_name: str,
        context_name: str,
        gaps: bool | None = None,
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

    def description(self) -> dict[str, object]:
        """Return the architecture and its options, of Python's own types."""
        return {"architecture": self.architecture, "overrides": plain("options", self.overrides)}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the flow's weights, in which the flow computes."""
        return self.like.dtype

    # ------------------------------------------------------------------------------------- scoring

    def forward(self, x: TableLike, context: RowsLike | None = None) -> Tensor | np.ndarray:
        """:meth:`log_prob`, but in the module's own mode: in training mode units are dropped."""
        return self._log_prob(x, context)

    @overload
    def log_prob(self, x: Tensor, context: RowsLike | None = None) -> Tensor: ...

    @overload
    def log_prob(self, x: TableLike, context: RowsLike | None = None) -> Tensor | np.ndarray: ...

    def log_prob(self, x: TableLike, context: RowsLike | None = None) -> Tensor | np.ndarray:
        """Return the log-density of x ``(..., D)`` in nats, shape ``(...)``.

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

    def _log_prob(self, x: TableLike, context: RowsLike | None) -> Tensor | np.ndarray:
        self._fitted()
        given = tables.matrix(x, "x", self.schema).rows
        preparation.check_width(given, "x", self.width)
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
        """Return the log-density ``(...)`` of encoded rows, in the units of the data."""
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
        """Sum the logarithms of the scales ``(...)`` over the cells that are not NaN."""
        return torch.where(real.isnan(), 0.0, self.scale.log()).sum(-1)

    def _flow_log_prob(self, u: Tensor, given: Tensor | None, with_gradient: bool) -> Tensor:
        """Evaluate the flow's log-density ``(...)``; without gradient in chunks that fit memory."""
        if with_gradient:
            return self.flow.log_prob(u, given)
        return chunked_log_prob(self.flow, u, given)

    def _fitted(self) -> None:
        """Raise where there is nothing yet that could be evaluated."""
        if self.width == 0 or (self.has_flow and self.flow is None):
            raise not_fitted(type(self).__name__)

    # ------------------------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample(
        self,
        n: int = 1,
        context: RowsLike | None = None,
        *,
        as_table: bool | None = None,
        seed: int | None = None,
    ) -> Tensor | DataFrame:
        """n draws ``(n, ..., P)``, a tensor of the dtype of the data on the module's device.

        Text is given by its place among ``schema.columns[i].values``.

        :param context: ``(..., C)``: n draws for each.
        :param as_table: draws as a pandas DataFrame, with text, dates and booleans; by default
            where the density was fitted to a table with names that holds any of these.
        :param seed: of the draws; by default they are from torch's generator.
        :raises NotImplementedError: for an architecture that cannot be drawn from (bnaf).

        Draws so far out that the flow overflows are drawn again, with a warning.
        """
        if not isinstance(n, int | np.integer) or n < 0:
            raise ValueError(f"n must be an integer of at least 0, got {n!r}")
        self._fitted()
        c = self._context(context)
        batch = torch.Size([]) if c is None else c.shape[:-1]
        chunk = max(1, DRAWN // max(batch.numel(), 1))
        with evaluating(self), seeded(seed):
            parts = [self._draw(min(chunk, n - i), c, batch) for i in range(0, n, chunk)]
        empty = self.loc.new_zeros(0, *batch, self.width)
        rows = torch.cat([part.to(self.data_dtype) for part in parts] or [empty])
        told = not all(c.is_number for c in self.schema.columns)
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

    def distribution(self, context: RowsLike | None = None) -> dist.TransformedDistribution:
        """Return a Pyro distribution, in the flow's dtype; ``rsample`` has gradients.

        :param context: ``(..., C)``, whose batch shape it has.
        """
        self._fitted()
        if self.schema.coded or self.schema.integers:
            raise NotImplementedError(
                "a density with columns of classes, spikes or integers has no Pyro distribution: "
                "draw with sample, and score with log_prob"
            )
        standard = self.flow.distribution(self._context(context))
        affine = AffineTransform(
            self.loc.to(self.dtype), self.scale.to(self.dtype), event_dim=1, cache_size=1
        )
        maps = [affine] if self.schema.is_plain else [affine, ToData(self.schema)]
        return dist.TransformedDistribution(standard.base_dist, [*standard.transforms, *maps])

    def _context(self, context: RowsLike | None) -> Tensor | None:
        """Standardise the context, in the flow's dtype; None where there is none."""
        self._check_context(context, "context")
        if context is None:
            return None
        c = preparation.as_tensor(context, "context")
        preparation.check_width(c, "context", self.context_dim)
        return ((c.to(self.loc.device) - self.context_loc) / self.context_scale).to(self.dtype)

    def _check_context(self, context: RowsLike | None, name: str) -> None:
        if (context is None) != (self.context_dim == 0):
            expected = f"of width {self.context_dim}" if self.context_dim else "None"
            given = "None" if context is None else f"shape {tuple(np.shape(context))}"
            raise ValueError(f"{name} must be {expected}, got {given}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TableDensity:
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
