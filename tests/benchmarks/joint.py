"""A joint density at 64 points, value and gradient, on each rung of its ladder.

    PYRO_NAF_DATA=... OMP_NUM_THREADS=1 python -W ignore tests/benchmarks/joint.py [--only N]

Contenders take turns: the model run with a plate over the points (as versions before 0.2 did,
for models that are vectorised), vmapped, captured, and captured and compiled. The bars are ratios
to the plate. Every graph is compared with the vmapped density on fresh points.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from hierarchies import posteriors
from pyro import poutine
from targets import posteriordb
from timing import Measured, environment, interleaved
from torch import Tensor

from pyro_naf.infer.joint import Joint

POINTS = 64
SMALL = [
    "eight_schools-eight_schools_centered",
    "bball_drive_event_1-hmm_drive_1",
    "hudson_lynx_hare-lotka_volterra",
]
LARGE = ["radon_hier", "irt_2pl", "accel_gp"]
#: Limits of the ratios to the plate.
BARS = {"vmapped": 1.2, "captured": 0.6, "compiled": 0.05}

ValueAndGrad = Callable[[Tensor], tuple[Tensor, Tensor]]


def with_a_plate(joint: Joint) -> ValueAndGrad:
    """One run of a vectorised model for all points, in a plate of their number."""

    def value_and_grad(u: Tensor) -> tuple[Tensor, Tensor]:
        u = u.detach().requires_grad_()
        total, point = u.new_zeros(len(u)), {}
        for name, free in joint.split(u).items():
            transform = joint.sites[name].transform
            value = point[name] = transform(free)
            log_det = transform.log_abs_det_jacobian(free, value)
            total = total + log_det.reshape(len(u), -1).sum(-1)
        plate = pyro.plate("_points", len(u), dim=-1)
        with poutine.block(), pyro.validation_enabled(False), plate:
            conditioned = poutine.condition(joint.model, data=point)
            trace = poutine.trace(conditioned).get_trace(*joint.args, **joint.kwargs)
            trace.compute_log_prob()
        for site in trace.nodes.values():
            if "log_prob" in site and site["name"] != "_points":
                total = total + site["log_prob"].reshape(len(u), -1).sum(-1)
        return total.detach(), torch.autograd.grad(total.sum(), u)[0]

    return value_and_grad


def problems(folder: Path) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    small = posteriordb(folder)
    large = posteriors(folder)
    return {name: (small[name].model, small[name].args) for name in SMALL} | {
        n: large[n] for n in LARGE
    }


def measure(model: Callable[..., Any], args: tuple[Any, ...]) -> dict[str, Any]:
    """Milliseconds of every contender, seconds of capturing and compiling, largest difference."""
    joint, graphed = Joint(model, args), Joint(model, args)
    start = time.perf_counter()
    graphed.capture(POINTS)
    found: dict[str, Any] = {"D": joint.dim, "capture": time.perf_counter() - start}
    tasks: dict[str, ValueAndGrad] = {"plate": with_a_plate(joint), "vmapped": joint.value_and_grad}
    if graphed.graph is not None:
        tasks["captured"] = graphed.value_and_grad
        compiled = Joint(model, args)
        compiled.capture(POINTS)
        assert compiled.graph is not None
        start = time.perf_counter()
        compiled.graph.compile()
        while not compiled.graph.is_compiled and compiled.graph.worker is not None:
            time.sleep(0.2)
            if compiled.graph.worker.has_ended():
                compiled.value_and_grad(joint.start[None])
        found["compile"] = time.perf_counter() - start
        if compiled.graph.is_compiled:
            tasks["compiled"] = compiled.value_and_grad

    def fresh() -> Tensor:
        return joint.start + 0.1 * torch.randn(POINTS, joint.dim).to(joint.start)

    u = fresh()
    truth = joint.value_and_grad(u)
    for name, task in tasks.items():
        pairs = list(zip(task(u), truth, strict=True))
        # Points that the model refuses are -inf in both.
        errors = [
            (x - y).nan_to_num(0.0).abs().max() / y[y.isfinite()].abs().max() for x, y in pairs
        ]
        found[f"error of {name}"] = float(max(errors))
    runs = {name: (lambda task=task: task(fresh())) for name, task in tasks.items()}
    times = interleaved(runs, seconds=2.0)
    return found | {name: Measured.of(ms) for name, ms in times.items()}


def row(name: str, found: dict[str, Any]) -> str:
    plate = found["plate"].median
    cells = [name, str(found["D"]), f"{plate:.2f}"]
    for rung, bar in BARS.items():
        if rung not in found:
            cells.append("-")
            continue
        ratio = found[rung].median / plate
        met = "" if ratio <= bar else " (missed)"
        cells.append(f"{found[rung].median:.3f}: {ratio:.3f}{met}")
    error = max(found.get(f"error of {rung}", 0.0) for rung in ("captured", "compiled"))
    cells += [
        f"{found['capture']:.1f}",
        f"{found.get('compile', float('nan')):.0f}",
        f"{error:.0e}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", help="a part of the names to measure")
    only = parser.parse_args().only or ""
    torch.set_num_threads(1)
    print(environment("cpu"))
    print("\nms at 64 points, and the ratio to the plate\n")
    columns = ["posterior", "D", "plate", *BARS, "capture, s", "compile, s", "error"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for name, (model, args) in problems(Path(os.environ["PYRO_NAF_DATA"])).items():
        if only in name:
            pyro.clear_param_store()
            print(row(name, measure(model, args)), flush=True)


if __name__ == "__main__":
    main()
