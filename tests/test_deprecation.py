"""Names of arguments that have changed are taken for one more version, with a warning."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal

from pyro_naf.density import FlowDensity, energy_bound, fit_energy
from pyro_naf.infer import fit_gaussian, mcmc_correct, refine, sbc
from pyro_naf.support.command_line import add_renamed


def model(y: torch.Tensor) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def planar() -> FlowDensity:
    return FlowDensity(2, architecture="planar-2")


def energy(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(-1) / 2


def exact(conditioned: Any, y: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(20)}


Y = torch.tensor(0.0)
SHORT = {"num_samples": 20, "warmup_steps": 5}

CALLS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "fit_gaussian": (
        lambda **kw: fit_gaussian(model, Y, num_starts=1, **kw),
        "seconds",
        "max_seconds",
    ),
    "sbc": (
        lambda **kw: sbc(model, exact, Y, num_simulations=10, progress=False, **kw),
        "num_draws",
        "num_samples",
    ),
    "energy_bound": (
        lambda **kw: energy_bound(planar(), energy, **kw),
        "num_samples",
        "num_particles",
    ),
    "fit_energy": (
        lambda **kw: fit_energy(planar(), energy, progress=False, **kw),
        "steps",
        "max_steps",
    ),
    "refine": (
        lambda **kw: refine(model, Y, steps=1, num_starts=1, num_draws=100, progress=False, **kw),
        "learning_rate",
        "lr",
    ),
    "mcmc_correct": (
        lambda **kw: mcmc_correct(
            model, AutoDiagonalNormal(model), Y, method="hmc", **SHORT, progress=False, **kw
        ),
        "seconds",
        "max_seconds",
    ),
}


@pytest.mark.parametrize("name", sorted(CALLS))
@pytest.mark.filterwarnings("ignore:do not trust")
def test_old_names_of_arguments_are_taken_with_a_warning_that_names_the_new(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYRO_NAF_COMPILE", "0")
    call, old, new = CALLS[name]
    with pytest.raises(TypeError, match=f"{name} got both '{new}' and '{old}'"):
        call(**{old: 20, new: 20})
    with pytest.warns(DeprecationWarning, match=f"{name} takes {new} now; '{old}' ends") as caught:
        call(**{old: 20})
    assert [w.filename for w in caught if w.category is DeprecationWarning] == [__file__]


def test_old_names_of_options_are_taken_with_a_line_that_names_the_new(
    capsys: pytest.CaptureFixture[str],
) -> None:
    parser = argparse.ArgumentParser()
    add_renamed(parser, "--max-steps", "--steps", "number of steps", type=int, default=3)
    assert [parser.parse_args(line.split()).max_steps for line in ("", "--max-steps 4")] == [3, 4]
    assert capsys.readouterr().err == ""
    assert parser.parse_args(["--steps", "5"]).max_steps == 5
    assert "--steps is --max-steps now" in capsys.readouterr().err
    assert "--steps" not in parser.format_help().split()
