"""Claims about how guides are compared on posteriors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import posteriors
import pytest
import torch
from distances import sliced_wasserstein, wasserstein
from fits import GUIDES, TURNKEY, fit, names
from targets import known


def test_distances_are_in_units_of_the_references_width() -> None:
    reference = torch.randn(20_000, 2).double() @ torch.tensor([[3.0, 2.0], [0.0, 0.1]]).double()
    shifted = reference + torch.tensor([3.0, 0.0])
    expected = torch.stack([3 / reference[:, 0].std(), torch.zeros(())])
    torch.testing.assert_close(wasserstein(shifted, reference), expected)
    # E |u_1| = 2 / pi of a direction u in the plane, and the shift's length once it is whitened.
    length = float((3.0**2 / (9 - 36 / 4.01)) ** 0.5)
    assert sliced_wasserstein(shifted, reference) == pytest.approx(2 / math.pi * length, rel=0.15)


def test_directions_without_variance_are_left_out() -> None:
    share = torch.rand(1000, 1).double()
    simplex, other = torch.cat([share, 1 - share], -1), torch.cat([share / 2, 1 - share / 2], -1)
    assert 0.1 < sliced_wasserstein(other, simplex) < 2


def test_one_dimension_is_sliced_as_well() -> None:
    reference = torch.randn(4000, 1).double()
    assert sliced_wasserstein(reference + 0.1, reference) == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("name", [*TURNKEY, *GUIDES])
def test_every_guide_is_fitted_and_measured(name: str) -> None:
    target = known()["ring"]
    assert name in names(target)
    # The turnkey fit looks for a Gaussian first.
    record = posteriors.measure(name, target, seconds=2.0 if name in TURNKEY else 0.5)
    assert "error" not in record and record["steps"] >= 1
    assert math.isfinite(record["w1"] + record["sliced_w1"] + record["khat"] + record["elbo"])
    assert sum(record["modes"]) == pytest.approx(1)


def test_guides_for_several_modes_are_left_out_where_there_is_one() -> None:
    assert names(known()["banana"]) == ["refine", *GUIDES]


def test_what_a_guide_cannot_do_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any) -> None:
        raise ValueError("no such guide")

    monkeypatch.setitem(GUIDES, "AutoDSFNormal", broken)
    with pytest.raises(ValueError, match="no such guide"):
        fit("AutoDSFNormal", known()["banana"], 0.1)
    record = posteriors.measure("AutoDSFNormal", known()["banana"], 0.1)
    assert record == {"error": "training: ValueError('no such guide')"}


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "posteriors.json"
    results = posteriors.Results(path, 3.0)
    results.put("ring", posteriors.EXACT, {"w1": 0.1, "log_evidence": -1.0})
    results.put("ring", "refine", {"w1": 0.2, "elbo": -1.25, "khat": 0.8, "ess": 0.9})
    results.put("ring", "Pyro NAF", {"error": "training"})
    again = posteriors.Results(path, 3.0)
    assert again.all == results.all and json.loads(path.read_text())["seconds"] == 3.0
    assert again.gap("ring", "refine") == 0.25
    assert again.table("w1").splitlines()[-1] == "| ring | 0.200 | failed | 0.100 |"
    assert "0.800: MISSED | 0.250: MISSED" in posteriors.bars(again)
    posteriors.chart(again)
    with pytest.raises(SystemExit, match=r"fits of 3.0 s, not of 4.0"):
        posteriors.Results(path, 4.0)
