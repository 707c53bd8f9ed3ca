import errno
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch

import pyro_naf
from pyro_naf import cli, eight_schools
from pyro_naf.cli.data import load_data
from pyro_naf.cli.report import FILES, RefinementReport
from pyro_naf.infer import Refinement, RefineSettings
from pyro_naf.support.command_line import CommandError

QUICK = ["--fit-steps", "30", "--steps", "5", "--num-samples", "200", "--no-progress"]

MODELS = """
import pyro
import pyro.distributions as dist
import torch

number = 3

def line(x, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    b = pyro.sample("b", dist.Normal(0.0, 3.0))
    s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, s), obs=y)

def one():
    pyro.sample("x", dist.Normal(0.0, 1.0))

def kinds(real, whole, truth, n, steps):
    assert real.dtype == torch.get_default_dtype() and real.shape == (2, 3)
    assert whole.dtype == torch.int64 and truth.dtype == torch.bool
    assert n.shape == () and n == 3 and steps == 2
    pyro.sample("x", dist.Normal(0.0, 1.0))

def product():
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x[0] * x[1], 0.1), obs=torch.tensor(1.0))

def nothing():
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

def discrete():
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    pyro.sample("k", dist.Bernoulli(p))

def loop():
    for i in pyro.plate("i", 3):
        pyro.sample(f"x{i}", dist.Normal(0.0, 1.0))

def mixes():
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=torch.tensor(0.0))

def unbatched():
    x = pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(torch.dot(x, x), 1.0), obs=torch.tensor(0.0))

def unplated():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(x, 1.0), obs=torch.zeros(3))

def quits():
    raise SystemExit(3)

def subsampled():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("n", 5, subsample_size=2) as rows:
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.arange(5.0)[rows])

def raises():
    pyro.sample("x", dist.Normal(0.0, 1.0))
    raise RuntimeError("it is\\nTuesday")

def impossible():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("wall", -torch.inf + 0.0 * x)

def outside():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.LogNormal(x, 1.0), obs=torch.tensor(-1.0))

calls = 0

def breaks_down():
    global calls
    calls += 1
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("wall", x * 0.0 if calls < 25 else x * torch.nan)

def stops():
    global calls
    calls += 1
    if calls >= 10:
        raise KeyError("lost")
    pyro.sample("x", dist.Normal(0.0, 1.0))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder that holds ``user_models.py`` with the models above."""
    (tmp_path / "user_models.py").write_text(MODELS)
    (tmp_path / "user_broken.py").write_text("1 / 0\n")
    (tmp_path / "user_imports.py").write_text("import not_installed\n")
    (tmp_path / "user_exits.py").write_text("raise SystemExit('no')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("pyro_naf.infer.refinement.DEFAULTS", RefineSettings(judging_draws=5000))
    monkeypatch.setattr(RefinementReport, "has_arviz", False)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("user_")]:
        del sys.modules[name]


@pytest.fixture
def line_data(here):
    x = np.linspace(-1.0, 1.0, 20)
    np.savez(here / "line.npz", x=x, y=1.0 + 2.0 * x + 0.1 * np.sin(40 * x))
    return "line.npz"


def _refuses(capsys, *arguments):
    """Run a command that must fail, and return the one line that it says."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pyro-naf: error: ") and err.endswith("\n") and err.count("\n") == 1
    return err.removeprefix("pyro-naf: error: ").rstrip()


# ------------------------------------------------------------------------------------- main job


def test_without_arguments_it_refines_eight_schools(here, capsys):
    assert cli.main(["refine", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "centred eight schools"
    for stage in ("before", "after", "reference"):
        assert sum(stage in line.split()[:2] for line in lines[3:33]) == 10
    assert any(line.startswith("before  ELBO") and "k-hat" in line for line in lines)
    assert any(line.startswith("after   ELBO") and "k-hat" in line for line in lines)
    output = here / "pyro-naf-output"
    assert lines[-1] == f"Written to {output}"
    assert {path.name for path in output.iterdir()} == set(FILES) - {"posterior.nc"}
    with np.load(output / "draws.npz", allow_pickle=False) as draws:
        assert {name: draws[name].shape for name in draws} == {
            f"{stage}/{site}": shape
            for stage in ("before", "after")
            for site, shape in {"mu": (200,), "tau": (200,), "theta": (200, 8)}.items()
        }
        assert all(np.isfinite(draws[name]).all() for name in draws)
    again = Refinement.load(output / "refinement.pt", eight_schools.model)
    assert again.judgement.text(command_line=True) in out and again.steps == 5
    summary = json.loads((output / "summary.json").read_text())
    assert summary["steps"] == len(summary["losses"]) == 5
    assert summary["parameters"]["tau"]["reference"]["mean"] == pytest.approx(3.602)


@pytest.mark.parametrize("flow, dtype", [("dsf", "float64"), ("ddsf", "float32")])
def test_a_user_model_with_data_is_refined(line_data, here, capsys, flow, dtype):
    arguments = ["--data", line_data, "--flow", flow, "--dtype", dtype, "--output", "out", *QUICK]
    assert cli.main(["refine", "user_models:line", *arguments]) == 0
    out = capsys.readouterr().out
    assert out.startswith("user_models:line\n")
    assert "reference" not in out
    with np.load(here / "out" / "draws.npz") as draws:
        assert set(draws) == {f"{stage}/{site}" for stage in ("before", "after") for site in "abs"}
        assert {str(draws[name].dtype) for name in draws} == {dtype}
    summary = json.loads((here / "out" / "summary.json").read_text())
    assert summary["flow"] == flow and summary["data"] == line_data


def test_the_fit_finds_the_posterior_of_a_line(line_data, here):
    arguments = ["--data", line_data, "--fit-steps", "300", *QUICK[2:]]
    assert cli.main(["refine", "user_models:line", *arguments]) == 0
    summary = json.loads((here / "pyro-naf-output" / "summary.json").read_text())
    found = {name: stages["before"]["mean"] for name, stages in summary["parameters"].items()}
    assert found["a"] == pytest.approx(1.0, abs=0.1)
    assert found["b"] == pytest.approx(2.0, abs=0.1)


def test_a_model_of_one_dimension_is_refined(here):
    assert cli.main(["refine", "user_models:one", *QUICK]) == 0
    assert (here / "pyro-naf-output" / "refine.png").stat().st_size > 0


def test_the_same_seed_gives_the_same_draws_and_another_seed_others(here):
    draws = []
    for seed, folder in [("3", "a"), ("3", "b"), ("4", "c")]:
        assert (
            cli.main(["refine", "user_models:one", "--seed", seed, "--output", folder, *QUICK]) == 0
        )
        with np.load(here / folder / "draws.npz") as archive:
            draws.append(archive["after/x"])
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_both_modes_are_found_where_pyros_gaussian_has_one(here):
    arguments = ["--fit-steps", "200", "--steps", "150", "--no-progress", "--num-samples", "2000"]
    assert cli.main(["refine", "user_models:product", *arguments]) == 0
    with np.load(here / "pyro-naf-output" / "draws.npz") as draws:
        shares = {stage: (draws[f"{stage}/x"][:, 0] > 0).mean() for stage in ("before", "after")}
    assert shares["before"] in (0.0, 1.0) and 0.4 < shares["after"] < 0.6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_arrays_arrive_as_tensors_of_their_kind(here, dtype):
    arrays = {
        "real": np.ones((2, 3), np.float16),
        "whole": np.arange(3, dtype=np.int8),
        "truth": np.array([True, False]),
        "n": np.int32(3),
        "steps": np.int64(2),  # the model's own argument, though refine() has one of that name
    }
    np.savez(here / "data.npz", **arrays)
    arguments = ["--data", "data.npz", "--dtype", dtype, *QUICK]
    assert cli.main(["refine", "user_models:kinds", *arguments]) == 0


TABLE = """school,treated,size,score,day,gap
north,True,3,3.5,2020-01-01,
south,False,2,2.5,2020-01-02,1.0
north,False,4,1.5,2020-01-03,2.0
"""


def test_columns_of_a_table_arrive_as_the_arguments_that_have_their_names(here):
    (here / "rows.csv").write_text(TABLE)
    seen = {}

    def model(school, treated, size, score):
        seen.update(school=school, treated=treated, size=size, score=score)

    data = load_data("rows.csv", model, torch.float64)
    model(**data)
    assert seen["school"].tolist() == [0, 1, 0]
    assert seen["treated"].dtype == torch.bool
    assert seen["treated"].tolist() == [True, False, False]
    assert seen["size"].dtype == torch.int64
    assert seen["score"].dtype == torch.float64 and seen["score"].tolist() == [3.5, 2.5, 1.5]


def test_columns_go_to_the_arguments_of_a_modules_forward(here):
    (here / "rows.csv").write_text(TABLE)

    class Model(torch.nn.Module):
        def forward(self, score):
            return score

    assert list(load_data("rows.csv", Model(), torch.float64)) == ["score"]


def lines(header, *cells):
    return "\n".join([header, *cells, ""])


@pytest.mark.parametrize(
    "text, message",
    [
        (lines("x", *(f"{i}%" for i in range(30))), "write plain numbers"),
        (lines("x", *(f"${i}.50" for i in range(30))), "write plain numbers"),
        (lines("x", *(str(i) for i in range(29)), "high"), "write plain numbers"),
        (lines("x", "0", "1", "2", "inf", "4"), "1 infinite values"),
    ],
)
def test_numbers_that_are_not_plain_are_no_levels(here, text, message):
    (here / "rows.csv").write_text(text)
    with pytest.raises(CommandError, match=message):
        load_data("rows.csv", lambda x: None, torch.float64)


@pytest.mark.parametrize(
    "argument, message",
    [
        ("gap", "column 'gap' of rows.csv has 1 missing cells"),
        ("day", "column 'day' of rows.csv holds dates; give the model numbers"),
        ("x", "no column of rows.csv has the name of an argument of the model: the columns are"),
    ],
)
def test_columns_that_no_model_can_take_are_refused(here, argument, message):
    (here / "rows.csv").write_text(TABLE)
    model = eval(f"lambda {argument}: None")
    with pytest.raises(CommandError, match=message):
        load_data("rows.csv", model, torch.float64)


def test_a_model_is_fitted_to_a_table(here, capsys):
    x = np.linspace(-1.0, 1.0, 20)
    rows = "\n".join(f"{a},{1 + 2 * a + 0.1 * np.sin(40 * a)},text" for a in x)
    (here / "rows.csv").write_text(f"x,y,more\n{rows}\n")
    assert cli.main(["refine", "user_models:line", "--data", "rows.csv", *QUICK]) == 0
    assert "after" in capsys.readouterr().out


@pytest.mark.parametrize(
    "model", ["discrete", "loop", "mixes", "subsampled", "unbatched", "unplated"]
)
def test_a_model_is_taken_as_nuts_takes_it(here, capsys, model):
    """Not vectorised, with discrete latents, sequential or subsampled plates."""
    assert cli.main(["refine", f"user_models:{model}", *QUICK]) == 0
    assert "after" in capsys.readouterr().out


def test_a_file_is_named_and_what_lies_beside_it_can_be_imported(here, capsys):
    folder = here / "models"
    folder.mkdir()
    parts = "import pyro.distributions as dist\nPRIOR = dist.Normal(0.0, 1.0)\n"
    (folder / "user_parts.py").write_text(parts)
    (folder / "user_file.py").write_text(
        "import pyro, user_parts\ndef model():\n    pyro.sample('x', user_parts.PRIOR)\n"
    )
    assert cli.main(["refine", "models/user_file.py:model", *QUICK]) == 0
    assert capsys.readouterr().out.startswith("models/user_file.py:model\n")


def test_a_refinement_is_loaded_goes_on_and_is_corrected(here, capsys):
    first = ["refine", "user_models:one", "--steps", "5", "--output", "a", *QUICK[:2], *QUICK[4:]]
    assert cli.main(first) == 0
    shown = capsys.readouterr().out
    load = ["refine", "user_models:one", "--load", "a/refinement.pt", "--full-rank"]
    assert cli.main([*load, "--output", "b", *QUICK[4:]]) == 0
    verdict = shown.splitlines()[-3]
    assert verdict in capsys.readouterr().out
    further = ["--steps", "3", "--correct", "--output", "c", "--checkpoint", "c.pt", *QUICK[4:]]
    assert cli.main([*load, *further]) == 0
    assert Refinement.load("c.pt", importlib.import_module("user_models").one).steps == 8
    assert "exact   trust: the chains agree" in capsys.readouterr().out
    assert json.loads((here / "c" / "summary.json").read_text())["steps"] == 8
    with np.load(here / "c" / "draws.npz") as draws:
        assert draws["exact/x"].shape == (4000,)


def test_an_interrupt_in_training_writes_the_best_so_far(here, capsys, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_naf.infer.training.Training.run", interrupted)
    assert cli.main(["refine", "user_models:one", *QUICK]) == 130
    out, err = capsys.readouterr()
    assert "Written to" in out and err.endswith("interrupted; these are the best so far\n")


def test_progress_shows_the_step_the_elbo_and_the_time_left(here, capsys):
    assert cli.main(["refine", "user_models:one", *QUICK[:-1]]) == 0
    err = capsys.readouterr().err
    assert "30/30" in err and "refine, looking for modes" in err
    assert "step=1, ELBO=" in err and "refine, done: 100%" in err


def test_without_matplotlib_one_line_says_how_to_get_the_picture(here, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *rest: None if name == "matplotlib" else find_spec(name, *rest),
    )
    assert cli.main(["refine", "user_models:one", *QUICK]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert "picture" in last and "pip install 'pyro_naf[plots]'" in last
    assert not (here / "pyro-naf-output" / "refine.png").exists()


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_version_and_help_exit_with_status_0(capsys, option):
    with pytest.raises(SystemExit) as raised:
        cli.main([option])
    assert raised.value.code == 0
    out = capsys.readouterr().out
    assert (pyro_naf.__version__ if option == "--version" else "refine") in out


# ------------------------------------------------------------------------------------- bad input


MISTAKES = {
    "": "arguments are required: command",
    "paint": "invalid choice: 'paint'",
    "refine --steps 0": "--steps: must be from 1 to 2^32 - 1, not 0",
    "refine --steps -3": "--steps: must be from 1",
    "refine --steps many": "--steps: must be an integer, not 'many'",
    "refine --fit-steps 0": "--fit-steps: must be from 1",
    "refine --seed -1": "--seed: must be from 0",
    "refine --draws 1": "--draws: must be from 2",
    "refine --flow iaf": "--flow: invalid choice: 'iaf'",
    "refine --dtype int8": "--dtype: invalid choice: 'int8'",
    "refine --colour": "unrecognized arguments: --colour",
    "refine --data x.npz": "--data needs a model of your own",
    "refine user_models": "name the model as module:function or file.py:function, not 'user_models",
    "refine no_such.py:one": "there is no file no_such.py",
    "refine user_broken.py:one": "ZeroDivisionError: division by zero (user_broken.py, line 1)",
    "refine user_models:one --load none.pt": "No such file or directory: 'none.pt'",
    "refine user_models:one --load user_models.py": "is not a refinement of pyro_naf",
    "refine --seconds 0": "--seconds: must be positive and finite, not 0",
    "refine no_such:one": "no module named 'no_such'",
    "refine .user_models:one": "cannot import '.user_models': TypeError",
    "refine user_models.sub:one": "no module named 'user_models.sub'",
    "refine user_models:two": "has no 'two'",
    "refine user_models:number": "user_models:number is not a function but int",
    "refine user_broken:one": "ZeroDivisionError: division by zero (user_broken.py, line 1)",
    "refine user_imports:one": "cannot import 'user_imports': ModuleNotFoundError: No module",
    "refine user_exits:one": "cannot import 'user_exits': SystemExit: no",
    "refine user_models:line": "does not fit its data: missing a required argument: 'x'",
    "refine user_models:nothing": "the model has no continuous latent variables",
    "refine user_models:quits": "SystemExit: 3",
    "refine user_models:raises": "RuntimeError: it is (user_models.py, line ",
    "refine user_models:impossible": "log-density of wall is -inf at the starting values",
    "refine user_models:outside": "log-density of y is nan at the starting values",
    "refine user_models:breaks_down": "the fit broke down: ValueError: the log-density is",
    "refine user_models:stops": "KeyError: 'lost' (user_models.py, line ",
    "refine user_models:one --output user_models.py": "is a file, not a folder",
    "refine user_models:one --output user_models.py/x": "user_models.py",
    "refine user_models:one --output .": "holds user_broken.py, which is not of this program",
    "refine user_models:one --output /dev/null": "is a device, not a folder",
    f"refine user_models:one --output {'n' * 300}": "name too long",
}


@pytest.mark.parametrize("command", MISTAKES, ids=lambda command: command[-40:])
def test_a_mistake_gets_one_line_and_status_2(here, capsys, command):
    arguments = command.split()
    progress = ["--no-progress"] if "refine" in arguments else []
    assert MISTAKES[command] in _refuses(capsys, *arguments, *progress)
    assert not (here / "pyro-naf-output").exists()


def _npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _zip_of_text():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.txt", "hello")
    return buffer.getvalue()


def _corrupt():
    content = bytearray(_npz(x=np.arange(1000.0)))
    content[4000] ^= 255
    return bytes(content)


FLOATS = np.array([1.0, np.nan, np.inf, -np.inf])


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "data.npz is not a whole .npz file"),
        (b"x,y\n1,2\n", "data.npz is not a whole .npz file"),
        (_npz(x=np.arange(1000.0))[:5000], "data.npz is not a whole .npz file"),
        (_corrupt(), "cannot read 'x' in data.npz: Bad CRC-32"),
        (_npy(np.ones(3)), "data.npz is not an .npz file but a single array"),
        (_zip_of_text(), "'x.txt' in data.npz must hold real numbers, integers or booleans"),
        (_npz(x=np.array([{}], object)), "cannot read 'x' in data.npz: Object arrays"),
        (_npz(x=np.array(["a"])), "'x' in data.npz must hold real numbers, integers or booleans"),
        (_npz(x=np.ones(2, complex)), "or booleans, not complex128"),
        (_npz(x=FLOATS), "'x' in data.npz holds 1 NaN and 2 infinite values"),
        (_npz(x=np.array([1e300])), "holds values too large for torch.float32; try --dtype"),
        (_npz(x=np.array([2**63], np.uint64)), "'x' in data.npz holds integers beyond 64 bits"),
        (_npz(x=np.ones((0, 2))), "'x' in data.npz is empty, of shape (0, 2)"),
        (_npz(z=np.ones(3)), "user_models:line does not fit its data: missing a required"),
        (_npz(x=np.ones(3), z=np.ones(3)), "got an unexpected keyword argument 'z'"),
        (_npz(x=np.ones(3), y=np.ones(4)), "site 'y': Value is not broadcastable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_data_gets_one_line_and_status_2(here, capsys, content, message):
    (here / "data.npz").write_bytes(content)
    assert message in _refuses(capsys, "refine", "user_models:line", "--data", "data.npz")


@pytest.mark.parametrize("name, message", [("none.npz", "No such file"), (".", "directory")])
def test_data_that_cannot_be_opened_is_named(here, capsys, name, message):
    said = _refuses(capsys, "refine", "user_models:line", "--data", name)
    assert message in said and repr(name) in said


def test_an_output_folder_with_other_files_is_refused(here, capsys):
    (here / "out").mkdir()
    (here / "out" / "thesis.tex").write_text("mine")
    said = _refuses(capsys, "refine", "user_models:one", "--output", "out", *QUICK)
    assert "holds thesis.tex" in said
    assert [path.name for path in (here / "out").iterdir()] == ["thesis.tex"]


def test_a_disk_that_fills_up_leaves_the_old_output(here, capsys, monkeypatch):
    old = _old_output(here / "out")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez_compressed", full)
    said = _refuses(capsys, "refine", "user_models:one", "--output", "out", *QUICK)
    assert "No space left on device" in said
    assert _bytes(here / "out") == old


# ---------------------------------------------------------------------------------- interruption


def _old_output(folder):
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text("old")
    return _bytes(folder)


def _bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_interrupt_gets_one_line_and_status_130(here, capsys, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    old = _old_output(here / "out")
    monkeypatch.setattr(cli.refine, "_fit", interrupted)
    assert cli.main(["refine", "user_models:one", "--output", "out"]) == 130
    assert capsys.readouterr().err == "pyro-naf: interrupted\n"
    assert _bytes(here / "out") == old


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_a_run_that_is_killed_leaves_the_old_output(here, name):
    number = getattr(signal, name, None)
    if number is None or sys.platform == "win32":
        pytest.skip(f"no {name} on this system")
    if name == "SIGINT" and signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("started in the background, where children ignore it too")
    old = _old_output(here / "out")
    command = [sys.executable, "-m", "pyro_naf", "refine", "user_models:one", "--output", "out"]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(pyro_naf.__file__))}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stderr is not None
        while b"ELBO" not in process.stderr.read1():  # the fit is under way
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == (130 if name == "SIGINT" else -number)
    if name == "SIGINT":
        assert said.endswith(b"pyro-naf: interrupted\n") and b"Traceback" not in said
    assert _bytes(here / "out") == old
    assert not [path.name for path in here.iterdir() if path.name.startswith(".out")]
