import re

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites

from pyro_naf import eight_schools
from pyro_naf.eight_schools import QUANTILE_LEVELS, REFERENCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_model_runs_in_the_default_dtype(dtype):
    torch.set_default_dtype(dtype)
    trace = prune_subsample_sites(poutine.trace(eight_schools.model).get_trace())
    latents = {name: site["value"] for name, site in trace.iter_stochastic_nodes()}
    assert {name: tuple(value.shape) for name, value in latents.items()} == {
        "mu": (),
        "tau": (),
        "theta": (8,),
    }
    assert {value.dtype for value in latents.values()} == {dtype}
    assert trace.nodes["y"]["is_observed"]


def test_log_density_is_that_of_the_posteriordb_model():
    torch.set_default_dtype(torch.float64)
    mu, tau, theta = torch.tensor(3.0), torch.tensor(2.0), torch.linspace(-5.0, 9.0, 8)
    point = {"mu": mu, "tau": tau, "theta": theta}
    trace = poutine.trace(poutine.condition(eight_schools.model, point)).get_trace()
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    expected = (
        dist.Normal(0.0, 5.0).log_prob(mu)
        + dist.HalfCauchy(5.0).log_prob(tau)
        + dist.Normal(mu, tau).log_prob(theta).sum()
        + dist.Normal(theta, sigma).log_prob(y).sum()
    )
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_without_y_the_model_draws_it():
    trace = poutine.trace(eight_schools.model).get_trace(y=None)
    assert not trace.nodes["y"]["is_observed"]
    assert trace.nodes["y"]["value"].shape == (8,)


def test_reference_names_every_scalar_parameter_and_its_quantiles_increase():
    assert list(REFERENCE) == ["mu", "tau", *(f"theta[{i}]" for i in range(8))]
    for known in REFERENCE.values():
        assert len(known.quantiles) == len(QUANTILE_LEVELS)
        assert np.all(np.diff(known.quantiles) > 0)


def test_reference_is_the_summary_of_the_posteriordb_draws(data_dir):
    path = data_dir / "posteriordb" / "draws" / "eight_schools-eight_schools_noncentered.npz"
    with np.load(path) as archive:
        draws = archive["draws"].reshape(-1, archive["draws"].shape[-1])
        columns = dict(zip(map(str, archive["names"]), draws.T, strict=True))
    # There entries are counted from one.
    columns = {re.sub(r"\d+", lambda i: str(int(i[0]) - 1), n): c for n, c in columns.items()}
    assert columns.keys() == REFERENCE.keys()
    for name, known in REFERENCE.items():
        expected = [columns[name].mean(), columns[name].std(ddof=1)]
        expected += list(np.quantile(columns[name], QUANTILE_LEVELS))
        quoted = [known.mean, known.sd, *known.quantiles]
        np.testing.assert_allclose(quoted, expected, atol=5.1e-4, err_msg=name)


def test_funnel_shows_log_tau_and_two_schools():
    columns = {name: np.array(known.quantiles) for name, known in REFERENCE.items()}
    shown = eight_schools.funnel(columns)
    assert list(shown) == ["log tau", "theta[0]", "theta[4]", "mu"]
    np.testing.assert_allclose(np.exp(shown["log tau"]), columns["tau"])
