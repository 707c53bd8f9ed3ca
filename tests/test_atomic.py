"""Files are replaced whole, in place, with their permissions, and through nobody's links."""

import errno
import importlib
import os
import signal
import socket
import subprocess
import sys

import pytest

from pyro_naf.files import atomic
from pyro_naf.files.atomic import ReplacedFolder, check_file, open_file, replace_file

OWNED = ("a.txt", "b.txt", "c.txt")


def _writer(text, names=OWNED[:2]):
    def write(folder):
        for name in names:
            (folder / name).write_text(text)

    return write


def _content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


OLD, NEW = dict.fromkeys(OWNED[:2], "old"), dict.fromkeys(OWNED[:2], "new")


@pytest.fixture
def output(tmp_path):
    folder = ReplacedFolder(tmp_path / "output", OWNED)
    folder.check()
    assert not folder.path.exists()
    folder.replace(_writer("old"))
    return folder


def test_a_file_is_replaced_whole_and_its_parents_are_made(tmp_path):
    path = tmp_path / "x" / "y" / ("n" * 255)
    for content in (b"old", b"new"):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    replace_file(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        replace_file(path, b"new")
    assert _content(tmp_path) == {"file": "old"}


def test_a_new_file_has_the_permissions_of_its_process_and_the_next_of_the_old(tmp_path, output):
    mask = os.umask(0o027)
    try:
        replace_file(tmp_path / "file", b"old")
        assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
        for path in (tmp_path / "file", output.path / "a.txt"):
            path.chmod(0o604)
        replace_file(tmp_path / "file", b"new")
        output.replace(_writer("new", OWNED))
        files = [tmp_path / "file", output.path / "a.txt", output.path / "c.txt"]
        assert [path.stat().st_mode & 0o777 for path in files] == [0o604, 0o604, 0o640]
    finally:
        os.umask(mask)


def test_a_link_that_is_named_is_followed_and_one_that_is_planted_is_not(tmp_path, monkeypatch):
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_bytes(b"precious")
    link.symlink_to(tmp_path / "file")
    replace_file(link, b"new")
    assert link.is_symlink() and (tmp_path / "file").read_bytes() == b"new"
    # Even one that foresees the name.
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda _: "foreseen")
    (tmp_path / ".pyro-naf-foreseen").symlink_to(victim)
    with pytest.raises(FileExistsError):
        replace_file(tmp_path / "file", b"newer")
    assert victim.read_bytes() == b"precious" and (tmp_path / "file").read_bytes() == b"new"


def identity(path):
    """Return what changes when a file is replaced or written: its access time may change always."""
    found = os.lstat(path)
    return found.st_ino, found.st_mode, found.st_mtime_ns


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a folder", "a device", "a link to itself"])
def test_what_is_no_file_is_refused_by_name_and_kept(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)  # the name of a socket has to be short
    path = tmp_path / "x"
    if kind == "a device":
        path = tmp_path / "link"
        path.symlink_to("/dev/null")
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind("x")
    elif kind == "a link to itself":
        path.symlink_to(path)
    else:
        {"a pipe": os.mkfifo, "a folder": os.mkdir}[kind](path)
    before = identity(path)
    for call in (check_file, lambda path: replace_file(path, b"new")):
        with pytest.raises(OSError, match=f"^{path} is {kind}, not a file$"):
            call(path)
    with pytest.raises(OSError, match=str(path)):
        open_file(path).close()
    assert identity(path) == before
    with pytest.raises(OSError, match=f"^{tmp_path} holds "):
        ReplacedFolder(tmp_path, [path.name]).check()


def test_an_empty_name_is_refused():
    for call in (check_file, lambda name: ReplacedFolder(name, OWNED)):
        with pytest.raises(OSError, match=r"name of the output (file|folder) is empty"):
            call("")


# ----------------------------------------------------------------------------------------- folders


def test_the_files_of_a_folder_are_replaced_and_others_removed(output, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(output.path)
    folder = ReplacedFolder(link, OWNED)
    folder.check()
    folder.replace(_writer("new", ["c.txt"]))
    assert link.is_symlink() and _content(output.path) == {"c.txt": "new"}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_the_old_folder(output, error):
    def write(folder):
        (folder / "a.txt").write_text("half")
        raise error

    with pytest.raises(type(error)):
        output.replace(write)
    assert _content(output.path) == OLD


@pytest.mark.parametrize("name", ["thesis.tex", "a.txt"])
def test_what_belongs_to_others_is_refused_and_kept(output, name):
    (output.path / "a.txt").unlink()
    (output.path / name).mkdir()  # before a computation, or while it runs
    for call in (output.check, lambda: output.replace(_writer("new"))):
        with pytest.raises(OSError, match=f"holds {name}"):
            call()
    assert (output.path / name).is_dir() and (output.path / "b.txt").read_text() == "old"
    file = ReplacedFolder(output.path / "b.txt", OWNED)
    with pytest.raises(OSError, match=r"b\.txt is a file, not a folder"):
        file.check()


# ------------------------------------------------------------------------------------------- kills

_KILLED = """
import os, pathlib, runpy, signal, sys
# Without the package around it, which takes seconds to import.
atomic = runpy.run_path(sys.argv[1])
path, call, renames, replace = pathlib.Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), os.replace
steps = iter([replace] * renames + [lambda *names: os.kill(os.getpid(), signal.SIGKILL)])
os.replace = lambda *names: next(steps)(*names)

def write(folder):
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text("new")

if call == "file":
    atomic["replace_file"](path / "b.txt", b"new")
else:
    atomic["ReplacedFolder"](path, ("a.txt", "b.txt", "c.txt")).replace(write)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize(
    "call, renames, expected",
    [("file", 0, OLD), ("folder", 0, OLD), ("folder", 1, {"a.txt": "new", "b.txt": "old"})],
)
def test_a_killed_writer_leaves_whole_files_and_the_next_clears_up(output, call, renames, expected):
    command = [sys.executable, "-c", _KILLED, atomic.__file__, output.path, call, str(renames)]
    done = subprocess.run(command, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(output.path.iterdir())) == 3
    output.check()
    assert _content(output.path) == expected
    output.replace(_writer("newer"))
    assert _content(output.path) == dict.fromkeys(OWNED[:2], "newer")


def test_a_writer_waits_for_another_one(output):
    fcntl = pytest.importorskip("fcntl")
    descriptor = os.open(output.path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    command = [sys.executable, "-c", _KILLED, atomic.__file__, output.path, "folder", "9"]
    with subprocess.Popen(command) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        assert _content(output.path) == OLD
        os.close(descriptor)
    assert process.returncode == 0 and _content(output.path) == NEW


def test_the_old_import_path_serves() -> None:
    assert importlib.import_module("pyro_naf.atomic").replace_file is replace_file
