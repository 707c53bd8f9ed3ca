"""Claims about R-hat and effective sample sizes of chains; ArviZ is the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyro_naf.infer import chains
from pyro_naf.infer.chains import (
    bulk_ess,
    convergence,
    mean_mcse,
    rank_rhat,
    stood_still,
    tail_ess,
)

FUNCTIONS: list[Callable[[Tensor], Tensor]] = [rank_rhat, bulk_ess, tail_ess, mean_mcse]


def autoregressive(rho: float) -> Callable[..., np.ndarray]:
    def draws(r: np.random.Generator, *shape: int) -> np.ndarray:
        x, noise = np.zeros(shape), r.normal(size=shape)
        for t in range(1, shape[1]):
            x[:, t] = rho * x[:, t - 1] + noise[:, t]
        return x

    return draws


def one_still(r: np.random.Generator, *shape: int) -> np.ndarray:
    draws = r.normal(size=shape)
    draws[0, :, 1:] = 0.3
    return draws


CHAINS: dict[str, Callable[..., Any]] = {
    "independent": lambda r, *shape: r.normal(size=shape),
    "sticky": autoregressive(0.9),
    "antithetic": autoregressive(-0.7),
    "cauchy": lambda r, *shape: r.standard_cauchy(size=shape),
    "integer": lambda r, *shape: r.poisson(2, size=shape),
    "apart": lambda r, *shape: r.normal(size=shape) + np.arange(shape[0])[:, None, None],
    "far": lambda r, *shape: 1e5 + r.normal(size=shape),
    "single": lambda r, *shape: r.normal(size=shape).astype(np.float32),
    "one still": one_still,
}


def arviz(function: Any, draws: np.ndarray) -> np.ndarray:
    stats = pytest.importorskip("arviz_stats.base").array_stats
    rows = np.moveaxis(draws.astype(float), -1, 0)
    if function is rank_rhat:
        return stats.rhat(rows)
    if function is mean_mcse:
        return stats.mcse(rows)
    method, level = ("bulk", None) if function is bulk_ess else ("tail", (0.05, 0.95))
    return stats.ess(rows, method=method, prob=level)


SHAPES = [(2, 4, 2), (4, 7, 2), (1, 10, 2), (4, 1000, 2), (64, 101, 2)]

#: ArviZ has no R-hat of one chain, and takes a constant for as many effective draws as there are.
COMPARED = [
    (kind, function, shape)
    for kind in CHAINS
    for function in FUNCTIONS
    for shape in SHAPES
    if shape[0] > 1 or (function is not rank_rhat and kind != "one still")
]


@pytest.mark.parametrize("kind, function, shape", COMPARED)
def test_every_number_is_that_of_arviz(
    kind: str, function: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    draws = CHAINS[kind](np.random.default_rng(0), *shape)
    found = function(torch.from_numpy(draws))
    assert found.dtype == torch.double
    np.testing.assert_allclose(found, arviz(function, draws), rtol=1e-8)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_entries_are_worked_on_in_parts_and_keep_their_shape(
    function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = torch.randn(3, 50, 2, 4).cumsum(1)
    whole = function(draws)
    monkeypatch.setattr(chains, "_NUMBERS", 3 * 50 * 3)  # eight entries in parts of three
    assert whole.shape == (2, 4)
    torch.testing.assert_close(function(draws), whole, rtol=1e-12, atol=0)
    torch.testing.assert_close(function(draws[..., 1, 2]), whole[1, 2], rtol=1e-12, atol=0)
    assert function(draws[..., :0]).shape == (2, 0)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_constants_and_nan_have_no_number_and_leave_their_neighbours_alone(
    function: Callable[[Tensor], Tensor],
) -> None:
    draws = torch.randn(4, 100, 4)
    draws[..., 1] = 0.1
    draws[2, 3, 2] = math.nan
    found = function(draws)
    assert found.isnan().tolist() == [False, True, True, False]
    torch.testing.assert_close(found[3], function(draws[..., 3]), rtol=1e-12, atol=0)
    assert function(draws[:, :3]).isnan().all()  # too few


def test_rhat_of_one_chain_compares_its_halves() -> None:
    draws = torch.randn(1, 1000, 2)
    draws[:, 500:, 1] += 1
    steady, drifting = rank_rhat(draws).tolist()
    assert steady < 1.01 < 1.1 < drifting


def test_a_shift_of_scale_that_leaves_the_mean_is_seen() -> None:
    draws = torch.randn(4, 1000)
    draws[0] *= 3
    assert float(rank_rhat(draws)) > 1.05


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_error_of_the_mean_is_its_deviation_over_many_runs(rho: float) -> None:
    shape = (4, 500, 200)
    draws = torch.from_numpy(autoregressive(rho)(np.random.default_rng(1), *shape))
    deviation = draws.mean((0, 1)).std()
    assert float(mean_mcse(draws).mean()) == pytest.approx(float(deviation), rel=0.15)


def test_one_chain_of_many_that_stands_still_is_told_though_rhat_is_small() -> None:
    draws = torch.randn(64, 500, 3)
    draws[5, :, 1] = 0.7
    draws[9, 250:, 2] = -0.2
    assert float(rank_rhat(draws).max()) < 1.01
    assert stood_still(draws).tolist() == [False, True, True]


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5])
def test_standing_still_is_told_of_few_draws(samples: int) -> None:
    draws = torch.randn(2, samples, 2)
    draws[..., 1] = 1
    assert stood_still(draws).tolist() == [samples == 1, True]


def test_chains_stuck_in_different_places_have_an_infinite_rhat() -> None:
    draws = torch.arange(4.0)[:, None].expand(4, 100)
    assert float(rank_rhat(draws)) == math.inf and bool(stood_still(draws))


def test_a_vector_is_refused() -> None:
    with pytest.raises(ValueError, match=r"draws must have shape .* got \(10,\)"):
        rank_rhat(torch.randn(10))


@pytest.mark.parametrize("samples", [100, 101])
def test_all_numbers_come_from_one_sort_of_each_entry(
    samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = torch.from_numpy(autoregressive(0.5)(np.random.default_rng(0), 64, samples, 9))
    draws[..., 3] = 0.1
    draws[:, 1::3] = draws[:, :-1:3][:, : draws[:, 1::3].shape[1]]  # rejected proposals
    sorted_rows = []
    argsort = chains._argsort

    def counted(rows: Tensor, kind: Any = "quicksort") -> Tensor:
        if kind == "quicksort":  # the other merges two runs
            sorted_rows.append(len(rows))
        return argsort(rows, kind)

    monkeypatch.setattr(chains, "_argsort", counted)
    found = convergence(draws.unflatten(-1, (3, 3)))
    assert sum(sorted_rows) == 8
    for number, function in zip(found, (rank_rhat, bulk_ess, tail_ess), strict=True):
        assert number.shape == (3, 3)
        torch.testing.assert_close(
            number.flatten(), function(draws), rtol=1e-12, atol=0, equal_nan=True
        )
