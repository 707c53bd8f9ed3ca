"""A small problem: the flow's share of one SVI step on eight schools, against Pyro's IAF guide.

    python -W ignore tests/benchmarks/small.py [--profile]

The share is what a step takes beyond the same step with AutoDiagonalNormal.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoIAFNormal
from pyro.optim import Adam
from timing import Measured, environment, interleaved

from pyro_naf.eight_schools import model
from pyro_naf.infer import AutoDDSFNormal, AutoDSFNormal

BASE, PEER = "AutoDiagonalNormal", "AutoIAFNormal"
#: The bar: the flow's share of a step over that of Pyro's guide with as many transforms.
BAR = 1.5
#: The hidden width that Pyro's guide takes for ten latents.
IAF_WIDTH = 31

GUIDES: dict[str, Callable[[str], Any]] = {
    BASE: lambda name: renamed(AutoDiagonalNormal, name)(model),
    PEER: lambda name: renamed(AutoIAFNormal, name)(model, num_transforms=2),
    "AutoDSFNormal": lambda name: renamed(AutoDSFNormal, name)(model, num_transforms=2),
    f"AutoDSFNormal, hidden {IAF_WIDTH}": lambda name: renamed(AutoDSFNormal, name)(
        model, num_transforms=2, hidden_dims=[IAF_WIDTH]
    ),
    "AutoDDSFNormal": lambda name: renamed(AutoDDSFNormal, name)(model, num_transforms=2),
}


def renamed(guide: type, name: str) -> type:
    """The same class under a name of its own: Pyro's param store goes by names."""
    return type("".join(filter(str.isalnum, name)), (guide,), {})


def steps(particles: int) -> dict[str, Callable[[], float]]:
    """An SVI step with every guide, past its first."""
    pyro.clear_param_store()
    found: dict[str, Callable[[], float]] = {}
    for name, make in GUIDES.items():
        pyro.set_rng_seed(0)
        elbo = Trace_ELBO(
            num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1
        )
        found[name] = SVI(model, make(name), Adam({"lr": 1e-3}), elbo).step
        found[name]()
    return found


def table(times: dict[str, list[float]]) -> str:
    """Steps, shares and their ratio to the peer's; a share is a median of differences by turns."""
    shares = {
        name: statistics.median(t - b for t, b in zip(values, times[BASE], strict=True))
        for name, values in times.items()
    }
    lines = [
        "| guide | step, ms | flow's share, ms | over AutoIAFNormal's | bar |",
        "|---|---|---|---|---|",
    ]
    for name, values in times.items():
        ratio = shares[name] / shares[PEER]
        judged = name.startswith("AutoDSF")
        verdict = f"<= {BAR}: {'met' if ratio <= BAR else 'MISSED'}" if judged else "-"
        row = (name, str(Measured.of(values)), f"{shares[name]:.3f}", f"{ratio:.2f}", verdict)
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def profile(step: Callable[[], float], repeats: int = 200) -> None:
    """Where a step spends its time: Python's functions, then torch's operators."""
    profiler = cProfile.Profile()
    profiler.runcall(lambda: [step() for _ in range(repeats)])
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(45)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as operators:
        for _ in range(repeats):
            step()
    print(operators.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--profile", action="store_true", help="profile AutoDSFNormal's step instead"
    )
    parser.add_argument("--turns", type=int, default=300)
    options = parser.parse_args()
    pyro.enable_validation(False)
    if options.profile:
        profile(steps(1)["AutoDSFNormal"])
        return
    print(environment("cpu"))
    measure = partial(interleaved, turns=(options.turns, options.turns))
    for particles in (1, 8):
        print(f"\n### {particles} particle{'s' if particles > 1 else ''}\n")
        print(table(measure(steps(particles))))


if __name__ == "__main__":
    main()
