"""The file of a fitted density: what it holds, and what a file must hold to be one."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict, TypeVar, cast

import torch
from torch import Tensor

from ..files.stored import ModelFileError, load, save
from ..support.calls import Args, Intercepted, Kwargs, Operation
from .architectures import parse
from .column import Column
from .columns import Schema
from .settings import History
from .stacked import Folds
from .table_density import TableDensity

Density = TypeVar("Density", bound=TableDensity)

VERSION = 1

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}


class SavedFolds(TypedDict):
    """:class:`~pyro_naf.density.stacked.Folds` in a file."""

    parts: list[tuple[int, int]]
    rows: Tensor


class Content(TypedDict, total=False):
    """What a file of a density holds; some of it is not in older files."""

    input_dim: int
    context_dim: int
    architecture: str
    overrides: dict[str, object]
    parts: list[tuple[str, dict[str, object]]]
    dtype: str
    data_dtype: str
    schema: list[dict[str, object]]
    from_table: bool
    together: bool
    held_out: Tensor | None
    folds: SavedFolds | None
    columns: list[str] | None
    context_columns: list[str] | None
    noise: dict[int, float]
    values: dict[int, Tensor]
    history: dict[str, object] | None
    state: dict[str, Tensor]


def save_model(density: TableDensity, path: str | os.PathLike[str]) -> None:
    """Write the density to a file; an older one stands until the new one is whole.

    :raises TypeError: when an attribute is made of more than numbers and strings.
    :raises OSError: when the file cannot be written.
    """
    history = density.history
    content = {
        "kind": "pyro_naf model",
        "version": VERSION,
        "input_dim": operator.index(density.width),
        "context_dim": operator.index(density.context_dim),
        **density.description(),
        "parts": [[name, overrides] for name, overrides in density.parts],
        "dtype": str(density.dtype).removeprefix("torch."),
        "data_dtype": str(density.data_dtype).removeprefix("torch."),
        "schema": density.schema.content(),
        "from_table": density.from_table,
        "together": density.together,
        "held_out": None if density.held_out is None else density.held_out.cpu(),
        "folds": None if density.folds is None else asdict(density.folds),
        "columns": density.columns,
        "context_columns": density.context_columns,
        "noise": density.noise,
        "values": density.values,
        "history": None if history is None else asdict(history),
        "state": {name: t.cpu() for name, t in density.state_dict().items()},
    }
    save(Path(path), content)


def load_model(kind: type[Density], path: str | os.PathLike[str]) -> Density:
    """Load the density that :func:`save_model` wrote, in evaluation mode.

    :raises ModelFileError: when the file is truncated, foreign or of another version.
    :raises OSError: when it cannot be read.
    """
    content = cast(Content, load(Path(path), "model", VERSION))
    try:
        density = _made(kind, content)
        _fill(density, content)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        raise ModelFileError(f"{path} does not hold a whole model: {reason}") from None
    return density.eval()


def _made(kind: type[Density], content: Content) -> Density:
    """Make a new density of what a file says, if that is no larger than the file's weights."""
    sizes, state = (content["input_dim"], content["context_dim"]), content["state"]
    columns = content.get("schema")  # older files have none
    if columns is None and sizes[0] != len(state["loc"]):
        raise ValueError("its sizes differ")
    schema = Schema([Column()] * sizes[0]) if columns is None else Schema.of(columns)
    found = (len(schema.columns), len(schema.real), sizes[1])
    if found != (sizes[0], len(state["loc"]), len(state["context_loc"])):
        raise ValueError("its sizes differ")
    numbers = sum(t.numel() for t in state.values())
    parts = [(str(name), dict(options)) for name, options in content.get("parts", [])]
    named = [(content["architecture"], content["overrides"]), *parts]
    numbered = [parse(name) for name, _ in named]
    mixtures = ("gmm", "student", "copula")
    layers = sum(number for name, number in numbered if name not in mixtures)
    integers = [v for _, options in named for v in options.values() if isinstance(v, int)]
    integers += [number for name, number in numbered if name in mixtures]
    if layers > len(state) or max(integers, default=0) > max(numbers, 2**16):
        raise ValueError("its weights are too few")
    with _Limit(64 * numbers + 2**20):
        density = kind(None, sizes[1], content["architecture"], **content["overrides"])
        density.input_dim = sizes[0]
        density.build_for(schema, gaps=bool(content.get("together", False)))
        density.restore_parts(parts)
    return density.to(DTYPES[content["dtype"]])


def _fill(density: TableDensity, content: Content) -> None:
    _check_orders(density.state_dict(), content["state"])
    density.load_state_dict(content["state"])
    if not ((density.scale > 0) & density.scale.isfinite() & density.loc.isfinite()).all():
        raise ValueError("its moments are no numbers")
    density.data_dtype = DTYPES[content["data_dtype"]]
    density.from_table = bool(content.get("from_table", False))
    held_out = content.get("held_out")
    density.held_out = None if held_out is None else held_out.double().flatten()
    density.folds = _folds(content.get("folds"), density)
    density.columns = _names(content["columns"], density.width)
    density.context_columns = _names(content["context_columns"], density.context_dim)
    density.noise = {int(i): float(step) for i, step in content["noise"].items()}
    values = content.get("values", {})  # older files have none
    density.values = {int(i): known.double() for i, known in values.items()}
    if not {*density.values} <= {*density.noise} <= {*range(density.width)}:
        raise ValueError("its discrete columns differ")
    history = content["history"]
    made: Callable[..., History] = History
    density.history = None if history is None else made(**history)


def _folds(folds: SavedFolds | None, density: TableDensity) -> Folds | None:
    if folds is None:
        return None
    parts = [(int(i), int(k)) for i, k in folds["parts"]]
    rows = folds["rows"].long()
    known = {k for _, k in parts}
    if (
        density.held_out is None
        or rows.shape != density.held_out.shape
        or len(parts) != len(density.parts)
        or not known.issuperset(rows.unique().tolist())
    ):
        raise ValueError("its folds differ")
    return Folds(parts, rows)


def _names(names: list[str] | None, number: int) -> list[str] | None:
    if names is None or (len(names) == number and all(isinstance(name, str) for name in names)):
        return names
    raise ValueError("its columns have other names")


class _Limit(Intercepted):
    """No more numbers than these are computed: what a file says may be a network of any size."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.left = numbers

    def call(self, func: Operation, args: Args, kwargs: Kwargs) -> object:
        found = super().call(func, args, kwargs)
        self.left -= found.numel() if isinstance(found, Tensor) else 0
        if self.left < 0:
            raise ValueError("its weights are too few")
        return found


def _check_orders(own: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Integers are orders of columns, which may be others but must be orders."""
    for name, t in own.items():
        if not t.is_floating_point() and not torch.equal(
            t.sort().values, given[name].sort().values
        ):
            raise ValueError(f"{name} is no order of the columns")
