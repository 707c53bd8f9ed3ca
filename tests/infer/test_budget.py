"""`seconds` bounds the whole call, whatever a density costs; phases have their parts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_naf.conditioners import Structure
from pyro_naf.infer import AutoDSFNormal, refine
from pyro_naf.infer.autoguides import AutoFlowNormal
from pyro_naf.infer.budget import Budget
from pyro_naf.infer.diagnostics import growing
from pyro_naf.infer.effort import affordable_particles
from pyro_naf.infer.joint import Joint
from pyro_naf.infer.pace import Pace
from pyro_naf.infer.refined import Origin
from pyro_naf.infer.refined_guides import sizes
from pyro_naf.infer.rough_gaussian import fit_roughly
from pyro_naf.infer.sparse_gaussian import sparse_gaussians
from pyro_naf.infer.start import Start
from pyro_naf.infer.training import Training
from pyro_naf.training.progress import Progress


class Clock:
    """A clock that only a density moves on: what each run of it costs is set, not measured."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def dear(clock: Clock, one: float, further: float) -> Callable[[Tensor], Tensor]:
    """A normal density whose batches cost so many seconds."""

    def target(z: Tensor) -> Tensor:
        clock.now += one + further * (len(z) - 1)
        return -0.5 * z.square().sum(-1)

    return target


def test_the_pace_is_what_points_cost(clock: Clock) -> None:
    pace = Pace.of(dear(clock, 0.5, 0.25), torch.zeros(3))
    assert pace[:2] == pytest.approx((0.5, 0.25))
    assert 1 < pace.operations < 10  # a sum of squares, and the sum over points
    assert pace.seconds(9) == pytest.approx(2.5) and pace.points(2.5) == 9
    assert pace.points(0.4) == 0 and pace.points(float("inf")) > 10**9


def test_batches_grow_and_add_up() -> None:
    assert list(growing(100_000))[:6] == [64, 128, 256, 512, 1000, 1000]
    for total in (1, 64, 65, 12_345):
        assert sum(growing(total)) == total


@pytest.mark.parametrize("dim, cost", [(3, 1e-3), (3, 0.1), (40, 1e-3), (40, 0.1)])
def test_a_rough_gaussian_keeps_to_its_time(clock: Clock, dim: int, cost: float) -> None:
    target = dear(clock, cost, cost)
    middle = torch.full((dim,), 3.0)
    pace = Pace.of(target, middle)
    begin = clock.now
    gaussian, *_ = fit_roughly(target, middle, 10.0, pace)
    # What is made in any case: a step of the climb, two products, four draws.
    assert clock.now - begin < 10.0 + 12 * cost
    torch.testing.assert_close(gaussian.loc, torch.zeros(dim), rtol=0, atol=1e-3)
    torch.testing.assert_close(gaussian.scale, torch.ones(dim), rtol=0.05, atol=0)


@pytest.mark.parametrize(
    "one, further, expected",
    [
        (1e-3, 1e-5, 64),  # a thousand steps are possible
        (0.1, 1e-4, 64),  # they are not, but fewer draws would cost as much
        (1e-3, 1e-3, 32),
        (1e-2, 1e-2, 8),
    ],
)
def test_draws_are_fewer_where_that_pays(one: float, further: float, expected: int) -> None:
    joint: Any = type("Joint", (), {"pace": Pace(one, further)})
    assert affordable_particles(joint, Budget(None, 60.0)) == expected
    assert affordable_particles(joint, Budget(100, None)) == 64


def test_no_step_begins_that_would_end_too_late(clock: Clock) -> None:
    budget = Budget(None, 10.0)
    for phase in budget:
        clock.now += 3.0 if phase != "landed" else 0.0
    assert clock.now == 6.0  # of 8.5; the third would end at 9
    assert budget.left() == pytest.approx(4.0)


def test_time_is_kept_for_dear_diagnostics(clock: Clock) -> None:
    budget = Budget(None, 10.0)
    assert budget.left_for_training() == pytest.approx(8.5)
    budget.keep(3.0)
    assert budget.left_for_training() == pytest.approx(7.0)
    budget.keep(30.0)
    assert budget.left_for_training() == pytest.approx(6.0)


def slow(cost: float, dim: int, clock: Clock) -> Callable[[], None]:
    """A model whose every run, for one draw or a batch, costs so many seconds."""

    def model() -> None:
        clock.now += cost
        z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.exp(), 1.0).to_event(1), obs=torch.ones(dim))

    return model


@pytest.mark.parametrize("cost", [0.1, 0.3])
@pytest.mark.parametrize("dim", [2, 35])
def test_seconds_bound_the_whole_call(clock: Clock, cost: float, dim: int) -> None:
    begin = time.monotonic()
    # A captured graph would not run the model.
    model = slow(cost, dim, clock)
    result = refine(model, seconds=20.0, compile=False, seed=0, progress=False)
    assert time.monotonic() - begin < 22.0
    assert result.elbo > -3 * dim and result.after.num_particles >= 64


def test_flows_that_there_is_no_memory_for_are_told(monkeypatch: Any) -> None:
    def model() -> None:
        pyro.sample("z", dist.Normal(torch.zeros(300), 1.0).to_event(1))

    options = dict(
        flow="dsf", num_transforms=None, hidden_dims=None, hidden_units=None, num_particles=64
    )
    start = Start(Joint(model), torch.zeros(300), torch.ones(300))
    free = "pyro_naf.infer.refined_guides._free_memory"
    full, small = sizes(Origin(start, False, options))
    assert full.options["num_transforms"] == 2 and small.options["hidden_dims"] == [128]
    assert sizes(Origin(start, False, options), 1e-3) == [small]  # no core is so fast
    (asked,) = sizes(Origin(start, False, options | asked_sizes(small)))
    assert asked.options == small.options
    monkeypatch.setattr(free, lambda _: 2.0**26)
    assert sizes(Origin(start, False, options)) == [small]
    monkeypatch.setattr(free, lambda _: 2.0**20)
    with pytest.raises(ValueError, match=r"all 300 latents without a structure needs 0.027 GiB"):
        sizes(Origin(start, False, options))


def asked_sizes(origin: Origin) -> dict[str, Any]:
    return {n: origin.options[n] for n in ("num_transforms", "hidden_dims", "hidden_units")}


@pytest.mark.parametrize(
    "cost, kind", [(0.04, AutoDSFNormal), (0.5, AutoFlowNormal)]
)  # half a second for each step leaves no time for 300
def test_a_flow_is_trained_where_there_is_time_for_its_steps(
    clock: Clock, cost: float, kind: type
) -> None:
    guide = AutoNormal(slow(cost, 3, clock))
    guide()
    trained = []
    with mock.patch.object(Training, "run", lambda self, *_: trained.append(self.guide)):
        refine(guide, seconds=30.0, num_draws=200, compile=False, seed=0, progress=False)
    assert list(map(type, trained)) == [kind]


def test_fewer_draws_make_time_for_more_steps(clock: Clock) -> None:
    guide = AutoNormal(slow(0.0, 3, clock))
    guide()
    options: dict[str, Any] = dict(seconds=60.0, num_draws=200, compile=False, progress=False)
    trained = []

    def run(self: Training, *_: Any) -> None:
        trained.append((type(self.guide), self.objective.num_particles))

    def seconds(self: Training, most: float) -> float:
        return 0.01 * self.objective.num_particles

    with (
        mock.patch.object(Training, "seconds_of_a_step", seconds),
        mock.patch.object(Training, "run", run),
    ):
        found = refine(guide, **options)
        refine(guide, num_particles=64, **options)
    # 51 seconds are 79 steps of 64 draws, 159 of 32, and 318 of 16.
    assert trained == [(AutoDSFNormal, 16), (AutoFlowNormal, 64)]
    assert found.origin is not None and found.origin.options["num_particles"] == 16


@pytest.mark.parametrize("dim", [4, 20])
def test_starts_of_a_dear_density_are_as_many_as_the_time_allows(clock: Clock, dim: int) -> None:
    target, structure = dear(clock, 0.01, 0.01), Structure.dense(dim)
    middle = torch.full((dim,), 3.0)
    pace = Pace.of(target, middle)
    begin = clock.now
    (found,), _ = sparse_gaussians(target, structure, middle, seconds=20.0, pace=pace)
    # What is made in any case: a step of 256 draws, and the estimates of its ELBO.
    assert clock.now - begin < 20.0 + 2.56 + 7 * 1.5
    torch.testing.assert_close(found.loc, torch.zeros(dim).double(), rtol=0, atol=1e-2)


def test_the_bar_names_the_phase_and_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress(is_shown=True, seconds=60.0) as progress:
        clock.now += 15.0
        progress.phase("looking for modes")
        clock.now += 15.0
        progress.at("climbing", 0.1, {"ELBO": "-3.1"})
    shown = capsys.readouterr().err
    assert "refine, looking for modes, 00:45 left:  25%" in shown
    assert "refine, climbing, 00:30 left:  50%" in shown and "ELBO=-3.1" in shown
    assert "refine, done: 100%" in shown
