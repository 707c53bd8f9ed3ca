"""Claims about the picture of a fitted density."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest
import torch

from pyro_naf.density import FlowDensity, plot_density
from pyro_naf.density.settings import History

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")

QUICK: dict[str, Any] = {"progress": False, "seed": 0}


def mixed(n: int = 120) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    days = rng.integers(90, size=n).tolist()
    return {
        "x": rng.normal(size=n),
        "region": rng.choice(["north", "a name of many letters"], n, p=[0.75, 0.25]),
        "visits": rng.poisson(2, n),
        "day": [datetime.date(2020, 1, 1) + datetime.timedelta(d) for d in days],
        "sold": rng.random(n) < 0.3,
    }


def bars(axes: Any) -> dict[str, list[float]]:
    """The heights of the bars by label."""
    found = {}
    for container in axes.containers:
        found[container.get_label()] = [bar.get_height() for bar in container]
    return found


def test_every_kind_of_column_has_its_panel() -> None:
    table = mixed()
    density = FlowDensity(architecture="gaussian").fit(table, **QUICK)
    axes = {a.get_xlabel(): a for a in plot_density(density, table).axes[:5]}
    assert list(axes) == list(table)
    shown = bars(axes["region"])
    assert shown["data"] == [np.mean(table["region"] == v) for v in np.unique(table["region"])]
    assert shown["draws"] == pytest.approx(shown["data"], abs=0.1)
    assert [t.get_text() for t in axes["region"].get_xticklabels()] == ["a name...ters", "north"]
    assert [t.get_text() for t in axes["sold"].get_xticklabels()] == ["False", "True"]
    assert len(bars(axes["visits"])["data"]) == len(np.unique(table["visits"]))
    axes["day"].figure.canvas.draw()
    assert any(
        "Jan" in t.get_text() or "2020" in t.get_text() for t in axes["day"].get_xticklabels()
    )


def test_the_pairs_are_those_that_depend_most() -> None:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    x[:, 3] = -x[:, 1].exp()  # monotone: ranks, not values
    density = FlowDensity(architecture="gaussian", columns="continuous").fit(x, **QUICK)
    axes = plot_density(density, x, num_samples=300).axes
    assert [axes[4].get_xlabel(), axes[4].get_ylabel()] == ["1", "3"]
    data, draws = axes[4].collections
    np.testing.assert_allclose(data.get_offsets(), x[:, [1, 3]], rtol=1e-6)
    assert len(draws.get_offsets()) == 300


def test_many_columns_and_missing_cells_are_said_and_drawn() -> None:
    x = torch.randn(100, 14)
    x[::3, 0] = torch.nan
    density = FlowDensity(architecture="gaussian").fit(x, **QUICK)
    figure = plot_density(density, x)
    assert figure.get_supxlabel() == "the first 12 of 14 columns"
    assert [a.get_xlabel() for a in figure.axes[:12]] == [str(i) for i in range(12)]


def test_a_context_gives_each_row_its_draw() -> None:
    c = torch.linspace(-3, 3, 400).unsqueeze(1)
    x = c + 0.1 * torch.randn(400, 1)
    density = FlowDensity(context_dim=1, architecture="gaussian").fit(x, c, **QUICK)
    axes = plot_density(density, x, c, num_samples=100).axes[0]
    assert axes.get_xlim()[1] - axes.get_xlim()[0] > 5  # draws of all contexts
    with pytest.raises(ValueError, match="context must be of width 1, got None"):
        plot_density(density)


def test_curves_and_levels_are_those_of_the_history() -> None:
    density = FlowDensity(architecture="gaussian").fit(torch.randn(50, 1), **QUICK)
    entry = {"step": 0, "density": "maf-dsf-2", "fold": 0, "validation": -3.0}
    later = {**entry, "step": 10, "validation": -2.0}
    level = {"name": "auto", "mean": -1.5, "2se": None}
    density.history = History([entry, later], comparison=[level])
    axes = plot_density(density).axes[-1]
    curve, line = axes.get_lines()
    assert curve.get_xydata().tolist() == [[0, -3], [10, -2]] and line.get_ydata()[0] == -1.5
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["maf-dsf-2", "auto: -1.50"]


def test_what_is_not_fitted_has_no_picture() -> None:
    with pytest.raises(ValueError, match="not fitted"):
        plot_density(FlowDensity())
