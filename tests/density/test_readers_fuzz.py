"""Damaged and hostile files: each is read right, or refused in one sentence.

The seeds are fixed. CI reads 1,250 files of each of seven kinds. More of them::

    PYRO_NAF_FUZZ=100000 python -m pytest tests/density/test_readers_fuzz.py
"""

from __future__ import annotations

import csv
import io
import os
import pickle
import random
import sys
import time
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyro_naf.cli.models import load_data
from pyro_naf.density import FlowDensity, ModelFileError
from pyro_naf.density.commands.files import SUFFIXES, Reading, read_table, write_table
from pyro_naf.density.settings import History
from pyro_naf.support.command_line import CommandError

CALLS = int(os.environ.get("PYRO_NAF_FUZZ", 1250))

ROWS = np.random.default_rng(0).normal(size=(6, 3)) * [1, 1e-5, 1e6]

TOKENS = [
    b",", b";", b"\t", b'"', b'""', b"\n", b"\r\n", b"\r", b"\0", b"\xef\xbb\xbf", b"\xff", b"nan",
    b"NaN", b"-inf", b"1e999", b"1_000", b"0x10", b"\xd9\xa1", b"NA", b"?", b"#", b" ", b"1,5",
    b"9" * 400, b"\xc2\xa0", b"\xe2\x80\xa8", b'"a\nb"', b"(1000000000000, 3)", b"\xff\xff\xff\xff",
]  # fmt: skip


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The bytes after one to four random edits."""
    edited = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, end = sorted(chance.randint(0, len(edited)) for _ in range(2))
        edit = chance.randrange(6)
        if edit == 0 and edited:
            edited[at % len(edited)] ^= 1 << chance.randrange(8)
        elif edit == 1:
            del edited[at:]
        elif edit == 2:
            edited[at:at] = chance.choice(TOKENS)
        elif edit == 3:
            edited[at : at + 4] = chance.randbytes(4)
        elif edit == 4:
            del edited[at : min(end, at + 20)]
        else:
            edited[at:at] = edited[at:end]
    return bytes(edited)


@contextmanager
def modest() -> Iterator[None]:
    """Neither slow nor large: fails when memory grows by 300 MiB, or a call takes five seconds."""
    resource = pytest.importorskip("resource")
    unit = 1 if sys.platform == "darwin" else 1024
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 300 * 2**20
    assert time.process_time() - start < 5


def refused(error: Exception) -> None:
    assert str(error) and "\n" not in str(error) and len(str(error)) < 1000, error


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# ------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_table_is_read_or_refused(suffix: str, tmp_path: Path) -> None:
    path, copy = tmp_path / f"x{suffix}", tmp_path / "copy.csv"
    write_table(str(path), ROWS, ["a", "b, c", 'd"e'])
    whole = path.read_bytes()
    read = 0
    for seed in range(CALLS):
        path.write_bytes(damaged(whole, random.Random(seed)))
        with modest():
            try:
                table = read_table(str(path))
            except CommandError as error:
                refused(error)
                continue
        read += 1
        assert table.rows.dim() == 2 and table.rows.numel() and table.rows.is_floating_point()
        columns = table.columns
        if columns is not None:
            assert len(set(columns)) == len(columns) == table.rows.shape[1]
        # What is written is what is read.
        rows = table.rows.double().numpy()
        write_table(str(copy), rows, columns)
        again = read_table(str(copy))
        np.testing.assert_array_equal(again.rows.numpy(), rows)
        assert columns is None or again.columns == columns
    assert 0 < read < CALLS


NAMES = ["a", "Height, cm", 'he said "no"', "two\nlines", "semi;colon", " ü", "2020", ""]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n\n"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_a_table_is_read_right_however_it_is_written(
    delimiter: str, end: str, start: str, quoting: Any, tmp_path: Path
) -> None:
    rows = np.random.default_rng(1).normal(size=(5, 8))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
    # Unquoted, "2020" would be a number. Python's writer quotes no line end but its own.
    names = [name.replace("\n", end) for name in NAMES]
    names[6] = "year" if quoting == csv.QUOTE_MINIMAL else names[6]
    writer.writerows([names, *rows.tolist()])
    path = tmp_path / "x.csv"
    path.write_text(start + text.getvalue(), encoding="utf-8", newline="")
    header = True if quoting == csv.QUOTE_ALL else None  # all quoted: "2020" may be a number
    table = read_table(str(path), Reading(header))
    np.testing.assert_array_equal(table.rows.numpy(), rows)
    assert table.columns == [*(name.strip() for name in names[:7]), "x7"]
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(end + delimiter.join(["1", "nan", "NaN", "", "NA", "?", "null", "-inf"]) + end)
    last = read_table(str(path), Reading(header)).rows[-1]
    assert last[0] == 1 and last[1:7].isnan().all() and last[7] == -np.inf
    for columns in (table.columns[1:3], table.columns[4:6], ["a"]):
        assert table.listed(",".join(columns)) == columns
    assert table.listed('"Height, cm",a') == ["Height, cm", "a"]


def test_names_that_are_alike_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,a,,a.1,x2\n1,2,3,4,5\n")
    assert read_table(str(path)).columns == ["a", "a.2", "x2", "a.1", "x2.1"]


def test_an_archive_that_would_unpack_to_far_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (280 * 2**17, 1)}
    )
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
        target.open("x.npy", "w") as member,
    ):
        member.write(header.getvalue())
        for _ in range(280):
            member.write(bytes(2**20))
    with modest(), pytest.raises(CommandError, match=r"cannot be read: it would unpack to 29\d+ b"):
        read_table(str(path))
    with modest(), pytest.raises(CommandError, match=r"cannot read 'x' .*: it would unpack to"):
        load_data(str(path), dict, torch.float32)


@pytest.mark.parametrize("shape", [(10**13, 1), (2**62, 4), (2**27, 1)])
def test_an_array_shorter_than_it_says_is_refused(shape: Any, tmp_path: Path) -> None:
    for name in ("x.npy", "x.npz"):
        content = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            content, {"descr": "<f8", "fortran_order": False, "shape": shape}
        )
        path = tmp_path / name
        if name == "x.npy":
            path.write_bytes(content.getvalue())
        else:
            with zipfile.ZipFile(path, "w") as target:
                target.writestr("x.npy", content.getvalue())
        with modest(), pytest.raises(CommandError, match="cannot be read: "):
            read_table(str(path))


def test_damaged_data_of_a_model_are_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=ROWS, n=np.int64(3), t=np.array([True]))
    whole = path.read_bytes()
    for seed in range(CALLS):
        path.write_bytes(damaged(whole, random.Random(seed)))
        with modest():
            try:
                data = load_data(str(path), dict, torch.float32)
                assert all(isinstance(t, torch.Tensor) for t in data.values())
            except CommandError as error:
                refused(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_has_no_end_is_refused(suffix: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a pipe"), ("zero", "a device")):
        with modest(), pytest.raises(OSError, match=f"{name}{suffix} is {kind}, not a file"):
            read_table(str(tmp_path / f"{name}{suffix}"))


# ------------------------------------------------------------------------------------------ models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    torch.manual_seed(0)
    density = FlowDensity(2, architecture="maf-affine-1", hidden_dims=[4], linear="lu")
    density.history = History([{"step": 1, "validation": -1.5}], steps=1)
    density.noise, density.values = {1: 0.5}, {1: torch.tensor([0.0, 0.5])}
    path = tmp_path_factory.mktemp("model") / "model.pt"
    density.save(path)
    return path.read_bytes()


def loads(data: bytes, path: Path) -> FlowDensity | None:
    path.write_bytes(data)
    with modest():
        try:
            return FlowDensity.load(path)
        except ModelFileError as error:
            refused(error)
            return None


def test_a_damaged_model_is_the_model_or_refused(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    whole = loads(model, path)
    assert whole is not None
    x = torch.randn(5, 2)
    for seed in range(CALLS):
        loaded = loads(damaged(model, random.Random(seed)), path)
        assert loaded is None or torch.equal(loaded.log_prob(x), whole.log_prob(x))


def rewritten(data: bytes, chance: random.Random) -> bytes:
    """An archive, whole in itself, of damaged, swapped, doubled, missing or compressed members."""
    source, target = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    members = [(info.filename, source.read(info)) for info in source.infolist()]
    pickled = next(i for i, (name, _) in enumerate(members) if name.endswith("data.pkl"))
    edit = chance.randrange(6)
    one, other = (chance.randrange(len(members)) for _ in range(2))
    if edit < 3:
        members[pickled] = members[pickled][0], damaged(members[pickled][1], chance)
    elif edit == 3:
        (a, b), (c, d) = members[one], members[other]
        members[one], members[other] = (a, d), (c, b)
    elif edit == 4:
        del members[one]
    else:
        members[one] = members[one][0], damaged(members[one][1], chance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of doubled names
        compression = zipfile.ZIP_DEFLATED if chance.random() < 0.1 else zipfile.ZIP_STORED
        with zipfile.ZipFile(target, "w", compression) as archive:
            for name, content in members:
                archive.writestr(name, content)
            if chance.random() < 0.1:
                archive.writestr(*members[one])
    return target.getvalue()


def test_a_model_put_together_from_damaged_parts_is_of_the_form_or_refused(
    model: bytes, tmp_path: Path
) -> None:
    for seed in range(CALLS):
        loaded = loads(rewritten(model, random.Random(seed)), tmp_path / "model.pt")
        if loaded is not None:
            assert loaded.log_prob(torch.zeros(3, 2)).shape == (3,)


class Runs:
    """A pickle that runs code when it is read."""

    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/pyro-naf-was-here",)


def laughing(depth: int) -> list[Any]:
    """A list that holds itself 2^depth times over, in a few hundred bytes."""
    item: list[Any] = [0]
    for _ in range(depth):
        item = [item, item]
    return item


def hostile(content: dict[str, Any]) -> dict[str, Any]:
    """What a file may hold in place of a model's content."""
    itself: list[Any] = []
    itself.append(itself)
    state = content["state"]
    wide = torch.zeros(1).expand(2**40)
    overrides = content["overrides"]
    return {
        "code": Runs(),
        "code inside": {**content, "history": Runs()},
        "laughs": {**content, "overrides": {"hidden_dims": laughing(60)}},
        "laughing columns": {**content, "columns": laughing(60)},
        "itself": {**content, "overrides": {"hidden_dims": itself}},
        "wide": {**content, "state": {**state, "loc": wide}},
        "dims": {**content, "input_dim": 10**9},
        "widths": {**content, "overrides": {**overrides, "hidden_dims": [60_000, 60_000]}},
        "layers": {**content, "architecture": "maf-affine-1000000000"},
        "units": {**content, "architecture": "maf-ddsf-1", "overrides": {"num_layers": 10**9}},
        "components": {**content, "architecture": "made-mog", "overrides": {"components": 10**9}},
        "dtype": {**content, "dtype": "load"},
        "integers": {**content, "dtype": "int64"},
        "complex": {**content, "dtype": "complex64"},
        "no state": {**content, "state": None},
        "no tensors": {**content, "state": dict.fromkeys(state, 1.0)},
        "version": {**content, "version": laughing(60)},
        "long": {**content, "architecture": "a" * 10**6},
        "scale": {**content, "state": {**state, "scale": -state["scale"]}},
        "noise": {**content, "noise": {"a": None}},
        "values": {**content, "values": {0: "a"}},
        "history": {**content, "history": 3},
        "bytes": bytearray(10),
        "none": None,
    }


def test_hostile_models_are_refused(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(model)
    marker = Path("/tmp/pyro-naf-was-here")
    for name, content in hostile(torch.load(path, weights_only=True)).items():
        torch.save(content, path)
        assert loads(path.read_bytes(), path) is None, name
    assert not marker.exists()


def test_pickles_that_take_memory_by_themselves_are_refused(model: bytes, tmp_path: Path) -> None:
    source = zipfile.ZipFile(io.BytesIO(model))
    for pickled in (
        b"\x80\x02Nr\xff\xff\xff\xff.",  # a memo of 2^32 places
        b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00.",  # a bytearray of 2^36 bytes
        b"\x80\x02]" + b"]" * 10**5 + b"a" * 10**5 + b".",  # lists in lists
        pickle.dumps(Runs()),
        b"",
    ):
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            for info in source.infolist():
                data = pickled if info.filename.endswith("data.pkl") else source.read(info)
                archive.writestr(info.filename, data)
        assert loads(target.getvalue(), tmp_path / "model.pt") is None
