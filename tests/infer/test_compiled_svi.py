"""CompiledSVI does what SVI does, from the same seed, and swallows nothing as a constant."""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import (
    SVI,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import (
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from pyro_naf import eight_schools
from pyro_naf.infer import AutoDSFNormal, CompiledSVI, TraceDReG_ELBO, TraceSTL_ELBO

#: Of float32 after a few steps of Adam, relative to losses above 1, and absolute for parameters.
LOSS, PARAMETER = 1e-5, 2e-5

Steps = Callable[[SVI], list[float]]
Y = torch.tensor([1.2, 0.3, 2.2, -0.4, 1.1, 0.9, 2.4, 1.8])


def adam() -> pyro.optim.PyroOptim:
    return pyro.optim.Adam({"lr": 0.01})


def by_both(
    make: Callable[[], tuple[Any, Any, Any]],
    steps: Steps,
    optim: Callable[[], pyro.optim.PyroOptim] = adam,
) -> CompiledSVI:
    """Run the steps by SVI and by CompiledSVI: losses, parameters, and states must be equal."""
    found = []
    for compiled in (False, True):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        model, guide, loss = make()
        arguments = (model, guide, optim(), loss)
        svi = CompiledSVI(*arguments, compile=False) if compiled else SVI(*arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            losses = steps(svi)
        params = {n: p.detach() for n, p in pyro.get_param_store().named_parameters()}
        found.append((losses, params, svi.optim.get_state()))
    (losses, params, state), (others, other_params, other_state) = found
    assert others == pytest.approx(losses, rel=LOSS, abs=LOSS)
    for name, p in params.items():
        torch.testing.assert_close(other_params[name], p, rtol=0, atol=PARAMETER)
    assert _counts(other_state) == _counts(state)
    assert isinstance(svi, CompiledSVI)
    return svi


def _counts(state: dict[str, Any]) -> dict[str, list[float]]:
    """Steps that the optimisers have counted."""
    optimisers = {n: s.get("optimizer", s) for n, s in state.items()}
    return {
        name: [float(s["step"]) for s in optimiser["state"].values() if "step" in s]
        for name, optimiser in optimisers.items()
    }


def twelve(*args: Any) -> Steps:
    return lambda svi: [svi.step(*args) for _ in range(12)]


def by_hand() -> tuple[Any, Any, Any]:
    """A model with subsampled rows, and a guide with local parameters and several families."""

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", len(Y), subsample_size=3) as rows:
            x = pyro.sample("x", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(x * share, 0.5), obs=Y[rows])

    def guide() -> None:
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.3)), scale))
        a = pyro.param("a", torch.tensor(2.0), constraint=constraints.positive)
        pyro.sample("share", dist.Beta(a, 1 + scale))
        with pyro.plate("rows", len(Y), subsample_size=3):
            pyro.sample("x", dist.Normal(pyro.param("locs", torch.zeros(8), event_dim=0), scale))

    return model, guide, Trace_ELBO()


def small() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    x = pyro.sample("x", dist.Normal(mu, scale))
    with pyro.plate("rows", len(Y)):
        pyro.sample("y", dist.Normal(x, scale), obs=Y)


def automatic(guide: Any, loss: Any, model: Any = small) -> Callable[[], tuple[Any, Any, Any]]:
    return lambda: (model, guide(model), loss())


#: That "mu" and "x" depend on each other given "scale" does not matter here.
CHAIN = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]])

MANY = dict(num_particles=3, vectorize_particles=True)


@pytest.mark.parametrize(
    "make",
    [
        automatic(AutoNormal, lambda: Trace_ELBO(num_particles=2)),
        automatic(AutoNormal, lambda: TraceSTL_ELBO(**MANY)),
        automatic(AutoMultivariateNormal, lambda: Trace_ELBO(**MANY)),
        automatic(AutoLowRankMultivariateNormal, TraceMeanField_ELBO),
        automatic(AutoDSFNormal, Trace_ELBO, eight_schools.model),
        automatic(AutoDSFNormal, TraceSTL_ELBO),
        automatic(lambda m: AutoDSFNormal(m, structure=CHAIN), Trace_ELBO),
        automatic(AutoIAFNormal, Trace_ELBO),
        automatic(AutoNormal, lambda: TraceDReG_ELBO(num_particles=2)),
        by_hand,
    ],
    ids=[
        "normal",
        "normal-stl",
        "mvn",
        "low-rank",
        "dsf",
        "dsf-stl",
        "chain",
        "iaf",
        "dreg",
        "hand",
    ],
)
def test_steps_are_those_of_svi_from_the_same_seed(make: Any) -> None:
    svi = by_both(make, twelve())
    assert (svi.rung, svi.why_not) == ("captured", None)


@pytest.mark.parametrize(
    "optim",
    [
        lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.9, "clip_norm": 0.5}),
        lambda: pyro.optim.AdamW({"lr": 0.05, "weight_decay": 0.1}),
        lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if name == "loc" else 0.01}),
        lambda: pyro.optim.Adam({"lr": 0.05}, clip_args={"clip_norm": 0.5}),
        lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9}),
    ],
    ids=["clipped", "decoupled", "each-its-own", "clip-args", "sgd"],
)
def test_every_optimiser_moves_and_counts_as_in_svi(optim: Any) -> None:
    assert by_both(by_hand, twelve(), optim).rung == "captured"


def test_a_scheduler_changes_the_rate_of_steps_by_a_graph() -> None:
    def scheduler() -> Any:
        settings = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.5}
        return pyro.optim.ExponentialLR(settings)

    def steps(svi: SVI) -> list[float]:
        losses = []
        for _ in range(12):
            losses.append(svi.step())
            svi.optim.step()
        return losses

    assert by_both(by_hand, steps, scheduler).rung == "captured"


# ------------------------------------------------------------------ enumerated discrete latents


@config_enumerate
def clusters(y: Tensor) -> None:
    """A mixture of which some rows are subsampled, and one is masked."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([3]).to_event(1))
    with pyro.plate("rows", len(y), subsample_size=5) as rows, poutine.mask(mask=y[rows] < 2.3):
        which = pyro.sample("which", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(Vindex(locs)[..., which], 0.5), obs=y[rows])


@config_enumerate
def markov_chain(y: Tensor) -> None:
    """A hidden Markov model: the price of its enumeration rises linearly with its length."""
    with pyro.plate("states", 2, dim=-2):
        moves = pyro.sample("moves", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("locs of states", 2, dim=-2):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    state = torch.tensor(0)
    for t in pyro.markov(range(len(y))):
        moves_here, locs_here = Vindex(moves)[..., state, 0, :], Vindex(locs)[..., state, 0]
        state = pyro.sample(f"state {t}", dist.Categorical(moves_here))
        pyro.sample(f"y {t}", dist.Normal(locs_here, 1.0), obs=y[t])


@pytest.mark.parametrize(
    "model, discrete, guide, options",
    [
        (clusters, ["which"], AutoNormal, MANY),
        (clusters, ["which"], AutoDSFNormal, {"num_particles": 2}),
        (markov_chain, [f"state {t}" for t in range(8)], AutoNormal, {}),
    ],
    ids=["mixture-particles", "mixture-dsf", "markov"],
)
def test_models_with_enumerated_latents_are_captured(
    model: Any, discrete: list[str], guide: Any, options: dict[str, Any]
) -> None:
    def make() -> tuple[Any, Any, Any]:
        loss = TraceEnum_ELBO(max_plate_nesting=2, **options)
        return model, guide(poutine.block(model, hide=discrete)), loss

    svi = by_both(make, lambda svi: [svi.step(Y + 0.1 * i) for i in range(10)])
    assert (svi.rung, svi.why_not, len(svi._plans)) == ("captured", None, 1)


def enumerated_by_the_guide() -> tuple[Any, Any, Any]:
    """Probabilities of the guide's own discrete latents may be zero, which Pyro looks for."""

    def model(y: Tensor) -> None:
        with pyro.plate("rows", len(y)):
            side = pyro.sample("side", dist.Bernoulli(0.4))
            pyro.sample("y", dist.Normal(2 * side, 1.0), obs=y)

    @config_enumerate
    def guide(y: Tensor) -> None:
        share = pyro.param("share", torch.full((8,), 0.5), constraint=constraints.unit_interval)
        with pyro.plate("rows", len(y)):
            pyro.sample("side", dist.Bernoulli(share))

    return model, guide, TraceEnum_ELBO(max_plate_nesting=1)


# ------------------------------------------------------------------ nothing is swallowed


class Encoder(nn.Module):
    """A variational autoencoder, with a dropout that a graph must not freeze."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 4))
        self.decoder = nn.Linear(2, 5)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.layers)
        with pyro.plate("rows", len(x)):
            loc, log_scale = self.layers(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def by_encoders(use: Callable[[Encoder, SVI], list[float]]) -> CompiledSVI:
    """Equal use of two equal encoders, by SVI and by CompiledSVI."""
    encoders: list[Encoder] = []

    def make() -> tuple[Any, Any, Any]:
        torch.manual_seed(0)
        encoders.append(Encoder())
        return encoders[-1].model, encoders[-1].guide, Trace_ELBO()

    return by_both(make, lambda svi: use(encoders[-1], svi))


def test_minibatches_of_one_shape_are_inputs_of_one_graph() -> None:
    rows = torch.randn(100, 5)

    def use(encoder: Encoder, svi: SVI) -> list[float]:
        return [svi.step(rows[i : i + 9]) for i in range(0, 90, 9)]

    svi = by_encoders(use)
    assert svi.rung == "captured" and len(svi._plans) == 1


def test_minibatches_may_be_strided() -> None:
    rows = torch.randn(5, 100)

    def use(encoder: Encoder, svi: SVI) -> list[float]:
        parts = [rows[:, i : i + 9].T for i in range(0, 81, 9)]
        return [svi.step(part if i % 2 else part.contiguous()) for i, part in enumerate(parts)]

    assert by_encoders(use).rung == "captured"


def test_a_parameter_that_only_later_steps_use_is_not_overlooked() -> None:
    box = {"both": False}

    def make() -> tuple[Any, Any, Any]:
        def model() -> None:
            pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=Y[0])

        def guide() -> None:
            loc = pyro.param("loc", torch.tensor(0.1))
            other = pyro.param("other", torch.tensor(0.0))
            pyro.sample("mu", dist.Normal(loc + other if box["both"] else loc, 1.0))

        return model, guide, Trace_ELBO()

    def steps(svi: SVI) -> list[float]:
        losses = []
        for i in range(10):
            box["both"] = i > 3  # from 0: neither loss nor the other gradient tells
            losses.append(svi.step())
        return losses

    assert "disagree" in str(by_both(make, steps).why_not)


def test_switching_a_module_to_evaluation_is_seen() -> None:
    rows = torch.randn(9, 5)

    def use(encoder: Encoder, svi: SVI) -> list[float]:
        losses = [svi.step(rows) for _ in range(8)]
        encoder.eval()
        losses += [svi.evaluate_loss(rows), *(svi.step(rows) for _ in range(8))]
        return losses

    assert by_encoders(use).rung == "captured"


def test_draws_and_subsamples_are_fresh_in_each_step() -> None:
    seen = []

    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 1000, subsample_size=2) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=rows.float())

    svi = CompiledSVI(
        model, AutoNormal(model), pyro.optim.Adam({"lr": 0.0}), Trace_ELBO(), compile=False
    )
    seen = [svi.step() for _ in range(30)]
    assert svi.rung == "captured" and len(set(seen)) == 30


def test_distributions_that_were_made_to_validate_are_captured() -> None:
    prior = dist.Normal(0.0, 1.0).expand([8]).to_event(1)  # it validates for as long as it lives

    def make() -> tuple[Any, Any, Any]:
        def model() -> None:
            x = pyro.sample("x", prior)
            pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=Y)

        return model, AutoNormal(model), Trace_ELBO()

    assert by_both(make, twelve()).rung == "captured"


def test_an_amortised_flow_takes_each_steps_data_as_its_context() -> None:
    def make() -> tuple[Any, Any, Any]:
        def model(y: Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu, 1.0).expand(y.shape).to_event(1), obs=y)

        guide = AutoDSFNormal(model, context_fn=lambda y: y, context_dim=4)
        return model, guide, Trace_ELBO()

    def steps(svi: SVI) -> list[float]:
        return [svi.step(torch.linspace(-i, i, 4)) for i in range(9)]

    assert by_both(make, steps).rung == "captured"


def test_losses_are_evaluated_as_by_svi() -> None:
    def steps(svi: SVI) -> list[float]:
        return [number for _ in range(12) for number in (svi.step(), svi.evaluate_loss())]

    assert by_both(by_hand, steps).rung == "captured"


def test_numbers_among_the_arguments_have_graphs_of_their_own() -> None:
    def make() -> tuple[Any, Any, Any]:
        def model(y: Tensor, power: Any) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with poutine.scale(scale=power):
                pyro.sample("y", dist.Normal(mu, 1.0).expand(y.shape).to_event(1), obs=y)

        return model, AutoNormal(model), Trace_ELBO()

    def with_numbers(svi: SVI) -> list[float]:
        return [svi.step(Y, power=1.0 + i % 2) for i in range(16)]

    def with_tensors(svi: SVI) -> list[float]:
        return [svi.step(Y + i, power=torch.tensor(1.0 + i)) for i in range(12)]

    def always_others(svi: SVI) -> list[float]:
        return [svi.step(Y, power=1.0 + i) for i in range(20)]

    assert len(by_both(make, with_numbers)._plans) == 2
    assert len(by_both(make, with_tensors)._plans) == 1
    assert "give numbers that change as tensors" in str(by_both(make, always_others).why_not)


def of_a_global(box: dict[str, Tensor]) -> Callable[[], tuple[Any, Any, Any]]:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        y = box["y"]
        pyro.sample("y", dist.Normal(mu, 1.0).expand(y.shape).to_event(1), obs=y)

    return lambda: (model, AutoNormal(model), Trace_ELBO())


def test_a_global_that_is_exchanged_is_noticed_and_one_that_is_changed_is_followed() -> None:
    box: dict[str, Tensor] = {}

    def exchange(svi: SVI) -> list[float]:
        box["y"] = Y.clone()
        losses = [svi.step() for _ in range(12)]
        box["y"] = Y + 1
        return losses + [svi.step() for _ in range(4)]

    def change(svi: SVI) -> list[float]:
        box["y"] = Y.clone()
        losses = []
        for _ in range(12):
            losses.append(svi.step())
            box["y"].add_(0.1)
        return losses

    assert "the captured graph and SVI disagree" in str(by_both(of_a_global(box), exchange).why_not)
    assert by_both(of_a_global(box), change).rung == "captured"


def test_a_new_param_store_is_trained_and_handlers_around_a_step_act() -> None:
    def again(svi: SVI) -> list[float]:
        losses = [svi.step() for _ in range(8)]
        pyro.clear_param_store()
        return losses + [svi.step() for _ in range(8)]

    def scaled(svi: SVI) -> list[float]:
        losses = [svi.step() for _ in range(8)]
        with poutine.scale(scale=2.0):
            losses += [svi.step() for _ in range(3)]
        return losses

    for steps in (again, scaled):
        assert by_both(by_hand, steps).why_not is None


@pytest.mark.parametrize("dtype", [torch.float, torch.double])
def test_parameters_whose_data_is_set_are_read_where_they_are(dtype: torch.dtype) -> None:
    def steps(svi: SVI) -> list[float]:
        losses = [svi.step() for _ in range(8)]
        for _, p in pyro.get_param_store().named_parameters():
            p.grad = None
            p.data = (p.data + 1).to(dtype)
        return losses + [svi.step() for _ in range(8)]

    assert by_both(by_hand, steps, lambda: pyro.optim.SGD({"lr": 0.01})).why_not is None


# ------------------------------------------------------------------- what no graph stands for


def with_model(body: Callable[[Tensor], Any]) -> tuple[Any, Any, Any]:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0).expand(Y.shape).to_event(1), obs=body(y))

    return model, AutoNormal(model), Trace_ELBO()


def _where_positive(y: Tensor) -> Tensor:
    y = y.clone()
    y[y > 0] = y[y > 0].log1p()
    return y


LAYER = nn.BatchNorm1d(1, affine=False)


def _normalised(y: Tensor) -> Tensor:
    """With running averages, which the layer changes in place."""
    return LAYER(y[:, None])[:, 0]


REFUSED: dict[str, tuple[Callable[[], tuple[Any, Any, Any]], Any, str]] = {
    "values": (lambda: with_model(lambda y: y if y.sum() > 0 else -y), Y, "a number .* is read at"),
    "list": (lambda: with_model(lambda y: torch.tensor(y.tolist())), Y, r"\(tolist\) at test_"),
    "numpy": (lambda: with_model(lambda y: torch.as_tensor(np.asarray(y))), Y, "__array__"),
    "shape": (lambda: with_model(_where_positive), Y, r"shape of a tensor .* \(index\) at test_"),
    "array": (lambda: with_model(torch.as_tensor), Y.numpy(), r"args\[0\] is of type ndarray"),
    "gradient": (lambda: with_model(lambda y: y), Y.clone().requires_grad_(), "a gradient"),
    "numpy's random": (
        lambda: with_model(lambda y: y * float(np.random.rand())),
        Y,
        "from NumPy or from Python's",
    ),
    "random": (lambda: with_model(lambda y: y * random.random()), Y, "from NumPy or from Python's"),
    "in place": (lambda: with_model(_normalised), Y, "changed in place"),
    "enumerated guide": (
        lambda: enumerated_by_the_guide(),
        Y,
        r"a number .* is read at pyro/infer/\w+\.py, line",  # and not where the step is called
    ),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_captured_is_run_by_svi_and_said_once(name: str) -> None:
    make, data, words = REFUSED[name]
    np.random.seed(0)
    random.seed(0)
    model, guide, loss = make()
    svi = CompiledSVI(model, guide, adam(), loss, compile=False)
    with pytest.warns(UserWarning, match=f"CompiledSVI runs as SVI does: .*{words}") as said:
        _ = [svi.step(data) for _ in range(8)]
    assert len(said) == 1 and svi.rung == "plain"
    assert svi.why_not is not None and "\n" not in svi.why_not


def test_hooks_are_called_whenever_they_came() -> None:
    def steps(svi: SVI) -> list[float]:
        losses = [svi.step() for _ in range(8)]
        calls: list[float] = []
        for _, p in pyro.get_param_store().named_parameters():
            p.register_hook(lambda grad: calls.append(1.0))
        losses += [svi.step() for _ in range(4)]
        return [*losses, len(calls)]

    assert "has a hook" in str(by_both(by_hand, steps).why_not)


def test_a_loss_that_is_not_finite_is_svis_with_its_words() -> None:
    svi = CompiledSVI(*with_model(lambda y: y)[:2], adam(), Trace_ELBO(), compile=False)
    for _ in range(8):
        svi.step(Y)
    assert svi.rung == "captured"
    with pytest.raises(ValueError, match=r"at site 'y'|invalid values"):
        svi.step(Y * torch.nan)


def test_without_compilation_every_step_is_svis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRO_NAF_COMPILE", "0")
    svi = CompiledSVI(*by_hand()[:2], adam(), Trace_ELBO())
    for _ in range(8):
        svi.step()
    assert (svi.rung, svi.why_not) == ("plain", "PYRO_NAF_COMPILE=0")


# ---------------------------------------------------------------------------------- compiled


def test_a_compiled_graph_takes_over_and_is_found_by_the_next(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("rows", 20, subsample_size=len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.3)), scale))
        with pyro.plate("rows", 20, subsample_size=len(y)):
            pass

    def until_compiled(limit: int) -> tuple[CompiledSVI, int]:
        pyro.clear_param_store()
        descent = pyro.optim.SGD({"lr": 0.01})  # it has no state
        svi, steps = CompiledSVI(model, guide, descent, Trace_ELBO()), 0
        end = time.monotonic() + limit
        while svi.rung != "captured and compiled" and time.monotonic() < end:
            svi.step(torch.randn(4))
            steps += 1
            time.sleep(0.05 if steps > 8 else 0.0)
        return svi, steps

    svi, _ = until_compiled(120)
    if svi.rung != "captured and compiled":
        pytest.skip("this machine compiles no graphs ahead of time")
    svi, steps = until_compiled(120)
    assert steps <= 6

    start = {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters()}
    found = []
    for step in (svi.step, lambda y: SVI.step(svi, y)):
        for name, p in pyro.get_param_store().named_parameters():
            p.detach().copy_(start[name])
        pyro.set_rng_seed(1)
        losses = [step(Y[i % 4 : i % 4 + 4]) for i in range(8)]
        assert svi.rung == "captured and compiled"
        moved = [p.item() for _, p in pyro.get_param_store().named_parameters()]
        found.append([*losses, *moved])
    assert found[0] == pytest.approx(found[1], rel=LOSS, abs=LOSS)
