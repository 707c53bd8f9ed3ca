r"""Spikes: values of a column, such as zero, that recur beside a rest which does not.

A column with the spikes :math:`a_1, ..., a_K` has a class, 0 for the rest and k for the spike
:math:`a_k`, and in the rest a real number, which rows on a spike lack. A value x has

.. math:: p(x = a_k) = P(k), \qquad p(x) = P(0)\, p(x \mid 0) \text{ elsewhere}:

probabilities of spikes, and a density of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Smallest share, and number, of rows on a value that is taken to be a spike.
SHARE = 0.02
FEW = 5

#: Smallest share of rows on all spikes of a column.
TOGETHER = 0.1

#: Number of times that a spike is more frequent than any value of the rest; and where those are
#: integers, whose values recur.
RATIO, OF_INTEGERS = 5, 3

#: Smallest number of different values in the rest.
REST = 10

#: Relative difference up to which a value is a spike: that of a number rounded to float32.
ROUNDING = 1.2e-7


def spikes_of(values: Tensor, ratio: float = RATIO) -> tuple[float, ...]:
    """Find the spikes, ascending, of a column's values ``(N,)``; none where it has none.

    :param ratio: number of times that a spike is more frequent than any value of the rest.

    >>> x = torch.rand(100).double()
    >>> x[:30], x[30:40] = 0.0, 1.0
    >>> spikes_of(x)
    (0.0, 1.0)
    """
    distinct, counts = values.double().unique(return_counts=True)
    counts, order = counts.sort(descending=True)
    number = len(distinct) - REST
    if number < 1:
        return ()
    many = counts[:number] >= max(FEW, SHARE * len(values))
    clear = (many & (counts[:number] >= ratio * counts[1 : number + 1])).nonzero()
    last = int(clear.max()) if len(clear) else -1
    if counts[: last + 1].sum() < TOGETHER * len(values):
        return ()
    return tuple(distinct[order[: last + 1]].sort().values.tolist())


def places(x: Tensor, spikes: Sequence[float]) -> Tensor:
    """Return the classes ``(...)`` of values: k for the k-th spike, else 0."""
    found = torch.zeros_like(x, dtype=torch.long)
    for k, spike in enumerate(spikes, 1):
        found = torch.where((x - spike).abs() <= ROUNDING * abs(spike), k, found)
    return found


def rest_of(x: Tensor, spikes: Sequence[float], step: float) -> Tensor:
    """Values with NaN on spikes.

    Integers above a spike come one ``step`` down, so that the rest has no gap there.
    """
    above = sum((x > spike).to(x) for spike in spikes)
    return torch.where(places(x, spikes) > 0, torch.nan, x - step * above if step else x)


def with_spikes(rest: Tensor, classes: Tensor, spikes: Sequence[float], step: float) -> Tensor:
    """Values of a rest and of classes: undoes :func:`rest_of` and :func:`places`.

    >>> x = torch.tensor([0.0, 1.0, 4.0])
    >>> with_spikes(rest_of(x, [0.0], 1.0), places(x, [0.0]), [0.0], 1.0)
    tensor([0., 1., 4.])
    """
    for spike in spikes if step else ():
        rest = torch.where(rest > spike - step / 2, rest + step, rest)
    for k, spike in enumerate(spikes, 1):
        rest = torch.where(classes == k, spike, rest)
    return rest
