"""FlowDensity: a density estimator for rows of numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineTransform
from torch import Tensor, nn

from ..checks import check_integers
from . import automatic, discrete, preparation
from .architectures import build, check_options, parse
from .archive import plain
from .flow import evaluating
from .model_file import load_model, save_model
from .settings import History, Training
from .sklearn_api import SETTINGS, Estimator, not_fitted
from .stacked import Stacked
from .training import log_probs, train, untrained

#: Rows drawn at once by :meth:`FlowDensity.sample`.
DRAWN = 8192


class FlowDensity(Estimator, nn.Module):
    r"""A density fitted to rows of numbers by maximum likelihood.

    By default it is a mixture of Gaussians and flows, weighted by rows that they were not fitted
    to (:mod:`pyro_naf.density.automatic`); ``architecture`` names a single flow instead. The rows
    are standardised inside: with means :math:`m` and standard deviations :math:`s` of the columns
    and the flow's density p,

    .. math:: \log p(x) = \log p\big((x - m) / s\big) - \textstyle\sum_t \log s_t

    in nats, for x in the units of the data. Numpy arrays and tensors of any floating-point dtype
    are taken; the flow computes in its own, that of torch's default at construction.

    scikit-learn takes it for an estimator, whose y is the context: ``clone``, ``Pipeline``,
    ``cross_val_score`` and ``GridSearchCV`` over any argument work.

    :param input_dim: D >= 1, the number of columns; by default that of the rows given to fit.
    :param context_dim: width C of a context; p is then the density of x given it.
    :param architecture: a name of :mod:`pyro_naf.density.architectures`.
    :param options: fields of :class:`~pyro_naf.density.architectures.Options`, and the arguments of
        :meth:`fit`, which are then its defaults.
    :raises ValueError: for an unknown architecture or an option out of its range.
    :raises TypeError: for an unknown option.

    :ivar history: of the last fit, a :class:`~pyro_naf.density.settings.History`; its
        ``comparison`` sets the Gaussian, the best Gaussian mixture, the best flow and the density
        beside each other.
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
        self.register_buffer("like", torch.zeros(()), persistent=False)
        self.data_dtype = torch.get_default_dtype()
        self.history: History | None = None
        self.names = ("x", "context")
        self.columns: list[str] | None = None
        self.context_columns: list[str] | None = None
        self.noise: dict[int, float] = {}
        self.values: dict[int, Tensor] = {}
        self.parts: list[tuple[str, dict[str, Any]]] = []
        self._allocate(0, context_dim)
        if input_dim is not None:
            self._build(input_dim)

    def _build(self, width: int) -> None:
        """Makes what depends on the number of columns."""
        check_integers(input_dim=(width, 1))
        self._allocate(width, self.context_dim)
        if parse(self.architecture)[0] != "auto":
            made = build(self.architecture, width, self.context_dim, **self.overrides)
            self.flow = made.to(self.like.device, self.dtype)

    def _allocate(self, width: int, context_dim: int) -> None:
        self.width = width
        # In double precision whatever the flow's: a year is 2020, its hours are 1e-4 of that.
        for name, size in (("", width), ("context_", context_dim)):
            zeros = torch.zeros(size, dtype=torch.double, device=self.like.device)
            self.register_buffer(f"{name}loc", zeros)
            self.register_buffer(f"{name}scale", torch.ones_like(zeros))

    def restore_parts(self, parts: list[tuple[str, dict[str, Any]]]) -> None:
        """Makes the mixture of these architectures, with weights that are to be loaded."""
        if parts:
            made = [build(name, self.width, self.context_dim, **kw) for name, kw in parts]
            self.flow = Stacked(self.width, made, torch.full((len(made),), 1 / len(made)))
            self.parts = parts

    # ------------------------------------------------------------------------------------ fitting

    def fit(
        self,
        x: Any,
        context: Any = None,
        *,
        sample_weight: Any = None,
        on_evaluation: Callable[[dict[str, Any]], None] | None = None,
        **settings: Any,
    ) -> FlowDensity:
        """Fits the density to rows, and returns itself.

        A named architecture goes on from its present weights. The weights with the best likelihood
        of the validation rows are kept, also when an exception or Ctrl-C ends the fit. The rows are
        moved to the module's device.

        :param x: rows ``(N, D)``, N >= 2.
        :param context: ``(N, C)``, with ``context_dim`` = C.
        :param sample_weight: of the rows, ``(N,)``, at least 0; 1 by default.
        :param on_evaluation: called with each entry of ``history.evaluations`` as it is made.
        :param settings: fields of :class:`~pyro_naf.density.settings.Training`, and ``validation``:
            the part of the rows that is held out, by default 0.1, 0 for none; or such rows, with a
            context a pair of rows and contexts. ("auto" cross-validates up to 4000 rows instead,
            unless rows are given.) ``seed`` is that of the held out rows, the batches and dropout,
            by default from torch's generator; weights of a named architecture were initialised when
            the module was made.
        :raises TypeError: when the data holds no real numbers, or for an unknown setting.
        :raises ValueError: for another shape, NaN or infinity (counted, rows named), a constant
            column, too few rows, or an argument out of its range.
        :raises RuntimeError: when the likelihood is not finite for 50 steps in a row, or never
            is for the validation rows.
        """
        given = {**self.settings, **settings}
        validation = given.pop("validation", SETTINGS["validation"])
        if given.get("seed") is None:
            given["seed"] = int(torch.randint(2**31, ()))
        options = Training(**given)
        if self.width == 0:
            self._build(preparation.width_of(x, self.names[0]))
        rows = whole = self.checked_rows(x, context, *self.names)
        weight = preparation.as_weight(sample_weight, whole[0])
        rows, weight, held_out = self._split(rows, weight, validation, options.seed)
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
            self._train(rows, weight, held_out, options, given, on_evaluation)
        finally:
            self.eval()
        return self

    def _train(
        self,
        rows: list[Tensor],
        weight: Tensor | None,
        held_out: list[Tensor] | None,
        options: Training,
        given: dict[str, Any],
        on_evaluation: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        rows = self._standardised(rows)
        held_out = None if held_out is None else self._standardised(held_out)
        offset = -float(self.scale.log().sum())
        if parse(self.architecture)[0] == "auto":
            self.flow = None
            found = automatic.fit(
                rows, held_out, options, given=given, overrides=self.overrides, weight=weight,
                offset=offset, on_evaluation=on_evaluation, dtype=self.dtype,
            )  # fmt: skip
            self.flow, self.parts, self.history = found.density, found.parts, found.history
            return
        model = self.description()
        self.flow.start(rows[0], rows[1] if len(rows) > 1 else None, weight)
        if next(self.flow.parameters(), None) is None:
            self.history = untrained(self.flow, rows, held_out, offset)
            return
        self.history = train(
            self.flow, rows, held_out, options, on_evaluation, offset, model, weight
        )

    def checked_rows(self, x: Any, context: Any, x_name: str, context_name: str) -> list[Tensor]:
        """x and, where there is one, the context: as finite rows, on the module's device.

        :raises ValueError: for another shape, NaN or infinity; the names are those given.
        """
        rows = [preparation.as_rows(x, x_name, self.width, self.loc.device)]
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
        self, rows: list[Tensor], weight: Tensor | None, validation: Any, seed: int
    ) -> tuple[list[Tensor], Tensor | None, list[Tensor] | None]:
        """Rows to train on, their weights, and rows for validation, if there are any."""
        if validation is not None and not isinstance(validation, Real):
            x, c = validation if isinstance(validation, tuple) else (validation, None)
            held_out = self.checked_rows(x, c, "validation", "the context of validation")
            return rows, weight, held_out
        part = float(validation or 0)
        if not 0 <= part < 1:
            raise ValueError(f"validation must lie in [0, 1), or be rows, got {validation}")
        n = len(rows[0])
        if self.architecture == "auto":
            if n <= automatic.CROSS_VALIDATED:
                return rows, weight, None
            part = part or SETTINGS["validation"]
        if part == 0:
            return rows, weight, None
        taken = max(1, int(part * n))
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        order = order.to(rows[0].device)
        kept = order[taken:]
        weight = None if weight is None else weight[kept]
        return [t[kept] for t in rows], weight, [t[order[:taken]] for t in rows]

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
        return self.like.dtype

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
        flow = self._fitted()
        given = preparation.as_tensor(x, "x")
        self._check_last(given, "x", self.width)
        c = self._context(context)
        u = ((given.to(self.loc.device) - self.loc) / self.scale).to(self.dtype)
        if isinstance(x, Tensor) and torch.is_grad_enabled():
            return self._in_data_units(flow.log_prob(u, c), given)
        batch = u.shape[:-1]
        if c is not None:
            batch = torch.broadcast_shapes(batch, c.shape[:-1])
            c = c.expand(*batch, -1).reshape(-1, self.context_dim)
        flat = [u.expand(*batch, -1).reshape(-1, self.width), *([] if c is None else [c])]
        parts = list(log_probs(flow, flat)) if len(flat[0]) else [u.new_zeros(0)]
        values = self._in_data_units(torch.cat(parts).view(batch), given)
        return values if isinstance(x, Tensor) else values.cpu().numpy()

    def _fitted(self) -> Any:
        if self.flow is None:
            raise not_fitted(type(self).__name__)
        return self.flow

    def _in_data_units(self, log_prob: Tensor, x: Tensor) -> Tensor:
        return (log_prob - self.scale.log().sum()).to(torch.promote_types(x.dtype, self.dtype))

    def score(self, x: Any, context: Any = None) -> float:
        """The mean log-density of rows ``(N, D)`` in nats.

        :raises ValueError: as :meth:`fit`, for shapes and values.
        """
        self._fitted()
        with torch.no_grad():
            return float(
                self.log_prob(*self.checked_rows(x, context, "x", "context")).double().mean()
            )

    def score_samples(self, x: Any, context: Any = None) -> np.ndarray:
        """The log-density of each of the rows ``(N, D)`` in nats, as a numpy array ``(N,)``.

        :raises ValueError: as :meth:`fit`, for shapes and values.
        """
        self._fitted()
        with torch.no_grad():
            rows = self.checked_rows(x, context, "x", "context")
            values = self.log_prob(*rows).cpu()
        return values.to(torch.promote_types(values.dtype, torch.float32)).numpy()

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
    def sample(self, n: int, context: Any = None) -> Tensor:
        """n draws ``(n, ..., D)``, of the dtype of the data, on the module's device.

        :param context: ``(..., C)``: n draws for each.
        :raises NotImplementedError: for an architecture that cannot be drawn from (bnaf).
        """
        if not isinstance(n, int | np.integer) or n < 0:
            raise ValueError(f"n must be an integer of at least 0, got {n!r}")
        flow = self._fitted()
        c = self._context(context)
        each = 1 if c is None else max(c.shape[:-1].numel(), 1)
        chunk = max(1, DRAWN // each)
        with evaluating(self):
            parts = [flow.rsample(min(chunk, n - i), c) for i in range(0, n, chunk)]
        if not parts:
            batch = () if c is None else c.shape[:-1]
            parts = [self.loc.new_zeros(0, *batch, self.width)]
        draws = (self.loc + self.scale * u for u in parts)
        return torch.cat(
            [discrete.quantised(x, self.noise, self.values).to(self.data_dtype) for x in draws]
        )

    def distribution(self, context: Any = None) -> dist.TransformedDistribution:
        """The density as a Pyro distribution, in the flow's dtype; ``rsample`` has gradients.

        :param context: ``(..., C)``, whose batch shape it has.
        """
        standard = self._fitted().distribution(self._context(context))
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
        exact = {name: t for name, t in self._buffers.items() if name != "like"}
        super()._apply(fn, recurse)
        for name, before in exact.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self

    def extra_repr(self) -> str:
        return f"input_dim={self.input_dim}, context_dim={self.context_dim}, {self.architecture!r}"
