"""Factories: each flow by name on a fresh conditioner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from ..conditioners import choice
from ..formulas.spec import count_params
from ..support.checks import check_integers
from . import named

_Flow = TypeVar("_Flow")


def affine_autoregressive_flow(
    input_dim: int, hidden_dims: Sequence[int] | None = None, **kw: object
) -> named.AffineAutoregressiveFlow:
    """Make an :class:`AffineAutoregressiveFlow` on a fresh conditioner.

    :param input_dim: number D of dimensions.
    :param hidden_dims: as in the conditioner; by default one layer of 3 D + 1 units, but at least
        32 and at most 512, or two blocks of 32 with ``conditioner="attention"``.
    :param kw: ``conditioner``, "made" or "attention"; further arguments of
        :class:`~pyro_naf.conditioners.MADE` (``order``, ``residual``, ``head_dim``,
        ``activation``) or :class:`~pyro_naf.conditioners.AttentionConditioner` (``order``,
        ``num_heads``, ``dropout``, ``activation``), and of
        :class:`~pyro_naf.transformers.Affine` (``gated``, ``gate_bias``).

    >>> import torch
    >>> affine_autoregressive_flow(3, order="natural")(torch.randn(5, 3)).shape
    torch.Size([5, 3])
    """
    return _make(named.AffineAutoregressiveFlow, 2, input_dim, hidden_dims, kw)


def deep_sigmoidal_flow(
    input_dim: int,
    hidden_dims: Sequence[int] | None = None,
    hidden_units: int = 16,
    *,
    affine: bool = False,
    **kw: object,
) -> named.DeepSigmoidalFlow:
    """Make a :class:`DeepSigmoidalFlow` on a fresh conditioner.

    :param input_dim: number D of dimensions.
    :param hidden_dims: as in :func:`affine_autoregressive_flow`.
    :param hidden_units: K, the number of sigmoids.
    :param affine: an affine map around the sigmoids, as in :class:`DeepSigmoidalFlow`.
    :param kw: ``conditioner`` and its arguments, as in :func:`affine_autoregressive_flow`, and
        further ones of :class:`~pyro_naf.transformers.DeepSigmoidal` (``min_slope``, ``spread``,
        ``kernel``).

    >>> import torch
    >>> import pyro.distributions as dist
    >>> flow = deep_sigmoidal_flow(3)
    >>> base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    >>> density = dist.TransformedDistribution(base, [flow.inv])
    >>> density.log_prob(torch.randn(5, 3)).shape, density.sample([5]).shape
    (torch.Size([5]), torch.Size([5, 3]))
    """
    num_params = _num_params(hidden_units, 1, affine)
    sizes = hidden_units, affine
    return _make(named.DeepSigmoidalFlow, num_params, input_dim, hidden_dims, kw, *sizes)


def deep_dense_sigmoidal_flow(
    input_dim: int,
    hidden_dims: Sequence[int] | None = None,
    hidden_units: int = 16,
    num_layers: int = 2,
    *,
    affine: bool = False,
    **kw: object,
) -> named.DeepDenseSigmoidalFlow:
    """Make a :class:`DeepDenseSigmoidalFlow` on a fresh conditioner.

    :param num_layers: L, the number of dense sigmoidal layers; for the other arguments see
        :func:`deep_sigmoidal_flow`.

    >>> import torch
    >>> deep_dense_sigmoidal_flow(3, hidden_units=4, num_layers=3)(torch.randn(5, 3)).shape
    torch.Size([5, 3])
    """
    num_params = _num_params(hidden_units, num_layers, affine)
    sizes = hidden_units, num_layers, affine
    return _make(named.DeepDenseSigmoidalFlow, num_params, input_dim, hidden_dims, kw, *sizes)


def conditional_affine_autoregressive_flow(
    input_dim: int, context_dim: int, hidden_dims: Sequence[int] | None = None, **kw: object
) -> named.ConditionalAffineAutoregressiveFlow:
    """:func:`affine_autoregressive_flow` with a context of width ``context_dim``.

    >>> import torch
    >>> flow = conditional_affine_autoregressive_flow(3, 2)
    >>> flow.condition(torch.randn(5, 2))(torch.randn(5, 3)).shape
    torch.Size([5, 3])
    """
    kind = named.ConditionalAffineAutoregressiveFlow
    flow: named.ConditionalAffineAutoregressiveFlow = _make(
        kind, 2, input_dim, hidden_dims, kw, context_dim=context_dim
    )
    return flow


def conditional_deep_sigmoidal_flow(
    input_dim: int,
    context_dim: int,
    hidden_dims: Sequence[int] | None = None,
    hidden_units: int = 16,
    *,
    affine: bool = False,
    **kw: object,
) -> named.ConditionalDeepSigmoidalFlow:
    """:func:`deep_sigmoidal_flow` with a context of width ``context_dim``.

    >>> import torch
    >>> flow = conditional_deep_sigmoidal_flow(3, 2)
    >>> flow.condition(torch.randn(5, 2))(torch.randn(5, 3)).shape
    torch.Size([5, 3])
    """
    num_params = _num_params(hidden_units, 1, affine)
    kind, sizes = named.ConditionalDeepSigmoidalFlow, (hidden_units, affine)
    flow: named.ConditionalDeepSigmoidalFlow = _make(
        kind, num_params, input_dim, hidden_dims, kw, *sizes, context_dim=context_dim
    )
    return flow


def conditional_deep_dense_sigmoidal_flow(
    input_dim: int,
    context_dim: int,
    hidden_dims: Sequence[int] | None = None,
    hidden_units: int = 16,
    num_layers: int = 2,
    *,
    affine: bool = False,
    **kw: object,
) -> named.ConditionalDeepDenseSigmoidalFlow:
    """:func:`deep_dense_sigmoidal_flow` with a context of width ``context_dim``.

    >>> import torch
    >>> flow = conditional_deep_dense_sigmoidal_flow(3, 2)
    >>> flow.condition(torch.randn(5, 2))(torch.randn(5, 3)).shape
    torch.Size([5, 3])
    """
    num_params = _num_params(hidden_units, num_layers, affine)
    kind, sizes = named.ConditionalDeepDenseSigmoidalFlow, (hidden_units, num_layers, affine)
    flow: named.ConditionalDeepDenseSigmoidalFlow = _make(
        kind, num_params, input_dim, hidden_dims, kw, *sizes, context_dim=context_dim
    )
    return flow


def _num_params(hidden_units: int, num_layers: int, affine: bool) -> int:
    """As :func:`~pyro_naf.formulas.spec.count_params`, of checked arguments."""
    check_integers(hidden_units=(hidden_units, 1), num_layers=(num_layers, 1))
    return count_params(hidden_units, num_layers, affine=affine)


def _make(
    flow: Callable[..., _Flow],
    num_params: int,
    input_dim: int,
    hidden_dims: Sequence[int] | None,
    kw: dict[str, object],
    *sizes: object,
    context_dim: int = 0,
) -> _Flow:
    """Make ``flow(conditioner, *sizes)``; what of ``kw`` is not the conditioner's is the flow's."""
    name = kw.pop("conditioner", "made")
    chosen = {option: kw.pop(option) for option in choice.OPTIONS if option in kw}
    chosen["context_dim"] = context_dim
    return flow(choice.make(name, input_dim, hidden_dims, num_params, **chosen), *sizes, **kw)
