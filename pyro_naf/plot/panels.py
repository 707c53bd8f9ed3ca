"""The panels that pictures are put together from, each drawn on matplotlib axes it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..support.labels import scalar_parameters

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of Okabe and Ito's set, which colour-blind readers tell apart, and grey.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BEFORE, AFTER, REFERENCE = COLOURS[0], COLOURS[1], "#C8C8C8"

#: Largest number of points in a scatter plot; more hide one another.
_SCATTER_POINTS = 2000

#: Site to draws ``(n, ...)``, as tensors or arrays.
Draws = Mapping[str, ArrayLike | Tensor]


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure of this size in inches, outside pyplot."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'pyro_naf[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def by_parameter(stages: Mapping[str, Draws]) -> dict[str, dict[str, np.ndarray]]:
    """Parameter to stage to draws ``(n,)``."""
    shown: dict[str, dict[str, np.ndarray]] = {}
    for stage, draws in stages.items():
        for label, column in scalar_parameters(draws).items():
            if not np.isfinite(column).all():
                bad = int((~np.isfinite(column)).sum())
                raise ValueError(
                    f"draws of {label!r} in {stage!r} must be finite, got NaN or infinity in "
                    f"{bad} of {len(column)}"
                )
            shown.setdefault(label, {})[stage] = column
    if not shown:
        raise ValueError("there must be draws of at least one parameter, got none")
    return shown


def stage_colours(stages: Iterable[str]) -> dict[str, str]:
    """Stage to colour, the same in every panel."""
    return dict(zip(stages, cycle(COLOURS), strict=False))


def draw_marginal(
    axes: Axes,
    draws: Mapping[str, np.ndarray],
    reference: ArrayLike | None,
    colours: Mapping[str, str],
) -> None:
    """Histograms of one parameter: the reference filled, the stages as outlines."""
    low, high = limits(draws, reference)
    bins = np.linspace(low, high, 41)
    if reference is not None:
        # Sorted draws are quantiles at evenly spaced levels, as those that may be given instead.
        quantiles = np.sort(np.asarray(reference, float))
        levels = np.interp(bins, quantiles, np.linspace(0, 1, len(quantiles)))
        density = np.diff(levels) / np.diff(bins)
        axes.stairs(density, bins, fill=True, color=REFERENCE, label="reference")
    for stage, column in draws.items():
        # Draws beyond the edges count in the normalisation, so that heights can be compared.
        weights = np.full(len(column), 1 / len(column) / (bins[1] - bins[0]))
        heights, _ = np.histogram(column, bins, weights=weights)
        axes.stairs(heights, bins, color=colours[stage], linewidth=1.6, label=stage)
    axes.set(xlim=(low, high), yticks=[])
    hide_frame(axes, "left", "top", "right")


def scatter(axes: Axes, x: np.ndarray, y: np.ndarray, colour: str) -> None:
    """Draw a pair of parameters: the first draws as points, a reference as an area behind."""
    x, y = x[:_SCATTER_POINTS], y[:_SCATTER_POINTS]
    size, alpha = (25.0, 1.0) if colour == REFERENCE else (4.0, 0.3)
    axes.scatter(x, y, s=size, alpha=alpha, color=colour, linewidths=0, rasterized=True)


def frame_pair(
    axes: Axes,
    pair: tuple[str, str],
    shown: Mapping[str, Mapping[str, np.ndarray]],
    known: Mapping[str, ArrayLike],
) -> None:
    """Labels and limits of a scatter plot of the pair."""
    xlim, ylim = (limits(shown[label], known.get(label)) for label in pair)
    axes.set(xlim=xlim, ylim=ylim)
    axes.set_xlabel(pair[0], parse_math=False)  # a site may be called anything, "$" included
    axes.set_ylabel(pair[1], parse_math=False)
    hide_frame(axes, "top", "right")


def draw_curves(
    axes: Axes, curves: Mapping[str, ArrayLike], levels: Mapping[str, float], xlabel: str = "step"
) -> None:
    """Every step faint, its running mean strong; one curve is black, and its levels coloured."""
    from matplotlib.ticker import MaxNLocator

    alone, shown, longest = len(curves) == 1, list(levels.values()), 2
    for values, label, colour in zip(
        curves.values(), curves, cycle(["black"] if alone else COLOURS), strict=False
    ):
        curve = np.asarray(values, float)
        if not len(curve):  # no step was made
            continue
        longest = max(longest, len(curve))
        window = max(1, len(curve) // 50)
        mean = np.convolve(curve, np.full(window, 1 / window), mode="valid")
        steps = np.arange(1, len(curve) + 1)
        axes.plot(steps, curve, color=colour, alpha=0.25, linewidth=0.6)
        axes.plot(steps[window - 1 :], mean, color=colour, linewidth=1.4, label=label)
        # Rare bad draws may lie far from the rest.
        shown += [*np.quantile(curve[np.isfinite(curve)], [0.02, 0.98])]
    for level, name, colour in zip(
        levels.values(), levels, cycle(COLOURS if alone else ["black"]), strict=False
    ):
        label = f"{name}: {level:.2f}"
        axes.axhline(level, color=colour, linestyle="--", linewidth=1.4, label=label)
    low, high = min(shown), max(shown)
    margin = 0.1 * ((high - low) or 1.0)
    axes.set(xlabel=xlabel, xlim=(1, longest), ylim=(low - margin, high + margin))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    hide_frame(axes, "top", "right")


def density_image(
    density: Callable[[Tensor], Tensor] | ArrayLike | Tensor,
    limits: Sequence[Sequence[float]],
    points: int,
    title: str,
) -> np.ndarray:
    """Density or draws as an image, rows for y and columns for x, normalised over it."""
    if not callable(density):
        x, y = torch.as_tensor(density).detach().cpu().numpy().T
        counts, _, _ = np.histogram2d(x, y, bins=max(points // 4, 1), range=limits, density=True)
        return counts.T
    x, y = (torch.linspace(low, high, points) for low, high in limits)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
    with torch.no_grad():
        log_density = density(grid)
    if log_density.shape != grid.shape[:1]:
        raise ValueError(
            f"the log-density {title!r} must map {tuple(grid.shape)} to ({len(grid)},), got "
            f"{tuple(log_density.shape)}"
        )
    area = (x[1] - x[0]) * (y[1] - y[0])
    log_density = log_density - log_density.logsumexp(0) - area.log()
    return log_density.exp().reshape(points, points).cpu().numpy()


def shared_legend(figure: Figure) -> None:
    """One legend above all panels, of every label in any of them."""
    found: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        found |= {name: h for name, h in zip(labels, handles, strict=True) if name not in found}
    if found:
        handles, labels = list(found.values()), list(found)
        figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False)


def limits(
    draws: Mapping[str, np.ndarray], reference: ArrayLike | None = None
) -> tuple[float, float]:
    """Return the range of the middle 99 % of all draws; a few far ones would squeeze the rest."""
    ends = [np.quantile(column, [0.005, 0.995]) for column in draws.values()]
    if reference is not None:
        ends.append(np.quantile(np.asarray(reference, float), [0.025, 0.975]))
    low, high = float(np.min(ends)), float(np.max(ends))
    return (low, high) if low < high else (low - 0.5, low + 0.5)


def hide_frame(axes: Axes, *sides: str) -> None:
    """Remove these sides of the frame."""
    for side in sides:
        axes.spines[side].set_visible(False)
