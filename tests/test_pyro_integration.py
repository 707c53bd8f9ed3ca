"""Flows inside everything Pyro builds of transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.conditional import (
    ConditionalComposeTransformModule,
    ConditionalTransformedDistribution,
)
from pyro.distributions.transforms import ComposeTransformModule, Permute, iterated
from pyro.infer import (
    SVI,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.nn import AutoRegressiveNN, PyroModule
from pyro.optim import Adam, ClippedAdam
from registry import CONTEXT_DIM, FLOWS, fresh, make_flow, roughen
from torch import Tensor

from pyro_naf.transforms import (
    DeepSigmoidalFlow,
    affine_autoregressive_flow,
    conditional_deep_sigmoidal_flow,
    deep_dense_sigmoidal_flow,
    deep_sigmoidal_flow,
)

MAIN = ["affine", "dsf", "ddsf-2"]


def normal(*shape: int) -> dist.Distribution:
    return dist.Normal(torch.zeros(shape), 1.0).to_event(1)


# ----------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize("batch", [(), (4,), (2, 4)])
@pytest.mark.parametrize("name", [*MAIN, "dsf-pyro"])
def test_transformed_distribution_has_shapes_samples_and_densities(
    name: str, batch: tuple[int, ...]
) -> None:
    for transform in (make_flow(name, 3), make_flow(name, 3).inv):
        density = dist.TransformedDistribution(normal(*batch, 3), [transform])
        assert density.batch_shape == batch and density.event_shape == (3,)
        assert density.sample().shape == (*batch, 3)
        z = density.rsample((7,))
        assert z.shape == (7, *batch, 3) and z.requires_grad
        log_prob = density.log_prob(z.detach())
        assert log_prob.shape == (7, *batch) and torch.isfinite(log_prob).all()


def test_univariate_base_is_read_as_one_event() -> None:
    density = dist.TransformedDistribution(dist.Normal(torch.zeros(3), 1.0), [make_flow("dsf", 3)])
    assert density.event_shape == (3,) and density.batch_shape == ()


def test_density_broadcasts_and_expands() -> None:
    density = dist.TransformedDistribution(normal(3), [make_flow("dsf", 3).inv])
    x = torch.randn(5, 3)
    torch.testing.assert_close(density.expand([2, 5]).log_prob(x), density.log_prob(x).expand(2, 5))


def test_composition_with_permutations_and_other_transforms() -> None:
    flows = [make_flow("dsf", 3).double(), make_flow("affine", 3).double()]
    permute = Permute(torch.tensor([2, 0, 1]))
    scale = dist.transforms.AffineTransform(1.0, 2.0)
    composed = ComposeTransformModule([flows[0], permute, flows[1], scale])
    assert len(list(composed.parameters())) == sum(len(list(f.parameters())) for f in flows)
    x = torch.randn(5, 3).double()
    y = composed(x)
    by_hand = 1 + 2 * fresh(flows[1])(fresh(flows[0])(x)[:, [2, 0, 1]])
    torch.testing.assert_close(y, by_hand)
    torch.testing.assert_close(composed.inv(y.detach()), x, rtol=1e-9, atol=1e-9)
    jacobian = torch.func.vmap(torch.func.jacrev(composed))(x)
    exact = torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(composed.log_abs_det_jacobian(x, y), exact, rtol=1e-10, atol=1e-10)


def test_iterated_makes_a_stack_of_fresh_flows() -> None:
    stack = iterated(3, deep_sigmoidal_flow, 3, [8], hidden_units=4)
    assert len(stack.parts) == 3 and isinstance(stack, torch.nn.ModuleList)
    assert len({id(p) for p in stack.parameters()}) == 3 * len(list(stack[0].parameters()))
    density = dist.TransformedDistribution(normal(3), [stack])
    assert density.log_prob(density.sample((4,))).shape == (4,)


def test_constrained_supports_follow_the_flow() -> None:
    positive = dist.transforms.ExpTransform()
    density = dist.TransformedDistribution(normal(3), [make_flow("dsf", 3), positive])
    z = density.rsample((50,))
    assert (z > 0).all()
    assert torch.isfinite(density.log_prob(z)).all()


# ------------------------------------------------------------------------------------- conditional


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("name", [n for n in FLOWS if "conditional" in n])
def test_conditional_distribution_broadcasts_contexts(name: str, inverse: bool) -> None:
    flow = FLOWS[name](3)
    roughen(flow)
    family = ConditionalTransformedDistribution(normal(3), [flow.inv if inverse else flow])
    for context_shape in [(), (4,), (2, 4), (2, 1)]:
        density = family.condition(torch.randn(*context_shape, CONTEXT_DIM))
        assert density.batch_shape == context_shape and density.event_shape == (3,)
        x = torch.randn(5, *context_shape, 3)
        assert density.log_prob(x).shape == (5, *context_shape)
        assert density.rsample((6,)).shape == (6, *context_shape, 3)


def test_conditional_density_is_one_density_for_every_context() -> None:
    flow = conditional_deep_sigmoidal_flow(3, CONTEXT_DIM, [8], 4)
    roughen(flow)
    family = ConditionalTransformedDistribution(normal(3), [flow.inv])
    contexts, x = torch.randn(4, CONTEXT_DIM), torch.randn(3)
    batch = family.condition(contexts).log_prob(x)
    for context, log_prob in zip(contexts, batch, strict=True):
        torch.testing.assert_close(family.condition(context).log_prob(x), log_prob)


def test_conditional_stack_mixes_with_unconditional_transforms() -> None:
    stack = ConditionalComposeTransformModule(
        [
            conditional_deep_sigmoidal_flow(3, CONTEXT_DIM, [8], 4),
            Permute(torch.tensor([2, 0, 1])),
            deep_sigmoidal_flow(3, [8], 4),
        ],
        cache_size=1,
    )
    density = ConditionalTransformedDistribution(normal(3), [stack]).condition(
        torch.randn(4, CONTEXT_DIM)
    )
    z = density.rsample((5,))
    density.log_prob(z).sum().backward()
    assert all(p.grad is not None for p in stack.parameters())


def test_condition_shares_parameters_with_what_is_trained() -> None:
    flow = conditional_deep_sigmoidal_flow(2, 1, [8], 4)
    family = ConditionalTransformedDistribution(normal(2), [flow.inv])
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-2)
    context = torch.randn(128, 1)
    x = context + 0.3 * torch.randn(128, 2)
    losses = []
    for _ in range(60):
        loss = -family.condition(context).log_prob(x).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


# ------------------------------------------------------------------------------------------- models

LOC = torch.tensor([1.0, -1.0])


def model(data: Tensor | None = None) -> Tensor:
    """Two correlated latent numbers with a curved posterior."""
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    mean = torch.stack([z[..., 0], z[..., 1] + 0.5 * z[..., 0] ** 2], -1)
    with pyro.plate("data", 4, dim=-1):
        pyro.sample("x", dist.Normal(mean.unsqueeze(-2), 0.5).to_event(1), obs=data)
    return z


class FlowGuide(PyroModule):
    """Written by hand: flows are attributes, pyro finds their parameters."""

    def __init__(self, make: Callable[[], Any], cache_size: int = 0) -> None:
        super().__init__()
        self.flows = ComposeTransformModule([make(), make()])
        self.loc = torch.nn.Parameter(torch.zeros(2))
        self.log_scale = torch.nn.Parameter(torch.full((2,), -0.5))
        self.cache_size = cache_size

    def posterior(self) -> dist.Distribution:
        affine = dist.transforms.AffineTransform(
            self.loc, self.log_scale.exp(), event_dim=1, cache_size=self.cache_size
        )
        return dist.TransformedDistribution(normal(2), [self.flows, affine])

    def forward(self, data: Tensor | None = None) -> Tensor:
        return pyro.sample("z", self.posterior())


MAKERS: dict[str, Callable[[], Any]] = {
    "affine": lambda: affine_autoregressive_flow(2, [8]),
    "dsf": lambda: deep_sigmoidal_flow(2, [8], 4),
    "ddsf-2": lambda: deep_dense_sigmoidal_flow(2, [8], 3),
    "dsf-pyro": lambda: DeepSigmoidalFlow(AutoRegressiveNN(2, [8], param_dims=[12]), 4),
}

ELBOS: dict[str, Callable[[], Any]] = {
    "Trace": Trace_ELBO,
    "Trace, particles": lambda: Trace_ELBO(num_particles=3),
    "Trace, vectorised": lambda: Trace_ELBO(num_particles=5, vectorize_particles=True),
    "TraceMeanField": TraceMeanField_ELBO,
    "TraceMeanField, vectorised": lambda: TraceMeanField_ELBO(
        num_particles=5, vectorize_particles=True
    ),
    "TraceGraph": TraceGraph_ELBO,
    "Renyi": lambda: RenyiELBO(alpha=0.5, num_particles=4),
    "Renyi, vectorised": lambda: RenyiELBO(alpha=0.5, num_particles=4, vectorize_particles=True),
    "JitTrace": lambda: JitTrace_ELBO(ignore_jit_warnings=True),
    "JitTrace, vectorised": lambda: JitTrace_ELBO(
        num_particles=5, vectorize_particles=True, ignore_jit_warnings=True
    ),
}


def data() -> Tensor:
    return LOC + 0.5 * torch.randn(4, 2)


@pytest.mark.parametrize(
    "elbo, cache_size",
    # Behind an affine map without a cache a fresh sample is inverted, which no trace records.
    [(elbo, size) for elbo in ELBOS for size in (0, 1) if size == 1 or "Jit" not in elbo],
)
def test_every_elbo_trains_a_guide_of_flows(elbo: str, cache_size: int) -> None:
    guide = FlowGuide(MAKERS["dsf"], cache_size=cache_size)
    svi = SVI(model, guide, Adam({"lr": 0.01}), ELBOS[elbo]())
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    x = data()
    losses = [svi.step(x) for _ in range(6)]
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    for name, p in guide.named_parameters():
        assert not torch.equal(p, before[name]), f"{name} was not trained"


@pytest.mark.parametrize("name", MAKERS)
def test_training_raises_the_elbo(name: str) -> None:
    guide = FlowGuide(MAKERS[name])
    svi = SVI(
        model,
        guide,
        ClippedAdam({"lr": 0.02}),
        Trace_ELBO(num_particles=16, vectorize_particles=True),
    )
    x = data()
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 10 * 5


def test_no_elbo_step_runs_the_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, y: Tensor) -> Tensor:
        raise AssertionError("the inverse ran in an SVI step")

    monkeypatch.setattr("pyro_naf.transforms.AutoregressiveFlow._inverse", refuse)
    for make_elbo in ELBOS.values():
        pyro.clear_param_store()
        elbo = make_elbo()
        guide = FlowGuide(MAKERS["dsf"], cache_size=1)
        svi = SVI(model, guide, Adam({"lr": 0.01}), elbo)
        for _ in range(2):
            svi.step(data())


def test_jit_without_a_cached_outer_transform_says_what_to_do() -> None:
    guide = FlowGuide(MAKERS["dsf"], cache_size=0)
    svi = SVI(model, guide, Adam({"lr": 0.01}), JitTrace_ELBO(ignore_jit_warnings=True))
    with pytest.raises(RuntimeError, match="cache_size=1"):
        svi.step(data())


def test_jit_follows_the_parameters_after_tracing() -> None:
    guide = FlowGuide(MAKERS["dsf"], cache_size=1)
    elbo = JitTrace_ELBO(ignore_jit_warnings=True)
    x = data()
    elbo.loss(model, guide, x)
    with torch.no_grad():
        guide.loc.add_(30.0)
    pyro.set_rng_seed(1)
    traced = elbo.loss(model, guide, x)
    pyro.set_rng_seed(1)
    assert traced == pytest.approx(Trace_ELBO().loss(model, guide, x), rel=1e-3)


def test_elbo_gradient_is_that_of_the_density_written_out() -> None:
    # Against a guide whose log density is computed by hand in one pass.
    guide = FlowGuide(MAKERS["dsf"])
    x = data()
    parameters = list(guide.parameters())
    pyro.set_rng_seed(3)
    loss = Trace_ELBO().differentiable_loss(model, guide, x)
    got = torch.autograd.grad(loss, parameters)

    pyro.set_rng_seed(3)
    eps = normal(2).sample()
    value, log_q = eps, normal(2).log_prob(eps)
    for flow in guide.flows.parts:
        after = fresh_evaluation(flow, value)
        value, log_q = after[0], log_q - after[1]
    z = guide.loc + guide.log_scale.exp() * value
    log_q = log_q - guide.log_scale.sum()
    trace = pyro.poutine.trace(pyro.poutine.condition(model, data={"z": z})).get_trace(x)
    expected = torch.autograd.grad(log_q - trace.log_prob_sum(), parameters)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def fresh_evaluation(flow: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y, log_slope = flow.transformer(x, flow.arn(x))
    return y, log_slope.sum(-1)


def test_flow_in_a_local_plate_with_a_conditional_guide() -> None:
    # Amortised: each datum has its latent, its guide reads the datum.
    def local_model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    flow = conditional_deep_sigmoidal_flow(2, 2, [8], 4)

    def local_guide(x: Tensor) -> None:
        pyro.module("flow", flow)
        family = ConditionalTransformedDistribution(normal(2), [flow])
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", family.condition(x))

    x = torch.randn(6, 2)
    for particles in (1, 3):
        elbo = Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1)
        svi = SVI(local_model, local_guide, Adam({"lr": 0.01}), elbo)
        for _ in range(3):
            assert torch.isfinite(torch.tensor(svi.step(x)))
    assert any(name.startswith("flow$$$arn") for name in pyro.get_param_store())


def test_density_model_is_trained_in_subsampled_plates() -> None:
    flow = deep_sigmoidal_flow(2, [8], 4)
    x = torch.randn(40, 2) * 0.3 + LOC

    def density_model() -> None:
        pyro.module("flow", flow)
        density = dist.TransformedDistribution(normal(2), [flow.inv])
        with pyro.plate("data", len(x), subsample_size=10) as index:
            pyro.sample("x", density, obs=x[index])

    svi = SVI(density_model, lambda: None, Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step() for _ in range(60)]
    assert sum(losses[-10:]) < sum(losses[:10]) - 100


def test_pyro_module_finds_flow_parameters_and_saves_them() -> None:
    guide = FlowGuide(MAKERS["dsf"])
    names = {name for name, _ in guide.named_parameters()}
    assert any(name.startswith("flows.0.arn") for name in names)
    guide()
    assert len(list(pyro.get_param_store())) == len(names)
    other = FlowGuide(MAKERS["dsf"])
    other.load_state_dict(guide.state_dict())
    eps = torch.randn(4, 2)
    torch.testing.assert_close(other.flows(eps), guide.flows(eps))


def test_flow_as_a_direct_attribute_of_a_pyro_module() -> None:
    class Guide(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.flow = deep_sigmoidal_flow(2, [8], 4)

        def forward(self, data: Tensor | None = None) -> Tensor:
            return pyro.sample("z", dist.TransformedDistribution(normal(2), [self.flow]))

    guide = Guide()
    svi = SVI(model, guide, Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(data())
    stored = sorted(name.replace("$$$", ".") for name in pyro.get_param_store())
    assert stored == sorted(name for name, _ in guide.named_parameters())


def test_param_store_saves_and_loads_a_flow(tmp_path: Any) -> None:
    flow = deep_sigmoidal_flow(2, [8], 4, order="natural")
    roughen(flow)
    pyro.module("flow", flow)
    pyro.get_param_store().save(tmp_path / "store.pt")
    pyro.clear_param_store()
    other = deep_sigmoidal_flow(2, [8], 4, order="natural")
    pyro.get_param_store().load(tmp_path / "store.pt")
    pyro.module("flow", other, update_module_params=True)
    x = torch.randn(4, 2)
    torch.testing.assert_close(other(x), flow(x))
    assert all(p.requires_grad for p in other.parameters())


def test_predictive_draws_in_sequence_and_in_parallel() -> None:
    guide = FlowGuide(MAKERS["dsf"])
    for parallel in (False, True):
        predictive = Predictive(model, guide=guide, num_samples=7, parallel=parallel)
        draws = predictive()
        assert draws["x"].shape == (7, 4, 2)
        # Pyro keeps a singleton for the plate to the left of z.
        assert draws["z"].reshape(7, 2).isfinite().all()


def test_prior_with_a_flow_in_the_model() -> None:
    # The model itself may hold a learnt density: its log_prob inverts, or not.
    for inverse in (False, True):
        pyro.clear_param_store()
        flow = make_flow("dsf", 2)
        prior = dist.TransformedDistribution(normal(2), [flow.inv if inverse else flow])

        def flow_model(prior: Any = prior, flow: Any = flow) -> None:
            pyro.module("flow", flow)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=LOC)

        def flow_guide() -> None:
            loc = pyro.param("loc", torch.zeros(2))
            pyro.sample("z", dist.Normal(loc, 0.1).to_event(1))

        svi = SVI(flow_model, flow_guide, Adam({"lr": 0.01}), Trace_ELBO())
        before = [p.detach().clone() for p in flow.parameters()]
        for _ in range(3):
            assert torch.isfinite(torch.tensor(svi.step()))
        assert any(not torch.equal(a, b) for a, b in zip(before, flow.parameters(), strict=True))


def test_mixture_of_flows() -> None:
    flows = [make_flow("dsf", 2) for _ in range(2)]
    densities = [dist.TransformedDistribution(normal(2), [f.inv]) for f in flows]
    x = torch.randn(5, 2)
    weights = torch.tensor([0.3, 0.7]).log()
    mixture = torch.logsumexp(torch.stack([d.log_prob(x) for d in densities], -1) + weights, -1)
    assert mixture.shape == (5,) and torch.isfinite(mixture).all()
