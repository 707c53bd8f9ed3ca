"""Claims about heavy tails: Student's t as a mixture, as the base of a flow, and by default."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pyro_naf.density import FlowDensity, student
from pyro_naf.density.architectures import build
from pyro_naf.density.automatic import candidates
from pyro_naf.density.gaussian_mixture import GaussianMixture
from pyro_naf.density.incomplete import log_terms

QUICK: dict[str, Any] = {"progress": False, "seed": 0}

SHAPE = np.array([[2.0, 1.2, -0.4], [1.2, 1.5, 0.3], [-0.4, 0.3, 0.8]])


def truth(degrees: float) -> Any:
    return stats.multivariate_t(np.array([5.0, -1.0, 0.0]), SHAPE, df=degrees)


def rows(n: int, degrees: float, seed: int) -> Tensor:
    return torch.from_numpy(truth(degrees).rvs(n, random_state=seed))


def lost(density: Any, degrees: float) -> float:
    """Kullback-Leibler divergence from the truth, by 4000 new rows."""
    x = rows(4000, degrees, 99)
    with torch.no_grad():
        return float(truth(degrees).logpdf(x.numpy()).mean() - density.log_prob(x).mean())


@pytest.mark.parametrize("degrees", [1.0, 2.5, 100.0])
def test_the_log_density_is_scipys(degrees: float) -> None:
    law, x = truth(degrees), rows(50, degrees, 0).numpy()
    away = x - law.loc
    square = torch.from_numpy((away @ np.linalg.inv(SHAPE) * away).sum(1))
    found = student.log_density(square, torch.tensor(degrees).double(), 3)
    expected = law.logpdf(x) + 0.5 * np.linalg.slogdet(SHAPE)[1]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("degrees", [0.5, 1.0, 1.7, 8.0, 99.0, 1e6])
def test_the_likeliest_degrees_are_those_of_the_factors_law(degrees: float) -> None:
    half = torch.tensor([degrees / 2], dtype=torch.double)
    (found,) = student.likeliest(torch.ones(1).double(), half.digamma() - half.log())
    assert float(found) == pytest.approx(min(max(degrees, 1.0), 100.0), rel=1e-9)


@pytest.mark.parametrize("degrees", [1.0, 2.0, 5.0])
def test_expectation_and_maximisation_find_the_law(degrees: float) -> None:
    mixture = GaussianMixture(3, 1, heavy_tails=True).double()
    mixture.start(rows(4000, degrees, 1))
    assert mixture.degrees is not None
    assert float(mixture.degrees) == pytest.approx(degrees, rel=0.15)  # three standard errors
    found = mixture.gaussians.covariances[0].numpy()
    np.testing.assert_allclose(found, SHAPE, atol=0.2)
    assert lost(mixture, degrees) < 0.01


def test_of_gaussian_rows_it_is_a_gaussian() -> None:
    x = torch.randn(3000, 3).double()
    alike = [build(name, 3).double() for name in ("student-1", "gmm-1")]
    for density in alike:
        density.start(x)
    gained = alike[0].log_prob(x) - alike[1].log_prob(x)
    assert abs(float(gained.mean())) < 2e-3


def test_two_clusters_with_tails_are_found_by_weight_and_degrees() -> None:
    x = torch.cat([rows(1500, 2.0, 2), rows(500, 50.0, 3) + 40])
    mixture = GaussianMixture(3, 2, heavy_tails=True).double()
    torch.manual_seed(0)
    mixture.start(x)
    assert mixture.degrees is not None
    order = mixture.log_weights.argsort()
    assert mixture.log_weights[order].exp().tolist() == pytest.approx([0.25, 0.75], abs=0.02)
    assert mixture.degrees[order[1]] < 2.4 and mixture.degrees[order[0]] > 8


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_classes_beside_ts_are_independent_given_the_cluster(share: float) -> None:
    rng = np.random.default_rng(0)
    x = torch.cat([rows(1500, 2.0, 2), rows(500, 50.0, 3) + 40])
    second = torch.arange(len(x)) >= 1500
    code = torch.from_numpy(rng.random(len(x)) < np.where(second, 0.9, 0.2)).double()
    x = torch.cat([x, code.unsqueeze(1)], 1)
    gone = torch.from_numpy(rng.random(x.shape) < share)
    gone[torch.arange(len(x)), torch.from_numpy(rng.integers(4, size=len(x)))] = False
    mixture = GaussianMixture(3, 2, sizes=[2], heavy_tails=True).double()
    torch.manual_seed(0)
    mixture.start(torch.where(gone, math.nan, x))
    order = mixture.log_weights.argsort()
    chance = mixture.class_logs.exp()[order, 1].tolist()
    assert chance == pytest.approx([0.9, 0.2], abs=0.05)  # three standard errors
    assert mixture.degrees is not None
    assert mixture.degrees[order[1]] < 2.4 and mixture.degrees[order[0]] > 8
    # The density of the numbers times that of the class given them is that of both.
    law, row, numbers = mixture.gaussians, x[:1], torch.arange(3)
    given = torch.cat([x[0, :3], torch.full([1], math.nan).double()])
    apart = log_terms(law.marginal(numbers), row[:, :3]).logsumexp(1)
    apart = apart + log_terms(law.conditional(given), row[:, 3:]).logsumexp(1)
    torch.testing.assert_close(apart, mixture.log_prob(row), rtol=1e-10, atol=0.0)


def test_draws_of_a_mixture_have_its_marginal_laws() -> None:
    density = build("student-1", 3).double()
    density.start(rows(2000, 2.0, 4))
    torch.manual_seed(0)
    drawn = density.rsample(4000)
    (part,) = density.closed_form() or []
    assert part.law.degrees is not None
    for t in range(3):
        scale = float(part.law.covariances[0, t, t]) ** 0.5
        law = stats.t(float(part.law.degrees), float(part.law.means[0, t]), scale)
        assert stats.kstest(drawn[:, t].numpy(), law.cdf).pvalue > 1e-3


def test_a_base_of_ts_is_scipys_and_its_draws_follow_the_degrees() -> None:
    base = student.Student(2)
    with torch.no_grad():
        base.raw.copy_(torch.tensor([8.0, -8.0]))
    degrees = base.degrees.detach().numpy()
    assert 1 < degrees[0] < 1.1 and 90 < degrees[1] < 100
    z = 30 * torch.randn(40, 2)
    expected = stats.t(degrees).logpdf(z.numpy()).sum(1)
    np.testing.assert_allclose(base.log_prob(z).detach().numpy(), expected, rtol=1e-5)
    torch.manual_seed(0)
    drawn = base.distribution().rsample([5000])
    assert drawn.isfinite().all()
    for t in range(2):
        assert stats.kstest(drawn[:, t].detach().numpy(), stats.t(degrees[t]).cdf).pvalue > 1e-3
    # Reparametrised: heavier tails move every draw outwards.
    (gradient,) = torch.autograd.grad(drawn.abs().log1p().mean(0).sum(), base.raw)
    assert gradient.isfinite().all() and (gradient > 0).all()


def test_a_flow_with_a_base_of_ts_learns_tails_that_one_of_normals_misses() -> None:
    torch.manual_seed(0)
    x = torch.from_numpy(stats.t(1.5).rvs([3000, 2], random_state=0))
    new = torch.from_numpy(stats.t(1.5).rvs([4000, 2], random_state=1))
    fitted = {}
    for base in ("normal", "student"):
        density = FlowDensity(architecture="maf-affine-1", base=base, hidden_dims=[8])
        fitted[base] = density.fit(x, max_steps=250, lr=4e-2, **QUICK)
    kl = stats.t(1.5).logpdf(new.numpy()).sum(1).mean() - fitted["student"].score(new)
    assert kl < 0.05 and fitted["student"].score(new) > fitted["normal"].score(new) + 1
    assert fitted["student"].flow.base.degrees.max() < 3
    assert np.quantile(fitted["student"].sample(4000).abs().numpy(), 0.99) > 8


def test_bases_of_other_architectures_and_unknown_ones_are_refused() -> None:
    with pytest.raises(ValueError, match="base must be one of normal, student, got 'cauchy'"):
        build("maf-dsf-1", 2, base="cauchy")
    for name in ("made-mog", "gmm-2", "student-1", "tan", "attention-mog"):
        with pytest.raises(ValueError, match=f"architecture '{name}' takes no base"):
            build(name, 2, base="student")


def test_a_table_with_classes_is_refused_by_architecture_student() -> None:
    table = {"x": np.arange(60.0) ** 1.5, "name": np.array(["a", "b", "c"] * 20)}
    with pytest.raises(ValueError, match="architecture 'student' takes neither context nor class"):
        FlowDensity(architecture="student-1").fit(table, **QUICK)
    assert not any(
        c.architecture.startswith("student")
        for c in candidates(5000, 2, 0, crossed=False, gaps=True, classes=True)
    )


def test_by_default_heavy_tails_are_met() -> None:
    density = FlowDensity(hidden_dims=[8], validation=rows(400, 2.0, 6))
    density.fit(rows(1600, 2.0, 5), max_steps=10, **QUICK)
    assert lost(density, 2.0) < 0.04
    assert {name for name, _ in density.parts} & {"student-1", "student-5"}
    drawn = density.sample(4000)
    assert float((drawn - torch.tensor([5.0, -1.0, 0.0])).abs().amax()) > 50
