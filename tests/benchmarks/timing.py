"""How the benchmarks measure: tasks by turns, bytes saved for backward, peak memory."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor

# The profiler announces every start and stop otherwise.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

Task = Callable[[], Any]


class Measured(NamedTuple):
    """A median with its range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Collection[float]) -> Measured:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g}-{self.high:.3g})"


def clock(task: Task, device: str) -> float:
    """Milliseconds of one run, on a GPU to the end of its last kernel."""
    synchronise(device)
    start = time.perf_counter()
    task()
    synchronise(device)
    return 1e3 * (time.perf_counter() - start)


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(
    tasks: Mapping[str, Task],
    device: str = "cpu",
    *,
    seconds: float = 1.0,
    turns: tuple[int, int] = (3, 21),
    cold: Collection[str] = (),
) -> dict[str, list[float]]:
    """Milliseconds of each task, the tasks taking turns, so that all meet the same disturbances.

    The first turn warms up (and compiles) and does not count. A turn is two runs, of which the
    second is timed: as in training, a layer finds its own memory in the caches and not the others'.
    A task leaves when it has had its
    ``seconds``, though not before the smallest number of turns, or after the largest.

    :param cold: tasks too slow to repeat: they run once, without a warm-up.
    """
    fewest, most = turns
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(most + 1):
        for name, task in tasks.items():
            spent = times[name]
            slow = len(spent) >= fewest and sum(spent) >= 1e3 * seconds
            if slow or (name in cold and turn > 0):
                continue
            if name not in cold:
                task()
            elapsed = clock(task, device)
            if turn > 0 or name in cold:
                spent.append(elapsed)
    return times


def bytes_saved(layer: Any, x: Tensor) -> int:
    """Bytes that a forward pass keeps for its backward pass.

    Whole storages, each once, of all tensors saved in the autograd graph; not those of x, of
    parameters or of buffers, which exist anyway. What a module keeps beside the graph (caches) is
    not counted; :func:`peak_bytes` counts that too.
    """
    resident = [x, *layer.parameters(), *layer.buffers()]
    # Held, not only counted: a storage that is freed leaves its address to another one.
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(t: Tensor) -> Tensor:
        saved[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        outputs = layer.evaluate(x)
    for t in resident:
        saved.pop(t.untyped_storage().data_ptr(), None)
    del outputs
    return sum(storage.nbytes() for storage in saved.values())


def peak_bytes(task: Task, device: str) -> int:
    """The most memory that torch holds during one run, above what it held before.

    Scratch memory that libraries and compiled code take past torch's allocator is not seen. The
    task's layer must be new: what an earlier pass left behind would be freed during this one.
    """
    return _peak_on_gpu(task) if device == "cuda" else _peak_on_cpu(task)


def _peak_on_gpu(task: Task) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    task()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(task: Task) -> int:
    """From the profiler's record of every allocation: torch keeps no such statistics on the CPU."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        task()
    assert profile.profiler is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def environment(device: str) -> str:
    """One line: when, with what and on what it was measured."""
    versions = f"torch {torch.__version__}, pyro-ppl {pyro.__version__}"
    where = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    # It overrules what the contenders' names say.
    forced = os.environ.get("PYRO_NAF_KERNEL")
    return (
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {versions}, "
        f"{torch.get_num_threads()} threads, {where}"
        + (f", PYRO_NAF_KERNEL={forced}" if forced else "")
    )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
