"""Densities fitted to energies: the divergence from the known normaliser."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_naf.density import FlowDensity, energy_bound, fit_energy
from pyro_naf.density.datasets import ENERGIES
from pyro_naf.density.datasets.energies import log_normaliser


def gaussian(x: Tensor) -> Tensor:
    """N((3, -1), diag(4, 1/4)), without its constant."""
    centre, scale = torch.tensor([3.0, -1.0]), torch.tensor([2.0, 0.5])
    return 0.5 * ((x - centre) / scale).square().sum(-1)


@pytest.mark.parametrize("name", ["iaf-affine-1", "planar-2", "iaf-dsf-1"])
def test_a_gaussian_is_found_and_its_normaliser(name: str) -> None:
    density = FlowDensity(2, architecture=name, hidden_dims=[8], hidden_units=4)
    fit_energy(density, gaussian, max_steps=600, num_particles=64, lr=0.02, seed=0, progress=False)
    bound, se = energy_bound(density, gaussian, 20_000)
    assert math.log(2 * math.pi) - bound == pytest.approx(0, abs=0.02 + 3 * se)
    x = density.sample(20_000)
    torch.testing.assert_close(x.mean(0), torch.tensor([3.0, -1.0]), rtol=0, atol=0.2)
    torch.testing.assert_close(x.std(0), torch.tensor([2.0, 0.5]), rtol=0.1, atol=0)


def test_dsf_comes_close_to_a_wave_and_planar_flows_do_not() -> None:
    short = {}
    for name in ("iaf-dsf-1", "planar-8"):
        density = FlowDensity(2, architecture=name, hidden_dims=[32], hidden_units=8)
        density.scale.fill_(2.0)
        fit_energy(
            density,
            ENERGIES["U2"],
            max_steps=600,
            num_particles=64,
            lr=1e-2,
            seed=0,
            progress=False,
        )
        short[name] = log_normaliser("U2") - energy_bound(density, ENERGIES["U2"], 20_000)[0]
    assert 0 < short["iaf-dsf-1"] < 0.25 < 0.75 < short["planar-8"], short


def test_draws_that_are_not_finite_are_skipped_and_then_refused() -> None:
    density = FlowDensity(2, architecture="iaf-affine-1", hidden_dims=[8])
    with pytest.raises(RuntimeError, match="50 steps in a row"):
        fit_energy(density, lambda x: x.sum(-1) * math.nan, max_steps=200, progress=False)


def test_a_fit_to_an_energy_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def fit(name: str, seed: int, calls: int = 100, **options: Any) -> list[Tensor]:
        def energy(x: Tensor) -> Tensor:
            nonlocal calls
            calls -= 1
            if calls < 0:
                raise Killed
            return x.square().sum(-1)

        torch.manual_seed(seed)  # of the weights and the permutations of another process
        density = FlowDensity(2, architecture="iaf-affine-1", linear="lu", hidden_dims=[8])
        kept = {"checkpoint": tmp_path / name, "checkpoint_seconds": 0, "evaluate_every": 4}
        with contextlib.suppress(Killed):
            fit_energy(
                density,
                energy,
                max_steps=12,
                num_particles=16,
                seed=0,
                progress=False,
                **kept,
                **options,
            )
        return list(density.state_dict().values())

    expected = fit("whole.pt", 1)
    fit("killed.pt", 1, calls=10)
    torch.empty(10_000).fill_(1.0)  # memory that is taken anew holds something else
    assert all(map(torch.equal, expected, fit("killed.pt", 2, resume=True)))
