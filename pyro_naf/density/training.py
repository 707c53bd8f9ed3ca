"""Maximum likelihood by stochastic gradients: the loop that all densities are trained by."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..files.archive import plain
from ..files.atomic import check_file
from ..files.stored import load, save
from ..support.seeding import generators, seeded, set_generators
from ..training import parallel
from ..training.averages import Average, copies, newest
from ..training.checkpoints import Interval
from ..training.limits import Limits
from ..training.progress import Progress
from ..training.steps import cosine, refuse_bad_steps, warm_up
from .flow import evaluating
from .settings import Evaluation, History, OnEvaluation, Training
from .steps import Stepper

#: Number of steps between two looks at the device; the host learns of a step's loss as late.
LOOK_EVERY = 50

#: Smallest and largest number of steps between two evaluations on the validation rows; within
#: these bounds it is an epoch.
EVALUATE_EVERY = (100, 1000)

#: Number of steps in which the learning rate rises to the whole one.
WARM_UP = 100

#: Kind and version of a checkpoint's file.
CHECKPOINT = ("checkpoint", 2)

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
    history: History | None = None,
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
    :param offset: added to all log-likelihoods that are reported: log-densities of standardised
        rows differ by a constant from log-densities of the data.
    :param model: numbers and strings that say what the module is, which a checkpoint to resume from
        must agree on.
    :param weight: of the rows, ``(N,)``; 1 by default.
    :param history: is filled in and returned; what is known of a run that Ctrl-C ends stands there.
    :raises RuntimeError: when 50 steps in a row have no finite loss and gradient, or no likelihood
        that was validated was finite.
    :raises ValueError: when the checkpoint to resume from is of another run.
    """
    precision = _matmul_precision(training.precision)
    with torch.enable_grad(), seeded(training.seed + parallel.rank()), precision:
        run = _Run(
            module, rows, validation, training, history or History(),
            offset=offset, model=model or {}, weight=weight,
        )  # fmt: skip
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
        history: History,
        *,
        offset: float,
        model: dict[str, object],
        weight: Tensor | None,
    ) -> None:
        self.module, self.rows, self.validation, self.options = module, rows, validation, training
        self.history, self.model = history, model
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
        max_steps = min((limit for limit in limits if limit is not None), default=None)
        if max_steps is None and training.max_seconds is None:
            max_steps = min(max(100 * self.steps_per_epoch, 2000), 50_000)
        self.limits = Limits(max_steps, training.max_seconds)
        self.stepper = Stepper(module, self.weights, rows, self.batch, training, weight)
        self.average, self.best = Average(self.weights), copies(self.weights)
        self.best_value, self.factor, self.offset = -math.inf, 1.0, offset
        self.gpus = [rows[0].device.index] if rows[0].is_cuda else []
        self.writes = Interval(training.checkpoint_seconds, last=self.limits.start)
        if training.checkpoint is not None:
            found = check_file(training.checkpoint).exists()
            if training.resume and parallel.same(found):
                self.load_state(load(training.checkpoint, *CHECKPOINT)["state"])

    # ------------------------------------------------------------------------------------ the loop

    def run(self, on_evaluation: OnEvaluation | None) -> History:
        self.module.train()
        try:
            self.loop(on_evaluation)
        except KeyboardInterrupt:
            self.history.stopped = "interrupted"
            raise
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
        with Progress(show, options.max_seconds, "fit", self.fraction) as bar:
            while history.stopped == "budget" and self.fraction < 1:
                if history.steps % self.steps_per_epoch == 0 or not self.stepper.has_order:
                    self.stepper.new_order(options.seed, history.steps // self.steps_per_epoch)
                self.stepper.step(history.steps % self.steps_per_epoch, self.learning_rate)
                history.steps += 1
                self.average.add(newest(options.polyak, history.steps))
                if history.steps % LOOK_EVERY == 0:
                    self.look()
                    bar.at("", self.fraction, self.shown())
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
        """How much of the budget is spent, from 0 to 1: all processes must agree on it."""
        seconds = 0.0 if self.limits.seconds is None else parallel.same(self.limits.passed())
        return self.limits.part(self.history.steps, seconds)

    @property
    def learning_rate(self) -> float:
        falls = self.options.schedule == "cosine"
        factor = cosine(self.fraction) if falls else self.factor
        return self.options.lr * warm_up(self.history.steps, WARM_UP) * factor

    def look(self) -> None:
        """Wait for the device; learn of the losses since, and of steps without a finite one."""
        refuse_bad_steps(
            self.stepper.look(),
            f"up to step {self.history.steps}",
            "the likelihood is not finite; try a smaller lr, or look for outliers in the data",
        )
        self.history.skipped = self.stepper.skipped

    # ------------------------------------------------------------------------------ evaluation

    def evaluate(self, on_evaluation: OnEvaluation | None) -> None:
        """Validate the averaged weights, keep the best, write a checkpoint when it is due."""
        self.look()
        history = self.history
        history.seconds = self.limits.passed()
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
            torch._foreach_copy_(self.best, self.average.values)
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
        total = torch.zeros((), dtype=torch.double, device=self.device)
        with self.average.in_place():
            for values in log_probs(self.module, parallel.part(self.validation)):
                total += values.double().sum()
        value = float(parallel.sum_over(total)) / len(self.validation[0]) + self.offset
        return value if math.isfinite(value) else -math.inf

    def shown(self) -> dict[str, str]:
        """Return the step and the last likelihoods, for the progress bar."""
        last = self.history.evaluations[-1] if self.history.evaluations else Evaluation()
        known = {"train": last.get("train"), "validation": last.get("validation")}
        shown = {name: f"{value:.3f}" for name, value in known.items() if value is not None}
        return {"step": str(self.history.steps)} | shown

    # ------------------------------------------------------------------------------ checkpoints

    def write_checkpoint(self) -> None:
        if self.options.checkpoint is None or not parallel.same(self.writes.is_over()):
            return
        with self.writes.writing():
            state = self.state()  # of all processes
            if parallel.rank() == 0:
                kind, version = CHECKPOINT
                content = {"kind": f"pyro_naf {kind}", "version": version, "state": state}
                save(self.options.checkpoint, content)

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
            "average": self.average.values,
            "best": self.best,
            "best_value": self.best_value,
            "factor": self.factor,
            "stepper": self.stepper.state(),
            "generators": dict(
                zip(("cpu", "cuda"), map(parallel.gathered, generators(self.gpus)), strict=False)
            ),
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
        torch._foreach_copy_(self.average.values, state["average"])
        torch._foreach_copy_(self.best, state["best"])
        self.best_value, self.factor = state["best_value"], state["factor"]
        self.stepper.load_state(state["stepper"])
        vars(self.history).update(state["history"])
        self.limits.spend(self.history.seconds)
        self.stepper.new_order(self.options.seed, self.history.steps // self.steps_per_epoch)
        own = [states[parallel.rank()] for states in state["generators"].values()]
        set_generators(own, self.gpus)


def _fingerprint(rows: Rows) -> list[list[int]]:
    # The sum of the bits is exact in whatever order it is taken.
    return [[*t.shape, int(t.double().view(torch.long).sum())] for t in rows]


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
