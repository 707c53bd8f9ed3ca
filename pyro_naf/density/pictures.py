"""A picture of a fitted density: its draws beside the data, and how it was trained."""

from __future__ import annotations

from itertools import combinations, cycle
from typing import TYPE_CHECKING

import numpy as np

from ..plot import panels as plot
from ..support.seeding import seeded
from . import preparation
from .column import Column

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .arrays import RowsLike, TableLike
    from .settings import History
    from .table_density import TableDensity

#: Panels in a row, and rows of marginals at most.
WIDTH, HEIGHT = 4, 3

#: Scatter plots, of the pairs of columns that depend most on one another.
PAIRS = 2

#: Number of values of an integer column up to which each has a bar of its own, and number of
#: classes that have one.
BARS, CLASSES = 25, 8

#: Characters of a label that are shown.
LABEL = 12

#: Part of the evaluations, the lowest, that the learning curve may leave below its panel.
BELOW = 0.2


def plot_density(
    density: TableDensity,
    x: TableLike | None = None,
    context: RowsLike | None = None,
    *,
    num_samples: int = 2000,
    seed: int = 0,
) -> Figure:
    """Marginals of up to twelve columns and up to two pairs, data against draws; training curve.

    The pairs are those whose ranks are correlated most.

    :param x: rows ``(N, P)`` to compare with; by default there are draws alone.
    :param context: ``(N, C)``, needed where the density has one: a draw is made for each row of
        up to ``num_samples``, evenly spaced.
    :param num_samples: draws, >= 1.
    :param seed: of the draws.
    :returns: the figure.
    :raises ValueError: when the density is not fitted, or rows have another shape.
    :raises ImportError: without matplotlib.

    >>> from pyro_naf.density import FlowDensity
    >>> import torch
    >>> rows = torch.randn(100, 2)
    >>> density = FlowDensity(architecture="gaussian").fit(rows, progress=False)
    >>> [axes.get_xlabel() for axes in plot_density(density, rows).axes]
    ['0', '1', '0']
    """
    density._fitted()  # noqa: SLF001
    data = None
    if x is not None:
        (table, *_) = density.checked_rows(x, context, "x", "context", gaps=True)
        data = table.double().cpu().numpy()
    with seeded(seed):
        if context is not None:
            rows = preparation.as_tensor(context, "context")
            drawn = density.sample(1, rows[:: -(-len(rows) // num_samples)], as_table=False)[0]
        else:
            drawn = density.sample(num_samples, as_table=False)
    draws = drawn.double().cpu().numpy()
    columns, names = density.schema.columns, _names(density)
    shown = list(range(min(len(columns), WIDTH * HEIGHT)))
    pairs = _pairs(data if data is not None else draws, [i for i in shown if columns[i].is_real])
    curves, levels = _curves(density.history)
    mosaic = _mosaic(len(shown), len(pairs), curve=bool(curves or levels))
    figure = plot.new_figure(2.6 * WIDTH, 2.1 * len(mosaic) + 0.7)
    panels = figure.subplot_mosaic(mosaic)  # type: ignore[arg-type]
    for i in shown:
        own = None if data is None else data[:, i]
        _draw_column(panels[f"column {i}"], columns[i], own, draws[:, i])
        panels[f"column {i}"].set_xlabel(names[i], parse_math=False)
    for k, pair in enumerate(pairs):
        _draw_pair(panels[f"pair {k}"], pair, names, data, draws)
    plot.shared_legend(figure)
    if curves or levels:
        _draw_curves(panels["curve"], curves, levels)
    if len(shown) < len(columns):
        figure.supxlabel(f"the first {len(shown)} of {len(columns)} columns", fontsize="medium")
    return figure


def _names(density: TableDensity) -> list[str]:
    called = [density.schema.called(i) for i in range(density.width)]
    called = density.columns or called
    return [name if len(name) <= 2 * LABEL else f"{name[: 2 * LABEL]}..." for name in called]


def _mosaic(columns: int, pairs: int, curve: bool) -> list[list[str]]:
    """Where the panels are: columns, and after them pairs and the curve."""
    fill = "curve" if curve else "."
    places = [f"column {i}" for i in range(columns)]
    if pairs or columns % WIDTH == 0:
        places += ["."] * (-columns % WIDTH) + [f"pair {k}" for k in range(pairs)]
        places += [fill] * (WIDTH - pairs if pairs or curve else 0)
    else:
        places += [fill] * (-columns % WIDTH)
    return [places[i : i + WIDTH] for i in range(0, len(places), WIDTH)]


def _pairs(rows: np.ndarray, real: list[int]) -> list[tuple[int, int]]:
    """Return the pairs of columns with the largest correlations of ranks, by size."""
    found = []
    for i, j in combinations(real, 2):
        both = rows[~np.isnan(rows[:, [i, j]]).any(1)][:, [i, j]]
        ranks = both.argsort(0).argsort(0)
        if len(both) > 2:
            found.append((-abs(np.corrcoef(ranks.T)[0, 1]), (i, j)))
    return [pair for _, pair in sorted(found)[:PAIRS]]


def _draw_column(axes: Axes, column: Column, data: np.ndarray | None, draws: np.ndarray) -> None:
    known = data[~np.isnan(data)] if data is not None else None
    values = np.unique(draws if known is None else known)
    if not column.is_real or (column.kind == "integer" and len(values) <= BARS):
        _draw_bars(axes, column, known, draws)
        return
    plot.draw_marginal(axes, {"draws": draws}, known, {"draws": plot.AFTER})
    for text in axes.patches:
        if text.get_label() == "reference":
            text.set_label("data")
    if column.kind == "date":
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(maxticks=5)
        axes.xaxis.set_major_locator(locator)  # in days from 1970 on, as the column is
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _draw_bars(axes: Axes, column: Column, data: np.ndarray | None, draws: np.ndarray) -> None:
    """Draw the shares of the most frequent values of a class, or of an integer."""
    values, counts = np.unique(draws if data is None else data, return_counts=True)
    if column.is_real:
        labels = [f"{value:g}" for value in values]
    else:
        if len(values) > CLASSES:
            title = f"the {CLASSES} most frequent of {len(values)}"
            axes.set_title(title, fontsize="small")
        values = np.sort(values[np.argsort(-counts)][:CLASSES])
        text = any(isinstance(value, str) for value in column.values)
        labels = [str(column.values[int(v)]) if text else f"{v:g}" for v in values]
        if column.kind == "boolean":
            labels = [str(bool(value)) for value in values]
    places = np.arange(len(values))
    if data is not None:
        shares = [(data == value).mean() for value in values]
        axes.bar(places, shares, 0.8, color=plot.REFERENCE, label="data")
    shares = [(draws == value).mean() for value in values]
    axes.bar(places, shares, 0.55, fill=False, edgecolor=plot.AFTER, linewidth=1.6, label="draws")
    labels = [s if len(s) <= LABEL else f"{s[: LABEL // 2]}...{s[-LABEL // 3 :]}" for s in labels]
    every = -(-len(values) // CLASSES)
    axes.set_xticks(places[::every], labels[::every], parse_math=False)
    if sum(map(len, labels[::every])) > 1.5 * LABEL:
        axes.tick_params("x", rotation=90 if len(labels) > 6 else 30, labelsize="small")
    axes.set_yticks([])
    plot.hide_frame(axes, "left", "top", "right")


def _draw_pair(
    axes: Axes, pair: tuple[int, int], names: list[str], data: np.ndarray | None, draws: np.ndarray
) -> None:
    known: dict[str, np.ndarray] = {}
    labels = names[pair[0]], names[pair[1]]
    if data is not None:
        both = data[~np.isnan(data[:, pair]).any(1)][:, pair]
        known = dict(zip(labels, both.T, strict=True))
        plot.scatter(axes, both[:, 0], both[:, 1], plot.REFERENCE)
    plot.scatter(axes, draws[:, pair[0]], draws[:, pair[1]], plot.AFTER)
    shown = {name: {"draws": draws[:, i]} for name, i in zip(labels, pair, strict=True)}
    plot.frame_pair(axes, labels, shown, known)


Curves = dict[tuple[str, int | None], np.ndarray]


def _curves(history: History | None) -> tuple[Curves, dict[str, float]]:
    """Return steps and validation likelihoods ``(2, n)`` of flows and folds; levels by name."""
    if history is None:
        return {}, {}
    curves: dict[tuple[str, int | None], list[tuple[int, float]]] = {}
    for entry in history.evaluations:
        if entry["validation"] is not None:
            key = (entry.get("density") or "flow", entry.get("fold"))
            curves.setdefault(key, []).append((entry["step"], entry["validation"]))
    found = {key: np.array(points).T for key, points in curves.items() if len(points) > 1}
    return found, {row["name"]: row["mean"] for row in history.comparison}


def _draw_curves(axes: Axes, curves: Curves, levels: dict[str, float]) -> None:
    colours = dict(
        zip(dict.fromkeys(name for name, _ in curves), cycle(plot.COLOURS), strict=False)
    )
    labelled = set[str]()
    for (name, _), (steps, height) in curves.items():
        folds = sum(other == name for other, _ in curves)
        label = f"{name}, {folds} folds" if folds > 1 else name
        label = label if name not in labelled else ""
        axes.plot(steps - steps[0], height, color=colours[name], linewidth=1.2, label=label)
        labelled.add(name)
    for (name, level), style in zip(levels.items(), cycle(("--", ":", "-.", "-")), strict=False):
        axes.axhline(level, color="0.3", linestyle=style, lw=1.2, label=f"{name}: {level:.2f}")
    heights = [h[np.isfinite(h)] for _, h in curves.values()]
    low = min([*levels.values(), *(np.quantile(h, BELOW) for h in heights if len(h))])
    high = max([*levels.values(), *(h.max() for h in heights if len(h))])
    margin = 0.1 * ((high - low) or 1.0)
    axes.set_ylim(low - margin, high + margin)
    if curves:
        axes.set_xlabel("step")
    else:
        axes.set_xticks([])
    axes.set_title("held-out log-likelihood in nats", fontsize="medium")
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    plot.hide_frame(axes, "top", "right")
