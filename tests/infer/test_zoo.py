"""Claims about the zoo: Pyro's NUTS takes every model, and what is said of each is true."""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from zoo import ZOO, Case, default_dtype, reference_log_joint
from zoo_case import traced

Point = dict[str, Tensor]
Constrain = Callable[[Point], tuple[Point, Tensor]]


def started(case: Case) -> tuple[Point, Tensor, Constrain]:
    """Where NUTS starts, minus its potential there, and its way to constrained latents.

    That way also gives the logarithm of the Jacobian. As in NUTS nothing is validated.
    """
    with default_dtype(torch.float64), pyro.validation_enabled(False):
        model, args, kwargs = case.make()
        u, potential, transforms, _ = initialize_model(model, args, kwargs, **case.nuts())
        density = -potential(u)

    def constrain(u: Point) -> tuple[Point, Tensor]:
        z = {name: transforms[name].inv(value) for name, value in u.items()}
        inverse = [transforms[name].log_abs_det_jacobian(z[name], u[name]).sum() for name in u]
        return z, -torch.stack(inverse).sum()

    return u, density, constrain


@pytest.mark.parametrize("name", ZOO)
def test_the_reference_is_the_density_that_nuts_uses(name: str) -> None:
    u, density, constrain = started(ZOO[name])
    z, jacobian = constrain(u)
    found = reference_log_joint(ZOO[name])(z)
    assert found.dtype == torch.float64 and found.isfinite()
    torch.testing.assert_close(found, density - jacobian, rtol=1e-9, atol=1e-6)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", [name for name, case in ZOO.items() if not case.discrete])
def test_vmap_runs_what_is_said_to_be_vectorisable(name: str) -> None:
    case = ZOO[name]
    u, _, constrain = started(case)
    z, _ = constrain(u)
    with default_dtype(torch.float64), pyro.validation_enabled(False):
        model, args, kwargs = case.make()
        batch = {key: value.expand(2, *value.shape) for key, value in z.items()}

        def run() -> Tensor:
            return torch.vmap(lambda z: traced(model, args, kwargs, z))(batch)

        if case.vmap:
            torch.testing.assert_close(run(), traced(model, args, kwargs, z).expand(2))
        else:
            with pytest.raises(RuntimeError):
                run()


@pytest.mark.parametrize("name", ["copula", "double_data", "poisson", "probit"])
def test_evidence_is_what_importance_sampling_finds(name: str) -> None:
    case = ZOO[name]
    u, _, constrain = started(case)
    with default_dtype(torch.float64), pyro.validation_enabled(False):
        model, args, kwargs = case.make()

        def log_joint(u: Point) -> Tensor:
            z, jacobian = constrain(u)
            return traced(model, args, kwargs, z) + jacobian

        wide = torch.distributions.Normal(0.0, 2.0)
        many = {key: wide.sample((40_000, *value.shape)) for key, value in u.items()}
        proposal = sum(wide.log_prob(v).reshape(40_000, -1).sum(1) for v in many.values())
        weights = (torch.vmap(log_joint)(many) - proposal).exp()
    assert case.evidence is not None
    error = weights.std() / len(weights) ** 0.5
    assert abs(weights.mean() - math.exp(case.evidence())) < 4 * error < 0.2 * weights.mean()


@pytest.mark.parametrize("name", [name for name, case in ZOO.items() if case.discrete])
def test_discrete_sites_are_those_that_nuts_sums_out(name: str) -> None:
    case = ZOO[name]
    model, args, kwargs = case.make()
    trace = poutine.trace(model).get_trace(*args, **kwargs)
    found = {n for n in trace.stochastic_nodes if trace.nodes[n]["fn"].has_enumerate_support}
    assert found == set(case.discrete)
