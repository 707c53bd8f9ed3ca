"""Autograd functions of an older form, which ``torch.func`` refuses, under ``torch.vmap``.

A :class:`torch.autograd.Function` whose ``forward`` takes a context, without ``setup_context``,
cannot be run by ``torch.vmap``; Pyro's ``safe_log`` and many models have such functions.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from unittest import mock

from torch import Tensor
from torch.autograd import Function

from ..support.autograd import Context


class _Recorder:
    """Stands in for the context of a forward pass, and keeps what is put into it."""

    saved: tuple[Tensor, ...] = ()
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved = tensors

    def mark_dirty(self, *tensors: Tensor) -> None:
        raise RuntimeError("a function that changes its input in place cannot be run by vmap")

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        pass

    def set_materialize_grads(self, value: bool) -> None:
        pass


class _Context(Context, Protocol):
    attributes: dict[str, object]


@functools.cache
def _in_the_newer_form(old: type[Function]) -> type[Function]:
    """Give a function a ``setup_context``, which runs the forward pass a second time."""

    class Newer(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(*args: object) -> object:
            return old.forward(_Recorder(), *args)

        @staticmethod
        def setup_context(ctx: _Context, inputs: tuple[object, ...], output: object) -> None:
            recorder = _Recorder()
            old.forward(recorder, *inputs)
            ctx.save_for_backward(*recorder.saved)
            ctx.attributes = {k: v for k, v in vars(recorder).items() if k != "saved"}

        @staticmethod
        def backward(ctx: _Context, *grads: object) -> object:
            recorder = _Recorder()
            recorder.saved_tensors = ctx.saved_tensors
            recorder.needs_input_grad = ctx.needs_input_grad
            vars(recorder).update(ctx.attributes)
            return old.backward(recorder, *grads)

    return Newer


@contextmanager
def old_functions_under_vmap() -> Iterator[None]:
    """Inside, functions of the older form are run as ones of the newer.

    >>> import torch
    >>> from pyro.ops.special import safe_log
    >>> with old_functions_under_vmap():
    ...     torch.vmap(torch.func.grad(safe_log))(torch.tensor([1.0, 2.0]))
    tensor([1.0000, 0.5000])
    """
    usual = Function.apply.__func__  # type: ignore[attr-defined]
    default = Function.setup_context

    def apply(cls: type[Function], /, *args: object, **kwargs: object) -> object:
        if cls.setup_context is default and "vmap" not in vars(cls):
            cls = _in_the_newer_form(cls)
        return usual(cls, *args, **kwargs)

    with mock.patch.object(Function, "apply", classmethod(apply)):
        yield
