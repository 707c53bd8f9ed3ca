"""The bars that the package sets itself, as lines "bar | limit | measured | met"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from contenders import CONDITIONERS, OUR_MADE, OUTPUTS, named
from measurements import INVERSE, PEAK, SAVED, TRAINING, Cell, Results

ZUKO_INVERSE = {6: 5, 21: 15, 43: 50}


class Bar(NamedTuple):
    """A limit for the worst of some figures, and a stretch goal beyond it; either may lack."""

    claim: str
    measured: dict[str, float]
    limit: float | None
    stretch: float | None = None
    at_least: bool = False

    def line(self) -> str:
        sign = ">=" if self.at_least else "<="
        goals = [
            "-" if goal is None else f"{sign} {goal:g}: {self._verdict(goal)}"
            for goal in (self.limit, self.stretch)
        ]
        each = ", ".join(f"{where} {value:.2f}" for where, value in self.measured.items())
        shown = f"{self._worst:.2f} ({each})" if self.measured else "not measured"
        return f"| {self.claim} | {shown} | {' | '.join(goals)} |"

    @property
    def _worst(self) -> float:
        return (min if self.at_least else max)(self.measured.values())

    def _verdict(self, goal: float) -> str:
        if not self.measured:
            return "not measured"
        met = self._worst >= goal if self.at_least else self._worst <= goal
        return "met" if met else "MISSED"


def table(bars: Iterable[Bar]) -> str:
    head = "| bar | measured: worst (each) | limit: met | stretch: met |\n|---|---|---|---|"
    return "\n".join([head, *(bar.line() for bar in bars)])


def speed_bars(results: Results, kernels: Sequence[str]) -> Iterator[Bar]:
    """Those of speed.py, for every kernel measured."""
    for kernel in kernels:
        dsf, ddsf2, ddsf4 = (named(f, kernel) for f in ("DSF", "DDSF 2", "DDSF 4"))
        for hidden, limit, stretch in ((100, 0.75, 0.5), (512, 0.75, 0.5)):
            ratios = results.ratios(TRAINING, hidden, dsf, "Pyro NAF")
            yield Bar(f"{dsf} / Pyro NAF, {TRAINING}, hidden {hidden}", ratios, limit, stretch)
        for cell, flow, limit, stretch in (
            (Cell(43, 2048, 100), dsf, 1.5, 1.2),
            (Cell(43, 2048, 512), dsf, 1.2, 1.05),
            (Cell(43, 2048, 100), ddsf2, 3.5, 2.5),
            (Cell(43, 2048, 512), ddsf2, 3.5, 2.5),
            (Cell(43, 256, 100), ddsf4, 12.0, 6.0),
        ):
            yield _against_conditioners(results, cell, flow, limit, stretch)
        yield from _memory_bars(results, dsf)
    for flow in results.contenders(INVERSE):
        if flow.startswith(("DSF", "DDSF")):
            yield from _inverse_bars(results, flow)


def _against_conditioners(
    results: Results, cell: Cell, flow: str, limit: float, stretch: float
) -> Bar:
    ratios = {c.name: results.ratio(TRAINING, cell, flow, c.name) for c in CONDITIONERS}
    known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
    claim = f"{flow} / conditioner alone, {TRAINING}, {cell}, hidden {cell.hidden}"
    return Bar(claim, known, limit, stretch)


def _memory_bars(results: Results, dsf: str) -> Iterator[Bar]:
    # The bar is for one cell: where B is small, both save mostly the network's masked weights.
    of_bar = Cell(43, 2048, 100)
    for hidden in (100, 512):
        ratios = results.ratios(SAVED, hidden, dsf, "Pyro NAF")
        claim = f"{dsf} / Pyro NAF, {SAVED}, hidden {hidden}"
        if hidden == of_bar.hidden:
            measured = {cell: r for cell, r in ratios.items() if cell == str(of_bar)}
            yield Bar(f"{claim}, {of_bar}", measured, 0.35)
        yield Bar(f"{claim}, everywhere", ratios, None)
        least = {str(c): _over_least(results, c, dsf) for c in results.cells(SAVED, hidden)}
        known = {cell: ratio for cell, ratio in least.items() if ratio is not None}
        claim = f"{dsf} / (conditioner's own + inputs), {SAVED}, hidden {hidden}"
        yield Bar(claim, known, None, 1.0)
        ratios = results.ratios(PEAK, hidden, dsf, "Pyro NAF")
        yield Bar(f"{dsf} / Pyro NAF, {PEAK}, hidden {hidden}", ratios, 1.0)


def _over_least(results: Results, cell: Cell, dsf: str) -> float | None:
    """Bytes saved over what recomputing must keep: the conditioner's own, and x and phi."""
    ours, own = results.get(SAVED, cell, dsf), results.get(SAVED, cell, OUR_MADE)
    inputs = 4e-6 * cell.dim * cell.batch * (1 + OUTPUTS)
    return ours.median / (own.median + inputs) if ours and own else None


def _inverse_bars(results: Results, flow: str) -> Iterator[Bar]:
    for dim, limit in ZUKO_INVERSE.items():
        cell = Cell(dim, 1000, 100)
        for peer, goal, stretch in (("zuko NAF", limit, None), ("Pyro spline", None, 1.0)):
            ratio = results.ratio(INVERSE, cell, peer, flow)
            measured = {} if ratio is None else {str(cell): ratio}
            claim = f"{peer} / {flow}, {INVERSE}, D = {dim}"
            yield Bar(claim, measured, goal, stretch, at_least=True)
