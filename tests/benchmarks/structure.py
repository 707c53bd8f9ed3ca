"""What structure brings: full guides against structured ones on hierarchical posteriors.

PYRO_NAF_DATA=... python -W ignore tests/benchmarks/structure.py [--seconds 60] [NAMES]

For each posterior: D, mean number of ancestors, their share of a full map, seconds to find them.
Then guides are trained alike: fused Adam on the plain ELBO of 64 draws, a cosine to zero, from the
Gaussian of ``sparse_gaussian``, whose seconds are not counted. The log-density is captured and
compiled beforehand, which is not counted either. Prints a table in Markdown. One thread.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from hierarchies import posteriors
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_naf.infer import AutoDSFNormal
from pyro_naf.infer.diagnostics import pareto_khat
from pyro_naf.infer.graph import find_structure
from pyro_naf.infer.joint import Joint
from pyro_naf.infer.laplace import LogDensity
from pyro_naf.infer.pace import Pace
from pyro_naf.infer.sparse_gaussian import sparse_gaussians

DRAWS = 64
CLIP = 10.0


class Compiled:
    """A log-density whose value and gradient for a batch of one size are one compiled function."""

    def __init__(self, target: LogDensity, like: Tensor, backend: str = "inductor") -> None:
        def both(u: Tensor) -> tuple[Tensor, Tensor]:
            u = u.detach().requires_grad_()
            with torch.enable_grad():
                value = target(u)
            (grad,) = torch.autograd.grad(value.sum(), u)
            return value.detach(), grad

        start = time.monotonic()
        graph = make_fx(both)(like)
        self.function = torch.compile(graph, backend=backend)
        self.function(like)
        self.seconds = time.monotonic() - start
        wanted, found = both(like), self.function(like)
        for a, b in zip(wanted, found, strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max())), "compiled"

    def __call__(self, u: Tensor) -> Tensor:
        return _Value.apply(u, self.function)


class _Value(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, function: Callable[..., Any]) -> Tensor:
        value, grad = function(u.detach())
        ctx.save_for_backward(grad)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (saved,) = ctx.saved_tensors
        return grad[:, None] * saved, None


def draw(guide: Any, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Draws of the guide and their log-densities, past all caches."""
    x, log_q = eps, -0.5 * eps.square().sum(-1) - 0.5 * eps.shape[-1] * math.log(2 * math.pi)
    for part in guide.flow.parts:
        x, log_slope = part.value_and_log_slope(x)
        log_q = log_q - log_slope.sum(-1)
    for layer in guide._outer(None):
        image = layer._call(x)
        log_det = layer.log_abs_det_jacobian(x, image)
        log_q = log_q - (log_det if log_det.dim() < x.dim() else log_det.sum(-1))
        x = image
    return x, log_q


def train(guide: Any, target: LogDensity, seconds: float, lr: float = 3e-3) -> tuple[int, float]:
    """Number of steps, and the best running mean of the ELBO."""
    weights = [p for p in guide.parameters() if p.requires_grad]
    adam = torch.optim.Adam(weights, lr=lr, betas=(0.9, 0.99), fused=True)
    start, steps = time.process_time(), 0
    while (spent := (time.process_time() - start) / seconds) < 1:
        adam.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * spent))
        eps = torch.randn(DRAWS, guide.latent_dim)
        z, log_q = draw(guide, eps)
        loss = (log_q - target(z)).mean()
        adam.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, CLIP)
        if math.isfinite(float(norm)):
            adam.step()
        steps += 1
    return steps, float(loss)


@torch.no_grad()
def judge(guide: Any, target: LogDensity, draws: int = 16384) -> dict[str, float]:
    weights = []
    for _ in range(draws // DRAWS):
        z, log_q = draw(guide, torch.randn(DRAWS, guide.latent_dim))
        weights.append((target(z) - log_q).double())
    log_w = torch.cat(weights)
    w = (log_w - log_w.max()).exp()
    return {
        "elbo": float(log_w.mean()),
        "khat": pareto_khat(log_w),
        "ess": float(w.sum() ** 2 / w.square().sum() / len(w)),
        "log evidence": float(log_w.logsumexp(0)) - math.log(len(w)),
    }


def compare(name: str, posterior: Any, seconds: float, which: list[str]) -> None:
    """Prints a line of the table for each guide."""
    model, args = posterior
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoMultivariateNormal(model)
    guide(*args)
    target, middle = Joint(guide.model, args), guide._init_loc().detach()
    start = time.process_time()
    structure = find_structure(target, middle)
    found = time.process_time() - start
    start = time.process_time()
    (gaussian, *_), _ = sparse_gaussians(
        target, structure, middle, seconds=math.inf, pace=Pace.of(target, middle)
    )
    fitted = time.process_time() - start
    shape = f"{structure.dim} | {structure.mean_ancestors:.1f} | {structure.share:.3f}"
    prefix = f"| {name} | {shape} | {found:.1f} | {gaussian.elbo:.2f}, {fitted:.0f} s"
    compiled = Compiled(target, gaussian.draw(torch.randn(DRAWS, structure.dim).double()).float())
    for kind in which:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        flow = AutoDSFNormal(
            model,
            structure=structure if kind == "structured" else "full",
            num_transforms=1,
            hidden_units=8,
            kernel="compiled",
            full_rank=True,
        )
        flow(*args)
        factor = gaussian.factor
        if kind == "full":
            factor = torch.linalg.cholesky(factor @ factor.mT)
        flow.set_affine(gaussian.loc.float(), factor.float())
        weights = sum(p.numel() for p in flow.parameters()) / 1000
        steps, _ = train(flow, compiled, seconds)
        quality = judge(flow, compiled)
        print(
            f"{prefix} | {kind}, {weights:.0f} k | {steps} | {quality['elbo']:.2f} | "
            f"{quality['khat']:.2f} | {quality['ess']:.3f} | {quality['log evidence']:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="posteriors, all of them by default")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--guides", nargs="*", default=["structured", "full"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = "posterior | D | ancestors | share | s to find | Gaussian's ELBO | guide, weights"
    print(f"| {columns} | steps | ELBO | k-hat | ESS | log evidence |\n" + "|---" * 12 + "|")
    found = posteriors(Path(os.environ["PYRO_NAF_DATA"]))
    for name in options.names or found:
        compare(name, found[name], options.seconds, options.guides)


if __name__ == "__main__":
    main()
