"""Claims about guarded steps of Adam."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_naf.training.steps import guarded_step


def problem(kind: Any, **options: object) -> tuple[torch.optim.Adam, list[Tensor]]:
    torch.manual_seed(0)
    weights = [torch.randn(*shape).requires_grad_() for shape in ((3,), (4, 2), (5,))]
    groups = [{"params": weights[:2], "lr": 0.1}, {"params": weights[2:], "lr": 0.01}]
    return kind(groups, fused=True, **options), weights


@pytest.mark.parametrize(
    "kind, options",
    [
        (torch.optim.Adam, {"betas": (0.8, 0.9)}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
        (torch.optim.Adam, {"weight_decay": 0.1, "eps": 1e-3}),
    ],
)
def test_steps_are_those_of_torch_but_for_the_bad_ones(
    kind: Any, options: dict[str, object]
) -> None:
    adam, weights = problem(kind, **options)
    reference, others = problem(kind, **options)
    for step in range(8):
        loss = torch.tensor(float("nan") if step == 3 else 1.0)
        for weight, other in zip(weights, others, strict=True):
            weight.grad = torch.randn_like(weight) * 10 ** (step % 3)
            other.grad = weight.grad.clone()
        if step == 5:
            weights[0].grad[0] = float("inf")
        if step == 6:  # a weight that nothing depends on
            weights[1].grad = others[1].grad = None
        if step in (0, 1, 7):  # a group without gradients, before its first and later
            weights[2].grad = others[2].grad = None
        bad = guarded_step(adam, weights, loss, clip=2.0)
        assert bool(bad) == (step in (3, 5))
        if not bad:
            torch.nn.utils.clip_grad_norm_(others, 2.0)
            reference.step()
        for weight, other in zip(weights, others, strict=True):
            torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-7)
    for weight in weights:
        weight.grad = None
    before = [weight.detach().clone() for weight in weights]
    assert not guarded_step(adam, weights, torch.tensor(1.0), clip=2.0)
    assert all(map(torch.equal, before, weights))
    for weight, other in zip(weights, others, strict=True):
        assert adam.state[weight]["step"] == reference.state[other]["step"]
