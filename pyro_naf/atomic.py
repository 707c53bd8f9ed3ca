"""Replace a folder or a file whole: an interrupted writer leaves either the old or the new one.

The new folder is written beside the old one under a hidden name; two renames then swap them. Only a
kill between the two leaves neither in place, and the old one is put back by whoever comes next.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    Buffer = bytes | memoryview


class ReplacedFolder:
    """A folder whose whole content is written anew each time.

    :param path: the folder; it may not exist yet. A symbolic link is followed.
    :param owned: names of the files that may be replaced. Anything else in the folder is somebody
        else's, and is never touched.
    """

    def __init__(self, path: str | os.PathLike[str], owned: Collection[str]) -> None:
        if not os.fspath(path):
            raise OSError("the name of the output folder is empty")
        self.path = Path(os.path.realpath(path))
        self.owned = frozenset(owned)
        self._new = _beside(self.path)
        self._old = self.path.parent / f".{self.path.name}.pyro-naf-old"

    def check(self) -> None:
        """Find out before a long computation whether :meth:`replace` can work at its end.

        Creates the parent folders, and clears up what a killed writer left.

        :raises OSError: if the path is not a folder, cannot be written or cannot be renamed, or if
            it holds a file that is not among those owned.
        """
        if self.path == Path.cwd():
            raise OSError(f"{self.path} is the current folder; name one that can be replaced")
        if os.path.ismount(self.path):
            raise OSError(f"{self.path} is a mount point; name a folder inside it")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.parent):
            self._recover()
            self._refuse_foreign()
            self._new.mkdir()
            self._new.rmdir()

    def replace(self, write: Callable[[Path], None]) -> None:
        """Replace the folder by what ``write(folder)`` puts into the empty folder it is given.

        :raises OSError: as :meth:`check`, or whatever ``write`` raises; the old folder then stands.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.parent):
            self._recover()
            self._new.mkdir()
            try:
                write(self._new)
                self._refuse_foreign()
                with _signals_deferred():
                    self._swap()
            finally:
                shutil.rmtree(self._new, ignore_errors=True)
                if self.path.exists():
                    shutil.rmtree(self._old, ignore_errors=True)

    def _recover(self) -> None:
        # Under the lock nobody else is writing: what lies here was left by a killed writer.
        if self._old.exists():
            if self.path.exists():
                shutil.rmtree(self._old)
            else:
                self._old.rename(self.path)
        if self._new.exists():
            shutil.rmtree(self._new)
        if self.path.is_dir():
            # Its files may be replaced one by one too, under the folder's own lock.
            with _locked(self.path):
                for name in self.owned:
                    _beside(self.path / name).unlink(missing_ok=True)

    def _refuse_foreign(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file, not a folder")
        for entry in sorted(self.path.iterdir()):
            if entry.name not in self.owned or entry.is_dir():
                raise FileExistsError(
                    f"{self.path} holds {entry.name}, which would be lost when the folder is "
                    "replaced; name another folder"
                )

    def _swap(self) -> None:
        replaces = self.path.exists()
        if replaces:
            self.path.rename(self._old)
        try:
            self._new.rename(self.path)
        except OSError:
            if replaces:
                self._old.rename(self.path)
            raise


def replace_file(path: str | os.PathLike[str], content: Buffer) -> None:
    """Writes beside the file, then renames: a kill, or a full disk, leaves the old file as it was.

    A symbolic link is followed; the parent folders are created.

    :raises OSError: when it cannot be written; it names the file.
    """
    if not os.fspath(path):
        raise OSError("the name of the output file is empty")
    real = Path(os.path.realpath(path))
    real.parent.mkdir(parents=True, exist_ok=True)
    if real.is_dir():
        raise IsADirectoryError(f"{path} is a folder, not a file")
    new = _beside(real)
    with _locked(real.parent):
        try:
            with open(new, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, real)
        except OSError as error:
            error.filename = error.filename or str(path)  # a full disk is reported without
            raise
        finally:
            new.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """Where the new content is written before it takes the place of the old."""
    return path.parent / f".{path.name}.pyro-naf-new"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's own lock, which the system releases if the process is killed."""
    if sys.platform == "win32":  # has no such lock: two writers at the same instant may collide
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Let the signals that ask the process to stop wait until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it is interrupted by them
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    pending: list[int] = []
    before = {
        number: signal.signal(number, lambda received, _: pending.append(received))
        for number in (getattr(signal, name) for name in names if hasattr(signal, name))
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(pending):
            signal.raise_signal(number)
