import io
import sys

import numpy as np
import pytest

from pyro_naf.plotting import AFTER, BEFORE, refinement_figure


def _draws(labels, shift=0.0):
    rng = np.random.default_rng(0)
    return {label: rng.normal(shift, 1.0, 2000) for label in labels}


def _texts(axes):
    return {axes.get_xlabel(), axes.get_ylabel(), axes.get_title()}


def _rendered(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def test_figure_labels_each_marginal_the_pair_and_the_curve():
    labels = ["a", "b", "c", "d"]
    losses = np.linspace(5.0, 3.0, 500)
    figure = refinement_figure(
        _draws(labels), _draws(labels, 1.0), losses, (-5.0, -3.0), pair=("a", "b")
    )
    assert [axes.get_xlabel() for axes in figure.axes[:4]] == labels
    assert [_texts(axes) for axes in figure.axes[4:]] == [
        {"a", "b", "before"},
        {"a", "b", "after"},
        {"step", "", "ELBO during the refinement"},
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["before", "after"]
    assert _rendered(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("stage", ["before", "after"])
def test_marginals_are_densities_of_the_draws(stage):
    before, after = _draws(["a"]), _draws(["a"], 1.0)
    figure = refinement_figure(before, after, [1.0, 0.5], (-1.0, -0.5))
    colour, draws = {"before": (BEFORE, before), "after": (AFTER, after)}[stage]
    (patch,) = (p for p in figure.axes[0].patches if p.get_label() == stage)
    heights, edges, _ = patch.get_data()
    inside = np.mean((draws["a"] >= edges[0]) & (draws["a"] <= edges[-1]))
    assert np.sum(heights * np.diff(edges)) == pytest.approx(inside)
    assert inside > 0.95


def test_reference_is_drawn_from_its_quantiles_and_has_mass_one():
    levels = np.linspace(0.0, 1.0, 41)
    quantiles = -np.log1p(-0.999 * levels)
    figure = refinement_figure(
        _draws(["a"]), _draws(["a"]), [1.0], (-1.0, -1.0), reference={"a": quantiles}
    )
    (patch,) = (p for p in figure.axes[0].patches if p.get_label() == "reference")
    heights, edges, _ = patch.get_data()
    assert np.sum(heights * np.diff(edges)) == pytest.approx(1.0)
    np.testing.assert_array_equal(edges, quantiles)


def test_one_parameter_needs_no_pair():
    figure = refinement_figure(_draws(["a"]), _draws(["a"]), [1.0, 0.5], (-1.0, -0.5))
    assert len(figure.axes) == 2
    _rendered(figure)


def test_constant_draws_one_step_and_labels_with_dollars_are_drawn():
    constant = {"$a": np.zeros(10), "b$": np.ones(10)}
    figure = refinement_figure(constant, constant, [1.0], (-1.0, -1.0), pair=("$a", "b$"))
    _rendered(figure)


def test_drawing_leaves_pyplot_alone():
    had = "matplotlib.pyplot" in sys.modules
    refinement_figure(_draws(["a"]), _draws(["a"]), [1.0], (-1.0, -1.0))
    assert ("matplotlib.pyplot" in sys.modules) == had
