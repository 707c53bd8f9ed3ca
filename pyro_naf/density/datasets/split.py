"""Rows split into those to train, to validate and to test on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class DataError(ValueError):
    """Data that is missing or not what its recipe expects: the message says what to do."""


class Split(NamedTuple):
    """Rows to train on, to validate on, and to test on: float32, ``(N, D)`` each.

    >>> split = Split.last_tenths(np.zeros((1000, 2)))
    >>> len(split.train), len(split.validation), len(split.test)
    (810, 90, 100)
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @classmethod
    def last_tenths(cls, rows: np.ndarray) -> Split:
        """Split: the last tenth is for the test, the last tenth of the rest for validation."""
        rows, test = _cut(rows)
        train, validation = _cut(rows)
        return cls(train, validation, test)

    def standardised(self) -> Split:
        """With mean 0 and variance 1 (over N) in the rows for training and validation."""
        known = np.vstack([self.train, self.validation])
        loc, scale = known.mean(0), known.std(0)
        return Split(*((rows - loc) / scale for rows in self))

    def float32(self) -> Split:
        """Convert the rows to float32, as all of them are used in the end."""
        return Split(*(np.ascontiguousarray(rows, dtype=np.float32) for rows in self))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The numbers of rows."""
        return len(self.train), len(self.validation), len(self.test)


def _cut(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = int(0.1 * len(rows))
    return rows[: len(rows) - n], rows[len(rows) - n :]
