"""Rows: what is constant, discrete or out of range, and the noise that makes steps continuous."""

from __future__ import annotations

import pytest
import torch

from pyro_naf.density import preparation


def test_a_constant_context_is_harmless_and_one_out_of_range_is_named() -> None:
    rows = torch.randn(50, 3, dtype=torch.double)
    rows[:, 1] = 0.1  # whose standard deviation is not quite 0
    loc, scale = preparation.context_statistics(rows, "context")
    torch.testing.assert_close(loc, rows.mean(0))
    assert scale[1] == 1
    with pytest.raises(ValueError, match="context varies too widely .* in column c: choose"):
        rows[:, 2] *= 1e200
        preparation.context_statistics(rows, "context", ["a", "b", "c"])


def test_rounding_errors_are_no_steps() -> None:
    values = torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.double).repeat(50)
    rounded = torch.where(torch.arange(200) % 8 < 4, values, (values + 0.7) - 0.7)
    assert len(rounded.unique()) > 4  # some differ in the last digits
    assert preparation.discrete_columns(rounded.unsqueeze(1)) == [0]
    step = preparation.steps_of(rounded.unsqueeze(1), [0])[0]
    assert step == pytest.approx(0.1, abs=1e-6)
