"""On a GPU: are the kernels right, and do they meet their bars?

    python -W ignore tests/benchmarks/gpu.py

Exits with 2 where there is no CUDA device, with 1 where a kernel is wrong.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from bars import Bar, table
from contenders import UNITS, ours, rough
from timing import Measured, Task, environment, interleaved, peak_bytes
from torch import Tensor

import pyro_naf
from pyro_naf.conditioners import MADE

#: float32 kernels may err by so much, or by four times what the plain formula in float32 does.
TOLERANCE = 1e-4
#: Elements B * D at which bandwidth is measured.
ELEMENTS = [1 << 20, 1 << 22]


def transformer(num_layers: int, kernel: str, units: int = UNITS) -> Any:
    """DSF for 0 layers, DDSF for more."""
    torch.manual_seed(0)
    flow = (
        pyro_naf.deep_dense_sigmoidal_flow(2, [2], units, num_layers=num_layers, kernel=kernel)
        if num_layers
        else pyro_naf.deep_sigmoidal_flow(2, [2], units, kernel=kernel)
    )
    return flow.transformer.cuda()


def name_of(num_layers: int) -> str:
    return f"DDSF {num_layers}" if num_layers else "DSF"


def device_ms(tasks: Sequence[Task], repeats: int = 24) -> float:
    """Median milliseconds that the card takes for one of the tasks, launches left out.

    The card first waits, so that all launches are queued before it starts on them. The tasks go
    round, so that none finds its inputs in a cache.
    """
    for task in tasks:
        task()
    torch.cuda.synchronize()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in "ab"] for _ in range(repeats)]
    torch.cuda._sleep(200_000_000)
    for (start, end), task in zip(marks, islice(cycle(tasks), repeats), strict=True):
        start.record()
        task()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in marks)


def copy_bandwidth() -> float:
    """Bytes a millisecond of a copy on the card, what is read and what is written."""
    source = torch.ones(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / device_ms([partial(target.copy_, source)])


class GivenPhi:
    """A transformer's passes on pseudo-parameters that lie in memory as a conditioner's do."""

    def __init__(self, module: Any, elements: int) -> None:
        self.module = module
        self.x = torch.randn(elements // 64, 64, device="cuda", requires_grad=True)
        made = MADE(64, [64], module.num_params, order="natural").cuda()
        self.phi = torch.randn_like(made(self.x).detach()).requires_grad_()
        self.outputs: tuple[Tensor, Tensor] = module(self.x, self.phi)
        self.gradients = [torch.randn_like(out) for out in self.outputs]

    def forward(self) -> None:
        with torch.no_grad():
            self.module(self.x, self.phi)

    def backward(self) -> None:
        torch.autograd.grad(self.outputs, (self.x, self.phi), self.gradients, retain_graph=True)

    def least_bytes(self) -> dict[str, int]:
        """Inputs read and results written, each once."""
        inputs, outputs = self.x.nbytes + self.phi.nbytes, 2 * self.x.nbytes
        return {"forward": inputs + outputs, "backward": inputs + outputs + inputs}


def bandwidth_bar(num_layers: int, limit: float | None, stretch: float | None) -> Bar:
    """The share of the copy bandwidth that a transformer alone reaches."""
    copy, shares = copy_bandwidth(), {}
    for elements in ELEMENTS:
        # Three sets, each larger than any second-level cache.
        passes = [GivenPhi(transformer(num_layers, "triton"), elements) for _ in range(3)]
        for job, least in passes[0].least_bytes().items():
            ms = device_ms([getattr(p, job) for p in passes])
            shares[f"{job} {elements:.1e}: {ms:.3f} ms,"] = least / ms / copy
    claim = f"{name_of(num_layers)} alone, bytes it must move / time / copy ({copy / 1e6:.0f} GB/s)"
    return Bar(claim, shares, limit, stretch, at_least=True)


class Training:
    """A step of maximum likelihood with MAF-DDSF: five flows of two layers, D = 63."""

    def __init__(self, kernel: str, batch: int = 4096) -> None:
        torch.manual_seed(0)
        self.flows = [
            pyro_naf.deep_dense_sigmoidal_flow(
                63, [512], UNITS, order=("natural", "reversed")[i % 2], kernel=kernel
            ).cuda()
            for i in range(5)
        ]
        parameters = [p for flow in self.flows for p in flow.parameters()]
        self.optimiser = torch.optim.Adam(parameters, lr=1e-4)
        self.x = torch.randn(batch, 63, device="cuda")

    def step(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        x, log_det = self.x.clone(), torch.zeros((), device="cuda")
        for flow in self.flows:
            y = flow(x)
            log_det = log_det + flow.log_abs_det_jacobian(x, y)
            x = y
        (0.5 * x.square().sum(-1) - log_det).mean().backward()
        self.optimiser.step()


def training_bars() -> Iterator[Bar]:
    steps: dict[str, Task] = {kernel: Training(kernel).step for kernel in ("triton", "plain")}
    times = interleaved(steps, "cuda", seconds=5, turns=(5, 50))
    fast, plain = (Measured.of(times[kernel]) for kernel in ("triton", "plain"))
    claim = "plain / triton, training step of MAF-DDSF (5), D = 63, hidden 512, B = 4096"
    yield Bar(claim, {f"{plain} / {fast} ms:": plain.median / fast.median}, 3, 8, at_least=True)
    del steps
    fast_mb, plain_mb = (1e-6 * peak_bytes(Training(k).step, "cuda") for k in ("triton", "plain"))
    measured = {f"{fast_mb:.0f} / {plain_mb:.0f} MB:": fast_mb / plain_mb}
    yield Bar("triton / plain, peak memory of that step", measured, None)


def inverse_bar() -> Bar:
    dsf = ours("triton")[0]
    ratios = {}
    for contender in (dsf, rough(dsf)):
        torch.manual_seed(0)
        layer = contender.make(63, 512).cuda()
        y = torch.randn(65_536, 63, device="cuda")
        tasks: dict[str, Task] = {
            "forward": partial(layer.forward_pass, y),
            "inverse": partial(layer.inverse_pass, y),
        }
        times = interleaved(tasks, "cuda", seconds=3, turns=(5, 50))
        forward, inverse = (Measured.of(times[job]) for job in ("forward", "inverse"))
        where = f"{contender.name}: {inverse} / {forward} ms:"
        ratios[where] = inverse.median / forward.median
    return Bar("inverse / forward pass of DSF, D = 63, hidden 512, B = 65,536", ratios, 10, 4)


def results_of(module: Any, x: Tensor, phi: Tensor, seeds: Sequence[Tensor]) -> dict[str, Tensor]:
    """Values and gradients, in the dtype of the inputs."""
    x, phi = x.clone().requires_grad_(), phi.clone().requires_grad_()
    outputs = module(x, phi)
    inputs = [x, phi, *module.parameters()]
    gradients = torch.autograd.grad(outputs, inputs, [s.to(x.dtype) for s in seeds])
    names = [
        "y",
        "log-slope",
        "grad x",
        "grad phi",
        *(f"grad {n}" for n, _ in module.named_parameters()),
    ]
    return dict(zip(names, [*outputs, *gradients], strict=True))


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Largest error of each, relative to 1 + its size."""
    return {
        name: float(((found[name].double() - e).abs() / (1 + e.abs())).amax())
        for name, e in exact.items()
    }


def check(num_layers: int, units: int) -> bool:
    """The Triton kernel against the plain formula in float64, in the middle and far out."""
    kernels = ("triton", "plain", "plain")
    fast, plain, exact = (transformer(num_layers, k, units) for k in kernels)
    exact.double()
    scale = torch.tensor([1.0, 30.0, 1e4], device="cuda").repeat_interleave(4096)
    # 1365 rows, which no block size divides; phi in the conditioner's layout.
    x = (scale * torch.randn_like(scale))[:-3].view(-1, 9)
    phi = 2 * torch.randn(9, fast.num_params, len(x), device="cuda").permute(2, 0, 1)
    seeds = [torch.randn_like(x) for _ in "yl"]
    truth = results_of(exact, x.double(), phi.double(), seeds)
    of_fast = errors(results_of(fast, x, phi, seeds), truth)
    of_plain = errors(results_of(plain, x, phi, seeds), truth)
    right = True
    for name, error in of_fast.items():
        good = error <= max(TOLERANCE, 4 * of_plain[name])  # False for NaN
        right &= good
        verdict = "right" if good else "WRONG"
        row = (
            f"{name_of(num_layers)}, K = {units}: {name}",
            f"{error:.1e}",
            f"{of_plain[name]:.1e}",
        )
        print(f"| {' | '.join(row)} | {verdict} |")
    return right


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 2
    print(environment("cuda"))
    print("\n| largest error against float64 | triton | plain float32 | |\n|---|---|---|---|")
    # Products of 16, 32 and 64 rows are compiled in different ways.
    right = all([check(*sizes) for sizes in ((0, 16), (2, 16), (4, 16), (2, 20), (2, 64))])
    bars = [
        bandwidth_bar(0, 0.6, 0.85),
        bandwidth_bar(2, None, None),
        *training_bars(),
        inverse_bar(),
    ]
    print(f"\n{table(bars)}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
