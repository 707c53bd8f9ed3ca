"""Awkward files: each is read as the table that it holds, or refused in one sentence.

The text files are in ``files/``; packed and binary ones are made here.
"""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import random
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_readers_fuzz import damaged, modest

from pyro_naf import cli
from pyro_naf.density import tables
from pyro_naf.density.commands.files import Reading, Table, read_table
from pyro_naf.support.command_line import CommandError

FILES = Path(__file__).parent / "files"
PLAIN = (FILES / "plain.csv").read_bytes()

WEIGHT = [61.5, 72.25, 58.0, 90.75, 81.5, 66.0]
HEIGHT = [171.0, 180.0, 165.0, 192.0, 177.0, 168.0]
REGION = ["north", "south", "north", "north", "south", "south"]
NAN = None


def people(weight: str = "weight", height: str = "height") -> dict[str, list[Any]]:
    return {weight: WEIGHT, height: HEIGHT}


def days(first: int, number: int = 6, month: int = 1) -> list[datetime.datetime]:
    return [datetime.datetime(2020, month, first + i) for i in range(number)]


#: What each file of text holds; with it, what the user is told.
READ: dict[str, Any] = {
    "plain.csv": people(),
    "no_header.csv": people("0", "1"),
    "crlf.csv": people(),
    "cr.csv": people(),
    "bom.csv": people(),
    "utf16.csv": people(),
    "utf16_bare.csv": people(),
    "latin1.csv": (people(height="größe"), "is not in UTF-8, and was read as Latin-1"),
    "latin_commas.csv": (people("größe", "wert"), "is not in UTF-8"),
    "semicolon.csv": people(),
    "tab.tsv": people(),
    "pipe.dat": people(),
    "aligned.txt": people(),
    "sep_line.csv": people(),
    "quotes.csv": people("Weight, kg", 'he said "tall"'),
    "newlines.csv": {"weight": WEIGHT, "note": [f"{name}\nwing" for name in REGION]},
    "duplicate_names.csv": people(height="weight.1"),
    "empty_names.csv": {"weight": WEIGHT, "x1": [0, 1, 4, 9, 16, 25], "height": HEIGHT},
    "trailing_delimiter.csv": people(),
    "trailing_in_rows.csv": people(),
    "comments.csv": people(),
    "numpy_header.txt": people(),
    "one_column.csv": {"body weight": WEIGHT},
    "counted.csv": (people(), "counts its rows in the first column, which was left out"),
    "currency.csv": {"price": ["1.5 $", "2.25 $", "3 $"], "weight": [61.5, 72.25, 58]},
    "units.csv": (people(), "has units in line 2, left out: kg, cm"),
    "scientific.csv": people() | {"height": [h / 100 for h in HEIGHT]},
    "thousands.csv": {"income": [1234.5, 987, 12000.75, 1234567], "share": [0.25, 0.5, 0.75, 0.5]},
    "swiss.csv": {"income": [1234.5, 987, 12000.75], "share": [0.25, 0.5, 0.75]},
    "decimal_comma.csv": {
        "income": [1234.5, 987.25, 12000.75],
        "count": [1200, 2500, 3750],
        "share": [0.25, 0.5, 0.75],
    },
    "minus.csv": {"weight": WEIGHT[:3], "change": [-1.5, 2.0, -0.5]},
    "missing.csv": {
        "a": [1, NAN, 3, NAN],
        "b": [2.5, NAN, NAN, 1],
        "c": [NAN, 2, 4, 5],
        "d": [4, NAN, 5, 6],
        "e": [5, 4, NAN, 7],
        "f": [6, NAN, 7, NAN],
    },
    "class_gaps.csv": {"region": ["north", NAN, "south", "north", NAN, "south"], "weight": WEIGHT},
    "booleans.csv": {
        "weight": WEIGHT,
        "adult": ["True", "False", "True", "True", "False", "True"],
    },
    "codes.csv": {"plz": ["01067", "10115", "01067", "10115", "01067", "80331"], "weight": WEIGHT},
    "dates_points.csv": {"day": days(10), "weight": WEIGHT},
    "dates_american.csv": {
        "day": [day.replace(hour=7, minute=15) for day in days(10)],
        "weight": WEIGHT,
    },
    "dates_gaps.csv": {
        "day": [*days(10, 1), NAN, *days(28, 1, month=2)],
        "weight": WEIGHT[:3],
    },
    "dates_iso.csv": {
        "day": days(10),
        "moment": [
            datetime.datetime(2020, 1, 9, 23, 30) + i * datetime.timedelta(hours=25)
            for i in range(6)
        ],
        "weight": WEIGHT,
    },
}

#: What is said of each file of text that is refused.
REFUSED = {
    "ragged_short.csv": "has 1 cells in line 4, 2 in the first",
    "ragged_long.csv": "has 3 cells in line 4, 2 in the first",
    "footer.csv": "has 1 cells in line 8, 2 in the first",
    "row_names.csv": "has 3 cells in line 2, 2 in the first",
    "open_quote.csv": "has a quote in line 3 that is not closed",
    "only_header.csv": "holds no rows",
    "empty.csv": "holds no rows",
    "blank.csv": "holds no rows",
    "nul.csv": r"is no text: it holds the character '\x00' in line 4",
    "not_latin1.csv": "is neither in UTF-8 nor in Latin-1: line 2 holds the byte 0x81",
    "infinite.csv": "holds 0 NaN and 1 infinite values, in line 3; --drop-missing leaves them out",
    "one_row.csv": "must have at least 2 rows to train on, got 1 row, of which 1 held out for "
    "validation (n_samples=1)",
    "mixed_marks.csv": "holds text in column weight ('72,25' in line 3) among numbers; correct "
    "it, or leave the column out with --exclude weight",
    "word.csv": "holds text in column weight ('broken' in line 5) among numbers; correct it, or "
    "leave the column out with --exclude weight",
    "number_among_names.csv": "holds text in column 0 ('weight' in line 1) among numbers; correct "
    "it, or leave the column out with --exclude 0; say --header where the first line names the "
    "columns",
    "several_texts.csv": "holds text in column name ('Ann' in line 2), 6 values in 6 rows; leave "
    "it out with --exclude name; likewise column cabin",
    "too_many_codes.csv": "holds text in column plz ('01067' in line 2), 6 values in 6 rows; leave "
    "it out with --exclude plz",
    "thousands_unclear.csv": "holds an unclear decimal mark in column income ('1,234' in line 2, "
    "1234 or 1.234); say --decimal . or --decimal ,",
    "huge_integers.csv": "holds an integer of too many digits in column id ('9007199254740993' "
    "in line 2); leave it out with --exclude id",
    "dates_unclear.csv": "holds dates in column day ('01/02/2020' in line 2, which is 2020-02-01 "
    "or 2020-01-02); write dates as 2020-12-31",
    "dates_mixed.csv": "holds dates of two kinds in column day ('2020-01-10' in line 2, and "
    "'11.01.2020' further down); write dates as 2020-12-31",
}


def content(table: Table) -> dict[str, list[Any]]:
    """The columns by name, None where a cell is missing."""
    assert not table.text, table.text
    gone, found = table.missing(), dict[str, list[Any]]()
    for i in range(table.rows.shape[1]):
        values = table.cells[i].tolist() if i in table.cells else table.rows[:, i].tolist()
        name = table.columns[i] if table.columns else str(i)
        found[name] = [None if m else v for v, m in zip(values, gone[:, i].tolist(), strict=True)]
    return found


def refuses(capsys: Any, path: Path, *options: str) -> str:
    """What a fit says of a file, after its name."""
    command = ["fit", str(path), "--model", "gaussian", "--no-progress", *options]
    assert cli.main([*command, "--output", str(path.parent / "out")]) == 2
    lines = [s for s in capsys.readouterr().err.splitlines() if "pyro-naf: note: " not in s]
    assert len(lines) == 1 and lines[0].startswith("pyro-naf: error: "), lines
    return lines[0].removeprefix("pyro-naf: error: ").replace(str(path), path.name)


def test_every_file_of_the_set_is_named_here() -> None:
    assert {path.name for path in FILES.iterdir()} == {*READ, *REFUSED}


@pytest.mark.parametrize("name", READ)
def test_a_text_file_is_read_right(name: str) -> None:
    expected, note = READ[name] if isinstance(READ[name], tuple) else (READ[name], None)
    table = read_table(str(FILES / name))
    assert content(table) == expected
    assert table.note is None if note is None else note in table.note


@pytest.mark.parametrize("name", REFUSED)
def test_a_text_file_that_cannot_be_read_right_is_refused(
    name: str, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / name
    path.write_bytes((FILES / name).read_bytes())
    said = refuses(capsys, path)
    assert said.removeprefix(name).removeprefix(" ") == REFUSED[name]
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_what_a_file_leaves_open_can_be_said() -> None:
    def read(name: str, **how: Any) -> dict[str, list[Any]]:
        return content(read_table(str(FILES / name), Reading(**how)))

    assert read("thousands_unclear.csv", decimal=",")["income"] == [1.234, 2.345, 3.456]
    assert read("thousands_unclear.csv", decimal=".")["income"] == [1234, 2345, 3456]
    assert read("no_header.csv", header=True)["61.5"] == WEIGHT[1:]
    text = [f"{h:.0f}" for h in HEIGHT]
    assert read("plain.csv", as_text={"height"}) == {"weight": WEIGHT, "height": text}


def test_a_text_column_is_told_from_numbers_when_it_is_scored(tmp_path: Path, capsys: Any) -> None:
    rows = [f"{2 + i % 2},{i * i % 7 + 0.5}" for i in range(40)]
    path, other = tmp_path / "a.csv", tmp_path / "b.csv"
    path.write_text("\n".join(["grade,x", *rows]) + "\n")
    other.write_text("x,more,grade\n1.5,9,3\n2.5,9,NA\n")  # a single value, and a number
    out = str(tmp_path / "out")
    fit = ["fit", str(path), "--model", "gmm-1", "--categorical", "grade", "--no-picture"]
    assert cli.main([*fit, "--no-progress", "--output", out]) == 0
    assert cli.main(["sample", out, "-n", "5", "--output", "-"]) == 0
    told = capsys.readouterr()
    assert [line[:2] for line in told.out.splitlines()[-5:]] <= ["3,"] * 5
    assert {line.split(",")[0] for line in told.out.splitlines()[-5:]} <= {"2", "3"}
    assert cli.main(["score", out, str(other)]) == 0
    assert "2 rows" in capsys.readouterr().out


def test_columns_written_as_integers_are_such(tmp_path: Path, capsys: Any) -> None:
    for name, whole in (("plain.csv", [1]), ("missing.csv", [0, 2, 3, 4, 5]), ("tab.tsv", [1])):
        assert list(read_table(str(FILES / name)).whole) == whole
    path, out = tmp_path / "t.csv", str(tmp_path / "out")
    path.write_text(
        "n,x,sold\n" + "".join(f"{i % 3},{i * i % 31 / 7},{i % 2}\n" for i in range(60))
    )
    assert cli.main(["fit", str(path), "--model", "gaussian", "--no-picture", "--output", out]) == 0
    assert (
        "took n as integer from 0 to 2; sold as integer: where that is wrong, say --cont"
        in capsys.readouterr().err
    )
    assert cli.main(["sample", out, "-n", "5", "--output", "-"]) == 0
    for line in capsys.readouterr().out.splitlines()[-5:]:
        assert line.split(",")[0].lstrip("-").isdigit()
    assert cli.main(["sample", out, "-n", "5", "--output", str(tmp_path / "d.npy")]) == 0
    assert (np.load(tmp_path / "d.npy")[:, [0, 2]] % 1 == 0).all()


# ---------------------------------------------------------------------------------- packed, foreign


def packed(*names: str) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in names:
            archive.writestr(name, PLAIN)
    return target.getvalue()


@pytest.mark.parametrize(
    "name, data, message",
    [
        ("t.csv.gz", gzip.compress(PLAIN), None),
        ("T.CSV", PLAIN, None),
        ("t.csv.zip", packed("t.csv"), None),
        ("t.zip", packed("folder/t.csv", "read.me"), None),
        ("t.zip", packed("a.csv", "b.csv"), "must hold one text file, got 2: unpack it first"),
        ("t.csv.gz", gzip.compress(PLAIN)[:-9], "is truncated: its packed content has no end"),
        ("t.csv.gz", PLAIN, "cannot be unpacked: it is damaged, or not packed so"),
        ("t.csv.zip", PLAIN, "cannot be unpacked: it is damaged, or not packed so"),
        ("t.csv", gzip.compress(PLAIN), "is no text but packed by gzip: give it the suffix of its"),
        ("t.csv", packed("t.csv"), "is no text but a zip archive, or an Excel file: give it the"),
        ("t.parquet", PLAIN, "cannot be read as .parquet: "),
        ("t.feather", PLAIN, "cannot be read as .feather: "),
        ("t.xlsx", PLAIN, "cannot be read as .xlsx: "),
        ("t.xlsx", packed("t.csv"), "cannot be read as .xlsx: "),
        ("t.xls", PLAIN, "must be one of .npy, .npz, .csv, .pt, .tsv"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 12 else "",
)
def test_packed_and_misnamed_files_are_read_or_refused(
    name: str, data: bytes, message: str | None, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    if message is None:
        assert content(read_table(str(tmp_path / name))) == people()
        return
    with pytest.raises(CommandError) as error:
        read_table(str(tmp_path / name))
    assert str(error.value).removeprefix(f"{tmp_path / name} ").startswith(message)


def test_a_folder_is_no_table(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "t.csv").mkdir()
    assert "Is a directory" in refuses(capsys, tmp_path / "t.csv")


def test_a_wide_file_is_read(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(5, 3000))
    path = tmp_path / "wide.csv"
    lines = [",".join(f"column {i}" for i in range(3000))]
    path.write_text("\n".join([*lines, *(",".join(map(repr, r.tolist())) for r in rows)]))
    table = read_table(str(path))
    np.testing.assert_array_equal(table.rows.numpy(), rows)
    assert table.columns is not None and table.columns[-1] == "column 2999"


def test_tables_pass_through_pipes(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows from standard input are fitted; draws on standard output are scored."""

    def run(*arguments: str, given: bytes = b"") -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        assert cli.main([*arguments]) == 0
        return capsys.readouterr().out

    out = str(tmp_path / "out")
    run("fit", "-", "--model", "gaussian", "--no-progress", "--output", out, given=PLAIN)
    drawn = run("sample", out, "-n", "7", "--output", "-")
    assert drawn.startswith("weight,height\n") and drawn.count("\n") == 8
    scores = run("score", out, "-", "--output", "-", given=drawn.encode())
    assert scores.startswith("log_likelihood\n") and scores.count("\n") == 8


def test_columns_are_left_out(tmp_path: Path, capsys: Any) -> None:
    path = FILES / "empty_names.csv"
    fit = ["fit", str(path), "--model", "gaussian", "--no-progress", "--output"]
    assert cli.main([*fit, str(tmp_path / "out"), "--exclude", "x1"]) == 0
    assert cli.main(["sample", str(tmp_path / "out"), "-n", "2", "--output", "-"]) == 0
    assert capsys.readouterr().out.splitlines()[-3] == "weight,height"
    for option, message in (
        ("x1,weight,height", "--exclude names every column of"),
        ("z", "has no column 'z'; there are weight, x1, height"),
    ):
        assert cli.main([*fit, str(tmp_path / "no"), "--exclude", option]) == 2
        assert message in capsys.readouterr().err
    assert cli.main([*fit, str(tmp_path / "no"), "--columns", "x1", "--exclude", "x1"]) == 2
    assert "column x1 of" in capsys.readouterr().err


# ------------------------------------------------------------------ parquet, feather, Excel, frames


def arrow_table() -> Any:
    pyarrow = pytest.importorskip("pyarrow")
    moments = [datetime.datetime(2020, 1, 1, 12), None, datetime.datetime(2020, 7, 1)]
    return pyarrow.table(
        {
            "whole": pyarrow.array([1, None, 3]),
            "flag": [True, None, False],
            "sure": [True, True, False],
            "class": pyarrow.array(["a", None, "b"]).dictionary_encode(),
            "text": ["x", None, "y"],
            "day": [datetime.date(2020, 1, 1), None, datetime.date(2021, 1, 1)],
            "moment": pyarrow.array(moments, pyarrow.timestamp("us", "Europe/Berlin")),
            "price": [decimal.Decimal("1.5"), None, decimal.Decimal("2.25")],
            "half": pyarrow.array(np.array([1, 2, 3], np.float16)),
        }
    )


ARROW = {
    "whole": [1, None, 3],
    "flag": [True, None, False],
    "sure": [True, True, False],
    "class": ["a", None, "b"],
    "text": ["x", None, "y"],
    "day": [datetime.date(2020, 1, 1), None, datetime.date(2021, 1, 1)],
    "moment": [datetime.datetime(2020, 1, 1, 12), None, datetime.datetime(2020, 7, 1)],
    "price": [1.5, None, 2.25],
    "half": [1, 2, 3],
}


@pytest.mark.parametrize("suffix", ["parquet", "feather"])
def test_columns_of_arrow_are_read_right(suffix: str, tmp_path: Path) -> None:
    import pyarrow.feather as feather
    import pyarrow.parquet as parquet

    path = str(tmp_path / f"t.{suffix}")
    (parquet.write_table if suffix == "parquet" else feather.write_feather)(arrow_table(), path)
    assert content(read_table(path)) == ARROW


def test_columns_of_arrow_that_are_no_values_are_refused(tmp_path: Path, capsys: Any) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    for name, values, message in (
        (
            "tags",
            [[1], [2, 3]],
            "column tags must hold numbers, text, booleans, dates or durations, got ndarr",
        ),
        (
            "tags",
            [{"a": 1}, {"a": 2}],
            "column tags must hold numbers, text, booleans, dates or durations, got ",
        ),
        (
            "id",
            [2**53 + 1, None],
            "an integer of too many digits in column id; leave it out with --",
        ),
    ):
        table = pyarrow.table({"x": [1.0, 2.0], name: values})
        parquet.write_table(table, tmp_path / "t.parquet")
        assert message in refuses(capsys, tmp_path / "t.parquet")
        assert content(read_table(str(tmp_path / "t.parquet")).select(["x"])) == {"x": [1, 2]}
    parquet.write_table(table.slice(0, 0), tmp_path / "t.parquet")
    assert refuses(capsys, tmp_path / "t.parquet") == "t.parquet holds no rows"


def workbook(tmp_path: Path, fill: Callable[[Any, Any], None]) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    fill(book, book.active)
    book.save(tmp_path / "t.xlsx")
    return tmp_path / "t.xlsx"


def rows_of_people(sheet: Any) -> None:
    sheet.append(["weight", "height"])
    for row in zip(WEIGHT, HEIGHT, strict=True):
        sheet.append(row)


def two_sheets(book: Any, sheet: Any) -> None:
    rows_of_people(sheet)
    book.create_sheet("more").append([1, 2])


def empty_rows(book: Any, sheet: Any) -> None:
    sheet["B3"], sheet["D3"] = "weight", "height"
    for i, (weight, height) in enumerate(zip(WEIGHT, HEIGHT, strict=True)):
        sheet.cell(5 + 2 * i, 2, weight)
        sheet.cell(5 + 2 * i, 4, height)


def mixed(book: Any, sheet: Any) -> None:
    sheet.append(["day", "flag", "income", "name", "id"])
    for i in range(6):
        sheet.append([datetime.date(2020, 1, 10 + i), i % 2 == 0, 0.5 + i, REGION[i], f"0{i % 2}7"])
    sheet["C3"] = None


@pytest.mark.parametrize(
    "fill, expected, note",
    [
        (two_sheets, people(), "has the sheets Sheet, more: read the first, see --sheet"),
        (empty_rows, people(), None),
        (
            mixed,
            {
                "day": days(10),
                "flag": ["True", "False"] * 3,
                "income": [0.5, None, 2.5, 3.5, 4.5, 5.5],
                "name": REGION,
                "id": ["007", "017"] * 3,
            },
            None,
        ),
    ],
)
def test_sheets_are_read_right(fill: Any, expected: Any, note: str | None, tmp_path: Path) -> None:
    table = read_table(str(workbook(tmp_path, fill)))
    assert content(table) == expected
    assert table.note is None if note is None else note in table.note


def formulas(book: Any, sheet: Any) -> None:
    rows_of_people(sheet)
    sheet["B4"] = "=B3-15"


def merged(book: Any, sheet: Any) -> None:
    rows_of_people(sheet)
    sheet.merge_cells("A3:A4")


def word(book: Any, sheet: Any) -> None:
    rows_of_people(sheet)
    sheet["A5"] = "broken"


def nothing(book: Any, sheet: Any) -> None:
    sheet.append(["weight", "height"])


@pytest.mark.parametrize(
    "fill, message",
    [
        (formulas, "has a formula without a value in cell B4 of sheet Sheet: open it in Excel or"),
        (merged, "has merged cells A3:A4 in sheet Sheet"),
        (
            word,
            "holds text in column weight ('broken' in line 5) among numbers; correct it, or leave",
        ),
        (nothing, "holds no rows"),
    ],
)
def test_sheets_that_cannot_be_read_right_are_refused(
    fill: Any, message: str, tmp_path: Path, capsys: Any
) -> None:
    assert message in refuses(capsys, workbook(tmp_path, fill))


def test_a_sheet_is_chosen_by_name(tmp_path: Path, capsys: Any) -> None:
    path = workbook(tmp_path, two_sheets)
    assert content(read_table(str(path), Reading(sheet="more"))) == {"0": [1.0], "1": [2.0]}
    assert "has no sheet 'x'; there are Sheet, more" in refuses(capsys, path, "--sheet", "x")
    assert "--sheet is for .xlsx files" in refuses(capsys, FILES / "plain.csv", "--sheet", "x")


@pytest.mark.parametrize("suffix", ["parquet", "feather", "xlsx"])
def test_damaged_files_are_read_or_refused(suffix: str, tmp_path: Path) -> None:
    import pyarrow.feather as feather
    import pyarrow.parquet as parquet

    path = tmp_path / f"t.{suffix}"
    if suffix == "xlsx":
        workbook(tmp_path, mixed)
    elif suffix == "parquet":
        parquet.write_table(arrow_table(), path)
    else:
        feather.write_feather(arrow_table(), path)
    whole, read = path.read_bytes(), 0
    for seed in range(150):
        path.write_bytes(damaged(whole, random.Random(seed)))
        with modest(), suppress(CommandError):
            read += read_table(str(path)).rows.numel() > 0
    assert 0 < read < 150


@pytest.mark.parametrize(
    "suffix, package",
    [("parquet", "pyarrow"), ("feather", "pyarrow"), ("xlsx", "openpyxl")],
)
def test_without_the_extra_its_name_is_said(
    suffix: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(PLAIN)
    for name in [*sys.modules]:
        if name.split(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CommandError) as error:
        read_table(str(path))
    assert str(error.value) == (
        f"{path} is read by {package}, which is not installed: pip install 'pyro_naf[data]'"
    )


def frames() -> dict[str, Any]:
    """The table of Arrow without what is no number, text, boolean or date, as different libraries
    hold it."""
    table = arrow_table().select(["whole", "flag", "class", "day", "price"])
    found = {"arrow": table, "pandas": table.to_pandas(), "nullable": table.to_pandas()}
    found["nullable"] = found["nullable"].convert_dtypes()
    return found


@pytest.mark.parametrize("kind", ["arrow", "pandas", "nullable"])
def test_frames_of_every_library_are_the_same_numbers(kind: str) -> None:
    pytest.importorskip("pandas")
    found = tables.matrix(frames()[kind], "x")
    day = 18262.0  # days from 1970 to 2020
    expected = [
        [1, 1, 0, day, 1.5],
        [np.nan] * 5,
        [3, 0, 1, day + 366, 2.25],
    ]
    np.testing.assert_array_equal(found.rows.numpy(), expected)
    kinds = [None if column is None else column.kind for column in found.columns]
    assert kinds == [None, "boolean", "categorical", "date", None]
