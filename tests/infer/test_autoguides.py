"""Claims about the guides that the package adds to Pyro's."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import banana, conjugate, correlated, double_gamma, schools
from pyro import poutine
from pyro.distributions.torch_transform import ComposeTransformModule
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoGuideList, AutoNormal, init_to_value
from pyro.infer.reparam import NeuTraReparam
from pyro.optim import Adam

from pyro_naf import affine_autoregressive_flow, deep_sigmoidal_flow
from pyro_naf.infer import (
    AutoDDSFNormal,
    AutoDSFNormal,
    AutoFlowNormal,
    CompiledSVI,
    importance_diagnostics,
)
from pyro_naf.transforms import AutoregressiveFlow


def small_dsf(model: Callable[..., Any], **kw: Any) -> AutoFlowNormal:
    return AutoDSFNormal(model, hidden_dims=[8], hidden_units=4, **kw)


def small_ddsf(model: Callable[..., Any], **kw: Any) -> AutoFlowNormal:
    return AutoDDSFNormal(model, hidden_dims=[8], hidden_units=4, **kw)


def affine(model: Callable[..., Any], **kw: Any) -> AutoFlowNormal:
    return AutoFlowNormal(model, affine_autoregressive_flow, **kw)


def inverse_dsf(model: Callable[..., Any], **kw: Any) -> AutoFlowNormal:
    return small_dsf(model, inverse=True, **kw)


GUIDES = [small_dsf, small_ddsf, affine, inverse_dsf]
every_guide = pytest.mark.parametrize("make", GUIDES)


def svi_steps(model: Any, guide: Any, steps: int = 3, elbo: Any = None, lr: float = 1e-2) -> float:
    svi = SVI(model, guide, Adam({"lr": lr}), elbo or Trace_ELBO())
    return [svi.step() for _ in range(steps)][-1]


@pytest.fixture
def no_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: AutoregressiveFlow, y: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the numerical inverse was run")

    monkeypatch.setattr(AutoregressiveFlow, "_inverse", refuse)


@every_guide
@pytest.mark.parametrize("full_rank", [False, True])
def test_guide_starts_near_the_gaussian_with_its_loc_and_scale(make: Any, full_rank: bool) -> None:
    values = {"mu": torch.tensor(1.0), "tau": torch.tensor(2.0), "theta": torch.arange(8.0)}
    guide = make(
        schools, full_rank=full_rank, init_loc_fn=init_to_value(values=values), init_scale=0.25
    )
    guide()
    loc = torch.cat([torch.tensor([1.0, 2.0]).log() * torch.tensor([0.0, 1.0]), torch.arange(8.0)])
    loc[0] = 1.0
    assert torch.allclose(guide.loc, loc)
    gaussian = dist.Normal(loc, 0.25).to_event(1)
    z = gaussian.sample([200])
    gap = (guide.get_posterior().log_prob(z) - gaussian.log_prob(z)).detach()
    assert gap.abs().mean() < 0.5 and (gap.exp().mean() - 1).abs() < 0.1


@every_guide
@pytest.mark.parametrize("full_rank", [False, True])
def test_all_parameters_exist_after_setup_and_all_of_them_are_trained(
    make: Any, full_rank: bool
) -> None:
    guide = make(schools, full_rank=full_rank)
    guide._setup_prototype()
    start = {name: p.detach().clone() for name, p in guide.named_parameters()}
    svi_steps(schools, guide)
    end = dict(guide.named_parameters())
    assert start.keys() == end.keys()
    assert trained(start, guide) == set(start)


def trained(start: dict[str, torch.Tensor], guide: Any) -> set[str]:
    """Names of the weights that moved; the blocks that masks fix at zero cannot."""
    return {n for n, p in guide.named_parameters() if not torch.equal(start[n], p)}


@every_guide
def test_a_guide_created_again_with_a_full_param_store_trains_every_weight(make: Any) -> None:
    first = make(schools)
    svi_steps(schools, first)
    second = make(schools)
    second()
    # As with Pyro's own guides the store's values win.
    for (name, p), q in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q), name
    start = {name: p.detach().clone() for name, p in second.named_parameters()}
    svi_steps(schools, second)
    assert trained(start, second) == set(start)


def test_a_loaded_param_store_is_taken_over_and_stays_trainable(tmp_path: Any) -> None:
    first = small_dsf(schools)
    svi_steps(schools, first)
    pyro.get_param_store().save(str(tmp_path / "store.pt"))
    pyro.clear_param_store()
    pyro.get_param_store().load(str(tmp_path / "store.pt"))
    second = small_dsf(schools)
    second()
    start = {name: p.detach().clone() for name, p in second.named_parameters()}
    for name, p in first.named_parameters():
        assert torch.equal(p, start[name]), name
    svi_steps(schools, second)
    assert trained(start, second) == set(start)


@every_guide
@pytest.mark.parametrize("kind", [SVI, CompiledSVI])
@pytest.mark.filterwarnings("ignore:CompiledSVI runs as SVI does")  # a numerical inverse
def test_training_goes_on_from_a_param_store_loaded_under_the_guide(
    make: Any, kind: Any, tmp_path: Any
) -> None:
    """To the digit: parameters, the optimiser's state and the random numbers are those saved."""
    optimiser = Adam({"lr": 0.02})
    options = {"compile": False} if kind is CompiledSVI else {}
    svi = kind(schools, make(schools), optimiser, Trace_ELBO(), **options)
    for _ in range(6):
        svi.step()
    optimiser.save(str(tmp_path / "optimiser.pt"))
    pyro.get_param_store().save(str(tmp_path / "store.pt"))
    generator = torch.get_rng_state()
    expected = [svi.step() for _ in range(4)]
    optimiser.load(str(tmp_path / "optimiser.pt"))
    pyro.clear_param_store()
    pyro.get_param_store().load(str(tmp_path / "store.pt"))
    torch.set_rng_state(generator)
    assert [svi.step() for _ in range(4)] == pytest.approx(expected, rel=1e-5)


@every_guide
@pytest.mark.parametrize("strict", [True, False])
def test_a_state_for_a_guide_that_was_never_run_comes_with_its_remedy(
    make: Any, strict: bool
) -> None:
    first = make(schools)
    first()
    state = {name: value.clone() for name, value in first.state_dict().items()}
    pyro.clear_param_store()
    second = make(schools)
    with pytest.raises(RuntimeError, match="call it once with the model's arguments first, then"):
        second.load_state_dict(state, strict)
    with pytest.raises(RuntimeError, match=r"call it once .* first, then"):
        torch.nn.ModuleDict({"guide": second}).load_state_dict(
            {f"guide.{name}": value for name, value in state.items()}, strict
        )
    second()
    second.load_state_dict(state)
    torch.manual_seed(0)
    expected = first.get_posterior().rsample((5,))
    torch.manual_seed(0)
    assert torch.equal(second.get_posterior().rsample((5,)), expected)
    make(schools).load_state_dict({})  # of another guide that was never run


def test_a_param_store_of_another_shape_is_refused_by_name() -> None:
    small_dsf(schools)()
    with pytest.raises(ValueError, match=r"param store holds 'AutoDSFNormal\.flow.*shape"):
        AutoDSFNormal(schools, hidden_dims=[9], hidden_units=4)()


@every_guide
def test_a_model_in_float64_gives_float64_draws(make: Any) -> None:
    guide = make(double_gamma)
    assert {v.dtype for v in guide().values()} == {torch.double}
    assert {p.dtype for p in guide.parameters()} == {torch.double}
    svi_steps(double_gamma, guide)
    assert {v.dtype for v in guide.median().values()} == {torch.double}


@every_guide
def test_weights_draws_and_quantiles_live_where_the_models_latents_do(
    make: Any, device: torch.device
) -> None:
    def model() -> None:
        rate = torch.ones(3, device=device)
        pyro.sample("g", dist.Gamma(2 * rate, rate).to_event(1))

    guide = make(model)
    svi_steps(model, guide)
    found = [*guide.parameters(), guide()["g"], guide.quantiles([0.1])["g"]]
    assert {tensor.device.type for tensor in found} == {device.type}


@every_guide
def test_quantiles_are_those_of_many_draws(make: Any) -> None:
    torch.manual_seed(1)
    guide = make(banana)
    svi_steps(banana, guide, steps=50, elbo=Trace_ELBO(8, vectorize_particles=True), lr=4e-2)
    levels = [0.025, 0.25, 0.5, 0.75, 0.975]
    with torch.no_grad():
        z = guide.get_posterior().sample([200_000])
    exact = torch.quantile(z, torch.tensor(levels), dim=0)
    quantiles = guide.quantiles(levels)
    found = torch.stack([quantiles["x"], quantiles["y"]], -1)
    assert torch.allclose(found, exact, atol=0.03 * float(z.std(0).max()))
    median = guide.median()
    assert torch.equal(median["x"], quantiles["x"][2])


def test_quantiles_far_in_the_tails_have_the_stated_error() -> None:
    # Behind flows that are the identity the marginals are known; two dimensions are not exact.
    guide = small_dsf(banana, num_transforms=2, init_scale=0.5)
    guide()
    with torch.no_grad():
        guide.loc.copy_(torch.tensor([1.0, -2.0]))
        for weight in guide._modules["flow"].parameters():
            weight.zero_()
        start = guide.get_transform()(torch.zeros(1, 2))
        slope = guide.get_transform()(torch.ones(1, 2)) - start
    assert torch.allclose(slope, slope[0, 0].expand(1, 2))  # one and the same map for both
    levels = torch.tensor([1e-4, 1e-3, 0.025, 0.5, 0.999, 0.9999], dtype=torch.double)
    quantiles = guide.quantiles(levels)
    with torch.no_grad():
        normal = torch.special.ndtri(levels).float()[:, None].expand(-1, 2)
        exact = guide.get_transform()(normal.contiguous())
    for i, name in enumerate("xy"):
        far = (quantiles[name] - exact[:, i]).abs()
        # The density turns the error of a level into that of the quantile.
        density = dist.Normal(0.0, 1.0).log_prob(normal[:, i]).exp() / slope[0, i]
        points = (100 / torch.minimum(levels, 1 - levels)).clamp(2**14, 2**20)
        assert bool((far <= 4 * (levels * (1 - levels) / points).sqrt() / density).all())


def test_quantiles_are_exact_where_a_latent_moves_with_one_entry_alone() -> None:
    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(0.0, 1.0))

    guide = small_dsf(model, num_transforms=1, full_rank=True)
    svi_steps(model, guide, 20, lr=5e-2)
    levels = torch.tensor([1e-9, 0.3, 1 - 1e-9], dtype=torch.double)
    found = guide.quantiles(levels)["x"][:, 0]
    eps = torch.zeros(3, 4)
    eps[:, 0] = torch.special.ndtri(levels)
    with torch.no_grad():
        torch.testing.assert_close(found, guide.get_transform()(eps)[:, 0])


def test_quantiles_of_a_falling_constraint_rise() -> None:
    class Below(dist.Normal):
        support = dist.constraints.less_than(0.0)

    guide = small_dsf(lambda: pyro.sample("x", Below(-1.0, 1.0, validate_args=False)))
    guide()
    x = guide.quantiles([0.1, 0.5, 0.9])["x"]
    assert x[0] < x[1] < x[2] < 0


@pytest.mark.parametrize("levels", [[0.0, 0.5], [1.5], 0.5])
def test_levels_that_are_none_are_refused(levels: Any) -> None:
    guide = small_dsf(banana)
    guide()
    with pytest.raises(ValueError, match=r"quantiles must be a list of numbers in \(0, 1\), got"):
        guide.quantiles(levels)


def test_quantiles_are_deterministic_lie_in_the_support_and_leave_generators_alone() -> None:
    guide = small_dsf(schools)
    guide()
    state = torch.get_rng_state()
    first, second = (
        guide.quantiles([0.1, 0.9]),
        guide.quantiles(torch.tensor([0.1, 0.9], dtype=torch.double)),
    )
    assert torch.equal(state, torch.get_rng_state())
    assert first["theta"].shape == (2, 8) and first["tau"].shape == (2,)
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert (first["tau"] > 0).all() and (first["theta"][0] < first["theta"][1]).all()


@pytest.mark.parametrize("make", [small_dsf, small_ddsf, affine])
@pytest.mark.parametrize("full_rank", [False, True])
@pytest.mark.parametrize(
    "elbo",
    [
        Trace_ELBO(),
        Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=1),
        TraceMeanField_ELBO(),
        RenyiELBO(0.5, num_particles=4, vectorize_particles=True, max_plate_nesting=1),
    ],
    ids=["Trace", "vectorised", "MeanField", "Renyi"],
)
def test_svi_never_runs_the_inverse(
    make: Any, full_rank: bool, elbo: Any, no_inverse: None
) -> None:
    guide = make(schools, full_rank=full_rank)
    assert torch.isfinite(torch.tensor(svi_steps(schools, guide, elbo=elbo)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_jit_trace_elbo_agrees_with_trace_elbo(no_inverse: None) -> None:
    losses = []
    for elbo in (Trace_ELBO(), JitTrace_ELBO(ignore_jit_warnings=True)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = small_dsf(schools)
        guide()
        pyro.set_rng_seed(1)
        # JIT tracing draws once more than eager mode, so only the distribution can agree.
        svi = SVI(schools, guide, Adam({"lr": 1e-2}), elbo)
        losses.append(torch.tensor([svi.step() for _ in range(150)])[50:].mean())
    assert (losses[0] - losses[1]).abs() < 3


@every_guide
def test_posterior_scores_any_point_and_its_own_samples_alike(make: Any) -> None:
    guide = make(schools)
    svi_steps(schools, guide)
    posterior = guide.get_posterior()
    z = posterior.rsample([50])
    own = posterior.log_prob(z).detach()
    assert torch.allclose(guide.get_posterior().log_prob(z.detach().clone()), own, atol=1e-3)


def test_deepcopy_in_mid_training_goes_on_alone() -> None:
    guide = small_dsf(schools)
    svi_steps(schools, guide)
    twin = copy.deepcopy(guide)
    assert guide.model is not None and twin.model is guide.model
    for (name, p), q in zip(guide.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q) and p is not q, name
    z = torch.randn(5, 10)
    kept = guide.get_transform()(z).detach()
    assert torch.equal(kept, twin.get_transform()(z))
    svi_steps(schools, guide)
    assert torch.equal(kept, twin.get_transform()(z))
    assert not torch.allclose(kept, guide.get_transform()(z))


def test_a_pickled_guide_draws_as_before_and_leaves_the_original_whole() -> None:
    guide = small_dsf(schools)
    svi_steps(schools, guide)
    twin = pickle.loads(pickle.dumps(guide))
    assert guide.model is not None
    z = torch.randn(5, 10)
    assert torch.equal(guide.get_transform()(z), twin.get_transform()(z))


@pytest.mark.parametrize("full_rank", [False, True])
def test_state_dict_goes_into_a_fresh_guide_by_way_of_a_safe_file(full_rank: bool) -> None:
    guide = small_dsf(schools, full_rank=full_rank)
    svi_steps(schools, guide)
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    pyro.clear_param_store()
    fresh = small_dsf(schools, full_rank=full_rank)
    fresh._setup_prototype()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    z = torch.randn(5, 10)
    assert torch.equal(guide.get_transform()(z), fresh.get_transform()(z))


def test_neutra_through_the_guide_samples_the_posterior() -> None:
    guide = small_dsf(correlated, init_scale=1.0)
    svi_steps(correlated, guide, 20, Trace_ELBO(8, vectorize_particles=True), lr=2e-2)
    neutra = NeuTraReparam(guide.requires_grad_(False))
    model = poutine.reparam(correlated, config=lambda _: neutra)
    kernel = NUTS(model, max_tree_depth=3)
    mcmc = MCMC(kernel, num_samples=30, warmup_steps=30, disable_progbar=True)
    mcmc.run()
    ((name, latent),) = mcmc.get_samples().items()
    assert latent.shape == (30, 3) and len(latent.unique(dim=0)) > 20
    # So few draws cannot tell posteriors apart. The density that they are of can, to rounding, also
    # where the guide, diagonal and hardly trained, is not.
    for u in (*latent[::10], *3 * torch.randn(20, 3)):
        z = neutra.transform_sample(u)["z"]
        found = poutine.trace(poutine.condition(model, {name: u})).get_trace().log_prob_sum()
        exact = poutine.trace(poutine.condition(correlated, {"z": z})).get_trace().log_prob_sum()
        jacobian = torch.autograd.functional.jacobian(guide.get_transform(), u)
        torch.testing.assert_close(
            found, exact + torch.linalg.slogdet(jacobian)[1], rtol=1e-4, atol=1e-3
        )


def test_predictive_and_guide_list_take_the_guide_as_a_part() -> None:
    data = torch.tensor([0.5, 1.5])
    guide = AutoGuideList(schools)
    guide.append(small_dsf(poutine.block(schools, hide=["theta"])))
    guide.append(AutoNormal(poutine.block(schools, expose=["theta"])))
    svi_steps(schools, guide)
    assert set(guide.median()) == {"mu", "tau", "theta"}
    single = small_dsf(conjugate)
    svi_steps(lambda: conjugate(data), lambda: single(data))
    samples = Predictive(conjugate, guide=single, num_samples=7)(data)
    assert samples["x"].shape == (7, 1) or samples["x"].shape == (7,)


def test_a_full_rank_guide_reaches_a_correlated_gaussian() -> None:
    guide = small_dsf(correlated, full_rank=True, num_transforms=1)
    elbo = Trace_ELBO(64, vectorize_particles=True)
    for lr in (5e-2, 5e-3):
        svi_steps(correlated, guide, 200, elbo, lr=lr)
    with torch.no_grad():
        kl = torch.tensor([elbo.loss(correlated, guide) for _ in range(20)]).mean()
    assert kl < 0.05


def test_local_parameters_of_modules_are_supported() -> None:
    with pyro.settings.context(module_local_params=True):
        guide = small_dsf(schools)
        guide()
        start = {name: p.detach().clone() for name, p in guide.named_parameters()}
        elbo = Trace_ELBO()(schools, guide)
        optimiser = torch.optim.Adam(elbo.parameters(), lr=1e-2)
        for _ in range(2):
            optimiser.zero_grad()
            elbo().backward()
            optimiser.step()
    assert trained(start, guide) == set(start)
    assert not list(pyro.get_param_store().keys())


def test_latents_local_to_a_subsampled_plate_are_refused_with_a_remedy() -> None:
    def model() -> None:
        with pyro.plate("data", 100, subsample_size=10):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(NotImplementedError, match=r"'z'.*'data'.*10 of 100.*AutoGuideList"):
        small_dsf(model)()


def test_global_latents_beside_a_subsampled_likelihood_work() -> None:
    data = torch.randn(100) + 1

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 100, subsample_size=10) as index:
            pyro.sample("y", dist.Normal(x, 1.0), obs=data[index])

    guide = small_dsf(model)
    svi_steps(model, guide, 100, lr=2e-2)
    assert abs(float(guide.median()["x"]) - 1) < 0.5


@pytest.mark.parametrize("init_scale", [0.0, -1.0])
def test_init_scale_must_be_positive(init_scale: float) -> None:
    with pytest.raises(ValueError, match="init_scale must be positive, got"):
        small_dsf(schools, init_scale=init_scale)


def test_number_of_transforms_must_be_positive() -> None:
    with pytest.raises(ValueError, match="num_transforms must be at least 1, got 0"):
        small_dsf(schools, num_transforms=0)


def test_a_model_without_continuous_latents_is_refused() -> None:
    with pytest.raises(RuntimeError, match="AutoDSFNormal found no latent variables"):
        small_dsf(lambda: None)()

    def discrete() -> None:
        pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(RuntimeError, match="found no latent variables"):
        small_dsf(discrete)()


@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_data_that_no_density_is_finite_for_bring_a_warning_at_the_start(value: float) -> None:
    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("fine", dist.Normal(x, 1.0), obs=torch.tensor(1.0))
        pyro.sample("y", dist.LogNormal(x, 1.0), obs=torch.tensor([1.0, value])[1])

    with pytest.warns(UserWarning, match=r"starts, because of \['y'\]; look for NaN"):
        small_dsf(model)()


def test_latents_whose_shape_changes_from_run_to_run_are_refused() -> None:
    sizes = iter(range(2, 100))

    def model() -> None:
        pyro.sample("x", dist.Normal(torch.zeros(next(sizes)), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"must have a fixed shape, see \['x'\]; pad"):
        small_dsf(model)()


def test_a_model_that_can_only_be_simulated_starts_a_guide() -> None:
    class Simulator(dist.Normal):
        def log_prob(self, value: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError

    def model() -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", Simulator(x, 1.0), obs=torch.tensor(1.0))

    assert small_dsf(model)()["x"].shape == ()


def test_flat_priors_start_at_the_origin_and_are_fitted() -> None:
    def model() -> None:
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("sets", 3):
            s = pyro.sample("s", dist.ImproperUniform(dist.constraints.positive, (), ()))
            pyro.sample("y", dist.Normal(x, 1.0), obs=torch.arange(3.0))
            pyro.factor("f", -s)

    guide = small_dsf(model)
    guide._setup_prototype()
    assert torch.equal(guide.loc, torch.zeros(4)) and guide.median()["s"].shape == (3,)
    svi_steps(model, guide, 120, Trace_ELBO(16, vectorize_particles=True), lr=5e-2)
    assert float(guide.median()["x"]) == pytest.approx(1, abs=0.1)
    # The density of exp(-s) is one; of x three normals remain, whose product is known.
    found = importance_diagnostics(model, guide, num_particles=2000)
    exact = float(dist.Normal(1.0, 1.0).log_prob(torch.arange(3.0)).sum()) + 0.5 * math.log(
        2 * math.pi / 3
    )
    assert found.log_evidence == pytest.approx(exact, abs=0.1)


def test_a_guide_that_was_never_called_says_so() -> None:
    for ask in (lambda g: g.median(), lambda g: g.get_transform()):
        with pytest.raises(RuntimeError, match="AutoDSFNormal has no parameters yet: call it once"):
            ask(small_dsf(schools))


def test_elementwise_parts_beside_a_flow_are_summed_into_the_density() -> None:
    def transform(dim: int) -> ComposeTransformModule:
        flow = deep_sigmoidal_flow(dim, [8], 4)
        return ComposeTransformModule([flow, dist.transforms.LeakyReLUTransform()])

    def model() -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1))

    guide = AutoFlowNormal(model, transform)
    guide()
    composed, x = guide.get_transform(), torch.randn(3)
    y = composed(x)
    jacobian = torch.autograd.functional.jacobian(composed, x)
    torch.testing.assert_close(
        composed.log_abs_det_jacobian(x, y), torch.linalg.slogdet(jacobian).logabsdet
    )
