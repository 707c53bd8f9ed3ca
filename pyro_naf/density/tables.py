"""Tables as people have them, DataFrames above all, as matrices of numbers; and back."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from . import numerals, preparation
from .column import MANY_CLASSES, Column
from .columns import Schema

if TYPE_CHECKING:
    from pandas import DataFrame

#: What dates are counted from, in days.
EPOCH = np.datetime64("1970-01-01", "us")
DAY = np.timedelta64(86_400_000_000, "us")
SECOND = np.timedelta64(1_000_000, "us")

#: What a column may hold, and what to do where it holds anything else.
EXPECTED = "must hold numbers, text, booleans, dates or durations"
REMEDY = "make it one of these, or leave the column out"


@dataclass
class Matrix:
    """A table as numbers.

    :ivar rows: ``(N, P)``; text is the place of its value among those of the column.
    :ivar names: of the columns, where the table has any.
    :ivar columns: those whose kind the table tells, and None for the others.
    :ivar whole: which columns are of an integer dtype.
    :ivar units: of the columns' numbers, empty where there is none.
    """

    rows: Tensor
    names: list[str] | None
    columns: list[Column | None]
    whole: list[bool]
    units: list[str]


@dataclass
class _Read:
    """One column of a :class:`Matrix`."""

    values: np.ndarray
    column: Column | None = None
    whole: bool = False
    unit: str = ""


def named_columns(x: object, name: str = "x") -> dict[str, object] | None:
    """Return the columns of a table by name; None for what has no names.

    :param x: a DataFrame (of pandas, polars, pyarrow), a mapping, a structured array of numpy, or a
        list of mappings, one for each row.
    :raises ValueError: when two columns have one name.
    """
    if isinstance(x, np.ndarray) and x.dtype.names:
        return {field: x[field] for field in x.dtype.names}
    if hasattr(x, "tocsr") or isinstance(x, np.ndarray | Tensor):
        return None  # a sparse matrix may be a mapping
    if isinstance(x, Mapping):
        return {str(key): values for key, values in x.items()}
    if isinstance(x, list | tuple) and x and all(isinstance(row, Mapping) for row in x):
        keys = dict.fromkeys(key for row in x for key in row)
        return {str(key): _objects([row.get(key) for row in x]) for key in keys}
    names = getattr(x, "column_names", None)
    if names is None:
        names = getattr(x, "columns", None)
    if names is None or not hasattr(x, "__getitem__"):
        return None
    called = [str(key) for key in names]
    twice = [key for at, key in enumerate(called) if key in called[:at]]
    if twice:
        raise ValueError(f"{name} has several columns called {twice[0]!r}: rename all but one")
    return {str(key): x[key] for key in names}


def _objects(values: Sequence[object]) -> np.ndarray:
    found = np.empty(len(values), object)
    found[:] = values
    return found


def matrix(x: object, name: str, schema: Schema | None = None) -> Matrix:
    """Convert a table to numbers, its columns in the order of a schema, where there is one.

    :param x: an array or tensor of numbers, or named columns.
    :raises TypeError: when a column holds neither numbers, text, booleans, dates nor durations.
    :raises ValueError: when a column of the schema is not there, columns differ in length, or text
        is none of the column's values.
    """
    if hasattr(x, "to_frame") and not hasattr(x, "columns"):
        x = x.to_frame()  # a Series is a table of one column
    columns = named_columns(x, name)
    if columns is None:
        rows = preparation.as_tensor(x, name)
        width = rows.shape[-1] if rows.dim() else 0
        whole = _whole(x, rows, width)
        return Matrix(rows, None, [None] * width, whole, [""] * width)
    if schema is not None and schema.names is not None:
        missing = [c for c in schema.names if c not in columns]
        if missing:
            listed = preparation.listed("column", missing)
            raise ValueError(f"{name} must have all columns of the fit, and lacks {listed}")
        columns = {c: columns[c] for c in schema.names}
    known = schema.columns if schema is not None else [None] * len(columns)
    if len(known) != len(columns):
        raise ValueError(f"{name} must have {len(known)} columns, got {len(columns)}")
    if not columns:
        raise ValueError(f"{name} must have columns, got none")
    read = [
        _numbers(values, column, f"{name} in column {label}", label)
        for (label, values), column in zip(columns.items(), known, strict=True)
    ]
    lengths = {len(found.values) for found in read}
    if len(lengths) != 1:
        raise ValueError(f"{name} must have columns of one length, got {sorted(lengths)}")
    rows = torch.from_numpy(np.stack([found.values for found in read], 1))
    told = [[c.column for c in read], [c.whole for c in read], [c.unit for c in read]]
    return Matrix(rows, list(columns), *told)  # type: ignore[arg-type]


def _whole(x: object, rows: Tensor, width: int) -> list[bool]:
    """Which columns of an array or a tensor hold whole numbers."""
    if isinstance(x, Tensor):
        return [not x.is_floating_point()] * width
    if np.asarray(x).dtype.kind in "iu" or not rows.numel():
        return [rows.numel() > 0] * width
    return [_has_gaps(column) for column in rows.reshape(-1, width).numpy().T]


def _numbers(values: object, known: Column | None, where: str, label: str) -> _Read:
    """Convert a column to numbers; also its kind if its dtype tells, and if it has integers."""
    array = as_values(values, where)
    kind = array.dtype.kind
    if kind == "M":
        days = (array.astype("datetime64[us]") - EPOCH) / DAY
        seen = days[~np.isnan(days)]
        return _Read(days, Column("date", label, step=float(bool((seen == seen.round()).all()))))
    if kind == "m":
        return _Read(array.astype("timedelta64[us]") / SECOND, unit=numerals.SECONDS)
    if kind == "O":
        quantities = _quantities(array, known, where)
        return quantities or _classes(array, known, where, label, _levels(values))
    numbers = array.astype(np.float64)
    seen = numbers[~np.isnan(numbers)]
    if kind == "b":
        return _Read(numbers, Column("boolean", label, values=(0.0, 1.0)))
    if known is not None and any(isinstance(value, str) for value in known.values) and len(seen):
        return _Read(_places_of_numbers(numbers, known, where), known)
    if str(getattr(values, "dtype", "")).startswith("category") and len(seen):
        return _Read(numbers, Column("categorical", label, values=tuple(np.unique(seen).tolist())))
    return _Read(numbers, None, kind in "iu" or _has_gaps(numbers))


def _places_of_numbers(numbers: np.ndarray, known: Column, where: str) -> np.ndarray:
    """Return the places of numbers among the texts that a column's values are."""
    texts = {str(value): i for i, value in enumerate(known.values)}
    sizes = {
        size[0]: i
        for text, i in texts.items()
        if (size := numerals.numbers([text])) and not numerals.CODE.fullmatch(text)
    }
    found = np.full(len(numbers), np.nan)
    for at in np.flatnonzero(~np.isnan(numbers)).tolist():
        if float(numbers[at]) not in sizes:
            raise ValueError(
                f"{where} holds {numbers[at]:g}, a number, in row {at}; the fit had {_shown(known)}"
            )
        found[at] = sizes[float(numbers[at])]
    return found


def _has_gaps(numbers: np.ndarray) -> bool:
    """Whether floating-point numbers are integers, some of which are missing."""
    seen = numbers[~np.isnan(numbers)]
    return 0 < len(seen) < len(numbers) and bool((seen == seen.round()).all())


def _quantities(array: np.ndarray, known: Column | None, where: str) -> _Read | None:
    """Text as numbers: money, percentages, durations, and plain numbers that cannot be classes."""
    at = [i for i, cell in enumerate(array.tolist()) if cell is not None]
    if not all(isinstance(array[i], str) for i in at) or (known is not None and known.values):
        return None
    # Among numbers, what people write for a missing one is no value; among classes it may be.
    at = [i for i in at if array[i].strip().lower() not in numerals.MISSING]
    cells = [array[i] for i in at]
    found = numerals.measured(cells)
    if found is None and (known is not None or 2 * len({*cells}) > len(cells) > 0):
        plain = None if any(map(numerals.CODE.fullmatch, cells)) else numerals.numbers(cells)
        found = None if plain is None else numerals.Measured("", plain)
    if known is not None and cells and (found is None or found.unit != known.unit):
        unit = f" in {known.unit}" if known.unit else ""
        raise ValueError(f"{where} holds {cells[0]!r} in row {at[0]}; the fit had numbers{unit}")
    if found is None:
        return None
    values = np.full(len(array), np.nan)
    values[at] = found.values
    return _Read(values, unit=found.unit)


def _levels(values: object) -> tuple[str, ...]:
    """List the texts that a categorical column declares, in its own order."""
    levels = getattr(getattr(values, "dtype", None), "categories", None)
    found = () if levels is None else tuple(levels)
    texts = all(isinstance(level, str) for level in found)
    return tuple(dict.fromkeys(level.strip() for level in found)) if texts else ()


def _classes(
    array: np.ndarray, known: Column | None, where: str, label: str, levels: tuple[str, ...]
) -> _Read:
    """Text or booleans, of which None are missing, as places among the values, or 0 and 1.

    Blanks around a text are no part of the text.

    Levels that no row has are kept where rows are many enough for that number of classes.
    """
    cells = [cell.strip() if isinstance(cell, str) else cell for cell in array.tolist()]
    if all(cell is None or isinstance(cell, bool) for cell in cells):
        found = np.array([np.nan if cell is None else float(cell) for cell in cells])
        return _Read(found, Column("boolean", label, values=(0.0, 1.0)))
    seen = {cell for cell in cells if cell is not None}
    values = tuple(level for level in levels if level in seen) or numerals.in_order(seen)
    if 2 * len(levels) <= len(cells) and len(levels) <= MANY_CLASSES:
        values = levels or values
    column = known or Column("categorical", label, values=values)
    places = {str(value): float(place) for place, value in enumerate(column.values)}
    for at, cell in enumerate(cells):
        if cell is not None and cell not in places:
            raise ValueError(
                f"{where} holds {cell!r} in row {at}; the fit had {_shown(column)}: leave such "
                "rows out, or fit a pandas.Categorical that names all levels"
            )
    return _Read(np.array([np.nan if c is None else places[c] for c in cells]), column)


def _shown(column: Column) -> str:
    return ", ".join(map(str, column.values[:10]))


def as_values(values: object, where: str) -> np.ndarray:
    """Convert a column ``(N,)`` to an array of numbers, booleans, dates, durations or objects.

    The latter are text, or booleans some of which are missing: None. Missing numbers are NaN,
    missing dates NaT; moments with a time zone are those of UTC.

    :raises TypeError: when it holds anything else.
    :raises ValueError: when it has not one value for each row.
    """
    if hasattr(values, "to_pylist") and "dictionary" in str(getattr(values, "type", "")):
        values = values.to_pylist()  # to_numpy of pyarrow 26 loses which cells are missing
    array = np.asarray(values.to_numpy() if hasattr(values, "to_numpy") else values)
    if isinstance(values, np.ma.MaskedArray):
        array = _masked(values)
    if array.ndim != 1:
        raise ValueError(f"{where} must hold one value for each row, got shape {array.shape}")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.kind == "O":
        return _of_objects(array, where)
    if array.dtype.kind not in "biufmM":
        raise TypeError(f"{where} {EXPECTED}, got {array.dtype}: {REMEDY}")
    return array


def _masked(values: np.ma.MaskedArray) -> np.ndarray:
    """Return the cells of a masked array, missing where they are masked."""
    found = values.data.astype(object)
    found[np.ma.getmaskarray(values)] = None
    return found


def _of_objects(array: np.ndarray, where: str) -> np.ndarray:
    missing = np.array([_is_missing(value) for value in array], bool)
    seen = array[~missing]
    seen = _objects([_plain(value) for value in seen.tolist()])
    kinds = {type(value) for value in seen}

    def all_are(*wanted: type) -> bool:
        return all(issubclass(kind, wanted) for kind in kinds)

    if kinds and (all_are(str) or all_are(bool, np.bool_)):
        if all_are(str) or missing.any():
            cells = array.astype(object)
            cells[~missing] = seen.astype(str if all_are(str) else bool).tolist()
            cells[missing] = None
            return cells
        return array.astype(bool)
    if kinds and not missing.any() and all_are(int, np.integer):
        with suppress(OverflowError):
            return array.astype(np.int64)
    if all_are(Real, Decimal, np.bool_):
        found = np.full(len(array), np.nan)
        found[~missing] = seen.astype(np.float64)
        return found
    if all_are(Real, Decimal, str) and not all_are(str):
        found = np.full(len(array), np.nan)
        found[~missing] = numerals.among_numbers(seen, np.flatnonzero(~missing), where)
        return found
    if all_are(datetime.date, np.datetime64):
        dates = np.full(len(array), "NaT", "datetime64[us]")
        dates[~missing] = np.array([naive(value) for value in seen], "datetime64[us]")
        return dates
    if all_are(datetime.timedelta, np.timedelta64):
        spans = np.full(len(array), "NaT", "timedelta64[us]")
        spans[~missing] = np.array(seen.tolist(), "timedelta64[us]")
        return spans
    names = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise TypeError(f"{where} {EXPECTED}, got {names}: {REMEDY}")


def _plain(value: object) -> object:
    """Return what a cell means: a time of day, a span of the calendar, an interval, or bytes."""
    if isinstance(value, datetime.time):
        moment = datetime.datetime.combine(datetime.date.min, value.replace(tzinfo=None))
        return moment - datetime.datetime.min
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if hasattr(value, "to_timestamp"):
        return value.to_timestamp().to_pydatetime()
    return str(value) if hasattr(value, "closed_left") else value


def naive(moment: datetime.date | np.datetime64) -> datetime.date | np.datetime64:
    """Convert a date, or a moment to UTC without its time zone."""
    if not isinstance(moment, datetime.datetime) or moment.tzinfo is None:
        return moment
    return moment.astimezone(datetime.timezone.utc).replace(tzinfo=None)


def _is_missing(value: object) -> bool:
    """None, NaN, NaT, or pandas' NA, which can be compared with nothing."""
    try:
        return value is None or bool(value != value)
    except TypeError:
        return True
    except ValueError:  # an array in a cell, which is no value
        return False


def columns_of(rows: Tensor, schema: Schema) -> dict[str, np.ndarray]:
    """Drawn rows ``(N, P)`` as named columns, with text, booleans and dates as they were given."""
    found: dict[str, np.ndarray] = {}
    for i, (column, values) in enumerate(zip(schema.columns, rows.cpu().numpy().T, strict=True)):
        if column.kind == "boolean":
            values = values.astype(bool)
        elif column.kind == "date":
            values = EPOCH + np.round(
                values.astype(np.float64) * (DAY / np.timedelta64(1, "us"))
            ).astype("timedelta64[us]")
        elif column.unit == numerals.SECONDS:
            values = np.round(values.astype(np.float64) * 1e6).astype("timedelta64[us]")
        elif any(isinstance(value, str) for value in column.values):
            values = np.array(column.values, object)[values.astype(int)]
        elif column.kind == "integer" and column.step == round(column.step):
            values = values.round().astype(np.int64)
        found[schema.called(i)] = values
    return found


def as_frame(rows: Tensor, schema: Schema) -> DataFrame:
    """Drawn rows as a pandas DataFrame.

    :raises ImportError: where pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise ImportError(
            "a table with names needs pandas to be drawn as one: pip install pandas, or draw "
            "numbers with sample(n, as_table=False)"
        ) from None
    return pandas.DataFrame(columns_of(rows, schema))
