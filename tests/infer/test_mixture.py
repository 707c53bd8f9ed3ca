"""Claims about Gaussians at several modes as one proposal."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_naf.infer.laplace import Gaussian
from pyro_naf.infer.mixture import Pool, Pushed, several, weighed, widened
from pyro_naf.rootfinding import RootNotFoundError

CENTRES = torch.tensor([[-3.0, 0.0], [3.0, 1.0]]).double()


def two(weight: float) -> Callable[[Tensor], Tensor]:
    """A mixture of two Gaussians of width 0.5, not normalised."""
    weights = torch.tensor([weight, 1 - weight]).double()
    components = dist.Normal(CENTRES, torch.tensor(0.5).double()).to_event(1)
    law = dist.MixtureSameFamily(dist.Categorical(weights), components)
    return lambda z: law.log_prob(z) + 7


def modes(width: float = 0.5) -> list[Gaussian]:
    return [Gaussian(c, width * torch.eye(2).double(), math.nan) for c in CENTRES]


@pytest.mark.parametrize("width", [0.4, 0.5, 1.0])
def test_a_pool_has_the_moments_of_all_modes(width: float) -> None:
    found = Pool(two(0.4), modes(width)).around
    apart = CENTRES[1] - CENTRES[0]
    covariance = 0.25 * torch.eye(2) + 0.24 * torch.outer(apart, apart)
    torch.testing.assert_close(found.loc, CENTRES[0] + 0.6 * apart, atol=0.15, rtol=0)
    torch.testing.assert_close(found.factor @ found.factor.T, covariance, atol=0.3, rtol=0)


def test_a_pool_finds_a_mode_between_others() -> None:
    weights = torch.tensor([0.3, 0.4, 0.3]).double()
    centres = torch.tensor([[-3.0, 0.0], [0.0, 0.0], [3.0, 0.0]]).double()
    components = dist.Normal(centres, torch.tensor(0.3).double()).to_event(1)
    law = dist.MixtureSameFamily(dist.Categorical(weights), components)
    outer = [Gaussian(c, 0.3 * torch.eye(2).double(), math.nan) for c in centres[::2]]
    z, log_p = Pool(law.log_prob, outer).draw(10_000)
    assert torch.equal(log_p, law.log_prob(z))
    assert float((z[:, 0].abs() < 1).double().mean()) == pytest.approx(0.4, abs=0.05)


def test_a_mode_without_mass_is_no_second_one() -> None:
    assert several(two(0.4), modes())
    assert not several(two(0.001), modes())
    assert not several(two(0.4), modes()[:1])


def test_weights_give_the_evidence() -> None:
    z, log_weights, log_p = weighed(two(0.4), widened(modes(0.7)), CENTRES[0])
    assert z.shape == (20_000, 2) and torch.equal(log_p, two(0.4)(z))
    assert float(log_weights.logsumexp(0)) - math.log(20_000) == pytest.approx(7, abs=0.05)


class Walled:
    """A normal law whose transform has no inverse beyond three."""

    class Wall(dist.transforms.ExpTransform):
        def _inverse(self, y: Tensor) -> Tensor:
            if (y > 3).any():
                raise RootNotFoundError(1, len(y), 1.0)
            return y.log()

    transforms = (Wall(),)

    def log_prob(self, z: Tensor) -> Tensor:
        x = self.transforms[0].inv(z)
        return -x.sum(-1) - 0.5 * x.square().sum(-1)


def test_points_out_of_the_inverse_s_reach_have_no_density() -> None:
    z = torch.full((100, 2), 1.0)
    z[70] = 4.0
    found = Pushed(Walled()).log_prob(z)
    assert found[70] == -math.inf and (found == 0).sum() >= 100 - 16
