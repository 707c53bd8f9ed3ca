"""Graphs of operators compiled ahead of time, by another process, into a library on disk.

The library is found by the next process that has the same graph on the same kind of processor: it
is loaded in milliseconds and needs no compiler. A compilation that fails leaves no library.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..support import libraries

_GRAPH, _LIBRARY, _CALLS = "graph.pt", "graph.so", "graph.json"

#: Seconds after which the folder of a worker is taken to be abandoned.
_ABANDONED = 3600.0

#: Settings of the compiler that save half of its time: the instructions that the processor lists
#: are taken to work without a trial, and headers, 11 s once, are not prepared for later graphs.
_QUICK = {"cpp.vec_isa_ok": True, "aot_inductor.precompile_headers": False}

#: Shape, strides, dtype and device of a tensor.
Kind = tuple[tuple[int, ...], tuple[int, ...], torch.dtype, str]

Compiled = Callable[[Sequence[Tensor]], list[Tensor]]


def is_enabled() -> bool:
    """Whether graphs are captured and compiled; PYRO_NAF_COMPILE=0 turns that off."""
    return os.environ.get("PYRO_NAF_COMPILE", "1") != "0"


class Compilation:
    """A graph that is being compiled, or was by an earlier process.

    :param code: the graph as Python code of a method ``forward``, as torch.fx writes it. All its
        inputs and outputs are tensors.
    :param inputs: an example of each of its inputs.
    :raises OSError: when no process can be started, or there is no room on disk.
    """

    def __init__(self, code: str, inputs: Sequence[Tensor]) -> None:
        self.device = inputs[0].device.type if inputs else "cpu"
        what = (code, _kinds(inputs), torch.get_num_threads())
        self.library = libraries.folder(*what) / _LIBRARY
        self.worker: _Worker | None = None
        if libraries.is_there(self.library):
            return
        _end_idle(but=self.library)
        if self.library not in _running:
            content = {"code": code, "kinds": _kinds(inputs), "threads": torch.get_num_threads()}
            _running[self.library] = _Worker(content, self.library.parent)
        self.worker = _running[self.library]
        self.worker.users.add(self)

    def has_ended(self) -> bool:
        """Whether :meth:`load` may be called; never where a fork has left the worker behind."""
        return self.worker is None or self.worker.has_ended()

    def load(self) -> Compiled:
        """Compile the graph: a function of a list of inputs with the strides of the examples.

        :raises RuntimeError: when the graph could not be compiled.
        """
        if self.worker is not None:
            self.worker.end()
        if not libraries.is_there(self.library):
            raise RuntimeError("the graph could not be compiled")
        runner = getattr(torch._C._aoti, f"AOTIModelContainerRunner{self.device.title()}")
        return runner(str(self.library), 1).run


class _Worker:
    """A process that compiles, in a group with its own children, and the folder it works in."""

    def __init__(self, content: dict[str, object], target: Path) -> None:
        self.users = weakref.WeakSet[Compilation]()
        self.pid = os.getpid()
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        # Beside the target, which the folder is renamed to.
        work = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
        try:
            torch.save(content, work / _GRAPH)
            command = [sys.executable, "-W", "ignore", "-m", __name__, str(work), str(target)]
            null = subprocess.DEVNULL
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=null, stderr=null, start_new_session=True
            )
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        # At the latest when this process exits.
        self.end = weakref.finalize(self, _end, self.process, work, self.pid)

    def has_ended(self) -> bool:
        return self.pid == os.getpid() and self.process.poll() is not None


#: Workers by the libraries they make. A short fit ends before its compilation, which goes on: the
#: next fit of the same graph takes it over, and the next compilation of another graph ends it.
_running: dict[Path, _Worker] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_running.clear)


def _end_idle(but: Path) -> None:
    """End the workers that have ended themselves, and those that nobody waits for."""
    for library, worker in list(_running.items()):
        if worker.has_ended() or (library != but and not worker.users):
            worker.end()
            del _running[library]


def _end(process: subprocess.Popen[bytes], work: Path, pid: int) -> None:
    if os.getpid() != pid:  # a fork has no part in it
        return
    with contextlib.suppress(OSError):
        if process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
    shutil.rmtree(work, ignore_errors=True)


def _sweep(cache: Path) -> None:
    """Remove folders of workers that were killed more than an hour ago."""
    for folder in cache.glob(".*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED:
                shutil.rmtree(folder)


def _kinds(inputs: Sequence[Tensor]) -> list[Kind]:
    """Shape, strides, dtype and device of each tensor: all that a compiler has to know of it."""
    return [(tuple(t.shape), t.stride(), t.dtype, str(t.device)) for t in inputs]


@torch.no_grad()
def _compile(code: str, kinds: list[Kind], library: Path) -> None:
    from torch._inductor import aot_compile, cpu_vec_isa

    names: dict[str, object] = {"torch": torch, "device": torch.device, "inf": math.inf}
    names["nan"] = math.nan
    exec(code, names)  # noqa: S102 - written by torch.fx in the parent process
    module = type("Captured", (torch.nn.Module,), {"forward": names["forward"]})()
    graph = torch.fx.symbolic_trace(module)
    inputs = tuple(
        torch.empty_strided(shape, strides, dtype=dtype, device=device)
        for shape, strides, dtype, device in kinds
    )
    options = {"aot_inductor.output_path": str(library)}
    try:
        aot_compile(graph, inputs, options=options | _QUICK)
    except Exception:  # noqa: BLE001 - an old compiler may not know all instructions
        cpu_vec_isa.valid_vec_isa_list.cache_clear()
        aot_compile(graph, inputs, options=options)


def main(folder: str, target: str) -> None:
    """Compile the graph that a folder holds; :class:`Compilation` starts this in a new process.

    The folder becomes the target, with nothing in it but the library.
    """
    work = Path(folder)
    threading.Thread(target=_end_with_parent, args=(work,), daemon=True).start()
    try:
        content = torch.load(work / _GRAPH, weights_only=True)
        torch.set_num_threads(content["threads"])
        _compile(content["code"], content["kinds"], work / _LIBRARY)
        for calls in work.glob("*.wrapper.json"):  # of operators that have no function in C
            calls.rename(work / _CALLS)
        for other in work.iterdir():
            if other.name not in (_LIBRARY, _CALLS):
                shutil.rmtree(other) if other.is_dir() else other.unlink()
        work.chmod(0o755)  # others may share the cache
        # Another process may have been faster: its folder is as good.
        if not (Path(target) / _LIBRARY).exists():
            shutil.rmtree(target, ignore_errors=True)
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _end_with_parent(work: Path) -> None:
    """Wait until the parent has gone, however it ended, and go as well."""
    sys.stdin.buffer.read()
    shutil.rmtree(work, ignore_errors=True)
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
