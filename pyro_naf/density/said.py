"""Kinds of columns as users say them, and the note on those that were inferred."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from .column import KINDS, Column
from .columns import Schema

#: Kinds of columns that a user says: one for all, or by name or by number, or one for each.
Kind: TypeAlias = str | tuple[str | float, ...]
Said: TypeAlias = Kind | list[Kind] | Mapping[str, Kind] | Mapping[int, Kind]

#: Parameters of each kind, in the order in which they are given.
PARAMETERS = {"positive": 0, "bounded": 2, "periodic": 1, "integer": 2}

#: What a user may say of a column beside its kind: that it has spikes.
SPIKED = ("zero-inflated", "spiked")


def place_of(key: object, names: Sequence[str] | None, width: int) -> int | None:
    """Find the column that a name, or a number from 0, stands for; None where there is none.

    Names that are no text, as a DataFrame may have, are taken before numbers.

    >>> place_of(1, ["a", "b"], 2), place_of(2020, ["2010", "2020"], 2), place_of("c", None, 2)
    (1, 1, None)
    """
    if names is not None and str(key) in names:
        return list(names).index(str(key))
    whole = isinstance(key, int | np.integer) and not isinstance(key, bool)
    return int(key) if isinstance(key, int | np.integer) and whole and 0 <= key < width else None


def described(schema: Schema, said: Said | None, names: Sequence[str] | None) -> str | None:
    """One sentence on the kinds that were inferred, or None where there is none to tell."""
    if isinstance(said, str):
        return None
    told = kinds_said(said, names, len(schema.columns), "x")
    parts, alike = [], dict[str, list[str]]()
    found = [(KINDS.index(c.kind), i) for i, c in enumerate(schema.columns) if i not in told]
    for _, i in sorted(found):
        column = schema.columns[i]
        if column.kind != "continuous" and i not in schema.spiked:
            alike.setdefault(_described_kind(column), []).append(schema.called(i))
    parts += [f"{', '.join(names)} as {kind}" for kind, names in alike.items()]
    for i in schema.spiked:
        if i not in told:
            column = schema.columns[i]
            where = ", ".join(f"{spike:g}" for spike in column.spikes)
            parts.append(f"{schema.called(i)} as {column.kind}, with spikes at {where}")
    units = [f"{schema.called(i)} in {c.unit}" for i, c in enumerate(schema.columns) if c.unit]
    parts += [", ".join(units)] if units else []
    if not parts:
        return None
    return f"took {'; '.join(parts)}: where that is wrong, say columns={{name: kind}}"


def _described_kind(column: Column) -> str:
    if column.kind == "date":
        return column.kind
    if max(column.soft) == 0 and column.kind == "positive" and column.upper == 0:
        return "negative"
    if max(column.soft) == 0 and (column.kind != "integer" or column.upper == math.inf):
        return column.kind
    kind = "continuous" if column.kind == "positive" and column.lower != 0 else column.kind
    low = f" from {column.lower:g}" if column.lower > -math.inf else ""
    high = f" to {column.upper:g}" if column.upper < math.inf else ""
    return kind + low + high


def kinds_said(
    said: Said | None,
    names: Sequence[str] | None,
    width: int,
    name: str,
) -> dict[int, tuple[str, list[float]]]:
    """Return the kinds that the user gave, by the number of the column, and their parameters."""
    if said is None:
        return {}
    if isinstance(said, str | tuple):
        said = dict.fromkeys(range(width), said)
    if isinstance(said, list):
        if len(said) != width:
            raise ValueError(
                f"columns must hold a kind for each of {width} columns, got {len(said)}: or name "
                "them, columns={name: kind}"
            )
        said = dict(enumerate(said))
    found = {}
    for key, value in dict(said).items():
        at = place_of(key, names, width)
        if at is None:
            known = ", ".join(names) if names is not None else f"0 to {width - 1}"
            raise ValueError(f"columns names {key!r}, but {name} has the columns {known}")
        kind, *numbers = (value,) if isinstance(value, str) else tuple(value)
        number = PARAMETERS.get(str(kind), 0)
        if (
            not isinstance(kind, str)
            or kind not in (*KINDS, *SPIKED)
            or (len(numbers) not in (0, number) and kind != "spiked")
            or (kind == "periodic" and len(numbers) != 1)
        ):
            raise ValueError(
                f"columns[{key!r}] must be one of {', '.join(KINDS)}, zero-inflated, ('bounded', "
                "lower, upper), ('integer', lower, upper), ('periodic', period) or ('spiked', "
                f"value, ...), got {value!r}"
            )
        try:
            found[at] = (kind, [float(number) for number in numbers])
        except (TypeError, ValueError):
            raise ValueError(
                f"columns[{key!r}] must have numbers after {kind!r}, got {value!r}"
            ) from None
    return found
