"""Training on several processes: each takes its part of every batch (torch.distributed)."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Sequence

import torch
import torch.distributed as distributed
from torch import Tensor, nn


def start() -> None:
    """Join the processes that ``torchrun`` has started; do nothing outside of it."""
    if "TORCHELASTIC_RUN_ID" in os.environ and not _running():
        # Its functions have the group of the moment of its import as a default argument. Imported
        # later, as DistributedDataParallel does, it would make the group outlive stop(), and its
        # threads the interpreter: one that lets go of a tensor then aborts the process.
        importlib.import_module("torch.distributed.nn.functional")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def stop() -> None:
    """Leave them; the threads that talk to them end."""
    if _running():
        gc.collect()  # of wrapped modules, which hold on to them
        distributed.destroy_process_group()


def size() -> int:
    """Return the number of processes."""
    return distributed.get_world_size() if _running() else 1


def rank() -> int:
    """Return the number of this process, from 0."""
    return distributed.get_rank() if _running() else 0


def divisible(batch: int) -> int:
    """Return the batch, made divisible among the processes."""
    return max(batch // size(), 1) * size()


def part(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return this process's rows of each tensor."""
    return [t[rank() :: size()] for t in tensors] if size() > 1 else list(tensors)


def wrapped(module: nn.Module) -> nn.Module:
    """Return the module whose gradients are averaged over the processes."""
    if size() == 1:
        return module
    return nn.parallel.DistributedDataParallel(module)


def sum_over(t: Tensor) -> Tensor:
    """Return the sum over the processes, in place."""
    if size() > 1:
        distributed.all_reduce(t)
    return t


def any_of(flag: Tensor) -> Tensor:
    """Whether it is true in any process."""
    return sum_over(flag.float()) > 0 if size() > 1 else flag


def same(value: float) -> float:
    """Return the first process's value, for all."""
    if size() == 1:
        return value
    t = torch.tensor(value, dtype=torch.double)
    if distributed.get_backend() == "nccl":
        t = t.cuda()
    distributed.broadcast(t, 0)
    return float(t)


def gathered(t: Tensor) -> list[Tensor]:
    """Return the tensors of all processes, in their order, on the CPU."""
    if size() == 1:
        return [t]
    t = t.cuda() if distributed.get_backend() == "nccl" else t
    parts = [torch.empty_like(t) for _ in range(size())]
    distributed.all_gather(parts, t)
    return [part.cpu() for part in parts]


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()
