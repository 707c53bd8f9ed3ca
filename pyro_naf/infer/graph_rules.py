"""What each operator of torch becomes in a simpler graph.

A rule takes the writer of the graph, a tensor that has the shape and the dtype of the result, and
the operation's arguments. It returns the result, or None where the operation stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

from torch import Tensor, fx
from torch._ops import OpOverload

from .graph_writing import WRITTEN_OUT, Number, Value, Writer, aten, groups, is_value, without

Rule = Callable[..., Value | None]
Operand = Value | Number

_to_copy, _unsafe_view = aten._to_copy, aten._unsafe_view  # noqa: SLF001 - as graphs name them


def _same(to: Writer, like: Tensor, x: Value, *_: object, **__: object) -> Value | None:
    return x


def _reshape(to: Writer, like: Tensor, x: Value, *_: object) -> Value | None:
    if x.dtype != like.dtype:  # other numbers with the same bits
        return None
    return to.reshaped(x, like.shape)


def _expand(to: Writer, like: Tensor, x: Value, *_: object, **__: object) -> Value | None:
    return to.broadcast(x, like.shape)


def _permute(to: Writer, like: Tensor, x: Value, axes: Sequence[int]) -> Value | None:
    if x.number is not None:
        return Value.uniform(x.number, like.shape, x.dtype)
    axes = [axis % len(axes) for axis in axes]
    moved = [axis for axis in axes if x.shape[axis] > 1]
    if moved == sorted(moved):  # axes of one entry have moved, no numbers
        return to.reshaped(x, like.shape)
    narrow, node = tuple(x.narrow[d] for d in axes), x.node
    if node is not None and node.target is aten.permute.default:  # two in one, or none
        node, order = cast("tuple[fx.Node, list[int]]", node.args)
        axes = [order[axis] for axis in axes]
    if axes != sorted(axes):
        node = to.emit(aten.permute.default, node, axes)
    return Value(node, tuple(like.shape), narrow, x.dtype)


def _t(to: Writer, like: Tensor, x: Value) -> Value | None:
    return _permute(to, like, x, range(len(x.shape))[::-1])


def _transpose(to: Writer, like: Tensor, x: Value, first: int, second: int) -> Value | None:
    if not x.shape:
        return x
    axes = list(range(len(x.shape)))
    axes[first], axes[second] = axes[second], axes[first]
    return _permute(to, like, x, axes)


def _select(to: Writer, like: Tensor, x: Value, axis: int, index: int) -> Value | None:
    if x.number is not None:
        return Value.uniform(x.number, like.shape, x.dtype)
    axis %= len(x.shape)
    node = to.emit(aten.select.int, x.node, axis, 0 if x.narrow[axis] == 1 else index)
    return Value(node, tuple(like.shape), without(x.narrow, [axis]), x.dtype)


def _slice(to: Writer, like: Tensor, x: Value, axis: int = 0, *where: object) -> Value | None:
    if x.number is not None:
        return Value.uniform(x.number, like.shape, x.dtype)
    shape, axis = tuple(like.shape), axis % len(x.shape)
    if x.narrow[axis] == 1 or x.shape == shape:
        return x if x.shape == shape else Value(x.node, shape, x.narrow, x.dtype)
    narrow = (*x.narrow[:axis], shape[axis], *x.narrow[axis + 1 :])
    return Value(to.emit(aten.slice.Tensor, x.node, axis, *where), shape, narrow, x.dtype)


# Tensors of one number


def _is_here(to: Writer, like: Tensor) -> bool:
    return like.device == to.device and not like.is_complex()


def _filled(number: Number | None = None, place: int = 0) -> Rule:
    """Make a rule for tensors of a number, or of the argument at a place."""

    def rule(to: Writer, like: Tensor, *args: object, **_: object) -> Value | None:
        found = args[place] if number is None else number
        if not isinstance(found, (bool, int, float)) or not _is_here(to, like):
            return None
        return Value.uniform(found, like.shape, like.dtype)

    return rule


def _copy(to: Writer, like: Tensor, x: Operand, **kwargs: object) -> Value | None:
    """Take another dtype."""
    if like.device != to.device or not isinstance(x, (Value, bool, int, float)):
        return None
    if isinstance(x, Value) and kwargs.get("device") is not None:  # perhaps from another device
        return None
    if not isinstance(x, Value):
        return Value.uniform(x, like.shape, like.dtype)
    if x.dtype == like.dtype:
        return x
    return to.pointwise(_to_copy.default, like, x, dtype=like.dtype)


# Sums


def _sum(
    to: Writer,
    like: Tensor,
    x: Value,
    axes: Sequence[int] | None = None,
    keepdim: bool = False,
    **kwargs: object,
) -> Value | None:
    if x.dtype != like.dtype or kwargs or not x.shape:
        return None
    summed = {d % len(x.shape) for d in axes or range(len(x.shape))}
    if x.source is not None:
        pairs = groups(x.source.shape, x.shape)
        parts = [[d in summed for d in new if x.shape[d] > 1] for _, new in pairs]
        if all(all(part) or not any(part) for part in parts):
            x = x.source
            summed = {
                d for part, (old, _) in zip(parts, pairs, strict=True) if any(part) for d in old
            }
    return to.reshaped(to.summed(x, sorted(summed)), like.shape)


def _log_sum_exp(
    to: Writer, like: Tensor, x: Value, axes: Sequence[int], keepdim: bool = False
) -> Value | None:
    """Write those of few entries as pairs."""
    if len(axes) != 1 or not x.shape:
        return None
    axis = axes[0] % len(x.shape)
    if not 1 < x.narrow[axis] <= WRITTEN_OUT:
        return None
    node = to.written_out(aten.logaddexp.default, x, axis)
    shape, narrow = without(x.shape, [axis]), without(x.narrow, [axis])
    return to.reshaped(Value(node, shape, narrow, x.dtype), like.shape)


# Arithmetic


def _number(x: Operand) -> Number | None:
    return x.number if isinstance(x, Value) else x


def _kept(to: Writer, like: Tensor, x: Operand) -> Value | None:
    """Give the argument as the result, where it has its dtype."""
    if not is_value(x) or x.dtype != like.dtype or not like.is_floating_point():
        return None
    return to.broadcast(x, like.shape)


def _neg(to: Writer, like: Tensor, x: Value) -> Value:
    if x.node is not None and x.node.target is aten.neg.default:
        return Value(x.node.all_input_nodes[0], x.shape, x.narrow, x.dtype)
    return to.pointwise(aten.neg.default, like, x)


def _negated(to: Writer, like: Tensor, x: Operand) -> Value | None:
    kept = _kept(to, like, x)
    return None if kept is None else _neg(to, like, kept)


def _by_number(to: Writer, target: OpOverload, like: Tensor, x: Operand, y: Operand) -> Value:
    """Write an operation on two, with a number for a second whose entries are one."""
    number, kept = _number(y), _kept(to, like, x)
    if number is None or kept is None or kept.number is not None:
        return to.pointwise(target, like, x, y)
    return to.pointwise(target, like, kept, number)


def _simpler(
    to: Writer, like: Tensor, x: Operand, y: Operand, rules: Mapping[Number, Rule]
) -> Value | None:
    """Write what is simpler where one of the two is a number of a rule; None where none is."""
    for a, b in ((x, y), (y, x)):
        rule = rules.get(number) if (number := _number(a)) is not None else None
        if rule is not None and (found := rule(to, like, b)) is not None:
            return found
    return None


def _mul(to: Writer, like: Tensor, x: Operand, y: Operand) -> Value:
    found = _simpler(to, like, x, y, {1: _kept, -1: _negated})
    return found or _by_number(to, aten.mul.Tensor, like, x, y)


def _add(to: Writer, like: Tensor, x: Operand, y: Operand, alpha: Number = 1) -> Value:
    if alpha != 1:
        return to.pointwise(aten.add.Tensor, like, x, y, alpha=alpha)
    return _simpler(to, like, x, y, {0: _kept}) or _by_number(to, aten.add.Tensor, like, x, y)


def _sub(to: Writer, like: Tensor, x: Operand, y: Operand, alpha: Number = 1) -> Value:
    if alpha != 1:
        return to.pointwise(aten.sub.Tensor, like, x, y, alpha=alpha)
    found = _kept(to, like, x) if _number(y) == 0 else None
    if found is None and _number(x) == 0:
        found = _negated(to, like, y)
    return found or _by_number(to, aten.sub.Tensor, like, x, y)


def _div(
    to: Writer,
    like: Tensor,
    x: Operand,
    y: Operand,
    rounding_mode: str | None = None,
) -> Value:
    if rounding_mode is not None:
        return to.pointwise(aten.div.Tensor_mode, like, x, y, rounding_mode=rounding_mode)
    found = _kept(to, like, x) if _number(y) == 1 else None
    below = _kept(to, like, y)
    if found is None and below is not None and _number(x) in (1, -1):
        found = to.pointwise(aten.reciprocal.default, like, below)
        found = found if _number(x) == 1 else _neg(to, like, found)
    return found or _by_number(to, aten.div.Tensor, like, x, y)


def _pow(to: Writer, like: Tensor, x: Operand, y: Operand) -> Value:
    found = _kept(to, like, x) if _number(y) == 1 else None
    if found is not None:
        return found
    if not is_value(x):
        return to.pointwise(aten.pow.Scalar, like, x, y)
    overload = aten.pow.Tensor_Tensor if is_value(y) else aten.pow.Tensor_Scalar
    return to.pointwise(overload, like, x, y)


#: Rules by operator, for all its overloads.
RULES: dict[object, Rule] = {
    aten.detach: _same,
    aten.alias: _same,
    aten.clone: _same,
    aten.lift_fresh: _same,
    aten.lift_fresh_copy: _same,
    aten.contiguous: _same,
    aten.view: _reshape,
    _unsafe_view: _reshape,
    aten.reshape: _reshape,
    aten.unsqueeze: _reshape,
    aten.squeeze: _reshape,
    aten.expand: _expand,
    aten.permute: _permute,
    aten.transpose: _transpose,
    aten.t: _t,
    aten.select: _select,
    aten.slice: _slice,
    _to_copy: _copy,
    aten.zeros_like: _filled(0),
    aten.ones_like: _filled(1),
    aten.new_zeros: _filled(0),
    aten.new_ones: _filled(1),
    aten.zeros: _filled(0),
    aten.ones: _filled(1),
    aten.scalar_tensor: _filled(place=0),
    aten.full: _filled(place=1),
    aten.full_like: _filled(place=1),
    aten.fill: _filled(place=1),
    aten.new_full: _filled(place=2),
    aten.sum: _sum,
    aten.logsumexp: _log_sum_exp,
    aten.neg: _neg,
    aten.mul: _mul,
    aten.add: _add,
    aten.sub: _sub,
    aten.div: _div,
    aten.pow: _pow,
}
