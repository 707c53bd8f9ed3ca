"""How close guides come to posteriors with reference or exact draws, at equal time.

PYRO_NAF_DATA=... python -W ignore tests/benchmarks/posteriors.py --output FOLDER

With --large, the hierarchical posteriors of large/ in PYRO_NAF_DATA. Writes posteriors.json as it
goes on, and goes on from there if it is interrupted; prints tables in Markdown and draws
posteriors.png from it. One thread; see fits.py for how guides are trained.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pyro
import torch
from distances import sliced_wasserstein, wasserstein
from fits import GUIDES, PYRO, TURNKEY, Fit, clock, fit, names
from hierarchies import with_references
from matplotlib.figure import Figure
from pyro import poutine
from targets import Target, known, posteriordb
from timing import environment
from torch import Tensor

from pyro_naf.infer import importance_diagnostics

DRAWS = 4000
PARTICLES = 50_000

#: What stands for the truth itself among the guides: other draws of it, and its evidence.
EXACT = "exact draws"
GAP = "log evidence - ELBO"

Record = dict[str, Any]


def constrained_draws(target: Target, guide: Any, n: int = DRAWS) -> Tensor:
    """Draws of the guide ``(n, D)`` in the columns of the target's reference."""
    with torch.no_grad(), pyro.plate("_draws", n, dim=-1):
        replayed = poutine.replay(target.model, trace=poutine.trace(guide).get_trace(*target.args))
        trace = poutine.trace(replayed).get_trace(*target.args)
    sites = {k: s["value"] for k, s in trace.nodes.items() if s["type"] == "sample"}
    return target.columns(sites)


def measure(name: str, target: Target, seconds: float, seed: int = 0) -> Record:
    """One fit and how far it is from the truth; what a guide cannot do is recorded as its error."""
    start = clock()
    try:
        found = fit(name, target, seconds, seed)
    except Exception as error:  # a guide that fails must not end the night's run
        return {"error": f"training: {error!r}"}
    record: Record = {
        "steps": found.steps,
        "skipped": found.skipped,
        "learning_rate": found.learning_rate,
        "seconds": round(clock() - start, 1),
        **found.notes,
    }
    for step in (_distances, _weights):
        try:
            record |= step(target, found)
        except Exception as error:
            record["error"] = f"{step.__name__[1:]}: {error!r}"
    return record


def _distances(target: Target, found: Fit) -> Record:
    pyro.set_rng_seed(0)
    draws, reference = constrained_draws(target, found.guide), target.sample(DRAWS)
    w1 = wasserstein(draws, reference)
    record = {
        "w1": float(w1.mean()),
        "w1_max": float(w1.max()),
        "sliced_w1": sliced_wasserstein(draws, reference),
    }
    if target.multimodal:
        record["modes"] = target.mode_masses(draws).tolist()
    return record


def _weights(target: Target, found: Fit) -> Record:
    pyro.set_rng_seed(0)
    result = importance_diagnostics(
        target.model, found.guide, *target.args, num_particles=PARTICLES
    )
    return {
        "khat": result.khat,
        "ess": result.ess / PARTICLES,
        "elbo": result.elbo,
        "elbo_se": result.elbo_se,
        "log_evidence": result.log_evidence,
    }


class Results:
    """Records by target and guide, in a file that holds every one that was finished."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path = path
        self.all: dict[str, dict[str, Record]] = {}
        self.head = {"environment": environment("cpu"), "seconds": seconds}
        if path.exists():
            stored = json.loads(path.read_text())
            if stored["seconds"] != seconds:
                raise SystemExit(f"{path} is of fits of {stored['seconds']} s, not of {seconds}")
            self.all, self.head = stored.pop("results"), stored

    def put(self, target: str, guide: str, record: Record) -> None:
        self.all.setdefault(target, {})[guide] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({**self.head, "results": self.all}, indent=1) + "\n")
        new.replace(self.path)

    def get(self, target: str, guide: str) -> Record:
        return self.all.get(target, {}).get(guide, {})

    def guides(self) -> list[str]:
        found = {guide for records in self.all.values() for guide in records}
        return [name for name in (*TURNKEY, *GUIDES) if name in found]

    def gap(self, target: str, guide: str) -> float:
        """Log evidence - ELBO: known, or the largest that guides with even weights estimate.

        Estimates are unbiased, but one that has lost a mode hardly ever shows it.
        """
        records = self.all[target]
        exact = records.get(EXACT, {}).get("log_evidence")
        weighed = [r for r in records.values() if "ess" in r]
        even = [r for r in weighed if r["ess"] > 0.1] or weighed
        if "elbo" not in records.get(guide, {}):
            return math.nan
        if exact is None:
            exact = max(r["log_evidence"] for r in even)
        return float(exact - records[guide]["elbo"])

    def table(self, quantity: str) -> str:
        """Markdown: targets down, guides across."""
        guides = [*self.guides(), *([EXACT] if "w1" in quantity else [])]
        lines = [f"| {quantity} | " + " | ".join(guides) + " |", "|---" * (len(guides) + 1) + "|"]
        for target in self.all:
            shown = " | ".join(self._shown(target, guide, quantity) for guide in guides)
            lines.append(f"| {target} | {shown} |")
        return "\n".join(lines)

    def _shown(self, target: str, guide: str, quantity: str) -> str:
        record = self.get(target, guide)
        if not record:
            return ""
        value = self.gap(target, guide) if quantity == GAP else record.get(quantity, math.nan)
        return "failed" if math.isnan(value) else f"{value:.3f}"


def truth(target: Target) -> Record:
    """The distances between two sets of draws of the truth: no guide can be much nearer."""
    pyro.set_rng_seed(0)
    both = target.sample(2 * DRAWS)
    draws, reference = both[::2], both[1::2]
    w1 = wasserstein(draws, reference)
    record: Record = {
        "w1": float(w1.mean()),
        "w1_max": float(w1.max()),
        "sliced_w1": sliced_wasserstein(draws, reference),
    }
    return record | {"log_evidence": target.log_evidence, "num_modes": target.num_modes}


def bars(results: Results) -> str:
    """Markdown: the turnkey fit against what it has to reach, target by target."""
    lines = [
        "| target | W1 <= 0.06 | k-hat < 0.7 | gap <= 0.05 | best Pyro guide's W1, gap |",
        "|---" * 5 + "|",
    ]
    for target, records in results.all.items():
        ours = [name for name in TURNKEY if "elbo" in records.get(name, {})]
        if not ours:
            continue
        # With several modes, the fit that is told so.
        record, gap = records[ours[-1]], results.gap(target, ours[-1])
        others = [name for name in PYRO if "elbo" in records.get(name, {})]
        w1 = min((records[name]["w1"] for name in others), default=math.nan)
        least = min((results.gap(target, name) for name in others), default=math.nan)
        cells = [_met(record["w1"], 0.06), _met(record["khat"], 0.7), _met(gap, 0.05)]
        lines.append(f"| {target} | {' | '.join(cells)} | {w1:.3f}, {least:.3f} |")
    return "\n".join(lines)


def _met(value: float, bar: float) -> str:
    return f"{value:.3f}" + ("" if value <= bar else ": MISSED")


def chart(results: Results) -> Figure:
    """Targets down; W1 and the gap of every guide on logarithmic axes."""
    figure = Figure(figsize=(12, 0.4 * len(results.all) + 2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    rows = range(len(results.all))
    for guide, marker in zip(results.guides(), "o*sDv^<>PX", strict=False):
        style = {"label": guide, "alpha": 0.8, "color": "#D55E00" if guide in TURNKEY else None}
        w1 = [results.get(target, guide).get("w1", math.nan) for target in results.all]
        gaps = [min(max(results.gap(target, guide), 1e-5), 1e3) for target in results.all]
        panels[0].plot(w1, rows, marker, **style)
        panels[1].plot(gaps, rows, marker, **style)
    floor = [results.get(target, EXACT)["w1"] for target in results.all]
    panels[0].plot(floor, rows, "|", color="black", markersize=12, label="two sets of exact draws")
    panels[0].axvline(0.06, color="grey", linewidth=0.8)
    panels[1].axvline(0.05, color="grey", linewidth=0.8)
    panels[0].set_yticks(rows, [target.split("-")[-1] for target in results.all])
    panels[0].set_xlabel("W1 of the marginals, in standard deviations")
    panels[1].set_xlabel("log evidence - ELBO, nats (from 1e-5 to 1e3)")
    for axes in panels:
        axes.set_xscale("log")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


def chosen(given: str | None, available: list[str], kind: str) -> list[str]:
    """Those of the names that the option lists, all if it does not; ends are enough."""
    if given is None:
        return available
    found = {g: [n for n in available if n == g or n.endswith(f"-{g}")] for g in given.split(",")}
    if unknown := [g for g, names in found.items() if not names]:
        raise SystemExit(f"unknown {kind}: {', '.join(unknown)}; there are {', '.join(available)}")
    return [name for names in found.values() for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", help="names with commas between; default: all")
    parser.add_argument("--guides", help="the same, with semicolons between")
    parser.add_argument("--seconds", type=float, default=40.0, help="for each fit")
    parser.add_argument("--seed", type=int, default=0, help="of the fits; one folder for each")
    parser.add_argument("--large", action="store_true", help="the hierarchical ones of 26 to 144 D")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    parser.add_argument("--again", action="store_true", help="measure what was measured before")
    options = parser.parse_args()
    torch.set_num_threads(1)
    targets = known()
    folder = os.environ.get("PYRO_NAF_DATA")
    if options.large and folder:
        targets = with_references(Path(folder))
    elif folder:
        targets = posteriordb(Path(folder)) | targets
    else:
        print("PYRO_NAF_DATA is not set: only targets with exact samplers", file=sys.stderr)
    asked = None if options.guides is None else options.guides.split(";")
    if asked and (unknown := set(asked) - {*TURNKEY, *GUIDES}):
        raise SystemExit(f"unknown guides: {unknown}; there are {[*TURNKEY, *GUIDES]}")
    results = Results(options.output / "posteriors.json", options.seconds)
    for name in chosen(options.targets, list(targets), "targets"):
        results.put(name, EXACT, truth(targets[name]))
        for guide in names(targets[name]):
            done = results.get(name, guide)
            if (asked and guide not in asked) or (done and not options.again):
                continue
            record = measure(guide, targets[name], options.seconds, options.seed)
            results.put(name, guide, record)
            shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}
            print(name, guide, json.dumps(shown), flush=True)
    print(f"\n{results.head['environment']}; {options.seconds:g} s a fit\n\n{bars(results)}")
    for quantity in ("w1", "sliced_w1", GAP, "khat", "ess"):
        print(f"\n{results.table(quantity)}")
    chart(results).savefig(options.output / "posteriors.png", dpi=150)


if __name__ == "__main__":
    main()
