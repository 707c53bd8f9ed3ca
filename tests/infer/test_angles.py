"""Latent angles lie on one period, so that their posterior is one posterior and has an evidence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal
from scipy import integrate, stats
from torch import Tensor

from pyro_naf.infer import AutoDSFNormal, refine
from pyro_naf.infer.joint import Joint

#: On both sides of the angle where the period of torch's draws ends.
ANGLES = [2.9, -3.0, 3.1, 2.6, -2.8]


def one_angle() -> None:
    mu = pyro.sample("mu", dist.VonMises(0.5, 0.3))
    with pyro.plate("rows", len(ANGLES)):
        pyro.sample("y", dist.VonMises(mu, 4.0), obs=torch.tensor(ANGLES))


def around_an_angle() -> None:
    centre = pyro.sample("centre", dist.VonMises(3.0, 2.0))
    with pyro.plate("rows", 2):
        pyro.sample("a", dist.VonMises(centre, 5.0))


def pair() -> None:
    zero = torch.zeros(())
    pyro.sample("pair", dist.SineBivariateVonMises(zero + 1, zero - 2, zero + 1, zero + 2, zero))


def skewed() -> None:
    base = dist.VonMises(torch.tensor([2.0]), torch.tensor([1.5])).to_event(1)
    pyro.sample("a", dist.SineSkewed(base, torch.tensor([0.7])))


def evidence() -> float:
    def density(mu: Any) -> Any:
        rows = sum(stats.vonmises.logpdf(y, 4.0, mu) for y in ANGLES)
        return np.exp(stats.vonmises.logpdf(mu, 0.3, 0.5) + rows)

    return math.log(integrate.quad(density, -np.pi, np.pi, points=[2.5, -2.5])[0])


def test_the_density_of_one_angle_integrates_to_its_evidence() -> None:
    joint = Joint(one_angle)
    u = torch.linspace(-30.0, 30.0, 60001, dtype=torch.float64)[:, None]
    mass = torch.trapezoid(joint(u.float()).double().exp(), u[:, 0])
    assert math.log(float(mass)) == pytest.approx(evidence(), abs=1e-4)


@pytest.mark.parametrize("model", [around_an_angle, pair, skewed])
def test_priors_of_angles_integrate_to_one_around_their_location(model: Any) -> None:
    joint = Joint(model)
    base = dist.Logistic(torch.zeros(joint.dim), 1.0).to_event(1)
    torch.manual_seed(0)
    u = base.sample((20000,))
    weights = (joint(u) - base.log_prob(u)).exp()
    assert float(weights.mean()) == pytest.approx(1.0, abs=4 * float(weights.std()) / 20000**0.5)
    location = {"centre": 3.0, "pair": torch.tensor([1.0, -2.0]), "a": 2.0}
    for name, angle in joint.constrained(u).items():
        if model is not around_an_angle or name == "centre":
            assert float((angle - location[name]).abs().max()) <= math.pi + 1e-5


def test_refinement_finds_the_evidence_of_one_period() -> None:
    refined = refine(one_angle, steps=400, seed=0, progress=False)
    assert refined.elbo <= evidence() + 4 * refined.elbo_se
    assert refined.elbo == pytest.approx(evidence(), abs=0.05)
    assert refined.verdict.startswith("trust")


@pytest.mark.parametrize("family", [AutoDiagonalNormal, AutoMultivariateNormal])
def test_a_gaussian_on_the_real_line_is_taken_onto_the_period(family: Any) -> None:
    def narrow() -> None:
        pyro.sample("x", dist.Normal(1.0, 0.1))
        pyro.sample("mu", dist.VonMises(0.5, 100.0))

    guide = family(narrow)
    guide()
    with torch.no_grad():
        guide.loc[:] = torch.tensor([1.0, 0.5 + 4 * math.pi])  # two turns on
        guide.scale[:] = 0.1
    refined = refine(guide, steps=20, seed=0, progress=False)
    assert refined.before.elbo == pytest.approx(0.0, abs=0.02)


def test_the_autoguide_draws_on_the_period_in_plain_svi() -> None:
    guide = AutoDSFNormal(around_an_angle)
    svi = SVI(around_an_angle, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(5):
        svi.step()
    with torch.no_grad():
        draws: dict[str, Tensor] = guide()
    assert abs(float(draws["centre"]) - 3.0) < math.pi
    assert float((draws["a"] - draws["centre"]).abs().max()) < math.pi
