"""Claims about the captured path of draws through a guide."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_naf.infer import AutoDDSFNormal, AutoDSFNormal
from pyro_naf.infer.flow_graph import FlowGraph
from pyro_naf.infer.joint import Joint
from pyro_naf.infer.objective import _CAPTURED_AFTER, _STEPS_LEFT, Objective
from pyro_naf.infer.path_gradient import FlowPath

CHAIN = torch.eye(4) + torch.diag(torch.ones(3), 1) + torch.diag(torch.ones(3), -1)


def model() -> None:
    pyro.sample("x", dist.Normal(torch.zeros(4).double(), 1.0).to_event(1))


def guide_of(guide_type: Any = AutoDSFNormal, **options: object) -> Any:
    guide = guide_type(model, **options)
    guide()
    guide.double()
    change(guide)
    return guide


@torch.no_grad()
def change(guide: Any) -> None:
    for weight in guide.parameters():
        weight += 0.2 * torch.randn_like(weight)


@pytest.mark.parametrize(
    "guide_type, options",
    [
        (AutoDSFNormal, {}),
        (AutoDSFNormal, {"full_rank": True, "hidden_dims": [8, 8]}),
        (AutoDDSFNormal, {"hidden_units": 4}),
        (AutoDSFNormal, {"full_rank": True, "structure": CHAIN}),
        (AutoDSFNormal, {"heavy_tails": True}),
    ],
)
@pytest.mark.parametrize("scores", [False, True])
def test_draws_scores_and_gradients_are_those_of_the_guide_as_it_is_now(
    guide_type: Any, options: dict[str, object], scores: bool
) -> None:
    guide = guide_of(guide_type, **options)
    graph = FlowGraph(guide, torch.randn(6, 4).double(), scores, tolerance=1e-12)
    change(guide)
    base, by_log_q, by_z = (torch.randn(6, *s).double() for s in ((4,), (), (4,)))
    captured, path = graph(base), FlowPath(guide.get_transform(), base)
    torch.testing.assert_close(captured.z, path.z)
    torch.testing.assert_close(captured.log_q, path.log_q)
    if scores:
        torch.testing.assert_close(captured.score(), path.score(1e-12))
    weights = list(guide.parameters())
    pairs = zip(
        captured.gradients(weights, by_log_q, by_z),
        path.gradients(weights, by_log_q, by_z),
        strict=True,
    )
    for found, expected in pairs:
        torch.testing.assert_close(found, expected)


def test_capturing_changes_neither_weights_nor_generators() -> None:
    guide = guide_of()
    before, state = [w.clone() for w in guide.parameters()], torch.get_rng_state()
    FlowGraph(guide, torch.randn(6, 4, generator=torch.Generator()).double(), True, 1e-3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, before, guide.parameters()))
    assert all(w.grad is None for w in guide.parameters())


@pytest.mark.parametrize("phase", ["climb", "land"])
def test_steps_go_over_to_the_graph_and_keep_their_losses_and_gradients(phase: str) -> None:
    guide, joint = guide_of(full_rank=True), Joint(model)
    joint.capture(12)
    objective = Objective(guide, joint, num_particles=8)
    for _ in range(_CAPTURED_AFTER):
        objective.of(phase, 0)
    (graph,) = objective._graphs.values()
    assert graph is not None
    found = loss_and_gradients(objective, phase)
    objective._graphs.clear()
    for a, b in zip(found, loss_and_gradients(objective, phase), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


def loss_and_gradients(objective: Objective, phase: str) -> list[Tensor]:
    torch.manual_seed(1)
    loss = objective.of(phase, 0)
    grads = loss.gradients(list(objective.guide.parameters()))
    return [torch.tensor(loss.value), *(g for g in grads if g is not None)]


def test_few_steps_are_not_worth_a_graph() -> None:
    guide, joint = guide_of(), Joint(model)
    joint.capture(12)
    objective = Objective(guide, joint, num_particles=8)
    for _ in range(_CAPTURED_AFTER + 1):
        objective.of("climb", 0, steps_left=_STEPS_LEFT - 1)
    assert not objective._graphs
    objective.of("climb", 0, steps_left=_STEPS_LEFT)
    assert objective._graphs


def test_a_guide_that_no_graph_can_hold_is_trained_as_before() -> None:
    guide, joint = guide_of(), Joint(model)
    joint.capture(12)

    def reads(*_: object) -> None:
        if float(guide.loc.detach().sum()) > 1e9:
            raise AssertionError

    guide.flow.parts[0].arn.register_forward_pre_hook(reads)
    objective = Objective(guide, joint, num_particles=8)
    for _ in range(_CAPTURED_AFTER + 1):
        assert torch.tensor(objective.climb().value).isfinite()
    assert list(objective._graphs.values()) == [None]
