"""The numbers that refine decides by are checked, act, and stay with the result."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest

from pyro_naf.infer import Refinement, RefineSettings, refine


def model() -> None:
    pyro.sample("x", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"search_share": 1.5}, ValueError, "search_share must be a number above 0 and below 1, "),
        ({"kept_share": math.nan}, ValueError, "kept_share must be .* got nan"),
        ({"fewest_steps": 0}, ValueError, "fewest_steps must be a whole number of at least 1, "),
        ({"fewest_steps": 10.0}, TypeError, "fewest_steps must be a whole number"),
        ({"largest_shift": "0.1"}, TypeError, "largest_shift must be a number above 0, got '0.1'"),
        ({"good_khat": math.inf}, ValueError, "good_khat must be a finite number, got inf"),
        (
            {"largest_shift": 0.01},
            ValueError,
            "uneven_shift must not exceed largest_shift, got 0.05 and 0.01; set both",
        ),
        ({"even_ess": 0.99}, ValueError, "even_ess must not exceed nearly_even_ess, got 0.99"),
        ({"fewest_steps": 5000}, ValueError, "fewest_steps must not exceed fewest_steps_large"),
        ({"kept_share": 0.95}, ValueError, "search_share and kept_share must leave time for tr"),
        ({"weighted_ess": True}, TypeError, "weighted_ess must be a number above 0, got True"),
    ],
)
def test_a_number_out_of_its_range_is_named(
    wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        RefineSettings(**wrong)


def test_settings_of_another_kind_are_refused() -> None:
    given: Any = {"search_share": 0.1}
    with pytest.raises(TypeError, match=r"settings must be a RefineSettings, got \{'search_share'"):
        refine(model, settings=given, progress=False)


def test_the_verdict_follows_the_settings_in_the_file_too(tmp_path: Path) -> None:
    options: Any = dict(steps=2, num_draws=500, num_starts=2, seed=0)
    options |= dict(compile=False, progress=False)
    usual = refine(model, settings=RefineSettings(judging_draws=500), **options)
    strict = RefineSettings(
        weighted_ess=1e6, largest_shift=1e-9, uneven_shift=1e-9, judging_draws=500
    )
    path = tmp_path / "run.pt"
    found = refine(model, settings=strict, checkpoint=path, **options)
    assert usual.verdict.startswith("trust")
    assert "fewer than 1e+06" in found.verdict
    assert Refinement.load(path, model).verdict == found.verdict
    further = found.refine(steps=2, seed=1, progress=False)
    assert further.origin is not None and further.origin.settings == strict
    with pytest.raises(ValueError, match=r"settings=.*'weighted_ess': 1000000.0.* there, None"):
        refine(model, checkpoint=path, **options)


def test_files_with_a_setting_of_a_former_version_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = refine(model, steps=2, num_draws=500, num_starts=2, seed=0, progress=False)
    with monkeypatch.context() as former:
        former.setattr(RefineSettings, "changed", lambda self: {"starts_beside": 8})
        result.save(tmp_path / "old.pt")
    origin = Refinement.load(tmp_path / "old.pt", model).origin
    assert origin is not None and origin.settings == RefineSettings()
