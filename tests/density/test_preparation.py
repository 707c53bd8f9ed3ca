"""Rows: what is constant, discrete or out of range, and the noise that makes steps continuous."""

from __future__ import annotations

import math

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


GRIDS = {
    "tenths": (0.1, 0.0), "quarters": (0.25, -3.3), "thirds": (1 / 3, 17.0), "fives": (5.0, -1e3),
    "thousandths": (1e-3, 0.0), "sevenths": (1 / 7, -3.3), "units": (1.0, 0.0),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_is_found_up_to_rounding_and_draws_are_its_values(
    name: str, dtype: torch.dtype
) -> None:
    step, start = GRIDS[name]
    places = torch.randint(0, 400, (8000,)).double()
    column = (start + step * places).to(dtype)
    values, found = preparation.values_of(column)
    assert found == pytest.approx(step, rel=1e-7)
    assert len(values) == 400
    torch.testing.assert_close(
        values, start + step * torch.arange(400.0).double(), atol=1e-4, rtol=0
    )
    rows = column.unsqueeze(1)
    noisy = preparation.dequantised(rows, {0: found}, torch.Generator().manual_seed(0))
    far = noisy.new_tensor([[-1e9], [1e9]])
    drawn = preparation.quantised(torch.cat([noisy, far]), {0: found}, {0: values}).to(dtype)
    assert torch.equal(drawn[:-2], rows)
    assert drawn[-2:].flatten().tolist() == [column.min(), column.max()]


@pytest.mark.parametrize(
    ("seen", "step", "number"),
    [
        ([0, 2, 5], 1, 6),  # no gap is the step
        ([1, 2, 5, 10, 20, 50, 100], 1, 7),  # coins: of the grid too little is seen
        ([*range(50), 1e9], 1, 51),  # a sentinel
        ([3.7, 9.2], 5.5, 2),
        (torch.arange(40).double().log1p().tolist(), math.log(40 / 39), 40),
        ((1e6 + 0.01 * torch.arange(1000).double()).tolist(), 0.01, 1000),
        ((1e15 + torch.arange(100).double()).tolist(), 1, 100),
        ((0.01 * torch.arange(4000).double()).float().tolist(), 0.01, 4000),  # rounded to float32
    ],
)  # fmt: skip
def test_values_and_steps_of_columns_that_are_no_plain_grid(
    seen: list[float], step: float, number: int
) -> None:
    values, found = preparation.values_of(torch.tensor(seen, dtype=torch.double))
    assert found == pytest.approx(step, rel=1e-7) and len(values) == number
    assert torch.isin(torch.tensor(seen, dtype=torch.double), values).all()


def test_a_step_below_the_rounding_of_float32_leaves_the_values_seen() -> None:
    column = 1e6 + 0.01 * torch.randint(0, 1000, (5000,))  # multiples of 1/16
    values, found = preparation.values_of(column)
    assert found == 1 / 16 and torch.equal(values, column.double().unique())


def test_rounding_errors_are_no_steps() -> None:
    values = torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.double).repeat(50)
    rounded = torch.where(torch.arange(200) % 8 < 4, values, (values + 0.7) - 0.7)
    assert len(rounded.unique()) > 4  # some differ in the last digits
    assert preparation.discrete_columns(rounded.unsqueeze(1)) == [0]
    known, step = preparation.values_of(rounded)
    assert step == pytest.approx(0.1, abs=1e-6) and len(known) == 4


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
