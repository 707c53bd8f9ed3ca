"""What neural autoregressive flows can do: this package's, Pyro's and zuko's side by side.

    python -W ignore tests/benchmarks/peers.py [--json FILE]

One layer each, hidden width 100, float32 unless said. How fast they are is speed.py's matter.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from contenders import OF_PYRO, Contender, Layer, of_zuko, ours

HIDDEN, BATCH = 100, 1000

Make = Callable[[int], Any]


def contenders() -> list[Contender]:
    everyone = [*ours(layers=[2]), *OF_PYRO, *of_zuko()]
    return [c for c in everyone if c.name in ("DSF", "DDSF 2", "Pyro NAF", "zuko NAF")]


def attempt(measure: Callable[[], Any]) -> Any:
    """The measurement, or "none" where a contender cannot do it at all."""
    try:
        return measure()
    except NotImplementedError:
        return "none"


@torch.no_grad()
def largest_rising(layer: Layer) -> float:
    """The largest |x| on a grid of powers of ten below which the output rises, both ways."""
    largest = 0.0
    for exponent in range(20):
        x = 10.0**exponent * torch.tensor([[1.0], [1.25], [-1.0], [-1.25]])
        y = layer.evaluate(x)[0].squeeze(-1)
        if not (torch.isfinite(y).all() and y[1] > y[0] and y[3] < y[2]):
            break
        largest = 10.0**exponent
    return largest


@torch.no_grad()
def inverse_residual(make: Make, scale: float) -> float:
    """Largest relative residual |f(x') - y| / max(1, |y|), y ~ N(0, scale^2), float64, D = 6."""
    torch.manual_seed(0)
    layer = make(6).double()
    y = scale * torch.randn(BATCH, 6).double()
    # Cloned, lest a cache answer for the flow.
    x = layer.inverse(y.clone()).clone()
    residual = (layer.evaluate(x)[0] - y).abs() / y.abs().clamp(min=1)
    return float(residual.max())


def gradient_error(make: Make) -> float:
    """Largest relative error of d sum(f^{-1}(y)) / d(parameter), against central differences."""
    torch.manual_seed(0)
    layer = make(3).double()
    y = torch.randn(8, 3).double()
    parameters = [p for p in layer.parameters() if p.requires_grad]
    layer.inverse(y.clone()).sum().backward()
    worst = 0.0
    for p in parameters:
        index = int(p.grad.abs().argmax()) if p.grad is not None else 0
        flat, step = p.view(-1), 1e-3
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                flat[index] += sign * step
                values.append(float(layer.inverse(y.clone()).sum()))
                flat[index] -= sign * step
        numeric = (values[0] - values[1]) / (2 * step)
        found = 0.0 if p.grad is None else float(p.grad.view(-1)[index])
        worst = max(worst, abs(found - numeric) / max(abs(numeric), 1e-3))
    return worst


def stale_log_det(make: Make) -> float:
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


def ten_layers(make: Make) -> float:
    """Smallest standard deviation of a dimension after ten fresh layers on N(0, I), D = 6."""
    torch.manual_seed(0)
    x = torch.randn(20_000, 6)
    with torch.no_grad():
        for _ in range(10):
            x = make(6).evaluate(x)[0]
    return float(x.std(0).min())


def properties(contender: Contender) -> dict[str, Any]:
    def make(dim: int) -> Layer:
        return contender.make(dim, HIDDEN)

    torch.manual_seed(0)
    return {
        "rises up to \\|x\\| =": largest_rising(make(1)),
        "inverse residual, y ~ N(0, 1)": attempt(lambda: inverse_residual(make, 1.0)),
        "inverse residual, y ~ N(0, 30^2)": attempt(lambda: inverse_residual(make, 30.0)),
        "gradient through inverse, relative error": attempt(lambda: gradient_error(make)),
        "log-det after another call, error": stale_log_det(make),
        "sd after ten fresh layers": ten_layers(make),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    found = {c.name: properties(c) for c in contenders()}
    print("| | " + " | ".join(found) + " |\n" + "|---" * (1 + len(found)) + "|")
    for row in next(iter(found.values())):
        values = (of_one[row] for of_one in found.values())
        print(f"| {row} | " + " | ".join(v if v == "none" else f"{v:.2g}" for v in values) + " |")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
