"""Columns with spikes: values that recur, with probabilities, beside a rest that has a density."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_naf.density import FlowDensity, spikes
from pyro_naf.density.architectures import build

QUICK: dict[str, Any] = {"seed": 0, "progress": False}


def rain(n: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Temperature, and rain that depends on it; the true log-density of each row."""
    rng = np.random.default_rng(seed)
    t = rng.normal(size=n)
    chance = 1 / (1 + np.exp(-1.5 * t))
    wet = rng.random(n) < chance
    log_amount = 0.5 * t + 0.7 * rng.normal(size=n)
    of_amount = -0.5 * ((log_amount - 0.5 * t) / 0.7) ** 2 - math.log(0.7) - log_amount
    of_rain = of_amount - 0.5 * math.log(2 * math.pi)
    truth = -0.5 * t**2 - 0.5 * math.log(2 * math.pi)
    truth += np.where(wet, np.log(chance) + of_rain, np.log1p(-chance))
    return {"temperature": t, "rain": np.where(wet, np.exp(log_amount), 0.0)}, truth


RANDOM = np.random.default_rng(0)
NOISE, HALF = RANDOM.normal(size=400), np.arange(400) % 2 == 0
THIRD = np.arange(400) % 3

#: Columns, and their spikes.
FOUND: dict[str, tuple[np.ndarray, tuple[float, ...]]] = {
    "zeros": (np.where(HALF, 0.0, np.exp(NOISE)), (0.0,)),
    "both ends": (np.select([THIRD == 0, HALF], [0.0, 100.0], 100 * RANDOM.random(400)), (0, 100)),
    "a sentinel": (np.where(THIRD == 0, -999.0, NOISE), (-999.0,)),
    "zeros among integers": (np.where(HALF, 0, RANDOM.poisson(40, 400)), (0,)),
    "no value": (NOISE, ()),
    "few zeros": (np.where(np.arange(400) < 12, 0.0, NOISE), ()),
    "rounded": (NOISE.round(1), ()),
    "counts": (RANDOM.poisson(2.0, 400), ()),
    "two values": (HALF.astype(float), ()),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_spike_is_a_value_that_recurs_among_others_that_do_not(name: str) -> None:
    values, expected = FOUND[name]
    assert spikes.spikes_of(torch.tensor(values).double()) == expected


@pytest.mark.parametrize(
    "architecture, options",
    [
        ("maf-dsf-1", {"max_steps": 250, "hidden_dims": [16], "affine": True, "lr": 1e-2}),
        ("gmm-8", {}),
    ],
)
def test_the_law_of_a_zero_inflated_column_is_learnt(
    architecture: str, options: dict[str, Any], tmp_path: Path
) -> None:
    rows, _ = rain(10_000, 0)
    new, truth = rain(20_000, 1)
    density = FlowDensity(architecture=architecture, **QUICK, **options).fit(rows)
    assert density.note is not None and "rain as positive, with spikes at 0" in density.note
    scores = density.score_samples(new)
    assert abs(float((truth - scores).mean())) < 0.05
    drawn = density.sample(4000, as_table=False)[:, 1]
    assert float((drawn == 0).double().mean()) == pytest.approx((new["rain"] == 0).mean(), abs=0.03)
    assert float(drawn.min()) >= 0
    density.save(tmp_path / "model.pt")
    again = FlowDensity.load(tmp_path / "model.pt")
    np.testing.assert_array_equal(again.score_samples(new)[:9], scores[:9])


GRID = torch.linspace(-14, 14, 281, dtype=torch.double)
FLOWS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "maf-dsf-2": {"whiten": True, "affine": True},
    "maf-nsf-2": {"base": "student"},
    "attention-affine-2": {"num_heads": 2},
}


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_of_rows_with_holes_is_a_density_for_each_set_of_dimensions(name: str) -> None:
    torch.manual_seed(0)
    options = {"hidden_dims": [8], **FLOWS[name]} if name != "gaussian" else {}
    flow = build(name, 2, 2, holes={0: 0, 1: 1}, **options).double().eval()
    correlated = torch.randn(500, 2).double() @ torch.tensor([[1.0, 0.7], [0.0, 0.5]]).double()
    gone = torch.rand(500, 2) < 0.3
    flow.start(torch.where(gone, torch.nan, correlated), (~gone).double())
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.2 * torch.randn_like(p))
        for here in ([1.0, 1.0], [1.0, 0.0], [0.0, 1.0]):
            _check_law(flow, torch.tensor(here).double())
        nothing = flow.log_prob(GRID[:2].unsqueeze(0), torch.zeros(2).double())
    assert nothing.tolist() == [0.0]


def _check_law(flow: Any, here: Tensor) -> None:
    """The density integrates to one, and is that of draws, column by column."""
    own = [GRID if h else torch.zeros(1).double() for h in here.tolist()]
    table = flow.log_prob(torch.cartesian_prod(*own), here).exp().view(len(own[0]), len(own[1]))
    step = float(GRID[1] - GRID[0])
    table = table * step ** float(here.sum())
    assert float(table.sum()) == pytest.approx(1, abs=2e-3)
    drawn = flow.rsample(1, here.expand(4000, 2))[0]
    for dim, law in ((0, table.sum(1)), (1, table.sum(0))):
        if here[dim] == 0:
            assert bool((drawn[:, dim] == 0).all())
            continue
        below = (drawn[:, dim, None] < GRID + step / 2).double().mean(0)
        assert float((below - law.cumsum(0)).abs().max()) < 0.035  # 2.2 / sqrt(4000)


def test_marginals_and_conditionals_of_a_mixture_with_spikes_are_exact() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=300)
    table = {
        "amount": np.where(z + rng.normal(size=300) > 0, np.exp(z), 0.0),
        "a": z + rng.normal(size=300),
        "group": np.where(z > 0, "u", "v"),
        "share": np.select([z > 1, z < -1], [0.0, 100.0], 100 * rng.random(300)),
    }
    density = FlowDensity(architecture="gmm-2", **QUICK).fit(table)
    table = {name: values[:30] for name, values in table.items()}
    assert [len(c.spikes) for c in density.schema.columns] == [1, 0, 0, 2]

    def without(rows: dict[str, Any], names: set[str]) -> dict[str, Any]:
        gone = {"group": np.full(30, None)}
        return {k: gone.get(k, np.full(30, np.nan)) if k in names else v for k, v in rows.items()}

    some = density.marginal(["share", "group", "a"]).score_samples(table)
    whole = density.score_samples(without(table, {"amount"}))
    np.testing.assert_allclose(some, whole, atol=1e-4)
    for given in ({"amount": 0.0, "a": 0.5}, {"amount": 1.5, "group": "u"}, {"share": 100}):
        rows = {**table, **{k: np.full(30, v) for k, v in given.items()}}
        joint = density.score_samples(rows)
        known = density.score_samples(without(rows, {*table} - {*given}))
        found = density.condition(given).score_samples(rows)
        np.testing.assert_allclose(found, joint - known, atol=1e-4)


def test_questions_to_a_flow_with_spikes_are_answered_by_its_joint_law() -> None:
    rows, _ = rain(1500, 0)
    options = {"max_steps": 100, "hidden_dims": [8]}
    density = FlowDensity(architecture="maf-dsf-1", **QUICK, **options).fit(rows)
    step = 0.02
    t = torch.arange(-6, 6, step, dtype=torch.double)
    dry = density.log_prob(torch.stack([t, torch.zeros_like(t)], 1)).detach()
    given = density.condition({"rain": 0.0})
    expected = dry - (dry.exp().sum() * step).log()
    close = {"rtol": 0.0, "atol": 0.1}
    near = t.abs() < 2
    torch.testing.assert_close(
        given.log_prob(t.unsqueeze(1))[near].double(), expected[near], **close
    )
    none = torch.zeros(1, 1).double()
    share = density.marginal(["rain"]).log_prob(none).exp().detach()
    assert float(share) == pytest.approx(float(dry.exp().sum() * step), abs=0.01)
    cold = (
        density.condition({"temperature": -1.0}).log_prob(torch.zeros(1, 1).double()).exp().detach()
    )
    imputed = density.impute([[-1.0, math.nan]], 2000, seed=0)[:, 0, 1]
    assert (imputed == 0).mean() == pytest.approx(float(cold), abs=0.05)
    assert imputed.min() >= 0 and imputed.max() > 0


def test_a_zero_inflated_count_has_probabilities_that_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    visits = np.where(rng.random((4000, 1)) < 0.6, 0, rng.poisson(8, (4000, 1)))
    density = FlowDensity(architecture="gmm-5", **QUICK).fit(visits)
    assert (density.schema.columns[0].kind, density.schema.columns[0].spikes) == ("integer", (0.0,))
    values = torch.arange(0, 40).unsqueeze(1)
    found = density.log_prob(values).exp()
    assert float(found.sum()) == pytest.approx(1, abs=0.01)
    law = torch.distributions.Poisson(8.0).log_prob(torch.arange(0.0, 40.0)).exp()
    exact = 0.4 * law + 0.6 * (values[:, 0] == 0)
    assert float((exact * (exact / found).log()).sum()) < 0.02
    drawn = density.sample(2000)
    assert torch.equal(drawn, drawn.round())
    assert float((drawn == 0).double().mean()) == pytest.approx(0.6, abs=0.04)


def test_spikes_are_said_and_refused_where_an_architecture_has_none() -> None:
    rows = np.c_[NOISE[::-1], np.where(THIRD == 0, 5.0, NOISE)]
    said = FlowDensity(architecture="gaussian", columns={1: ("spiked", 5)}, **QUICK).fit(rows)
    assert said.schema.columns[1].spikes == (5.0,)
    on_spike = said.log_prob(torch.tensor([[0.0, 5.0], [0.0, 5.0 + 1e-3]])).exp().detach()
    assert float(on_spike[0]) == pytest.approx((THIRD == 0).mean() * 0.4, abs=0.03)
    assert float(on_spike[1]) < 1e-3
    for architecture in ("tan", "bnaf-1", "student-2"):
        density = FlowDensity(architecture=architecture, columns={1: ("spiked", 5)}, **QUICK)
        with pytest.raises(ValueError, match=r"has spikes in column 1, which architecture .*auto"):
            density.fit(rows)
    with pytest.raises(ValueError, match=r"no value that recurs: say \('spiked', value\)"):
        FlowDensity(columns={0: "spiked"}, **QUICK).fit(rows)
    with pytest.raises(ValueError, match="holds no plain numbers, and cannot be zero-inflated"):
        FlowDensity(columns={"a": "zero-inflated"}, **QUICK).fit({"a": ["x", "y"] * 30})


def test_spikes_that_are_no_numbers_are_refused() -> None:
    density = FlowDensity(architecture="gmm-2", columns={0: ("spiked", "x")})
    with pytest.raises(ValueError, match="must have numbers after 'spiked'"):
        density.fit(torch.rand(50, 2), max_seconds=1)


def test_a_density_is_shown_as_a_short_table() -> None:
    rows = torch.rand(80, 2)
    density = FlowDensity(architecture="gmm-2", columns={0: ("spiked", 0), 1: ("bounded", 0, 1)})
    assert "not fitted" in repr(density)
    rows[:40, 0] = 0.0
    density.fit(rows, max_seconds=1)
    shown = repr(density)
    assert shown.startswith("FlowDensity('gmm-2')") and "not fitted" not in shown
    assert "0 recurs" in shown and "0 to 1" in shown and len(shown.splitlines()) < 8
    assert "<table>" in density._repr_html_()


def test_zeros_beside_counts_are_a_spike_and_those_of_counts_alone_are_none() -> None:
    torch.manual_seed(0)
    counts = torch.poisson(torch.full((1500,), 4.0))
    inflated = torch.where(torch.rand(1500) < 0.5, 0.0, counts)
    assert spikes.spikes_of(inflated, spikes.OF_INTEGERS) == (0.0,)
    for rate in (0.7, 1.0, 4.0, 20.0):
        alone = torch.poisson(torch.full((1500,), rate))
        assert spikes.spikes_of(alone, spikes.OF_INTEGERS) == ()
