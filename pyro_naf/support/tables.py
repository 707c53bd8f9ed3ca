"""Short tables of text and of HTML, which results and guides are shown as."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of cells below a header, and lines of text after them.

    :ivar header: titles of the columns; the first column holds names.
    :ivar rows: cells, as many as there are titles.
    :ivar notes: lines below the table.
    :ivar title: line above the table.

    >>> print(Table(["", "mean"], [["mu", "4.4"], ["tau", "13.6"]], ["2 latents"]))
         mean
    mu    4.4
    tau  13.6
    2 latents
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    title: str = ""

    def __str__(self) -> str:
        lines = [self.header, *self.rows] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [self.title] if self.title else []
        for first, *others in lines:
            cells = [c.rjust(w) for c, w in zip(others, widths[1:], strict=True)]
            text.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
        return "\n".join([*text, *self.notes])

    def to_html(self) -> str:
        """Return the table as HTML, for notebooks; text in it is escaped."""
        title = f"<b>{html.escape(self.title)}</b>" if self.title else ""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.header)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        notes = "<br>".join(map(html.escape, self.notes))
        return f"<div>{title}{table if self.rows else ''}{notes}</div>"


class Shown:
    """Base of what is shown as a short table: by ``print``, ``repr`` and notebooks alike."""

    def table(self) -> Table:
        """Return what there is to see."""
        raise NotImplementedError

    def __str__(self) -> str:
        return str(self.table())

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.table().to_html()
