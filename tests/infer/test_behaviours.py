"""What holds for Pyro's own autoguides holds for this package's: claims about both."""

from __future__ import annotations

import io
import math
import os
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import correlated, schools
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    Predictive,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import (
    AutoGuideList,
    AutoMultivariateNormal,
    AutoNormal,
    init_to_feasible,
    init_to_generated,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)
from pyro.infer.reparam import NeuTraReparam
from pyro.nn import PyroModule, PyroSample
from pyro.optim import Adam
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_naf import affine_autoregressive_flow
from pyro_naf.infer import AutoDDSFNormal, AutoDSFNormal, AutoFlowNormal, draws

SMALL: dict[str, Any] = {"hidden_dims": [8], "hidden_units": 4}


def gaussian(model: Callable[..., Any], **kw: Any) -> Any:
    return AutoMultivariateNormal(model, **kw)


def dsf(model: Callable[..., Any], **kw: Any) -> Any:
    return AutoDSFNormal(model, **SMALL, **kw)


def ddsf(model: Callable[..., Any], **kw: Any) -> Any:
    return AutoDDSFNormal(model, **SMALL, **kw)


def affine(model: Callable[..., Any], **kw: Any) -> Any:
    return AutoFlowNormal(model, affine_autoregressive_flow, full_rank=True, **kw)


OURS = [dsf, ddsf, affine]
every_guide = pytest.mark.parametrize("make", [gaussian, *OURS])
our_guides = pytest.mark.parametrize("make", OURS)


def train(
    model: Any, guide: Any, steps: int = 3, elbo: Any = None, lr: float = 1e-2
) -> list[float]:
    svi = SVI(model, guide, Adam({"lr": lr}), elbo or Trace_ELBO())
    return [svi.step() for _ in range(steps)]


def rich() -> None:
    """Latents of all kinds of support, in and out of plates that cross."""
    pyro.sample("real", dist.Normal(0.0, 1.0))
    pyro.sample("positive", dist.Gamma(2.0, 1.0))
    pyro.sample("interval", dist.Uniform(-1.0, torch.tensor([2.0, 3.0])).to_event(1))
    pyro.sample("matrix", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    pyro.sample("factor", dist.LKJCholesky(3, torch.tensor(2.0)))
    rows, columns = pyro.plate("rows", 4, dim=-2), pyro.plate("columns", 3, dim=-1)
    with columns:
        pyro.sample("simplex", dist.Dirichlet(torch.ones(5)))
    with rows, columns:
        cell = pyro.sample("cell", dist.Beta(2.0, 2.0))
        pyro.sample("ordered", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with rows:
        pyro.sample("row", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
        with columns:
            pyro.sample("seen", dist.Normal(cell, 1.0), obs=torch.zeros(4, 3))


def sites(trace: Any) -> dict[str, Any]:
    return {
        name: site
        for name, site in prune_subsample_sites(trace).iter_stochastic_nodes()
        if not site["infer"].get("is_auxiliary")
    }


@every_guide
@pytest.mark.parametrize("particles", [(), (7,)])
def test_sites_have_the_shapes_plates_and_supports_of_the_model(
    make: Any, particles: tuple[int, ...]
) -> None:
    guide = make(rich)
    guide()
    with pyro.plate_stack("particles", particles, rightmost_dim=-3):
        trace = poutine.trace(guide).get_trace()
        model_trace = poutine.trace(poutine.replay(rich, trace)).get_trace()
    trace.compute_log_prob()
    model_trace.compute_log_prob()
    ours, single = sites(trace), sites(poutine.trace(rich).get_trace())
    assert ours.keys() == single.keys() and len(ours) == 9
    for name, site in ours.items():
        like = single[name]["fn"]
        batch = like.batch_shape
        if particles:
            batch = (*particles, *[1] * (2 - len(batch)), *batch)
        assert site["value"].shape == (*batch, *like.event_shape), name
        assert site["fn"].batch_shape == batch and site["fn"].event_shape == like.event_shape
        assert site["log_prob"].shape == model_trace.nodes[name]["log_prob"].shape == batch, name
        assert site["cond_indep_stack"] == model_trace.nodes[name]["cond_indep_stack"], name
        assert bool(like.support.check(site["value"]).all()), name


@every_guide
@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        Trace_ELBO(3),
        Trace_ELBO(3, vectorize_particles=True),
        TraceMeanField_ELBO(3, vectorize_particles=True),
        TraceGraph_ELBO(),
    ],
    ids=["one", "three", "vectorised", "mean-field", "graph"],
)
def test_every_kind_of_site_is_trained_by_every_elbo(make: Any, elbo: Any) -> None:
    guide = make(rich)
    guide()
    start = {name: p.detach().clone() for name, p in guide.named_parameters()}
    losses = train(rich, guide, elbo=elbo)
    assert bool(torch.isfinite(torch.tensor(losses)).all())
    assert all(not torch.equal(p, start[name]) for name, p in guide.named_parameters())


@our_guides
def test_vectorised_particles_give_the_elbo_of_single_ones(make: Any) -> None:
    guide = make(schools)
    guide()
    single = torch.tensor([Trace_ELBO().loss(schools, guide) for _ in range(200)])
    many = Trace_ELBO(4000, vectorize_particles=True, max_plate_nesting=1).loss(schools, guide)
    assert abs(float(single.mean()) - many) < 5 * float(single.std()) / 200**0.5


@our_guides
def test_jit_traced_elbos_follow_the_weights(make: Any) -> None:
    """After steps, loss and gradients are those of the plain ELBO from the same seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        for particles in ({}, {"num_particles": 4, "vectorize_particles": True}):
            pyro.clear_param_store()
            guide = make(schools)
            jit = JitTrace_ELBO(**particles, max_plate_nesting=1, ignore_jit_warnings=True)
            train(schools, guide, elbo=jit, lr=0.1)  # the first step traces it
            found = []
            for elbo in (jit, Trace_ELBO(**particles, max_plate_nesting=1)):
                pyro.set_rng_seed(1)
                guide.zero_grad()
                loss = torch.tensor(elbo.loss_and_grads(schools, guide))
                found.append([loss, *(p.grad.clone() for p in guide.parameters())])
            torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@our_guides
def test_latents_in_a_sequential_plate_are_taken(make: Any) -> None:
    def model() -> None:
        for i in pyro.plate("plate", 2):
            pyro.sample(f"x_{i}", dist.Normal(0.0, 1.0))

    guide = make(model)
    assert sorted(guide()) == ["x_0", "x_1"]
    assert math.isfinite(Trace_ELBO().loss(model, guide))


@every_guide
def test_a_support_without_a_bijection_is_refused_by_its_site(make: Any) -> None:
    def model() -> None:
        pyro.sample("direction", dist.ProjectedNormal(torch.ones(3)))

    with pytest.raises(ValueError, match=r"'direction'.*ProjectedNormalReparam"):
        make(model)()


@every_guide
def test_latents_that_are_factors_of_a_potential_are_fitted(make: Any) -> None:
    def model() -> None:
        with pyro.plate("pair", 2):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.factor("pull", -((x - 3) ** 2))

    guide = make(model)
    elbo = Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=1)
    train(model, guide, steps=80, elbo=elbo, lr=0.1)
    # N(0, 1) times N(3, 1/2): mean 2.
    assert torch.allclose(guide.median()["x"], torch.full((2,), 2.0), atol=0.35)


def given(site: Any = None) -> Any:
    return init_to_value(values={"mu": torch.tensor(1.0), "tau": torch.tensor(2.0)})(site)


@every_guide
@pytest.mark.parametrize(
    "init",
    [
        init_to_feasible,
        init_to_median,
        init_to_sample,
        init_to_uniform,
        init_to_generated(generate=lambda: init_to_median),
        given,
    ],
)
def test_every_initialisation_starts_the_guide(make: Any, init: Any) -> None:
    guide = make(schools, init_loc_fn=init)
    guide()
    loc = {site["name"]: value for site, value in guide._unpack_latent(guide.loc)}
    assert loc["theta"].shape == (8,) and bool(torch.isfinite(guide.loc).all())
    if init is given:
        start = torch.stack([loc["mu"], loc["tau"]]).detach()
        assert torch.allclose(start, torch.tensor([1.0, 2.0]).log() + torch.tensor([1.0, 0.0]))
    assert abs(float(guide.median()["mu"] - loc["mu"].detach())) < 0.1


@our_guides
@pytest.mark.parametrize(
    "init", [init_to_mean, init_to_value(values={"tau": torch.tensor(0.0)})], ids=["far", "edge"]
)
def test_a_start_that_is_not_inside_of_the_support_is_refused_by_its_site(
    make: Any, init: Any
) -> None:
    def model() -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("tau", dist.HalfCauchy(1.0))  # its mean is infinite

    with pytest.raises(ValueError, match="init_loc_fn must start site 'tau' inside of its support"):
        make(model, init_loc_fn=init)()


@every_guide
@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_init_scale_is_the_spread_of_the_first_draws(make: Any, scale: float) -> None:
    values = draws(make(schools, init_scale=scale), num_samples=4000)
    spread = torch.cat([values["mu"][:, None], values["tau"].log()[:, None], values["theta"]], -1)
    assert torch.allclose(spread.std(0), torch.full((10,), scale), rtol=0.25)


@every_guide
def test_medians_and_quantiles_are_those_of_draws_in_every_support(make: Any) -> None:
    guide = make(rich)
    train(rich, guide, steps=20)
    median, quantiles = guide.median(), guide.quantiles([0.1, 0.5, 0.9])
    many = draws(guide, num_samples=8000)
    for name in ("real", "positive", "interval", "cell", "row"):
        assert median[name].shape == many[name].shape[1:]
        share = (many[name] < quantiles[name][:, None]).float().mean(1)
        for level, found in zip((0.1, 0.5, 0.9), share, strict=True):
            assert torch.allclose(found, torch.full_like(found, level), atol=0.03), name
        assert torch.allclose(median[name], quantiles[name][1], atol=1e-5)
    assert torch.allclose(median["simplex"].sum(-1), torch.ones(3))


@every_guide
def test_a_saved_guide_is_loaded_with_its_draws(make: Any) -> None:
    guide = make(rich)
    train(rich, guide)
    file = io.BytesIO()
    torch.save(guide, file)
    file.seek(0)
    pyro.clear_param_store()
    loaded = torch.load(file, weights_only=False)
    for (name, p), q in zip(guide.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(p, q), name
    first, second = (pyro.set_rng_seed(1) or g() for g in (guide, loaded))
    assert all(torch.equal(first[name], second[name]) for name in first)


@every_guide
def test_a_guide_is_traced_saved_and_loaded_without_pyro(make: Any) -> None:
    guide = make(schools)
    train(schools, guide)
    guide.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace_module(guide, {"call": ()}, check_trace=False)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
    pyro.set_rng_seed(1)
    expected = guide.call()
    pyro.set_rng_seed(1)
    for found, value in zip(loaded.call(), expected, strict=True):
        torch.testing.assert_close(found, value)


class Regression(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        prior = dist.Normal(torch.zeros(1, 3), 1.0).to_event(2)
        self.linear.weight = PyroSample(prior)
        self.sigma = PyroSample(dist.LogNormal(0.0, 0.3))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        # Not self.linear(x): torch's takes no weights with particles in front.
        mean = (self.linear.weight @ x.T).squeeze(-2) + self.linear.bias
        sigma = self.sigma
        with pyro.plate("data", 40, subsample_size=10, dim=-1) as index:
            mean = mean[..., index]
            pyro.sample("y", dist.Normal(mean, sigma), obs=None if y is None else y[index])
        return mean


@every_guide
def test_a_module_with_random_weights_is_fitted_to_subsamples_and_predicts(make: Any) -> None:
    x, truth = torch.randn(40, 3), torch.tensor([1.0, -2.0, 0.5])
    y = x @ truth + 0.3 * torch.randn(40)
    model = Regression()
    guide = make(model)
    elbo = Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, Adam({"lr": 0.1}), elbo)
    for _ in range(60):
        svi.step(x, y)
    assert torch.allclose(guide.median()["linear.weight"].flatten(), truth, atol=0.35)
    for parallel in (False, True):
        predict = Predictive(model, guide=guide, num_samples=5, parallel=parallel)
        assert predict(x)["y"].shape == (5, 10)
    assert {"linear.weight", "sigma"} <= Predictive(
        model, guide=guide, num_samples=5, return_sites=("linear.weight", "sigma")
    )(x).keys()


@every_guide
def test_a_guide_is_a_module_of_a_module(make: Any) -> None:
    class Both(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.guide = make(schools)

        def forward(self) -> Any:
            return self.guide()

    both = Both()
    both()
    assert {name.split(".")[0] for name, _ in both.named_parameters()} == {"guide"}
    train(schools, both)


@our_guides
def test_plates_that_are_given_are_used(make: Any) -> None:
    plates = []

    def create_plates() -> Any:
        plates.append(pyro.plate("schools", 8, dim=-1))
        return plates[-1]

    guide = make(schools, create_plates=create_plates)
    assert guide()["theta"].shape == (8,)
    assert guide.plates["schools"] is plates[-1]


@every_guide
def test_a_subsample_of_the_data_is_replayed_from_the_guide(make: Any) -> None:
    data = torch.arange(20.0)
    seen = []

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample_size=5) as index:
            seen.append(index)
            pyro.sample("y", dist.Normal(x, 1.0), obs=data[index])

    guide = make(model)
    train(model, guide, steps=3)
    with pyro.plate("data", 20, subsample_size=5) as index:
        chosen = index

    def both() -> None:
        with poutine.condition(data={"data": chosen}):
            guide()

    trace = poutine.trace(both).get_trace()
    again = poutine.trace(poutine.replay(model, trace=trace)).get_trace()
    assert torch.equal(again.nodes["x"]["value"], trace.nodes["x"]["value"])
    assert len({tuple(index.tolist()) for index in seen}) > 1


@every_guide
def test_masks_and_scales_weigh_the_elbo(make: Any) -> None:
    def model(mask: Any = True) -> None:
        with pyro.plate("schools", 3), poutine.mask(mask=mask):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(x, 1.0), obs=torch.arange(3.0))

    guide = make(model)
    guide()

    def loss(model: Any, guide: Any) -> float:
        pyro.set_rng_seed(0)
        return Trace_ELBO().loss(model, guide)

    plain = loss(model, guide)
    scale = poutine.scale(scale=3.0)
    assert loss(scale(model), scale(guide)) == pytest.approx(3 * plain, rel=1e-5)
    nothing = poutine.mask(mask=False)
    assert loss(nothing(model), nothing(guide)) == 0
    # Of the latents that are masked in the model the guide's entropy is left.
    pyro.set_rng_seed(0)
    trace = poutine.trace(guide).get_trace()
    masked = poutine.trace(poutine.replay(model, trace=trace)).get_trace(torch.arange(3) < 1)
    expected = float((trace.log_prob_sum() - masked.log_prob_sum()).detach())
    assert loss(lambda: model(torch.arange(3) < 1), guide) == pytest.approx(expected, rel=1e-5)


@our_guides
def test_a_guide_list_joins_flows_normals_and_functions(make: Any) -> None:
    def by_hand() -> None:
        loc = pyro.param("loc", torch.tensor(1.0))
        pyro.sample("tau", dist.LogNormal(loc, 0.1))

    guide = AutoGuideList(schools)
    guide.append(make(poutine.block(schools, hide=["theta", "tau"])))
    guide.append(AutoNormal(poutine.block(schools, expose=["theta"])))
    guide.append(by_hand)
    elbo = Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=1)
    train(schools, guide, elbo=elbo)
    assert set(guide.median()) == {"mu", "theta"}  # a function has none
    assert {name: v.shape for name, v in guide().items()} == {"mu": (), "theta": (8,)}


@our_guides
def test_flows_on_global_and_normals_on_local_latents_are_trained_on_subsamples(make: Any) -> None:
    data = torch.randn(40, generator=torch.Generator().manual_seed(0)) + 3

    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 40, subsample_size=10) as index:
            local = pyro.sample("local", dist.Normal(mean, 0.5))
            pyro.sample("y", dist.Normal(local, 0.5), obs=data[index])

    guide = AutoGuideList(model)
    guide.append(make(poutine.block(model, hide=["local"])))
    guide.append(AutoNormal(poutine.block(model, expose=["local"])))
    elbo = Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=1)
    train(model, guide, steps=150, elbo=elbo, lr=0.1)
    assert float(guide.median()["mean"]) == pytest.approx(float(data.mean()), abs=0.3)
    assert guide.median()["local"].shape == (40,)


@our_guides
def test_the_latent_vector_is_the_base_carried_by_the_transform(make: Any) -> None:
    guide = make(schools)
    train(schools, guide)
    base, transform, posterior = guide.get_base_dist(), guide.get_transform(), guide.get_posterior()
    assert base.event_shape == (10,) and guide.sample_latent().shape == (10,)
    eps = base.sample([50])
    z = transform(eps)
    expected = base.log_prob(eps) - transform.log_abs_det_jacobian(eps, z)
    torch.testing.assert_close(posterior.log_prob(z.detach()), expected, rtol=1e-3, atol=1e-3)


@our_guides
def test_latents_that_are_blocked_are_left_to_the_model(make: Any) -> None:
    guide = make(poutine.block(schools, hide=["theta"]))
    assert set(guide()) == {"mu", "tau"} and guide.latent_dim == 2


@our_guides
def test_float64_and_moves_of_the_module_reach_every_draw(make: Any) -> None:
    guide = make(correlated)
    guide()
    guide.double()
    assert {p.dtype for p in guide.parameters()} == {torch.double}
    with poutine.block(), pyro.settings.context(module_local_params=True):
        z = guide.get_posterior().sample()
    assert z.dtype == torch.double


@pytest.mark.skipif(
    os.environ.get("PYRO_NAF_DEVICE", "cpu") != "cpu",
    reason="autograd that has run on a GPU does not allow a fork",
)
@our_guides
def test_neutra_runs_several_chains_at_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pyro would draw one after the other on two cores.
    monkeypatch.setattr("pyro.infer.mcmc.api.mp.cpu_count", lambda: 3)
    guide = make(correlated)
    train(correlated, guide, steps=50, elbo=Trace_ELBO(8, vectorize_particles=True))
    neutra = NeuTraReparam(guide.requires_grad_(False))
    model = neutra.reparam(correlated)
    mcmc = MCMC(
        NUTS(model, max_tree_depth=3),
        num_samples=10,
        warmup_steps=5,
        num_chains=2,
        mp_context="fork",
        disable_progbar=True,
    )
    mcmc.run()
    latent = mcmc.get_samples(group_by_chain=True)["z_shared_latent"]
    assert latent.shape == (2, 10, 3) and not torch.equal(latent[0], latent[1])
    z = neutra.transform_sample(latent)["z"]
    assert z.shape == (2, 10, 3)


@our_guides
def test_neutra_keeps_the_density_of_a_model_with_plates_and_supports(make: Any) -> None:
    guide = make(schools)
    train(schools, guide)
    neutra = NeuTraReparam(guide.requires_grad_(False))
    trace = poutine.trace(neutra.reparam(schools)).get_trace()
    latent = trace.nodes["mu_shared_latent"]["value"]
    u = guide.get_transform()(latent)
    point = {name: trace.nodes[name]["value"] for name in ("mu", "tau", "theta")}
    plain = poutine.trace(poutine.condition(schools, point)).get_trace()
    jacobian = torch.autograd.functional.jacobian(guide.get_transform(), latent)
    expected = plain.log_prob_sum() + u[1] + torch.linalg.slogdet(jacobian)[1]  # tau = exp(u)
    assert float(trace.log_prob_sum()) == pytest.approx(float(expected), abs=2e-3)


@every_guide
def test_constraints_that_depend_on_other_latents_are_those_of_the_prototype(make: Any) -> None:
    def model() -> None:
        top = pyro.sample("top", dist.Uniform(1.0, 1.5))
        pyro.sample("x", dist.Uniform(0.0, top, validate_args=False))

    guide = make(model)
    guide()
    assert isinstance(guide.prototype_trace.nodes["x"]["fn"].support, constraints.interval)
