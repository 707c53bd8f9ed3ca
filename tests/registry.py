"""What the parametrised tests run through: transformers and flows, made random or sharp."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
import torch
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor

import pyro_naf as naf
from pyro_naf import transformers

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")

Module = TypeVar("Module", bound=torch.nn.Module)

TRANSFORMERS: dict[str, Callable[[], transformers.Transformer]] = {
    "affine": transformers.Affine,
    "gated": lambda: transformers.Affine(gated=True),
    "dsf": lambda: transformers.DeepSigmoidal(5),
    "dsf-1-unit": lambda: transformers.DeepSigmoidal(1),
    "dsf-scaled": lambda: transformers.Scaled(transformers.DeepSigmoidal(5)),
    "ddsf-1": lambda: transformers.DeepDenseSigmoidal(5, 1),
    "ddsf-2": lambda: transformers.DeepDenseSigmoidal(5, 2),
    "ddsf-4": lambda: transformers.DeepDenseSigmoidal(5, 4),
    "spline": lambda: transformers.RationalQuadraticSpline(5),
    "shift": transformers.Shift,
}

CONTEXT_DIM = 3

Sigmoidal = transformers.DeepSigmoidal | transformers.DeepDenseSigmoidal


def _pyro_dsf(dim: int) -> naf.AutoregressiveFlow:
    # Pyro needs hidden units >= D. Three parameter axes make it return a tuple.
    return naf.DeepSigmoidalFlow(AutoRegressiveNN(dim, [dim + 4], param_dims=[4, 4, 4]), 4)


def _pyro_conditional_dsf(dim: int) -> naf.ConditionalDeepSigmoidalFlow:
    arn = ConditionalAutoRegressiveNN(dim, CONTEXT_DIM, [dim + 4], param_dims=[12])
    return naf.ConditionalDeepSigmoidalFlow(arn, 4)


_ATTENTION: dict[str, Any] = {"conditioner": "attention", "num_heads": 2}

#: Name to factory(D): the transformers, the conditioners' variants, and the conditional forms.
FLOWS: dict[str, Callable[[int], Any]] = {
    "affine": lambda d: naf.affine_autoregressive_flow(d, [8]),
    "gated": lambda d: naf.affine_autoregressive_flow(d, [8], gated=True),
    "dsf": lambda d: naf.deep_sigmoidal_flow(d, [8, 9], 4),
    "ddsf-2": lambda d: naf.deep_dense_sigmoidal_flow(d, [8], 4),
    "ddsf-4": lambda d: naf.deep_dense_sigmoidal_flow(d, [8], 3, num_layers=4),
    "dsf-linear": lambda d: naf.deep_sigmoidal_flow(d, [], 4),
    "dsf-narrow": lambda d: naf.deep_sigmoidal_flow(d, [2, 3], 4, order="reversed"),
    "dsf-residual": lambda d: naf.deep_sigmoidal_flow(d, [7, 7], 4, residual=True),
    "dsf-head": lambda d: naf.deep_sigmoidal_flow(d, [8], 4, head_dim=2, order="natural"),
    "dsf-affine": lambda d: naf.deep_sigmoidal_flow(d, [8], 4, affine=True),
    "ddsf-affine": lambda d: naf.deep_dense_sigmoidal_flow(d, [8], 4, affine=True),
    "dsf-pyro": _pyro_dsf,
    "dsf-attention": lambda d: naf.deep_sigmoidal_flow(d, [8, 8], 4, **_ATTENTION),
    "affine-conditional": lambda d: naf.conditional_affine_autoregressive_flow(d, CONTEXT_DIM, [8]),
    "dsf-conditional": lambda d: naf.conditional_deep_sigmoidal_flow(d, CONTEXT_DIM, [8], 4),
    "ddsf-2-conditional": lambda d: naf.conditional_deep_dense_sigmoidal_flow(
        d, CONTEXT_DIM, [8], 4
    ),
    "ddsf-2-conditional-attention": lambda d: naf.conditional_deep_dense_sigmoidal_flow(
        d, CONTEXT_DIM, [4], 4, **_ATTENTION
    ),
    "dsf-conditional-pyro": _pyro_conditional_dsf,
}

#: Pyro's own network warns when D = 1, and needs no test there.
NEEDS_TWO_DIMENSIONS = ("dsf-pyro", "dsf-conditional-pyro")


def make_flow(name: str, dim: int, *, rough: bool = True, context: Tensor | None = None) -> Any:
    """The flow of that name, conditioned where it is conditional, with random parameters."""
    flow = FLOWS[name](dim)
    if rough:
        roughen(flow)
    if not isinstance(flow, naf.AutoregressiveFlow):
        flow = flow.condition(torch.randn(CONTEXT_DIM) if context is None else context)
    return flow


@torch.no_grad()
def roughen(module: torch.nn.Module, scale: float = 1.0) -> None:
    """Moves every parameter away from its start; matrices so that units keep their scale."""
    for p in module.parameters():
        fan_in = p.shape[-1] if p.dim() > 1 else 1
        p.add_(torch.randn_like(p), alpha=scale / fan_in**0.5)


@torch.no_grad()
def sharp_parameters(
    transformer: Sigmoidal,
    samples: int,
    *,
    max_slope: float = 50.0,
    centred: bool = False,
) -> tuple[Tensor, ...]:
    """Constrained parameters with slopes to ``max_slope`` a layer and logits to +-10.

    A third of the slopes are ``max_slope``, the others spread down to 0.05. Biases are N(0, 9); or,
    ``centred``, the sigmoids step at places uniform over [-8, 8], however steep they are. The
    matrices that a DDSF shares become N(0, 4).
    """
    k = transformer.hidden_units
    layers = transformer.num_layers

    def logits() -> Tensor:
        return torch.rand(samples, k) * 20 - 10

    params: list[Tensor] = []
    for _ in range(layers):
        a = torch.exp(torch.rand(samples, k) * math.log(max_slope / 0.05) + math.log(0.05))
        a = torch.where(torch.rand(samples, k) < 1 / 3, max_slope, a)
        b = -a * (torch.rand(samples, k) * 16 - 8) if centred else 3 * torch.randn(samples, k)
        params += [a, b, logits()]
    if isinstance(transformer, transformers.DeepDenseSigmoidal):
        params += [logits() for _ in range(layers - 1)]
        for matrix in transformer.parameters():
            matrix.normal_(std=2.0)
    else:
        params[2] -= params[2].amax(-1, keepdim=True)
    return tuple(params)


@torch.no_grad()
def sharp_phi(transformer: Sigmoidal, samples: int, **options: Any) -> Tensor:
    """Pseudo-parameters ``(samples, P)``, float64, that make :func:`sharp_parameters`."""
    params = [p.double() for p in sharp_parameters(transformer, samples, **options)]
    return unconstrained(transformer, params)


def unconstrained(transformer: Sigmoidal, params: Sequence[Tensor]) -> Tensor:
    """Pseudo-parameters ``(..., P)``, float64, whose constrained parameters these are."""
    spec, layers = transformer.spec(), transformer.num_layers
    spec = spec._replace(biases=spec.biases.cpu())
    raw = [p.double() for p in params]
    parts = [spec.unconstrain(*raw[3 * i : 3 * i + 3]) for i in range(layers)]
    return torch.cat([*parts, *raw[3 * layers :]], -1)


def three_sharp_modes(samples: int, dim: int) -> Tensor:
    """Data with three modes, ten of their widths apart, that all dimensions share."""
    centre = torch.tensor([-1.5, 0.0, 1.5])[torch.randint(3, (samples, 1))]
    return centre * torch.linspace(1, 1.2, dim) + 0.15 * torch.randn(samples, dim)


def train_as_density(
    flow: naf.AutoregressiveFlow, steps: int = 300, batch: int = 64
) -> list[float]:
    """Maximum likelihood of :func:`three_sharp_modes` with ``[flow.inv]``; returns the losses."""
    optimiser = torch.optim.Adam(flow.parameters(), lr=5e-3)
    losses = []
    for _ in range(steps):
        x = three_sharp_modes(batch, flow.input_dim).to(next(flow.parameters()))
        y = flow(x)
        log_prob = -0.5 * y.square().sum(-1) + flow.log_abs_det_jacobian(x, y)
        loss = -log_prob.mean() / flow.input_dim
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


def fresh(module: Module) -> Module:
    """A copy that has never been called: what it says cannot come from a cache."""
    return copy.deepcopy(module)
