"""Functions of one draw made into functions of many: lanes of a batch that never see each other.

Four ways, the fastest first: :func:`torch.vmap`; vmap with help for what it does not take, and with
copies of what is read from a tensor that is written to; one lane after another.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch._decomp import decompositions
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ..support.calls import Args, Intercepted, Kwargs, Operation, Types
from .old_functions import old_functions_under_vmap

#: What a model raises where it refuses a point.
REFUSALS = (RuntimeError, ValueError, ArithmeticError)

Values = Mapping[str, Tensor]
Batched = Callable[[Values], Any]


def vmapped(function: Callable[[Values], object]) -> Batched:
    """Map the function over the leading axis of all values, by :func:`torch.vmap`."""

    def batched(values: Values) -> object:
        with warnings.catch_warnings():
            # Operators without a rule of their own run lane by lane, all the same.
            warnings.filterwarnings("ignore", "There is a performance drop")
            return torch.vmap(function, randomness="different")(dict(values))

    return batched


def vmapped_with_help(function: Callable[[Values], object], copies: bool = False) -> Batched:
    """As :func:`vmapped`, where new tensors have lanes from the start and ``.data`` is allowed.

    A model may write a latent into a tensor of zeros in place, which has no lanes of its own, or
    use autograd functions of the older form.

    :param copies: whether ``x[t]`` is a copy, which a later ``x[t + 1] = ...`` leaves alone.
        Without it ``x[t + 1] = a * x[t]`` has no gradient: what is read would be changed after.
    """

    def one(values: Values) -> object:
        lane = torch.zeros_like(next(iter(values.values())).detach().reshape(-1)[0])
        with _Help(lane, copies), old_functions_under_vmap():
            return function(values)

    return vmapped(one)


def one_by_one(function: Callable[[Values], object]) -> Batched:
    """Call the function on one lane after another; a lane that it refuses is -inf."""

    def batched(values: Values) -> object:
        like = next(iter(values.values()))
        found: list[object] = []
        for i in range(len(like)):
            try:
                found.append(function({name: value[i] for name, value in values.items()}))
            except REFUSALS:
                found.append(None)
        if all(one is None for one in found):
            return like.new_full((len(like),), -torch.inf)
        shape = next(one for one in found if one is not None)
        refused = tree_map(lambda t: torch.full_like(t, -torch.inf), shape)
        found = [refused if one is None else one for one in found]
        return tree_map(lambda *lanes: torch.stack(lanes), *found)

    return batched


@contextmanager
def explained_gradients() -> Iterator[None]:
    """Say of a model whose gradient torch refuses what to write instead.

    :raises ValueError: where the model changes a tensor in place that the gradient needs.
    """
    try:
        yield
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise ValueError(
            "the model has no gradient, because it changes a tensor in place that an earlier "
            "result was computed from, as in `x += a * x`, or `x[t] = ...` in a loop; write "
            "`x = x + a * x`, or append to a list and torch.stack it"
        ) from error


def with_refusals(batched: Batched, function: Callable[[Values], object]) -> Batched:
    """Batch the function so that a lane that it refuses leaves the others alone."""

    def guarded(values: Values) -> object:
        try:
            return batched(values)
        except torch.linalg.LinAlgError:
            pass
        except REFUSALS:
            return one_by_one(function)(values)
        try:
            with FailedFactorsAreNaN():
                return batched(values)
        except REFUSALS:
            return one_by_one(function)(values)

    return guarded


class _Help(Intercepted):
    """Gives lanes to what a model makes anew, and helps with what knows no lanes.

    ``.data`` is ``.detach()``, no values are printed, recurrent networks run step by step.
    """

    _MAKERS = frozenset(
        (
            torch.zeros,
            torch.ones,
            torch.empty,
            torch.full,
            torch.eye,
            torch.zeros_like,
            torch.ones_like,
            torch.empty_like,
            torch.full_like,
            torch.clone,
            torch.Tensor.clone,
            torch.Tensor.new_zeros,
            torch.Tensor.new_ones,
            torch.Tensor.new_empty,
            torch.Tensor.new_full,
        )
    )

    #: Operators that only know whole batches.
    _STEP_BY_STEP: ClassVar[dict[Callable[..., object], Callable[..., object]]] = {
        torch.lstm: decompositions.lstm_impl,
        torch.gru: decompositions.gru_impl,
        torch.rnn_tanh: decompositions.rnn_tanh_input,
        torch.rnn_relu: decompositions.rnn_relu_input,
    }

    def __init__(self, lane: Tensor, copies: bool) -> None:
        super().__init__()
        self.lane, self.copies = lane, copies

    def call(self, func: Operation, args: Args, kwargs: Kwargs) -> object:
        tensors = cast("tuple[Tensor, ...]", args)  # where they are looked at
        if func == torch.Tensor.data.__get__:  # type: ignore[attr-defined]
            return tensors[0].detach()
        if func in (torch.Tensor.__repr__, torch.Tensor.__format__):
            return f"tensor of shape {tuple(tensors[0].shape)}"
        if func in self._STEP_BY_STEP and isinstance(args[2], Sequence):  # not packed
            return self._STEP_BY_STEP[func](*args)
        if func is torch.Tensor.__setitem__ and _is_mask(args[1]) and not _is_array(args[2]):
            tensors[0].masked_fill_(tensors[1], tensors[2])
            return None
        out = super().call(func, args, kwargs)
        if self.copies and func is torch.Tensor.__getitem__:
            return cast("Tensor", out).clone()
        if func in self._MAKERS and isinstance(out, Tensor) and out.is_floating_point():
            return out + self.lane.to(out.dtype)
        return out


def _is_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


class FailedFactorsAreNaN(TorchDispatchMode):
    """Matrices that cannot be factorised or inverted give NaN, and no error for the whole batch."""

    def __torch_dispatch__(
        self, func: OpOverload, types: Types, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        if func is torch.ops.aten._linalg_check_errors.default:
            return None
        out = func(*args, **(kwargs or {}))
        return marked(func, out)


def marked(func: OpOverload, out: object) -> object:
    """Set outputs of linear algebra to NaN where the ``info`` tells of a failure."""
    if func not in _FALLIBLE:
        return out
    matrix, *others, info = cast("tuple[Tensor, ...]", out)
    failed = (info != 0).reshape(*info.shape, *[1] * (matrix.dim() - info.dim()))
    # The matrices come first in all of these, pivots between them and info.
    return (torch.where(failed, torch.nan, matrix), *others, info)


_FACTORISERS = "linalg_cholesky linalg_inv _linalg_solve linalg_lu_factor linalg_ldl_factor".split()

#: Operators whose last output tells of failures.
_FALLIBLE = frozenset(getattr(torch.ops.aten, f"{name}_ex").default for name in _FACTORISERS)

#: The ladder: name of a way to many lanes, and the way.
RUNGS: dict[str, Callable[[Callable[[Values], object]], Batched]] = {
    "vmapped": vmapped,
    "vmapped with help": vmapped_with_help,
    "vmapped with copies": partial(vmapped_with_help, copies=True),
    "one draw after another": one_by_one,
}
