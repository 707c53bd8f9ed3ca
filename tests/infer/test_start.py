"""Claims about where refinement begins: modes among many latents, and what the verdict knows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import schools
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from pyro_naf.conditioners import Structure
from pyro_naf.infer import mcmc_correct, refine
from pyro_naf.infer.joint import Joint
from pyro_naf.infer.pace import Pace
from pyro_naf.infer.sparse_gaussian import sparse_gaussians
from pyro_naf.infer.unvisited import unvisited_mass


def two_parts(z: Tensor) -> Tensor:
    """N(2, I) with weight 0.7 and N(-2, I) with weight 0.3 in 62 dimensions."""
    laws = [dist.Normal(m, 1.0).expand(z.shape[1:]).to_event(1) for m in (2.0, -2.0)]
    parts = [law.log_prob(z) + math.log(w) for law, w in zip(laws, (0.7, 0.3), strict=True)]
    return torch.stack(parts).logsumexp(0)


def test_both_modes_of_many_latents_are_found_with_their_mass() -> None:
    structure, middle = Structure.dense(62), torch.zeros(62).double()
    found, climbs = sparse_gaussians(
        two_parts, structure, middle, seconds=30.0, pace=Pace(1e-6, 0.0)
    )
    assert climbs is None and len(found) == 2
    for gaussian, (mean, weight) in zip(found, ((2.0, 0.7), (-2.0, 0.3)), strict=True):
        assert torch.allclose(gaussian.loc, torch.full((62,), mean).double(), atol=1e-2)
        assert gaussian.elbo == pytest.approx(math.log(weight), abs=0.01)


def test_a_funnel_is_not_taken_for_several_modes() -> None:
    joint = Joint(schools)
    pace = Pace(1e-6, 0.0)
    (_,), _ = sparse_gaussians(joint, Structure.dense(10), joint.start, seconds=2.0, pace=pace)


def sign_unknown() -> None:
    """The sign of ``a`` is unknown: a posterior of 62 latents with two halves."""
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    with pyro.plate("n", 61):
        b = pyro.sample("b", dist.Normal(a.abs() + 1, 1.0))
        pyro.sample("y", dist.Normal(b, 0.7), obs=torch.linspace(2.0, 4.0, 61))


def test_a_lost_half_of_many_latents_is_told_or_found() -> None:
    pyro.set_rng_seed(0)
    result = refine(sign_unknown, steps=10, num_draws=1000, progress=False)
    share = float((result.draws(1000)["a"] > 0).double().mean())
    if 0.3 < share < 0.7:
        assert result.judgement.kind != "trust"  # after ten steps
    else:
        assert result.missed == pytest.approx(0.5, abs=0.1)
        assert "misses modes" in result.verdict and "seconds" in result.verdict


def two_halves() -> None:
    """The sign of ``x`` is unknown."""
    x = pyro.sample("x", dist.Normal(0.0, 2.0))
    pyro.sample("y", dist.Normal(2 * x.abs(), 0.3), obs=torch.tensor(4.0))


def test_a_mode_that_a_given_guide_has_lost_is_told() -> None:
    guide = AutoNormal(two_halves, init_loc_fn=init_to_value(values={"x": torch.tensor(2.0)}))
    guide()
    result = refine(guide, steps=3, num_draws=1000, seed=0, progress=False)
    assert result.missed == pytest.approx(0.5, abs=0.1)
    assert "misses modes with" in result.verdict and "refine the model itself" in result.verdict
    assert "num_starts" not in result.verdict


@pytest.mark.parametrize("place, width, missed", [(2.0, 0.15, 0.5), (0.0, 2.0, 0.0)])
def test_a_mode_that_no_chain_has_visited_is_told(
    place: float, width: float, missed: float
) -> None:
    start = init_to_value(values={"x": torch.tensor(place)})
    guide = AutoDiagonalNormal(two_halves, init_loc_fn=start, init_scale=width)
    guide()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        result = mcmc_correct(two_halves, guide, seed=0, progress=False)
    assert result.missed == pytest.approx(missed, abs=0.1)
    told = "do not trust: no chain has visited other modes, with" if missed else "trust: the chains"
    assert result.verdict.startswith(told) and bool(caught) == bool(missed)


def test_modes_beside_chains_are_found_among_many_latents() -> None:
    joint = Joint(sign_unknown)
    place = torch.cat([torch.tensor([2.0]), torch.linspace(2.0, 4.0, 61)])
    draws = place + 0.5 * torch.randn(1000, 62, generator=torch.Generator().manual_seed(0))
    missed, climbs = unvisited_mass(joint, draws, 30.0)
    assert missed == pytest.approx(0.5, abs=0.1) and climbs is None


def apart(dim: int, gap: float) -> Callable[[], None]:
    """A Gaussian with 70 % of the mass, and one that is moved along a quarter of the axes."""
    loc = torch.zeros(2, dim)
    loc[1, : max(1, dim // 4)] = gap
    both = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.7, 0.3])), dist.Normal(loc, 1.0).to_event(1)
    )

    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(dim), 1.0).mask(False).to_event(1))
        pyro.factor("f", both.log_prob(x))

    return model


@pytest.mark.parametrize("dim, gap", [(2, 8.0), (5, 15.0), (40, 5.0)])
def test_a_mode_far_away_is_found_and_chains_in_both_are_not_accused(dim: int, gap: float) -> None:
    joint = Joint(apart(dim, gap))
    one = torch.randn(2000, dim, generator=torch.Generator().manual_seed(0))
    both = one.clone()
    both[:600, : max(1, dim // 4)] += gap
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lost, kept = (unvisited_mass(joint, draws, 30.0) for draws in (one, both))
    assert lost == (pytest.approx(0.3, abs=0.05), None) and kept == (0.0, None)


def test_a_guide_beside_which_no_modes_are_looked_for_is_not_trusted_without_a_word() -> None:
    model = dist.Normal(torch.zeros(201), 1.0).to_event(1)
    guide = AutoNormal(lambda: pyro.sample("z", model), init_scale=1.0)
    guide()
    result = refine(guide, seconds=10.0, num_draws=1000, seed=0, progress=False)
    assert result.judgement.kind == "trust"
    assert result.verdict.endswith("but other modes were not looked for")
