"""Checkpoints of training runs."""

from __future__ import annotations

from pathlib import Path

from ..files.stored import ModelFileError, load, save

__all__ = ["ModelFileError", "load", "load_checkpoint", "save", "save_checkpoint"]


def save_checkpoint(path: Path, state: dict[str, object]) -> None:
    """Write the state of a training run to a file."""
    save(path, {"kind": "pyro_naf checkpoint", "version": 2, "state": state})


def load_checkpoint(path: Path) -> dict[str, object]:
    """Load what :func:`save_checkpoint` wrote."""
    state: dict[str, object] = load(path, "checkpoint", 2)["state"]
    return state
