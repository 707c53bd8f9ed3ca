"""Pictures of how inference went: losses, importance weights, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from .panels import AFTER, COLOURS, REFERENCE, draw_curves, hide_frame, new_figure, shared_legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_calibration", "plot_losses", "plot_weight_tails"]


class Weights(Protocol):
    """What :class:`~pyro_naf.infer.ImportanceDiagnostics` says of the importance weights."""

    num_particles: int
    khat: float
    log_weights: Tensor
    smoothed_log_weights: Tensor


def plot_losses(
    losses: Mapping[str, Sequence[float]],
    *,
    levels: Mapping[str, float] | None = None,
    xlabel: str = "step",
    ylabel: str = "loss",
) -> Figure:
    """Training curves: every step, and a running mean over a fiftieth of them.

    :param losses: label to the loss of each step, ``(steps,)``; losses that are not finite leave a
        gap. The axis follows all but the 2 % furthest on either side.
    :param levels: label to a value to compare with, drawn as a dashed line.
    :param xlabel: what is counted.
    :param ylabel: what the losses are.
    :returns: the figure.
    :raises ImportError: without matplotlib.

    >>> figure = plot_losses({"affine": [3.0, 2.0, 1.5], "DSF": [3.0, 1.0, 0.5]})
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['affine', 'DSF']
    """
    figure = new_figure(6.4, 3.2)
    axes = figure.add_subplot()
    draw_curves(axes, losses, levels or {}, xlabel)
    axes.set_ylabel(ylabel)
    axes.legend(frameon=False)
    return figure


def plot_weight_tails(diagnostics: Mapping[str, Weights]) -> Figure:
    r"""Plot the largest importance weights of guides and the Pareto tails fitted to them.

    For each weight w, over their mean, the fraction of draws with a larger one, both logarithmic.
    A tail with shape k falls like :math:`w^{-1/k}`: the flatter, the more the largest few weights
    decide. The dotted line has k = 0.7, beyond which importance weights cannot be relied on. The
    fitted tail ends at the largest weight there is, for smoothing invents no larger one.

    :param diagnostics: label to what :func:`pyro_naf.infer.importance_diagnostics` returned, or to
        ``result.before`` and ``result.after`` of a refinement.
    :returns: the figure.
    :raises ImportError: without matplotlib.

    Source: Vehtari et al. 2015 [arXiv:1507.02646].

    >>> import pyro, pyro.distributions as dist
    >>> from pyro_naf.infer import importance_diagnostics
    >>> def model():
    ...     pyro.sample("x", dist.StudentT(5.0, 0.0, 1.0))
    >>> def guide():
    ...     pyro.sample("x", dist.Normal(0.0, 1.0))
    >>> found = importance_diagnostics(model, guide, num_particles=1000)
    >>> plot_weight_tails({"normal": found}).axes[0].get_ylabel()
    'fraction of draws with a larger weight'
    """
    figure = new_figure(6.4, 3.6)
    axes = figure.add_subplot()
    for (label, found), colour in zip(diagnostics.items(), cycle(COLOURS), strict=False):
        n = found.num_particles
        log_weights, places = found.log_weights.sort()
        smoothed = found.smoothed_log_weights[places]
        # Smoothing leaves all but the tail as it is, up to the normaliser.
        smoothed = smoothed + (log_weights[0] - smoothed[0])
        tail = (smoothed - log_weights).abs() > 1e-9
        weights, fitted = (
            w.sub(log_weights.logsumexp(0)).exp() * n for w in (log_weights, smoothed)
        )
        larger = (torch.arange(n, 0, -1) - 0.5) / n
        half = slice(n // 2, None)
        axes.plot(weights[half], larger[half], ".", ms=3, color=colour)
        label = f"{label}: k-hat {found.khat:.2f}"
        axes.plot(fitted[tail], larger[tail], color=colour, lw=1.5, label=label)
        if tail.any():
            further = torch.logspace(0, 1.5, 2)
            line = weights[tail][0] * further, larger[tail][0] * further ** (-1 / 0.7)
            axes.plot(*line, ":", color="0.4", lw=1)
    axes.plot([], [], ":", color="0.4", lw=1, label="k = 0.7")
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="weight / mean weight", ylabel="fraction of draws with a larger weight")
    axes.legend(frameon=False, fontsize="small")
    hide_frame(axes, "top", "right")
    return figure


def plot_calibration(
    ranks: Mapping[str, np.ndarray], band: tuple[Tensor, Tensor, Tensor], *, columns: int = 4
) -> Figure:
    """Distribution of the ranks of true values, minus the uniform distribution, a panel for each.

    :param ranks: quantity to ranks ``(S,)`` in [0, 1].
    :param band: places, least and largest share of uniform ranks below them, each ``(P,)``, as of
        :func:`pyro_naf.infer.uniformity.band`; the curve of uniform ranks stays inside.
    :param columns: panels in a row, >= 1.
    :returns: the figure.
    :raises ValueError: for no ranks.
    :raises ImportError: without matplotlib.

    >>> from pyro_naf.infer.uniformity import band
    >>> figure = plot_calibration({"x": np.random.rand(50)}, band(50))
    >>> figure.axes[0].get_xlabel()
    'x'
    """
    if not ranks:
        raise ValueError("there must be ranks of at least one quantity, got none")
    width = min(columns, len(ranks))
    rows = -(-len(ranks) // width)
    figure = new_figure(2.6 * width, 2.2 * rows + 0.3)
    places, low, high = (np.asarray(part) for part in band)
    for i, (label, values) in enumerate(ranks.items()):
        axes = figure.add_subplot(rows, width, i + 1)
        axes.fill_between(places, low - places, high - places, color=REFERENCE, label="95 % band")
        ordered = np.concatenate([[0.0], np.sort(values), [1.0]])
        share = np.concatenate([[0.0], np.arange(1, len(values) + 1) / len(values), [1.0]])
        axes.step(ordered, share - ordered, where="post", color=AFTER, label="ranks")
        axes.axhline(0.0, color="0.4", lw=0.8)
        axes.set_xlabel(label, parse_math=False)
        hide_frame(axes, "top", "right")
    shared_legend(figure)
    return figure
