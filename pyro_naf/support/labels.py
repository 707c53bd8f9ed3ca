"""Names of the scalar entries of a site, as tables, verdicts and pictures have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch


def entry_labels(name: str, shape: Sequence[int]) -> list[str]:
    """Labels of the entries of a site in row-major order, counted from zero as Python does.

    >>> entry_labels("mu", ()), entry_labels("w", (1, 2))
    (['mu'], ['w[0,0]', 'w[0,1]'])
    """
    places = np.ndindex(*shape)
    return [f"{name}[{','.join(map(str, place))}]" if place else name for place in places]


def scalar_parameters(draws: Mapping[str, object]) -> dict[str, np.ndarray]:
    """Draws ``(n,)`` of each scalar parameter, from site to draws ``(n, ...)``.

    >>> sorted(scalar_parameters({"mu": torch.zeros(5), "theta": torch.zeros(5, 2)}))
    ['mu', 'theta[0]', 'theta[1]']
    """
    columns: dict[str, np.ndarray] = {}
    for name, value in draws.items():
        array = torch.as_tensor(value).detach().cpu().numpy()
        labels = entry_labels(name, array.shape[1:])
        columns |= dict(zip(labels, array.reshape(len(array), -1).T, strict=True))
    return columns
