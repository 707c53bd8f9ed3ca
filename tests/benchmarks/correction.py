"""Exact draws of centred eight schools: what ``mcmc_correct`` costs, against NUTS on the raw model.

    python -W ignore tests/benchmarks/correction.py [--chains 4] [--samples 1000] [--only refined]

NUTS behind a standard normal in unconstrained space is NUTS on the raw model, counted alike.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from pyro.infer.autoguide import AutoDiagonalNormal
from timing import environment

from pyro_naf.eight_schools import REFERENCE, model
from pyro_naf.infer import Correction, mcmc_correct, refine


def raw() -> Any:
    """A guide whose base space is the model's own."""
    guide = AutoDiagonalNormal(model, init_scale=1.0)
    guide()
    with torch.no_grad():
        guide.loc.zero_()
    return guide


def worst_mean(result: Correction) -> float:
    """The largest error of a mean, in standard deviations of the reference."""
    samples = result.get_samples()
    columns = {"mu": samples["mu"], "tau": samples["tau"]}
    columns |= {f"theta[{i}]": samples["theta"][:, i] for i in range(8)}
    return max(
        abs(float(x.mean()) - REFERENCE[n].mean) / REFERENCE[n].sd for n, x in columns.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of the names of the chains to run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    refined = refine(model, seed=options.seed, progress=False)
    print(f"{environment('cpu')}; refined in {time.monotonic() - start:.0f} s: {refined.verdict}\n")
    print(
        "| chains | R-hat | worst mean error | ESS | evaluations per effective draw | divergences "
        "| CPU seconds |\n|---|---|---|---|---|---|---|"
    )
    runs = {
        'refined guide, "imh"': (refined.guide, "imh"),
        'refined guide, "neutra"': (refined.guide, "neutra"),
        "NUTS on the raw model": (raw(), "neutra"),
    }
    for name in [name for name in runs if options.only in name]:
        guide, method = runs[name]
        begin = time.process_time()
        result = mcmc_correct(
            model,
            guide,
            num_samples=options.samples,
            num_chains=options.chains,
            method=method,
            seed=options.seed,
            progress=False,
        )
        print(
            f"| {name} | {result.max_rhat:.3f} | {worst_mean(result):.3f} | {result.min_ess:.0f} "
            f"| {result.evaluations / result.min_ess:.1f} | {result.divergences} "
            f"| {time.process_time() - begin:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
