"""Tensors, numbers and strings in a file, as torch.save writes them: read without running code.

torch.load trusts the sizes that a file says it has, and unpacks what is compressed. This reader
takes stored members only, no larger than the file, and refuses any other pickle.
"""

from __future__ import annotations

import collections
import io
import math
import os
import pickle
import pickletools
import sys
import zipfile
from collections.abc import Callable
from enum import Enum
from numbers import Integral, Real
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from .atomic import open_file

#: Opcodes of pickles of tensors, numbers, strings, lists and dicts, in protocol 2.
_OPCODES = frozenset(
    [
        "PROTO",
        "STOP",
        "MARK",
        "GLOBAL",
        "REDUCE",
        "BINPERSID",
        "BINPUT",
        "LONG_BINPUT",
        "BINGET",
        "LONG_BINGET",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "BINUNICODE",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "EMPTY_LIST",
        "APPEND",
        "APPENDS",
        "EMPTY_DICT",
        "SETITEM",
        "SETITEMS",
    ]
)

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}


class NotTensorsError(ValueError):
    """A file that holds something else than tensors, numbers and strings, or that is damaged."""


def read(path: str | os.PathLike[str]) -> object:
    """Read a file of torch.save: tensors, numbers, strings, and lists, tuples, dicts of these.

    :raises NotTensorsError: for any other file.
    :raises OSError: when the file cannot be opened.
    """
    with open_file(path) as file:
        try:
            members = _members(file)
        except Exception:  # what a reader of foreign bytes may raise is written nowhere
            raise NotTensorsError("it is truncated, or not such a file") from None
        try:
            pickled = members("data.pkl")
            _check_opcodes(pickled)
            content = _Unpickler(pickled, members, os.fstat(file.fileno()).st_size).load()
            _check_number(content, len(pickled))
        except Exception:
            raise NotTensorsError("it holds more than tensors and numbers") from None
    return content


def _members(file: BinaryIO) -> Callable[[str], bytes]:
    """Make a function from the name of a member in the archive's one folder to its content."""
    archive = zipfile.ZipFile(file)
    infos = archive.infolist()
    sizes = [info.file_size for info in infos]
    stored = all(info.compress_type == zipfile.ZIP_STORED for info in infos)
    same = all(info.file_size == info.compress_size for info in infos)
    if not stored or not same or sum(sizes) > os.fstat(file.fileno()).st_size:
        raise zipfile.BadZipFile
    names = [info.filename for info in infos]
    (pickled,) = (name for name in names if name.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl")
    if len(set(names)) < len(names) or archive.testzip() is not None:
        raise zipfile.BadZipFile
    order = f"{folder}byteorder"  # which older files do not tell
    if order in names and archive.read(order) != sys.byteorder.encode():
        raise zipfile.BadZipFile
    return lambda name: archive.read(folder + name)


def _check_opcodes(pickled: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(pickled):  # reserves places
            raise pickle.UnpicklingError


def _check_number(content: object, limit: int) -> None:
    """Refuse lists that hold one another, or themselves, with more entries than the file bytes."""
    waiting = [content]
    while waiting:
        item = waiting.pop()
        limit -= 1
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            waiting += item
        if len(waiting) > limit:
            raise pickle.UnpicklingError


class _Unpickler(pickle.Unpickler):
    def __init__(self, pickled: bytes, members: Callable[[str], bytes], limit: int) -> None:
        super().__init__(io.BytesIO(pickled))
        self.members, self.limit = members, limit
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> object:
        if module == "torch":
            return _STORAGES[name]
        known: dict[tuple[str, str], Callable[..., object]] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self.tensor,
            ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
        }
        return known[module, name]

    def persistent_load(self, name: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        _, dtype, key, _, number = name
        if key not in self.storages:
            data = bytearray(self.members(f"data/{key}"))
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0)
        storage = self.storages[key].to(dtype) if number == 0 else self.storages[key]
        if len(storage) != number or storage.dtype != dtype:
            raise pickle.UnpicklingError
        return storage

    def tensor(
        self,
        storage: Tensor,
        offset: int,
        size: tuple[int, ...],
        stride: tuple[int, ...],
        *rest: object,
    ) -> Tensor:
        # torch checks that all lies within the storage; strides of zero lie within any. What may
        # follow beside the flag and the hooks of gradients says that signs are to be turned.
        if math.prod(size) * storage.element_size() > self.limit or any(rest[2:]):
            raise pickle.UnpicklingError
        return storage.as_strided(size, stride, offset)


def plain(name: str, value: object, tensors: bool = False) -> object:
    """Numbers, strings, and lists and dicts of these, of Python's own types, as files hold them.

    :param name: what messages call the value.
    :param tensors: leave tensors as they are; otherwise they become numbers or lists.
    :raises TypeError: for anything else.

    >>> plain("widths", (np.int64(8), torch.tensor(16)))
    [8, 16]
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if tensors and isinstance(value, Tensor):
        return value
    if isinstance(value, Enum):
        return plain(name, value.value)
    kinds: list[tuple[type, Callable[..., object]]] = [
        (str, str.__str__), (np.bool_, bool), (Integral, int), (Real, float),
    ]  # fmt: skip
    for kind, python in kinds:
        if isinstance(value, kind):
            return python(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, collections.abc.Mapping):
        return {
            plain(name, key): plain(f"{name}[{key!r}]", item, tensors)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple | range):
        return [plain(name, item, tensors) for item in value]
    if hasattr(value, "tolist") and not isinstance(value.tolist(), type(value)):
        return plain(name, value.tolist())
    raise TypeError(
        f"{name} must be made of numbers and strings, got {type(value).__module__}."
        f"{type(value).__qualname__}"
    )
