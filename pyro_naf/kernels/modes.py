"""The modes of torch in which only its own operations will do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def needs_plain_operations(x: Tensor, *, autocast: bool = True) -> bool:
    """Whether something looks into, or rewrites, the operations on x one by one.

    Tracing, compilation, the transformations of ``torch.func``, forward-mode derivatives and
    autocast know torch's operations, and not the loops of a custom autograd function.

    :param autocast: whether autocast counts.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
        or (autocast and torch.is_autocast_enabled(x.device.type))
    )


def needs_plain_backward(*grads: Tensor) -> bool:
    """The same for a backward pass: of higher order, or batched (``is_grads_batched``)."""
    return torch.is_grad_enabled() or any(
        torch._C._functorch.is_legacy_batchedtensor(g) for g in grads
    )


def plain_gradients(
    plain: Callable[..., tuple[Tensor, Tensor]],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    *constants: Any,
) -> list[Tensor | None]:
    """The inputs' gradients of the plain formula: to be differentiated again, or batched."""
    wanted = [t for t in inputs if t.requires_grad]
    # A backward pass may run under the caller's autocast; a kernel's arithmetic does not.
    with torch.autocast(inputs[0].device.type, enabled=False):
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            outputs = plain(*inputs, *constants)
        found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=create_graph))
    return [next(found) if t.requires_grad else None for t in inputs]
