r"""Flows of rows that lack some of their dimensions, as a context tells: a spike has no amount.

Let P be the dimensions that a row has. Every layer sees zeros in the other dimensions, and only its
outputs in P are used. An autoregressive layer is then one of the dimensions P alone, with a
triangular Jacobian, and so is every stack of such layers:

.. math:: \log p(x_P) = \sum_{t \in P} \Big(\log p_z(z_t)
    + \sum_{\text{layers}} \log \partial y_t / \partial x_t\Big).

It is exact, for all sets P at once, and integrates to one for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor

from ..conditioners import sweep
from ..rootfinding import check_roots
from ..transforms import AutoregressiveFlow
from .linear import Reversal


class Base(Protocol):
    """A base distribution of independent dimensions."""

    def log_probs(self, z: Tensor) -> Tensor:
        """Return the log-density ``(..., D)`` of each dimension of z ``(..., D)``."""
        ...


class Triangular(Protocol):
    """A lower triangular linear map."""

    @property
    def lower(self) -> Tensor:
        """The matrix ``(D, D)``."""
        ...

    @property
    def centre(self) -> Tensor:
        """What is mapped to zero, ``(..., D)``."""
        ...


def present(x: Tensor, context: Tensor, holes: Mapping[int, int]) -> Tensor:
    """Which dimensions of x rows have, ``(..., D)``: where their entry of the context is 1.

    >>> present(torch.zeros(2, 3), torch.tensor([[1.0], [0.0]]), {2: 0}).tolist()
    [[True, True, True], [True, True, False]]
    """
    batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
    columns = [torch.ones(batch, dtype=torch.bool, device=x.device)] * x.shape[-1]
    for dim, place in holes.items():
        columns[dim] = (context[..., place] > 0.5).expand(batch)
    return torch.stack(columns, -1)


def log_prob(layers: Iterable[Any], base: Base, x: Tensor, here: Tensor) -> Tensor:
    """Return the log-density ``(...)`` of the dimensions of x ``(..., D)`` that are here.

    :param layers: from data to base, for the rows' context.
    :param base: of independent dimensions.
    """
    total = x.new_zeros(here.shape)
    for layer in layers:
        if isinstance(layer, Reversal):
            x, here, total = (t.flip(-1) for t in (x, here, total))
            continue
        if isinstance(layer, AutoregressiveFlow):
            x, log_slope = layer.value_and_log_slope(x)
        else:
            x, log_slope = layer(torch.where(here, x, layer.centre)), layer.log_slopes
        x, total = torch.where(here, x, 0.0), total + log_slope
    return torch.where(here, base.log_probs(x) + total, 0.0).sum(-1)


def drawn(layers: Sequence[Any], z: Tensor, context: Tensor, holes: Mapping[int, int]) -> Tensor:
    """Make the rows ``(..., D)`` of draws z of the base, with zeros where they lack a dimension.

    :param layers: from data to base, for any context.
    :param context: ``(..., C)``, which broadcasts with z.
    """
    flat, rows = z.reshape(-1, z.shape[-1]), z.shape[:-1].numel()
    context = context.expand(*z.shape[:-1], -1).reshape(rows, -1)
    here = present(flat, context, holes)
    if sum(isinstance(layer, Reversal) for layer in layers) % 2:
        here = here.flip(-1)
    flat = torch.where(here, flat, 0.0)
    for layer in reversed(layers):
        if isinstance(layer, ConditionalTransform):
            layer = layer.condition(context)
        if isinstance(layer, Reversal):
            flat, here = flat.flip(-1), here.flip(-1)
        elif isinstance(layer, AutoregressiveFlow):
            flat = _preimage(layer, flat, here, context)
        else:
            flat = _solved(layer, flat, here)
    return flat.view(z.shape)


def _preimage(layer: AutoregressiveFlow, y: Tensor, here: Tensor, context: Tensor) -> Tensor:
    """Invert an autoregressive flow, one dimension after another, with zeros in holes."""
    order = layer.arn.get_permutation().tolist()
    steps = sweep(layer.arn, len(y), context, like=y)
    x, phi, errors = list(y.unbind(-1)), next(steps), list[Tensor | None]()
    for place, dim in enumerate(order):
        found, error = layer.transformer.preimage(y[:, dim], phi)
        errors.append(error)
        x[dim] = torch.where(here[:, dim], found, 0.0)
        if place < len(order) - 1:
            phi = steps.send(x[dim])
    check_roots(errors, order)
    return torch.stack(x, -1)


def _solved(layer: Triangular, z: Tensor, here: Tensor) -> Tensor:
    """Invert a lower triangular map, with zeros in holes."""
    found = list[Tensor]()
    for t, row in enumerate(layer.lower):
        known = torch.stack(found, -1) @ row[:t] if t else 0.0
        found.append(torch.where(here[:, t], (z[:, t] - known) / row[t], 0.0))
    return torch.where(here, torch.stack(found, -1) + layer.centre, 0.0)
