"""Amortised guides trained on simulations that are stored, as neural posterior estimation does."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..support.calls import Args, Kwargs
from ..support.checks import check_integers
from ..support.seeding import seeded
from .autoguides import AutoFlowNormal
from .forward_kl import start_at

#: Decay of the averaged weights at each step; they are what is validated and kept.
_DECAY = 0.99

#: Largest norm of a gradient.
_CLIP = 5.0

#: Rows that are validated at once.
_AT_ONCE = 2000


@dataclass(frozen=True)
class SimulationFit:
    """What :func:`fit_simulations` did.

    :ivar train: mean negative log-density of the training rows in each epoch.
    :ivar validation: that of the validation rows after each epoch.
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
    seed: int | None = None,
    **kwargs: object,
) -> SimulationFit:
    r"""Fit a guide with a ``context_fn`` to stored simulations, and stop before it overfits.

    .. math:: \min - \frac1N \sum_i \log q(z_i; c(y_i))

    over simulated pairs of latents and data: the loss of :class:`~pyro_naf.infer.ForwardKL`, for a
    simulator that is dear or that ran elsewhere. The guide starts with the mean and the standard
    deviation of the latents. Adam's weights are averaged; the average with the best likelihood of
    rows that were held out is kept. The rate is halved after a third of ``patience`` without a
    better one.

    :param guide: an :class:`~pyro_naf.infer.AutoFlowNormal` (or ``AutoDSFNormal``,
        ``AutoDDSFNormal``) with a ``context_fn``. One that was called before goes on from its
        weights.
    :param latents: site to simulated values ``(N, *site shape)``.
    :param args: arguments of the model, as are ``kwargs``: tensors whose first axis has length N
        are the simulated data, and all else is the same for all simulations.
    :param max_epochs: largest number of passes through the training rows.
    :param batch_size: rows for each gradient.
    :param lr: Adam's learning rate at the start.
    :param patience: epochs without a better validation after which training ends.
    :param validation: share of the rows that is held out.
    :param seed: seeds torch's generators for the duration of the call.
    :raises TypeError: for a guide without a ``context_fn``.
    :raises ValueError: for latents or data of different numbers, or an argument out of range.

    Source: Papamakarios & Murray 2016 [arXiv:1605.06376].

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
    count = _number_of(latents)
    held_out = round(validation * count)
    if not 0 < held_out < count:
        raise ValueError(
            f"validation must leave rows on both sides, got {validation} of {count} simulations"
        )
    with seeded(seed):
        rows = _Rows(dict(latents), args, kwargs, count)
        if guide.prototype_trace is None:
            _, one_args, one_kwargs = rows[0]
            guide._setup_prototype(*one_args, **one_kwargs)
            start_at(guide, latents)
        return _fit(guide, rows, held_out, max_epochs, batch_size, lr, patience)


class _Rows:
    """Simulations by their index."""

    def __init__(self, latents: dict[str, Tensor], args: Args, kwargs: Kwargs, count: int) -> None:
        self.latents, self.args, self.kwargs, self.count = latents, args, kwargs, count
        if not any(self._is_data(value) for value in [*args, *kwargs.values()]):
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


def _number_of(latents: Mapping[str, Tensor]) -> int:
    numbers = {name: len(value) for name, value in latents.items()}
    if len(set(numbers.values())) != 1:
        raise ValueError(f"latents must have as many rows for each site, got {numbers}")
    return next(iter(numbers.values()))


def _fit(
    guide: AutoFlowNormal,
    rows: _Rows,
    held_out: int,
    max_epochs: int,
    batch_size: int,
    lr: float,
    patience: int,
) -> SimulationFit:
    def loss_of(chosen: Tensor) -> Tensor:
        latents, args, kwargs = rows[chosen]
        return -guide.log_prob(latents, *args, **kwargs).mean()

    order = torch.randperm(rows.count)
    validation, training = order[:held_out], order[held_out:]
    weights = _Averaged(guide, lr)
    best, best_state, since = math.inf, copy.deepcopy(guide.state_dict()), 0
    train: list[float] = []
    values: list[float] = []
    while since < patience and len(values) < max_epochs:
        parts = training[torch.randperm(len(training))].split(batch_size)
        train.append(sum(weights.step(loss_of(p)) * len(p) for p in parts) / len(training))
        with weights.in_place(), torch.no_grad():
            parts = validation.split(_AT_ONCE)
            values.append(sum(float(loss_of(p)) * len(p) for p in parts) / held_out)
            since += 1
            if values[-1] < best:
                best, since, best_state = values[-1], 0, copy.deepcopy(guide.state_dict())
        if since and since % max(patience // 3, 1) == 0:
            weights.adam.param_groups[0]["lr"] /= 2
    guide.load_state_dict(best_state)
    return SimulationFit(train, values, len(values) - 1 - since)


class _Averaged:
    """Adam on a guide's weights, and their average."""

    def __init__(self, guide: AutoFlowNormal, lr: float) -> None:
        self.weights = [w for w in guide.parameters() if w.requires_grad]
        self.average = [w.detach().clone() for w in self.weights]
        self.adam, self.steps = torch.optim.Adam(self.weights, lr=lr), 0

    def step(self, loss: Tensor) -> float:
        """One step down the loss, unless its gradient is not finite; the loss."""
        self.adam.zero_grad()
        loss.backward()
        if torch.nn.utils.clip_grad_norm_(self.weights, _CLIP).isfinite():
            self.adam.step()
        self.adam.zero_grad()
        self.steps += 1
        decay = min(_DECAY, self.steps / (self.steps + 9))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1 - decay)
        return float(loss.detach())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The guide has the average inside."""
        present = [w.detach().clone() for w in self.weights]
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.average)
            yield
            torch._foreach_copy_(self.weights, present)
