"""FlowDensity: a density estimator for rows of numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields
from numbers import Real
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineTransform
from torch import Tensor, nn

from ..archive import plain
from . import discrete, preparation
from .architectures import Options, build
from .flow import evaluating
from .model_file import load_model, save_model
from .settings import History, Training
from .training import log_probs, train

#: Rows drawn at once by :meth:`FlowDensity.sample`.
DRAWN = 8192


class FlowDensity(nn.Module):
    r"""A normalizing flow fitted to rows of numbers by maximum likelihood.

    The rows are standardised inside: with means :math:`m` and standard deviations :math:`s` of the
    columns and the flow's density p,

    .. math:: \log p(x) = \log p\big((x - m) / s\big) - \textstyle\sum_t \log s_t

    in nats, for x in the units of the data. Numpy arrays and tensors of any floating-point dtype
    are taken; the flow computes in its own, that of torch's default at construction.

    scikit-learn takes it for an estimator, whose y is the context: ``clone``, ``Pipeline``,
    ``cross_val_score`` and ``GridSearchCV`` over architectures and their options work, with what is
    said to :meth:`fit` in their ``params``.

    :param input_dim: D >= 1, the number of columns.
    :param context_dim: width C of a context; p is then the density of x given it.
    :param architecture: a name of :mod:`pyro_naf.density.architectures`.
    :param overrides: fields of :class:`~pyro_naf.density.architectures.Options`.
    :raises ValueError: for an unknown architecture or an option out of its range.

    :ivar history: of the last fit, a :class:`~pyro_naf.density.settings.History`.
    :ivar columns: names of the columns, where they are known; ``context_columns`` likewise.
    :ivar names: what messages of :meth:`fit` call the rows and the contexts.
    :ivar noise: width of the noise that was added to discrete columns before the fit, by column;
        rows to be scored need it too (the command line sees to it).
    :ivar values: the values that these columns can take, ascending, by column; draws are such.

    Source: Huang et al. 2018 [arXiv:1804.00779], section 6.2.

    >>> x = torch.randn(1000, 2).exp()
    >>> density = FlowDensity(2, architecture="maf-dsf-1", hidden_dims=[16])
    >>> density = density.fit(x, max_epochs=2, seed=0, progress=False)
    >>> density.log_prob(x).shape, density.sample(5).shape
    (torch.Size([1000]), torch.Size([5, 2]))
    """

    loc: Tensor
    scale: Tensor
    context_loc: Tensor
    context_scale: Tensor

    def __init__(
        self,
        input_dim: int,
        context_dim: int = 0,
        architecture: str = "maf-ddsf-5",
        **overrides: Any,
    ) -> None:
        super().__init__()
        self.flow = build(architecture, input_dim, context_dim, **overrides)
        # As they were given: scikit-learn's clone compares them by identity.
        self.input_dim, self.context_dim = input_dim, context_dim
        self.architecture, self.overrides = architecture, overrides
        # In double precision whatever the flow's: a year is 2020, its hours are 1e-4 of that.
        for name, width in (("", input_dim), ("context_", context_dim)):
            self.register_buffer(f"{name}loc", torch.zeros(width, dtype=torch.double))
            self.register_buffer(f"{name}scale", torch.ones(width, dtype=torch.double))
        self.data_dtype = torch.get_default_dtype()
        self.history: History | None = None
        self.names = ("x", "context")
        self.columns: list[str] | None = None
        self.context_columns: list[str] | None = None
        self.noise: dict[int, float] = {}
        self.values: dict[int, Tensor] = {}

    # ------------------------------------------------------------------------------------ fitting

    def fit(
        self,
        x: Any,
        context: Any = None,
        *,
        validation: Any = 0.1,
        max_epochs: int | None = None,
        max_seconds: float | None = None,
        batch_size: int = Training.batch_size,
        lr: float = Training.lr,
        seed: int | None = None,
        progress: bool = True,
        on_evaluation: Callable[[dict[str, Any]], None] | None = None,
        **training: Any,
    ) -> FlowDensity:
        """Fits the density to rows, from its present weights, and returns itself.

        The weights with the best likelihood of the validation rows are kept, also when an exception
        or Ctrl-C ends the fit. The rows are moved to the module's device.

        :param x: rows ``(N, D)``, N >= 2.
        :param context: ``(N, C)``, with ``context_dim`` = C.
        :param validation: the part of the rows that is held out, 0 for none; or such rows, with a
            context a pair of rows and contexts.
        :param max_epochs: as in :class:`~pyro_naf.density.settings.Training`, which names the rest
            and what can be given in ``training`` besides: patience, schedule, polyak, precision,
            checkpoint, resume, ...
        :param seed: of the held out rows, the batches and dropout; by default from torch's
            generator. (The weights were initialised when the module was made.)
        :param on_evaluation: called with each entry of ``history.evaluations`` as it is made.
        :raises TypeError: when the data holds no real numbers.
        :raises ValueError: for another shape, NaN or infinity (counted, rows named), a constant
            column, too few rows, or an argument out of its range.
        :raises RuntimeError: when the likelihood is not finite for 50 steps in a row, or never
            is for the validation rows.
        """
        options = Training(
            max_epochs=max_epochs,
            max_seconds=max_seconds,
            batch_size=batch_size,
            lr=lr,
            seed=int(torch.randint(2**31, ())) if seed is None else seed,
            progress=progress,
            **training,
        )
        rows = self.checked_rows(x, context, *self.names)
        whole = rows
        rows, held_out = self._split(rows, validation, options.seed)
        n, taken = len(whole[0]), len(whole[0]) - len(rows[0])
        if n - taken < 2:
            raise ValueError(
                f"{self.names[0]} must have at least 2 rows to train on, got {n} "
                + ("rows" if n > 1 else "row")
                + (f", of which {taken} held out for validation" if taken else "")
            )
        self.data_dtype = whole[0].dtype
        self._set_statistics(rows)
        preparation.warn_of_atoms(whole[0], self.names[0], self.columns)
        named = zip(whole, self.names, (self.columns, self.context_columns), strict=False)
        for t, name, columns in named:
            preparation.warn_of_outliers(t, name, columns)
        self.history = None
        try:
            self.history = train(
                self.flow,
                self._standardised(rows),
                None if held_out is None else self._standardised(held_out),
                options,
                on_evaluation,
                offset=-float(self.scale.log().sum()),
                model=self.description(),
            )
        finally:
            self.eval()
        return self

    def checked_rows(self, x: Any, context: Any, x_name: str, context_name: str) -> list[Tensor]:
        """x and, where there is one, the context: as finite rows, on the module's device.

        :raises ValueError: for another shape, NaN or infinity; the names are those given.
        """
        rows = [preparation.as_rows(x, x_name, self.input_dim, self.loc.device)]
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
        for t, name in zip(rows, (x_name, context_name), strict=False):
            preparation.check_finite(t, name)
        return rows

    def description(self) -> dict[str, Any]:
        """The architecture and its options, of Python's own types."""
        return {"architecture": self.architecture, "overrides": plain("options", self.overrides)}

    def _split(
        self, rows: list[Tensor], validation: Any, seed: int
    ) -> tuple[list[Tensor], list[Tensor] | None]:
        if validation is None or (isinstance(validation, Real) and validation == 0):
            return rows, None
        if not isinstance(validation, Real):
            x, c = validation if isinstance(validation, tuple) else (validation, None)
            return rows, self.checked_rows(x, c, "validation", "the context of validation")
        if not 0 <= float(validation) < 1:
            raise ValueError(f"validation must lie in [0, 1), or be rows, got {validation}")
        n = len(rows[0])
        held_out = max(1, int(float(validation) * n))
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        order = order.to(rows[0].device)
        return [t[order[held_out:]] for t in rows], [t[order[:held_out]] for t in rows]

    def _set_statistics(self, rows: list[Tensor]) -> None:
        loc, scale = preparation.statistics(rows[0], self.names[0], self.columns)
        self.loc.copy_(loc)
        self.scale.copy_(scale)
        if len(rows) > 1:
            loc, scale = preparation.context_statistics(
                rows[1], self.names[1], self.context_columns
            )
            self.context_loc.copy_(loc)
            self.context_scale.copy_(scale)

    def _standardised(self, rows: list[Tensor]) -> list[Tensor]:
        moments = ((self.loc, self.scale), (self.context_loc, self.context_scale))
        return [
            preparation.standardised(t, *m, self.dtype) for t, m in zip(rows, moments, strict=False)
        ]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the flow's weights, in which the flow computes."""
        return next(self.flow.parameters()).dtype

    # ------------------------------------------------------------------------------------- scoring

    def forward(self, x: Any, context: Any = None) -> Any:
        """:meth:`log_prob`, but in the module's own mode: in training mode units are dropped."""
        return self._log_prob(x, context)

    def log_prob(self, x: Any, context: Any = None) -> Any:
        """The log-density of x ``(..., D)`` in nats, shape ``(...)``.

        A tensor for a tensor, with gradients where they are enabled; a numpy array for an array. It
        is minus infinity where x is infinite, and NaN where x is NaN. Like all methods but
        :meth:`forward`, it evaluates the flow in evaluation mode, and puts the modes back.

        :param context: ``(..., C)``; batch shapes broadcast.
        :raises NotImplementedError: for an architecture that cannot score data (planar flows).
        """
        with evaluating(self):
            return self._log_prob(x, context)

    def _log_prob(self, x: Any, context: Any) -> Any:
        given = preparation.as_tensor(x, "x")
        self._check_last(given, "x", self.input_dim)
        c = self._context(context)
        u = ((given.to(self.loc.device) - self.loc) / self.scale).to(self.dtype)
        if isinstance(x, Tensor) and torch.is_grad_enabled():
            return self._in_data_units(self.flow.log_prob(u, c), given)
        batch = u.shape[:-1]
        if c is not None:
            batch = torch.broadcast_shapes(batch, c.shape[:-1])
            c = c.expand(*batch, -1).reshape(-1, self.context_dim)
        flat = [u.expand(*batch, -1).reshape(-1, self.input_dim), *([] if c is None else [c])]
        parts = list(log_probs(self.flow, flat)) if len(flat[0]) else [u.new_zeros(0)]
        values = self._in_data_units(torch.cat(parts).view(batch), given)
        return values if isinstance(x, Tensor) else values.cpu().numpy()

    def _in_data_units(self, log_prob: Tensor, x: Tensor) -> Tensor:
        return (log_prob - self.scale.log().sum()).to(torch.promote_types(x.dtype, self.dtype))

    def score(self, x: Any, context: Any = None) -> float:
        """The mean log-density of rows ``(N, D)`` in nats.

        :raises ValueError: as :meth:`fit`, for shapes and values.
        """
        with torch.no_grad():
            return float(
                self.log_prob(*self.checked_rows(x, context, "x", "context")).double().mean()
            )

    def score_samples(self, x: Any, context: Any = None) -> np.ndarray:
        """The log-density of each of the rows ``(N, D)`` in nats, as a numpy array ``(N,)``.

        :raises ValueError: as :meth:`fit`, for shapes and values.
        """
        with torch.no_grad():
            rows = self.checked_rows(x, context, "x", "context")
            values = self.log_prob(*rows).cpu()
        return values.to(torch.promote_types(values.dtype, torch.float32)).numpy()

    # -------------------------------------------------------------------------------- scikit-learn

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """What the density is made of: the arguments of the constructor, all options among them.

        >>> FlowDensity(2, hidden_dims=[16]).get_params()["hidden_dims"]
        [16]
        """
        defaults = {field.name: field.default for field in fields(Options)}
        return {
            "input_dim": self.input_dim,
            "context_dim": self.context_dim,
            "architecture": self.architecture,
            **defaults,
            **self.overrides,
        }

    def set_params(self, **params: Any) -> FlowDensity:
        """Makes the density anew with some of :meth:`get_params` changed: it is no longer fitted.

        :raises TypeError: for an unknown option.
        :raises ValueError: as the constructor.

        >>> FlowDensity(2, architecture="maf-dsf-1").set_params(dropout=0.1).get_params()["dropout"]
        0.1
        """
        if params:
            device, dtype, training = self.loc.device, self.dtype, self.training
            made = FlowDensity(**{**self.get_params(), **params}).to(device, dtype)
            self.__dict__.update(vars(made.train(training)))
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags  # type: ignore[import-untyped]

        return Tags("density_estimator", TargetTags(required=False))

    def __sklearn_is_fitted__(self) -> bool:
        return self.history is not None

    # ------------------------------------------------------------------------------------ sampling

    @torch.no_grad()
    def sample(self, n: int, context: Any = None) -> Tensor:
        """n draws ``(n, ..., D)``, of the dtype of the data, on the module's device.

        :param context: ``(..., C)``: n draws for each.
        :raises NotImplementedError: for an architecture that cannot be drawn from (bnaf).
        """
        if not isinstance(n, int | np.integer) or n < 0:
            raise ValueError(f"n must be an integer of at least 0, got {n!r}")
        c = self._context(context)
        each = 1 if c is None else max(c.shape[:-1].numel(), 1)
        chunk = max(1, DRAWN // each)
        with evaluating(self):
            parts = [self.flow.rsample(min(chunk, n - i), c) for i in range(0, n, chunk)]
        if not parts:
            batch = () if c is None else c.shape[:-1]
            parts = [self.loc.new_zeros(0, *batch, self.input_dim)]
        draws = (self.loc + self.scale * u for u in parts)
        return torch.cat(
            [discrete.quantised(x, self.noise, self.values).to(self.data_dtype) for x in draws]
        )

    def distribution(self, context: Any = None) -> dist.TransformedDistribution:
        """The density as a Pyro distribution, in the flow's dtype; ``rsample`` has gradients.

        :param context: ``(..., C)``, whose batch shape it has.
        """
        standard = self.flow.distribution(self._context(context))
        affine = AffineTransform(
            self.loc.to(self.dtype), self.scale.to(self.dtype), event_dim=1, cache_size=1
        )
        return dist.TransformedDistribution(standard.base_dist, [*standard.transforms, affine])

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
        exact = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, before in exact.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self

    def extra_repr(self) -> str:
        return f"input_dim={self.input_dim}, context_dim={self.context_dim}, {self.architecture!r}"
