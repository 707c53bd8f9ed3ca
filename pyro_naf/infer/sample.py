"""Draws with importance weights, and whether the weights can be relied on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..support.seeding import seeded
from .psis import khat_threshold, pareto_khat, smooth


@dataclass(frozen=True)
class Sample:
    """Draws of a posterior, in chains, and how they are weighted.

    :ivar values: site to ``(num_chains, num_samples, ...)``; ``pyro.deterministic`` sites too.
    :ivar log_weights: log p - log q ``(num_chains * num_samples,)``; None for draws of the
        posterior itself.
    """

    values: dict[str, Tensor]
    log_weights: Tensor | None = None

    @property
    def flat(self) -> dict[str, Tensor]:
        """Draws of all chains, ``(num_chains * num_samples, ...)``."""
        return {name: value.flatten(0, 1) for name, value in self.values.items()}

    @property
    def khat(self) -> float:
        """k-hat of the weights; 0 without."""
        return 0.0 if self.log_weights is None else pareto_khat(self.log_weights)

    @property
    def is_weightable(self) -> bool:
        """Whether k-hat allows to use the weights."""
        if self.log_weights is None:
            return False
        return self.khat < khat_threshold(len(self.log_weights))

    @property
    def trust(self) -> str:
        """k-hat and its threshold, in words."""
        threshold = khat_threshold(len(next(iter(self.flat.values()))))
        side = "below" if self.khat < threshold else "above"
        return f"k-hat {self.khat:.2f}, {side} {threshold:.2f}"


def resampled(sample: Sample, seed: int | None) -> Sample:
    """Draws chosen by their weights, where k-hat allows that, with their weights for the record."""
    if sample.log_weights is None or not sample.is_weightable:
        return sample
    with seeded(seed):
        weights = smooth(sample.log_weights).exp()
        chosen = torch.multinomial(weights, len(weights), replacement=True)
    values = {name: value[:, chosen] for name, value in sample.values.items()}
    return Sample(values, sample.log_weights[chosen])
