"""Training on rows that keeps the weights that are best on other rows."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .averages import Average, newest
from .steps import guarded_step

#: Decay of the averaged weights at each step; they are what is validated and kept.
_DECAY = 0.99

#: Largest norm of a gradient.
_CLIP = 5.0

#: Rows that are validated at once.
_AT_ONCE = 2000


class EarlyStopping:
    """Training that keeps the weights that are best on rows that were held out.

    :param module: what is trained.
    :param loss: of the rows with these indices, a mean.
    :param parts: indices of the rows that are held out, and of those to train on.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[Tensor], Tensor],
        parts: tuple[Tensor, Tensor],
        max_epochs: int,
        batch_size: int,
    ) -> None:
        self.module, self.loss, self.max_epochs = module, loss, max_epochs
        self.batch_size = batch_size
        self.validation, self.training = parts
        self.train: list[float] = []
        self.values: list[float] = []
        self.best, self.best_epoch, self.state = math.inf, -1, copy.deepcopy(module.state_dict())

    def phase(
        self,
        names: Iterable[str],
        lr: float,
        weight_decay: float,
        patience: int,
        wait: int,
        enough: float = 0.0,
    ) -> None:
        """Train the weights of these names from the best so far.

        :param patience: epochs in a row that gain too little, after which the phase ends.
        :param wait: the number of them after which it goes on from the best at half the rate.
        :param enough: what an epoch must gain more than.
        """
        chosen, since = set(names), 0
        weights = [w for n, w in self.module.named_parameters() if n in chosen and w.requires_grad]
        groups = [
            {"params": [w for w in weights if w.dim() > 1], "weight_decay": weight_decay},
            {"params": [w for w in weights if w.dim() <= 1], "weight_decay": 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=lr, fused=True)
        self.average, self.steps = Average(weights), 0
        try:
            while since < patience and len(self.values) < self.max_epochs:
                before = self.best
                self.epoch()
                since = 0 if before - self.best > enough else since + 1
                if since and since % wait == 0:
                    self.module.load_state_dict(self.state)
                    for group in self.adam.param_groups:
                        group["lr"] /= 2
                    self.average, self.steps = Average(weights), 0
        finally:  # an interrupted phase leaves the best weights too
            self.module.load_state_dict(self.state)

    def epoch(self) -> None:
        """One pass through the training rows, and the validation of the averaged weights."""
        order = self.training[torch.randperm(len(self.training))]
        total = sum(self.step(part) * len(part) for part in order.split(self.batch_size))
        self.train.append(total / len(self.training))
        with self.average.in_place(), torch.no_grad():
            parts = self.validation.split(_AT_ONCE)
            value = sum(float(self.loss(p)) * len(p) for p in parts) / len(self.validation)
            if value < self.best:
                self.best, self.best_epoch = value, len(self.values)
                self.state = copy.deepcopy(self.module.state_dict())
        self.values.append(value)

    def step(self, rows: Tensor) -> float:
        """Make a step down the loss, unless its gradient is not finite; return the loss."""
        self.adam.zero_grad()
        loss = self.loss(rows)
        loss.backward()
        guarded_step(self.adam, self.average.weights, loss.detach(), _CLIP)
        self.adam.zero_grad()
        self.steps += 1
        self.average.add(newest(_DECAY, self.steps))
        return float(loss.detach())
