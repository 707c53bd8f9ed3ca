"""A step of `refine` on eight schools, and what it spends beside arithmetic.

    OMP_NUM_THREADS=1 python -W ignore tests/benchmarks/steps.py [--numpyro PYTHON]

Contenders take turns: a climbing and a landing step of 64 draws by a captured graph and by
autograd, both with the compiled log-density, and NumPyro's AutoBNAFNormal in a loop of Python, in a
process of its own with the interpreter that is given (it needs NumPyro and JAX).
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from timing import Measured, environment

from pyro_naf.eight_schools import model
from pyro_naf.infer import AutoDSFNormal
from pyro_naf.infer import objective as objectives
from pyro_naf.infer.joint import Joint
from pyro_naf.infer.objective import Objective
from pyro_naf.infer.training import Training

DRAWS, TURNS, STEPS = 64, 15, 200
#: Limits: of a climbing step in ms, over NumPyro's step, and of a landing over a climbing step.
BARS = {"ms": 1.0, "NumPyro": 2.0, "landing": 2.0}

NUMPYRO = f"""
import os, sys, time
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoBNAFNormal
y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
sigma = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
def model():
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)
svi = SVI(model, AutoBNAFNormal(model), numpyro.optim.ClippedAdam(1e-3), Trace_ELBO({DRAWS}))
state = svi.init(jax.random.PRNGKey(0))
step = jax.jit(svi.update)
for line in sys.stdin:
    start = time.perf_counter()
    for _ in range({STEPS}):
        state, loss = step(state)
    loss.block_until_ready()
    print((time.perf_counter() - start) / {STEPS}, flush=True)
"""


def training_of_refine() -> tuple[Training, Joint]:
    """A training as `refine` sets it up, its log-density compiled."""
    torch.manual_seed(0)
    guide = AutoDSFNormal(model, num_transforms=2, full_rank=True)
    guide()
    joint = Joint(model)
    joint.capture(DRAWS + DRAWS // 2)
    assert joint.graph is not None
    joint.graph.compile()
    while not joint.graph.is_ready() and joint.graph.worker is not None:
        time.sleep(0.2)
    return Training(Objective(guide, joint, DRAWS), 1e-3), joint


def seconds_a_step(training: Training, phase: str, after: float) -> float:
    """Seconds of a step, by a graph where one may be captured ``after`` some steps."""
    objectives._CAPTURED_AFTER = after
    objective = training.objective
    graphs = dict(objective._graphs)
    if after == math.inf:
        objective._graphs.clear()
    start = time.perf_counter()
    for step in range(STEPS):
        training._step(objective.of(phase, step))
    took = (time.perf_counter() - start) / STEPS
    objective._graphs.update(graphs)
    return took


def of_process(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None and process.stdout is not None
    print(file=process.stdin, flush=True)
    return float(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--numpyro", help="an interpreter of Python that has NumPyro")
    given = parser.parse_args()
    torch.set_num_threads(1)
    training, joint = training_of_refine()
    tasks: dict[str, Callable[[], float]] = {}
    for phase in ("climb", "land"):
        for name, after in ((phase, objectives._CAPTURED_AFTER), (f"{phase}, autograd", math.inf)):
            tasks[name] = partial(seconds_a_step, training, phase, after)
    if given.numpyro:
        command = [given.numpyro, "-W", "ignore", "-c", NUMPYRO]
        pipe = subprocess.PIPE
        other = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        tasks["NumPyro AutoBNAFNormal"] = partial(of_process, other)
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(TURNS + 1):
        for name, task in tasks.items():
            took = 1e3 * task()
            if turn:  # the first captures and compiles
                times[name].append(took)
    weights = sum(weight.numel() for weight in training.weights)
    print(f"{environment('cpu')}\n\n{weights} weights, {DRAWS} draws, density {joint.way}\n")
    print("| step | ms | over the step by autograd |\n|---|---|---|")
    found = {name: Measured.of(ms) for name, ms in times.items()}
    for name, measured in found.items():
        peer = found.get(f"{name}, autograd")
        ratio = f"{measured.median / peer.median:.2f}" if peer else "-"
        print(f"| {name} | {measured} | {ratio} |")
    climb, land = found["climb"].median, found["land"].median
    print(f"\nA climbing step takes {climb:.2f} ms (limit {BARS['ms']:g}), a landing step")
    print(f"{land / climb:.2f} times as long (limit {BARS['landing']:g}).")
    if given.numpyro:
        ratio = climb / found["NumPyro AutoBNAFNormal"].median
        print(f"Over NumPyro's step: {ratio:.2f} (limit {BARS['NumPyro']:g}).")


if __name__ == "__main__":
    sys.exit(main())
