"""Tukey's h map: a bijection with exact slopes, and the tails that it gives a guide."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.optim import ClippedAdam
from scipy import special, stats
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import jacfwd, jacrev, vmap

from pyro_naf.flows.heavy_tails import TukeyH
from pyro_naf.infer import AutoDSFNormal, CompiledSVI
from pyro_naf.infer.path_gradient import score


def indices() -> Tensor:
    return torch.tensor([1e-6, 0.02, 0.3, 0.99], dtype=torch.double)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_inverse_is_lambert_ws_however_far_out(dtype: torch.dtype) -> None:
    tails = TukeyH(indices().to(dtype))
    x = torch.logspace(-30, 30, 121, dtype=torch.double)
    x = torch.cat([-x, torch.zeros(1), x]).to(dtype).unsqueeze(1).expand(-1, 4)
    z = tails.inv(x)
    h = indices().numpy()
    expected = x.double().numpy() * np.exp(-special.lambertw(h * x.double().numpy() ** 2).real / 2)
    np.testing.assert_allclose(z.double().numpy(), expected, rtol=100 * torch.finfo(dtype).eps)
    torch.testing.assert_close(tails(z), x, rtol=1e3 * torch.finfo(dtype).eps, atol=0)


def test_slopes_are_those_of_autograd_in_every_mode() -> None:
    tails = TukeyH(indices())
    z = torch.randn(5, 4).double() * 2
    log_det = tails.log_abs_det_jacobian(z, tails(z))
    for jacobian in (jacrev, jacfwd):
        forward, back = vmap(jacobian(tails))(z), vmap(jacobian(tails.inv))(tails(z))
        torch.testing.assert_close(torch.linalg.slogdet(forward)[1], log_det)
        torch.testing.assert_close(forward @ back, torch.eye(4).double().expand(5, 4, 4))
    raw = torch.randn(4).double().requires_grad_()
    x = tails(z).requires_grad_()
    assert gradcheck(lambda x, raw: TukeyH(raw.sigmoid()).inv(x), (x, raw))


def test_tails_fall_as_a_power_of_the_tail_index() -> None:
    # P(|X| > x) = P(|Z| > z): between two levels far out, its logarithm falls by 1 / h a unit.
    tails = TukeyH(torch.tensor([0.5], dtype=torch.double))
    x = torch.tensor([[1e20], [1e21]], dtype=torch.double)
    above = 2 * stats.norm.sf(tails.inv(x).numpy())
    assert math.log(above[0, 0] / above[1, 0]) / math.log(10) == pytest.approx(2, rel=0.02)


# ------------------------------------------------------------------------------------------ guides


def two_latents() -> None:
    with pyro.plate("latents", 2):
        pyro.sample("x", dist.StudentT(2.5, 1.0, torch.tensor([1.0, 3.0])))


def test_a_guide_with_heavy_tails_fits_heavy_tails() -> None:
    pyro.clear_param_store()
    torch.manual_seed(0)
    guide = AutoDSFNormal(two_latents, init_scale=1.0, hidden_dims=[8], heavy_tails=True)
    elbo = Trace_ELBO(num_particles=128, vectorize_particles=True, max_plate_nesting=1)
    svi = CompiledSVI(two_latents, guide, ClippedAdam({"lr": 2e-2, "lrd": 0.995}), elbo)
    for _ in range(300):
        svi.step()
    x = torch.from_numpy(stats.t(2.5, 1.0, [1.0, 3.0]).rvs([8000, 2], random_state=0)).float()
    truth = stats.t(2.5, 1.0, [1.0, 3.0]).logpdf(x.numpy()).sum(1)
    log_weights = truth - guide.log_prob({"x": x}).detach().numpy()
    assert log_weights.mean() < 0.03  # 1.3 without heavy tails
    assert log_weights.max() < 10  # thousands without


@pytest.mark.parametrize("options", [{}, {"inverse": True}, {"full_rank": True}])
def test_a_guide_with_heavy_tails_starts_near_the_one_without(options: dict[str, Any]) -> None:
    guides = []
    for heavy in (True, False):
        pyro.clear_param_store()
        torch.manual_seed(0)
        guides.append(AutoDSFNormal(two_latents, heavy_tails=heavy, **options))
        guides[-1]()
    with torch.no_grad():
        x = {"x": guides[1].get_posterior().sample((500,))}
        assert abs(float((guides[1].log_prob(x) - guides[0].log_prob(x)).mean())) < 0.02
    assert "heavy tails" in str(guides[0].table()) and "heavy" not in str(guides[1].table())


def test_its_quantiles_draws_and_densities_agree() -> None:
    pyro.clear_param_store()
    guide = AutoDSFNormal(two_latents, heavy_tails=True, num_transforms=1)
    guide()
    guide.tail_index = torch.tensor([0.4, 0.1])
    with torch.no_grad():
        drawn = guide.get_posterior().sample((20_000,))
    for level, found in zip(
        (0.01, 0.3, 0.99), guide.quantiles([0.01, 0.3, 0.99])["x"], strict=True
    ):
        below = (drawn <= found).double().mean(0)
        assert (below - level).abs().max() < 4 * math.sqrt(level * (1 - level) / 20_000) + 1e-3
    for same in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert torch.equal(same.log_prob({"x": drawn[:5]}), guide.log_prob({"x": drawn[:5]}))


def test_the_score_of_its_draws_is_that_of_its_density() -> None:
    pyro.clear_param_store()
    guide = AutoDSFNormal(two_latents, heavy_tails=True)
    guide()
    guide.tail_index = torch.tensor([0.4, 0.1])
    posterior = guide.get_posterior()
    z = posterior.rsample((6,))
    other = z.detach().requires_grad_()
    (expected,) = torch.autograd.grad(guide.get_posterior().log_prob(other).sum(), other)
    torch.testing.assert_close(score(posterior, z), expected, rtol=1e-3, atol=1e-4)
