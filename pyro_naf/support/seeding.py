"""Random generators: seeded or kept for a while, and their states."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Put torch's generators back afterwards: what is drawn inside changes nothing outside."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        yield


@contextlib.contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Torch's generators are seeded inside, and put back after; without a seed they go on."""
    if seed is None:
        yield
        return
    with kept():
        torch.manual_seed(seed)
        yield


def generators(gpus: Sequence[int] | None = None) -> list[Tensor]:
    """Return the states of torch's generators of random numbers: the CPU's, and those of GPUs.

    :param gpus: numbers of the GPUs; by default of all that are in use.
    """
    if gpus is None:
        gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, gpus)]


def set_generators(states: Sequence[Tensor], gpus: Sequence[int] | None = None) -> None:
    """Put back what :func:`generators` returned for these GPUs."""
    torch.set_rng_state(states[0])
    for gpu, state in zip(
        range(len(states) - 1) if gpus is None else gpus, states[1:], strict=False
    ):
        torch.cuda.set_rng_state(state, gpu)


def foreign_generators() -> tuple[object, ...]:
    """Return the states of the global generators of Python and of NumPy, to be compared."""
    _, keys, position, *gauss = np.random.get_state(legacy=True)
    return random.getstate(), np.asarray(keys).tobytes(), position, gauss
