"""POWER, GAS, HEPMASS and MINIBOONE as Papamakarios et al. (2017) prepared them."""

from __future__ import annotations

import numpy as np

from .split import Split


def prepare_power(rows: np.ndarray) -> Split:
    """POWER from its complete rows ``(N, 8)``.

    The columns are global active and reactive power, voltage, global intensity, three sub-meterings
    and the minute of the day; intensity and reactive power are dropped, and noise as wide as the
    steps of the others added.
    """
    rng = np.random.RandomState(42)
    rows = rows.copy()
    rng.shuffle(rows)
    rows = np.delete(rows, (1, 3), axis=1)
    n = len(rows)
    voltage, active = 0.01 * rng.rand(n, 1), 0.001 * rng.rand(n, 1)
    noise = np.hstack([active, voltage, rng.rand(n, 3), np.zeros((n, 1))])
    return Split.last_tenths(rows + noise).standardised().float32()
