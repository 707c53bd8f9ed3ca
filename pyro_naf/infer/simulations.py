"""Amortised guides trained on simulations that are stored, as neural posterior estimation does."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy
import torch
from torch import Tensor

from ..support.calls import Args, Kwargs
from ..support.checks import check_integers
from ..support.seeding import seeded
from ..training.early_stopping import EarlyStopping
from .autoguides import AutoFlowNormal
from .forward_kl import start_at

#: Gain of an epoch, in nats, below which the linear map alone is trained at half the rate, and how
#: often in a row that happens before the others are trained too.
_ENOUGH, _HALVINGS = 0.01, 3

#: Weights that wait until then, by what their names begin with.
_NONLINEAR = ("flow.", "context_affine.hidden.", "context_affine.output.")

#: Rows whose context is computed at once.
_AT_ONCE = 2000


@dataclass(frozen=True)
class SimulationFit:
    """What :func:`fit_simulations` did.

    :ivar train: mean negative log-density of the training rows in each epoch.
    :ivar validation: mean negative log-density of the validation rows after each epoch.
    :ivar best_epoch: the epoch, from zero, whose weights the guide has.
    """

    train: list[float] = field(repr=False)
    validation: list[float] = field(repr=False)
    best_epoch: int

    @property
    def epochs(self) -> int:
        """Number of epochs that were trained."""
        return len(self.validation)


def fit_simulations(
    guide: AutoFlowNormal,
    latents: Mapping[str, Tensor],
    *args: object,
    max_epochs: int = 500,
    batch_size: int = 200,
    lr: float = 5e-3,
    patience: int = 20,
    validation: float = 0.1,
    weight_decay: float = 0.03,
    seed: int | None = None,
    **kwargs: object,
) -> SimulationFit:
    r"""Fit a guide with a ``context_fn`` to stored simulations, and stop before it overfits.

    .. math:: \min - \frac1N \sum_i \log q(z_i; c(y_i))

    over simulated pairs of latents and data: the loss of :class:`~pyro_naf.infer.ForwardKL`, for a
    simulator that is expensive or that ran elsewhere. A new guide starts with the mean and the
    standard deviation of the latents; what is linear in the context is trained first, as long as an
    epoch gains 0.01 nats, and then all, so that a normal posterior is not overfitted. Weights
    decay, and of the averages of Adam's weights the one with the best likelihood of held-out rows
    is kept. After a sixth of ``patience`` without a better one, training goes on from there at half
    the rate. Simulations that failed, whose context is not finite, are left out.

    :param guide: an :class:`~pyro_naf.infer.AutoFlowNormal` (or ``AutoDSFNormal``,
        ``AutoDDSFNormal``) with a ``context_fn``. One that was called before goes on from its
        weights.
    :param latents: site to simulated values ``(N, *site shape)``.
    :param args: arguments of the model, as are ``kwargs``: tensors (or NumPy's arrays) whose first
        axis has length N are the simulated data, and all else is the same for all simulations.
    :param max_epochs: largest number of passes through the training rows.
    :param batch_size: rows for each gradient.
    :param lr: Adam's learning rate at the start.
    :param patience: epochs without a better validation after which training ends.
    :param validation: share of the rows that is held out.
    :param weight_decay: of Adam's steps (AdamW): more for few simulations or a posterior that is
        nearly normal, less for many or one of a complex shape.
    :param seed: seeds torch's generators for the duration of the call.
    :raises TypeError: for a guide without a ``context_fn``.
    :raises ValueError: for latents or data of different numbers, or an argument out of range.
    :warns UserWarning: where simulations are left out, as their latents or their context are not
        finite.

    Sources: Papamakarios & Murray 2016 [arXiv:1605.06376]; Loshchilov & Hutter 2019
    [arXiv:1711.05101].

    >>> import pyro, pyro.distributions as dist
    >>> from pyro_naf.infer import AutoDSFNormal
    >>> pyro.clear_param_store()
    >>> def prior(y):
    ...     return pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> x = torch.randn(500)
    >>> y = x[:, None] + torch.randn(500, 3)
    >>> guide = AutoDSFNormal(prior, context_fn=lambda y: y, context_dim=3, num_transforms=1)
    >>> fit = fit_simulations(guide, {"x": x}, y, max_epochs=2, seed=0)
    >>> fit.epochs, guide(y[0])["x"].shape
    (2, torch.Size([]))
    """
    if not isinstance(guide, AutoFlowNormal) or not guide.context_dim:
        raise TypeError(f"guide must have a context_fn, got {type(guide).__name__}")
    check_integers(max_epochs=(max_epochs, 1), batch_size=(batch_size, 1), patience=(patience, 1))
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be at least 0 and finite, got {weight_decay}")
    latents = {name: torch.as_tensor(value) for name, value in latents.items()}
    rows = _Rows(latents, args, kwargs, _number_of(latents))

    def loss(chosen: Tensor) -> Tensor:
        values, args, kwargs = rows[chosen]
        return -guide.log_prob(values, *args, **kwargs).mean()

    with seeded(seed):
        is_new = guide.prototype_trace is None
        parts = _split(_usable(guide, rows), validation)
        training = EarlyStopping(guide, loss, parts, max_epochs, batch_size)
        names = [name for name, _ in guide.named_parameters()]
        if is_new:
            linear = [name for name in names if not name.startswith(_NONLINEAR)]
            training.phase(linear, lr, 0.0, _HALVINGS, 1, _ENOUGH)
        training.phase(names, lr, weight_decay, patience, max(patience // 6, 1))
        return SimulationFit(training.train, training.values, training.best_epoch)


def _usable(guide: AutoFlowNormal, rows: _Rows) -> Tensor:
    """Return the indices of usable simulations; a guide that is new is set up."""
    usable = rows.with_finite_context(guide)
    if guide.prototype_trace is None:
        _, args, kwargs = rows[usable[0]]
        guide._setup_prototype(*args, **kwargs)
        start_at(guide, rows.latents)
    usable = usable[guide.latent_vectors(rows.latents)[usable].isfinite().all(-1)]
    if len(usable) < rows.count:
        warnings.warn(
            f"{rows.count - len(usable)} of {rows.count} simulations are left out, whose latents "
            "or context are not finite",
            stacklevel=3,
        )
    return usable


def _split(usable: Tensor, validation: float) -> tuple[Tensor, Tensor]:
    """Draw the indices of rows that are held out, and of rows to train on."""
    held_out = round(validation * len(usable))
    if not 0 < held_out < len(usable):
        raise ValueError(
            f"validation must leave rows on both sides, got {validation} of {len(usable)} "
            "simulations"
        )
    order = usable[torch.randperm(len(usable))]
    return order[:held_out], order[held_out:]


class _Rows:
    """Simulations by their index."""

    def __init__(self, latents: dict[str, Tensor], args: Args, kwargs: Kwargs, count: int) -> None:
        self.latents, self.count = latents, count
        self.args = [_as_data(value) for value in args]
        self.kwargs = {name: _as_data(value) for name, value in kwargs.items()}
        if not any(self._is_data(v) for v in [*self.args, *self.kwargs.values()]):
            raise ValueError(
                f"one of the model's arguments must have a row for each of {count} simulations, "
                f"got shapes {[tuple(getattr(a, 'shape', ())) for a in args]}"
            )

    def _is_data(self, value: object) -> bool:
        return isinstance(value, Tensor) and value.dim() > 0 and len(value) == self.count

    def __getitem__(
        self, chosen: Tensor | int
    ) -> tuple[dict[str, Tensor], list[object], dict[str, object]]:
        def part(value: object) -> object:
            return value[chosen] if isinstance(value, Tensor) and self._is_data(value) else value

        latents = {name: value[chosen] for name, value in self.latents.items()}
        return latents, [part(a) for a in self.args], {n: part(a) for n, a in self.kwargs.items()}

    @torch.no_grad()
    def with_finite_context(self, guide: AutoFlowNormal) -> Tensor:
        """Return the indices of simulations whose context is finite: simulators fail."""
        usable = []
        for part in torch.arange(self.count).split(_AT_ONCE):
            _, args, kwargs = self[part]
            context = guide.context_fn(*args, **kwargs)  # type: ignore[misc]
            if isinstance(context, Tensor) and len(context) == len(part):
                part = part[context.isfinite().flatten(1).all(-1)]
            usable.append(part)
        found = torch.cat(usable)
        if not len(found):
            raise ValueError("context_fn must return finite values, got none in all simulations")
        return found


def _as_data(value: object) -> object:
    return torch.as_tensor(value) if isinstance(value, numpy.ndarray) else value


def _number_of(latents: Mapping[str, Tensor]) -> int:
    numbers = {name: len(value) for name, value in latents.items()}
    if len(set(numbers.values())) != 1:
        raise ValueError(f"latents must have as many rows for each site, got {numbers}")
    return next(iter(numbers.values()))
