"""Rows of a table as a density is trained on them: real numbers, classes and a context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import preparation
from .columns import Schema, beside
from .training import log_probs


@dataclass
class Modelled:
    """N encoded rows.

    :ivar real: ``(N, D)``, of the columns that are real numbers.
    :ivar codes: ``(N, M)``, of those that are classes.
    :ivar context: ``(N, C)``, None where there is none.
    :ivar log_slope: ``(N,)``, the logarithm of the map's slope.
    """

    real: Tensor
    codes: Tensor
    context: Tensor | None
    log_slope: Tensor

    @classmethod
    def of(
        cls, schema: Schema, rows: Sequence[Tensor], noise: torch.Generator | Tensor
    ) -> Modelled:
        """Rows ``(N, P)`` and, where there is one, a context, with noise on I integer columns.

        :param noise: what draws it, or ``(I,)``, one point for all rows.
        """
        shape = (len(rows[0]), len(schema.integers))
        if isinstance(noise, torch.Generator):
            noise = torch.rand(shape, generator=noise, dtype=torch.double).to(rows[0].device)
        found = schema.encode(rows[0], noise.expand(shape))
        context = rows[1] if len(rows) > 1 else None
        return cls(found.real, found.codes, context, found.log_slope)

    def __getitem__(self, kept: Tensor) -> Modelled:
        context = None if self.context is None else self.context[kept]
        return Modelled(self.real[kept], self.codes[kept], context, self.log_slope[kept])

    def __len__(self) -> int:
        return len(self.real)


@dataclass(frozen=True)
class Moments:
    """Means and scales of the real columns, and of the context."""

    loc: Tensor
    scale: Tensor
    context_loc: Tensor
    context_scale: Tensor

    def context(self, context: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Standardise a context."""
        if context is None:
            return None
        return preparation.standardised(context, self.context_loc, self.context_scale, dtype)

    def standardised(
        self, rows: Modelled, schema: Schema, dtype: torch.dtype, together: bool
    ) -> list[Tensor]:
        """Standardise the real columns and, where there is any, what they are conditioned on.

        :param together: classes are not conditioned on, but stand behind the real columns.
        """
        real = preparation.standardised(rows.real, self.loc, self.scale, dtype)
        if together:
            return [beside(real, rows.codes)]
        given = joined(self.context(rows.context, dtype), rows.codes, schema, dtype)
        return [real] if given is None else [real, given]


def joined(
    context: Tensor | None, codes: Tensor, schema: Schema, dtype: torch.dtype
) -> Tensor | None:
    """Join what a flow is conditioned on: standardised context, classes as zeros and ones."""
    if not schema.sizes:
        return context
    classes = schema.one_hot(codes)
    if context is None:
        return classes.to(dtype)
    shape = torch.broadcast_shapes(context.shape[:-1], classes.shape[:-1])
    parts = [context.expand(*shape, -1), classes.to(context).expand(*shape, -1)]
    return torch.cat(parts, -1)


def chunked_log_prob(flow: nn.Module, u: Tensor, given: Tensor | None) -> Tensor:
    """Flow's log-density ``(...)`` of u ``(..., D)`` given ``(..., C)``, in evaluation mode.

    It is computed in chunks that fit the memory.
    """
    batch = u.shape[:-1]
    if given is not None:
        batch = torch.broadcast_shapes(batch, given.shape[:-1])
        given = given.expand(*batch, -1).reshape(-1, given.shape[-1])
    flat = [u.expand(*batch, -1).reshape(-1, u.shape[-1]), *([] if given is None else [given])]
    parts = list(log_probs(flow, flat)) if len(flat[0]) else [u.new_zeros(0)]
    return torch.cat(parts).view(batch)
