"""Claims about the path gradients of the ELBO and of the importance-weighted bound."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import MATCHED, PAIRS, WITH_FLOWS
from pyro import poutine
from pyro.infer import SVI, RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.infer.importance import vectorized_importance_weights
from pyro.infer.util import torch_item
from pyro.optim import Adam
from torch import Tensor

from pyro_naf.infer import TraceDReG_ELBO, TraceSTL_ELBO
from pyro_naf.transforms import AutoregressiveFlow

Gradients = dict[str, Tensor]

every_pair = pytest.mark.parametrize("pair", PAIRS)
both = pytest.mark.parametrize("elbo", [TraceSTL_ELBO, TraceDReG_ELBO])


@pytest.fixture(autouse=True)
def double() -> None:
    torch.set_default_dtype(torch.double)  # until the end of the test, see conftest.py


@pytest.fixture
def no_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: AutoregressiveFlow, y: Tensor) -> Tensor:
        raise AssertionError("the numerical inverse was run")

    monkeypatch.setattr(AutoregressiveFlow, "_inverse", refuse)


def built(pair: str) -> tuple[Any, Any]:
    torch.manual_seed(3)
    model, guide = PAIRS[pair]()
    with poutine.block():
        poutine.trace(guide).get_trace()
        poutine.trace(model).get_trace()
    return model, guide


def collected() -> Gradients:
    """Gradients of all parameters, which are reset."""
    result = {}
    for name, weight in pyro.get_param_store().named_parameters():
        grad, weight.grad = weight.grad, None
        result[name] = torch.zeros_like(weight) if grad is None else grad
    return result


def gradients(elbo: Any, model: Any, guide: Any, seed: int = 0) -> Gradients:
    torch.manual_seed(seed)
    elbo.loss_and_grads(model, guide)
    return collected()


def assert_equal(found: Gradients, expected: Gradients, tol: float = 1e-7) -> None:
    assert found.keys() == expected.keys() and found
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=tol, atol=tol, msg=lambda m: name + m)  # noqa: B023


def score_by_replay(guide: Any) -> Tensor:
    """Log q of fresh draws at their values: its gradient is the score; flows are inverted."""
    trace = poutine.trace(guide).get_trace()
    trace.detach_()
    again = poutine.trace(poutine.replay(guide, trace=trace)).get_trace()
    return again.log_prob_sum(lambda name, site: not isinstance(site["fn"], dist.Delta))


@every_pair
@pytest.mark.parametrize("vectorize", [False, True])
def test_stl_is_the_gradient_of_trace_elbo_without_the_score(pair: str, vectorize: bool) -> None:
    model, guide = built(pair)
    size = 2 if vectorize else 1
    options = {"num_particles": size, "vectorize_particles": vectorize, "max_plate_nesting": 1}
    plain = gradients(Trace_ELBO(**options), model, guide)
    path = gradients(TraceSTL_ELBO(**options), model, guide)
    torch.manual_seed(0)
    vectorized = Trace_ELBO(**options)._vectorized_num_particles(guide)
    (score_by_replay(vectorized) / size).backward()
    score = collected()
    assert_equal({name: plain[name] - path[name] for name in plain}, score)


@every_pair
def test_values_are_those_of_pyros_bounds(pair: str) -> None:
    model, guide = built(pair)
    for vectorize in (False, True):
        options = {"num_particles": 3, "vectorize_particles": vectorize, "max_plate_nesting": 1}
        for ours, pyros in ((TraceSTL_ELBO, Trace_ELBO), (TraceDReG_ELBO, RenyiELBO)):
            values = []
            for elbo in (pyros(**options), ours(**options)):
                for method in ("loss", "loss_and_grads", "differentiable_loss"):
                    if not hasattr(elbo, method):
                        continue
                    torch.manual_seed(0)
                    values.append(torch_item(getattr(elbo, method)(model, guide)))
            assert values == pytest.approx([values[0]] * len(values), rel=1e-12)


@pytest.mark.parametrize("pair", WITH_FLOWS)
@both
@pytest.mark.parametrize("vectorize", [False, True])
def test_no_flow_is_inverted_in_training(
    pair: str, elbo: Any, vectorize: bool, no_inverse: None
) -> None:
    model, guide = built(pair)
    svi = SVI(model, guide, Adam({"lr": 1e-3}), elbo(2, vectorize_particles=vectorize))
    for _ in range(3):
        svi.step()


@pytest.mark.parametrize("pair", MATCHED)
def test_gradient_vanishes_draw_by_draw_where_the_guide_is_the_posterior(pair: str) -> None:
    model, guide = MATCHED[pair]()
    guide()
    draws = [gradients(Trace_ELBO(), model, guide, seed).values() for seed in range(20)]
    spread = max(float(torch.stack(g).std(0).max()) for g in zip(*draws, strict=True))
    assert spread > 0.3
    for elbo in (TraceSTL_ELBO(), TraceDReG_ELBO(3), TraceDReG_ELBO(3, vectorize_particles=True)):
        for seed in range(5):
            largest = max(g.abs().max() for g in gradients(elbo, model, guide, seed).values())
            assert largest < 1e-6


# Not "subsampled" and "point-estimate": scales, and parameters off the path, are for quadrature.
@pytest.mark.parametrize("pair", ["AutoNormal", "hierarchical", *WITH_FLOWS])
def test_dreg_weighs_the_path_gradients_of_its_draws(pair: str) -> None:
    model, guide = built(pair)
    size = 4
    found = gradients(TraceDReG_ELBO(size), model, guide)
    torch.manual_seed(0)
    log_weights, paths = [], []
    for _ in range(size):
        log_weights.append(-TraceSTL_ELBO().loss_and_grads(model, guide))
        paths.append(collected())
    weights = torch.tensor(log_weights).softmax(0)
    expected = {}
    for name in found:
        power = 1 if name == "width" else 2  # the model's parameter
        expected[name] = sum(w**power * path[name] for w, path in zip(weights, paths, strict=True))
    assert_equal(found, expected)


# --- the exact mean of a gradient, by quadrature ------------------------------------------------


def grid(points: int, dims: int) -> tuple[Tensor, Tensor]:
    """Nodes ``(dims, n)`` and weights ``(n,)`` of Gauss-Hermite quadrature for N(0, I)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    weights = weights / weights.sum()
    mesh = np.meshgrid(*[nodes] * dims, indexing="ij")
    product = np.prod(np.meshgrid(*[weights] * dims, indexing="ij"), axis=0)
    return torch.tensor(np.stack(mesh).reshape(dims, -1)), torch.tensor(product.reshape(-1))


def program(case: str, n: int) -> tuple[Any, Any]:
    """A chain a -> b -> data in a plate of ``n`` copies, each with parameters of its own."""

    def param(name: str, value: float) -> Tensor:
        return pyro.param(name, torch.full((n,), value))

    both_scale = 1.7 if case == "scale" else 1.0
    of_b: Any = {"scale of one site": poutine.scale(scale=0.7)}
    of_b["mask of one site"] = poutine.mask(mask=torch.zeros(n, dtype=torch.bool))

    @poutine.scale(scale=both_scale)
    def model() -> None:
        prior = param("prior", 0.2)
        with pyro.plate("copies", n):
            a = pyro.sample("a", dist.Normal(prior, 1.0))
            b = pyro.sample("b", dist.Normal(0.5 * a, 1.0))
            pyro.sample("data", dist.Normal(a + b, 2.0), obs=torch.full((n,), 0.7))

    @poutine.scale(scale=both_scale)
    def guide() -> None:
        loc, slope, width = param("loc", 0.4), param("slope", 0.3), param("width", 0.9)
        with pyro.plate("copies", n):
            a = pyro.sample("a", dist.Normal(loc, width))
            if case == "mapped":
                b = slope * a + loc
                pyro.sample("b", dist.Delta(b, log_density=-slope.log()))
                return
            fn = dist.Normal(slope * a, width + 0.1 * slope)
            with of_b.get(case, poutine.scale(scale=1.0)):
                pyro.sample("b", fn.mask(False) if case == "masked" else fn)

    return model, guide


@pytest.mark.parametrize(
    "case", ["chain", "scale", "scale of one site", "mask of one site", "masked", "mapped"]
)
def test_mean_of_dreg_is_exactly_that_of_the_iwae_gradient(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites, size = 1 if case == "mapped" else 2, 2
    nodes, weights = grid(14, sites * size)
    model, guide = program(case, len(weights))
    options = {"num_particles": size, "vectorize_particles": True, "max_plate_nesting": 1}
    means = []
    for elbo in (RenyiELBO(**options), TraceDReG_ELBO(**options)):
        draws = iter(nodes.view(sites, size, -1))
        monkeypatch.setattr(
            "torch.distributions.normal._standard_normal",
            lambda *args, draws=draws, **kwargs: next(draws),
        )
        found = gradients(elbo, model, guide)
        means.append({name: (grad * weights).sum() for name, grad in found.items()})
    assert_equal(means[1], means[0], tol=1e-6)


def signal_to_noise(elbo: Any, copies: int) -> float:
    """Of the guide's location, over independent copies of one conjugate problem."""
    pyro.clear_param_store()

    def model() -> None:
        with pyro.plate("copies", copies):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("data", dist.Normal(z, 1.0), obs=torch.full((copies,), 1.0))

    def guide() -> None:
        loc = pyro.param("loc", torch.full((copies,), 0.2))
        with pyro.plate("copies", copies):
            pyro.sample("z", dist.Normal(loc, 0.8))

    loc = gradients(elbo, model, guide)["loc"]
    return float(loc.mean().abs() / loc.std())


def test_signal_to_noise_rises_with_the_draws_where_that_of_iwae_falls() -> None:
    sizes, options = (4, 64), {"vectorize_particles": True, "max_plate_nesting": 1}
    iwae = [signal_to_noise(RenyiELBO(num_particles=k, **options), 20_000) for k in sizes]
    dreg = [signal_to_noise(TraceDReG_ELBO(k, **options), 20_000) for k in sizes]
    # Sixteen times the draws: a quarter, and four times, of the ratio in theory.
    assert iwae[1] < 0.4 * iwae[0]
    assert dreg[1] > 2.5 * dreg[0]


# --- the rest of the interface ------------------------------------------------------------------


@both
def test_a_site_that_is_not_reparameterised_is_named(elbo: Any) -> None:
    def model() -> None:
        pyro.sample("k", dist.Poisson(2.0))

    def guide() -> None:
        rate = pyro.param("rate", torch.tensor(2.0), constraint=dist.constraints.positive)
        pyro.sample("k", dist.Poisson(rate))

    with pytest.raises(ValueError, match=r"'k'.* Poisson.* not reparameterised.* use Trace_ELBO"):
        elbo().loss_and_grads(model, guide)


@both
@pytest.mark.parametrize("vectorize", [False, True])
def test_graph_is_retained_on_request(elbo: Any, vectorize: bool) -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    shared = weight.exp()  # outside of what each step builds

    def model() -> None:
        pyro.sample("z", dist.Normal(0.0, pyro.param("width", torch.tensor(2.0))))

    def guide() -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.1)), shared))

    options = {"num_particles": 2, "vectorize_particles": vectorize, "max_plate_nesting": 0}
    keeping = elbo(retain_graph=True, **options)
    first, second = (gradients(keeping, model, guide)["loc"] for _ in range(2))
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        _ = [gradients(elbo(**options), model, guide) for _ in range(2)]


@both
def test_differentiable_loss_trains_without_a_param_store(elbo: Any) -> None:
    with pyro.settings.context(module_local_params=True):
        model, guide = MATCHED["full_rank"]()
        loss = elbo(2)(model, guide)()
        loss.backward()
    assert loss.shape == () and guide.loc.grad is not None
    assert len(pyro.get_param_store()) == 0


def test_a_guide_that_joins_the_elements_of_a_plate_has_one_bound_for_all() -> None:
    def model() -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=torch.arange(3.0))

    guide = AutoMultivariateNormal(model)
    guide()
    torch.manual_seed(0)
    log_weights, *_ = vectorized_importance_weights(
        model, guide, num_samples=5, max_plate_nesting=1
    )
    torch.manual_seed(0)
    elbo = TraceDReG_ELBO(5, vectorize_particles=True, max_plate_nesting=1)
    bound = log_weights.logsumexp(0).item() - math.log(5)
    assert -elbo.loss(model, guide) == pytest.approx(bound)
