"""The models that guides are measured on, against their reference or exact draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import targets
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to

from pyro_naf.infer.joint import Joint

#: As the manifest's; the test says so when it lists others.
POSTERIORS = [
    "bball_drive_event_1-hmm_drive_1",
    "eight_schools-eight_schools_centered",
    "eight_schools-eight_schools_noncentered",
    "gp_pois_regr-gp_pois_regr",
    "hmm_example-hmm_example",
    "hudson_lynx_hare-lotka_volterra",
    "kidiq-kidscore_interaction",
    "low_dim_gauss_mix-low_dim_gauss_mix",
    "mesquite-mesquite",
    "nes2000-nes",
    "one_comp_mm_elim_abs-one_comp_mm_elim_abs",
    "sblri-blr",
]
KNOWN = ["funnel", "banana", "student_t", "ring", "sine", "nine_gaussians", "mixture_20d"]


def unconstrained_gradient(target: targets.Target, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Draws in unconstrained space (n, D), and the gradient of the log-density there."""
    sites = target.sites(columns)
    trace = poutine.trace(poutine.condition(target.model, data=sites)).get_trace(*target.args)
    maps = {name: biject_to(trace.nodes[name]["fn"].support) for name in sites}
    u = targets.concatenated({name: maps[name].inv(value) for name, value in sites.items()})
    u.requires_grad_()
    sizes = {name: maps[name].inverse_shape(value.shape[1:]) for name, value in sites.items()}
    parts = targets.split(u, {name: shape[0] if shape else 0 for name, shape in sizes.items()})
    points = {name: maps[name](part) for name, part in parts.items()}
    trace = poutine.trace(poutine.condition(target.model, data=points)).get_trace(*target.args)
    trace.compute_log_prob()
    total = sum(s["log_prob"].sum() for s in trace.nodes.values() if "log_prob" in s)
    for name, part in parts.items():
        total = total + maps[name].log_abs_det_jacobian(part, points[name]).sum()
    return u.detach(), torch.autograd.grad(total, u)[0]


def largest_z(target: targets.Target, columns: Tensor) -> float:
    """Stein's identities E g = 0 and E u g' = -I, for g the gradient at the draws u: worst z."""
    u, g = unconstrained_gradient(target, columns)
    terms = torch.cat(
        [g[:, None], (u - u.mean(0))[:, :, None] * g[:, None] + torch.eye(u.shape[1])], 1
    )
    z = terms.mean(0) / (terms.std(0) / len(u) ** 0.5)
    return float(z.abs().max())


@pytest.mark.parametrize("name", POSTERIORS)
def test_reference_draws_obey_steins_identities(name: str, data_dir: Path) -> None:
    found = targets.posteriordb(data_dir)
    assert sorted(found) == POSTERIORS
    target = found[name]
    columns = target.sample(4000)
    torch.testing.assert_close(target.columns(target.sites(columns)), columns)
    assert largest_z(target, columns) < 4.5


@pytest.mark.parametrize("name", KNOWN)
def test_exact_draws_obey_steins_identities(name: str) -> None:
    target = targets.known()[name]
    columns = target.sample(20_000)
    assert columns.shape == (20_000, len(target.names))
    assert largest_z(target, columns) < 4.5


@pytest.mark.parametrize("name", ["ring", "sine", "nine_gaussians", "mixture_20d"])
def test_evidence_and_mode_masses_agree_with_the_density(name: str) -> None:
    """1/Z = E_p[q / (Z p)] for any density q inside p; here inside one mode after the other.

    Stein's identities see neither Z nor the weights of separate modes.
    """
    target = targets.known()[name]
    draws = target.sample(20_000)
    modes = target.modes(draws)
    assert modes.unique().tolist() == list(range(target.num_modes))
    torch.testing.assert_close(target.mode_masses(draws).sum().item(), 1.0)
    log_joint = Joint(target.model).log_prob(target.sites(draws))
    for k in range(target.num_modes):
        inside = draws[modes == k]
        q = torch.distributions.Normal(inside.mean(0), 0.7 * inside.std(0))
        ratio = torch.exp(q.log_prob(draws).sum(-1) - log_joint + target.log_evidence)
        assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / len(ratio) ** 0.5
        assert ratio.std() < 0.1 * len(ratio) ** 0.5
