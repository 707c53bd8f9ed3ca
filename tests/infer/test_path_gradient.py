"""Claims about the path gradient of flow guides."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import correlated, schools
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.importance import vectorized_importance_weights
from pyro.optim import Adam
from torch import Tensor

from pyro_naf import affine_autoregressive_flow, deep_sigmoidal_flow
from pyro_naf.infer import AutoDDSFNormal, AutoDSFNormal, AutoFlowNormal
from pyro_naf.infer.path_gradient import FlowPath, score

GUIDES = [AutoDSFNormal, AutoDDSFNormal, lambda m, **k: AutoFlowNormal(m, _affine, **k)]


def _affine(dim: int) -> Any:
    return affine_autoregressive_flow(dim, order="natural")


def trained(make: Any, full_rank: bool) -> Any:
    guide = make(schools, full_rank=full_rank)
    svi = SVI(schools, guide, Adam({"lr": 2e-2}), Trace_ELBO())
    for _ in range(30):
        svi.step()
    return guide.double()


@pytest.mark.parametrize("make", GUIDES)
@pytest.mark.parametrize("full_rank", [False, True])
def test_score_is_the_gradient_of_the_log_density(make: Any, full_rank: bool) -> None:
    guide = trained(make, full_rank)
    posterior = guide.get_posterior().expand([20])
    z = posterior.rsample()
    found = score(posterior, z)
    # Another way to the same number: through the numerical inverse and its gradient.
    z = z.detach().requires_grad_()
    (exact,) = torch.autograd.grad(posterior.log_prob(z).sum(), z)
    error = (found - exact).abs().max() / exact.abs().max()
    assert error < 1e-8


def gradients(model: Any, guide: Any, particles: int, path: bool) -> torch.Tensor:
    log_weights, _, trace = vectorized_importance_weights(
        model, guide, num_samples=particles, max_plate_nesting=1
    )
    site = trace.nodes[f"_{guide._pyro_name}_latent"]
    if path:
        log_weights = log_weights + site["log_prob"]
        log_weights = log_weights - (score(site["fn"], site["value"]) * site["value"]).sum(-1)
    weights = list(guide.parameters())
    grads = torch.autograd.grad(log_weights.mean(), weights, allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])


def test_path_gradient_has_the_mean_of_the_elbo_gradient() -> None:
    guide = AutoDSFNormal(schools, hidden_dims=[4], hidden_units=2)
    guide()
    plain = torch.stack([gradients(schools, guide, 200, path=False) for _ in range(60)])
    path = torch.stack([gradients(schools, guide, 200, path=True) for _ in range(60)])
    gap = (plain.mean(0) - path.mean(0)).abs()
    error = ((plain.var(0) + path.var(0)) / 60).sqrt()
    assert (gap <= 5.5 * error + 1e-4).all()


def test_path_gradient_vanishes_draw_by_draw_where_the_guide_is_the_posterior() -> None:
    guide = AutoFlowNormal(correlated, _affine, full_rank=True)
    guide()
    with torch.no_grad():
        for weight in guide._modules["flow"].parameters():
            weight.zero_()  # the identity
        model = poutine.trace(correlated).get_trace().nodes["z"]["fn"]
        factor = model.scale_tril
        guide.loc.copy_(model.loc)
    guide.scale = factor.diagonal().clone()
    guide.scale_tril = factor / factor.diagonal()[:, None]
    assert gradients(correlated, guide, 16, path=True).abs().max() < 1e-5
    assert gradients(correlated, guide, 16, path=False).abs().max() > 0.05


@pytest.mark.parametrize("heavy_tails", [False, True])
@pytest.mark.parametrize("guide_type", [AutoDSFNormal, AutoDDSFNormal])
def test_draws_of_a_path_have_the_density_and_score_of_the_dense_jacobian(
    guide_type: Any, heavy_tails: bool
) -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(4).double(), 1.0).to_event(1))

    guide = guide_type(model, heavy_tails=heavy_tails, full_rank=True)
    guide()
    for weight in guide.flow.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    transform, normal = guide.get_transform(), torch.randn(3, 4).double()
    path = FlowPath(transform, normal)
    (slopes,) = torch.autograd.grad(path.log_q.sum(), path.normal, retain_graph=True)

    def log_det(eps: Tensor) -> Tensor:
        return transform.log_abs_det_jacobian(eps, transform(eps)).sum()

    parts = normal, path.z, path.log_q, slopes, path.score(1e-14)
    for eps, z, log_q, slope, score_ in zip(*parts, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda e: transform(e[None])[0], eps)
        by_eps = torch.autograd.functional.jacobian(log_det, eps[None])[0]
        torch.testing.assert_close(z, transform(eps[None])[0])
        exact = dist.Normal(0.0, 1.0).log_prob(eps).sum() - torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(log_q, exact)
        torch.testing.assert_close(slope, -eps - by_eps)
        torch.testing.assert_close(score_, torch.linalg.solve(jacobian.T, -eps - by_eps))


def test_a_path_without_gradients_has_no_score() -> None:
    affine = torch.distributions.AffineTransform(1.0, 2.0, event_dim=1)
    with torch.no_grad():
        path = FlowPath(affine, torch.ones(2, 1))
    with pytest.raises(RuntimeError, match="made with gradients"):
        path.score()


@pytest.mark.parametrize(
    "activation", [torch.nn.ReLU(inplace=True), torch.nn.ELU(inplace=True), torch.nn.RReLU()]
)
def test_scores_follow_activations_that_write_or_draw(activation: Any) -> None:
    flow = deep_sigmoidal_flow(3, hidden_dims=[8], activation=activation).double()
    for weight in flow.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    path = FlowPath(flow, torch.randn(4, 3).double())
    found = path.score(1e-14)
    # As s = J^-T (-eps - d log_det / d eps), J^T s is known.
    (pulled,) = torch.autograd.grad(path.z, path.normal, found, retain_graph=True)
    (slopes,) = torch.autograd.grad(path.log_q.sum(), path.normal)
    torch.testing.assert_close(pulled, slopes)


@pytest.mark.parametrize("hidden_dims", [[4], [256, 256]])
def test_scores_of_wide_and_narrow_networks_are_right(hidden_dims: list[int]) -> None:
    flow = deep_sigmoidal_flow(6, hidden_dims=hidden_dims).double()
    for weight in flow.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    path = FlowPath(flow, torch.randn(4, 6).double())
    assert flow.arn.has_jacobian == (len(hidden_dims) == 1)
    found = path.score(1e-14)
    (pulled,) = torch.autograd.grad(path.z, path.normal, found, retain_graph=True)
    (slopes,) = torch.autograd.grad(path.log_q.sum(), path.normal)
    torch.testing.assert_close(pulled, slopes)
