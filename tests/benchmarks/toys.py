"""Targets whose truth is known: grids of Gaussians, a picture, and the energies U1 to U4.

python -W ignore tests/benchmarks/toys.py --device cpu --output toys.json

Prints, for every model, how many nats its mean log-likelihood lies below the best that is possible
(minus the entropy), or how far its reverse KL divergence is from zero. --picture FILE.png draws the
fitted grids beside the true ones.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from timing import environment

from pyro_naf.density import FlowDensity, energy_bound, fit_energy
from pyro_naf.density.datasets import ENERGIES, GaussianGrid, Picture
from pyro_naf.density.datasets.energies import log_normaliser
from pyro_naf.files.atomic import replace_file

DATA_MODELS = ("maf-dsf-2", "maf-ddsf-2", "maf-affine-2", "maf-affine-10", "nsf-ar-2", "made-mog")
ENERGY_MODELS = ("iaf-dsf-2", "iaf-ddsf-2", "iaf-affine-8", "planar-32")


def face() -> Picture:
    """A picture drawn by formula: a ring, two eyes and a mouth, 96 x 96 pixels."""
    side = torch.linspace(-1, 1, 96)
    y, x = torch.meshgrid(-side, side, indexing="ij")
    r = torch.hypot(x, y)
    ring = (r - 0.85).abs() < 0.06
    eyes = torch.hypot(x.abs() - 0.35, y - 0.3) < 0.12
    mouth = ((torch.hypot(x, y + 0.05) - 0.5).abs() < 0.06) & (y < -0.2)
    return Picture(1 - 0.9 * (ring | eyes | mouth).double() - 0.05 * (r < 0.8))


def chart(grids: dict[str, dict[str, Any]]) -> Figure:
    """Densities of grids: a row for each, the truth and then the models."""
    columns = max(len(row) for row in grids.values())
    figure = Figure(figsize=(2.4 * columns, 2.6 * len(grids)), layout="constrained")
    axes = figure.subplots(len(grids), columns, squeeze=False)
    for row, (name, densities) in zip(axes, grids.items(), strict=True):
        half = 0.6 * int(name.split()[-1])
        side = torch.linspace(-half, half, 400, dtype=torch.double)
        points = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
        top = float(densities["truth"].log_prob(points).exp().max())
        for ax, (model, density) in zip(row, densities.items(), strict=True):
            with torch.no_grad():
                values = density.log_prob(points).exp()
            ax.imshow(values, origin="lower", vmin=0, vmax=top, cmap="magma")
            ax.set(title=model if ax in axes[0] else "", xticks=[], yticks=[])
    return figure


def on_data(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    targets: dict[str, Any] = {
        "grid 5 x 5": GaussianGrid(5),
        "grid 10 x 10": GaussianGrid(10),
        "picture": face(),
    }
    for name, target in targets.items():
        rows = target.sample(options.rows, torch.Generator().manual_seed(1))
        test = target.sample(50_000, torch.Generator().manual_seed(2))
        for model in options.models or DATA_MODELS:
            if not name.startswith(options.only):
                continue
            torch.manual_seed(0)
            density = FlowDensity(2, architecture=model, hidden_dims=options.hidden)
            density = density.to(options.device)
            start = time.monotonic()
            try:
                density.fit(rows, seed=0, max_steps=options.steps, batch_size=512, progress=False)
            except RuntimeError as error:  # one model that breaks down must not end the others
                print(f"{name} {model}: {error}", flush=True)
                continue
            if name.startswith("grid"):
                options.grids.setdefault(name, {"truth": target})[model] = density.cpu()
            values = density.log_prob(test.numpy())
            # Against the truth on the same rows, where it is known: most of the noise cancels.
            gaps = (
                target.log_prob(test.double()).numpy() - values
                if hasattr(target, "log_prob")
                else target.log_likelihood_bound() - values
            )
            yield {
                "target": name,
                "model": model,
                "nats_short": float(gaps.mean()),
                "two_se": float(2 * gaps.std() / len(gaps) ** 0.5),
                "seconds": time.monotonic() - start,
                "parameters": sum(p.numel() for p in density.parameters()),
            }


def on_energies(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name, energy in ENERGIES.items():
        for model in options.models or ENERGY_MODELS:
            if not name.startswith(options.only):
                continue
            torch.manual_seed(0)
            hidden = {} if model.startswith("planar") else {"hidden_dims": options.hidden}
            density = FlowDensity(2, architecture=model, **hidden).to(options.device)
            density.scale.fill_(2.0)
            start = time.monotonic()
            fit_energy(density, energy, max_steps=options.steps, seed=0, progress=False)
            bound, se = energy_bound(density, energy, 200_000)
            yield {
                "target": name,
                "model": model,
                "nats_short": log_normaliser(name) - bound,
                "two_se": 2 * se,
                "seconds": time.monotonic() - start,
                "parameters": sum(p.numel() for p in density.parameters()),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--steps", type=int, default=4000)
    add("--rows", type=int, default=100_000)
    add("--hidden", default="64,64")
    add("--models", type=lambda text: text.split(","))
    add("--only", default="", help="targets whose name begins so")
    add("--device", default="cpu")
    add("--output", type=Path, default=Path(__file__).parent / "output" / "toys.json")
    add("--picture", type=Path, metavar="FILE.png", help="of the grids that were fitted")
    options = parser.parse_args()
    options.grids = {}
    options.hidden = tuple(int(h) for h in options.hidden.split(","))
    settings = {"steps": options.steps, "environment": environment(options.device)}
    records: list[dict[str, Any]] = []
    print(settings["environment"] + f", {options.steps} steps\n")
    print("| target | model | nats short ± 2 s.e. | seconds | parameters |")
    print("|---|---|---|---|---|")
    for part in (on_data, on_energies):
        for r in part(options):
            records.append({**r, **settings})
            shown = f"{r['nats_short']:.4f} ± {r['two_se']:.4f} | {r['seconds']:.0f}"
            print(f"| {r['target']} | {r['model']} | {shown} | {r['parameters']:,} |", flush=True)
            replace_file(options.output, json.dumps(records, indent=1).encode())
    if options.picture:
        chart(options.grids).savefig(options.picture, dpi=100)


if __name__ == "__main__":
    main()
