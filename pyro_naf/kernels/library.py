"""The C++ loops as a shared library: from the wheel, from an earlier process, or compiled now.

A wheel may carry them for several levels of instructions (:mod:`.prebuilt`). Elsewhere torch's
compiler of C++ finds the machine's compiler and its flags, once a machine.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import threading
import time
import warnings
from itertools import product
from pathlib import Path

from ..support import libraries
from . import prebuilt

#: Past what users may set for Inductor's kernels: sums are rounded as they are written.
FLAGS = ("-fno-unsafe-math-optimizations", "-fno-finite-math-only", "-ffp-contract=fast")

#: Seconds after which it is looked again whether another process has compiled the loops.
_LOOK = 5.0


def available() -> bool:
    """Whether the loops are there or can be compiled; says so once where they cannot."""
    return library() is not None


def is_built() -> bool:
    """Whether the loops need no compiling: they came with the wheel, or a process compiled them."""
    return library.cache_info().currsize > 0 or _were_built(int(time.monotonic() / _LOOK))


@functools.lru_cache(maxsize=1)
def _were_built(_: int) -> bool:
    """Whether there is a library; asked anew at another time."""
    return prebuilt.find(prebuilt.FOLDER) is not None or libraries.is_there(place())


@functools.cache
def build_beside() -> None:
    """Begin to compile the loops in a thread, where there is a compiler, for later use."""
    if not is_built() and any(map(shutil.which, (os.environ.get("CXX", ""), "g++", "clang++"))):
        threading.Thread(target=available, daemon=True).start()


@functools.cache
def library() -> ctypes.CDLL | None:
    """Load the library's entry points, or None where there are none."""
    try:
        found = _load(prebuilt.find(prebuilt.FOLDER)) or _load(_built_before()) or _build(place())
        return with_signatures(found)
    except Exception as error:  # of whatever kind: the plain formula needs no compiler
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        warnings.warn(
            f"no C++ could be compiled ({reason}); flows evaluate the plain formula, at half the "
            "speed or less: install a C++ compiler, or choose kernel='plain'",
            stacklevel=2,
        )
        return None


def with_signatures(found: ctypes.CDLL) -> ctypes.CDLL:
    """Declare that the entry points of a library take bytes, and return a boolean."""
    for name, width in product(("forward", "backward", "inverse"), ("float32", "float64")):
        function = getattr(found, f"{name}_{width}")
        function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_bool
    return found


def place() -> Path:
    """Where a library that this machine has compiled is kept."""
    return libraries.folder(prebuilt.SOURCE.read_text(), FLAGS) / "kernels.so"


def _built_before() -> Path | None:
    return place() if libraries.is_there(place()) else None


def _load(path: Path | None) -> ctypes.CDLL | None:
    """Load a library that exists, in milliseconds and without torch's compiler."""
    try:
        return None if path is None else ctypes.CDLL(str(path))
    except OSError:  # of another system
        return None


def _build(path: Path) -> ctypes.CDLL:
    from torch._inductor.codecache import CppCodeCache

    # CppCodeCache.load() takes no flags before torch 2.7.
    built: ctypes.CDLL = CppCodeCache.load_async(prebuilt.SOURCE.read_text(), extra_flags=FLAGS)()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        shutil.copyfile(built._name, new)
        new.replace(path)
    return built
