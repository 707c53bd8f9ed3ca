"""Replace files whole: an interrupted writer leaves the old file or the new one, never a part.

The new content is written beside the old under a name that nobody can foresee, then renamed.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

if sys.platform != "win32":
    import fcntl

_PREFIX = ".pyro-naf-"
_UNFINISHED = re.compile(r"\.pyro-naf-([0-9a-f]{16}|folder-.{8})")


class ReplacedFolder:
    """A folder whose files are replaced together.

    :param path: the folder; it may not exist yet. A symbolic link is followed.
    :param owned: names of the files that may be replaced, in the order in which they are: the one
        that the others belong to comes last. Anything else in the folder is somebody else's.
    """

    def __init__(self, path: str | os.PathLike[str], owned: Sequence[str]) -> None:
        if not os.fspath(path):
            raise OSError("the name of the output folder is empty")
        self.path, self.owned = Path(os.path.realpath(path)), tuple(owned)

    def check(self) -> None:
        """Find out before a long computation whether :meth:`replace` can work at its end.

        Creates the parent folders.

        :raises OSError: if the path is not a folder or cannot be written, or if it holds anything
            but the files that are owned.
        """
        self._refuse_foreign()
        exists = self.path.exists()
        with self._beside():
            pass
        if not exists:
            self.path.rmdir()

    def replace(self, write: Callable[[Path], None]) -> None:
        """Replace the owned files by those that ``write(folder)`` puts into an empty folder.

        Owned files that it does not write are removed. A kill in the instant of the renames leaves
        some of the files old and some new, each of them whole.

        :raises OSError: as :meth:`check`, or whatever ``write`` raises; the old files then stand.
        """
        with self._beside() as new:
            write(new)
            self._refuse_foreign()
            for name in self.owned:
                if (new / name).exists():
                    _keep_permissions(self.path / name, new / name)
                    os.replace(new / name, self.path / name)
                else:
                    (self.path / name).unlink(missing_ok=True)

    @contextmanager
    def _beside(self) -> Iterator[Path]:
        self.path.mkdir(parents=True, exist_ok=True)
        with (
            _locked(self.path),
            tempfile.TemporaryDirectory(dir=self.path, prefix=f"{_PREFIX}folder-") as new,
        ):
            yield Path(new)

    def _refuse_foreign(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is {_kind(self.path)}, not a folder")
        for entry in sorted(os.scandir(self.path), key=lambda entry: entry.name):
            ours = entry.name in self.owned and entry.is_file(follow_symlinks=False)
            if not ours and not _UNFINISHED.fullmatch(entry.name):
                raise FileExistsError(
                    f"{self.path} holds {entry.name}, which is not of this program; name another "
                    "folder"
                )


def check_file(path: str | os.PathLike[str]) -> Path:
    """Find out before a long computation whether :func:`replace_file` may write there.

    :returns: the file itself, where the path is a symbolic link to it.
    :raises OSError: for an empty name, a folder, a device, a pipe or a socket.
    """
    if not os.fspath(path):
        raise OSError("the name of the output file is empty")
    real = Path(os.path.realpath(path))
    if os.path.lexists(real) and not stat.S_ISREG(os.lstat(real).st_mode):
        error = IsADirectoryError if real.is_dir() else FileExistsError
        raise error(f"{path} is {_kind(real)}, not a file")
    return real


def replace_file(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Write a file beside the old one, then rename: a kill, or a full disk, leaves the old one.

    A symbolic link is followed; the parent folders are created. The new file has the permissions
    of the old one.

    :raises OSError: when it cannot be written, or as :func:`check_file`; it names the file.
    """
    real = check_file(path)
    real.parent.mkdir(parents=True, exist_ok=True)
    with _locked(real.parent):
        new = real.parent / f"{_PREFIX}{secrets.token_hex(8)}"
        try:
            # Exclusive: neither a file nor a link that somebody put there is written to.
            with open(new, "xb") as file:
                _keep_permissions(real, file.fileno() if os.chmod in os.supports_fd else new)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, real)
        except OSError as error:
            error.filename = error.filename or str(path)  # a full disk is reported without
            raise
        finally:
            new.unlink(missing_ok=True)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file to read; a device, or a pipe without an end, is refused.

    :raises OSError: so, or when it cannot be read.
    """
    real = Path(os.path.realpath(path))
    if os.path.lexists(real) and not (real.is_file() or real.is_dir()):
        raise OSError(f"{path} is {_kind(real)}, not a file")
    return open(path, "rb")


def _keep_permissions(old: Path, new: Path | int) -> None:
    with suppress(FileNotFoundError):
        os.chmod(new, stat.S_IMODE(os.lstat(old).st_mode) & 0o777)


def _kind(path: Path) -> str:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe"}
    kinds |= {stat.S_IFSOCK: "socket", stat.S_IFLNK: "link to itself"}
    return f"a {kinds.get(stat.S_IFMT(os.lstat(path).st_mode), 'device')}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's own lock, which the system releases if the process is killed.

    Nobody else is writing then, and what a killed writer left is removed.
    """
    if sys.platform == "win32":  # has no such lock: what a killed writer left stays
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for entry in os.scandir(folder):
                if _UNFINISHED.fullmatch(entry.name):
                    is_folder = entry.is_dir(follow_symlinks=False)
                    (shutil.rmtree if is_folder else os.unlink)(entry)
        yield
    finally:
        os.close(descriptor)
