"""Shared libraries compiled for this processor, and where they are kept for later processes."""

from __future__ import annotations

import functools
import getpass
import hashlib
import os
import platform
import tempfile
from pathlib import Path

import torch


def folder(*what: object) -> Path:
    """Folder of the library that these values describe: beside the libraries of torch's compiler.

    The processor and the version of torch are part of the description.
    """
    described = repr((what, _processor(), torch.__version__))
    key = hashlib.sha256(described.encode()).hexdigest()[:32]
    default = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default) / "pyro_naf" / key


def is_there(library: Path) -> bool:
    """Whether there is a library, which no other user has put there."""
    try:
        owner = library.stat().st_uid
    except OSError:  # not there, or in a folder that another user has closed
        return False
    return not hasattr(os, "getuid") or owner == os.getuid()


@functools.cache
def _processor() -> str:
    """Return the instructions that the processor has, or else its name and the machine's."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith(("flags", "Features")):
            return line
    return f"{platform.processor()} {platform.node()}"
