"""Claims about where chains of Hamiltonian Monte Carlo run, and when they are done."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_naf.infer.adaptive_chains import Choice, Goal, Prospect, Run
from pyro_naf.infer.autoguides import AutoDSFNormal
from pyro_naf.infer.base_space import BaseSpace
from pyro_naf.infer.chains import rank_rhat
from pyro_naf.infer.hmc import Hamiltonian

#: Of chains that are run first, and of others.
CHEAP, DEAR, NEVER = (Prospect(gradient, 1.0, 1.0) for gradient in (1e-9, 2e-9, 1e9))


def normal(x: Tensor) -> tuple[Tensor, Tensor]:
    return -0.5 * x.square().sum(-1), -x


def funnel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Neal's, of which Hamiltonian Monte Carlo does not reach the neck."""
    v, rest = x[:, :1], x[:, 1:]
    squares = (rest.square() * (-v).exp()).sum(-1, keepdim=True)
    value = -(v**2) / 18 - squares / 2 - rest.shape[1] * v / 2
    slope = -v / 9 + squares / 2 - rest.shape[1] / 2
    return value[:, 0], torch.cat([slope, -rest * (-v).exp()], -1)


def run_of(density: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[[], Run]:
    space: Any = None
    return lambda: Run(Hamiltonian(density, torch.randn(64, 10).double()), space, [0.9], 0.0)


def never() -> Run:
    raise AssertionError("chains that are good are left")


def test_chains_that_mix_are_not_left() -> None:
    goal = Goal(1.05, 400, 100, ends=False)
    best = Choice((run_of(normal), never), (CHEAP, DEAR), goal, 50, math.inf).best()
    assert best.chains.count == 100 and best.needed <= 100


def test_chains_end_as_soon_as_they_agree() -> None:
    goal = Goal(1.01, 1000, 5000, ends=True)
    best = Choice((run_of(normal), never), (CHEAP, DEAR), goal, 50, math.inf).best()
    assert float(rank_rhat(best.chains.states).max()) < 1.01 and best.chains.count < 1000


def test_chains_that_diverge_or_disagree_go_on_in_the_other_space() -> None:
    torch.manual_seed(0)
    goal = Goal(1.05, 400, 100, ends=False)
    choice = Choice((run_of(funnel), run_of(normal)), (CHEAP, DEAR), goal, 50, math.inf)
    assert choice.best() is choice.runs[1] and choice.runs[0].chains.count <= 100


def test_no_other_space_is_tried_that_would_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", time.process_time)
    goal = Goal(1.0001, 1e9, 10**6, ends=True)
    began = time.monotonic()
    best = Choice((run_of(normal), never), (CHEAP, NEVER), goal, 50, began + 1.0).best()
    assert best.chains.count > 50 and 0.5 < time.monotonic() - began < 1.5
    # What is left of the way is told by what was made of it.
    states = best.chains.states
    half = (float(rank_rhat(states[:, : best.chains.count // 2]).max()) ** 2 - 1) / 2
    assert float(rank_rhat(states).max()) ** 2 - 1 == pytest.approx(half, rel=1.0)


def schools_like() -> None:

    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    pyro.sample("x", dist.Normal(torch.zeros(3), scale).to_event(1))


def test_a_compiled_graph_of_map_and_density_replaces_the_loops() -> None:
    guide = AutoDSFNormal(schools_like)
    guide()
    space = BaseSpace(schools_like, guide, (), {})
    eps = space.normal(6)
    graph = space.capture(4)
    assert graph is not None and not graph.is_ready()
    for captured, loops in zip(graph(eps), space.value_and_grad(eps), strict=True):
        torch.testing.assert_close(captured, loops, rtol=1e-4, atol=1e-4)
    graph.is_compiled, graph.module = True, lambda u, *_: (u[:, 0] * 0 + 7, u * 0)
    assert space.value_and_grad(eps)[0].tolist() == [7] * 6


def test_chains_of_the_asked_length_come_before_shorter_ones() -> None:
    """Shorter ones stand beside them where the space was changed, or chains began anew."""
    runs = [run_of(normal)() for _ in range(3)]
    for run, count in zip(runs, (30, 100, 20), strict=True):
        run.chains.draw(count)
        run.needed = float(count)  # enough, by its own draws
    choice = Choice((never, never), (CHEAP, DEAR), Goal(1.05, 400, 100, ends=False), 50, math.inf)
    choice.runs, choice.before = runs[:2], runs[2:]
    runs[1].chains.divergences = 60  # of 6400 transitions
    assert choice.chosen() is runs[1]
    choice.goal = choice.goal._replace(ends=True)  # as many as are enough
    assert choice.chosen() is runs[0]


def test_prospects_tell_a_funnel_from_a_normal_density() -> None:
    torch.manual_seed(0)
    v = 3 * torch.randn(64, 1)
    points = torch.cat([v, (v / 2).exp() * torch.randn(64, 9)], 1).double()
    scale = points.std(0)

    def in_units(x: Tensor) -> tuple[Tensor, Tensor]:
        value, grad = funnel(x * scale)
        return value, grad * scale

    plain, bent = (
        Prospect.of(normal, torch.randn(64, 10), 64),
        Prospect.of(in_units, points / scale, 64),
    )
    assert plain.energy < 1.6 and plain.roughness == pytest.approx(1, abs=1e-3)
    # log p varies by v (9 / 2 in 10 / 2 = 5 units of variance 10 / 2), curvature like exp(-v).
    assert bent.energy > 10 and bent.roughness > 2
    # So a gradient that takes ten times as long pays.
    dear = plain._replace(gradient=10 * bent.gradient)
    assert dear.seconds(200) < bent.seconds(200)
    nowhere = Prospect.of(lambda x: (x[:, 0] * math.nan, x), torch.randn(64, 10), 64)
    assert nowhere.seconds(200) == math.inf


def test_chains_begin_where_they_promise_to_be_done_first() -> None:
    goal = Goal(1.05, 400, 100, ends=False)
    choice = Choice((never, run_of(normal)), (DEAR, CHEAP), goal, 50, math.inf)
    assert choice.best() is choice.runs[0] and choice.other_seconds == DEAR.seconds(50)


def test_few_divergences_are_borne_as_noise() -> None:
    run = run_of(normal)()
    run.chains.draw(50)  # 3200 trajectories, of which three may diverge
    run.chains.divergences = 8
    assert run.divergent > 2e-3 and not run.is_torn
    run.chains.divergences = 10
    assert run.is_torn
