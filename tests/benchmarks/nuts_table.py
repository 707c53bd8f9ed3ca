"""Every model of the zoo by Pyro's NUTS and by `refine`: moments, log evidence, seconds.

    python -W ignore tests/benchmarks/any_model.py [--seconds 20] [--only NAME ...] [--moments]

Differences of means are in NUTS's standard deviations, ratios of standard deviations refine's over
NUTS's, each the worst over all coordinates; the smallest effective number of NUTS's draws says how
far its moments can be trusted. Whatever raises is told in its row, and the table goes on.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size
from timing import environment
from torch import Tensor

from pyro_naf.infer import draws, refine

sys.path.insert(0, str(Path(__file__).parents[1] / "infer"))
from zoo import ZOO, Case  # noqa: E402

Draws = dict[str, Tensor]
HEADER = """\
| model | D | worst difference of means (sd) | worst ratio of sds | NUTS's smallest ESS | \
log evidence | ELBO | truth | k-hat | s, NUTS | s, refine | failed |
|---|---|---|---|---|---|---|---|---|---|---|---|"""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise a TimeoutError where a block takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"stopped after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def by_nuts(case: Case, options: argparse.Namespace) -> Draws:
    model, args, kwargs = case.make()
    kernel = NUTS(model, max_tree_depth=options.depth, **case.nuts())
    mcmc = MCMC(kernel, options.samples, warmup_steps=options.warmup, disable_progbar=True)
    mcmc.run(*args, **kwargs)
    return mcmc.get_samples()


def by_refine(case: Case, options: argparse.Namespace) -> tuple[Draws, Any]:
    model, args, kwargs = case.make()
    result = refine(model, *args, seconds=options.seconds, seed=options.seed, progress=False,
                    **kwargs)  # fmt: skip
    with torch.no_grad():
        return draws(result.guide, *args, **kwargs), result


def attempt(run: Callable[[], Any], limit: int, seed: int) -> tuple[Any, float, str]:
    """What a run returns, its seconds, and what it raised."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    start = time.monotonic()
    try:
        with at_most(limit):
            return run(), time.monotonic() - start, ""
    except Exception as error:  # a failure is a result
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120].replace("|", "/")
        return None, time.monotonic() - start, reason


def coordinates(samples: Draws, flat: tuple[str, ...]) -> dict[str, Tensor]:
    """Draws of every coordinate by name; correlation matrices and such have constant ones."""
    found = {}
    for name, values in samples.items():
        if name not in flat:
            for i, column in enumerate(
                values.flatten(1).unbind(1) if values.dim() > 1 else [values]
            ):
                found[f"{name}[{i}]" if values.dim() > 1 else name] = column.double()
    return {name: column for name, column in found.items() if column.std() > 1e-6}


def compared(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[str, str]:
    """The worst difference of means and ratio of standard deviations, and where they are."""
    both = [name for name in theirs if name in ours]
    if not both:
        return "", ""
    means = {n: float((ours[n].mean() - theirs[n].mean()) / theirs[n].std()) for n in both}
    ratios = {n: float(ours[n].std() / theirs[n].std()) for n in both}
    mean = max(both, key=lambda n: abs(means[n]))
    ratio = max(both, key=lambda n: max(ratios[n], 1 / max(ratios[n], 1e-9)))
    return f"{means[mean]:+.2f} ({mean})", f"{ratios[ratio]:.2f} ({ratio})"


def row(name: str, case: Case, options: argparse.Namespace) -> tuple[str, list[str]]:
    """A line of the table, and a line for the moments of each coordinate."""
    limit, seed = options.limit, options.seed
    samples, nuts_s, nuts_error = attempt(lambda: by_nuts(case, options), limit, seed)
    refined, ours_s, our_error = attempt(lambda: by_refine(case, options), limit, seed)
    theirs = coordinates(samples or {}, case.flat)
    ours, result = refined or ({}, None)
    ours = coordinates(ours, case.flat)
    mean, ratio = compared(ours, theirs)
    ess = [float(effective_sample_size(x[None])) for x in theirs.values()]
    cells = [name, str(len(theirs) or len(ours)), mean, ratio, f"{min(ess):.0f}" if ess else ""]
    cells += [f"{getattr(result, n):.3f}" if result else "" for n in ("log_evidence", "elbo")]
    cells += [f"{case.evidence():.3f}" if case.evidence else ""]
    cells += [f"{result.khat:.2f}" if result else "", f"{nuts_s:.1f}", f"{ours_s:.1f}"]
    errors = {"NUTS": nuts_error, "refine": our_error}
    cells += ["; ".join(f"{who}: {error}" for who, error in errors.items() if error)]
    moments = [
        f"| {name} | {place} | {moment(theirs.get(place))} | {moment(ours.get(place))} |"
        for place in theirs | ours
    ]
    return "| " + " | ".join(cells) + " |", moments


def moment(column: Tensor | None) -> str:
    return "" if column is None else f"{float(column.mean()):.3g} ± {float(column.std()):.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(ZOO), default=list(ZOO), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=20.0, help="what refine is given")
    parser.add_argument("--limit", type=int, default=300, help="seconds for either, a model")
    parser.add_argument("--warmup", type=int, default=200)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--depth", type=int, default=8, help="of NUTS's trees, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--moments", action="store_true", help="of every coordinate, in a table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{environment('cpu')}\n\n{HEADER}", flush=True)
    moments = []
    for name in options.only:
        line, more = row(name, ZOO[name], options)
        moments += more
        print(line, flush=True)
    if options.moments:
        print("\n| model | latent | NUTS | refine |\n|---|---|---|---|", *moments, sep="\n")


if __name__ == "__main__":
    main()
