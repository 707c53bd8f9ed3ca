"""Amortised guides on the ten tasks of sbibm (Lueckmann et al. 2021 [arXiv:2101.04653]).

A guide with a context learns from a fixed number of simulations; its draws for an observation are
told from the reference posterior by a classifier (C2ST: 0.5 is perfect, 1 useless). Where sbibm is
installed (``pip install --no-deps sbibm``), its ten observations and reference draws are read;
elsewhere observations are simulated from seeds 1 to 10, and references are our own. Run

    python tests/benchmarks/sbibm.py --simulations 10000 --output tests/benchmarks/results/sbibm.md
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyro
import torch
from published import NPE
from references import official
from simulators import TASKS, Task
from torch import Tensor

from pyro_naf.infer import AutoDSFNormal, NormalScores, SimulationFit, fit_simulations


class Row(NamedTuple):
    """What one guide has come to."""

    task: str
    simulations: int
    scores: list[float]
    fit: SimulationFit
    seconds: float

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)

    @property
    def published(self) -> float | None:
        """NPE's mean over the observations that this row has."""
        found = NPE.get((self.task, self.simulations), [])[: len(self.scores)]
        return sum(found) / len(found) if found else None

    def __str__(self) -> str:
        ends = f"{min(self.scores):.3f} to {max(self.scores):.3f}"
        published = "-" if self.published is None else f"{self.published:.3f}"
        return (
            f"| {self.task} | {self.simulations} | {self.mean:.3f} | {ends} | {published} | "
            f"{len(self.scores)} | {self.fit.epochs} | {self.seconds:.0f} |"
        )


def c2st(one: Tensor, two: Tensor, folds: int = 5) -> float:
    """Accuracy of a classifier, cross-validated, as sbibm has it: networks of 10 D units.

    Fewer of its five folds are as large, so that the expectation is the same.
    """
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    one, two = (one - one.mean(0)) / one.std(0), (two - one.mean(0)) / one.std(0)
    rows = torch.cat([one, two]).numpy()
    labels = torch.cat([torch.zeros(len(one)), torch.ones(len(two))]).numpy()
    units = 10 * rows.shape[1]
    network = MLPClassifier((units, units), max_iter=1000, random_state=1)
    splits = list(KFold(5, shuffle=True, random_state=1).split(rows))[:folds]
    return float(cross_val_score(network, rows, labels, cv=splits, scoring="accuracy").mean())


def fitted(task: Task, simulations: int, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """Our conditional DSF guide, trained on simulations; and how that went."""
    torch.manual_seed(seed)
    pyro.clear_param_store()
    theta = task.prior.sample([simulations])
    x = task.simulate(theta)

    def model(x: Tensor) -> Tensor:
        return pyro.sample("theta", task.prior)

    context = {"context_fn": NormalScores(x), "context_dim": x.shape[1]}
    guide = AutoDSFNormal(model, full_rank=True, inverse=True, **context)
    return guide, fit_simulations(guide, {"theta": theta}, x, seed=seed, **options)


def observations(task: Task, count: int, draws: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Observations with draws of their posteriors: those of sbibm, or our own."""
    for number in range(1, count + 1):
        torch.manual_seed(number)
        found = official(task, number)
        if found is not None:
            yield found[0], found[1][:draws]
        else:
            x = task.simulate(task.prior.sample([1]))[0]
            yield x, task.reference(x, draws)


def measured(name: str, simulations: int, options: Any) -> Row:
    """Fit a guide to a task and score it: three observations at least."""
    task, begin = TASKS[name](), time.process_time()
    scores: list[float] = []
    guide, fit = fitted(task, simulations, max_epochs=options.epochs)
    fitted_at = time.process_time()
    for x, reference in observations(task, options.observations, options.draws):
        with torch.no_grad(), pyro.plate("draws", options.draws):
            scores.append(c2st(reference, guide(x)["theta"], options.folds))
        if len(scores) >= 3 and time.process_time() - fitted_at > options.seconds:
            break
    return Row(name, simulations, scores, fit, fitted_at - begin)


def page(rows: list[Row], options: Any) -> str:
    """The rows as a page of Markdown, with what they were measured on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    compared = [row for row in rows if row.published is not None]
    reached = sum(row.mean <= row.published for row in compared)
    source = "sbibm's own" if official(TASKS["two_moons"](), 1) is not None else "our own"
    return f"""# `sbibm.py`: amortised guides on the tasks of sbibm

```bash
OMP_NUM_THREADS=1 python {" ".join(sys.argv)}
```

C2ST of a conditional DSF guide (`fit_simulations`, one seed, the same settings for all tasks), a
mean over observations with {options.draws} draws each, {options.folds} of 5 folds; observations and
references are {source}. NPE's published mean is over the same observations. 0.5 is perfect.
Commit {commit}, {datetime.date.today()}, one thread of {platform.machine()}, torch
{torch.__version__}. Not above the published NPE: {reached} of {len(compared)}.

| task | simulations | C2ST | its range | published NPE | observations | epochs | CPU s of the fit |
|---|---|---|---|---|---|---|---|
{chr(10).join(map(str, rows))}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", choices=[*TASKS, []], default=list(TASKS))
    parser.add_argument("--simulations", type=int, nargs="+", default=[10_000])
    parser.add_argument("--epochs", type=int, default=500, help="at most")
    parser.add_argument("--observations", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=600, help="of scoring a task, roughly")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--folds", type=int, default=5, help="of the five of a C2ST")
    parser.add_argument("--output", type=Path, help="Markdown, written anew after each row")
    options = parser.parse_args()
    rows: list[Row] = []
    for simulations in options.simulations:
        for name in options.tasks:
            rows.append(measured(name, simulations, options))
            print(rows[-1], flush=True)
            if options.output is not None:
                options.output.write_text(page(rows, options))


if __name__ == "__main__":
    main()
