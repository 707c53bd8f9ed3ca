"""Rows: what is constant, out of range or far from all others."""

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
    rows[:, 2] *= 1e200
    with pytest.raises(ValueError, match=r"context varies too widely .* in column c: choose"):
        preparation.context_statistics(rows, "context", ["a", "b", "c"])


@pytest.mark.parametrize("value", [1e9, -9999.0])
@pytest.mark.parametrize("part", [0.001, 0.3])
def test_outliers_are_named_and_heavy_tails_are_not(value: float, part: float) -> None:
    rows = torch.randn(2000, 3)
    preparation.warn_of_outliers(
        torch.cat([rows, rows.exp(), rows / rows.square().mean(1, True)], 1), "x"
    )
    number = int(2000 * part)
    rows[:number, 1] = value
    named = "rows 0, 1" if number < 3 else f"rows 0, 1, 2, 3, 4 and {number - 5} more"
    with pytest.warns(UserWarning, match=f"x has a standard deviation in column b .* {named}:"):
        preparation.warn_of_outliers(rows, "x", ["a", "b", "c"])
