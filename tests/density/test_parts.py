"""The parts of architectures: linear layers, the recurrent conditioner, the mixture."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_naf.conditioners import MADE
from pyro_naf.density.flow import finite_draws
from pyro_naf.density.gaussian_mixture import GaussianMixture
from pyro_naf.density.linear import Diagonal, LULinear, Reversal
from pyro_naf.density.mixture import AutoregressiveMixture
from pyro_naf.density.recurrent import RecurrentConditioner
from pyro_naf.rootfinding import RootNotFoundError
from pyro_naf.transformers import Affine
from pyro_naf.transforms import AutoregressiveFlow


def rough(module: torch.nn.Module, scale: float = 0.3) -> torch.nn.Module:
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p), alpha=scale)
    return module.double()


@pytest.mark.parametrize("make", [lambda: LULinear(4), lambda: Diagonal(4), Reversal])
def test_a_linear_layer_inverts_and_has_the_jacobian_that_it_says(make) -> None:
    layer = rough(make())
    x = torch.randn(5, 4, dtype=torch.double)
    y = layer(x)
    torch.testing.assert_close(layer.inv(y), x, rtol=0, atol=1e-12)
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(layer, x[i])
        expected = torch.linalg.slogdet(jacobian)[1]
        torch.testing.assert_close(layer.log_abs_det_jacobian(x, y)[i], expected)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_a_recurrent_conditioner_is_autoregressive(reverse: bool, context_dim: int) -> None:
    conditioner = rough(RecurrentConditioner(4, 8, 2, context_dim=context_dim, reverse=reverse))
    context = (torch.randn(context_dim, dtype=torch.double),) if context_dim else ()
    x = torch.randn(4, dtype=torch.double)
    jacobian = torch.autograd.functional.jacobian(lambda x: conditioner(x, *context).sum(-1), x)
    order = conditioner.get_permutation()
    jacobian = jacobian[order][:, order]
    assert (jacobian.triu() == 0).all() and (jacobian.tril(-1)[1:, 0] != 0).all()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_recurrent_flow_inverts_by_its_sweep(reverse: bool) -> None:
    flow = AutoregressiveFlow(rough(RecurrentConditioner(5, 8, 2, reverse=reverse)), Affine())
    x = torch.randn(7, 5, dtype=torch.double)
    torch.testing.assert_close(flow.inv(flow(x).clone()), x, rtol=0, atol=1e-10)


def mixture(dim: int = 3, context_dim: int = 0) -> AutoregressiveMixture:
    made = MADE(dim, [10], 12, context_dim=context_dim)
    return rough(AutoregressiveMixture(made, components=4), 0.5)  # type: ignore[return-value]


def test_a_mixture_is_the_sum_over_its_components() -> None:
    m = mixture()
    z = torch.randn(6, 3, dtype=torch.double)
    log_weights, means, scales = m.constrain(m.conditioner(z))
    torch.testing.assert_close(log_weights.exp().sum(-1), torch.ones(6, 3, dtype=torch.double))
    by_torch = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=log_weights),
        torch.distributions.Normal(means, scales),
    )
    torch.testing.assert_close(m.log_prob(z), by_torch.log_prob(z).sum(-1))


def test_a_fresh_mixture_has_about_unit_variance() -> None:
    m = AutoregressiveMixture(MADE(2, [10], 30), components=10)
    with torch.no_grad():
        assert m.rsample(20_000).std(0).sub(1).abs().max() < 0.1


def test_draws_of_a_mixture_pass_the_probability_integral_transform() -> None:
    m = mixture(2)
    with torch.no_grad():
        z = m.rsample(20_000)
        log_weights, means, scales = m.constrain(m.conditioner(z))
        u = (log_weights.exp() * torch.special.ndtr((z.unsqueeze(-1) - means) / scales)).sum(-1)
    levels = (torch.arange(len(u), dtype=torch.double) + 0.5) / len(u)
    distance = (u.sort(0).values - levels.unsqueeze(-1)).abs().max(0).values
    assert (distance < 1.95 / len(u) ** 0.5).all()  # Kolmogorov and Smirnov, at 0.1 %


def test_gradients_of_draws_are_those_of_the_mean_by_quadrature() -> None:
    # d E[g(z)] / d theta for D = 1, where both sides can be computed.
    m = mixture(1)
    grid = torch.linspace(-30, 30, 60_001, dtype=torch.double).unsqueeze(-1)
    step = float(grid[1] - grid[0])
    exact = torch.autograd.grad(
        (m.log_prob(grid).exp() * grid.squeeze(-1).sin()).sum() * step, m.conditioner.output_bias
    )[0]
    z = m.rsample(400_000)
    found = torch.autograd.grad(z.sin().mean(), m.conditioner.output_bias)[0]
    assert (found - exact).abs().max() < 5e-3
    assert exact.abs().max() > 0.05


def test_a_mixture_as_a_distribution_expands() -> None:
    for context_dim in (0, 2):
        m = mixture(3, context_dim)
        context = torch.randn(2, dtype=torch.double) if context_dim else None
        d = m.distribution(context).expand([5])
        assert d.batch_shape == (5,) and d.rsample([4]).shape == (4, 5, 3)
        assert d.log_prob(torch.randn(3, dtype=torch.double)).shape == (5,)


def test_a_mixture_names_mistakes() -> None:
    with pytest.raises(ValueError, match=r"gives 9 pseudo-parameters.*4 components need 12"):
        AutoregressiveMixture(MADE(3, [10], 9), components=4)
    with pytest.raises(ValueError, match="min_scale must lie in"):
        AutoregressiveMixture(MADE(3, [10], 12), components=4, min_scale=0.0)
    with pytest.raises(ValueError, match=r"context must have shape \(..., 2\), got None"):
        RecurrentConditioner(3, 8, 1, context_dim=2)(torch.randn(3))


class Overflows:
    """Uniform draws, of which those above a bound cannot be computed."""

    def __init__(self, bound: float, raises: bool) -> None:
        self.bound, self.raises = bound, raises

    def rsample(self, n: int, given: Tensor | None = None) -> Tensor:
        n = n if given is None else len(given)
        u = torch.rand(n, 1)
        x = torch.where(u > self.bound, math.inf, u)
        if self.raises and x.isinf().any():
            raise RootNotFoundError(int(x.isinf().sum()), n, math.nan)
        return x if given is None else (x * 0 + given).unsqueeze(0)


@pytest.mark.parametrize("raises", [True, False])
def test_draws_that_overflow_are_drawn_again_from_the_law_of_the_others(raises: bool) -> None:
    with pytest.warns(UserWarning, match="some of 4000 draws were so far out that the flow over"):
        x = finite_draws(Overflows(0.9, raises), 4000)
    assert x.shape == (4000, 1) and stats.kstest(x[:, 0], "uniform", (0, 0.9)).pvalue > 1e-3
    with pytest.warns(UserWarning, match="drawn again"):  # each context keeps its place
        assert finite_draws(Overflows(0.9, True), 300, torch.arange(300.0)[:, None])[7] == 7
    assert finite_draws(Overflows(1.0, raises), 5).shape == (5, 1)  # no warning


def test_what_cannot_be_drawn_at_all_is_an_error() -> None:
    for raises in (True, False):
        with pytest.raises(RootNotFoundError):
            finite_draws(Overflows(-1.0, raises), 4)


def test_clusters_that_are_small_beside_their_distances_keep_their_widths() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [0.0, 1.0], [100.0, 0.0]])
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(3)),
        torch.distributions.Independent(torch.distributions.Normal(centres, 0.1), 1),
    )
    mixture = GaussianMixture(2, 3, prior_rows=0.3)
    mixture.start(law.sample([1000]))
    new = law.sample([2000])
    assert float((law.log_prob(new) - mixture.log_prob(new)).mean()) < 0.05
