"""Simulation-based calibration sees what is wrong with a fit, and accepts a right one."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from models import LINEAR, LINEAR_NOISE, linear, linear_posterior
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, init_to_value
from torch import Tensor

from pyro_naf.infer import AutoDSFNormal, Calibration, ForwardKL, refine, sbc
from pyro_naf.infer.uniformity import band, symmetry, uniformity

Y = torch.zeros(3)


def data_of(model: Any, y: Tensor) -> Tensor:
    return poutine.trace(model).get_trace(y).nodes["y"]["value"]


def exact(model: Any, y: Tensor) -> dict[str, Tensor]:
    return {"x": linear_posterior(data_of(model, y)).sample((200,))}


def mean_field(model: Any, y: Tensor) -> AutoDiagonalNormal:
    """The best mean-field Gaussian: its deviations are those of each latent given the other."""
    posterior = linear_posterior(data_of(model, y))
    start = init_to_value(values={"x": posterior.mean})
    guide = AutoDiagonalNormal(model, init_loc_fn=start)
    with poutine.block():
        guide(y)
    guide.scale = posterior.precision_matrix.diagonal().rsqrt()
    return guide


def test_an_exact_fit_is_calibrated_and_covers() -> None:
    found = sbc(linear, exact, Y, progress=False)
    assert found.names == ("x[0]", "x[1]") and found.ranks.shape == (100, 2)
    assert found.verdict.startswith("calibrated") and min(found.uniformity.values()) > 0.01
    for share in found.coverage(0.8).values():
        assert share == pytest.approx(0.8, abs=4 * (0.16 / 100) ** 0.5)


@pytest.mark.parametrize(
    "shift, scale, says",
    [(0.0, 0.5, "too narrow"), (0.0, 2.0, "too wide"), (0.5, 1.0, "too high")],
)
def test_a_wrong_fit_is_named_by_what_is_wrong(shift: float, scale: float, says: str) -> None:
    def fit(model: Any, y: Tensor) -> dict[str, Tensor]:
        posterior = linear_posterior(data_of(model, y))
        deviation = posterior.stddev
        x = posterior.sample((200,))
        return {"x": posterior.mean + scale * (x - posterior.mean) + shift * deviation}

    found = sbc(linear, fit, Y, num_simulations=150, progress=False)
    assert found.verdict.startswith("not calibrated") and says in found.verdict
    # VSBC looks at biases alone.
    is_biased = min(found.symmetry.values()) < 0.01
    assert is_biased == bool(shift)


def test_refine_is_calibrated_where_a_mean_field_guide_is_not() -> None:
    """Latents with a correlation of -0.98: the mean field has a fifth of their width."""

    def model(y: Tensor) -> None:
        a, b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
        pyro.sample("y", dist.Normal(a + b, 0.2), obs=y)

    def refined(given: Any, y: Tensor) -> Any:
        return refine(given, y, num_draws=1000, num_starts=1, compile=False, progress=False)

    def field(given: Any, y: Tensor) -> AutoDiagonalNormal:
        data = data_of(given, y)
        start = {name: data / 2.04 for name in "ab"}
        guide = AutoDiagonalNormal(given, init_loc_fn=init_to_value(values=start))
        with poutine.block():
            guide(y)
        guide.scale = torch.full((2,), (1 + 1 / 0.04) ** -0.5)
        return guide

    y = torch.tensor(0.0)
    found = sbc(model, refined, y, num_simulations=20, progress=False)
    assert found.verdict == "calibrated, as far as 20 simulations can tell"
    found = sbc(model, field, y, num_simulations=50, progress=False)
    assert "draws too narrow" in found.verdict


def test_an_amortised_guide_is_ranked_on_data_of_its_own_without_new_fits() -> None:
    guide = AutoDSFNormal(linear, context_fn=lambda y: y, context_dim=3, num_transforms=1)
    svi = pyro.infer.SVI(linear, guide, pyro.optim.Adam({"lr": 1e-2}), ForwardKL(128))
    for _ in range(150):
        svi.step(Y)

    def arguments(data: dict[str, Tensor]) -> tuple[Tensor]:
        return (data["y"],)

    found = sbc(linear, guide, Y, arguments=arguments, num_simulations=50, progress=False)
    assert found.verdict.startswith("calibrated") and len(found.ranks) == 50
    fresh = AutoDSFNormal(
        linear, context_fn=lambda y: y, context_dim=3, num_transforms=1, init_scale=0.1
    )
    pyro.clear_param_store()
    fresh(Y)
    found = sbc(linear, fresh, Y, arguments=arguments, num_simulations=20, progress=False)
    assert found.verdict.startswith("not calibrated")


def test_quantities_of_the_latents_can_be_ranked_and_failures_are_counted() -> None:
    calls = 0

    def sometimes(model: Any, y: Tensor) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("out of luck")
        return exact(model, y)

    found = sbc(
        linear,
        sometimes,
        Y,
        num_simulations=12,
        quantities=lambda z: {"sum": z["x"].sum()},
        progress=False,
    )
    assert found.names == ("sum",) and found.failed == ("out of luck",)
    assert "1 fits failed (out of luck)" in found.verdict and "sum" in str(found)


class ByHand(pyro.nn.PyroModule):
    def forward(self, y: Tensor) -> None:
        pyro.sample("x", linear_posterior(y))


class Chains:
    def get_samples(self) -> dict[str, Any]:
        return {"x": torch.randn(200, 2).numpy()}


def test_guides_by_hand_chains_and_the_shapes_of_predictive_are_taken() -> None:
    options: dict[str, Any] = {"num_simulations": 10, "progress": False}
    given: dict[str, Any] = {"arguments": lambda data: (data["y"],), **options}
    for guide in (ByHand(), lambda y: pyro.sample("x", linear_posterior(y))):
        found = sbc(linear, guide, Y, **given)
        assert found.verdict.startswith("calibrated") and found.names == ("x[0]", "x[1]")
    fits = {
        "predictive": lambda m, y: {"x": exact(m, y)["x"][:, None]},
        "returned": lambda m, y: ByHand(),
    }
    assert sbc(linear, fits["predictive"], Y, **options).verdict.startswith("calibrated")
    assert sbc(linear, fits["returned"], Y, **given).verdict.startswith("calibrated")
    assert not sbc(linear, lambda m, y: Chains(), Y, **options).failed


def test_fits_that_return_something_else_are_told() -> None:
    with pytest.raises(TypeError, match="fit must return what refine"):
        sbc(linear, lambda m, y: None, Y, progress=False)
    with pytest.raises(TypeError, match=r"draws of 'x' with shape \('L', 2\), got \(200, 3\)"):
        sbc(linear, lambda m, y: {"x": torch.randn(200, 3)}, Y, progress=False)


def test_simulated_data_has_the_distribution_of_the_models() -> None:
    seen = []

    def fit(model: Any, y: Tensor) -> dict[str, Tensor]:
        seen.append(data_of(model, y))
        return exact(model, y)

    sbc(linear, fit, Y, num_simulations=400, progress=False)
    covariance = LINEAR @ LINEAR.T + LINEAR_NOISE**2 * torch.eye(3)
    assert torch.allclose(torch.stack(seen).T.cov(), covariance, atol=0.6)


@pytest.mark.parametrize("test", [uniformity, symmetry])
def test_p_values_are_uniform_for_uniform_ranks(test: Any) -> None:
    p = torch.tensor([test(torch.rand(60).double()) for _ in range(200)])
    for level in (0.1, 0.5, 0.9):
        assert float((p <= level).double().mean()) == pytest.approx(level, abs=0.12)


def test_the_band_holds_the_curves_of_uniform_ranks() -> None:
    places, low, high = band(80)
    ranks = torch.rand(300, 80).double()
    share = (ranks[:, :, None] < places).double().mean(1)
    inside = ((share >= low) & (share <= high)).all(-1).double().mean()
    assert 0.9 < float(inside) <= 1
    picture = Calibration(("x",), ranks[0, :, None]).plot()
    assert picture.axes[0].get_xlabel() == "x"


def test_arguments_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="num_simulations must be at least 10, got 3"):
        sbc(linear, exact, Y, num_simulations=3)
    with pytest.raises(ValueError, match="no observed sites"):
        sbc(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), exact)
