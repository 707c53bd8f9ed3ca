"""Questions to densities without a closed form: weighted draws against exact answers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from torch import Tensor

from pyro_naf.density import FlowDensity, questions, weighted
from pyro_naf.density.weighted import Weighted, WeightedDensity, proposal

QUICK: dict[str, Any] = {"seed": 0, "progress": False}
N = 400
GENERATOR = torch.Generator().manual_seed(0)
LOWER = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.5, 0.4, 0.7]]).double()
ROWS = torch.randn(N, 3, generator=GENERATOR, dtype=torch.double) @ LOWER.T + 5


@pytest.fixture(scope="module", autouse=True)
def few_draws() -> Iterator[None]:
    """Proposals fitted to fewer draws, in less time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighted, "FITTED_TO", 1000)
        patch.setattr(weighted, "COMPARED", 200)
        yield


@pytest.fixture(scope="module")
def gaussian() -> FlowDensity:
    return FlowDensity(architecture="gaussian", **QUICK).fit(ROWS)


@pytest.fixture(scope="module")
def by(gaussian: FlowDensity) -> Any:
    return proposal(gaussian)


@pytest.fixture(scope="module")
def flow() -> FlowDensity:
    """Two columns on a parabola."""
    rows = torch.stack([ROWS[:, 0] - 5, (ROWS[:, 0] - 5) ** 2 + 0.3 * ROWS[:, 1]], 1)
    options = {"hidden_dims": [16], "hidden_units": 8, "max_steps": 150, "lr": 1e-2}
    return FlowDensity(architecture="maf-dsf-1", **options, **QUICK).fit(rows)


def of(density: FlowDensity, by: Any, columns: list[int], given: dict[int, float]) -> Any:
    row = torch.full((1, density.width), math.nan, dtype=torch.double)
    for i, value in given.items():
        row[0, i] = value
    return WeightedDensity(density, by, columns, row, 400)


@pytest.mark.parametrize(
    "columns, given", [([1, 2], {0: 6.5}), ([2], {0: 6.5}), ([2, 0], {}), ([0], {2: 4.0, 1: 5})]
)
def test_weighted_answers_are_those_of_the_closed_form(
    gaussian: FlowDensity, by: Any, columns: list[int], given: dict[int, float]
) -> None:
    found = of(gaussian, by, columns, given)
    exact = gaussian.condition(given) if given else gaussian
    names = [i for i in range(3) if i not in given]
    exact = exact.marginal([names.index(i) for i in columns])
    torch.manual_seed(0)
    drawn = exact.sample(2000)
    # The proposal is a mixture fitted to draws: weights vary, but by little.
    assert found.ess > 250
    error = found.log_prob(drawn[:50]) - exact.log_prob(drawn[:50])
    assert abs(float(error.mean())) < 0.02 and float(error.std()) < 0.1
    own = found.sample(2000).double()
    errors = drawn.std(0) / 2000**0.5
    assert ((own.mean(0) - drawn.mean(0)).abs() < 6 * errors).all()
    torch.testing.assert_close(own.T.cov(), drawn.T.cov(), rtol=0.2, atol=0.05)
    values = found.anomaly_score(drawn[:50])
    assert abs(values.mean() - 0.5) < 0.15 and values.min() > 0


def test_the_effective_number_of_draws_is_that_of_kish() -> None:
    weights = torch.tensor([[1.0, 1.0], [1.0, 0.0], [2.0, 0.0]]).double()
    found = Weighted(torch.zeros(3, 2, 1), weights.log())
    torch.testing.assert_close(found.ess, torch.tensor([16 / 6, 1.0]).double())
    torch.testing.assert_close(found.log_prob, torch.tensor([4 / 3, 1 / 3]).log().double())


def test_conditionals_of_a_flow_integrate_to_one_and_are_drawn_from(flow: FlowDensity) -> None:
    for given in (-1.5, 1.0):
        law = flow.condition({0: given})
        assert isinstance(law, WeightedDensity) and law.ess > 200
        grid = torch.linspace(-6, 14, 2001).double().unsqueeze(1)
        with torch.no_grad():
            density = law.log_prob(grid).double().exp()
        # The estimate of p(given) is off by 1 / sqrt(ESS) at most, here 5 %.
        assert float(torch.trapezoid(density, grid[:, 0])) == pytest.approx(1, abs=0.15)
        mean = float(torch.trapezoid(density * grid[:, 0], grid[:, 0]) / density.sum() / 0.01)
        assert float(law.sample(2000).mean()) == pytest.approx(mean, abs=0.15)


def test_marginals_and_gaps_of_a_flow_follow_its_own_draws(flow: FlowDensity) -> None:
    law = flow.marginal([1])
    assert isinstance(law, WeightedDensity)
    edges = np.quantile(flow.sample(4000)[:, 1].numpy(), [0.05, 0.95])
    grid = torch.linspace(float(edges[0]), float(edges[1]), 60).double().unsqueeze(1)
    with torch.no_grad():
        mass = torch.trapezoid(law.log_prob(grid).double().exp(), grid[:, 0])
    assert float(mass) == pytest.approx(0.9, abs=0.03)
    gaps = torch.tensor([[1.5, math.nan], [0.5, 0.4]])
    filled = flow.impute(gaps, 200, seed=0)
    assert torch.equal(filled[:, 1], gaps[1].expand(200, 2))
    own = flow.condition({0: 1.5}).sample(2000).double()
    assert float(filled[:, 0, 1].mean()) == pytest.approx(float(own.mean()), abs=0.2)


def test_classes_and_integers_beside_a_flow_are_answered() -> None:
    shade = np.where(ROWS[:, 0] > 5, "dark", "light")
    frame = pandas.DataFrame(
        {"a": ROWS[:, 0], "shade": shade, "count": (ROWS[:, 1] * 2).round().int().numpy()}
    )
    options = {"hidden_dims": [16], "max_steps": 60, "lr": 1e-2}
    density = FlowDensity(architecture="maf-affine-1", **options, **QUICK).fit(frame)
    law = density.condition({"shade": "dark"})
    share = float((shade == "dark").mean())
    assert law.log_given == pytest.approx(math.log(share), abs=0.15)  # type: ignore[union-attr]
    drawn = law.sample(100, as_table=True)
    whole = density.sample(2000)
    own = whole[whole["shade"] == "dark"]
    assert list(drawn.columns) == ["a", "count"]
    for name in ("a", "count"):
        assert drawn[name].mean() == pytest.approx(
            own[name].mean(), abs=5 * own[name].std() / 100**0.5
        )
    assert np.isfinite(law.score(drawn))
    both = density.condition({"shade": "dark", "count": 10}).score(pandas.DataFrame({"a": [5.5]}))
    again = law.condition({"count": 10}).score(pandas.DataFrame({"a": [5.5]}))
    assert both == pytest.approx(again, abs=0.3)
    filled = density.impute(frame.assign(shade=None)[:3], 5, seed=0)
    assert set(filled[..., 1].flat) <= {0.0, 1.0}  # the places among "dark" and "light"


def test_closed_forms_of_some_columns_compare_with_their_own_draws(gaussian: FlowDensity) -> None:
    law = gaussian.condition({0: 6.0})
    drawn = law.sample(400)
    assert abs(law.anomaly_score(drawn).mean() - 0.5) < 0.08
    assert law.anomaly_score([[99.0, 99.0]])[0] < 0.01


def test_too_few_effective_draws_are_warned_of(
    flow: FlowDensity, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.warns(UserWarning, match=r"condition rests on \d+ effective draws of 20, at least"):
        flow.condition({0: 0.5}, num_particles=20)
    far: Tensor = torch.full((1, 2), math.nan).double()
    far[0, 0] = 1e30
    with pytest.raises(ValueError, match="its density is zero"):
        WeightedDensity(flow, proposal(flow), [1], far, 100)
    with pytest.raises(ValueError, match="columns names 5, but the density has the columns 0 to 1"):
        flow.marginal([5])
    monkeypatch.setattr(questions, "closed_parts", lambda density: None)
    given = FlowDensity(1, 1, "gaussian", **QUICK).fit(ROWS[:, :1], ROWS[:, 1:2])
    with pytest.raises(ValueError, match="condition needs a density without a context"):
        given.condition({0: 1.0})
