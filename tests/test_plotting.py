import io
import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.colors import to_rgba

from pyro_naf.infer import importance_diagnostics
from pyro_naf.plot.panels import AFTER, BEFORE
from pyro_naf.plotting import (
    plot_densities,
    plot_losses,
    plot_marginals,
    plot_pairs,
    plot_refinement,
    plot_transformer,
    plot_weight_tails,
)
from pyro_naf.transformers import Affine, DeepDenseSigmoidal, DeepSigmoidal


def _draws(labels, shift=0.0):
    rng = np.random.default_rng(0)
    return {label: rng.normal(shift, 1.0, 2000) for label in labels}


def _texts(axes):
    return {axes.get_xlabel(), axes.get_ylabel(), axes.get_title()}


def _rendered(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# ------------------------------------------------------------------------------------- posteriors


def test_marginals_have_a_panel_for_each_scalar_and_one_legend():
    before = {"mu": torch.randn(100), "theta": torch.randn(100, 2, 2)}
    after = {"mu": torch.randn(50, requires_grad=True), "theta": torch.randn(50, 2, 2)}
    figure = plot_marginals({"before": before, "after": after}, {"mu": np.arange(41)}, columns=3)
    labels = ["mu", "theta[0,0]", "theta[0,1]", "theta[1,0]", "theta[1,1]"]
    assert [axes.get_xlabel() for axes in figure.axes] == labels
    assert _legend(figure) == ["reference", "before", "after"]
    assert _rendered(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("stage", ["before", "after"])
def test_marginals_are_densities_of_the_draws(stage):
    stages = {"before": _draws(["a"]), "after": _draws(["a"], 1.0)}
    figure = plot_marginals(stages)
    (patch,) = (p for p in figure.axes[0].patches if p.get_label() == stage)
    heights, edges, _ = patch.get_data()
    draws = stages[stage]["a"]
    inside = np.mean((draws >= edges[0]) & (draws <= edges[-1]))
    assert np.sum(heights * np.diff(edges)) == pytest.approx(inside)
    assert inside > 0.95


def _reference(known):
    figure = plot_marginals({"draws": _draws(["a"])}, {"a": known})
    (patch,) = (p for p in figure.axes[0].patches if p.get_label() == "reference")
    return patch.get_data()


def test_reference_is_the_density_of_its_draws():
    draws = np.random.default_rng(1).gamma(2.0, size=5000)
    heights, edges, _ = _reference(draws)
    expected, _ = np.histogram(draws, edges)
    np.testing.assert_allclose(heights * np.diff(edges), expected / 5000, atol=1e-3)


def test_reference_is_drawn_from_its_quantiles_too():
    quantiles = -np.log1p(-0.999 * np.linspace(0.0, 1.0, 41))  # of an exponential
    heights, edges, _ = _reference(quantiles)
    expected = np.diff(1 - np.exp(-edges.clip(0))) / 0.999
    inside = edges[1:] < quantiles[-2]  # one block from there to the last
    np.testing.assert_allclose((heights * np.diff(edges))[inside], expected[inside], atol=2e-3)


def test_pairs_are_a_triangle_of_scatter_plots_with_marginals_on_its_diagonal():
    draws = _draws(["a", "b", "c"])
    figure = plot_pairs({"guide": draws}, reference=_draws(["a", "b"], 0.5))
    assert len(figure.axes) == 6
    points = [[c.get_offsets() for c in axes.collections] for axes in figure.axes]
    assert [len(clouds) for clouds in points] == [0, 2, 0, 1, 1, 0]
    np.testing.assert_array_equal(points[3][0], np.stack([draws["a"], draws["c"]], 1))
    assert [figure.axes[i].get_ylabel() for i in (1, 3)] == ["b", "c"]
    assert [axes.get_xlabel() for axes in figure.axes[3:]] == ["a", "b", "c"]
    _rendered(figure)


def test_stages_keep_their_colours_where_a_parameter_is_missing_in_one():
    figure = plot_marginals({"before": _draws(["a"]), "after": _draws(["a", "b"])})
    (patch,) = figure.axes[1].patches
    assert patch.get_label() == "after" and patch.get_edgecolor()[2] > 0.5  # blue


def test_draws_that_are_not_finite_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'a' in 'guide' must be finite.* in 1 of 3"):
        plot_marginals({"guide": {"a": [0.0, np.nan, 1.0]}})
    with pytest.raises(ValueError, match="at least one parameter"):
        plot_pairs({})


# ------------------------------------------------------------------------- densities, transformers


def test_a_density_is_normalised_over_the_picture_and_lies_where_it_should():
    normal = dist.Normal(torch.tensor([1.0, -1.0]), 0.2).to_event(1)
    pictures = {"scaled": lambda x: normal.log_prob(x) + 50.0, "draws": normal.sample([5000])}
    figure = plot_densities(pictures, ((-2, 2), (-2, 2)), labels=("a", "b"), points=80)
    assert [_texts(axes) for axes in figure.axes] == [{"a", "b", "scaled"}, {"a", "", "draws"}]
    for axes in figure.axes:
        (image,) = axes.images
        density = image.get_array()
        assert image.get_extent() == [-2, 2, -2, 2] and image.origin == "lower"
        row, column = np.unravel_index(density.argmax(), density.shape)
        assert row < len(density) / 2 < column  # y = -1, x = 1
        assert density.sum() * 16 / density.size == pytest.approx(1.0, rel=0.03)
    assert figure.axes[0].images[0].get_clim() == figure.axes[1].images[0].get_clim()


def test_a_log_density_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"'x' must map \(400, 2\) to \(400,\), got \(400, 2\)"):
        plot_densities({"x": lambda x: x}, ((0, 1), (0, 1)), points=20)


@pytest.mark.parametrize("transformer", [Affine(), DeepSigmoidal(4), DeepDenseSigmoidal(4)])
def test_the_slope_of_a_transformer_is_the_derivative_of_its_curve(transformer):
    phi = torch.randn(2, transformer.num_params)
    figure = plot_transformer(transformer, phi, limits=(-2.0, 2.0), labels=["one", "two"])
    assert _legend(figure) == ["one", "two"]
    for value, slope in zip(*(axes.lines for axes in figure.axes), strict=True):
        x, y = (np.asarray(values, float) for values in value.get_data())
        drawn = np.asarray(slope.get_ydata(), float)
        np.testing.assert_allclose(np.gradient(y, x)[1:-1], drawn[1:-1], rtol=0.02, atol=2e-3)


def test_pseudo_parameters_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"\(12,\) or \(N, 12\), got \(5,\)"):
        plot_transformer(DeepSigmoidal(4), torch.zeros(5))


# --------------------------------------------------------------------------------- losses, weights


def test_losses_may_have_gaps_and_a_level_to_compare_with():
    figure = plot_losses(
        {"DSF": [3.0, float("nan"), 1.0]},
        levels={"entropy": 0.5},
        xlabel="epoch",
        ylabel="nats per row",
    )
    (axes,) = figure.axes
    assert axes.get_ylabel() == "nats per row" and axes.get_xlabel() == "epoch"
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["DSF", "entropy: 0.50"]
    _rendered(figure)


def test_the_tail_of_the_weights_falls_with_the_shape_that_khat_says():
    weights = dist.Pareto(1.0, 2.0).sample([20_000]).double()  # a tail of shape 1/2
    found = importance_diagnostics(_normal, _normal, num_particles=100)
    found = type(found)(weights.log(), 0.0, 0.0, 0.5, 1.0, 0.0, 0.0)
    axes = plot_weight_tails({"pareto": found}).axes[0]
    points, fitted, _, _ = axes.lines
    for line in (points, fitted):
        x, y = line.get_data()
        tail = (y > 1e-3) & (y < 1e-2)
        slope, _ = np.polyfit(np.log(x[tail]), np.log(y[tail]), 1)
        assert slope == pytest.approx(-2.0, rel=0.15)
    assert fitted.get_label() == "pareto: k-hat 0.50"


def test_even_weights_have_no_tail_to_draw():
    found = importance_diagnostics(_normal, _normal, num_particles=100)
    _rendered(plot_weight_tails({"itself": found}))


def _normal():
    pyro.sample("x", dist.Normal(0.0, 1.0))


# ------------------------------------------------------------------------------------- refinements


def test_refinement_labels_each_marginal_the_pair_and_the_curve():
    labels = ["a", "b", "c", "d"]
    losses = np.linspace(5.0, 3.0, 500)
    figure = plot_refinement(
        _draws(labels), _draws(labels, 1.0), losses, (-5.0, -3.0), pair=("a", "b")
    )
    assert [axes.get_xlabel() for axes in figure.axes[:4]] == labels
    assert [_texts(axes) for axes in figure.axes[4:]] == [
        {"a", "b", "before"},
        {"a", "b", "after"},
        {"step", "", "ELBO during the refinement"},
    ]
    assert _legend(figure) == ["before", "after"]
    colours = [patch.get_edgecolor() for patch in figure.axes[0].patches]
    assert colours == [to_rgba(BEFORE), to_rgba(AFTER)]
    assert _rendered(figure).startswith(b"\x89PNG")


def test_one_parameter_needs_no_pair():
    figure = plot_refinement(_draws(["a"]), _draws(["a"]), [1.0, 0.5], (-1.0, -0.5))
    assert len(figure.axes) == 2
    _rendered(figure)


def test_constant_draws_one_step_and_labels_with_dollars_are_drawn():
    constant = {"$a": np.zeros(10), "b$": np.ones(10)}
    figure = plot_refinement(constant, constant, [1.0], (-1.0, -1.0), pair=("$a", "b$"))
    _rendered(figure)


# ------------------------------------------------------------------------------------- matplotlib


def test_drawing_leaves_pyplot_alone():
    code = (
        "import sys, torch, pyro_naf.plotting as p\n"
        "assert 'matplotlib' not in sys.modules\n"
        "p.plot_marginals({'a': {'x': torch.randn(9)}}), p.plot_losses({'a': [1.0, 2.0]})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro_naf\[plots\]'"):
        plot_losses({"a": [1.0, 2.0]})
