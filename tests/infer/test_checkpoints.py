"""A refinement that was killed goes on from its checkpoint as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_naf
from pyro_naf.files.stored import ModelFileError
from pyro_naf.infer import Refinement, RefineSettings, refine
from pyro_naf.training.steps import guarded_step


def model(y: Any = 1.0) -> None:
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x * scale, 0.5), obs=torch.as_tensor(y))


def two_modes() -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    pyro.sample("y", dist.Normal(x.prod(), 0.3), obs=torch.tensor(3.0))


OPTIONS: dict[str, Any] = {
    "steps": 24,
    "num_draws": 500,
    "num_starts": 2,
    "seed": 0,
    "progress": False,
    "checkpoint_seconds": 0,
    "compile": False,
}

JUDGING = 2000

KILLED = """
import os, signal, sys
from test_checkpoints import JUDGING, OPTIONS, model
from pyro_naf.infer import RefineSettings, refine, refinement
refinement.DEFAULTS = RefineSettings(judging_draws=JUDGING)
replace, names = os.replace, []

def killed(*files):  # the new file is whole then, and has a name of its own
    names.append(files)
    if len(names) == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*files)

os.replace = killed
refine(model, **OPTIONS, checkpoint=sys.argv[1])
"""


@pytest.fixture(autouse=True)
def judged_by_fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_naf.infer.refinement.DEFAULTS", RefineSettings(judging_draws=JUDGING))


@pytest.fixture(scope="module")
def whole() -> Refinement:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("pyro_naf.infer.refinement.DEFAULTS", RefineSettings(judging_draws=JUDGING))
        return refine(model, **OPTIONS)


class Stop(Exception):
    """Stands for a kill."""


def stopped(fit: Any, step: int, monkeypatch: Any) -> None:
    """Break off a refinement where it replaces its checkpoint after a step."""
    replace, done = os.replace, []

    def broken(*names: Any) -> None:
        done.append(names)
        if len(done) == step:
            raise Stop
        replace(*names)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken)
        with pytest.raises(Stop):
            fit()


def same(one: Refinement, two: Refinement) -> bool:
    states = (one.guide.state_dict(), two.guide.state_dict())
    equal = [torch.equal(states[0][name], states[1][name]) for name in states[0]]
    return all(equal) and one.losses == two.losses and one.elbo == two.elbo


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_refinement_goes_on_and_ends_as_it_would_have(
    tmp_path: Path, whole: Refinement
) -> None:
    path = tmp_path / "run.pt"
    paths = [Path(pyro_naf.__file__).parents[1], Path(__file__).parent]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run([sys.executable, "-c", KILLED, path], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2  # and the one that was to take its place
    with pytest.raises(ModelFileError, match="has not ended: repeat the call"):
        Refinement.load(path, model)

    resumed = refine(model, **OPTIONS, checkpoint=path)
    assert resumed.steps == 24 and same(resumed, whole)
    assert list(tmp_path.iterdir()) == [path]
    again = refine(model, **OPTIONS, checkpoint=path)  # it had ended: nothing is trained
    assert same(again, whole) and same(Refinement.load(path, model), whole)


def test_a_guide_for_several_modes_goes_on_too(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "run.pt"
    whole = refine(two_modes, **OPTIONS)
    assert whole.origin is not None and whole.origin.covers
    for step in (4, 14):  # learning, and then balancing
        stopped(lambda: refine(two_modes, **OPTIONS, checkpoint=path), step, monkeypatch)
    assert same(refine(two_modes, **OPTIONS, checkpoint=path), whole)


def test_what_goes_on_is_killed_and_goes_on(
    tmp_path: Path, whole: Refinement, monkeypatch: Any
) -> None:
    first, path = tmp_path / "first.pt", tmp_path / "run.pt"
    whole.save(first)
    options: dict[str, Any] = {"steps": 8, "seed": 1, "progress": False}
    longer = Refinement.load(first, model).refine(**options)
    options |= {"checkpoint": path, "checkpoint_seconds": 0}
    stopped(lambda: Refinement.load(first, model).refine(**options), 5, monkeypatch)
    loaded = Refinement.load(first, model)
    for _ in range(2):  # trained to its end, and then read from the file
        result = loaded.refine(**options)
        assert result.steps == 32 and same(result, longer)
        assert result.before.elbo == longer.before.elbo
    with pytest.raises(ValueError, match=r"another call \(steps before=24 there, 32 here"):
        result.refine(**options)


def test_seconds_that_were_spent_before_are_counted(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "run.pt"
    options = OPTIONS | {"steps": None, "seconds": 3.0}
    stopped(lambda: refine(model, **options, checkpoint=path), 3, monkeypatch)
    content = torch.load(path, weights_only=True)
    content["budget"]["spent"] = 100.0
    torch.save(content, path)
    result = refine(model, **options, checkpoint=path)
    assert result.steps <= 3 and result.seconds > 100


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(
    whole: Refinement, tmp_path: Path, monkeypatch: Any
) -> None:
    path, step, taken = tmp_path / "run.pt", guarded_step, []

    def interrupted(*args: Any) -> Any:
        taken.append(args)
        if len(taken) == 14:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr("pyro_naf.infer.training.guarded_step", interrupted)
        assert refine(model, **OPTIONS, checkpoint=path).ended == "interrupted"
    assert same(refine(model, **OPTIONS, checkpoint=path), whole)


def test_another_model_data_call_or_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    options = OPTIONS | {"checkpoint": path, "steps": 2}
    refine(model, **options)
    for other in ((model, 2.0), (two_modes,)):
        with pytest.raises(ValueError, match=r"another model, or of other data|latents"):
            refine(*other, **options)
    with pytest.raises(ValueError, match=r"another call \(steps=2 there, 3 here\)"):
        refine(model, **options | {"steps": 3})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelFileError, match=r"run.pt"):
        refine(model, **options)
    with pytest.raises(ValueError, match="checkpoint_seconds must be at least 0"):
        refine(model, **options | {"checkpoint_seconds": -1, "checkpoint": tmp_path / "new.pt"})
    path.unlink()
    refine(model, **OPTIONS | {"steps": 2}).save(path)
    with pytest.raises(ValueError, match=r"a result that Refinement\.save wrote"):
        refine(model, **options)
