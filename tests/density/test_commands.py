"""fit, score and sample: from file to file, with one line for whatever is wrong."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_naf import cli
from pyro_naf.density import FlowDensity, training
from pyro_naf.density.architectures import NAMES, unused_options
from pyro_naf.density.commands.files import read_table
from pyro_naf.density.sklearn_api import SETTINGS

QUICK = [
    "--model", "maf-dsf-1", "--hidden", "16", "--hidden-units", "8", "--max-steps", "60",
    "--no-progress", "--no-picture", "--force",
]  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with ``x.npy``, 500 rows of two columns in awkward units."""
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(500, 2)) * [1e-3, 1e5] + [2020, -3e6]
    np.save(tmp_path / "x.npy", rows)
    return tmp_path


def run(*arguments: str) -> int:
    return cli.main([str(a) for a in arguments])


def refuses(capsys: Any, *arguments: str) -> str:
    """Run a command that must fail, and return the one line that it says."""
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith("pyro-naf: note: ")]
    assert out == "" and len(lines) == 1 and lines[0].startswith("pyro-naf: error: ")
    return lines[0].removeprefix("pyro-naf: error: ")


# ----------------------------------------------------------------------------------------- fit etc.


def test_fit_score_and_sample_go_from_file_to_file(here: Path, capsys: Any) -> None:
    assert run("fit", "x.npy", *QUICK, "--output", "out") == 0
    out = capsys.readouterr().out
    assert "maf-dsf-1" in out and "60 steps" in out and f"Written to {here / 'out'}" in out
    assert {p.name for p in (here / "out").iterdir()} == {"model.pt", "summary.json"}
    summary = json.loads((here / "out" / "summary.json").read_text())
    assert summary["rows"] == 500 and summary["steps"] == 60

    assert run("score", "out", "x.npy", "--output", "scores.csv") == 0
    out = capsys.readouterr().out
    mean = float(re.match(r"log-likelihood (\S+) ±", out).group(1))  # type: ignore[union-attr]
    truth = -np.log(1e-3 * 1e5) - np.log(2 * np.pi) - 1
    assert mean == pytest.approx(truth, abs=0.4)
    scores = np.loadtxt("scores.csv", skiprows=1)
    assert scores.shape == (500,) and scores.mean() == pytest.approx(mean, abs=1e-4)
    density = FlowDensity.load("out/model.pt")
    np.testing.assert_allclose(scores, density.log_prob(np.load("x.npy")), rtol=1e-5)

    for suffix in ("npy", "npz", "csv", "pt"):
        assert run("sample", "out/model.pt", "-n", "300", "--output", f"new.{suffix}") == 0
    drawn = np.load("new.npy")
    assert drawn.shape == (300, 2) and abs(drawn[:, 0].mean() - 2020) < 1e-3
    np.testing.assert_array_equal(np.load("new.npz")["x"], drawn)
    np.testing.assert_array_equal(torch.load("new.pt", weights_only=True).numpy(), drawn)
    np.testing.assert_array_equal(np.loadtxt("new.csv", delimiter=",", skiprows=1), drawn)


def test_the_same_seed_gives_the_same_model(here: Path) -> None:
    models = []
    for seed, folder in (("1", "a"), ("1", "b"), ("2", "c")):
        assert run("fit", "x.npy", *QUICK, "--seed", seed, "--output", folder) == 0
        models.append(FlowDensity.load(here / folder / "model.pt").score(np.load("x.npy")))
    assert models[0] == models[1] != models[2]


def test_columns_of_a_csv_are_chosen_by_name_and_found_again(here: Path, capsys: Any) -> None:
    rng = np.random.default_rng(0)
    lines = ["city;x;size;y"]
    lines += [f"Paris;{a:.4f};{b:.4f};{a + 0.1 * c:.4f}" for a, b, c in rng.normal(size=(400, 3))]
    Path("x.csv").write_text("\n".join(lines) + "\n")
    chosen = ["--columns", "y", "--context", "x"]
    said = refuses(capsys, "fit", "x.csv", *QUICK)
    assert said == (
        "x.csv holds text in column city ('Paris' in line 2), 1 value in 400 rows; leave it out "
        "with --exclude city"
    )
    assert run("fit", "x.csv", *QUICK, *chosen, "--output", "out") == 0
    density = FlowDensity.load(here / "out" / "model.pt")
    assert (density.columns, density.context_columns) == (["y"], ["x"])
    capsys.readouterr()
    # The columns in another order, and another name more.
    table = np.loadtxt("x.csv", delimiter=";", skiprows=1, usecols=(1, 2, 3))
    header = "y;more;x"
    np.savetxt("y.csv", table[:, [2, 1, 0]], delimiter=";", header=header, comments="", fmt="%.4f")
    scores = []
    for name in ("x.csv", "y.csv"):
        assert run("score", "out", name) == 0
        scores.append(capsys.readouterr().out.splitlines()[0])
    assert scores[0] == scores[1]
    assert run("sample", "out", "-n", "3", "--context-file", "y.csv", "--output", "s.csv") == 0
    drawn = np.loadtxt("s.csv", delimiter=",", skiprows=1)
    assert Path("s.csv").read_text().startswith("x,y\n") and drawn.shape == (1200, 2)
    np.testing.assert_allclose(drawn[::3, 0], table[:, 0], atol=1e-6)
    capsys.readouterr()
    assert "no column 'z'" in refuses(capsys, "fit", "x.csv", *QUICK, "--columns", "z")


def test_text_dates_and_kinds_of_columns_go_from_file_to_file(here: Path, capsys: Any) -> None:
    rng = np.random.default_rng(0)
    lines = ['"price, EUR",region,day,wind,visits']
    for i in range(80):
        south = rng.random() < 0.4
        price, wind = np.exp(south + 0.5 * rng.normal()), (300 + 90 * rng.normal()) % 360
        region = "south" if south else "north"
        lines.append(f"{price:.4f},{region},2020-01-{1 + i % 28:02d},{wind:.3f},{rng.poisson(2)}")
    Path("t.csv").write_text("\n".join(lines) + "\n")
    command = ["fit", "t.csv", "--model", "gaussian", "--output", "out", *QUICK[-3:]]
    assert run(*command, "--periodic", "wind=360", "--integer", "visits") == 0
    err = capsys.readouterr().err
    assert "note: took price, EUR as positive; day as date; region as categorical" in err
    summary = json.loads((here / "out" / "summary.json").read_text())
    assert summary["kinds"] == ["positive", "categorical", "date", "periodic", "integer"]
    assert run("sample", "out", "-n", "40", "--output", "s.csv") == 0
    drawn = Path("s.csv").read_text().splitlines()
    assert drawn[0] == lines[0] and drawn[1].split(",")[1] in ("north", "south")
    assert run("score", "out", "s.csv") == 0
    out = capsys.readouterr().out
    assert float(out.splitlines()[1].split()[1]) == pytest.approx(summary["validation"], abs=1.5)
    assert "must be a .csv file: the model" in refuses(capsys, "sample", "out", "--output", "s.npy")
    for option, message in (
        ("--periodic wind", "--periodic must be like angle=360, not 'wind'"),
        ("--bounded wind=1", "--bounded must be like share=0:1, not 'wind=1'"),
        ("--positive winds", "t.csv has no column 'winds'"),
        ("--positive region", "column region holds text, and cannot be positive"),
        ("--context region", "t.csv holds text or classes in column region, which is no context"),
        ("--dequantise", "--dequantise is for numbers alone: name columns with --integer"),
    ):
        assert message in refuses(capsys, *command, *option.split())


def test_missing_values_are_counted_named_and_dropped_on_request(here: Path, capsys: Any) -> None:
    rows = np.load("x.npy")
    rows[3, 0], rows[7, 1] = np.nan, np.inf
    np.save("bad.npy", rows)
    said = refuses(capsys, "fit", "bad.npy", *QUICK)
    assert said == (
        "bad.npy holds 1 NaN and 1 infinite values, in rows 3, 7; --drop-missing leaves them out"
    )
    assert run("fit", "bad.npy", *QUICK, "--drop-missing", "--output", "out") == 0
    assert "note: left out 2 of 500 rows with missing values" in capsys.readouterr().err
    assert "in rows 3, 7" in refuses(capsys, "score", "out", "bad.npy")
    assert run("score", "out", "bad.npy", "--drop-missing") == 0
    assert "498 rows" in capsys.readouterr().out
    Path("bad.csv").write_text("a,b\n1,?\n2,3\n\n,4\n5,6\n")
    assert "2 NaN and 0 infinite values, in lines 2, 5" in refuses(capsys, "fit", "bad.csv", *QUICK)


def test_discrete_columns_are_noted_and_dequantised(here: Path, capsys: Any) -> None:
    rows = np.load("x.npy")
    rows[:, 1] = np.round(rows[:, 1], -5)
    np.save("d.npy", rows)
    assert run("fit", "d.npy", *QUICK, "--output", "out") == 0
    assert "d.npy takes few different values in column 1" in capsys.readouterr().err
    assert run("fit", "d.npy", *QUICK, "--dequantise", "--output", "out") == 0
    err = capsys.readouterr().err
    assert "note: dequantised column 1" in err and "few different" not in err
    # A density of steps, summed over them, is the probability of the values: scores need no noise
    # of the user's, and are those of the validation rows.
    assert FlowDensity.load(here / "out" / "model.pt").noise == {1: 1e5}
    assert run("score", "out", "d.npy") == 0
    found = float(capsys.readouterr().out.split()[1])
    summary = json.loads((here / "out" / "summary.json").read_text())
    assert found == pytest.approx(summary["validation"], abs=0.5)
    assert run("sample", "out", "-n", "200", "--output", "s.npy") == 0
    drawn = np.load("s.npy")
    assert (drawn[:, 1] % 1e5 == 0).all() and len(np.unique(drawn[:, 0])) == 200
    # Columns of a .csv are noted by their names, but only where there is a density at all.
    np.savetxt("d.csv", rows, delimiter=",", header="a,b", comments="")
    assert run("fit", "d.csv", *QUICK, "--output", "other") == 0
    err = capsys.readouterr().err
    assert (
        "d.csv takes few different values in column b" in err and "pyro-naf fit --dequantise" in err
    )
    rows[:, 0] = 1
    np.save("d.npy", rows)
    assert run("fit", "d.npy", *QUICK, "--output", "other") == 2
    assert "note" not in capsys.readouterr().err


def test_half_precision_and_no_checkpoint_to_resume_from(here: Path, capsys: Any) -> None:
    torch.save(torch.randn(300, 2).bfloat16(), "h.pt")
    assert run("fit", "h.pt", *QUICK, "--output", "out", "--resume") == 0
    assert "note: out holds no run that was interrupted: this one" in capsys.readouterr().err
    assert run("score", "out", "h.pt") == 0
    assert run("sample", "out", "-n", "5", "--output", "s.npy") == 0
    assert np.load("s.npy").dtype == np.float32


def test_repeated_rows_are_noted(here: Path, capsys: Any) -> None:
    rows = np.load("x.npy")
    np.save("r.npy", np.vstack([rows, rows[:50]]))
    assert run("fit", "r.npy", *QUICK) == 0
    assert "note: 50 of 550 rows of r.npy occur before" in capsys.readouterr().err


def test_a_published_set_is_prepared_and_set_beside_its_row(here: Path, capsys: Any) -> None:
    from test_datasets import power_lines

    (here / "raw").mkdir()
    (here / "raw" / "household_power_consumption.txt").write_text("\n".join(power_lines(2000)))
    command = ["fit", "--dataset", "power", "--data-root", "raw", *QUICK]
    assert "gives (1620, 180, 200) rows to train" in refuses(capsys, *command)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setitem(
            __import__("pyro_naf").density.datasets.tables.ROWS, "power", (1620, 180, 200)
        )
        assert run(*command[:-9], "--model", "maf-ddsf-5", "--hidden", "8", "--max-steps", "5",
                   "--no-progress") == 0  # fmt: skip
    out = capsys.readouterr().out
    assert re.search(r"test log-likelihood -?\d+\.\d+ ± ", out) and "published 0.62 ± .01" in out
    assert "tan 0.60 ± .01" in out and "TraDE 0.73" in out


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "command, message",
    [
        ("fit", "name a file of rows, or a published set with --dataset"),
        ("fit none.npy", "No such file or directory: 'none.npy'"),
        (
            "fit x.doc",
            "x.doc must be one of .npy, .npz, .csv, .pt, .tsv, .txt, .gz, .zip",
        ),
        ("fit x.npy --model vae", "architecture must be one of made, made-mog"),
        ("fit x.npy --model planar-4", "planar flows have no inverse, so that data cannot be"),
        ("fit x.npy --dropout 2", "dropout must lie in [0, 1), got 2.0"),
        ("fit x.npy --validation 2", "validation must lie in [0, 1), or be rows, got 2.0"),
        ("fit x.npy --steps 0", "--steps: must be from 1 to 2^32 - 1, not 0"),
        ("fit x.npy --lr 0", "--lr: must be positive and finite, not 0"),
        ("fit x.npy --hidden 8,a", "--hidden: must be an integer, not 'a'"),
        ("fit x.npy --columns 2", "x.npy has no column '2'; there are 0 to 1"),
        ("fit x.npy --columns 0,0", "column 0 of x.npy is named twice"),
        ("fit x.npy --columns 0,1 --context 1", "column 1 of x.npy is named twice"),
        ("fit x.npy --context 0,1", "--context names every column of x.npy: none is left"),
        ("fit x.npy --dataset power", "name either DATA or --dataset, not both"),
        ("fit --dataset power", "--dataset needs --data-root"),
        ("fit --dataset power --data-root .", "household_power_consumption.txt is not in ."),
        ("fit x.npy --output .", "holds x.npy, which is not of this program"),
        ("fit x.npy --device tpu", "--device tpu cannot be used"),
        ("score out x.npy", "No such file or directory: 'out'"),
        (
            "score x.npy x.npy",
            "x.npy is not a model of pyro_naf: it is truncated, or not such a file",
        ),
        ("sample x.npy --output s.txt", "s.txt must be one of .npy, .npz, .csv, .pt"),
        ("sample x.npy", "the following arguments are required: --output"),
    ],
)
def test_a_mistake_gets_one_line_and_status_2(
    command: str, message: str, here: Path, capsys: Any
) -> None:
    assert message in refuses(capsys, *command.split())
    assert [p.name for p in here.iterdir()] == ["x.npy"]


def table_texts() -> dict[str, tuple[bytes, list[str], float]]:
    """Files of 40 rows of two columns, their names, and the mean of the second column, 2.5."""
    rows = [(i, 2 + (i % 2)) for i in range(40)]
    points = "".join(f"{a / 7:.3f},{b}.0\n" for a, b in rows)
    commas = "".join(f"{a / 7:.3f};{b},0\n".replace(".", ",") for a, b in rows)
    tabs = points.replace(",", "\t")
    named = "größe,wert\n" + points
    return {
        "utf8.csv": (named.encode(), ["größe", "wert"], 2.5),
        "bom.csv": (named.encode("utf-8-sig"), ["größe", "wert"], 2.5),
        "latin.csv": (named.encode("cp1252"), ["größe", "wert"], 2.5),
        "comma.csv": (("a;b\n" + commas).encode(), ["a", "b"], 2.5),
        "tabs.tsv": (("a\tb\n" + tabs).encode(), ["a", "b"], 2.5),
        "tabs.tsv.gz": (gzip.compress(("a\tb\n" + tabs).encode()), ["a", "b"], 2.5),
        "packed.csv.gz": (gzip.compress(("a,b\n" + points).encode()), ["a", "b"], 2.5),
        "bare.csv": (commas.encode(), [], 2.5),
        "old mac.csv": (("a,b\r\n" + points.replace("\n", "\r\n")).encode(), ["a", "b"], 2.5),
    }


def test_text_files_are_read_whatever_their_encoding_decimals_and_packing(here: Path) -> None:
    for name, (content, columns, mean) in table_texts().items():
        Path(name).write_bytes(content)
        table = read_table(name)
        assert (table.columns or []) == columns, name
        assert table.rows.shape == (40, 2) and float(table.rows[:, 1].mean()) == mean, name
        assert table.lines is not None and table.lines[0] == (2 if columns else 1)
        noted = (
            None if name != "latin.csv" else "latin.csv is not in UTF-8, and was read as Latin-1"
        )
        assert table.note == noted


def test_packed_files_that_are_damaged_or_too_large_are_refused(
    here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = gzip.compress(b"a,b\n" + b"1,2\n" * 3000)
    for name, content, message in (
        ("cut.csv.gz", packed[:-9], "is truncated: its packed content has no end"),
        ("no.csv.gz", b"a,b\n1,2\n", "cannot be unpacked: it is damaged, or not packed so"),
    ):
        Path(name).write_bytes(content)
        assert refuses(capsys, "fit", name, *QUICK) == f"{name} {message}"
    Path("bomb.csv.gz").write_bytes(packed)
    monkeypatch.setattr("pyro_naf.density.commands.text_files.UNPACKED", 100)
    said = refuses(capsys, "fit", "bomb.csv.gz", *QUICK)
    assert said.startswith("bomb.csv.gz would unpack to more than")


def files_that_are_no_tables() -> dict[str, tuple[bytes, str]]:
    return {
        "a.npy": (b"", "a.npy cannot be read: "),
        "b.npy": (b"\x93NUMPY garbage", "b.npy cannot be read: "),
        "c.npz": (b"PK garbage", "c.npz cannot be read: "),
        "d.pt": (b"garbage", "d.pt is not a whole file of tensors"),
        "e.csv": (b"a,b\n", "e.csv holds no rows"),
        "f.csv": (b"a,b\n1,2\n3\n", "f.csv has 1 cells in line 3, 2 in the first"),
        "g.csv": (b"\xff\xfe\x00", "g.csv is not whole: line 1 is no utf-16"),
        "h.csv": (
            b"1,2\n",
            "h.csv must have at least 2 rows to train on, got 1 row, of which 1 held out",
        ),
        "i.csv": (b"1,2\n1,3\n1,4\n", "i.csv is constant in column 0"),
        "j.csv": (b"a,b\n1,2\n1,3\n1,4\n", "j.csv is constant in column a"),
        "k.csv": (b"", "k.csv holds no rows"),
        "l.csv": (b"a,1\nb,2\n", "l.csv holds text in column 0 ('a' in line 1)"),
        "m.csv": (b"a,b,c\n1,2\n", "m.csv has 2 cells in line 2, 3 in the first"),
    }


def test_files_that_are_no_tables_are_refused(here: Path, capsys: Any) -> None:
    for name, (data, message) in files_that_are_no_tables().items():
        Path(name).write_bytes(data)
        assert message in refuses(capsys, "fit", name, *QUICK), name
    np.savez("n.npz", a=np.ones(3), b=np.ones(3))
    assert "one array, or one named x; it holds a, b" in refuses(capsys, "fit", "n.npz")
    np.save("m.npy", np.array(["a", "b"]))
    assert "m.npy must hold real numbers, got <U1" in refuses(capsys, "fit", "m.npy")


def test_whether_the_first_line_names_the_columns_can_be_said(here: Path, capsys: Any) -> None:
    rows = np.load("x.npy")[:100]
    np.savetxt("years.csv", rows, delimiter=",", header="2019,2020", comments="")
    np.savetxt("named.csv", rows, delimiter=",", header="a,b", comments="")
    for guess, expected in (([], 101), (["--no-header"], 101), (["--header"], 100)):
        assert run("fit", "years.csv", *QUICK, *guess, "--output", "out") == 0
        assert json.loads((here / "out" / "summary.json").read_text())["rows"] == expected
    assert FlowDensity.load(here / "out" / "model.pt").columns == ["2019", "2020"]
    capsys.readouterr()
    assert run("score", "out", "years.csv", "--header") == 0
    assert "100 rows" in capsys.readouterr().out
    assert "holds text in column 0" in refuses(capsys, "fit", "named.csv", *QUICK, "--no-header")
    assert "are for .csv files, not x.npy" in refuses(capsys, "fit", "x.npy", *QUICK, "--header")


def test_all_options_of_an_architecture_can_be_said(here: Path) -> None:
    ddsf = {
        "hidden_dims": ("--hidden", "8,8"), "hidden_units": ("--hidden-units", 4),
        "num_layers": ("--num-layers", 3), "sharpness": ("--sharpness", 2.0),
        "affine": ("--affine", True), "residual": ("--residual", True),
        "linear": ("--linear", "lu"), "activation": ("--activation", "elu"),
        "dropout": ("--dropout", 0.1), "head_dim": ("--head-dim", 2), "whiten": ("--whiten", True),
        "conditioner": ("--conditioner", "made"), "num_heads": ("--num-heads", 2),
        "base": ("--base", "student"),
    }  # fmt: skip
    nsf = {"bins": ("--bins", 5), "bound": ("--bound", 3.0)}
    every = {"maf-ddsf-1": ddsf, "maf-nsf-1": nsf, "maf-mog-1": {"components": ("--components", 3)}}
    params = dict[str, Any]()
    for model, said in every.items():
        options = [str(a) for pair in said.values() for a in pair if a is not True]
        command = ["fit", "x.npy", *QUICK[-3:], "--max-steps", "5", *options, "--model", model]
        assert run(*command, "--output", "out") == 0
        params = FlowDensity.load(here / "out" / "model.pt").get_params()
        expected = {k: value for k, (_, value) in said.items()}
        expected |= {"hidden_dims": [8, 8]} if said is ddsf else {}
        assert {k: params[k] for k in expected} == expected
    known = {name for said in every.values() for name in said}
    others = {"input_dim", "context_dim", "architecture", "kernel", "prior_rows", *SETTINGS}
    assert set(params) - known == others


def test_one_dimension_and_a_vector_work(here: Path) -> None:
    np.save("v.npy", np.random.default_rng(0).normal(size=300))
    assert run("fit", "v.npy", *QUICK, "--output", "out") == 0
    assert run("sample", "out", "-n", "5", "--output", "s.npy") == 0
    assert np.load("s.npy").shape == (5, 1)


def test_a_context_of_the_wrong_width_is_refused(here: Path, capsys: Any) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 4))
    np.save("w.npy", rows)
    assert run("fit", "w.npy", *QUICK, "--columns", "0,1", "--context", "2,3", "--output", "o") == 0
    capsys.readouterr()
    columns = ["--columns", "0,1"]
    said = refuses(capsys, "score", "o", "w.npy", *columns, "--context", "2")
    assert said == "context must have shape (N, 2), got (300, 1)"
    said = refuses(capsys, "score", "o", "w.npy", *columns)
    assert said == "context must be of width 2, got None"
    said = refuses(capsys, "sample", "o", "--context-file", "w.npy", "--output", "s.npy")
    assert said == "context must have shape (..., 2), got (300, 4)"
    assert "context must be of width 2, got None" in refuses(
        capsys, "sample", "o", "--output", "s.npy"
    )


def test_options_of_another_architecture_are_refused(here: Path, capsys: Any) -> None:
    for model, option, named in (
        ("maf-dsf-1", "--bins 5", "bins"),
        ("maf-nsf-1", "--hidden-units 5", "hidden-units"),
        ("gaussian", "--hidden 5", "hidden"),
        ("gmm-2", "--dropout 0.5", "dropout"),
        ("iaf-dsf-1", "--whiten", "whiten"),
        ("auto", "--components 3", "components"),
        ("attention-dsf", "--head-dim 2", "head-dim"),
        ("attention-mog", "--base student", "base"),
        ("student-2", "--num-heads 2", "num-heads"),
    ):
        said = refuses(capsys, "fit", "x.npy", "--model", model, *option.split())
        assert said == f"--{named} is not for --model {model}, which makes no use of it"
    for name in NAMES:
        unused_options(name if NAMES[name] is not None else f"{name}-1", {})  # each has its list


# ------------------------------------------------------------------------------------ nothing lost


def test_a_full_disk_is_one_line_and_the_old_model_stands(
    here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("fit", "x.npy", *QUICK, "--output", "out") == 0
    before = (here / "out" / "model.pt").read_bytes()
    capsys.readouterr()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    said = refuses(capsys, "fit", "x.npy", *QUICK, "--output", "out")
    assert "No space left on device" in said
    said = refuses(capsys, "sample", "out", "--output", "s.npy")
    assert "No space left on device" in said
    assert (here / "out" / "model.pt").read_bytes() == before
    assert {p.name for p in (here / "out").iterdir()} == {"model.pt", "summary.json"}


def test_a_model_is_replaced_only_on_request(here: Path, capsys: Any) -> None:
    fit = ["fit", "x.npy", "--model", "gaussian", "--no-picture", "--output", "out"]
    assert run(*fit) == 0
    before = (here / "out" / "model.pt").read_bytes()
    capsys.readouterr()
    said = refuses(capsys, *fit)
    assert said.startswith("out holds a model: replace it with --force, or name another folder")
    assert "out holds a model" in refuses(capsys, *fit, "--resume")
    assert (here / "out" / "model.pt").read_bytes() == before
    assert run(*fit, "--columns", "0", "--force") == 0
    assert FlowDensity.load(here / "out" / "model.pt").width == 1


def test_ctrl_c_keeps_the_best_and_a_larger_budget_goes_on(
    here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = training._Run.write_checkpoint, [0]

    def interrupt(run: Any) -> None:
        write(run)
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt

    fit = ["fit", "x.npy", *QUICK[:-1], "--checkpoint-seconds", "0", "--output", "out"]
    fit[fit.index("60")] = "1000"
    monkeypatch.setattr(training._Run, "write_checkpoint", interrupt)
    assert run(*fit) == 130
    told = capsys.readouterr()
    assert "interrupted: the best density so far is kept" in told.err and "Written to" in told.out
    summary = json.loads((here / "out" / "summary.json").read_text())
    assert (summary["steps"], summary["stopped"]) == (200, "interrupted")
    assert {p.name for p in (here / "out").iterdir()} == {
        "model.pt",
        "summary.json",
        "checkpoint.pt",
    }
    kept = FlowDensity.load(here / "out" / "model.pt")
    assert kept.score(np.load("x.npy")) == pytest.approx(summary["validation"], abs=0.3)
    assert "go on with --resume, begin anew with --force" in refuses(capsys, *fit)
    fit[fit.index("1000")] = "400"
    assert run(*fit, "--resume") == 0
    summary = json.loads((here / "out" / "summary.json").read_text())
    assert (summary["steps"], summary["stopped"]) == (400, "budget")
    assert {p.name for p in (here / "out").iterdir()} == {"model.pt", "summary.json"}


def test_ctrl_c_before_anything_is_known_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Run, "evaluate", interrupt)
    assert run("fit", "x.npy", *QUICK, "--output", "out") == 130
    assert not (here / "out").exists() or not any((here / "out").iterdir())


def test_pictures_are_drawn_by_fit_and_later(
    here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    assert run("fit", "x.npy", "--model", "gaussian", "--output", "out") == 0
    picture = here / "out" / "fit.png"
    whole = picture.read_bytes()
    assert whole.startswith(b"\x89PNG")
    assert run("plot", "out") == 0  # with the data that the summary names
    assert picture.read_bytes() == whole
    for name in ("a.svg", "b.pdf"):
        assert run("plot", "out/model.pt", "x.npy", "--output", name) == 0
        assert Path(name).stat().st_size > 1000
    (here / "x.npy").rename("y.npy")
    capsys.readouterr()
    assert run("plot", "out") == 0
    assert "note: no data to compare with: name a file" in capsys.readouterr().err
    assert picture.read_bytes() != whole
    assert ".png, .pdf, .svg" in refuses(capsys, "plot", "out", "--output", "a.txt")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'pyro_naf[plots]'" in refuses(capsys, "plot", "out")
    picture.unlink()
    assert run("fit", "y.npy", "--model", "gaussian", "--output", "out", "--force") == 0
    assert "note: the picture was left out: pictures need matplotlib" in capsys.readouterr().err
    assert (here / "out" / "model.pt").exists() and not picture.exists()


def test_kill_9_during_fit_and_resume_give_the_same_model(here: Path, capsys: Any) -> None:
    long = [*QUICK[:-1], "--checkpoint-seconds", "0", "--validation", "0.2"]
    long[long.index("60")] = "300"
    assert run("fit", "x.npy", *long, "--output", "whole") == 0
    command = [sys.executable, "-m", "pyro_naf", "fit", "x.npy", *long, "--output", "killed"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (here / "killed" / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    capsys.readouterr()
    said = refuses(capsys, "fit", "x.npy", *long, "--output", "killed")
    assert said.startswith("killed holds the checkpoint of a run that was interrupted: go on with")
    assert run("fit", "x.npy", *long, "--output", "killed", "--resume") == 0
    one, two = (FlowDensity.load(here / name / "model.pt") for name in ("whole", "killed"))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not (here / "killed" / "checkpoint.pt").exists()
