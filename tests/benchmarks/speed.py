"""Time and memory of one layer: this package's flows, the conditioner alone, Pyro's and zuko's.

    python -W ignore tests/benchmarks/speed.py [--device cuda] [--quick]

Prints tables and the bars; writes speed.json and speed.png (speed-cuda.* on a GPU).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from bars import speed_bars, table
from contenders import (
    CONDITIONERS,
    OF_PYRO,
    OUR_MADE,
    PYRO_MADE,
    Contender,
    Layer,
    of_zuko,
    ours,
    rough,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measurements import FORWARD, INVERSE, PEAK, SAVED, TRAINING, Cell, Results
from timing import Task, bytes_saved, environment, interleaved, peak_bytes

GRID = [(6, 1000), (21, 500), (43, 256), (63, 200), (43, 2048), (256, 256)]
INVERSE_DIMS = [6, 21, 43]


def measure_training(
    results: Results, contenders: Sequence[Contender], cell: Cell, device: str, seconds: float
) -> None:
    """Forward, forward + backward and memory, all contenders by turns."""
    layers, x = _layers(contenders, cell, device)
    jobs: dict[str, Mapping[str, Task]] = {
        FORWARD: {name: partial(layer.forward_pass, x) for name, layer in layers.items()},
        TRAINING: {name: partial(layer.training_pass, x) for name, layer in layers.items()},
    }
    for job, tasks in jobs.items():
        for name, times in interleaved(tasks, device, seconds=seconds).items():
            results.put(job, cell, name, times)
    for contender in contenders:
        for name, layer in _layers([contender], cell, device)[0].items():
            # The peak first, while the layer is new.
            peak = peak_bytes(partial(layer.training_pass, x), device)
            results.put(PEAK, cell, name, [1e-6 * peak])
            results.put(SAVED, cell, name, [1e-6 * bytes_saved(layer, x.clone())])


def measure_inverse(
    results: Results, contenders: Sequence[Contender], cell: Cell, device: str, seconds: float
) -> None:
    layers, y = _layers([c for c in contenders if c.invertible], cell, device)
    tasks = {name: partial(layer.inverse_pass, y) for name, layer in layers.items()}
    # A minute a call at D = 43: too slow to repeat, and far from any bar.
    cold = ["zuko NAF"] if cell.dim > 40 else []
    for name, times in interleaved(tasks, device, seconds=seconds, cold=cold).items():
        results.put(INVERSE, cell, name, times)


def _layers(
    contenders: Sequence[Contender], cell: Cell, device: str
) -> tuple[dict[str, Layer], torch.Tensor]:
    torch.manual_seed(0)
    made = {c.name: c.try_make(cell.dim, cell.hidden) for c in contenders}
    layers = {name: layer.to(device) for name, layer in made.items() if layer is not None}
    return layers, torch.randn(cell.batch, cell.dim, device=device)


def chart(results: Results) -> Figure:
    """Forward + backward against the conditioner alone, a panel a cell."""
    widths = [h for h in (100, 512) if results.cells(TRAINING, h)]
    rows = [results.cells(TRAINING, h) for h in widths]
    names = [n for n in reversed(results.contenders(TRAINING)) if n != OUR_MADE]
    shape = (len(rows), max(map(len, rows)))
    size = (2 + 2.5 * shape[1], 0.8 + (0.6 + 0.27 * len(names)) * shape[0])
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False)
    for row, cells in zip(axes, rows, strict=True):
        for panel, cell in zip(row, cells, strict=True):
            _draw(panel, results, cell, names)
    figure.suptitle(f"{TRAINING}, in multiples of {OUR_MADE} alone")
    return figure


def _draw(axes: Axes, results: Results, cell: Cell, names: Sequence[str]) -> None:
    colours = {"Pyro": "#D55E00", "zuko": "#999999", "MADE": "#D55E00"}
    for place, name in enumerate(names):
        ratio = results.ratio(TRAINING, cell, name, OUR_MADE)
        if ratio is None:
            axes.annotate("none", (1, place), (3, 0), textcoords="offset points", va="center")
            continue
        # From 1: to the right what costs more than the conditioner, to the left what costs less.
        bar = axes.barh(place, ratio - 1, left=1, color=colours.get(name.split()[0], "#0072B2"))
        axes.bar_label(bar, [f"{ratio:.2g}"], padding=3, fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_title(f"{cell}, hidden {cell.hidden}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def report(results: Results, kernels: Sequence[str], device: str) -> None:
    bases = [OUR_MADE, PYRO_MADE]
    for job in (FORWARD, TRAINING, SAVED, PEAK):
        for hidden in (100, 512):
            if results.cells(job, hidden):
                print(f"\n### {job}, hidden {hidden}\n\n{results.table(job, hidden, bases)}")
    print(f"\n### {INVERSE}, hidden 100\n\n{results.table(INVERSE, 100, [])}")
    if device == "cpu":
        print(f"\n### bars\n\n{table(speed_bars(results, kernels))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--kernels", help="by default plain,compiled; triton,plain on a GPU")
    parser.add_argument("--quick", action="store_true", help="two cells, hidden 100, two inverses")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    options = parser.parse_args()
    device: str = options.device
    default = "triton,plain" if device == "cuda" else "plain,compiled"
    kernels = (options.kernels or default).split(",")
    peers = [*OF_PYRO, *of_zuko()]
    trained = [*CONDITIONERS, *(c for k in kernels for c in ours(k)), *peers]
    # The inverse takes what the package chooses, and on a CPU that without a compiler too.
    chosen = ["auto"] if device == "cuda" else ["auto", "plain"]
    own = [c for k in chosen for c in ours(k, layers=[2])]
    inverted = [*own, *map(rough, own), *peers]
    grid, widths, dims = GRID, [100, 512], INVERSE_DIMS
    if options.quick:
        grid, widths, dims = [(6, 1000), (43, 256)], [100], [6, 21]

    print(environment(device), flush=True)
    results = Results()
    for cell in [Cell(*pair, hidden) for hidden in widths for pair in grid]:
        print(f"{cell}, hidden {cell.hidden}", file=sys.stderr)
        measure_training(results, trained, cell, device, seconds=0.3 if options.quick else 1.5)
    for dim in dims:
        cell = Cell(dim, 1000, 100)
        print(f"inverse of {cell}", file=sys.stderr)
        measure_inverse(results, inverted, cell, device, seconds=3.0)
    report(results, kernels, device)

    options.output.mkdir(parents=True, exist_ok=True)
    stem = "speed" if device == "cpu" else f"speed-{device}"
    results.save(options.output / f"{stem}.json", environment(device))
    chart(results).savefig(options.output / f"{stem}.png", dpi=150)


if __name__ == "__main__":
    main()
