"""How a density is trained, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeAlias, TypedDict

from ..files.archive import plain
from ..support.checks import check_integers

PRECISIONS = ("float32", "tf32", "bfloat16")
SCHEDULES = ("cosine", "plateau", "constant")


@dataclass(frozen=True)
class Training:
    """How to train: budget, optimiser, and what is kept on the way.

    :param max_epochs: largest number of passes through the data; None for no limit.
    :param max_steps: largest number of steps.
    :param max_seconds: time limit; time before an interruption counts. The schedule
        follows whichever of the three comes first; with none of them, 100 epochs are made, but
        from 2000 to 50,000 steps.
    :param batch_size: rows of a step, over all processes; the data's number of rows if that is
        less.
    :param lr: Adam's learning rate at the start.
    :param weight_decay: part of a weight that a step takes away, per unit of the learning rate
        (AdamW).
    :param schedule: "cosine" (falls to zero at the end of the budget), "plateau" (halved when the
        validation likelihood has not risen for a third of ``patience``) or "constant".
    :param clip: gradients are scaled down to this norm.
    :param polyak: decay of the exponential average of the weights that is validated and returned;
        0 for none.
    :param patience: evaluations without a better validation likelihood after which training stops.
    :param evaluate_every: steps between two evaluations; by default an epoch, but from 100 to 1000.
    :param precision: "float32"; "tf32", whose matrix products keep ten bits on a GPU; "bfloat16",
        which computes the conditioners so.
    :param graph: record a step as a CUDA graph and replay it; by default where the module is on a
        CUDA device and alone. A step that cannot be recorded is run as usual, with a warning.
    :param seed: of the batches and of dropout.
    :param checkpoint: file that the state is written to, so that a killed run can go on.
    :param checkpoint_seconds: time between two checkpoints, at least, and 20 times what writing
        one takes; they are written after evaluations.
    :param resume: go on from ``checkpoint``, with the same options but for the budget; from the
        start where there is none.
    :param progress: show a progress bar.
    :raises ValueError: for an argument out of its range.
    """

    max_epochs: int | None = None
    max_steps: int | None = None
    max_seconds: float | None = None
    batch_size: int = 256
    lr: float = 3e-3
    weight_decay: float = 0.0
    schedule: str = "cosine"
    clip: float = 5.0
    polyak: float = 0.998
    patience: int = 30
    evaluate_every: int | None = None
    precision: str = "float32"
    graph: bool | None = None
    seed: int = 0
    checkpoint: Path | None = None
    checkpoint_seconds: float = 30.0
    resume: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        for option in fields(self):  # a checkpoint holds numbers of Python's own types
            value = plain(option.name, getattr(self, option.name))
            object.__setattr__(self, option.name, value)
        self._check_numbers()
        for name, choice, choices in (
            ("schedule", self.schedule, SCHEDULES),
            ("precision", self.precision, PRECISIONS),
        ):
            if choice not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {choice!r}")
        if self.checkpoint is not None:
            object.__setattr__(self, "checkpoint", Path(self.checkpoint))
        if self.resume and self.checkpoint is None:
            raise ValueError("resume needs checkpoint, the file to go on from")

    def _check_numbers(self) -> None:
        limits = {"max_epochs": self.max_epochs, "max_steps": self.max_steps}
        check_integers(
            batch_size=(self.batch_size, 1),
            patience=(self.patience, 1),
            seed=(self.seed, 0),
            evaluate_every=(1 if self.evaluate_every is None else self.evaluate_every, 1),
            **{name: (1 if value is None else value, 1) for name, value in limits.items()},
        )
        positive = {"max_seconds": self.max_seconds, "lr": self.lr, "clip": self.clip}
        for name, number in positive.items():
            if number is not None and not 0 < number < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {number}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0 and finite, got {self.weight_decay}")
        if not 0 <= self.polyak < 1:
            raise ValueError(f"polyak must lie in [0, 1), got {self.polyak}")
        if not 0 <= self.checkpoint_seconds < math.inf:
            raise ValueError(
                f"checkpoint_seconds must be at least 0 and finite, got {self.checkpoint_seconds}"
            )


class Evaluation(TypedDict, total=False):
    """One entry of :attr:`History.evaluations`; of "auto" with the density and the fold."""

    step: int
    epoch: float
    seconds: float
    lr: float
    train: float | None
    validation: float | None
    density: str
    fold: int | None


#: How a density did on rows that it was not fitted to, and twice the standard error.
Compared = TypedDict("Compared", {"name": str, "mean": float, "2se": float | None})

#: What is called with each evaluation as it is made.
OnEvaluation: TypeAlias = Callable[[Evaluation], None]

#: Asked between the steps of a fit whether its time is over.
Stop: TypeAlias = Callable[[], bool]


@dataclass
class History:
    """What became of a training run.

    :ivar evaluations: one dict each, of step, epoch, seconds, lr and the mean log-likelihoods
        train (of the steps since the last one) and validation (None without validation rows).
    :ivar steps: number of steps.
    :ivar seconds: time spent, those before an interruption included.
    :ivar skipped: steps skipped because loss or gradient was not finite.
    :ivar best_step: the step whose (averaged) weights were kept.
    :ivar stopped: why training ended: "budget", "patience" or "interrupted".
    :ivar comparison: one dict for each density that was tried, of name, the mean log-likelihood of
        rows that it was not fitted to, and twice its standard error.
    :ivar overfit: a sentence on overfitting, where there was any.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    skipped: int = 0
    best_step: int = 0
    stopped: str = "budget"
    comparison: list[Compared] = field(default_factory=list)
    overfit: str | None = None

    @property
    def best(self) -> Evaluation:
        """The evaluation of the weights that were kept."""
        return next(e for e in reversed(self.evaluations) if e["step"] == self.best_step)
