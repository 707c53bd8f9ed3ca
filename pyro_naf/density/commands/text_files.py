"""The text of files: read from the disk or standard input, unpacked, and decoded."""

from __future__ import annotations

import gzip
import io
import re
import sys
import zipfile
import zlib
from pathlib import Path

from ...files.atomic import open_file
from ...support.command_line import UNPACKED, CommandError

#: What the names of text files end with; packed, ".gz" or ".zip" follows.
SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".data")

#: Endings of files of which a text file is the only member.
PACKED = (".gz", ".zip")

#: Standard input, or standard output.
STANDARD = "-"

#: First bytes of files that are no text, and what they are.
FOREIGN = {
    b"PK\x03\x04": "a zip archive, or an Excel file",
    b"\xd0\xcf\x11\xe0": "an Excel file of the old kind: save it as .xlsx",
    b"PAR1": "a parquet file",
    b"ARROW1": "a feather file",
    b"\x93NUMPY": "a .npy file",
    b"\x1f\x8b": "packed by gzip",
}

#: Byte order marks, and the encodings that they tell.
MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}

#: Latin-1 with the quotes and dashes of Windows.
LATIN = "cp1252"

#: Characters that no text holds.
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")

#: Bytes that are looked at to tell UTF-16 without a mark.
HEAD = 1000


def is_text(path: str) -> bool:
    """Whether a file is named as one of text, packed or not, or is standard input."""
    name = path.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return path == STANDARD or Path(name).suffix in SUFFIXES or path.lower().endswith(".zip")


def read_text(path: str) -> tuple[str, str | None]:
    """Read the text of a file, and what the user should know of its encoding.

    It is in UTF-8, in UTF-16, or else in Windows' Latin-1, which the note says.

    :raises CommandError: when it is no text.
    :raises OSError: when it cannot be read.
    """
    content = _unpacked(path)
    for start, what in FOREIGN.items():
        if content.startswith(start):
            raise CommandError(f"{path} is no text but {what}: give it the suffix of its kind")
    text, note = _decoded(content, path)
    found = CONTROL.search(text)
    if found:
        line = text.count("\n", 0, found.start()) + 1
        raise CommandError(
            f"{path} is no text: it holds the character {found.group()!r} in line {line}"
        )
    return text, note


def _unpacked(path: str) -> bytes:
    if path == STANDARD:
        return sys.stdin.buffer.read()
    with open_file(path) as file:
        content = file.read()
    limit = max(UNPACKED, 100 * len(content))
    try:
        if path.lower().endswith(".gz"):
            unpacked = gzip.GzipFile(fileobj=io.BytesIO(content)).read(limit + 1)
        elif path.lower().endswith(".zip"):
            unpacked = _member(path, content, limit)
        else:
            return content
    except EOFError:
        raise CommandError(f"{path} is truncated: its packed content has no end") from None
    except (gzip.BadGzipFile, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        raise CommandError(f"{path} cannot be unpacked: it is damaged, or not packed so") from None
    if len(unpacked) > limit:
        raise CommandError(f"{path} would unpack to more than {limit} bytes")
    return unpacked


def _member(path: str, content: bytes, limit: int) -> bytes:
    """Find the only text file in a zip archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = [i.filename for i in archive.infolist() if Path(i.filename).suffix in SUFFIXES]
        names = [name for name in names if not name.startswith("__MACOSX")]
        if len(names) != 1:
            raise CommandError(f"{path} must hold one text file, got {len(names)}: unpack it first")
        with archive.open(names[0]) as member:
            return member.read(limit + 1)


def _decoded(content: bytes, path: str) -> tuple[str, str | None]:
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content[:HEAD]:
        # The zeros of western letters in UTF-16 without a mark are every other byte.
        even, odd = (content[at:HEAD:2].count(0) * 4 > len(content[:HEAD]) for at in (0, 1))
        encoding = {(True, False): "utf-16-be", (False, True): "utf-16-le"}.get(
            (even, odd), "utf-8"
        )
    try:
        return content.decode(encoding), None
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            line = content.count(b"\n", 0, error.start) + 1
            raise CommandError(f"{path} is not whole: line {line} is no {encoding}") from None
    try:
        return content.decode(LATIN), f"{path} is not in UTF-8, and was read as Latin-1"
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CommandError(
            f"{path} is neither in UTF-8 nor in Latin-1: line {line} holds the byte "
            f"{content[error.start]:#x}"
        ) from None
