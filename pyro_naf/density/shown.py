"""A density as a short table: its columns, and how good it is on rows that were held out."""

from __future__ import annotations

import math

from ..support.tables import Table
from .column import Column
from .table_density import TableDensity

#: Largest number of columns, values and digits that are shown.
_COLUMNS, _VALUES, _DIGITS = 20, 4, 4


def table_of(density: TableDensity) -> Table:
    """Tell the columns with their kinds, and the log-likelihoods of the last fit."""
    columns = density.schema.columns if density.schema is not None else []
    rows = [
        [density.schema.called(i), column.kind, _values(column)]
        for i, column in enumerate(columns[:_COLUMNS])
        if density.schema is not None
    ]
    notes = []
    if len(columns) > _COLUMNS:
        notes.append(f"and {len(columns) - _COLUMNS} columns more")
    if density.history is None:
        notes.append("not fitted")
    elif compared := density.history.comparison:
        found = [f"{c['name']} {c['mean']:.3f} +- {c['2se']:.3f}" for c in compared]
        notes.append(f"log-likelihood of a held-out row: {', '.join(found)} (2 s.e.)")
    context = f", context_dim={density.context_dim}" if density.context_dim else ""
    title = f"{type(density).__name__}({density.architecture!r}{context})"
    return Table(["column", "kind", "values"], rows, notes, title)


def _values(column: Column) -> str:
    """Tell what a column may be."""
    if column.values:
        shown = [str(value) for value in column.values[:_VALUES]]
        return ", ".join([*shown, "..."] if len(column.values) > _VALUES else shown)
    low, high = (f"{end:.{_DIGITS}g}" for end in (column.lower, column.upper))
    spikes = [f"{spike:.{_DIGITS}g}" for spike in column.spikes]
    recur = f"{', '.join(spikes)} recur{'' if len(spikes) > 1 else 's'}" if spikes else ""
    bounds = [column.lower > -math.inf, column.upper < math.inf]
    parts = {(True, True): f"{low} to {high}", (True, False): f"from {low}"}
    parts |= {(False, True): f"to {high}", (False, False): ""}
    return "; ".join(filter(None, [parts[bounds[0], bounds[1]], recur]))
