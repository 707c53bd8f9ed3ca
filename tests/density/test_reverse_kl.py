"""Densities fitted to energies: the divergence from the known normaliser."""

from __future__ import annotations

import math

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
    fit_energy(density, gaussian, steps=600, num_samples=64, lr=0.02, seed=0, progress=False)
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
            density, ENERGIES["U2"], steps=600, num_samples=64, lr=1e-2, seed=0, progress=False
        )
        short[name] = log_normaliser("U2") - energy_bound(density, ENERGIES["U2"], 20_000)[0]
    assert 0 < short["iaf-dsf-1"] < 0.25 < 0.75 < short["planar-8"], short


def test_draws_that_are_not_finite_are_skipped_and_then_refused() -> None:
    density = FlowDensity(2, architecture="iaf-affine-1", hidden_dims=[8])
    with pytest.raises(RuntimeError, match="50 steps in a row"):
        fit_energy(density, lambda x: x.sum(-1) * math.nan, steps=200, progress=False)
