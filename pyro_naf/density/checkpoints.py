"""Files of tensors: written whole or not at all, read without running any code."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from ..atomic import replace_file


class ModelFileError(ValueError):
    """A file that is not a whole model or checkpoint of this package."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes numbers, strings, lists, dicts and tensors; an older file stands until all is there.

    :raises OSError: when the file cannot be written, a full disk among other reasons.
    """
    # torch.save to a path reports a full disk as a RuntimeError that names no cause.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    replace_file(path, buffer.getbuffer())


def load(path: Path, kind: str, version: int, device: torch.device | None = None) -> dict[str, Any]:
    """What :func:`save` wrote, if it says that it is of this kind and version.

    :raises ModelFileError: when it is truncated, foreign, or of another version.
    :raises OSError: when it cannot be read.
    """
    data = io.BytesIO(path.read_bytes())
    if not _is_whole(data):
        raise ModelFileError(
            f"{path} is not a {kind} of pyro_naf: it is truncated, or not such a file"
        )
    try:
        content = torch.load(data, map_location=device or "cpu", weights_only=True)
    except Exception:  # what a reader of foreign bytes may raise is written nowhere
        raise ModelFileError(
            f"{path} is not a {kind} of pyro_naf: it holds more than tensors and numbers"
        ) from None
    if not isinstance(content, dict) or content.get("kind") != f"pyro_naf {kind}":
        raise ModelFileError(f"{path} is not a {kind} of pyro_naf")
    if content.get("version") != version:
        raise ModelFileError(
            f"{path} is a {kind} of version {content.get('version')}, this pyro_naf reads version "
            f"{version}"
        )
    return content


def _is_whole(data: io.BytesIO) -> bool:
    """Whether it is a zip archive, as torch's files are, with the checksums that it says."""
    try:
        with zipfile.ZipFile(data) as archive:
            whole = archive.testzip() is None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError):
        return False
    data.seek(0)
    return whole


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """The state of a training run."""
    save(path, {"kind": "pyro_naf checkpoint", "version": 1, "state": state})


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """What :func:`save_checkpoint` wrote."""
    return load(path, "checkpoint", 1, device)["state"]
