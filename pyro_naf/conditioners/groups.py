"""Latents that share one batched product, in spite of unequal numbers of inputs."""

from __future__ import annotations

#: Smallest ratio of numbers of inputs with which latents share one batched product, and the
#: difference up to which they always do: a few zeros cost less than many small products.
_LEAST_SHARE, _FEWER = 0.7, 3


def grouped(counts: list[tuple[int, bool]]) -> list[list[int]]:
    """Latents with about equally many inputs, each group in rising order.

    :param counts: of each latent the number of its inputs, and whether it reads a summary too.

    >>> grouped([(0, False), (1, False), (9, False), (10, False)])
    [[0, 1], [2, 3]]
    """
    groups: list[list[int]] = []
    most, kind = 0, False
    for v in sorted(range(len(counts)), key=lambda v: (counts[v][1], counts[v][0]), reverse=True):
        size, has_summary = counts[v]
        enough = size >= min(_LEAST_SHARE * most, most - _FEWER)
        if not groups or not enough or has_summary != kind:
            groups.append([])
            most, kind = size, has_summary
        groups[-1].append(v)
    return [sorted(group) for group in reversed(groups)]
