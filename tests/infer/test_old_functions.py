"""Models with autograd functions of the older form are run in one batch, with their gradients."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_naf.infer.joint import Joint


class Cube(torch.autograd.Function):
    """x^3 times a number, by an intermediate result and an attribute."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        square = x * x
        ctx.save_for_backward(x, square)
        ctx.factor = factor
        return factor * square * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, square = ctx.saved_tensors
        assert ctx.needs_input_grad[0] and x.shape == square.shape
        return 3 * ctx.factor * square * grad, None


class Doubled(torch.autograd.Function):
    """2 x, written into its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


def cubic() -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(Cube.apply(x, 0.5), 1.0).to_event(1), obs=torch.ones(3))


def doubled() -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(Doubled.apply(x + 0), 1.0), obs=torch.tensor(1.0))


def hidden_markov() -> None:
    logits = pyro.sample("logits", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    observation = dist.Normal(torch.tensor([0.0, 3.0]), 1.0)
    hmm = dist.DiscreteHMM(torch.zeros(2), logits.expand(2, 2), observation)  # by Pyro's safe_log
    pyro.sample("y", hmm, obs=torch.tensor([0.1, 2.9, 3.2, -0.3]))


@pytest.mark.parametrize(
    "model, rung",
    [
        (cubic, "vmapped with help"),
        (hidden_markov, "vmapped with help"),
        (doubled, "one draw after another"),
    ],
)
def test_values_and_gradients_are_those_of_single_runs(model: Any, rung: str) -> None:
    joint = Joint(model)
    assert joint.rung == rung
    u = 0.5 * torch.randn(5, joint.dim)
    values, grads = joint.value_and_grad(u)
    for point, value, grad in zip(u, values, grads, strict=True):
        point = point.clone().requires_grad_()
        alone = joint._log_density(joint.split(point))
        torch.testing.assert_close(value, alone.detach())
        torch.testing.assert_close(grad, torch.autograd.grad(alone, point)[0])
    joint.capture(5)
    torch.testing.assert_close(joint.value_and_grad(u), (values, grads))
