"""Claims about Pareto-smoothed importance sampling; ArviZ is the truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from pyro_naf.infer.psis import khat_standard_error, khat_threshold, pareto_khat, smooth

WEIGHTS: dict[str, Any] = {
    "heavy": lambda r, n: r.standard_t(2, n),
    "narrow": lambda r, n: 0.1 * r.normal(size=n),
    "normal": lambda r, n: r.normal(size=n),
    "wide": lambda r, n: 10 * r.normal(size=n),
    "pareto": lambda r, n: -0.3 * np.log(r.uniform(size=n)),
    "hopeless": lambda r, n: -1.5 * np.log(r.uniform(size=n)),
    "bounded": lambda r, n: np.log(r.uniform(size=n)),
    "far": lambda r, n: 1e5 + r.normal(size=n),
    "sparse": lambda r, n: np.where(r.uniform(size=n) < 0.5, -np.inf, r.normal(size=n)),
}


def arviz(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Smoothed log-weights and k-hat of ArviZ, with the number of weights in the tail rounded up.

    arviz-stats rounds down what ArviZ's ``psislw`` before version 1 and R's loo round up. Its
    relative efficiency, near 1, is chosen so that the tail is as theirs.
    """
    stats = pytest.importorskip("arviz_stats.base").array_stats
    n, size = len(log_weights), math.ceil(3 * len(log_weights) ** 0.5)
    efficiency = 9 * n / (size + 0.5) ** 2 if n > 225 else 1
    smoothed, khat = stats.psislw(-log_weights, r_eff=efficiency)
    return smoothed, float(khat)


@pytest.mark.parametrize("num_draws", [25, 50, 225, 230, 1000, 20_000])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_khat_and_smoothed_weights_are_those_of_arviz(kind: str, num_draws: int) -> None:
    log_weights = WEIGHTS[kind](np.random.default_rng(num_draws), num_draws)
    expected, khat = arviz(log_weights)
    found = torch.from_numpy(log_weights)
    assert pareto_khat(found) == pytest.approx(khat, rel=1e-9, abs=1e-9)
    # Among ties the order is arbitrary.
    np.testing.assert_allclose(smooth(found).sort()[0], np.sort(expected), rtol=1e-9)


#: k-hat of ``arviz.psislw`` 0.23.4 for w = (i - 0.3)^(-k) exp(sin i), i = 1, ..., N, with log w
#: rounded to multiples of a step where that is not zero: ties with the threshold are no tail.
PSISLW = {
    (21, 0.5, 0.0): 0.7956347192269764,
    (100, 0.2, 0.0): 0.5066915079399132,
    (400, 0.9, 0.0): 0.8047596652265726,
    (4000, 0.5, 0.0): 0.5438229116129399,
    (20_000, 1.3, 0.0): 1.256935449081462,
    (100, 0.2, 0.25): 0.17005863849674188,
    (1000, 0.5, 0.25): 0.40690691047683236,
    (4000, 0.9, 0.25): 0.7544728196919006,
    (4000, 150.0, 0.0): 97.83474296134237,
    (20_000, 300.0, 0.0): 83.10718354708965,
}


@pytest.mark.parametrize("num_draws, k, step", PSISLW)
def test_khat_is_that_of_psislw(num_draws: int, k: float, step: float) -> None:
    i = torch.arange(1, num_draws + 1, dtype=torch.double)
    log_weights = -k * (i - 0.3).log() + i.sin()
    if step:
        log_weights = (log_weights / step).round() * step
    assert pareto_khat(log_weights) == pytest.approx(PSISLW[num_draws, k, step], rel=1e-9)


@pytest.mark.parametrize("k", [-0.4, 0.3, 0.7, 1.5, 3.0])
def test_the_fit_finds_the_shape_of_evenly_spaced_quantiles(k: float) -> None:
    levels = (torch.arange(4000, dtype=torch.double) + 0.5) / 4000
    log_weights = -k * levels.log() if k > 0 else (1 - levels**-k).log()
    khat, size = pareto_khat(log_weights), 190
    without_prior = khat + 10 / size * (khat - 0.5)
    assert without_prior == pytest.approx(k, abs=0.05 * (1 + abs(k)))


@pytest.mark.parametrize("sd", [300.0, 1e3, 3e3, 1e4, 1e5, 1e300])
@pytest.mark.parametrize("num_draws", [50, 1000, 20_000])
def test_weights_that_differ_by_hundreds_of_nats_have_a_large_khat(
    sd: float, num_draws: int
) -> None:
    for seed in range(10):
        normal = np.random.default_rng(seed).normal(size=num_draws)
        found = pareto_khat(torch.from_numpy(sd * normal))
        assert found > 1.5
        smoothed = smooth(torch.from_numpy(sd * normal))
        assert float(smoothed.logsumexp(0)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("num_draws", [5, 21, 100, 20_000])
def test_one_draw_that_dominates_has_an_infinite_khat(num_draws: int) -> None:
    log_weights = torch.randn(num_draws)
    log_weights[3] = 5000.0
    assert pareto_khat(log_weights) == math.inf
    assert float(smooth(log_weights)[3].exp()) == 1
    log_weights[3] = math.inf
    assert pareto_khat(log_weights) == math.inf
    assert float(smooth(log_weights)[3].exp()) == 1


@pytest.mark.parametrize("num_draws", [2, 5, 50, 1000, 20_000])
@pytest.mark.parametrize("noise", [0.0, 1e-14])
def test_weights_that_are_equal_to_rounding_have_khat_0(num_draws: int, noise: float) -> None:
    log_weights = 123.0 + noise * torch.randn(num_draws, dtype=torch.double)
    assert pareto_khat(log_weights) == 0
    torch.testing.assert_close(smooth(log_weights).exp().sum(), torch.ones(()).double())


@pytest.mark.parametrize("step, khat", [(1 / 128, 0.0), (1.0, math.inf)])
def test_ties_above_which_hardly_a_draw_lies_matter_by_their_size(step: float, khat: float) -> None:
    # Log-densities in float32 near 1e5 are multiples of 1 / 128.
    log_weights = torch.zeros(1000)
    log_weights[:3] = step
    assert pareto_khat(log_weights) == khat


def test_a_standard_normal_far_away_in_single_precision_is_trusted() -> None:
    z = 1e5 + torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    log_weights = -0.5 * (z - 1e5) ** 2 + 0.5 * (z / 1e5 - 1) ** 2 * 1e10
    assert pareto_khat(log_weights) < 0.7


@pytest.mark.parametrize("num_draws", range(1, 21))
def test_of_twenty_draws_or_fewer_nothing_is_known(num_draws: int) -> None:
    assert pareto_khat(torch.arange(float(num_draws))) == math.inf


def test_impossible_draws_stay_impossible_and_no_draw_possible_is_an_infinite_khat() -> None:
    log_weights = torch.randn(1000).double()
    log_weights[::2] = -math.inf
    assert torch.equal(smooth(log_weights) == -math.inf, log_weights == -math.inf)
    none = torch.full((1000,), -math.inf)
    assert pareto_khat(none) == math.inf
    with pytest.raises(ValueError, match="must have a finite entry, got -inf in every one"):
        smooth(none)


@pytest.mark.parametrize(
    "log_weights, match",
    [
        (torch.zeros(3, 2), r"must have shape \(N,\), got \(3, 2\)"),
        (torch.zeros(0), r"must have shape \(N,\), got \(0,\)"),
        (torch.tensor([0.0, math.nan, math.nan]), "must not be NaN, got 2 of 3"),
    ],
)
def test_what_is_no_vector_of_weights_is_refused(log_weights: torch.Tensor, match: str) -> None:
    for function in (pareto_khat, smooth):
        with pytest.raises(ValueError, match=match):
            function(log_weights)


def test_the_input_is_left_alone_whatever_its_kind() -> None:
    for given in (torch.randn(500, requires_grad=True), torch.arange(500), torch.randn(500).half()):
        before = given.detach().clone()
        assert smooth(given).dtype == torch.double and not smooth(given).requires_grad
        assert torch.equal(given.detach(), before)


@pytest.mark.parametrize("k", [-0.5, 0.0, 0.3, 0.7, 1.5])
def test_the_standard_error_is_the_deviation_of_khat(k: float) -> None:
    exponential = torch.empty(300, 4000, dtype=torch.double).exponential_()
    weights = torch.expm1(k * exponential) / k if k else exponential  # Pareto throughout
    khats = torch.tensor([pareto_khat(w.log()) for w in weights])
    error = khat_standard_error(float(khats.mean()), 4000)
    assert float(khats.std()) == pytest.approx(error, rel=0.25)  # 300 runs tell it to 4 %
    assert khat_standard_error(math.inf, 4000) == math.inf


def test_the_threshold_grows_with_the_number_of_draws_to_0_7() -> None:
    assert [round(khat_threshold(n), 2) for n in (100, 320, 1000, 2200, 10**6)] == [
        0.5,
        0.6,
        0.67,
        0.7,
        0.7,
    ]
    assert khat_threshold(1) < 0  # nothing is reliable
