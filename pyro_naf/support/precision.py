"""Float32 at least for transformers, whatever autocast makes of the conditioners around them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor

#: A transformer's method: from x and phi to tensors, some of which may be None.
Method = TypeVar("Method", bound=Callable[..., tuple[Tensor | None, ...]])


class HalfReader(Protocol):
    """A transformer that says which pseudo-parameters its kernel reads as they are."""

    def reads_half(self, x: Tensor, phi: Tensor) -> bool:
        """Whether the kernel for these tensors reads 16 bits and computes in float32."""


def without_autocast(like: Tensor) -> AbstractContextManager[object]:
    """Switch autocast off for the device of a tensor; costs nothing where it is not on."""
    kind = like.device.type
    return torch.autocast(kind, enabled=False) if _autocasts(kind) else nullcontext()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or its numbers in float32 where they had fewer digits.

    >>> [at_least_float32(torch.ones(2, dtype=d)).dtype for d in (torch.bfloat16, torch.double)]
    [torch.float32, torch.float64]
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float))


def widened(tensor: Tensor) -> Tensor:
    """In float32 at least where autocast may have made the tensor; elsewhere the tensor itself."""
    return at_least_float32(tensor) if _autocasts(tensor.device.type) else tensor


def in_float32(method: Method) -> Method:
    r"""Make a transformer's ``method(x, phi)`` compute without autocast, in float32 at least.

    A log-slope that was computed in 16 bits is not the logarithm of the map's slope: the density
    would be biased, and an inverse would find no root. Under autocast the results are in float32;
    without it they have the dtype of the arguments. Pseudo-parameters of 16 bits stay as they are
    for a kernel that reads them and computes in float32 (``reads_half``).
    """

    @functools.wraps(method)
    def run(self: HalfReader, x: Tensor, phi: Tensor) -> tuple[Tensor | None, ...]:
        autocasts = _autocasts(x.device.type)
        if not autocasts and x.dtype.itemsize >= 4 and phi.dtype.itemsize >= 4:
            return method(self, x, phi)
        with without_autocast(x):
            wide = at_least_float32(x)
            found = method(self, wide, phi if self.reads_half(wide, phi) else at_least_float32(phi))
        dtype = wide.dtype if autocasts else torch.promote_types(x.dtype, phi.dtype)
        return tuple(f if f is None else f.to(dtype) for f in found)

    return cast(Method, run)


def _autocasts(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
