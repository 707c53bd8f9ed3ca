"""Files of models, results and training runs: written whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from . import archive
from .atomic import replace_file


class ModelFileError(ValueError):
    """A file that is not a whole model or checkpoint of this package."""


def save(path: Path, content: dict[str, object]) -> None:
    """Write numbers, strings, lists, dicts and tensors; an older file stands until all is there.

    :raises TypeError: for anything else among the content, by its name.
    :raises OSError: when the file cannot be written, a full disk among other reasons.
    """
    written = {name: archive.plain(name, value, tensors=True) for name, value in content.items()}
    # torch.save to a path reports a full disk as a RuntimeError that names no cause.
    buffer = io.BytesIO()
    torch.save(written, buffer)
    replace_file(path, buffer.getbuffer())


def load(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Load what :func:`save` wrote, if it says that it is of this kind and version, on the CPU.

    :raises ModelFileError: when it is truncated, foreign, or of another version.
    :raises OSError: when it cannot be read.
    """
    try:
        content = archive.read(path)
    except archive.NotTensorsError as error:
        raise ModelFileError(f"{path} is not a {kind} of pyro_naf: {error}") from None
    if not isinstance(content, dict) or content.get("kind") != f"pyro_naf {kind}":
        raise ModelFileError(f"{path} is not a {kind} of pyro_naf")
    if content.get("version") != version:
        raise ModelFileError(
            f"{path} is a {kind} of version {content.get('version')!r:.20}, this pyro_naf reads "
            f"version {version}"
        )
    return content
