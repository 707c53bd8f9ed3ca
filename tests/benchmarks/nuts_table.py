"""Every model of the zoo by Pyro's NUTS and by `refine`: moments, log evidence, seconds.

    python -W ignore tests/benchmarks/nuts_table.py [--seconds 5] [--only NAME ...] [--again]

Both have a limit of CPU time; NUTS keeps the draws that it has by then. The table goes on where an
earlier run ended. Differences of means are in NUTS's standard deviations, with the standard error
that both sets of draws give; the worst is that with the most standard errors.
"""

from __future__ import annotations

import argparse
import json
import math
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

from pyro_naf.infer import refine

sys.path.insert(0, str(Path(__file__).parents[1] / "infer"))
from zoo import ZOO, Case

Draws = dict[str, Tensor]
OUTPUT = Path(__file__).parent / "results" / "nuts_table.md"
#: Draws of the refined guide, resampled by their weights where k-hat allows it.
DRAWS = 4000
#: Effective draws that NUTS must have of every coordinate for a comparison.
FEWEST = 20
HEADER = """\
| model | D | worst difference of means (sd), where | ratio of sds there | NUTS: draws | its ESS | \
seconds | refine: ELBO | log evidence | truth | k-hat | verdict | seconds | failed |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise a TimeoutError where a block takes more CPU time."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def by_nuts(case: Case, options: argparse.Namespace) -> Draws:
    """Constrained draws of one chain, as many as there are when the time is over."""
    model, args, kwargs = case.make()
    kernel = NUTS(model, max_tree_depth=options.depth, **case.nuts())
    kept: list[Draws] = []

    def keep(_: Any, draw: Draws, stage: str, __: int) -> None:
        if stage.startswith("Sample"):
            kept.append({name: value.detach().clone() for name, value in draw.items()})

    mcmc = MCMC(kernel, options.samples, options.warmup, disable_progbar=True, hook_fn=keep)
    try:
        with at_most(options.limit):
            mcmc.run(*args, **kwargs)
    except TimeoutError:
        if len(kept) < FEWEST:
            raise
    free = {name: torch.stack([draw[name] for draw in kept]) for name in kept[0]}
    return {name: kernel.transforms[name].inv(value) for name, value in free.items()}


def by_refine(case: Case, options: argparse.Namespace) -> Any:
    model, args, kwargs = case.make()
    with at_most(10 * options.seconds + 30):
        return refine(model, *args, seconds=options.seconds, seed=options.seed, compile=False,
                      progress=False, **kwargs)  # fmt: skip


def attempt(run: Callable[[], Any], seed: int) -> tuple[Any, float, str]:
    """What a run returns, its seconds of CPU, and what it raised."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    start = time.process_time()
    try:
        return run(), time.process_time() - start, ""
    except Exception as error:  # a failure is a result
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120].replace("|", "/")
        return None, time.process_time() - start, reason


def coordinates(samples: Draws, flat: tuple[str, ...]) -> dict[str, Tensor]:
    """Draws of every coordinate by name; correlation matrices and such have constant ones."""
    found = {}
    for name, values in samples.items():
        if name not in flat:
            columns = values.flatten(1).unbind(1) if values.dim() > 1 else [values]
            for i, column in enumerate(columns):
                found[f"{name}[{i}]" if values.dim() > 1 else name] = column.double()
    return {name: column for name, column in found.items() if column.std() > 1e-6}


def compared(ours: dict[str, Tensor], ess: float, theirs: dict[str, Tensor]) -> list[str]:
    """The worst difference of means, with its standard error, its place, and sds' ratio there."""
    effective = {name: float(effective_sample_size(x[None])) for name, x in theirs.items()}
    found = []
    for name in theirs.keys() & ours.keys():
        if effective[name] >= FEWEST:
            difference = float((ours[name].mean() - theirs[name].mean()) / theirs[name].std())
            error = math.sqrt(1 / min(effective[name], len(theirs[name])) + 1 / ess)
            found.append((abs(difference) / error, difference, error, name))
    if not found:
        return ["", ""]
    _, difference, error, name = max(found)
    ratio = float(ours[name].std() / theirs[name].std())
    return [f"{difference:+.2f} ± {error:.2f} ({name})", f"{ratio:.2f}"]


def row(name: str, options: argparse.Namespace) -> str:
    """A line of the table."""
    case = ZOO[name]
    samples, nuts_s, nuts_error = attempt(lambda: by_nuts(case, options), options.seed)
    result, our_s, our_error = attempt(lambda: by_refine(case, options), options.seed)
    theirs = coordinates(samples or {}, case.flat)
    cells = [name, "", "", ""]
    if result is not None:
        cells[1] = str(result.joint.dim)
        share = result.ess / result.after.num_particles
        ours = coordinates(result.even_draws(DRAWS, seed=0), case.flat)
        cells[2:] = compared(ours, share * DRAWS, theirs)
    ess = [float(effective_sample_size(x[None])) for x in theirs.values()]
    count = len(next(iter(theirs.values()))) if theirs else 0
    cells += [str(count), f"{min(ess):.0f}" if ess else "", f"{nuts_s:.1f}"]
    cells += [f"{getattr(result, n):.3f}" if result else "" for n in ("elbo", "log_evidence")]
    cells += [f"{case.evidence():.3f}" if case.evidence else ""]
    cells += [f"{result.khat:.2f}", result.verdict.partition(":")[0]] if result else ["", ""]
    errors = {"NUTS": nuts_error, "refine": our_error}
    cells += [f"{our_s:.1f}"]
    cells += ["; ".join(f"{who}: {error}" for who, error in errors.items() if error)]
    return "| " + " | ".join(cells) + " |"


def write(rows: dict[str, str], options: argparse.Namespace) -> None:
    head = (__doc__ or "").split("\n\n")
    text = f"# `nuts_table.py`: {head[0]}\n\n{head[2].strip()}\n\n{environment('cpu')}; NUTS: "
    text += f"{options.warmup} steps of warm-up, {options.samples} draws, trees of depth "
    text += f"{options.depth}, at most {options.limit:.0f} s; `refine(seconds={options.seconds:g}, "
    text += "compile=False)`. Seconds are of the process's own time.\n\n"
    before = OUTPUT.read_text() if OUTPUT.exists() else ""
    comments = "".join(before.partition("\n## ")[1:])  # what people wrote below the table stays
    OUTPUT.write_text("\n".join([text + HEADER, *rows.values()]) + "\n" + comments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(ZOO), default=list(ZOO), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=5.0, help="what refine is given")
    parser.add_argument("--limit", type=float, default=20, help="seconds for NUTS, a model")
    parser.add_argument("--warmup", type=int, default=80)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--depth", type=int, default=6, help="of NUTS's trees, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    parser.add_argument("--store", type=Path, default=Path("tests/benchmarks/output/nuts.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    time.monotonic = time.process_time  # limits are of the process's own time
    rows: dict[str, str] = json.loads(options.store.read_text()) if options.store.exists() else {}
    for name in options.only:
        if options.again or name not in rows:
            rows[name] = row(name, options)
            print(rows[name], flush=True)
            options.store.parent.mkdir(parents=True, exist_ok=True)
            options.store.write_text(json.dumps(rows))
            write(rows, options)


if __name__ == "__main__":
    main()
