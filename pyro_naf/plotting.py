"""Pictures of a refinement. Needs matplotlib (``pip install 'pyro_naf[plots]'``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Two colours of Okabe and Ito's set, which colour-blind readers tell apart, and grey.
BEFORE, AFTER, REFERENCE = "#D55E00", "#0072B2", "#C8C8C8"


def refinement_figure(
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    losses: Sequence[float],
    elbo: tuple[float, float],
    *,
    pair: tuple[str, str] | None = None,
    reference: Mapping[str, Sequence[float] | np.ndarray] | None = None,
) -> Figure:
    """Marginals before and after a refinement, one pair of parameters, and the ELBO curve.

    :param before: draws (n,) of each parameter to show, by the label to show it under.
    :param after: the same parameters' draws after the refinement.
    :param losses: negative ELBO of each step of the refinement.
    :param elbo: ELBO before and after.
    :param pair: labels of the parameters on the x and y axis of the scatter plots; None leaves
        the scatter plots out.
    :param reference: quantiles at evenly spaced levels from 0 to 1, by label, of the parameters
        whose true marginal is known.
    :returns: the figure; it is not shown, and belongs to no pyplot state.
    """
    width = max(len(before), 4)
    marginals = [f"marginal {i}" if i < len(before) else "." for i in range(width)]
    scatters = ["before", "after"] if pair else []
    mosaic = [marginals, scatters + ["curve"] * (width - len(scatters))]
    figure = Figure(figsize=(3.2 * width, 6.4), layout="constrained")
    axes = figure.subplot_mosaic(mosaic)  # type: ignore[arg-type]
    for i, label in enumerate(before):
        quantiles = (reference or {}).get(label)
        _draw_marginal(axes[f"marginal {i}"], label, before[label], after[label], quantiles)
    _legend(figure, axes["marginal 0"])
    if pair:
        _draw_pair(axes["before"], axes["after"], pair, before, after)
    _draw_curve(axes["curve"], np.asarray(losses, float), elbo)
    return figure


def _draw_marginal(
    axes: Axes,
    label: str,
    before: np.ndarray,
    after: np.ndarray,
    quantiles: Sequence[float] | np.ndarray | None,
) -> None:
    shown = [*_range(before), *_range(after)]
    if quantiles is not None:
        edges = np.asarray(quantiles)
        density = 1 / (len(edges) - 1) / np.diff(edges)  # every bin holds the same probability
        axes.stairs(density, edges, fill=True, color=REFERENCE, label="reference")
        shown += [edges[1], edges[-2]]
    low, high = min(shown), max(shown)
    bins = np.linspace(low, high, 41)
    for draws, colour, name in ((before, BEFORE, "before"), (after, AFTER, "after")):
        # Draws beyond the edges count in the normalisation, so that heights can be compared.
        weights = np.full(len(draws), 1 / len(draws) / (bins[1] - bins[0]))
        heights, _ = np.histogram(draws, bins, weights=weights)
        axes.stairs(heights, bins, color=colour, linewidth=1.6, label=name)
    axes.set(xlim=(low, high), yticks=[])
    axes.set_xlabel(label, parse_math=False)  # a site may be called anything, "$" included
    _hide_frame(axes, "left", "top", "right")


def _draw_pair(
    left: Axes,
    right: Axes,
    pair: tuple[str, str],
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
) -> None:
    x, y = pair
    limits = {label: _range(np.concatenate([before[label], after[label]])) for label in pair}
    panels = ((left, before, BEFORE, "before"), (right, after, AFTER, "after"))
    for axes, draws, colour, title in panels:
        axes.scatter(
            draws[x], draws[y], s=4, alpha=0.25, color=colour, linewidths=0, rasterized=True
        )
        axes.set(title=title, xlim=limits[x], ylim=limits[y])
        axes.set_xlabel(x, parse_math=False)
        axes.set_ylabel(y, parse_math=False)
        _hide_frame(axes, "top", "right")


def _draw_curve(axes: Axes, losses: np.ndarray, elbo: tuple[float, float]) -> None:
    curve = -losses
    steps = np.arange(1, len(curve) + 1)
    window = max(1, len(curve) // 50)
    mean = np.convolve(curve, np.full(window, 1 / window), mode="valid")
    axes.plot(steps, curve, color="0.75", linewidth=0.6, label="each step")
    axes.plot(steps[window - 1 :], mean, color="black", linewidth=1.4, label=f"mean of {window}")
    for value, colour, name in zip(elbo, (BEFORE, AFTER), ("before", "after"), strict=True):
        label = f"{name}: {value:.2f}"
        axes.axhline(value, color=colour, linestyle="--", linewidth=1.4, label=label)
    # Rare bad draws may lie far below the rest; the axis follows all but the worst 2 %.
    shown = [*elbo, *np.quantile(curve[np.isfinite(curve)], [0.02, 0.98])]
    low, high = min(shown), max(shown)
    height = (high - low) or 1.0
    axes.set(
        title="ELBO during the refinement",
        xlabel="step",
        xlim=(1, max(len(curve), 2)),
        ylim=(low - 0.3 * height, high + 0.1 * height),  # the legend lies below the curve
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="lower right", frameon=False, ncols=2)
    _hide_frame(axes, "top", "right")


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)


def _range(draws: np.ndarray) -> tuple[float, float]:
    """The middle 99 % of the draws: a few far ones would squeeze the rest together."""
    low, high = np.quantile(draws, [0.005, 0.995])
    return (float(low), float(high)) if low < high else (float(low) - 0.5, float(low) + 0.5)


def _hide_frame(axes: Axes, *sides: str) -> None:
    for side in sides:
        axes.spines[side].set_visible(False)
