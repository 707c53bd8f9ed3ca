"""Random generators: seeded for a while, and their states."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Torch's generators are seeded inside, and put back after; without a seed they go on."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def generators() -> list[Tensor]:
    """Return the states of torch's generators of random numbers, on the CPU first."""
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.get_rng_state(), *on_gpus]


def set_generators(states: Sequence[Tensor]) -> None:
    """Put back what :func:`generators` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(list(states[1:]))


def foreign_generators() -> tuple[object, ...]:
    """Return the states of the global generators of Python and of NumPy, to be compared."""
    _, keys, position, *gauss = np.random.get_state(legacy=True)
    return random.getstate(), np.asarray(keys).tobytes(), position, gauss
