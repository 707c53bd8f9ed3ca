"""The cache of an autoregressive flow: one evaluation, remembered only while it is still true."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

#: How far the search for a round trip looks back; an affine map and its inverse take ten nodes.
_MAX_NODES = 256


class Evaluation(NamedTuple):
    """``y = f(x)`` with its log-determinant, and the state of the world in which that holds."""

    x: Tensor
    y: Tensor
    log_det: Tensor | None
    state: tuple[object, ...]
    #: All that the evaluation depends on; held, since the state tells tensors by their ids.
    tensors: tuple[Tensor, ...]
    #: Tensors of the user's with copies of them: numpy and ``.data`` write past the versions.
    copies: tuple[tuple[Tensor, Tensor], ...]


class Cache:
    """The last evaluation of a module, for as long as it holds.

    It ends when x, y, the context, a parameter or a buffer changes, with the grad mode, autocast
    or the training mode, and at the first backward pass: that frees the graph, and an optimiser
    may follow (Pyro's write through ``.data``, which changes no version).
    """

    def __init__(self) -> None:
        self._last: Evaluation | None = None

    def forget(self) -> None:
        """Drops the last evaluation."""
        self._last = None

    def recall(
        self, module: nn.Module, context: Tensor | None, *, x: Any = None, y: Any = None
    ) -> Evaluation | None:
        """The last evaluation, if it was of this x (or gave this y) and still holds."""
        last = self._last
        if last is None or torch.compiler.is_compiling():
            return None
        known = x is last.x or (y is not None and y is last.y)
        if not known and (y is None or y.shape != last.y.shape or y.dtype != last.y.dtype):
            return None
        if last.state != _state(module, (last.x, last.y, *_dependencies(module, context))):
            return None
        if not all(torch.equal(tensor, copy) for tensor, copy in last.copies):
            return None
        return last if known or is_same_point(y, last.y) else None

    def remember(
        self,
        module: nn.Module,
        context: Tensor | None,
        x: Tensor,
        y: Tensor,
        log_det: Tensor | None,
    ) -> Evaluation:
        """Makes ``y = f(x)`` the last evaluation; returns it."""
        if torch.compiler.is_compiling():
            return Evaluation(x, y, log_det, (), (), ())
        tensors = (x, y, *_dependencies(module, context))
        state = _state(module, tensors)
        copies = tuple((t, t.detach().clone()) for t in (x, y, context) if _is_shared(t))
        evaluation = Evaluation(x, y, log_det, state or (), tensors, copies)
        self._last = None if state is None else evaluation
        if torch.is_grad_enabled():
            self._forget_at_backward(x, y, log_det)
        return evaluation

    def _forget_at_backward(self, *tensors: Tensor | None) -> None:
        this = weakref.ref(self)

        def forget(_: object) -> None:
            if (cache := this()) is not None:
                cache.forget()

        for t in tensors:
            if t is not None and t.grad_fn is not None:
                t.grad_fn.register_prehook(forget)

    def __getstate__(self) -> dict[str, None]:
        # Autograd graphs can be neither copied nor pickled.
        return {"_last": None}


def _dependencies(module: nn.Module, context: Tensor | None) -> list[Tensor]:
    return _tensors(module) if context is None else [*_tensors(module), context]


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers; ``module.parameters()`` makes names of them and takes ten times."""
    found = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
    for child in module._modules.values():
        if child is not None:
            found += _tensors(child)
    return found


def _is_shared(t: Tensor | None) -> TypeGuard[Tensor]:
    """Whether somebody else may hold the memory of t and write to it unnoticed."""
    if t is None or not t.is_leaf:
        return False
    # On a GPU numpy shares no memory, and a comparison would wait for the device.
    return t.requires_grad or t.device.type == "cpu"


def _state(module: nn.Module, tensors: tuple[Tensor, ...]) -> tuple[object, ...] | None:
    """The tensors with their versions, and the modes that a result depends on.

    None when it cannot be told: inference tensors have no versions.
    """
    if torch.is_inference_mode_enabled() or any(t.is_inference() for t in tensors):
        return None
    versions = tuple((id(t), t._version, t.dtype, t.device, t.requires_grad) for t in tensors)
    autocast = torch.is_autocast_enabled(tensors[0].device.type)
    return (torch.is_grad_enabled(), module.training, autocast, *versions)


def is_same_point(y: Tensor, known: Tensor) -> bool:
    r"""Whether ``y`` is ``known`` after a trip through other transforms and back.

    An outer transform without a cache of its own inverts a fresh sample into a tensor that is
    new, but equal to rounding. Equality of values alone proves nothing: ``y`` must come from
    ``known`` in the autograd graph, by a map whose derivative is the identity, and must not
    depend on anything else to first order; that is tested with one vector-Jacobian product
    through the outer transforms alone. (A detached copy fails: its preimage depends on the
    flow's parameters, that of the sample does not.)
    """
    if y.grad_fn is None or known.grad_fn is None or torch._C._get_tracing_state():
        return False
    leaves = _leaves_before(y.grad_fn, known.grad_fn)
    if leaves is None:
        return False
    # An affine map whose loc is a thousand times its scale loses that many units.
    tolerance = 2048 * torch.finfo(y.dtype).eps * known.abs().clamp(min=1)
    return bool(((y - known).abs() <= tolerance).all()) and _is_identity_in(y, known, leaves)


def _leaves_before(node: object, stop: object) -> list[Tensor] | None:
    """The leaf tensors that ``node`` depends on other than through ``stop``; None without it."""
    stack, seen, leaves, found = [node], set(), [], False
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if len(seen) > _MAX_NODES:
            return None
        if current is stop:
            found = True
        elif hasattr(current, "variable"):
            leaves.append(current.variable)
        else:
            stack += [parent for parent, _ in current.next_functions if parent is not None]  # type: ignore[attr-defined]
    return leaves if found else None


def _is_identity_in(y: Tensor, known: Tensor, leaves: list[Tensor]) -> bool:
    # Any cotangent without symmetry will do; a fixed one leaves the user's generators alone.
    cotangent = torch.linspace(1, 2, y.numel(), dtype=y.dtype, device=y.device).sin().view(y.shape)
    try:
        of_known, *of_leaves = torch.autograd.grad(
            y, [known, *leaves], cotangent, retain_graph=True, allow_unused=True
        )
    except RuntimeError:  # a backward pass has freed the graph: nothing can be shown any more
        return False
    small = torch.finfo(y.dtype).eps ** 0.5
    total = float(cotangent.abs().sum() * known.detach().abs().amax().clamp(min=1))
    return (
        of_known is not None
        and bool(torch.allclose(of_known, cotangent, rtol=small, atol=small))
        and all(g is None or float(g.abs().max()) <= small * total for g in of_leaves)
    )
