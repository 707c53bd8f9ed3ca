"""The data that a command line names: arrays, or the columns of a table."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable

import numpy as np
import torch

from pyro_naf.density.commands.files import READ, SUFFIXES, Reading, Table, read_table
from pyro_naf.support.command_line import CommandError, first_line, member, numpy_file

#: A number that has a unit, or a mark whose meaning is not clear.
_NUMBER = re.compile(r"[^\w]*\d[\d.,:/' ]*[^\w]*")

#: Endings of files whose columns are a model's arguments.
_TABLES = tuple({*SUFFIXES, *READ} - {".npy", ".npz", ".pt"})


def load_data(
    path: str, model: Callable[..., object], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Load a model's arguments by name, floating-point ones in ``dtype``.

    :param path: an .npz file of arrays, or a table, of which the columns are taken that the model
        has arguments for.
    :raises CommandError: when the file holds something else, or missing values.
    :raises OSError: when it cannot be read.
    """
    if path.lower().endswith(_TABLES):
        return _columns(read_table(path), _arguments(model), dtype)
    return _arrays(path, dtype)


def _arguments(model: Callable[..., object]) -> list[str] | None:
    """Names of a model's arguments; None where it takes any."""
    if isinstance(model, torch.nn.Module):
        model = model.forward
    try:
        parameters = inspect.signature(model).parameters.values()
    except ValueError:  # a callable that has no signature to be found
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters]


def _columns(table: Table, wanted: list[str] | None, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    if table.columns is None:
        raise CommandError(f"{table.path} has no line with the names of its columns")
    wanted = table.columns if wanted is None else wanted
    known = [name for name in table.columns if name in wanted]
    if not known:
        names = ", ".join(table.columns)
        raise CommandError(
            f"no column of {table.path} has the name of an argument of the model: the columns are "
            f"{names}, the arguments {', '.join(wanted) or 'none'}"
        )
    if table.note is not None:
        print(table.note, file=sys.stderr)
    refused = {name: table.text.get(table.columns.index(name)) for name in known}
    text = [name for name, reason in refused.items() if reason is not None]
    if text:  # with too many levels, or too few rows, for a density
        table = read_table(table.path, Reading(as_text=text))
    table = table.select(known)
    gone = table.missing().sum(0).tolist()
    data = {}
    for i, name in enumerate(known):
        what = f"column {name!r} of {table.path}"
        if gone[i]:
            raise CommandError(
                f"{what} has {gone[i]} missing cells; fill them in, or leave them out"
            )
        numbers = table.rows[:, i].numpy()
        is_whole = i in table.whole and np.isfinite(numbers).all()
        values = table.cells.get(i, numbers.astype(np.int64) if is_whole else numbers)
        if values.dtype.kind == "O" and any(_NUMBER.fullmatch(str(value)) for value in values):
            reason = (refused[name] or f"numbers with units in column {name}").split("; ")[0]
            raise CommandError(f"{table.path} holds {reason}; write plain numbers")
        data[name] = _to_tensor(_coded(values, name, what), what, dtype)
    return data


def _coded(values: np.ndarray, name: str, what: str) -> np.ndarray:
    """Replace text by the numbers of its levels."""
    if values.dtype.kind == "M":
        raise CommandError(f"{what} holds dates; give the model numbers, such as days")
    if values.dtype.kind != "O":
        return values
    words = values.astype(str)
    if {word.lower() for word in words} <= {"true", "false"}:
        return np.array([word.lower() == "true" for word in words])
    levels, codes = np.unique(words, return_inverse=True)
    shown = ", ".join(levels[:5]) + (", ..." if len(levels) > 5 else "")
    print(f"{name}: {len(levels)} levels, numbered from 0: {shown}", file=sys.stderr)
    return codes


def _arrays(path: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Load the arrays of a .npz file as tensors, floating-point ones in ``dtype``."""
    data: dict[str, torch.Tensor] = {}
    reading = None
    try:
        with numpy_file(path) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise CommandError(f"{path} is not an .npz file but a single array")
            for reading in archive.files:
                array = member(archive, reading)
                data[reading] = _to_tensor(array, f"{reading!r} in {path}", dtype)
    except (OSError, CommandError):
        raise
    except Exception as error:  # what a reader of foreign bytes may raise is written nowhere
        if reading is None:
            raise CommandError(f"{path} is not a whole .npz file") from None
        raise CommandError(f"cannot read {reading!r} in {path}: {first_line(error)}") from None
    return data


def _to_tensor(array: object, what: str, dtype: torch.dtype) -> torch.Tensor:
    if not isinstance(array, np.ndarray) or (kind := array.dtype.kind) not in "fiub":
        named = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise CommandError(f"{what} must hold real numbers, integers or booleans, not {named}")
    if array.size == 0:
        raise CommandError(f"{what} is empty, of shape {array.shape}")
    if kind == "b":
        return torch.from_numpy(np.ascontiguousarray(array))
    if kind in "iu":
        if array.max() > np.iinfo(np.int64).max:
            raise CommandError(f"{what} holds integers beyond 64 bits")
        return torch.from_numpy(array.astype(np.int64))
    nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    if nan or infinite:
        raise CommandError(f"{what} holds {nan} NaN and {infinite} infinite values")
    tensor = torch.from_numpy(array.astype(np.float64)).to(dtype)
    if not tensor.isfinite().all():
        raise CommandError(f"{what} holds values too large for {dtype}; try --dtype float64")
    return tensor
