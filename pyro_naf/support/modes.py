"""The modes of torch in which only its own operations will do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

_calls_are_recorded: ContextVar[bool] = ContextVar("calls_are_recorded", default=False)

_INFRA_MODES = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)

#: Absent before torch 2.8: there hooks are not seen.
_top_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)


def current_modes(x: Tensor) -> tuple[object, ...]:
    """Every mode that changes what an operation on x gives, to be compared with ``==``.

    Gradients and autocast on or off, then the tracer, the dispatch modes, the levels of
    ``torch.func`` and of forward-mode derivatives, and whether a CUDA graph records.
    """
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled(x.device.type),
        torch._C._get_tracing_state(),
        *(torch._C._get_dispatch_mode(mode) for mode in _INFRA_MODES),
        torch._C._functorch.maybe_current_level(),
        forward_ad._current_level,
        x.is_cuda and torch.cuda.is_current_stream_capturing(),
    )


def needs_plain_operations(x: Tensor, *, autocast: bool = True) -> bool:
    """Whether something looks into, or rewrites, the operations on x one by one.

    Tracing, compilation, fake tensors, the transformations of ``torch.func``, forward-mode
    derivatives and autocast know torch's operations, and not the loops of a custom autograd
    function, nor its looks at values.

    :param autocast: whether autocast counts.
    """
    return (
        values_are_unknown()
        or torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
        or (autocast and torch.is_autocast_enabled(x.device.type))
    )


def values_are_unknown() -> bool:
    """Whether operations are recorded for other inputs than these: no step may depend on values."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or any(torch._C._get_dispatch_mode(mode) is not None for mode in _INFRA_MODES)
    )


@contextlib.contextmanager
def recording_calls() -> Iterator[None]:
    """Capture graphs inside that are called as they are, and so may hold this package's loops.

    A compiler is better given the plain formulas, which it makes loops of.
    """
    token = _calls_are_recorded.set(True)
    try:
        yield
    finally:
        _calls_are_recorded.reset(token)


def calls_are_recorded() -> bool:
    """Whether a graph is captured by :func:`recording_calls`."""
    return not torch.compiler.is_compiling() and _calls_are_recorded.get()


def saves_elsewhere() -> bool:
    """Whether hooks take what autograd saves, as ``torch.utils.checkpoint`` does."""
    return _top_hooks(True) is not None


def outlives_its_level(x: Tensor) -> bool:
    """Whether x, inside a transformation of ``torch.func``, is a tensor from outside of it."""
    level = torch._C._functorch.maybe_current_level()
    return level is not None and torch._C._functorch.maybe_get_level(x) != level


def needs_plain_backward(*grads: Tensor) -> bool:
    """Tell whether a backward pass is of higher order, or batched (vmap, ``is_grads_batched``)."""
    return (
        torch.is_grad_enabled()
        or torch._C._functorch.maybe_current_level() is not None
        or any(torch._C._functorch.is_legacy_batchedtensor(g) for g in grads)
    )


def plain_gradients(
    plain: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    *constants: object,
) -> list[Tensor | None]:
    """Compute the inputs' gradients of the plain formula, to be differentiated or batched."""
    # A backward pass may run under the caller's autocast; the forward pass here did not.
    with torch.autocast(inputs[0].device.type, enabled=False):
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            # Views: phi depends on x, but here only the partial derivatives are asked for.
            inputs = [t.view_as(t) for t in inputs]
            outputs = plain(*inputs, *constants)
        wanted = [t for t in inputs if t.requires_grad]
        found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=create_graph))
    return [next(found) if t.requires_grad else None for t in inputs]
