"""Tensors of what people have rows of numbers in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

#: Rows of numbers as people have them: arrays, tensors, nested sequences.
RowsLike: TypeAlias = ArrayLike | Tensor

#: Rows, or columns by name: a DataFrame, a mapping, a list of mappings.
TableLike: TypeAlias = RowsLike | Mapping[str, ArrayLike] | Sequence[Mapping[str, object]]


def as_tensor(value: object, name: str) -> Tensor:
    """Make a floating-point tensor of an array, a tensor or nested sequences.

    :raises TypeError: when it holds no real numbers.
    """
    if not isinstance(value, Tensor):
        if hasattr(value, "tocsr"):
            raise TypeError(f"{name} must be dense, got a sparse matrix: pass {name}.toarray()")
        array = _as_array(value, name)
        if array.dtype.kind == "O":
            array = _numbers_of(array, name)
        if array.dtype.kind not in "fiu":
            raise NotRealError(name, array.dtype)
        if array.dtype.kind == "u" or array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        elif not (array.flags.writeable and array.dtype.isnative):
            array = array.astype(array.dtype.newbyteorder("="))
        value = torch.as_tensor(np.ascontiguousarray(array))
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be dense, got a sparse tensor: pass {name}.to_dense()")
    if value.is_complex() or value.dtype == torch.bool:
        raise NotRealError(name, value.dtype)
    return value if value.is_floating_point() else value.double()


def _as_array(value: object, name: str) -> np.ndarray:
    """Make an array of what is no tensor; masked cells are missing."""
    if isinstance(value, np.ma.MaskedArray) and value.dtype.kind in "iuf":
        return np.where(np.ma.getmaskarray(value), np.nan, value.data.astype(np.float64))
    try:
        array = np.asarray(value)
    except ValueError:
        raise ValueError(
            f"{name} must have rows of one length, got nested sequences of several"
        ) from None
    if array.dtype.kind == "O" and array.ndim == 0:
        kind = type(value).__name__
        raise TypeError(f"{name} must hold real numbers, got {kind}: pass an array or a table")
    return array


def _numbers_of(array: np.ndarray, name: str) -> np.ndarray:
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must hold real numbers, got {array.dtype}: each argument must be a string of "
            "a number, or a real number"
        ) from None


class NotRealError(TypeError, ValueError):
    """An array of complex numbers, text or booleans: scikit-learn asks for a ValueError."""

    def __init__(self, name: str, dtype: np.dtype | torch.dtype) -> None:
        more = ": Complex data not supported" if "complex" in str(dtype) else ""
        if str(dtype).startswith(("<U", ">U", "|S", "bool", "torch.bool")):
            more = ": pass a DataFrame or a mapping of columns where some are no numbers"
        super().__init__(f"{name} must hold real numbers, got {dtype}{more}")
