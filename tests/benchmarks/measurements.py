"""What a benchmark measured: by job, cell and contender, with ratios, tables and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from timing import Measured

FORWARD, TRAINING, INVERSE = "forward", "forward + backward", "inverse"
SAVED, PEAK = "bytes saved for backward", "peak memory"
UNITS_OF = {FORWARD: "ms", TRAINING: "ms", INVERSE: "ms", SAVED: "MB", PEAK: "MB"}


class Cell(NamedTuple):
    """D, B and the conditioner's hidden width."""

    dim: int
    batch: int
    hidden: int

    def __str__(self) -> str:
        return f"{self.dim}x{self.batch}"


class Results:
    """Medians with ranges, ms or MB; a contender that cannot do a job has none."""

    def __init__(self) -> None:
        self._all: dict[tuple[str, Cell, str], Measured] = {}

    def put(self, job: str, cell: Cell, contender: str, values: Iterable[float]) -> None:
        self._all[job, cell, contender] = Measured.of([*values])

    def get(self, job: str, cell: Cell, contender: str) -> Measured | None:
        return self._all.get((job, cell, contender))

    def cells(self, job: str, hidden: int) -> list[Cell]:
        return list(dict.fromkeys(c for j, c, _ in self._all if j == job and c.hidden == hidden))

    def contenders(self, job: str) -> list[str]:
        return list(dict.fromkeys(name for j, _, name in self._all if j == job))

    def ratio(self, job: str, cell: Cell, contender: str, to: str) -> float | None:
        """Of medians; None where one of the two was not measured."""
        above, below = self.get(job, cell, contender), self.get(job, cell, to)
        return above.median / below.median if above and below else None

    def ratios(self, job: str, hidden: int, contender: str, to: str) -> dict[str, float]:
        """By cell, of those where both were measured."""
        found = {str(c): self.ratio(job, c, contender, to) for c in self.cells(job, hidden)}
        return {cell: ratio for cell, ratio in found.items() if ratio is not None}

    def table(self, job: str, hidden: int, bases: list[str]) -> str:
        """Markdown: contenders down, cells across; behind the range the ratios to the bases."""
        cells = self.cells(job, hidden)
        lines = [
            f"| {UNITS_OF[job]} | " + " | ".join(map(str, cells)) + " |",
            "|---" * (1 + len(cells)) + "|",
        ]
        for name in self.contenders(job):
            entries = [self._entry(job, cell, name, bases) for cell in cells]
            if any(entries):
                lines.append(f"| {name} | " + " | ".join(e or "none" for e in entries) + " |")
        return "\n".join(lines)

    def _entry(self, job: str, cell: Cell, name: str, bases: list[str]) -> str:
        measured = self.get(job, cell, name)
        if measured is None:
            return ""
        known = [self.ratio(job, cell, name, base) for base in bases]
        ratios = " / ".join("-" if r is None else f"{r:.2f}" for r in known)
        shown = f"{measured.median:.3g}" if measured.low == measured.high else str(measured)
        return f"{shown}, {ratios}" if bases else shown

    def save(self, path: Path, environment: str) -> None:
        records = [
            {"job": job, "unit": UNITS_OF[job], "contender": name}
            | cell._asdict()
            | measured._asdict()
            for (job, cell, name), measured in self._all.items()
        ]
        path.write_text(json.dumps({"environment": environment, "results": records}, indent=1))
