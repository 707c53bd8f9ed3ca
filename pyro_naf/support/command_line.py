"""What the commands share: arguments, arrays in files, and errors that are one line."""

from __future__ import annotations

import argparse
import math
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from ..files.atomic import open_file


class Commands(Protocol):
    """What subcommands are added to: what ``ArgumentParser.add_subparsers`` returns."""

    def add_parser(
        self, name: str, *, help: str, description: str, allow_abbrev: bool
    ) -> argparse.ArgumentParser:
        """Add a command."""


class CommandError(Exception):
    """What the user can put right; its message is the one line they see."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut at 500 characters."""
    lines = str(error).strip().splitlines()
    return lines[0][:500].rstrip(": ") if lines else ""


def describe(error: BaseException) -> str:
    """Describe an error: its kind, first line, and the user's line that it comes from."""
    text = f"{type(error).__name__}: {first_line(error)}".rstrip(": ")
    if error.__cause__ is not None and (cause := first_line(error.__cause__)) not in text:
        text += f": {cause}"  # Pyro names the site, and torch the trouble
    paths = sysconfig.get_paths()
    libraries = (
        paths["stdlib"],
        paths["purelib"],
        paths["platlib"],
        str(Path(__file__).parents[1]),
    )
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*libraries, "<")):
            return f"{text} ({os.path.basename(frame.filename)}, line {frame.lineno})"
    return text


def at_least(minimum: int) -> Callable[[str], int]:
    """Return the type of an argument that is an integer from ``minimum`` to 2^32 - 1."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be an integer, not {text!r}") from None
        if not minimum <= value < 2**32:
            raise argparse.ArgumentTypeError(f"must be from {minimum} to 2^32 - 1, not {value}")
        return value

    return integer


def positive(text: str) -> float:
    """Return the type of an argument that is a positive number."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive and finite, not {text}")
    return value


def add_renamed(
    parser: argparse.ArgumentParser,
    name: str,
    old: str,
    help: str,
    *,
    type: Callable[[str], object],
    metavar: str | None = None,
    default: object = None,
) -> None:
    """Add an option that has another name now; the old one is taken with a line on stderr.

    >>> parser = argparse.ArgumentParser()
    >>> add_renamed(parser, "--max-steps", "--steps", "largest number of steps", type=int)
    >>> parser.parse_args(["--steps", "5"]).max_steps
    5
    """

    class Renamed(argparse.Action):
        def __call__(
            self,
            parser: argparse.ArgumentParser,
            namespace: argparse.Namespace,
            values: object,
            option: str | None = None,
        ) -> None:
            print(
                f"pyro-naf: {old} is {name} now; {old} ends with the next version", file=sys.stderr
            )
            setattr(namespace, self.dest, values)

    new = parser.add_argument(name, help=help, type=type, metavar=metavar, default=default)
    hidden = argparse.SUPPRESS
    parser.add_argument(
        old, dest=new.dest, action=Renamed, help=hidden, type=type, metavar=metavar, default=hidden
    )


def widths(text: str) -> tuple[int, ...]:
    """Return the type of an argument that lists positive integers, with commas between."""
    return tuple(at_least(1)(part) for part in text.split(","))


#: Number of bytes that any compressed array may unpack to; a larger one may unpack to a hundred
#: times the size of the file.
UNPACKED = 2**28


@contextmanager
def numpy_file(path: str) -> Iterator[np.ndarray | np.lib.npyio.NpzFile]:
    """Open a .npy file's array, or a .npz file's archive for :func:`member`.

    A file that says that it holds more than it does is refused before memory is taken for it.

    :raises OSError: when it cannot be opened.
    """
    with open_file(path) as file:
        try:
            _check_shape(file)
            yield np.load(file, allow_pickle=False)
        except OSError as error:  # of a damaged archive: places before the start of the file
            raise ValueError(str(error)) from None


def _check_shape(file: BinaryIO) -> None:
    if file.read(6) == b"\x93NUMPY":
        file.seek(0)
        version = np.lib.format.read_magic(file)
        read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
        shape, _, dtype = read_header(file)
        if math.prod(shape) * dtype.itemsize > os.fstat(file.fileno()).st_size:
            raise ValueError(f"it is too short for its shape {shape}")
    file.seek(0)


def member(archive: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """Load an array of a .npz file.

    :raises ValueError: when it is compressed so that it would unpack to far more than the file.
    """
    assert archive.zip is not None
    infos = (i for i in archive.zip.infolist() if i.filename in (name, f"{name}.npy"))
    for info in infos:
        if info.file_size > max(UNPACKED, 100 * info.compress_size):
            raise ValueError(f"it would unpack to {info.file_size} bytes")
    return archive[name]
