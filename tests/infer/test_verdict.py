"""Verdicts are true of Gaussians whose distance from their target is known."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_naf.infer.diagnostics import diagnose
from pyro_naf.infer.doubt import doubts
from pyro_naf.infer.joint import Joint
from pyro_naf.infer.laplace import Gaussian
from pyro_naf.infer.proposals import GaussianProposal
from pyro_naf.infer.verdict import Search, judge


def found(
    khat: float, even: float, doubt: float = 0.0, count: int = 50_000, khat_se: float = 0.06
) -> Any:
    return SimpleNamespace(
        khat=khat, ess=even * count, num_particles=count, doubt=doubt, khat_se=khat_se
    )


@pytest.mark.parametrize(
    "khat, even, doubt, count, kind",
    [
        (0.2, 0.9, 0.02, 50_000, "trust"),
        (0.6, 0.99, 0.02, 50_000, "trust"),
        (0.2, 0.92, 0.3, 50_000, "weight"),  # one latent is off by a third of its sd
        (0.2, 0.5, 0.02, 50_000, "weight"),  # the marginals are right, dependence is not
        (0.6, 0.02, 0.2, 50_000, "weight"),
        (0.6, 0.02, 0.2, 5000, "do not trust"),  # 100 effective draws
        (0.75, 0.88, 0.03, 50_000, "trust, do not weight"),
        (0.75, 0.6, 0.03, 50_000, "trust, do not weight"),
        (0.75, 0.6, 0.08, 50_000, "do not trust"),
        (1.3, 0.98, 0.05, 50_000, "trust, do not weight"),
        (1.3, 0.9, 0.02, 50_000, "do not trust"),
        (0.75, 0.98, 0.4, 50_000, "do not trust"),
        (0.6, 0.9, 0.0, 100, "trust, do not weight"),  # the threshold of a hundred draws is 0.5
    ],
)
def test_the_verdict_follows_from_khat_ess_and_doubt(
    khat: float, even: float, doubt: float, count: int, kind: str
) -> None:
    assert judge(found(khat, even, doubt, count), 0.0).kind == kind


def test_missed_mass_outweighs_even_weights() -> None:
    verdict = judge(found(0.1, 0.99), 0.4, options={"tempering": 0.02})
    assert verdict.kind == "do not trust" and "misses modes with 40% of the mass" in verdict.reason
    assert verdict.text().endswith("try num_starts=64")  # tempering was tried


def test_the_remedy_is_time_only_while_the_elbo_rises() -> None:
    bad = found(1.2, 0.01)
    noise = torch.randn(600).tolist()
    rising = [300.0 - i + noise[i] for i in range(600)]
    assert judge(bad, 0.0, rising, 20.0).text().endswith("still rising; try seconds=80")
    settled = judge(bad, 0.0, noise, 20.0).text()
    assert "seconds" not in settled and "flow='ddsf'" in settled and "mcmc_correct" in settled
    again = judge(bad, 0.0, noise, 20.0, options={"flow": "ddsf"}).text()
    assert "flow" not in again.partition("non-centred")[0].replace("non-centred", "")
    assert "--flow ddsf" in judge(bad, 0.0, noise).text(command_line=True)


def test_without_a_step_the_remedy_is_time() -> None:
    verdict = judge(found(1.2, 0.01), 0.0, [], 2.0).text()
    assert verdict.endswith("and there was no time to train; try seconds=8")


def test_few_steps_are_told_whatever_their_losses_say() -> None:
    verdict = judge(found(1.2, 0.01), 0.0, torch.randn(22).tolist(), 2.0).text()
    assert verdict.endswith("and only 22 steps were made; try seconds=8")


def test_a_search_that_was_cut_short_is_told_with_every_word_but_the_worst() -> None:
    for result in (found(0.1, 0.99), found(0.75, 0.98), found(0.3, 0.5, 0.2)):
        plain = judge(result, 0.0)
        cut = judge(result, 0.0, search=Search(1, 1))
        assert cut.kind == plain.kind != "do not trust"
        assert cut.text().endswith("other modes were looked for by one climb only; try seconds=300")
        assert judge(result, 0.0, search=Search(1, None)) == plain


def test_modes_that_are_known_and_lost_need_time() -> None:
    verdict = judge(found(0.1, 0.99), 0.4, [], 10.0, search=Search(2, None))
    assert verdict.text().endswith("misses modes with 40% of the mass; try seconds=40")


@pytest.mark.parametrize("shift, scale", [(0.0, 1.0), (0.05, 1.0), (0.3, 1.0), (0.0, 1.3)])
@pytest.mark.parametrize("exponentiate", [False, True])
def test_the_doubt_is_the_distance_of_the_marginals(
    shift: float, scale: float, exponentiate: bool
) -> None:
    torch.manual_seed(0)

    def model() -> None:
        latent = dist.LogNormal if exponentiate else dist.Normal  # the doubt sees no scale
        pyro.sample("x", latent(torch.zeros(3).double(), 1.0).to_event(1))

    joint = Joint(model)
    loc, factor = torch.zeros(3).double(), torch.ones(3).double()
    loc[1], factor[1] = shift, scale
    result = diagnose(GaussianProposal(joint, Gaussian(loc, factor, math.nan)), 20_000)
    # In standard deviations of the draws; W1 of N(0, 1) and N(0, s) is |s - 1| E|x|.
    distance = shift if shift else abs(1 / scale - 1) * (2 / math.pi) ** 0.5
    assert result.doubt == pytest.approx(distance, abs=0.03)
    kind = judge(result, 0.0).kind
    assert kind == ("trust" if distance < 0.1 else "weight")


def test_a_latent_that_never_varies_raises_no_doubt() -> None:
    values = torch.stack([torch.ones(1000), torch.randn(1000)], -1)
    weights = torch.rand(1000)
    assert doubts(values, weights / weights.sum())[0] == 0
