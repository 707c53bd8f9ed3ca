"""Files of tensors: written whole or not at all, read without running any code."""

from __future__ import annotations

import io
import pickle
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
    data = path.read_bytes()
    try:
        content = torch.load(io.BytesIO(data), map_location=device or "cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        whole = data[:2] == b"PK" and not isinstance(error, RuntimeError)
        what = "holds more than tensors and numbers" if whole else "is truncated, or no such file"
        raise ModelFileError(f"{path} is not a {kind} of pyro_naf: it {what}") from None
    if not isinstance(content, dict) or content.get("kind") != f"pyro_naf {kind}":
        raise ModelFileError(f"{path} is not a {kind} of pyro_naf")
    if content.get("version") != version:
        raise ModelFileError(
            f"{path} is a {kind} of version {content.get('version')}, this pyro_naf reads version "
            f"{version}"
        )
    return content


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """The state of a training run."""
    save(path, {"kind": "pyro_naf checkpoint", "version": 1, "state": state})


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """What :func:`save_checkpoint` wrote."""
    return load(path, "checkpoint", 1, device)["state"]
