"""Cost and memory of a training pass against D, B, K and the number of layers.

    python -W ignore tests/benchmarks/scale.py [--device cuda] [--quick]

Every flow beside its own conditioner alone; what is left when that is subtracted is the
transformer's. Prints the slopes of the last half of every sweep on log-log axes (1 is linear);
writes scale.json and scale.png (scale-cuda.* on a GPU).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from contenders import Bare, Layer, OfPyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from timing import environment, interleaved, peak_bytes

import pyro_naf
from pyro_naf.conditioners import MADE

HIDDEN = 100


class Size(NamedTuple):
    """Of a problem and a flow; ``layers`` = 0 stands for DSF."""

    dim: int
    batch: int
    units: int = 16
    layers: int = 0


class Cost(NamedTuple):
    """Of a training pass, ms and MB: the flow, its conditioner, and the difference."""

    flow: float
    conditioner: float
    transformer: float


def powers_of_two(low: int, high: int) -> list[int]:
    return [2**i for i in range(int(math.log2(low)), int(math.log2(high)) + 1)]


DIMS = [*powers_of_two(8, 512), 1000]
BATCHES = powers_of_two(64, 65536)
UNITS = powers_of_two(4, 128)

#: What varies: the flow: its sizes.
SWEEPS: dict[str, dict[str, dict[int, Size]]] = {
    "D": {
        "DSF": {d: Size(d, 128) for d in DIMS},
        "DDSF 2": {d: Size(d, 128, layers=2) for d in DIMS},
    },
    "B": {
        "DSF": {b: Size(6, b) for b in BATCHES},
        "DDSF 2": {b: Size(6, b, layers=2) for b in BATCHES},
    },
    "K": {
        "DSF": {k: Size(8, 500, k) for k in UNITS},
        "DDSF 2": {k: Size(8, 500, k, 2) for k in UNITS},
    },
    "layers": {"DDSF": {n: Size(8, 500, layers=n) for n in range(1, 9)}},
}

LABELS = {
    "D": "D (B = 128, K = 16)",
    "B": "B (D = 6, K = 16)",
    "K": "K (D = 8, B = 500)",
    "layers": "layers of DDSF (D = 8, B = 500, K = 16)",
}


def pair(size: Size, device: str) -> tuple[dict[str, Layer], torch.Tensor]:
    """The flow and its conditioner alone."""
    torch.manual_seed(0)
    flow = (
        pyro_naf.deep_dense_sigmoidal_flow(size.dim, [HIDDEN], size.units, num_layers=size.layers)
        if size.layers
        else pyro_naf.deep_sigmoidal_flow(size.dim, [HIDDEN], size.units)
    )
    # In natural order: in another one it would sort its output, which the flow does not.
    made = MADE(size.dim, [HIDDEN], flow.transformer.num_params, order="natural")
    layers: dict[str, Layer] = {"flow": OfPyro(flow), "conditioner": Bare(made)}
    x = torch.randn(size.batch, size.dim, device=device)
    return {name: layer.to(device) for name, layer in layers.items()}, x


def measure(size: Size, device: str, seconds: float) -> dict[str, Cost]:
    layers, x = pair(size, device)
    tasks = {name: partial(layer.training_pass, x) for name, layer in layers.items()}
    times = interleaved(tasks, device, seconds=seconds, turns=(3, 51))
    # The difference turn by turn: what disturbs a turn mostly disturbs both.
    differences = [f - c for f, c in zip(times["flow"], times["conditioner"], strict=False)]
    flow, conditioner, rest = map(statistics.median, [*times.values(), differences])
    ms = Cost(flow, conditioner, rest)
    del layers, tasks
    layers, x = pair(size, device)
    peaks = [
        1e-6 * peak_bytes(partial(layer.training_pass, x), device) for layer in layers.values()
    ]
    return {"ms": ms, "MB": Cost(peaks[0], peaks[1], peaks[0] - peaks[1])}


def slope(at: list[int], costs: list[float]) -> float:
    """Of the last half on log-log axes; NaN where a difference is not positive."""
    half = len(at) // 2
    x, y = np.array(at[half:], float), np.array(costs[half:])
    return float(np.polyfit(np.log(x), np.log(y), 1)[0]) if (y > 0).all() else math.nan


Results = dict[str, dict[str, dict[int, dict[str, Cost]]]]


def print_slopes(results: Results) -> None:
    print("\n| slope of the last half | unit | flow | conditioner | flow - conditioner |")
    print("|---|---|---|---|---|")
    for sweep, flows in results.items():
        for flow, points in flows.items():
            for unit in ("ms", "MB"):
                parts = zip(*(p[unit] for p in points.values()), strict=True)
                slopes = " | ".join(f"{slope([*points], [*part]):.2f}" for part in parts)
                print(f"| {flow} against {sweep} | {unit} | {slopes} |")


def chart(results: Results) -> Figure:
    figure = Figure(figsize=(4 * len(results), 7), layout="constrained")
    rows = figure.subplots(2, len(results), sharex="col", squeeze=False)
    for unit, row in zip(("ms", "MB"), rows, strict=True):
        for axes, (sweep, flows) in zip(row, results.items(), strict=True):
            draw(axes, flows, unit)
            axes.set_xlabel(LABELS[sweep])
        row[0].set_ylabel({"ms": "forward + backward, ms", "MB": "peak memory, MB"}[unit])
    figure.legend(*rows[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=7)
    return figure


def draw(axes: Axes, flows: dict[str, dict[int, dict[str, Cost]]], unit: str) -> None:
    colours = {"DSF": "#0072B2"}
    for flow, points in flows.items():
        at, costs = [*points], [p[unit] for p in points.values()]
        colour = colours.get(flow, "#D55E00")
        axes.loglog(at, [c.flow for c in costs], "o-", color=colour, label=flow)
        alone = f"{flow}'s conditioner alone"
        axes.loglog(at, [c.conditioner for c in costs], ":", color=colour, label=alone)
        rest = [c.transformer if c.transformer > 0 else math.nan for c in costs]
        axes.loglog(at, rest, "--", color=colour, label=f"{flow} - conditioner")
    # A line of slope 1 that ends where the last curve does.
    end = costs[-1].flow
    axes.loglog(at, [end * a / at[-1] for a in at], color="black", linewidth=0.8, label="slope 1")
    ticks = at[-1::-2]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="every other size, fewer repeats")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    options = parser.parse_args()
    seconds, step = (0.2, 2) if options.quick else (1.5, 1)

    print(environment(options.device))
    results: Results = {}
    for sweep, flows in SWEEPS.items():
        for flow, sizes in flows.items():
            for at, size in [*sizes.items()][::step]:
                cost = measure(size, options.device, seconds)
                results.setdefault(sweep, {}).setdefault(flow, {})[at] = cost
                shown = ", ".join(
                    f"{c.flow:.3g} {u} ({c.conditioner:.3g})" for u, c in cost.items()
                )
                print(f"{flow}, {sweep} = {at}: {shown}", flush=True)
    print_slopes(results)

    options.output.mkdir(parents=True, exist_ok=True)
    stem = "scale" if options.device == "cpu" else f"scale-{options.device}"
    record = {"environment": environment(options.device), "results": results}
    (options.output / f"{stem}.json").write_text(json.dumps(record, indent=1))
    chart(results).savefig(options.output / f"{stem}.png", dpi=150)


if __name__ == "__main__":
    main()
