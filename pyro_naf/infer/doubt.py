"""How far the importance weights move each latent: whether the guide's own draws will do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

#: Number of draws that the weights are judged by.
DRAWS = 10_000


def doubts(values: Tensor, weights: Tensor) -> Tensor:
    r"""Distance of each column's weighted draws from its unweighted ones, in standard deviations.

    .. math:: \int |F_w(x) - F(x)| \, dz, \qquad z = \Phi^{-1}(F(x)),

    the Wasserstein distance W1 of the two in normal scores: for a normal column it is W1 in its
    standard deviations, and heavy tails or another scale of the latent do not change it. Columns
    that never vary have 0.

    :param values: draws ``(N, K)``.
    :param weights: normalised weights ``(N,)``.
    :return: shape ``(K,)``.

    Draws of N(0, 1), weighted to be of N(0.2, 1):

    >>> x = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(1000) + 0.5) / 1000)
    >>> round(float(doubts(x[:, None], (0.2 * x).softmax(0))), 2)
    0.2
    """
    count = len(values)
    order = values.argsort(0)
    even = torch.arange(1, count, dtype=torch.double) / count
    moved = (weights.double()[order].cumsum(0)[:-1] - even[:, None]).abs()
    scores = torch.distributions.Normal(0.0, 1.0).icdf(
        (torch.arange(count, dtype=torch.double) + 0.5) / count
    )
    found = scores.diff() @ moved
    varies = values.amax(0) > values.amin(0)
    return torch.where(varies, found, torch.zeros_like(found))


def largest_doubt(chunks: Iterable[tuple[Mapping[str, Tensor], Tensor]], weights: Tensor) -> float:
    """Return the largest of :func:`doubts` over all entries of all sites, by the first draws.

    :param chunks: site to constrained draws ``(n, ...)``, and their log-weights ``(n,)``.
    :param weights: normalised weights ``(N,)`` of all draws.
    """
    rows, held = [], 0
    for values, log_weights in chunks:
        if held >= DRAWS:
            break
        flat = [v.detach().double().cpu().reshape(len(log_weights), -1) for v in values.values()]
        rows.append(torch.cat(flat, -1))
        held += len(log_weights)
    table = torch.cat(rows)
    part = weights[: len(table)].double()
    return float(doubts(table, part / part.sum()).max())
