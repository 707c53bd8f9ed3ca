"""Claims about climbs of L-BFGS from many points at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyro_naf.infer.climbs import climb


def valley(z: Tensor) -> Tensor:
    """Minus Rosenbrock's function, with its top, zero, at one."""
    return -(100 * (z[:, 1:] - z[:, :-1] ** 2) ** 2 + (1 - z[:, :-1]) ** 2).sum(-1)


def scattered(count: int, dim: int) -> Tensor:
    return 2 * torch.randn(count, dim, dtype=torch.double)


@pytest.mark.parametrize("dim", [2, 3])  # from four on there is a second top
def test_climbs_rise_all_the_way_and_end_at_a_top(dim: int) -> None:
    for path in climb(valley, scattered(6, dim), max_iter=200):
        values = valley(path)
        assert bool((values[1:] > values[:-1]).all())
        assert float(values[-1]) > -1e-8


def test_each_start_has_the_path_that_it_has_alone() -> None:
    starts = scattered(4, 3)
    for start, path in zip(starts, climb(valley, starts, max_iter=20), strict=True):
        (alone,) = climb(valley, start[None], max_iter=20)
        torch.testing.assert_close(path[:10], alone[:10], rtol=1e-6, atol=1e-6)


def test_scales_apart_by_a_million_are_climbed() -> None:
    scales = torch.logspace(-3, 3, 6, dtype=torch.double)
    starts = scattered(3, 6)
    for path in climb(lambda z: -0.5 * (z / scales).square().sum(-1), starts):
        assert float((path[-1] / scales).square().sum()) < 1e-2


def test_walls_turn_a_climb_back_and_a_start_behind_one_is_lost() -> None:
    def walled(z: Tensor) -> Tensor:
        """The top is at the wall, beyond which there is nothing, or NaN."""
        inside = -((z[:, 0] - 3) ** 2)
        beyond = torch.where(z[:, 0] > 4, math.nan, -math.inf)
        return torch.where(z[:, 0] < 2, inside, beyond)

    found, infinite, nan = climb(walled, torch.tensor([[0.0], [2.5], [5.0]]))
    assert 1.9 < float(found[-1]) < 2
    assert infinite.shape == nan.shape == (0, 1)


def test_a_row_that_raises_does_not_stop_the_others() -> None:
    def touchy(z: Tensor) -> Tensor:
        if bool((z > 4).any()):
            raise ValueError("no such scale")
        return -((z[:, 0] - 3) ** 2)

    found, lost = climb(touchy, torch.tensor([[0.0], [5.0]]))
    assert float(found[-1]) == pytest.approx(3, abs=1e-4) and len(lost) == 0


def test_what_has_no_top_is_climbed_far_away() -> None:
    (path,) = climb(lambda z: z[:, 0], torch.zeros(1, 1))
    assert float(path[-1]) > 1e7
