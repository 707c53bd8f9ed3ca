import errno
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyro_naf import atomic
from pyro_naf.atomic import ReplacedFolder, replace_file

OWNED = ("a.txt", "b.txt")


def _writer(text):
    def write(folder):
        for name in OWNED:
            (folder / name).write_text(text)

    return write


def _content(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


OLD, NEW = dict.fromkeys(OWNED, "old"), dict.fromkeys(OWNED, "new")


@pytest.fixture
def output(tmp_path):
    folder = ReplacedFolder(tmp_path / "output", OWNED)
    folder.replace(_writer("old"))
    return folder


def _beside(output):
    return sorted(path.name for path in output.path.parent.iterdir())


def test_folder_is_replaced_whole(output):
    output.check()
    output.replace(lambda folder: (folder / "a.txt").write_text("new"))
    assert _content(output.path) == {"a.txt": "new"}
    assert _beside(output) == ["output"]


def test_parents_are_made(tmp_path):
    output = ReplacedFolder(tmp_path / "x" / "y" / "output", OWNED)
    output.check()
    output.replace(_writer("new"))
    assert _content(output.path) == NEW


def test_a_symbolic_link_is_followed(output, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(output.path)
    ReplacedFolder(link, OWNED).replace(_writer("new"))
    assert link.is_symlink()
    assert _content(output.path) == NEW


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_the_old_folder(output, error):
    def write(folder):
        (folder / "a.txt").write_text("half")
        raise error

    with pytest.raises(type(error)):
        output.replace(write)
    assert _content(output.path) == OLD
    assert _beside(output) == ["output"]


def test_a_second_rename_that_fails_is_undone(output, monkeypatch):
    rename = Path.rename

    def fails_for_the_new(self, target):
        if self.name.endswith("-new"):
            raise OSError(errno.EIO, "no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_for_the_new)
    with pytest.raises(OSError, match="no"):
        output.replace(_writer("new"))
    assert _content(output.path) == OLD
    assert _beside(output) == ["output"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_between_the_renames_waits_until_both_are_done(output, monkeypatch, number):
    rename = Path.rename
    seen = []

    def interrupted(self, target):
        rename(self, target)
        signal.raise_signal(number)
        assert not seen, "the signal was not deferred"

    def handler(received, frame):
        seen.append(_content(output.path))
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    before = signal.signal(number, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            output.replace(_writer("new"))
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
    assert seen == [NEW]
    assert _beside(output) == ["output"]


# Killed in another process, at one of the points between which the folder's state changes.
_KILLED = """
import importlib.util, os, pathlib, signal, sys
spec = importlib.util.spec_from_file_location("atomic", sys.argv[1])
atomic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(atomic)
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
point = sys.argv[3]
rename, rmtree = pathlib.Path.rename, atomic.shutil.rmtree

def write(folder):
    (folder / "a.txt").write_text("new")
    if point == "writing":
        kill()
    (folder / "b.txt").write_text("new")

def killed_rename(self, target):
    if point == "before the renames" or point == "between the renames" and "-new" in self.name:
        kill()
    rename(self, target)

def killed_rmtree(path, **kwargs):
    if point == "after the renames":
        kill()
    rmtree(path, **kwargs)

pathlib.Path.rename = killed_rename
atomic.shutil.rmtree = killed_rmtree
atomic.ReplacedFolder(sys.argv[2], ("a.txt", "b.txt")).replace(write)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("writing", OLD),
        ("before the renames", OLD),
        ("between the renames", OLD),
        ("after the renames", NEW),
    ],
)
def test_a_killed_writer_leaves_one_whole_folder_and_the_next_clears_up(output, point, expected):
    command = [sys.executable, "-c", _KILLED, atomic.__file__, str(output.path), point]
    done = subprocess.run(command, check=False)
    assert done.returncode == -signal.SIGKILL
    if point != "between the renames":  # only then does it take the next one to put it back
        assert _content(output.path) == expected
    output.check()
    assert _content(output.path) == expected
    assert _beside(output) == ["output"]
    output.replace(_writer("newer"))
    assert _content(output.path) == dict.fromkeys(OWNED, "newer")


def _foreign_file(path):
    path.mkdir()
    (path / "thesis.tex").write_text("")


def _foreign_folder(path):
    (path / "a.txt").mkdir(parents=True)


def _file(path):
    path.write_text("")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (_foreign_file, "holds thesis.tex"),
        (_foreign_folder, r"holds a\.txt"),
        (_file, "is a file, not a folder"),
    ],
)
def test_what_belongs_to_others_is_refused_and_kept(tmp_path, prepare, message):
    path = tmp_path / "output"
    prepare(path)
    before = sorted(map(str, tmp_path.rglob("*")))
    output = ReplacedFolder(path, OWNED)
    with pytest.raises(OSError, match=message):
        output.check()
    with pytest.raises(OSError, match=message):
        output.replace(_writer("new"))
    assert sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_file_that_appears_during_the_computation_is_kept(output):
    output.check()
    (output.path / "thesis.tex").write_text("old")
    with pytest.raises(OSError, match="holds thesis.tex"):
        output.replace(_writer("new"))
    assert _content(output.path) == {**OLD, "thesis.tex": "old"}


def test_the_current_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="is the current folder"):
        ReplacedFolder(".", OWNED).check()


def test_a_mount_point_is_refused():
    with pytest.raises(OSError, match="is a mount point"):
        ReplacedFolder(os.path.abspath(os.sep), OWNED).check()


def test_a_parent_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        ReplacedFolder(tmp_path / "file" / "output", OWNED).check()


@pytest.mark.skipif(importlib.util.find_spec("fcntl") is None, reason="no locks on this system")
def test_a_writer_waits_for_another_one(output):
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, sys\n"
            "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
            "print(flush=True)\n"
            "sys.stdin.read()\n"
            "open(sys.argv[1] + '/released', 'w').close()\n",
            str(output.path.parent),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None and holder.stdin is not None
        holder.stdout.readline()
        holder.stdin.close()
        output.replace(_writer("new"))
        assert (output.path.parent / "released").exists()
    assert _content(output.path) == NEW


# ------------------------------------------------------------------------------------------- files


def test_a_file_is_replaced_whole_and_its_parents_are_made(tmp_path):
    path = tmp_path / "x" / "y" / "file"
    for content in (b"old", b"new"):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "file"
    replace_file(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def _killed_while_writing(path):
    code = (
        "import importlib.util as u, os, signal, sys\n"
        # Without the package around it, which takes seconds to import.
        "spec = u.spec_from_file_location('atomic', sys.argv[1])\n"
        "atomic = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(atomic)\n"
        "atomic.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic.replace_file(sys.argv[2], b'new')"
    )
    command = [sys.executable, "-c", code, atomic.__file__, str(path)]
    done = subprocess.run(command, capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL


def test_a_killed_writer_leaves_the_old_file_and_the_next_clears_up(tmp_path):
    path = tmp_path / "file"
    replace_file(path, b"old")
    _killed_while_writing(path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
    replace_file(path, b"newer")
    assert path.read_bytes() == b"newer" and len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_writer_of_an_owned_file_left_is_cleared_up(output):
    _killed_while_writing(output.path / "b.txt")
    assert len(_content(output.path)) == 3
    output.check()
    assert _content(output.path) == OLD


def test_a_link_to_a_file_is_followed_and_a_folder_is_refused(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    replace_file(link, b"new")
    assert link.is_symlink() and (tmp_path / "file").read_bytes() == b"new"
    with pytest.raises(IsADirectoryError, match="is a folder, not a file"):
        replace_file(tmp_path, b"new")
    with pytest.raises(OSError, match="name of the output file is empty"):
        replace_file("", b"new")
