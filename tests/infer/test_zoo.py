"""Claims about the zoo: Pyro's NUTS takes every model, and what is said of each is true."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor
from zoo import ZOO, Case, default_dtype, reference_log_joint
from zoo_case import traced


def started(case: Case) -> tuple[dict[str, Tensor], Tensor]:
    """A point where NUTS starts, and the log-density there from its potential, both constrained."""
    with default_dtype(torch.float64):
        model, args, kwargs = case.make()
        u, potential, transforms, _ = initialize_model(model, args, kwargs, **case.nuts())
        z = {name: transforms[name].inv(value) for name, value in u.items()}
        jacobian = sum(transforms[name].log_abs_det_jacobian(z[name], u[name]).sum() for name in u)
        return z, jacobian - potential(u)


@pytest.mark.parametrize("name", ZOO)
def test_the_reference_is_the_density_that_nuts_uses(name: str) -> None:
    z, log_density = started(ZOO[name])
    found = reference_log_joint(ZOO[name])(z)
    assert found.dtype == torch.float64 and found.isfinite()
    torch.testing.assert_close(found, log_density, rtol=1e-9, atol=1e-6)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", [name for name, case in ZOO.items() if not case.discrete])
def test_vmap_runs_what_is_said_to_be_vectorisable(name: str) -> None:
    case = ZOO[name]
    z, _ = started(case)
    with default_dtype(torch.float64), pyro.validation_enabled(False):
        model, args, kwargs = case.make()
        batch = {key: value.expand(2, *value.shape) for key, value in z.items()}

        def run() -> Tensor:
            return torch.vmap(lambda z: traced(model, args, kwargs, z))(batch)

        if case.vmap:
            torch.testing.assert_close(run(), traced(model, args, kwargs, z).expand(2))
        else:
            with pytest.raises(Exception):  # noqa: B017
                run()
