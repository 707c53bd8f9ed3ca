"""The C++ loops in a wheel, compiled for several levels of a processor's instructions.

``pip wheel .`` on Linux with a compiler of C++ makes them, by the setuptools commands in
``building.py``; which level this machine has is asked when they are loaded. Nothing here imports
torch, or the rest of the package: building a wheel needs neither.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "compiled.cpp"

#: Level of instructions to the flags of /proc/cpuinfo that it needs, the best first, as in the
#: x86-64 psABI, https://gitlab.com/x86-psABIs/x86-64-ABI.
LEVELS = {
    "x86-64-v4": "avx512f avx512bw avx512cd avx512dq avx512vl avx2 fma bmi1 bmi2 f16c movbe",
    "x86-64-v3": "avx avx2 fma bmi1 bmi2 f16c movbe",
    "x86-64-v2": "cx16 popcnt sse4_1 sse4_2 ssse3",
}


def levels(machine: str | None = None) -> tuple[str, ...]:
    """List the levels that are compiled for a machine like this one; none if it is no x86-64.

    >>> levels("x86_64")[0], levels("riscv64")
    ('x86-64-v4', ())
    """
    machine = platform.machine() if machine is None else machine
    return tuple(LEVELS) if platform.system() == "Linux" and machine == "x86_64" else ()


def name(level: str, source: bytes) -> str:
    """File name of a library: another source, or another build of it, has another name."""
    return f"compiled-{level}-{hashlib.sha256(source).hexdigest()[:16]}.so"


def find(folder: Path) -> Path | None:
    """Find the library in a folder for the best level that this processor has, or None."""
    flags = processor_flags() if levels() else frozenset()
    source = SOURCE.read_bytes()
    for level in levels():
        path = folder / name(level, source)
        if path.exists() and flags.issuperset(LEVELS[level].split()):
            return path
    return None


def processor_flags() -> frozenset[str]:
    """Read the names of the processor's instructions in /proc/cpuinfo; empty where it has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = (line for line in lines if line.startswith("flags"))
    return frozenset(next(flags, "").split())
