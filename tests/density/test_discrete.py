"""Columns of few values: the step is that of the data, and draws are values of the column."""

from __future__ import annotations

import math

import pytest
import torch

from pyro_naf.density import discrete

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
    values, found = discrete.values_of(column)
    assert found == pytest.approx(step, rel=1e-7)
    assert len(values) == 400
    torch.testing.assert_close(
        values, start + step * torch.arange(400.0).double(), atol=1e-4, rtol=0
    )
    rows = column.unsqueeze(1)
    noisy = discrete.dequantised(rows, {0: found}, torch.Generator().manual_seed(0))
    far = noisy.new_tensor([[-1e9], [1e9]])
    drawn = discrete.quantised(torch.cat([noisy, far]), {0: found}, {0: values}).to(dtype)
    assert torch.equal(drawn[:-2], rows)
    assert drawn[-2:].flatten().tolist() == [column.min(), column.max()]


@pytest.mark.parametrize(
    "seen, step, number",
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
    values, found = discrete.values_of(torch.tensor(seen, dtype=torch.double))
    assert found == pytest.approx(step, rel=1e-7) and len(values) == number
    assert torch.isin(torch.tensor(seen, dtype=torch.double), values).all()


def test_a_step_below_the_rounding_of_float32_leaves_the_values_seen() -> None:
    column = 1e6 + 0.01 * torch.randint(0, 1000, (5000,))  # multiples of 1/16
    values, found = discrete.values_of(column)
    assert found == 1 / 16 and torch.equal(values, column.double().unique())


def test_rounding_errors_are_no_steps() -> None:
    values = torch.tensor([0.0, 0.1, 0.2, 0.3], dtype=torch.double).repeat(50)
    rounded = torch.where(torch.arange(200) % 8 < 4, values, (values + 0.7) - 0.7)
    assert len(rounded.unique()) > 4  # some differ in the last digits
    assert discrete.discrete_columns(rounded.unsqueeze(1)) == [0]
    known, step = discrete.values_of(rounded)
    assert step == pytest.approx(0.1, abs=1e-6) and len(known) == 4
