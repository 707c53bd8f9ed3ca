"""Steps of CompiledSVI beside those of Pyro's SVI: milliseconds, and seconds until compiled.

    PYRO_NAF_DATA=... OMP_NUM_THREADS=1 python -W ignore tests/benchmarks/compiled_svi.py [--only N]

Contenders take turns on the same guide: SVI, and CompiledSVI with the graph as captured and as
compiled. The bars are ratios to SVI, and seconds from the first step to the first compiled one, in
a new process with an empty cache and in the next. Losses and gradients are compared with SVI's for
the same draws.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from hierarchies import posteriors
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from timing import Measured, environment, interleaved

from pyro_naf import eight_schools
from pyro_naf.infer import AutoDSFNormal, CompiledSVI


class Problem(NamedTuple):
    model: Callable[..., Any]
    args: tuple[Any, ...]
    guide: Callable[..., Any]
    loss: Callable[[], Any]
    #: Largest ratio to SVI, and the one that is hoped for.
    bar: float | None = None
    stretch: float | None = None


#: Seconds to the first compiled step: with an empty cache, and in the next process.
COLD, WARM = 20.0, 2.0


def problems() -> dict[str, Problem]:
    schools = eight_schools.model
    radon, data = posteriors(Path(os.environ["PYRO_NAF_DATA"]))["radon_hier"]
    many = dict(num_particles=16, vectorize_particles=True)
    return {
        "eight schools, DSF": Problem(schools, (), AutoDSFNormal, Trace_ELBO, 1 / 10, 1 / 30),
        "radon, normal, 16 draws": Problem(
            radon, data, AutoMultivariateNormal, lambda: Trace_ELBO(**many), 1 / 5, 1 / 10
        ),
        "eight schools, mean field": Problem(schools, (), AutoNormal, TraceMeanField_ELBO),
        "eight schools, IAF": Problem(schools, (), AutoIAFNormal, Trace_ELBO),
        "radon, DSF, 16 draws": Problem(radon, data, AutoDSFNormal, lambda: Trace_ELBO(**many)),
    }


def compiled(problem: Problem, guide: Any, patience: float = 300.0) -> tuple[CompiledSVI, float]:
    """A CompiledSVI whose graph is compiled, and the seconds until it was."""
    svi = CompiledSVI(problem.model, guide, adam(), problem.loss())
    start = time.perf_counter()
    while svi.rung != "captured and compiled":
        svi.step(*problem.args)
        if svi.why_not is not None or time.perf_counter() > start + patience:
            break
    return svi, time.perf_counter() - start


def adam() -> pyro.optim.PyroOptim:
    return pyro.optim.Adam({"lr": 1e-4})


def measure(problem: Problem) -> dict[str, Any]:
    """Milliseconds of every contender, and the largest relative difference from SVI."""
    guide = problem.guide(problem.model)
    plain = SVI(problem.model, guide, adam(), problem.loss())
    captured = CompiledSVI(problem.model, guide, adam(), problem.loss(), compile=False)
    by_graph, _ = compiled(problem, guide)
    tasks = {"SVI": plain, "captured": captured, "compiled": by_graph}
    for svi in tasks.values():
        for _ in range(20):
            svi.step(*problem.args)
    if by_graph.why_not is not None:
        raise RuntimeError(by_graph.why_not)
    error = difference(plain, by_graph, problem.args)
    runs = {name: (lambda svi=svi: svi.step(*problem.args)) for name, svi in tasks.items()}
    times = interleaved(runs, seconds=5.0, turns=(11, 101))
    return {name: Measured.of(ms) for name, ms in times.items()} | {"error": error}


def difference(plain: SVI, svi: CompiledSVI, args: tuple[Any, ...]) -> float:
    """Of the loss and of each gradient, relative to its largest entry, over a few draws."""
    assert svi._last is not None and svi._last.graph is not None
    graph, worst = svi._last.graph, 0.0
    tensors = torch.utils._pytree.tree_leaves(args)
    for seed in range(5):
        torch.manual_seed(seed)
        (loss,), grads = graph([t for t in tensors if isinstance(t, torch.Tensor)])
        torch.manual_seed(seed)
        for p in graph.params.values():
            p.grad = None
        truth = plain.loss_and_grads(plain.model, plain.guide, *args)
        worst = max(worst, abs(float(loss) - truth) / max(abs(truth), 1.0))
        for name, p in graph.params.items():
            if p.grad is not None:
                scale = p.grad.abs().max().clamp(min=1.0)
                worst = max(worst, float((grads[name] - p.grad).abs().max() / scale))
                p.grad = None
    return worst


def until_compiled(name: str) -> list[dict[str, float]]:
    """Seconds to the first compiled step in a process with an empty cache, and in the next."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", __file__, "--start", name]
        variables = os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder}
        runs = [subprocess.run(command, env=variables, capture_output=True) for _ in range(2)]
    return [json.loads(run.stdout.splitlines()[-1]) for run in runs]


def start(name: str) -> None:
    problem = problems()[name]
    before = time.process_time()
    svi, seconds = compiled(problem, problem.guide(problem.model))
    found = {"seconds": seconds, "processor": time.process_time() - before}
    print(json.dumps(found | {"compiled": svi.rung == "captured and compiled"}))


def row(name: str, problem: Problem) -> str:
    found, starts = measure(problem), until_compiled(name)
    svi = found["SVI"].median
    cells = [name, f"{svi:.2f}"]
    for rung in ("captured", "compiled"):
        cells.append(f"{found[rung].median:.3f}: 1/{svi / found[rung].median:.1f}")
    ratio = found["compiled"].median / svi
    if problem.bar is not None and problem.stretch is not None:
        met = "missed" if ratio > problem.bar else "met" if ratio > problem.stretch else "stretch"
        cells[-1] += f" ({met})"
    for limit, one in zip((COLD, WARM), starts, strict=True):
        met = "" if one["compiled"] and one["seconds"] <= limit else " (missed)"
        cells.append(f"{one['seconds']:.1f}{met}, {one['processor']:.1f}")
    return "| " + " | ".join([*cells, f"{found['error']:.0e}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", help="a part of the names to measure", default="")
    parser.add_argument("--start", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.start:
        start(options.start)
        return
    print(environment("cpu"), f"load {os.getloadavg()[0]:.1f}")
    print("\nms a step, and the ratio to SVI; seconds to the first compiled step, and of this")
    print("process's processor time, with an empty cache and in the next process\n")
    columns = ["guide", "SVI", "captured", "compiled", "cold, s", "next process, s", "error"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for name, problem in problems().items():
        if options.only in name:
            pyro.clear_param_store()
            pyro.set_rng_seed(0)
            print(row(name, problem), flush=True)


if __name__ == "__main__":
    main()
