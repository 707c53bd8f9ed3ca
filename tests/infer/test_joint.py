"""Claims about the joint density that single models of the zoo do not show."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_naf.infer import AutoDSFNormal, draws, refine
from pyro_naf.infer.joint import Joint

QUICK: dict[str, Any] = dict(num_draws=1000, num_starts=2, seed=0, progress=False)


def test_a_lane_that_cannot_be_factorised_has_no_density_and_leaves_the_others_alone() -> None:
    def model() -> None:
        rho = pyro.sample("rho", dist.Normal(0.0, 2.0))
        matrix = torch.stack([torch.ones(2), torch.stack([rho, torch.ones(())])])
        cholesky = torch.linalg.cholesky((matrix + matrix.T) / 2 + torch.diag(torch.ones(2)) * 0.01)
        pyro.factor("f", cholesky[1, 1])

    joint = Joint(model)
    u = torch.tensor([[0.0], [5.0], [0.3]], requires_grad=True)
    value = joint(u)
    assert value.isfinite().tolist() == [True, False, True]
    (grad,) = torch.autograd.grad(value[value.isfinite()].sum(), u)
    alone = Joint(model)(u[:1].detach())
    torch.testing.assert_close(value[:1].detach(), alone)
    assert bool(grad.isfinite().all())
    joint.capture(3)
    torch.testing.assert_close(joint(u.detach()), value.detach())


def test_a_model_that_raises_at_a_point_has_no_density_there() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if x > 1:
            raise ValueError("too far")
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.0))

    joint = Joint(model)
    assert joint.rung == "one draw after another"
    assert joint(torch.tensor([[0.0], [2.0]])).isfinite().tolist() == [True, False]


def autoregression(y: torch.Tensor, in_place: bool) -> None:
    """The mean of each entry is computed from the one before, in a tensor that is made first."""
    phi = pyro.sample("phi", dist.Normal(0.0, 0.5))
    if in_place:
        x = torch.zeros(len(y))
        x[0] = y[0]
        for t in range(1, len(y)):
            x[t] = phi * x[t - 1] + 1
    else:
        entries = [y[0]]
        for _ in y[1:]:
            entries.append(phi * entries[-1] + 1)
        x = torch.stack(entries)
    with pyro.plate("times", len(y)):
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def test_a_tensor_that_is_filled_from_its_own_entries_has_a_gradient() -> None:
    y = torch.tensor([0.5, 1.0, 0.2, 1.5])
    filled, stacked = Joint(autoregression, (y, True)), Joint(autoregression, (y, False))
    assert filled.rung == "vmapped with copies"
    u = torch.tensor([[0.3], [-1.2]])
    for found, expected in zip(filled.value_and_grad(u), stacked.value_and_grad(u), strict=True):
        torch.testing.assert_close(found, expected)
    filled.capture(2)
    assert filled.graph is not None
    torch.testing.assert_close(filled.value_and_grad(u), stacked.value_and_grad(u))


def test_what_is_written_through_two_indices_is_not_lost_to_copies() -> None:
    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        x = torch.zeros(3, 2)
        for t in range(1, 3):
            x[t][0] = a + x[t - 1, 0].detach()  # of a copy this would change nothing
            x[t, 1] = a * x[t - 1, 1].detach()
        pyro.factor("f", -x.square().sum())

    joint = Joint(model)
    # x is 0, a, 2a in the first column and 0 in the second.
    value = -0.5 * (4.0 + torch.log(torch.tensor(2 * torch.pi))) - (4.0 + 16.0)
    torch.testing.assert_close(joint(torch.tensor([[2.0]])), value[None])


def test_a_tensor_that_is_changed_after_use_is_named_with_what_to_write_instead() -> None:
    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        x = a.exp()
        y = x.exp()
        y += a  # the gradient of exp needs what it gave
        pyro.factor("f", -y)

    with pytest.raises(ValueError, match=r"changes a tensor in place.*write `x = x \+ a \* x`"):
        refine(model, **QUICK)


def subsampled(y: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(y), subsample_size=4) as rows:
        x = pyro.sample("x", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(x, 0.5), obs=y[rows])


def test_a_subsampled_model_has_the_density_of_all_rows_and_unbiased_minibatches() -> None:
    y = torch.linspace(-1, 2, 12, dtype=torch.double)
    with_subsample, whole = Joint(subsampled, (y,)), Joint(_whole, (y,))
    assert with_subsample.dim == whole.dim == 13
    u = torch.randn(3, 13)
    torch.testing.assert_close(with_subsample(u), whole(u))
    estimates = torch.stack([with_subsample.minibatch(u) for _ in range(2000)])
    error = estimates.std(0) / len(estimates) ** 0.5
    assert bool(((estimates.mean(0) - whole(u)).abs() < 5 * error).all())


def _whole(y: torch.Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(y)):
        x = pyro.sample("x", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(x, 0.5), obs=y)


def test_a_subsampled_model_is_refined_to_the_evidence_of_all_rows() -> None:
    y = torch.linspace(-1, 2, 40)

    def model(y: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("rows", len(y), subsample_size=20) as rows:
            pyro.sample("y", dist.Normal(mu, 0.5), obs=y[rows])

    covariance = 9 * torch.ones(40, 40) + 0.25 * torch.eye(40)
    law = torch.distributions.MultivariateNormal(torch.zeros(40), covariance)
    result = refine(model, y, steps=300, **QUICK)
    assert result.elbo == pytest.approx(float(law.log_prob(y)), abs=0.05)


def test_a_plate_that_is_given_its_subsample_is_refused() -> None:
    def model(y: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("rows", 100, subsample=torch.arange(5)):
            pyro.sample("y", dist.Normal(mu, 0.5), obs=y)

    with pytest.raises(ValueError, match=r"plate 'rows', which has 5 of 100 elements .* given"):
        Joint(model, (torch.zeros(5),))


def test_a_minibatch_given_as_the_data_is_refused_with_the_reason() -> None:
    def model(y: torch.Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("rows", 100, subsample_size=5):
            pyro.sample("y", dist.Normal(mu, 0.5), obs=y)

    with pytest.raises(
        ValueError, match=r"'rows' is subsampled \(5 of 100\).*give the model the wh"
    ):
        Joint(model, (torch.zeros(5),))


def test_nan_in_data_is_named_before_anything_is_searched() -> None:
    def model(y: torch.Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    with pytest.raises(ValueError, match=r"data of site 'y' holds NaN in 1 of 3 places.*obs_mask"):
        refine(model, torch.tensor([0.0, math.nan, 1.0]))


def test_latents_with_infinitely_many_values_are_refused() -> None:
    def model() -> None:
        count = pyro.sample("count", dist.Poisson(3.0))
        pyro.sample("x", dist.Normal(count, 1.0))

    with pytest.raises(ValueError, match=r"finite, but \['count'\] take infinitely many"):
        refine(model)


def test_an_argument_that_an_option_would_swallow_is_an_error() -> None:
    def model(steps: int) -> None:
        pyro.sample("x", dist.Normal(torch.zeros(steps), 1.0).to_event(1))

    with pytest.raises(TypeError, match=r"'steps' is an argument of the model .*functools.partial"):
        refine(model, steps=3)
    assert refine(model, 2, steps=5, **QUICK).steps == 5


def test_randomness_that_is_no_latent_is_warned_of() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with poutine.block():
            noise = pyro.sample("noise", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x + noise, 1.0), obs=torch.tensor(0.5))

    with pytest.warns(UserWarning, match="changes from run to run at the same latents"):
        Joint(model)


def test_a_joint_density_that_is_made_without_gradients_runs_in_batches() -> None:
    with torch.no_grad():
        joint = Joint(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)))
    assert joint.rung == "vmapped"
    value, gradient = joint.value_and_grad(torch.ones(3, 1))
    assert torch.equal(gradient, -torch.ones(3, 1)) and len(value) == 3


def test_a_guide_follows_a_support_that_depends_on_another_latent() -> None:
    def model() -> None:
        b = pyro.sample("b", dist.LogNormal(0.0, 0.5))
        x = pyro.sample("x", dist.Uniform(torch.zeros(()), b))
        pyro.sample("y", dist.Normal(x, 0.3), obs=torch.tensor(1.2))

    guide = AutoDSFNormal(model, init_scale=0.5)
    found = draws(guide, num_samples=1000)
    assert bool((found["x"] < found["b"]).all()) and bool((found["x"] > 0).all())
    levels = guide.quantiles([0.1, 0.9])["x"]
    inside = (found["x"] < levels[0]).double().mean()
    assert float(inside) == pytest.approx(0.1, abs=0.04)
    with pytest.raises(NotImplementedError, match=r"support of \['x'\] depends"):
        guide.log_prob(found)


def test_a_guide_stays_put_where_no_density_depends_on_a_latent() -> None:
    seen = torch.tensor([True, True, False])

    def model() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 3):
            pyro.sample("y", dist.Normal(a, 0.5), obs=torch.zeros(3), obs_mask=seen)

    guide = AutoDSFNormal(model, init_scale=1.0)
    elbo = pyro.infer.Trace_ELBO(64, vectorize_particles=True)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 2e-2}), elbo)
    for _ in range(400):
        svi.step()
    values = draws(guide, num_samples=4000)
    spread = values["y_unobserved"].std(0)
    assert spread[:2].tolist() == pytest.approx([1, 1], abs=0.2)  # the seen ones: idle
    variance = 1 / (1 + 2 / 0.25)
    assert float(spread[2]) == pytest.approx((variance + 0.25) ** 0.5, abs=0.1)
    evidence = dist.MultivariateNormal(torch.zeros(2), torch.ones(2, 2) + 0.25 * torch.eye(2))
    exact = float(evidence.log_prob(torch.zeros(2)))
    assert -elbo.loss(model, guide) == pytest.approx(exact, abs=0.3)


def test_second_derivatives_run_the_model_itself() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), torch.tensor([1.0, 2.0])).to_event(1))
        pyro.factor("f", x[0] * x[1])

    joint = Joint(model)
    joint.capture(4)
    u = torch.randn(3, 2, requires_grad=True)
    (grad,) = torch.autograd.grad(joint(u).sum(), u, create_graph=True)
    (rows,) = torch.autograd.grad(grad[:, 0].sum(), u)
    torch.testing.assert_close(rows, torch.tensor([[-1.0, 1.0]]).expand(3, 2))


def mixture(y: torch.Tensor) -> None:
    locs = pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 1.0]), 0.4).to_event(1))
    with pyro.plate("rows", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(locs[kind.long()], 0.5), obs=y)


def test_a_guide_of_a_blocked_model_is_refined_with_its_discrete_latents_summed_out() -> None:
    y = torch.tensor([-1.2, -0.7, 0.9, 1.4, 1.1])
    guide = pyro.infer.autoguide.AutoMultivariateNormal(poutine.block(mixture, hide=["kind"]))
    guide(y)
    longer = QUICK | {"num_draws": 10_000}
    from_guide = refine(guide, y, steps=300, **longer)
    from_model = refine(mixture, y, steps=300, **longer)
    assert from_guide.log_evidence == pytest.approx(from_model.log_evidence, abs=0.03)
    assert from_model.log_evidence == pytest.approx(_mixture_evidence(y), abs=0.02)


def _mixture_evidence(y: torch.Tensor) -> float:
    """By a grid over both locations."""
    axis = torch.linspace(-6, 6, 401, dtype=torch.double)
    locs = torch.cartesian_prod(axis, axis)
    parts = dist.Normal(locs[:, :, None], 0.5).log_prob(y.double())
    log_p = (parts + torch.tensor([0.6, 0.4]).double().log()[:, None]).logsumexp(1).sum(-1)
    log_p += dist.Normal(torch.tensor([-1.0, 1.0]).double(), 0.4).log_prob(locs).sum(-1)
    return float(log_p.logsumexp(0)) + 2 * math.log(12 / 400)


def test_a_flow_guide_leaves_discrete_latents_to_the_objective_that_sums_them_out() -> None:
    y = torch.tensor([-1.2, -0.7, 0.9, 1.4, 1.1])
    guide = AutoDSFNormal(mixture)
    model = pyro.infer.config_enumerate(mixture)
    elbo = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), elbo)
    assert math.isfinite(svi.step(y)) and sorted(guide(y)) == ["locs"]


def test_a_latent_with_a_batch_shape_and_no_plate_is_drawn_and_refined() -> None:
    def model(y: torch.Tensor) -> None:
        c = pyro.sample("c", dist.Normal(torch.zeros(2), torch.ones(2)))
        pyro.sample("y", dist.Normal(c.sum() * torch.ones(3), 1.0), obs=y)

    y = torch.tensor([0.5, 1.0, 1.5])
    result = refine(model, y, steps=100, **QUICK)
    law = dist.MultivariateNormal(torch.zeros(3), 2 * torch.ones(3, 3) + torch.eye(3))
    assert result.elbo == pytest.approx(float(law.log_prob(y)), abs=0.05)
    assert draws(result.guide, y, num_samples=7)["c"].shape == (7, 2)


def test_a_generator_as_data_is_refused_before_it_is_used_up() -> None:
    def model(rows: Any) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        for i, y in enumerate(rows):
            pyro.sample(f"y_{i}", dist.Normal(x, 1.0), obs=y)

    rows = (torch.tensor(float(i)) for i in range(3))
    with pytest.raises(ValueError, match=r"argument 0 .* is a generator.*uses up.*give list"):
        refine(model, rows, **QUICK)
    assert len(list(rows)) == 3


@pytest.mark.filterwarnings("ignore:Singular sample detected")
def test_a_support_without_a_bijection_is_named_with_what_to_write_instead() -> None:
    def model() -> None:
        pyro.sample("P", dist.Wishart(torch.tensor(50.0), torch.eye(2)))  # P of PositiveDefinite

    torch.manual_seed(0)
    with pytest.raises(NotImplementedError, match=r"'P' has the support .*LKJCholesky"):
        Joint(model)


def test_a_latent_that_a_delta_fixes_is_deterministic() -> None:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        twice = pyro.sample("twice", dist.Delta(2 * mu))
        with pyro.plate("rows", 2):
            each = pyro.sample("each", dist.Delta(twice))
            pyro.sample("y", dist.Normal(each, 1.0), obs=torch.tensor([1.0, 2.0]))

    joint, u = Joint(model), torch.tensor([[0.3], [-1.0]])
    plain = dist.Normal(0.0, 1.0).log_prob(u[:, 0])
    data = dist.Normal(2 * u, 1.0).log_prob(torch.tensor([1.0, 2.0])).sum(-1)
    torch.testing.assert_close(joint(u), plain + data)
    found = refine(model, steps=1, compile=False, **QUICK).draws(3)
    torch.testing.assert_close(found["each"], 2 * found["mu"][:, None].expand(3, 2))
