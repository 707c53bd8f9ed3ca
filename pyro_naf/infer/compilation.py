"""Graphs of operators compiled ahead of time, by another process, into a library on disk.

The library is found by the next process that has the same graph on the same kind of processor: it
is loaded in milliseconds and needs no compiler. A compilation that fails leaves no library.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..support import libraries

_GRAPH, _LIBRARY, _CALLS = "graph.pt", "graph.so", "graph.json"

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
        if libraries.is_there(self.library):
            _running.pop(self.library, None)
        elif self.library not in _running:
            content = {"code": code, "kinds": _kinds(inputs), "threads": torch.get_num_threads()}
            _running[self.library] = _Worker(content, self.library)
        self.worker = _running.get(self.library)

    def has_ended(self) -> bool:
        """Whether :meth:`load` may be called."""
        return self.worker is None or self.worker.process.poll() is not None

    def load(self) -> Compiled:
        """Compile the graph: a function of a list of inputs with the strides of the examples.

        :raises RuntimeError: when the graph could not be compiled.
        """
        if self.worker is not None:
            self.worker.end()
            _running.pop(self.library, None)
        if not libraries.is_there(self.library):
            raise RuntimeError("the graph could not be compiled")
        runner = getattr(torch._C._aoti, f"AOTIModelContainerRunner{self.device.title()}")
        return runner(str(self.library), 1).run


class _Worker:
    """A process that compiles, in a group with its own children, and the folder it works in."""

    def __init__(self, content: dict[str, object], library: Path) -> None:
        target = library.parent
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, which the folder is renamed to.
        work = tempfile.TemporaryDirectory(
            prefix=".", dir=target.parent, ignore_cleanup_errors=True
        )
        torch.save(content, Path(work.name) / _GRAPH)
        command = [sys.executable, "-W", "ignore", "-m", __name__, work.name, str(target)]
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(
            command, stdin=null, stdout=null, stderr=null, start_new_session=True
        )
        # At the latest when this process exits.
        self.end = weakref.finalize(self, _end, self.process, work)


#: Compilations by their libraries. They outlive the fit that began them, as a short one ends
#: before: the next fit of the same graph takes them over.
_running: dict[Path, _Worker] = {}


def _end(process: subprocess.Popen[bytes], work: tempfile.TemporaryDirectory[str]) -> None:
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()
    work.cleanup()


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
    content = torch.load(work / _GRAPH, weights_only=True)
    torch.set_num_threads(content["threads"])
    _compile(content["code"], content["kinds"], work / _LIBRARY)
    for calls in work.glob("*.wrapper.json"):  # of operators that have no function in C
        calls.rename(work / _CALLS)
    for other in work.iterdir():
        if other.name not in (_LIBRARY, _CALLS):
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    # Another process may have been faster: its folder is as good.
    if not Path(target).exists():
        work.rename(target)


if __name__ == "__main__":
    main(*sys.argv[1:])
