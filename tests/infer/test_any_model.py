"""Every model of the zoo goes into the joint density, its graph and refine, and is right."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from zoo import ZOO, default_dtype, reference_log_joint

from pyro_naf.infer import RefineSettings, refine
from pyro_naf.infer.joint import Joint

#: Cases whose evidence is in reach of a short refinement, with its steps.
SHORT = {
    "beta_bernoulli": 200,
    "coefficient_vector": 200,
    "dependent_support": 200,
    "logistic": 200,
    "missing_by_obs_mask": 500,
    "module_linear": 200,
    "poisson": 200,
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch says where vmap falls back on loops; that is no fault of a model."""
    monkeypatch.setattr("pyro_naf.infer.refinement.DEFAULTS", RefineSettings(judging_draws=5000))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*performance drop.*")
        yield


def points(joint: Joint, count: int) -> Tensor:
    """Points around the start, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(count, joint.dim, generator=generator, dtype=torch.double)
    return joint.start + 0.3 * noise.to(joint.start)


@pytest.mark.parametrize("name", ZOO)
def test_the_joint_density_is_that_of_single_runs(name: str) -> None:
    """At five points in float64; idle coordinates have a standard normal beside."""
    with default_dtype(torch.double):
        model, args, kwargs = ZOO[name].make()
        joint = Joint(model, args, kwargs)
        u = points(joint, 5)
        values = joint.constrained(u)
        reference = reference_log_joint(ZOO[name])
        expected = torch.stack(
            [
                reference({key: value[i] for key, value in values.items()}).detach()
                for i in range(len(u))
            ]
        )
        expected = torch.where(expected.isfinite(), expected, -torch.inf)
        found = joint.log_prob(values) - _idle_density(joint, u, values)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-8)


def _idle_density(joint: Joint, u: Tensor, values: dict[str, Tensor]) -> Tensor:
    """Log-density that idle coordinates add in the support."""
    total = torch.zeros(len(u), dtype=u.dtype)
    for name, free in joint.split(u).items():
        site = joint.sites[name]
        if site.idle is None:
            continue
        normal = -0.5 * (free.square() + math.log(2 * math.pi))
        log_det = site.transform.log_abs_det_jacobian(free, values[name])
        total += torch.where(site.idle, normal - log_det, 0.0).flatten(1).sum(-1)
    return total


@pytest.mark.parametrize("name", list(ZOO)[::7])
def test_a_captured_graph_agrees_on_fresh_draws(name: str) -> None:
    joint = Joint(*ZOO[name].make())
    u = points(joint, 11)
    value, grad = joint.value_and_grad(u)
    joint.capture(8)
    again, its_grad = joint.value_and_grad(u)
    torch.testing.assert_close(again, value, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(its_grad, grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max() + 1))


@pytest.mark.parametrize("name", SHORT)
def test_refinement_comes_near_the_evidence(name: str) -> None:
    case = ZOO[name]
    assert case.evidence is not None
    truth = case.evidence()
    model, args, kwargs = case.make()
    result = refine(
        model,
        *args,
        **kwargs,
        steps=SHORT[name],
        num_draws=4000,
        num_starts=2,
        compile=False,
        seed=0,
        progress=False,
    )
    assert truth - 0.05 < result.elbo < truth + 4 * result.elbo_se + 0.01
    assert result.log_evidence == pytest.approx(truth, abs=0.03)
