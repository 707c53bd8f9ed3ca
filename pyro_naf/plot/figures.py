r"""Pictures of posteriors, densities and transformers.

They need matplotlib (``pip install 'pyro_naf[plots]'``). Every function returns its Figure, shows
nothing and leaves pyplot alone: ``figure.savefig(path)`` writes it, and in a notebook after
``%matplotlib inline`` a figure at the end of a cell is displayed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..support.labels import scalar_parameters
from ..transformers import Transformer
from .panels import (
    AFTER,
    BEFORE,
    COLOURS,
    REFERENCE,
    Draws,
    by_parameter,
    density_image,
    draw_curves,
    draw_marginal,
    frame_pair,
    hide_frame,
    new_figure,
    scatter,
    shared_legend,
    stage_colours,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "plot_densities",
    "plot_marginals",
    "plot_pairs",
    "plot_refinement",
    "plot_transformer",
]


def plot_marginals(
    stages: Mapping[str, Draws], reference: Draws | None = None, *, columns: int = 4
) -> Figure:
    """Histograms of every scalar parameter, stages over one another, the reference in grey.

    :param stages: label to draws: site to tensor or array ``(n, ...)``, as
        :func:`pyro_naf.infer.draws` returns them. A site of several dimensions has a panel for
        each scalar.
    :param reference: draws ``(n, ...)`` of the true posterior by the same sites, or, for scalars,
        their quantiles ``(q,)`` at evenly spaced levels from 0 to 1.
    :param columns: panels in a row, >= 1.
    :returns: the figure; a panel ends at the middle 99 % of the draws.
    :raises ValueError: for no stages, or draws that are not finite.
    :raises ImportError: without matplotlib.

    >>> before, after = {"x": torch.randn(100, 2)}, {"x": torch.randn(100, 2)}
    >>> figure = plot_marginals({"before": before, "after": after})
    >>> [axes.get_xlabel() for axes in figure.axes]
    ['x[0]', 'x[1]']
    """
    shown, known = by_parameter(stages), scalar_parameters(reference or {})
    width = min(columns, len(shown))
    rows = -(-len(shown) // width)
    figure = new_figure(2.6 * width, 2.2 * rows + 0.3)
    for i, (label, draws) in enumerate(shown.items()):
        axes = figure.add_subplot(rows, width, i + 1)
        draw_marginal(axes, draws, known.get(label), stage_colours(stages))
        axes.set_xlabel(label, parse_math=False)  # a site may be called anything, "$" included
    shared_legend(figure)
    return figure


def plot_pairs(stages: Mapping[str, Draws], reference: Draws | None = None) -> Figure:
    """Every pair of scalar parameters as scatter plots, with their marginals on the diagonal.

    Give few parameters: D of them have D (D + 1) / 2 panels.

    :param stages: as in :func:`plot_marginals`; the first 2000 draws of each are scattered.
    :param reference: draws ``(n, ...)`` of the true posterior by the same sites.
    :returns: the figure.
    :raises ValueError: as there.
    :raises ImportError: without matplotlib.

    >>> figure = plot_pairs({"guide": {"x": torch.randn(100, 2)}})
    >>> len(figure.axes)
    3
    """
    shown, known = by_parameter(stages), scalar_parameters(reference or {})
    labels, colours, size = list(shown), stage_colours(stages), len(shown)
    figure = new_figure(2.0 * size + 0.6, 2.0 * size + 0.6)
    panels = figure.subplots(size, size, squeeze=False)
    for i, y in enumerate(labels):
        for j, x in enumerate(labels):
            axes = panels[i, j]
            if j > i:
                axes.remove()
                continue
            if j == i:
                draw_marginal(axes, shown[x], known.get(x), colours)
            else:
                if x in known and y in known:
                    scatter(axes, known[x], known[y], REFERENCE)
                for stage in shown[x].keys() & shown[y].keys():
                    scatter(axes, shown[x][stage], shown[y][stage], colours[stage])
                frame_pair(axes, (x, y), shown, known)
            axes.label_outer()
            if i == size - 1:
                axes.set_xlabel(x, parse_math=False)
    shared_legend(figure)
    return figure


def plot_densities(
    densities: Mapping[str, Callable[[Tensor], Tensor] | Tensor | np.ndarray],
    limits: tuple[tuple[float, float], tuple[float, float]],
    *,
    labels: tuple[str, str] = ("x[0]", "x[1]"),
    points: int = 200,
) -> Figure:
    """Densities on R^2 side by side, on one colour scale.

    :param densities: title to a log-density, ``(n, 2)`` to ``(n,)``, or to draws ``(n, 2)``. A
        log-density may lack its constant: each is normalised over the picture.
    :param limits: the picture's range of x and of y.
    :param labels: of the x and the y axis.
    :param points: of the grid in each direction; draws are counted in a quarter as many bins.
    :returns: the figure.
    :raises ValueError: for a log-density whose result is not ``(n,)``.
    :raises ImportError: without matplotlib.

    >>> import pyro.distributions as dist
    >>> normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    >>> pictures = {"a normal": normal.log_prob, "its draws": normal.sample([1000])}
    >>> figure = plot_densities(pictures, limits=((-3, 3), (-3, 3)))
    >>> [axes.get_title() for axes in figure.axes]
    ['a normal', 'its draws']
    """
    (left, right), (bottom, top) = limits
    images = [density_image(density, limits, points, title) for title, density in densities.items()]
    brightest = max(float(np.quantile(image, 0.999)) for image in images)
    ratio = (top - bottom) / (right - left)
    # Columns of different units would make a panel a sliver.
    same_units = 0.4 <= ratio <= 1.6
    height = 2.9 * ratio if same_units else 2.9
    figure = new_figure(3.0 * len(images), height + 0.4)
    for i, (title, image) in enumerate(zip(densities, images, strict=True)):
        axes = figure.add_subplot(1, len(images), i + 1)
        drawn = axes.imshow(image, cmap="Blues", vmin=0, vmax=brightest, origin="lower")
        drawn.set_extent((left, right, bottom, top))
        axes.set_aspect("equal" if same_units else "auto")
        axes.set(title=title, xlabel=labels[0])
        if i == 0:
            axes.set_ylabel(labels[1])
    return figure


@torch.no_grad()
def plot_transformer(
    transformer: Transformer,
    phi: Tensor,
    *,
    limits: tuple[float, float] = (-5.0, 5.0),
    labels: Sequence[str] | None = None,
) -> Figure:
    r"""Plot a transformer as a function of x_t: its value y_t and its slope.

    :param transformer: any :class:`~pyro_naf.transformers.Transformer`.
    :param phi: pseudo-parameters ``(P,)``, or ``(N, P)`` for N curves; a flow at inputs x has
        ``flow.arn(x)[..., t, :]``.
    :param limits: the range of x_t.
    :param labels: one for each curve.
    :returns: the figure.
    :raises ValueError: for pseudo-parameters of another shape.
    :raises ImportError: without matplotlib.

    >>> from pyro_naf.transformers import DeepSigmoidal
    >>> figure = plot_transformer(DeepSigmoidal(hidden_units=8), 3 * torch.randn(2, 24))
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['$y_t$', '$dy_t / dx_t$']
    """
    if phi.dim() not in (1, 2) or phi.shape[-1] != transformer.num_params:
        expected = f"({transformer.num_params},) or (N, {transformer.num_params})"
        raise ValueError(f"phi must have shape {expected}, got {tuple(phi.shape)}")
    rows = phi.reshape(-1, phi.shape[-1])
    names = labels or [""] * len(rows)
    x = torch.linspace(*limits, 400, dtype=phi.dtype, device=phi.device)
    figure = new_figure(8.0, 3.0)
    value, slope = figure.subplots(1, 2)
    for name, colour, row in zip(names, cycle(COLOURS), rows, strict=False):
        y, log_slope = transformer(x, row.expand(len(x), -1))
        value.plot(x.cpu(), y.cpu(), color=colour, label=name)
        slope.plot(x.cpu(), log_slope.exp().cpu(), color=colour, label=name)
    value.set(xlabel="$x_t$", ylabel="$y_t$")
    slope.set(xlabel="$x_t$", ylabel="$dy_t / dx_t$", ylim=(0.0, None))
    for axes in (value, slope):
        hide_frame(axes, "top", "right")
    shared_legend(figure)
    return figure


def plot_refinement(
    before: Draws,
    after: Draws,
    losses: Sequence[float],
    elbo: tuple[float, float],
    *,
    pair: tuple[str, str] | None = None,
    reference: Draws | None = None,
) -> Figure:
    """Marginals before and after a refinement, one pair of parameters, and the ELBO curve.

    :param before: draws ``(n,)`` of each parameter to show, by the label to show it under.
    :param after: the same parameters' draws after the refinement.
    :param losses: negative ELBO of each step of the refinement, ``(steps,)``.
    :param elbo: ELBO before and after.
    :param pair: labels of the parameters on the x and y axis of the scatter plots; None leaves
        the scatter plots out.
    :param reference: as in :func:`plot_marginals`, for parameters whose marginal is known.
    :returns: the figure.
    :raises ValueError: for draws that are not finite.
    :raises ImportError: without matplotlib.

    >>> before, after = {"x": torch.randn(100)}, {"x": torch.randn(100)}
    >>> figure = plot_refinement(before, after, losses=[2.0, 1.0], elbo=(-2.0, -1.0))
    >>> figure.axes[1].get_title()
    'ELBO during the refinement'
    """
    stages, known = {"before": before, "after": after}, scalar_parameters(reference or {})
    shown = by_parameter(stages)
    width = max(len(shown), 4)
    marginals = [f"marginal {i}" if i < len(shown) else "." for i in range(width)]
    scatters = ["before", "after"] if pair else []
    mosaic = [marginals, scatters + ["curve"] * (width - len(scatters))]
    figure = new_figure(3.2 * width, 6.4)
    axes = figure.subplot_mosaic(mosaic)  # type: ignore[arg-type]
    for i, (label, draws) in enumerate(shown.items()):
        draw_marginal(axes[f"marginal {i}"], draws, known.get(label), stage_colours(stages))
        axes[f"marginal {i}"].set_xlabel(label, parse_math=False)
    shared_legend(figure)
    for stage, colour in (("before", BEFORE), ("after", AFTER)):
        if pair:
            x, y = pair
            scatter(axes[stage], shown[x][stage], shown[y][stage], colour)
            frame_pair(axes[stage], pair, shown, known)
            axes[stage].set_title(stage)
    curve = {"running mean": -np.asarray(losses, float)}
    draw_curves(axes["curve"], curve, {"before": elbo[0], "after": elbo[1]})
    low, high = axes["curve"].get_ylim()
    axes["curve"].set(title="ELBO during the refinement", ylim=(low - 0.3 * (high - low), high))
    axes["curve"].legend(loc="lower right", frameon=False, ncols=3)  # below the curve
    return figure
