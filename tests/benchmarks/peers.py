"""Neural autoregressive flows side by side: this package's, Pyro's and zuko's.

    python tests/benchmarks/peers.py [--quick] [--json FILE]

One layer each, hidden width 100, 16 units a dimension, float32 unless said. Every cell is measured
here, in one process, the contenders taking turns; times are medians with their range. Needs zuko
(in the ``dev`` extra). ``--quick`` leaves out the largest inverse (zuko's takes a minute a call).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.distributions.transforms as pyro_transforms
import torch
import zuko
from torch import Tensor, nn

import pyro_naf

HIDDEN, UNITS, BATCH = 100, 16, 1000


class Contender:
    """A layer behind one interface: ``forward``, ``log_det`` and ``inverse``."""

    def __init__(self, name: str, make: Callable[[int], nn.Module]) -> None:
        self.name, self.make = name, make


class Zuko(nn.Module):
    """zuko's flows map data to base and build their transform at every call."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.flow = zuko.flows.NAF(dim, transforms=1, hidden_features=[HIDDEN])

    @property
    def transform(self) -> Any:
        return self.flow().transform

    def __call__(self, x: Tensor) -> Tensor:
        return self.transform(x)

    def value_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform.call_and_ladj(x)

    def inverse(self, y: Tensor) -> Tensor:
        return self.transform.inv(y)


class OfPyro(nn.Module):
    """A Pyro transform, its cache emptied before every call by a fresh input."""

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.transform = transform

    def __call__(self, x: Tensor) -> Tensor:
        return self.transform(x.clone())

    def value_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone()
        y = self.transform(x)
        return y, self.transform.log_abs_det_jacobian(x, y)

    def inverse(self, y: Tensor) -> Tensor:
        return self.transform.inv(y.clone())


CONTENDERS = [
    Contender(
        "pyro_naf DSF",
        lambda d: OfPyro(pyro_naf.deep_sigmoidal_flow(d, [HIDDEN], UNITS)),
    ),
    Contender(
        "pyro_naf DDSF",
        lambda d: OfPyro(pyro_naf.deep_dense_sigmoidal_flow(d, [HIDDEN], UNITS)),
    ),
    Contender(
        "Pyro NAF",
        lambda d: OfPyro(pyro_transforms.neural_autoregressive(d, [HIDDEN], width=UNITS)),
    ),
    Contender("zuko NAF", Zuko),
]


def clock(task: Callable[[], Any]) -> float:
    start = time.perf_counter()
    task()
    return 1e3 * (time.perf_counter() - start)


def interleaved(tasks: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each task, the tasks taking turns; the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            spent = clock(task)
            if turn:
                times[name].append(spent)
    return times


def training_pass(layer: Any, x: Tensor) -> None:
    y, log_det = layer.value_and_log_det(x)
    (log_det.sum() - 0.5 * y.pow(2).sum()).backward()


def without_grad(task: Callable[[], Any]) -> Callable[[], Any]:
    return torch.no_grad()(task)


def attempt(measure: Callable[[], Any]) -> Any:
    """The measurement, or the kind of error where a contender cannot do it at all."""
    try:
        return measure()
    except NotImplementedError:
        return "none"


def speed(dims: list[int], repeats: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for dim in dims:
        torch.manual_seed(0)
        layers = {c.name: c.make(dim) for c in CONTENDERS}
        x = torch.randn(BATCH, dim)
        both_ways = {n: m for n, m in layers.items() if n != "Pyro NAF"}
        jobs: dict[str, dict[str, Callable[[], Any]]] = {
            "forward": {n: without_grad(partial(m, x)) for n, m in layers.items()},
            "forward + backward": {n: partial(training_pass, m, x) for n, m in layers.items()},
            "inverse": {n: without_grad(partial(m.inverse, x)) for n, m in both_ways.items()},
        }
        for job, tasks in jobs.items():
            slow = job == "inverse" and dim > 20
            times = interleaved(tasks, 2 if slow else repeats)
            for name, values in times.items():
                result.setdefault(name, {})[f"{job} D={dim}"] = {
                    "median_ms": statistics.median(values),
                    "range_ms": [min(values), max(values)],
                }
    return result


@torch.no_grad()
def largest_rising(layer: Any) -> float:
    """The largest |x| on a grid of powers of ten below which the output rises, both ways."""
    largest = 0.0
    for exponent in range(20):
        x = 10.0**exponent * torch.tensor([[1.0], [1.25], [-1.0], [-1.25]])
        y = layer(x).squeeze(-1)
        if not (torch.isfinite(y).all() and y[1] > y[0] and y[3] < y[2]):
            break
        largest = 10.0**exponent
    return largest


@torch.no_grad()
def inverse_residual(make: Callable[[int], Any], scale: float) -> float:
    """Largest relative residual |f(x') - y| / max(1, |y|), y ~ N(0, scale^2), float64, D = 6."""
    torch.manual_seed(0)
    layer = make(6).double()
    y = scale * torch.randn(BATCH, 6).double()
    residual = (layer(layer.inverse(y)) - y).abs() / y.abs().clamp(min=1)
    return float(residual.max())


def ten_layers(make: Callable[[int], Any]) -> float:
    """Smallest standard deviation of a dimension after ten fresh layers on N(0, I), D = 6."""
    torch.manual_seed(0)
    x = torch.randn(20_000, 6)
    with torch.no_grad():
        for _ in range(10):
            x = make(6)(x)
    return float(x.std(0).min())


def stale_log_det(make: Callable[[int], Any]) -> float:
    """Error of the log-determinant at x when the last call was at another point, D = 3."""
    torch.manual_seed(0)
    layer = make(3).double()
    x, other = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    transform = layer.transform
    with torch.no_grad():
        y = transform(x)
        right = transform.log_abs_det_jacobian(x, y)
        transform(other)
        return float((transform.log_abs_det_jacobian(x, y) - right).abs().max())


def gradient_error(make: Callable[[int], Any]) -> float:
    """Largest relative error of d sum(f^{-1}(y)) / d(parameter), against central differences."""
    torch.manual_seed(0)
    layer = make(3).double()
    y = torch.randn(8, 3).double()
    parameters = [p for p in layer.parameters() if p.requires_grad]
    layer.inverse(y).sum().backward()
    worst = 0.0
    for p in parameters:
        index = int(p.grad.abs().argmax()) if p.grad is not None else 0
        flat, step = p.view(-1), 1e-3
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                flat[index] += sign * step
                values.append(float(layer.inverse(y).sum()))
                flat[index] -= sign * step
        numeric = (values[0] - values[1]) / (2 * step)
        found = 0.0 if p.grad is None else float(p.grad.view(-1)[index])
        worst = max(worst, abs(found - numeric) / max(abs(numeric), 1e-3))
    return worst


def properties(contender: Contender) -> dict[str, Any]:
    make = contender.make
    torch.manual_seed(0)
    return {
        "rises up to |x| =": largest_rising(make(1)),
        "inverse residual, y ~ N(0, 1)": attempt(lambda: inverse_residual(make, 1.0)),
        "inverse residual, y ~ N(0, 30^2)": attempt(lambda: inverse_residual(make, 30.0)),
        "gradient through inverse, relative error": attempt(lambda: gradient_error(make)),
        "log-det after another call, error": stale_log_det(make),
        "sd after ten fresh layers": ten_layers(make),
    }


def show(value: Any) -> str:
    if isinstance(value, dict):
        lowest, highest = value["range_ms"]
        return f"{value['median_ms']:.3g} ms ({lowest:.3g}-{highest:.3g})"
    return value if isinstance(value, str) else f"{value:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="dimensions 6 and 21 only")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    timed = speed([6, 21] if options.quick else [6, 21, 43], options.repeats)
    table = {c.name: properties(c) | timed[c.name] for c in CONTENDERS}
    rows = list(table[CONTENDERS[0].name])
    print("| | " + " | ".join(table) + " |\n|---" * 1 + "|---" * len(table) + "|")
    for row in rows:
        print(f"| {row} | " + " | ".join(show(t.get(row, "none")) for t in table.values()) + " |")
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(table, file, indent=1)


if __name__ == "__main__":
    main()
