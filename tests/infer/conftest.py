"""What several files of tests share, because it takes long."""

from __future__ import annotations

import pyro
import pytest
from models import schools
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

from pyro_naf.infer import Refinement, RefineSettings, refine


@pytest.fixture(scope="session")
def eight_schools() -> Refinement:
    """A guide of Pyro's for eight schools, refined in a thousand steps: no test changes it."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoNormal(schools)
    elbo = Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(schools, guide, Adam({"lr": 5e-2}), elbo)
    for _ in range(200):
        svi.step()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pyro_naf.infer.refinement.DEFAULTS", RefineSettings(judging_draws=5000))
        result = refine(guide, steps=1000, seed=0, num_draws=20_000, progress=False)
    pyro.clear_param_store()
    return result
