"""The cache of an autoregressive flow: one evaluation, remembered only while it is still true."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

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


def state_of(tensors: Iterable[Tensor], device: torch.device) -> tuple[object, ...] | None:
    """All tensors that an evaluation depends on, with their versions, and the modes of torch.

    A write through ``.data`` changes no version. Pyro's optimisers write so, but only after a
    backward pass, which the flow notices.

    None when it cannot be told (inference tensors have no versions; a compiler traces symbols).
    """
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return None
    tensors = tuple(tensors)
    if any(t.is_inference() for t in tensors):
        return None
    versions = tuple((id(t), t._version, t.dtype, t.device, t.requires_grad) for t in tensors)
    autocast = torch.is_autocast_enabled(device.type)
    return (torch.is_grad_enabled(), autocast, *versions)


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
    if y.shape != known.shape or y.dtype != known.dtype:
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
