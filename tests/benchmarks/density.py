"""Test log-likelihoods of the named architectures and of peers, trained by the same loop.

PYRO_NAF_DATA=... python -W ignore tests/benchmarks/density.py --datasets power --seconds 60

Every model gets the same steps or seconds, --cpu-clock: seconds of this process on its core, which
neighbours on a shared machine take nothing from. A file for each model and data set is written to
--output while it trains, so that a run that is killed loses one model at most; --table prints
what is there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro.distributions.transforms as pyro_transforms
import torch
from timing import environment
from torch import Tensor, nn

from pyro_naf.density import preparation, training
from pyro_naf.density.architectures import TABLE, build, parse
from pyro_naf.density.datasets import reference
from pyro_naf.density.flow import NormalizingFlow
from pyro_naf.density.mixture import StandardNormal
from pyro_naf.density.published import published
from pyro_naf.density.settings import Training
from pyro_naf.density.training import mean_log_prob, train
from pyro_naf.files.atomic import replace_file

#: Layers of the peers' flows, as many as those of maf-ddsf-5.
LAYERS, BINS = 5, 8


class OfZuko(nn.Module):
    """zuko's flows build their distribution at every call."""

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor) -> Tensor:
        return self.flow().log_prob(x)


def zuko_flow(name: str) -> Callable[[int, dict[str, Any]], nn.Module]:
    def make(dim: int, options: dict[str, Any]) -> nn.Module:
        import zuko  # type: ignore[import-untyped]

        more = {"bins": BINS} if name == "NSF" else {}
        hidden = options["hidden_dims"]
        flow = getattr(zuko.flows, name)
        return OfZuko(flow(dim, transforms=LAYERS, hidden_features=hidden, **more))

    return make


def pyro_spline(dim: int, options: dict[str, Any]) -> nn.Module:
    layers = [
        pyro_transforms.spline_autoregressive(
            dim, list(options["hidden_dims"]), count_bins=BINS, bound=4.0
        )
        for _ in range(LAYERS)
    ]
    return NormalizingFlow(layers, StandardNormal(dim))


Make = Callable[[int, dict[str, Any]], nn.Module]


#: "NAME+VARIANT+..." is the architecture NAME with these options.
VARIANTS: dict[str, dict[str, Any]] = {
    "lu": {"residual": True, "linear": "lu"},
    "affine": {"affine": True},
    "elu": {"activation": "elu"},
    "relu": {"activation": "relu"},
    "silu": {"activation": "silu"},
    "tanh": {"activation": "tanh"},
    "dropout": {"dropout": 0.1},
    **{f"sharp{s}": {"sharpness": float(s)} for s in (2, 4, 8, 16)},
}

PEERS = {
    "zuko NSF": zuko_flow("NSF"),
    "zuko MAF": zuko_flow("MAF"),
    "Pyro spline": pyro_spline,
}


def default_models() -> list[str]:
    names = [*TABLE, "maf-affine-10+lu", "maf-ddsf-5+lu", "nsf-ar+lu", *PEERS]
    return [n for n in names if find_spec("zuko") is not None or not n.startswith("zuko")]


def maker(name: str) -> Make:
    """The peer or architecture of that name.

    :raises ValueError: when there is none.
    """
    if name in PEERS:
        return PEERS[name]
    architecture, *variants = name.split("+")
    parse(architecture)
    unknown = [v for v in variants if v not in VARIANTS]
    if unknown:
        raise ValueError(f"no variant {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    more = {k: v for variant in variants for k, v in VARIANTS[variant].items()}
    return lambda dim, options: build(architecture, dim, **{**options, **more})


@dataclass
class Data:
    """A data set, standardised and on the device; ``offset`` leads back to its own units."""

    name: str
    parts: list[Tensor]
    offset: float

    @classmethod
    def load(cls, name: str, device: str, rows: int | None) -> Data:
        split = reference.LOADERS[name]()
        parts = [torch.from_numpy(part[:rows]) for part in split]
        loc, scale = preparation.statistics(parts[0], name)
        parts = [preparation.standardised(p, loc, scale, torch.float32).to(device) for p in parts]
        return cls(name, parts, -float(scale.log().sum()))


class Record:
    """The file of one run, rewritten as the run goes on."""

    def __init__(self, folder: Path, data: Data, model: str, settings: dict[str, Any]) -> None:
        stem = f"{data.name}--{model.replace(' ', '_')}"
        self.path = folder / f"{stem}.json"
        self.content = {"dataset": data.name, "model": model, **settings, "curve": []}

    def add(self, **more: Any) -> None:
        self.content.update(more)
        replace_file(self.path, json.dumps(self.content, indent=1).encode())

    def evaluated(self, row: dict[str, Any]) -> None:
        self.content["curve"].append(
            {k: row[k] for k in ("step", "seconds", "train", "validation")}
        )
        print(
            f"  {self.content['dataset']} {self.content['model']}: step {row['step']}, "
            f"{row['seconds']:.0f} s, train {row['train'] or np.nan:.3f}, "
            f"validation {row['validation']:.3f}",
            flush=True,
        )
        self.add(steps=row["step"], seconds=row["seconds"])


def measure(make: Make, data: Data, record: Record, options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    architecture = {"hidden_dims": options.hidden, "activation": options.activation}
    train_rows, validation, test = data.parts
    dim = train_rows.shape[1]

    def trained(module: nn.Module, **more: Any) -> Any:
        settings = Training(
            batch_size=options.batch_size,
            lr=options.lr,
            precision=options.precision,
            graph=False if options.no_graph else None,
            patience=10**6,
            seed=options.seed,
            progress=False,
            **more,
        )
        return train(
            module,
            (train_rows,),
            (validation[: options.validation_rows],),
            settings,
            record.evaluated if more["max_steps"] != 5 else None,
            offset=data.offset,
        )

    # Kernels are compiled for a throwaway copy, so that their time is nobody's.
    trained(make(dim, architecture).to(options.device), max_steps=5)
    torch.manual_seed(options.seed)
    module = make(dim, architecture).to(options.device)
    parameters = sum(p.numel() for p in module.parameters())
    record.add(parameters=parameters)
    history = trained(
        module,
        max_steps=options.steps,
        max_seconds=options.seconds,
        evaluate_every=options.evaluate_every,
    )
    mean, se = mean_log_prob(module, (test,))
    record.add(
        test=mean + data.offset,
        two_se=2 * se,
        steps=history.steps,
        seconds=history.seconds,
        best_step=history.best_step,
        skipped=history.skipped,
    )
    print(
        f"{data.name} {record.content['model']}: test {mean + data.offset:.3f} ± {2 * se:.3f}, "
        f"{history.steps} steps in {history.seconds:.1f} s, {parameters} parameters",
        flush=True,
    )


def table(folder: Path) -> str:
    """Markdown of all the files in the folder."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*--*.json"))]
    lines = []
    for dataset in dict.fromkeys(r["dataset"] for r in records):
        lines += [
            f"\n#### {dataset}\n",
            "| model | test log-likelihood ± 2 s.e. | published, whole set | steps | seconds "
            "| steps / s | parameters |",
            "|---|---|---|---|---|---|---|",
        ]
        rows = [r for r in records if r["dataset"] == dataset]
        for r in sorted(rows, key=lambda r: -r.get("test", -np.inf)):
            shown = f"{r['test']:.3f} ± {r['two_se']:.3f}" if "test" in r else "unfinished"
            of_paper = published(r["model"], dataset) or ""
            steps, seconds = r.get("steps") or 0, r.get("seconds", 0.0)
            lines.append(
                f"| {r['model']} | {shown} | {of_paper} | {steps} | {seconds:.0f} "
                f"| {steps / max(seconds, 1e-9):.0f} | {r.get('parameters', 0):,} |"
            )
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--datasets", default="power,protein,bsds300", help="with commas between")
    add("--models", help="with commas between; default: " + ",".join(default_models()))
    add("--steps", type=int, help="steps of each model")
    add("--seconds", type=float, help="seconds of each model; default: 60, unless --steps is given")
    add("--total-seconds", type=float, help="start no model after so long")
    add("--batch-size", type=int, default=512)
    add("--lr", type=float, default=3e-3)
    add("--hidden", default="128,128", help="widths of hidden layers")
    add("--activation", default="relu")
    add("--rows", type=int, help="at most so many rows of each part")
    add("--validation-rows", type=int, default=10_000, help="at most so many, for the curves")
    add("--evaluate-every", type=int, help="steps between evaluations")
    add("--precision", default="float32", choices=["float32", "tf32", "bfloat16"])
    add("--no-graph", action="store_true", help="record no CUDA graphs")
    add("--device", default="cpu")
    add("--threads", type=int, help="of torch, on a CPU")
    add("--cpu-clock", action="store_true", help="count CPU seconds; with --threads 1")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path(__file__).parent / "output" / "density")
    add("--table", action="store_true", help="print the table of what is in --output, and end")
    options = parser.parse_args()
    options.models = options.models.split(",") if options.models else default_models()
    options.hidden = tuple(int(h) for h in options.hidden.split(","))
    if options.steps is None and options.seconds is None:
        options.seconds = 60.0
    return options


def main() -> None:
    options = parsed()
    if options.table:
        print(table(options.output))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.cpu_clock:
        training.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[assignment]
    # Their checks of values make the host wait for a GPU.
    torch.distributions.Distribution.set_default_validate_args(False)
    makers = {name: maker(name) for name in options.models}
    start = time.monotonic()
    print(environment(options.device), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    names = ("steps", "batch_size", "lr", "hidden", "activation", "precision", "device", "seed")
    settings = {name: getattr(options, name) for name in (*names, "threads", "cpu_clock")}
    settings |= {"budget_seconds": options.seconds, "environment": environment(options.device)}
    for dataset in options.datasets.split(","):
        data = Data.load(dataset, options.device, options.rows)
        print(f"{dataset}: {[len(part) for part in data.parts]} rows", flush=True)
        for name, make in makers.items():
            if options.total_seconds and time.monotonic() - start > options.total_seconds:
                print(f"{dataset} {name}: left out, the time is over", flush=True)
                continue
            record = Record(options.output, data, name, settings)
            try:
                measure(make, data, record, options)
            except Exception as error:  # one model that fails must not end the others
                print(f"{dataset} {name}: {type(error).__name__}: {error}", flush=True)
                record.add(error=f"{type(error).__name__}: {error}")
        replace_file(options.output / "density.md", (table(options.output) + "\n").encode())
    print(table(options.output))


if __name__ == "__main__":
    main()
