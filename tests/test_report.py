import errno
import json
import os
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from pyro_naf.cli.report import FILES, RefinementReport
from pyro_naf.eight_schools import REFERENCE, Summary
from pyro_naf.infer.verdict import Verdict

#: What is written whether ArviZ is there or not.
ALWAYS = set(FILES) - {"posterior.nc"}


@dataclass
class Diagnostics:
    elbo: float
    elbo_se: float = 0.02
    khat: float = 0.8
    ess: float = 100.0
    log_evidence: float = -30.0
    num_particles: int = 1000

    def shown_elbo(self, sign: str) -> str:
        return f"{self.elbo:.3f} {sign} {self.elbo_se:.3f}"


@dataclass
class Refinement:
    guide: torch.nn.Module
    after: Diagnostics = field(default_factory=lambda: Diagnostics(-31.2, khat=float("nan")))
    losses: list[float] = field(default_factory=lambda: [34.0, 32.0, 31.5])
    steps: int = 3
    seconds: float = 1.5
    judgement: Verdict = field(default_factory=lambda: Verdict("trust", "the reason"))

    def save(self, path):
        path.write_bytes(b"a refinement")


@pytest.fixture(autouse=True)
def without_arviz(monkeypatch):
    monkeypatch.setattr(RefinementReport, "has_arviz", False)


def _report(**changes):
    torch.manual_seed(0)
    before, after = (
        {"mu": torch.randn(500) + shift, "w": torch.randn(500, 2, 2)} for shift in (0.0, 1.0)
    )
    arguments = {
        "title": "a model",
        "refinement": Refinement(torch.nn.Linear(2, 1)),
        "stages": {"before": before, "after": after},
        "gaussian": Diagnostics(-33.4),
        "reference": {"mu": Summary(9.0, 1.0, tuple(i / 4 for i in range(41)))},
        "settings": {"seed": 7},
    }
    return RefinementReport(**{**arguments, **changes})


def test_statistics_are_those_of_the_draws():
    report = _report()
    draws = report.stages["after"]["w"][:, 1, 0].double().numpy()
    found = report.statistics["w[1,0]"]["after"]
    assert found["mean"] == pytest.approx(draws.mean())
    assert found["sd"] == pytest.approx(draws.std(ddof=1))
    assert found["2.5%"] == pytest.approx(np.quantile(draws, 0.025))
    assert found["97.5%"] == pytest.approx(np.quantile(draws, 0.975))
    assert list(report.statistics) == ["mu", "w[0,0]", "w[0,1]", "w[1,0]", "w[1,1]"]


def test_reference_statistics_are_its_quantiles_at_the_levels_of_the_table():
    stages = _report().statistics
    assert stages["mu"]["reference"] == {
        "mean": 9.0,
        "sd": 1.0,
        "2.5%": 0.25,
        "25%": 2.5,
        "50%": 5.0,
        "75%": 7.5,
        "97.5%": 9.75,
    }
    assert "reference" not in stages["w[0,0]"]


def test_table_shows_every_parameter_and_what_the_refinement_gained():
    lines = _report().table().splitlines()
    assert lines[0] == "a model"
    assert lines[2].split() == ["parameter", "mean", "sd", "2.5%", "25%", "50%", "75%", "97.5%"]
    assert lines[3].split()[:2] == ["mu", "before"]
    assert lines[4].split()[0] == "after"
    assert lines[5].split() == ["reference", "9.00", "1.00", "0.25", "2.50", "5.00", "7.50", "9.75"]
    assert lines[-3:] == [
        "before  ELBO -33.400 ± 0.020   k-hat 0.80",
        "after   ELBO -31.200 ± 0.020   k-hat nan",
        "trust: the reason",
    ]
    assert len({len(line) for line in lines[2:14]}) == 1, "columns are not aligned"


@pytest.mark.parametrize("scale, shown", [(1.0, "1.00"), (1e-3, "0.00100"), (1e3, "1000")])
def test_table_shows_three_digits_of_the_sd(scale, shown):
    draws = {"x": scale * torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)}
    table = _report(stages={"before": draws, "after": draws}, reference={}).table()
    assert table.splitlines()[4].split()[2] == shown


def test_a_long_table_is_cut_and_says_so():
    draws = {"x": torch.randn(10, 100)}
    table = _report(stages={"before": draws, "after": draws}, reference={}).table()
    assert "x[39]" in table and "x[40]" not in table
    assert "... and 60 parameters more, in summary.json" in table


def test_files_hold_the_draws_the_guide_and_the_summary(tmp_path):
    report = _report()
    report.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == ALWAYS
    with np.load(tmp_path / "draws.npz", allow_pickle=False) as draws:
        assert set(draws) == {"before/mu", "before/w", "after/mu", "after/w"}
        np.testing.assert_array_equal(draws["after/w"], report.stages["after"]["w"].numpy())
    assert (tmp_path / "refinement.pt").read_bytes() == b"a refinement"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["seed"] == 7 and summary["steps"] == 3
    assert summary["before"]["elbo"] == -33.4
    assert summary["after"]["khat"] is None, "JSON has no NaN"
    assert summary["parameters"]["mu"] == report.statistics["mu"]
    assert summary["losses"] == [34.0, 32.0, 31.5]


def test_without_matplotlib_the_rest_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    report = _report()
    assert not report.has_picture
    report.write(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == ALWAYS - {"refine.png"}


def test_the_panels_choose_what_is_drawn(tmp_path):
    draws = {name: torch.rand(50) + 1 for name in REFERENCE if "[" not in name}
    draws["theta"] = torch.randn(50, 8)
    seen = []

    def panels(columns):
        seen.append(list(columns))
        return {"log tau": np.log(columns["tau"])}

    report = _report(stages={"before": draws, "after": draws}, reference=REFERENCE, panels=panels)
    report.write(tmp_path)
    assert seen == [["mu", "tau", *(f"theta[{i}]" for i in range(8))]] * 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize("name", ["draws.npz", "summary.json", "refine.png"])
def test_a_full_disk_is_an_os_error(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        _report().write(tmp_path)
    assert raised.value.errno == errno.ENOSPC
