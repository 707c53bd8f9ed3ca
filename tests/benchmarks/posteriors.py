"""The turnkey fit, ``refine(model)``, on posteriors with reference or exact draws.

PYRO_NAF_DATA=... python tests/benchmarks/posteriors.py --output posteriors.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from targets import Target, known, posteriordb
from torch import Tensor

from pyro_naf.infer import refine

DRAWS = 4000


def constrained_draws(target: Target, guide: Any, n: int = DRAWS) -> Tensor:
    """Draws of the guide ``(n, D)`` in the columns of the target's reference."""
    with torch.no_grad(), pyro.plate("_draws", n, dim=-1):
        replayed = poutine.replay(target.model, trace=poutine.trace(guide).get_trace(*target.args))
        trace = poutine.trace(replayed).get_trace(*target.args)
    sites = {k: s["value"] for k, s in trace.nodes.items() if s["type"] == "sample"}
    return target.columns(sites)


def wasserstein(draws: Tensor, reference: Tensor) -> Tensor:
    """W1 of every parameter in sds of the reference, as many draws of each ``(n, D)``."""
    gap = (draws.sort(0).values - reference.sort(0).values).abs().mean(0)
    return gap / reference.std(0)


def measure(target: Target, **options: Any) -> dict[str, Any]:
    """One fit with its defaults, and how far it is from the truth."""
    pyro.clear_param_store()
    start = time.monotonic()
    result = refine(target.model, *target.args, seed=0, progress=False, **options)
    seconds = time.monotonic() - start
    draws, reference = constrained_draws(target, result.guide), target.sample(DRAWS)
    w1 = wasserstein(draws, reference)
    record = {
        "target": target.name,
        "w1": float(w1.mean()),
        "w1_max": float(w1.max()),
        "khat": result.khat,
        "khat_before": result.before.khat,
        "ess": result.ess / result.after.num_particles,
        "elbo": result.elbo,
        "log_evidence": result.log_evidence,
        "missed": result.missed,
        "steps": result.steps,
        "seconds": seconds,
        "verdict": result.verdict,
    }
    if target.log_evidence is not None:
        record["kl"] = target.log_evidence - result.elbo
    if target.num_modes > 1:
        record["modes"] = target.mode_masses(draws).tolist()
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", help="names with commas between; default: all")
    parser.add_argument("--tempering", type=float, default=1.0)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    targets = known()
    if folder := os.environ.get("PYRO_NAF_DATA"):
        targets |= posteriordb(Path(folder))
    else:
        print("PYRO_NAF_DATA is not set: only targets with exact samplers", file=sys.stderr)
    names = options.targets.split(",") if options.targets else list(targets)
    records = []
    for name in names:
        records.append(measure(targets[name], tempering=options.tempering))
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in records[-1].items()}
        print(json.dumps(shown), flush=True)
        if options.output:
            options.output.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
