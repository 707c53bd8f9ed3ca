"""Claims about guides with a context: posteriors for any data set, and latents of each datum."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import LINEAR, LINEAR_NOISE, linear, linear_data, linear_posterior, linear_sets
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.infer.reparam import NeuTraReparam
from scipy.stats import chisquare
from torch import nn

from pyro_naf import conditional_affine_autoregressive_flow, deep_sigmoidal_flow
from pyro_naf.infer import (
    AutoDDSFNormal,
    AutoDSFNormal,
    AutoFlowNormal,
    CompiledSVI,
    ForwardKL,
    importance_diagnostics,
)
from pyro_naf.transforms import AutoregressiveFlow


def itself(y: torch.Tensor) -> torch.Tensor:
    return y


def dsf(model: Callable[..., Any], **kw: Any) -> AutoFlowNormal:
    kw = {"context_fn": itself, "context_dim": 3} | kw
    return AutoDSFNormal(model, hidden_units=8, num_transforms=1, **kw)


def ddsf(model: Callable[..., Any], **kw: Any) -> AutoFlowNormal:
    kw = {"context_fn": itself, "context_dim": 3} | kw
    return AutoDDSFNormal(model, hidden_dims=[8], hidden_units=4, **kw)


def affine(model: Callable[..., Any], **kw: Any) -> AutoFlowNormal:
    kw = {"context_fn": itself, "context_dim": 3} | kw
    return AutoFlowNormal(model, conditional_affine_autoregressive_flow, **kw)


every_guide = pytest.mark.parametrize("make", [dsf, ddsf, affine])


def train(
    model: Any, guide: Any, steps: int, loss: Any, data: Callable[[], Any], lr: float = 2e-2
) -> None:
    optimiser = pyro.optim.ClippedAdam({"lr": lr, "lrd": 0.02 ** (1 / steps)})
    svi = SVI(model, guide, optimiser, loss)
    for _ in range(steps):
        svi.step(data())


@torch.no_grad()
def mean_kl(guide: AutoFlowNormal, y: torch.Tensor, forward: bool) -> float:
    """Mean over data sets of KL(p || q), or of KL(q || p), from 64 draws of each."""
    p, q = linear_posterior(y), guide.get_posterior(y)
    z = (p if forward else q).sample([64])
    gap = p.log_prob(z) - q.log_prob(z)
    return float(gap.mean() if forward else -gap.mean())


@torch.no_grad()
def calibration(guide: AutoFlowNormal, number: int = 1000) -> list[float]:
    """p-values that the ranks of true latents among 99 draws are uniform over 20 bins.

    Talts et al. 2018 [arXiv:1804.06788].
    """
    x, y = linear_data(number)
    ranks = (guide.get_posterior(y).sample([99]) < x).sum(0)
    counts = [torch.bincount(r // 5, minlength=20) for r in ranks.T]
    return [float(chisquare(c).pvalue) for c in counts]


def assert_amortised(guide: AutoFlowNormal) -> None:
    _, y = linear_data(1000)
    assert mean_kl(guide, y, forward=True) < 0.05
    assert mean_kl(guide, y, forward=False) < 0.05
    assert min(calibration(guide)) > 0.01


def test_the_elbo_trains_a_guide_for_any_gaussian_linear_data_set() -> None:
    guide = dsf(linear_sets)
    train(linear_sets, guide, 450, Trace_ELBO(), lambda: linear_data(256)[1])
    assert_amortised(guide)


def test_the_forward_kl_trains_a_guide_for_any_gaussian_linear_data_set() -> None:
    guide = dsf(linear)
    train(linear, guide, 350, ForwardKL(128), lambda: torch.zeros(3), lr=3e-2)
    assert_amortised(guide)


def test_the_forward_kl_trains_an_inverse_guide_without_ever_running_the_inverse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: AutoregressiveFlow, y: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the numerical inverse was run")

    guide = dsf(linear, inverse=True)
    guide(torch.zeros(3))
    with monkeypatch.context() as patched:
        patched.setattr(AutoregressiveFlow, "_inverse", refuse)
        train(linear, guide, 250, ForwardKL(128), lambda: torch.zeros(3), lr=3e-2)
    _, y = linear_data(1000)
    assert mean_kl(guide, y, forward=True) < 0.05
    assert mean_kl(guide, y, forward=False) < 0.05


def test_one_guide_takes_both_losses_one_after_the_other() -> None:
    guide = dsf(linear_sets)
    train(linear_sets, guide, 150, ForwardKL(1), lambda: torch.zeros(128, 3))
    _, y = linear_data(1000)
    before = mean_kl(guide, y, forward=False)
    train(linear_sets, guide, 150, Trace_ELBO(), lambda: linear_data(128)[1], lr=5e-3)
    assert mean_kl(guide, y, forward=False) < 0.7 * before


def test_the_affine_map_follows_far_shifts_of_the_context() -> None:
    def far(y: torch.Tensor) -> None:
        with pyro.plate("sets", len(y)):
            x = pyro.sample("x", dist.Normal(0.0, 100.0))
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    guide = dsf(far, context_fn=lambda y: y.unsqueeze(-1) / 100, context_dim=1)
    train(far, guide, 600, Trace_ELBO(), lambda: 100 * torch.randn(64), lr=0.5)
    y = torch.tensor([-300.0, 0.0, 300.0])
    assert torch.allclose(guide.median(y)["x"], y, atol=2.0, rtol=0.03)


def test_forward_kl_reaches_a_skewed_posterior_of_discrete_data_without_scoring_the_model() -> None:
    def model(k: torch.Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("days", 4):
            pyro.sample("k", dist.Poisson(rate), obs=k)

    def context(k: torch.Tensor) -> torch.Tensor:
        return (k.sum(-1, keepdim=True) + 1).log() - 2

    guide = dsf(model, context_fn=context, context_dim=1)
    train(model, guide, 250, ForwardKL(256), lambda: torch.zeros(4))
    rate = dist.Gamma(2.0, 1.0).sample([500])
    k = dist.Poisson(rate).sample([4]).T
    exact = dist.Gamma(2.0 + k.sum(-1), 5.0)
    rate = exact.sample([64])
    with torch.no_grad():
        gap = exact.log_prob(rate) - guide.log_prob({"rate": rate}, k)
    assert gap.mean() < 0.03


def test_forward_kl_integrates_out_the_latents_that_the_guide_leaves_to_itself() -> None:
    def model(y: torch.Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        nuisance = pyro.sample("nuisance", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x + nuisance, 1.0), obs=y)

    guide = dsf(
        poutine.block(model, hide=["nuisance"]), context_fn=lambda y: y[..., None], context_dim=1
    )
    train(model, guide, 300, ForwardKL(256), lambda: torch.tensor(0.0))
    found = guide.quantiles([0.16, 0.5, 0.84], torch.tensor(1.5))["x"].detach()
    exact = dist.Normal(0.5, (2 / 3) ** 0.5).icdf(torch.tensor([0.16, 0.5, 0.84]))
    assert torch.allclose(found, exact, atol=0.1)


N, NOISE = 200, 0.5


def data_of_each(y: torch.Tensor) -> None:
    """mu ~ N(0, 10), z_n ~ N(mu, 1), y_n ~ N(z_n, NOISE); y may be a minibatch of N."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", N, subsample_size=len(y)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, NOISE), obs=y)


def subsampled(y: torch.Tensor) -> None:
    """The same for all data, of which the plate takes a subsample."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", N, subsample_size=20) as index:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, NOISE), obs=y[index])


def local(model: Any, **kw: Any) -> AutoFlowNormal:
    blocked = poutine.block(model, hide=["mu"])
    return dsf(blocked, context_fn=lambda y: y.unsqueeze(-1) - 3, context_dim=1, **kw)


def plates(y: torch.Tensor) -> pyro.plate:
    return pyro.plate("data", N, subsample_size=len(y))


@pytest.mark.parametrize("model", [data_of_each, subsampled])
def test_latents_of_each_datum_beside_a_global_one(model: Any) -> None:
    minibatches = model is data_of_each
    guide = AutoGuideList(model, create_plates=plates if minibatches else None)
    guide.append(AutoNormal(poutine.block(model, expose=["mu"])))
    guide.append(local(model))
    y = 3 + dist.Normal(0.0, (1 + NOISE**2) ** 0.5).sample([N])
    sizes = iter([20, 30, 7] * 134)

    def batch() -> torch.Tensor:
        return y[torch.randperm(N)[: next(sizes)]] if minibatches else y

    loss = Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=1)
    train(model, guide, 400, loss, batch, lr=5e-2)
    # Given mu, which N data fix, the posterior of each z is normal.
    mu = (y.sum() / (1 + NOISE**2)) / (N / (1 + NOISE**2) + 1 / 100)
    variance = 1 / (1 + NOISE**-2)
    exact = dist.Normal(variance * (mu + y / NOISE**2), variance**0.5)
    assert abs(float(guide[0].median()["mu"]) - float(mu)) < 0.1
    with torch.no_grad():
        posterior = guide[1].get_posterior(y)
        z = posterior.sample([64])
        divergence = posterior.log_prob(z) - exact.log_prob(z[..., 0])
    assert divergence.mean() < 0.05  # the one that an ELBO descends


@pytest.mark.parametrize(
    "model, sizes", [(data_of_each, [N, 20, 30, N]), (subsampled, [N, N])], ids=["given", "drawn"]
)
def test_the_guide_takes_the_subsample_and_the_scale_of_the_models_plate(
    model: Any, sizes: list[int]
) -> None:
    guide = local(model)
    y = torch.arange(float(N)) / 10
    for size in sizes:
        trace = poutine.trace(guide).get_trace(y[:size])
        latent = trace.nodes[f"_{guide._pyro_name}_latent"]
        rows = size if model is data_of_each else 20
        assert latent["value"].shape == (rows, 1) and latent["scale"] == N / rows
        assert trace.nodes["z"]["scale"] == N / rows
        # The posterior of each row is that of its own datum.
        index = trace.nodes["data"]["value"] if model is subsampled else slice(size)
        own = guide.get_posterior(y[index]).log_prob(latent["value"])
        expected = latent["fn"].log_prob(latent["value"])
        torch.testing.assert_close(own, expected, rtol=1e-3, atol=1e-3)


def schools_sets(y: torch.Tensor) -> None:
    """Latents in the plate of data sets, and in a plate of their own inside it."""
    with pyro.plate("sets", len(y)):
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        with pyro.plate("schools", 4):
            theta = pyro.sample("theta", dist.Normal(0.0, tau))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y.T)


@every_guide
def test_a_hierarchy_in_each_data_set_keeps_data_sets_apart(make: Any) -> None:
    guide = make(schools_sets, context_dim=4)
    y = torch.randn(6, 4)
    train(schools_sets, guide, 20, Trace_ELBO(4, vectorize_particles=True), lambda: y)
    assert guide.latent_dim == 5
    y = torch.randn(3, 4)
    samples = guide(y)
    assert samples["tau"].shape == (3,) and samples["theta"].shape == (4, 3)
    z = guide.get_posterior(y).sample([50])
    values = {site["name"]: u for site, u in guide._unpack_latent(z.unsqueeze(1))}
    draws = {"tau": values["tau"].exp().squeeze(1), "theta": values["theta"]}
    log_prob = guide.log_prob(draws, y)
    assert log_prob.shape == (50, 3)
    for i in range(3):
        alone = guide.log_prob(
            {"tau": draws["tau"][:, i : i + 1], "theta": draws["theta"][..., i : i + 1]},
            y[i : i + 1],
        )
        torch.testing.assert_close(alone[:, 0], log_prob[:, i], rtol=1e-3, atol=1e-3)


@every_guide
def test_log_prob_is_a_density_of_the_constrained_latents(make: Any) -> None:
    def model(y: torch.Tensor) -> None:
        pyro.sample("a", dist.Gamma(2.0, 1.0))
        pyro.sample("b", dist.Beta(2.0, 2.0))

    guide = make(model)
    y = torch.tensor([1.0, 0.0, -1.0])
    train(model, guide, 50, Trace_ELBO(), lambda: y)
    a = torch.linspace(-12, 6, 300).exp()
    b = torch.linspace(-14, 14, 300).sigmoid()
    grid = {"a": a[:, None].expand(300, 300), "b": b.expand(300, 300)}
    with torch.no_grad():
        density = guide.log_prob(grid, y).exp()
    assert abs(float(torch.trapezoid(torch.trapezoid(density, b), a)) - 1) < 0.01


@every_guide
@pytest.mark.parametrize("full_rank", [False, True])
def test_svi_with_a_context_never_runs_the_inverse(
    make: Any, full_rank: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: AutoregressiveFlow, y: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the numerical inverse was run")

    monkeypatch.setattr(AutoregressiveFlow, "_inverse", refuse)
    for elbo in (Trace_ELBO(), Trace_ELBO(4, vectorize_particles=True)):
        guide = make(linear_sets, full_rank=full_rank)
        train(linear_sets, guide, 2, elbo, lambda: torch.randn(5, 3))


@every_guide
def test_a_single_data_set_and_its_row_among_many_get_the_same_posterior(make: Any) -> None:
    guide = make(linear)
    y = torch.randn(4, 3)
    train(linear, guide, 5, Trace_ELBO(), lambda: y[0])
    z = torch.randn(4, 2)
    rows = guide.get_posterior(y).log_prob(z)
    torch.testing.assert_close(guide.get_posterior(y[2]).log_prob(z[2]), rows[2])
    torch.testing.assert_close(guide.log_prob({"x": z}, y), rows)


def test_all_weights_are_trained_those_of_a_context_module_too() -> None:
    for loss in (Trace_ELBO(), ForwardKL(1)):
        pyro.clear_param_store()
        guide = dsf(
            linear_sets, context_fn=nn.Sequential(nn.Linear(3, 5), nn.Tanh()), context_dim=5
        )
        guide._setup_prototype(torch.randn(8, 3))
        start = {name: p.detach().clone() for name, p in guide.named_parameters()}
        assert {"context_fn.0.weight", "context_affine.linear.weight", "loc"} <= start.keys()
        # The hidden layer's gradient is zero until the output layer behind it has moved.
        train(linear_sets, guide, 3, loss, lambda: torch.randn(8, 3))
        moved = {n for n, p in guide.named_parameters() if not torch.equal(start[n], p)}
        assert moved == start.keys()


def with_network(**kw: Any) -> AutoFlowNormal:
    return dsf(
        linear_sets, context_fn=nn.Sequential(nn.Linear(3, 5), nn.Tanh()), context_dim=5, **kw
    )


@pytest.mark.parametrize("data_before", [2, 5])
def test_a_draw_does_not_depend_on_the_number_of_rows_of_the_call_before(data_before: int) -> None:
    guide, y = dsf(linear_sets), torch.randn(5, 3)
    guide(torch.randn(data_before, 3))
    torch.manual_seed(0)
    found = guide(y)["x"]
    torch.manual_seed(0)
    assert torch.equal(guide(y)["x"], found)


def test_a_smaller_last_minibatch_has_a_graph_of_its_own() -> None:
    batches = torch.randn(8, 3).split(3)  # 3, 3 and 2 rows
    losses = []
    for kind in (SVI, partial(CompiledSVI, compile=False)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = kind(linear_sets, with_network(), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        losses.append([svi.step(batch) for _ in range(6) for batch in batches])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert svi.rung == "captured"


def test_a_guide_with_a_context_is_copied_pickled_and_loaded() -> None:
    guide = with_network(full_rank=True)
    y, z = torch.randn(8, 3), torch.randn(8, 2)
    train(linear_sets, guide, 3, Trace_ELBO(), lambda: y)
    expected = guide.get_transform(y)(z)
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    twins = [copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))]
    pyro.clear_param_store()
    fresh = with_network(full_rank=True)
    fresh._setup_prototype(torch.randn(2, 3))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for twin in [*twins, fresh]:
        assert torch.equal(twin.get_transform(y)(z), expected)
        pyro.clear_param_store()
        assert twin(torch.randn(4, 3))["x"].shape == (4, 2)


def test_a_guide_created_again_takes_the_context_modules_weights_from_the_store() -> None:
    first = with_network()
    train(linear_sets, first, 2, Trace_ELBO(), lambda: torch.randn(8, 3))
    second = with_network()
    second(torch.randn(8, 3))
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_medians_quantiles_and_draws_are_those_of_the_given_data_set() -> None:
    guide = dsf(linear_sets)
    train(linear_sets, guide, 60, Trace_ELBO(), lambda: linear_data(64)[1])
    y = torch.randn(150, 3)
    quantiles = guide.quantiles([0.25, 0.5, 0.75], y)["x"]
    assert quantiles.shape == (3, 150, 2)
    assert torch.equal(guide.median(y)["x"], quantiles[1])
    assert torch.allclose(guide.median(y[7:9])["x"], quantiles[1, 7:9], atol=1e-5)
    draws = Predictive(linear_sets, guide=guide, num_samples=2000, parallel=True)(y[:3])["x"]
    assert draws.shape == (2000, 3, 2)
    assert torch.allclose(draws.quantile(0.25, dim=0), quantiles[0, :3], atol=0.06)


def test_importance_weights_take_the_arguments() -> None:
    guide = dsf(linear)
    train(linear, guide, 300, ForwardKL(64), lambda: torch.zeros(3))
    y = torch.tensor([0.5, 0.1, 0.8])
    covariance = LINEAR @ LINEAR.T + LINEAR_NOISE**2 * torch.eye(3)
    exact = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(y)
    result = importance_diagnostics(linear, guide, y, num_particles=4000)
    assert result.khat < 0.7
    assert abs(result.log_evidence - float(exact)) < 0.05


def test_neutra_takes_a_copy_whose_context_is_that_of_one_data_set() -> None:
    guide, y = dsf(linear), torch.randn(3)
    train(linear, guide, 5, Trace_ELBO(), lambda: y)
    fixed = copy.deepcopy(guide)
    fixed.context_fn = lambda: y
    neutra = NeuTraReparam(fixed)
    trace = poutine.trace(neutra.reparam(linear)).get_trace(y)
    trace.compute_log_prob()
    x = trace.nodes["x"]["value"]
    latent = trace.nodes["x_shared_latent"]["value"]
    assert torch.equal(neutra.transform_sample(latent)["x"], x)
    # The density of the base's point, up to the base's own.
    expected = dist.Normal(0.0, 1.0).log_prob(x).sum()
    expected = expected + guide.get_transform(y).log_abs_det_jacobian(latent, x)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], expected)


def test_float64_models_take_contexts_of_any_dtype() -> None:
    def model(y: torch.Tensor) -> None:
        pyro.sample("x", dist.Normal(torch.zeros(2, dtype=torch.double), 1.0).to_event(1))

    guide = dsf(model)
    assert guide(torch.arange(3))["x"].dtype == torch.double
    assert {p.dtype for p in guide.parameters()} == {torch.double}


def test_a_context_needs_its_width_and_the_width_a_context() -> None:
    with pytest.raises(ValueError, match="context_fn needs context_dim"):
        AutoDSFNormal(linear, context_fn=itself)
    with pytest.raises(ValueError, match="context_dim=3 needs a context_fn, got None"):
        AutoDSFNormal(linear, context_dim=3)
    with pytest.raises(ValueError, match="context_dim must be at least 0, got -1"):
        AutoDSFNormal(linear, context_fn=itself, context_dim=-1)
    with pytest.raises(ValueError, match=r"affine must be None or False .* got True"):
        AutoDSFNormal(linear, context_fn=itself, context_dim=3, affine=True)
    with pytest.raises(TypeError, match="transform_fn must return a conditional transform"):
        AutoFlowNormal(
            linear, lambda d, c: deep_sigmoidal_flow(d), context_fn=itself, context_dim=3
        )(torch.zeros(3))


@pytest.mark.parametrize(
    "context_fn, match",
    [
        (lambda y: y[..., :2], r"context_fn must return shape \(\.\.\., 3\).*got \(4, 2\)"),
        (lambda y: y[0, 0], r"context_fn must return shape \(\.\.\., 3\).*got \(\)"),
        (
            lambda y: y / 0,
            "context_fn must return finite values, got NaN or infinity in 4 of 4 rows",
        ),
        (lambda y: y.tolist(), "context_fn must return a tensor, got list"),
        (
            lambda y: y[:2],
            r"context_fn must return 4 rows on axis 0 for plate 'sets', got.*\(2, 3\)",
        ),
    ],
)
def test_contexts_of_the_wrong_kind_are_refused(context_fn: Any, match: str) -> None:
    with pytest.raises((ValueError, TypeError), match=match):
        dsf(linear_sets, context_fn=context_fn)(torch.ones(4, 3))


def test_a_context_that_gains_or_loses_an_axis_is_refused() -> None:
    guide = dsf(linear_sets)
    guide(torch.zeros(4, 3))
    for y in (torch.zeros(3), torch.zeros(2, 4, 3)):
        with pytest.raises(ValueError, match=r"context_fn must return shape \(n, 3\).*'sets'"):
            guide(y)


def test_raw_contexts_bring_a_warning() -> None:
    with pytest.warns(UserWarning, match="root mean square up to 1e\\+03; standardise them in"):
        dsf(linear_sets)(torch.full((4, 3), 1e3))


def test_latents_in_and_outside_of_the_plate_are_refused_with_a_remedy() -> None:
    guide = dsf(data_of_each, context_fn=lambda y: y.unsqueeze(-1), context_dim=1)
    with pytest.raises(
        ValueError, match=r"\['mu'\] lie in none, \['z'\] in \['data'\].*AutoGuideList"
    ):
        guide(torch.zeros(20))


def test_new_sizes_in_a_guide_list_without_create_plates_are_refused_with_a_remedy() -> None:
    guide = AutoGuideList(data_of_each)
    guide.append(AutoNormal(poutine.block(data_of_each, expose=["mu"])))
    guide.append(local(data_of_each))
    guide(torch.zeros(20))
    with pytest.raises(ValueError, match=r"20 rows, or all 200, on axis 0.*create_plates"):
        guide(torch.zeros(30))


def test_log_prob_names_what_does_not_fit() -> None:
    guide = dsf(linear_sets)
    guide(torch.zeros(4, 3))
    y = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"latents must hold the sites \['x'\], got \['z'\]"):
        guide.log_prob({"z": torch.zeros(4, 2)}, y)
    with pytest.raises(ValueError, match=r"latents\['x'\] must have shape.*\(4, 2\).*\(4, 3\)"):
        guide.log_prob({"x": torch.zeros(4, 3)}, y)
    with pytest.raises(ValueError, match=r"context_fn .* latents, got \(4,\) and \(7,\)"):
        guide.log_prob({"x": torch.zeros(7, 2)}, y)
    with pytest.raises(RuntimeError, match="has no parameters yet"):
        dsf(linear_sets).log_prob({"x": torch.zeros(4, 2)}, y)


def test_forward_kl_refuses_what_it_cannot_simulate_or_hand_on() -> None:
    def factor(y: torch.Tensor) -> None:
        linear(y)
        pyro.factor("penalty", torch.tensor(1.0))

    def other_name(data: torch.Tensor) -> None:
        linear(data)

    def part(y: torch.Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=3):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    def flat(y: torch.Tensor, prior: Any) -> None:
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x.unsqueeze(-1), torch.ones(3)).to_event(1), obs=y)

    y, loss = torch.zeros(3), ForwardKL(4)
    for prior in (
        dist.Normal(0.0, 1.0).mask(False),
        dist.ImproperUniform(dist.constraints.real, (), ()),
    ):
        model = partial(flat, prior=prior)
        with pytest.raises(ValueError, match=r"'x' has an improper prior.* give it a proper one"):
            loss(model, dsf(model), y)
    with pytest.raises(TypeError, match=r"guide must be an AutoFlowNormal.*context_fn.*AutoNormal"):
        loss(linear, AutoNormal(linear), y)
    with pytest.raises(TypeError, match="context_fn"):
        loss(linear, AutoDSFNormal(linear), y)
    with pytest.raises(ValueError, match=r"'penalty' is a pyro.factor"):
        loss(factor, dsf(factor), y)
    with pytest.raises(
        ValueError, match=r"observed sites \['y'\].*has \['data'\].*arguments\(sites\)"
    ):
        loss(other_name, dsf(other_name), y)
    with pytest.raises(ValueError, match=r"'y' lies in plate 'data'.*\(3 of 10\)"):
        loss(part, dsf(part), y)
    with pytest.raises(ValueError, match="num_simulations must be at least 1, got 0"):
        ForwardKL(0)


def test_simulated_data_reach_arguments_of_other_names_by_a_function() -> None:
    def model(data: torch.Tensor | None = None) -> None:
        linear(data)

    guide = dsf(model, context_fn=lambda data: data)
    loss = ForwardKL(16, arguments=lambda sites: ((), {"data": sites["y"]}))
    value = loss(model, guide)
    assert value.shape == () and value.requires_grad


def test_a_model_that_is_not_vectorised_is_simulated_run_by_run() -> None:
    """A sampled weight inside nn.Linear: y has the covariance of a linear model."""

    class Regression(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = pyro.nn.PyroModule[torch.nn.Linear](2, 1, bias=False)
            self.linear.weight = pyro.nn.PyroSample(dist.Normal(torch.zeros(1, 2), 1.0).to_event(2))

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> None:
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    model, x, seen = Regression(), torch.tensor([[1.0, 0.0], [1.0, 2.0], [-1.0, 1.0]]), []

    def arguments(sites: dict[str, torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], dict]:
        seen.append(sites["y"])
        return (x, sites["y"]), {}

    guide = AutoDSFNormal(model, context_fn=lambda x, y: y, context_dim=3)
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), ForwardKL(150, arguments))
    svi.step(x, torch.zeros(3))
    covariance, noise = x @ x.T + 0.25 * torch.eye(3), 5 * (2 / 150) ** 0.5
    size = covariance.diag().sqrt()
    assert ((seen[-1].T.cov() - covariance) / size / size[:, None]).abs().max() < noise
