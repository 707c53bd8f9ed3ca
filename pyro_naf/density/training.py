"""Maximum likelihood by stochastic gradients: the loop that all densities are trained by."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..files.archive import plain
from ..files.atomic import check_file
from . import parallel
from .checkpoints import load_checkpoint, save_checkpoint
from .flow import evaluating
from .settings import Evaluation, History, OnEvaluation, Training
from .steps import Stepper

#: Steps between two looks at the device: what happens there is known to the host that much later.
LOOK_EVERY = 50

#: Steps in a row without a finite loss and gradient after which training gives up.
MAX_BAD_STEPS = 50

#: Steps between two evaluations on the validation rows: an epoch, but within these bounds.
EVALUATE_EVERY = (100, 1000)

#: Options that a checkpoint must agree on, beside those that the run derives others from.
SAME = ("lr", "weight_decay", "schedule", "clip", "polyak", "patience", "precision", "seed")

Rows = Sequence[Tensor]  # x (N, D), and with a context c (N, C)


def train(
    module: nn.Module,
    rows: Rows,
    validation: Rows | None,
    training: Training,
    on_evaluation: OnEvaluation | None = None,
    *,
    offset: float = 0.0,
    model: dict[str, object] | None = None,
    weight: Tensor | None = None,
) -> History:
    """Maximise the mean log-density of the rows; leave the best weights in the module.

    Everything stays on the device: batches are picked there by a permutation, losses are summed
    there, and the host looks once in 50 steps. A step whose loss or gradient is not finite changes
    nothing. An interrupted run leaves the best weights so far. Under ``torch.distributed`` every
    process takes its part of each batch, and has to be given the same rows.

    :param module: ``module(x)`` or ``module(x, context)`` is the log-density of every row.
    :param rows: ``(x,)`` or ``(x, context)`` on the module's device, N rows each.
    :param validation: the same for validation; None trains to the end of the budget.
    :param on_evaluation: is given each entry of ``History.evaluations`` as it is made.
    :param offset: added to all log-likelihoods that are reported: those of standardised rows
        differ by a constant from those of the data.
    :param model: numbers and strings that say what the module is, which a checkpoint to resume from
        must agree on.
    :param weight: of the rows, ``(N,)``; 1 by default.
    :raises RuntimeError: when 50 steps in a row have no finite loss and gradient, or no likelihood
        that was validated was finite.
    :raises ValueError: when the checkpoint to resume from is of another run.
    """
    with torch.enable_grad(), seeded(training.seed), _matmul_precision(training.precision):
        run = _Run(
            module, rows, validation, training, offset=offset, model=model or {}, weight=weight
        )
        return run.run(on_evaluation)


def untrained(module: nn.Module, rows: Rows, validation: Rows | None, offset: float) -> History:
    """Return the history of a module that has no weights to train: one evaluation of it."""
    start, value = time.monotonic(), mean_log_prob(module, rows)[0] + offset
    held_out = None if validation is None else mean_log_prob(module, validation)[0] + offset
    seconds = time.monotonic() - start
    entry = Evaluation(step=0, epoch=0.0, seconds=seconds, lr=0.0, train=value, validation=held_out)
    return History([entry], seconds=seconds)


@torch.no_grad()
def mean_log_prob(module: nn.Module, rows: Rows) -> tuple[float, float]:
    """Mean log-density of the rows and its standard error, in evaluation mode."""
    parts = [part.double() for part in log_probs(module, rows)]
    values = torch.cat(parts)
    n = len(values)
    return float(values.mean()), float(values.std()) / n**0.5 if n > 1 else math.nan


@torch.no_grad()
def log_probs(module: nn.Module, rows: Rows) -> Iterator[Tensor]:
    """Yield the log-densities of the rows, in chunks that fit the memory, in evaluation mode."""
    chunk = max(64, min(4096, 2**18 // rows[0].shape[-1]))
    for part in zip(*(t.split(chunk) for t in rows), strict=True):
        with evaluating(module):
            yield module(*part)


class _Run:
    """One training run: its state, and the loop."""

    def __init__(
        self,
        module: nn.Module,
        rows: Rows,
        validation: Rows | None,
        training: Training,
        *,
        offset: float,
        model: dict[str, object],
        weight: Tensor | None,
    ) -> None:
        self.module, self.rows, self.validation, self.options = module, rows, validation, training
        self.model = model
        self.weights: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        if not self.weights:
            raise ValueError("the module has nothing to train")
        self.n, self.device = len(rows[0]), rows[0].device
        self.batch = parallel.divisible(min(training.batch_size, self.n))
        self.steps_per_epoch = self.n // self.batch
        self.evaluate_every = training.evaluate_every or min(
            max(self.steps_per_epoch, EVALUATE_EVERY[0]), EVALUATE_EVERY[1]
        )
        epochs = training.max_epochs
        limits = [training.max_steps, None if epochs is None else epochs * self.steps_per_epoch]
        self.max_steps = min((limit for limit in limits if limit is not None), default=None)
        if self.max_steps is None and training.max_seconds is None:
            self.max_steps = min(max(100 * self.steps_per_epoch, 2000), 50_000)
        self.stepper = Stepper(module, self.weights, rows, self.batch, training, weight)
        self.average = [p.detach().clone() for p in self.weights]
        self.best = [p.detach().clone() for p in self.weights]
        self.best_value, self.factor, self.offset = -math.inf, 1.0, offset
        self.history = History()
        self.start = self.last_checkpoint = time.monotonic()
        if training.checkpoint is not None:
            found = check_file(training.checkpoint).exists()
            if training.resume and parallel.same(found):
                self.load_state(load_checkpoint(training.checkpoint))

    # ------------------------------------------------------------------------------------ the loop

    def run(self, on_evaluation: OnEvaluation | None) -> History:
        self.module.train()
        try:
            self.loop(on_evaluation)
        finally:  # an interrupted run leaves the best weights so far
            with torch.no_grad():
                torch._foreach_copy_(self.weights, self.best)
            for weight in self.weights:
                weight.grad = None
            self.module.eval()
        self.refuse_untrained()
        return self.history

    def loop(self, on_evaluation: OnEvaluation | None) -> None:
        history, options = self.history, self.options
        show = options.progress and parallel.rank() == 0
        with tqdm(
            total=self.max_steps, initial=history.steps, desc="fit", unit="step", disable=not show
        ) as bar:
            while history.stopped == "budget" and self.fraction < 1:
                if history.steps % self.steps_per_epoch == 0 or not self.stepper.has_order:
                    self.stepper.new_order(options.seed, history.steps // self.steps_per_epoch)
                self.stepper.step(history.steps % self.steps_per_epoch, self.learning_rate)
                history.steps += 1
                self.average_weights()
                bar.update()
                if history.steps % LOOK_EVERY == 0:
                    self.look()
                    bar.set_postfix_str(self.describe(), refresh=False)
                if history.steps % self.evaluate_every == 0:
                    self.evaluate(on_evaluation)
            if not history.evaluations or history.evaluations[-1]["step"] != history.steps:
                self.evaluate(on_evaluation)

    @torch.no_grad()
    def refuse_untrained(self) -> None:
        """Raise where the weights that were kept are of no use."""
        history = self.history
        if history.steps and history.skipped == history.steps:
            raise RuntimeError(
                f"none of {history.steps} steps had a finite loss and gradient: try a smaller lr, "
                "or look for outliers in the data"
            )
        if self.validation is None:
            values = self.module(*(t[: self.batch] for t in self.rows))
            if not values.isfinite().any():
                raise RuntimeError(
                    "no likelihood is finite after the last step: try a smaller lr, or look for "
                    "outliers in the data"
                )
        elif self.best_value == -math.inf:
            raise RuntimeError(
                "no evaluation had a finite validation likelihood: try a smaller lr, or look for "
                "outliers in the validation rows"
            )

    @property
    def fraction(self) -> float:
        """How much of the budget is spent, from 0 to 1."""
        parts = [0.0]
        if self.max_steps is not None:
            parts.append(self.history.steps / self.max_steps)
        if self.options.max_seconds is not None:
            self.history.seconds = time.monotonic() - self.start
            # All processes must agree on when to stop.
            parts.append(parallel.same(self.history.seconds) / self.options.max_seconds)
        return max(parts)

    @property
    def learning_rate(self) -> float:
        # A warm-up: Adam's first steps, in units of the rate, are all of full length.
        warm_up = min(1.0, (self.history.steps + 1) / 100)
        if self.options.schedule == "cosine":
            return self.options.lr * warm_up * 0.5 * (1 + math.cos(math.pi * min(self.fraction, 1)))
        return self.options.lr * warm_up * self.factor

    @torch.no_grad()
    def average_weights(self) -> None:
        # The average starts short and grows to its full length: no bias towards the start.
        decay = min(self.options.polyak, self.history.steps / (self.history.steps + 9))
        torch._foreach_lerp_(self.average, self.weights, 1 - decay)

    def look(self) -> None:
        """Wait for the device; learn of the losses since, and of steps without a finite one."""
        if self.stepper.look() >= MAX_BAD_STEPS:
            raise RuntimeError(
                f"{MAX_BAD_STEPS} steps in a row without a finite loss and gradient, up to step "
                f"{self.history.steps}: the likelihood is not finite; try a smaller lr, or look "
                "for outliers in the data"
            )
        self.history.skipped = self.stepper.skipped

    # ------------------------------------------------------------------------------ evaluation

    def evaluate(self, on_evaluation: OnEvaluation | None) -> None:
        """Validate the averaged weights, keep the best, write a checkpoint when it is due."""
        self.look()
        history = self.history
        history.seconds = time.monotonic() - self.start
        value, train = self.validate(), self.stepper.take_mean()
        history.evaluations.append(
            {
                "step": history.steps,
                "epoch": history.steps / self.steps_per_epoch,
                "seconds": history.seconds,
                "lr": self.learning_rate,
                "train": None if train is None else train + self.offset,
                "validation": value,
            }
        )
        if value is None or value > self.best_value:
            self.best_value = -math.inf if value is None else value
            history.best_step = history.steps
            torch._foreach_copy_(self.best, self.average)
        stale = sum(e["step"] > history.best_step for e in history.evaluations)
        if stale >= self.options.patience:
            history.stopped = "patience"
        third = max(self.options.patience // 3, 1)
        if self.options.schedule == "plateau" and stale and stale % third == 0:
            self.factor /= 2
        if on_evaluation is not None:
            on_evaluation(history.evaluations[-1])
        self.write_checkpoint()

    def validate(self) -> float | None:
        """Mean log-density of the validation rows under the averaged weights."""
        if self.validation is None:
            return None
        present = [p.detach().clone() for p in self.weights]
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.average)
            total = torch.zeros((), dtype=torch.double, device=self.device)
            for values in log_probs(self.module, parallel.part(self.validation)):
                total += values.double().sum()
            torch._foreach_copy_(self.weights, present)
        value = float(parallel.sum_over(total)) / len(self.validation[0]) + self.offset
        return value if math.isfinite(value) else -math.inf

    def describe(self) -> str:
        """Return the last likelihoods and the time left, for the progress bar."""
        last = self.history.evaluations[-1] if self.history.evaluations else {}
        shown = [f"{k} {last[k]:.3f}" for k in ("train", "validation") if last.get(k) is not None]
        fraction = max(self.fraction, 1e-9)
        left = int((time.monotonic() - self.start) * (1 - fraction) / fraction)
        return ", ".join([*shown, f"left {left // 60}:{left % 60:02d}"])

    # ------------------------------------------------------------------------------ checkpoints

    def write_checkpoint(self) -> None:
        due = time.monotonic() - self.last_checkpoint >= self.options.checkpoint_seconds
        if self.options.checkpoint is None or not parallel.same(due):
            return
        state = self.state()  # of all processes
        if parallel.rank() == 0:
            save_checkpoint(self.options.checkpoint, state)
        self.last_checkpoint = time.monotonic()

    def identity(self) -> dict[str, object]:
        """Return what a checkpoint must agree on to be of this run."""
        return {
            "weights": [list(p.shape) for p in self.weights],
            "processes": parallel.size(),
            "rows": _fingerprint(self.rows),
            "validation rows": _fingerprint(self.validation or ()),
            "batch_size": self.batch,
            "evaluate_every": self.evaluate_every,
            **{name: getattr(self.options, name) for name in SAME},
            **cast("dict[str, object]", plain("model", self.model)),
        }

    def state(self) -> dict[str, object]:
        return {
            "identity": self.identity(),
            # Permutations are drawn by the constructor, and kept in buffers.
            "module": {name: t.detach() for name, t in self.module.state_dict().items()},
            "average": self.average,
            "best": self.best,
            "best_value": self.best_value,
            "factor": self.factor,
            "stepper": self.stepper.state(),
            "generators": {k: parallel.gathered(t) for k, t in _generators(self.device).items()},
            "history": vars(self.history),
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        ours, theirs = self.identity(), state["identity"]
        if ours != theirs:
            differs = ", ".join(k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k))
            raise ValueError(
                f"checkpoint {self.options.checkpoint} is of another run: it differs in {differs}"
            )
        self.module.load_state_dict(state["module"])
        torch._foreach_copy_(self.average, state["average"])
        torch._foreach_copy_(self.best, state["best"])
        self.best_value, self.factor = state["best_value"], state["factor"]
        self.stepper.load_state(state["stepper"])
        self.history = History(**state["history"])
        self.start = time.monotonic() - self.history.seconds
        self.stepper.new_order(self.options.seed, self.history.steps // self.steps_per_epoch)
        own = {name: states[parallel.rank()] for name, states in state["generators"].items()}
        _restore_generators(own, self.device)


def _fingerprint(rows: Rows) -> list[list[int]]:
    # The sum of the bits is exact in whatever order it is taken.
    return [[*t.shape, int(t.double().view(torch.long).sum())] for t in rows]


def _generators(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_generators(states: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's global generators, which dropout draws from, seeded; put back afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed + parallel.rank())
        yield


@contextlib.contextmanager
def _matmul_precision(precision: str) -> Iterator[None]:
    """TF32 for float32 matrix products, where asked for; put back afterwards."""
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
