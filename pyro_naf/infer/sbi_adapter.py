"""Our conditional flows as the density estimator of sbi's neural posterior estimation."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.conditional import ConditionalComposeTransformModule
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform

from ..guides.contexts import ContextAffine
from ..support.checks import check_integers
from ..transforms import conditional_deep_dense_sigmoidal_flow, conditional_deep_sigmoidal_flow
from .embeddings import Standardize

_FLOWS: dict[str, Callable[..., object]] = {
    "dsf": conditional_deep_sigmoidal_flow,
    "ddsf": conditional_deep_dense_sigmoidal_flow,
}


def sbi_estimator(
    flow: str = "dsf",
    *,
    num_transforms: int = 2,
    hidden_dims: Sequence[int] | None = None,
    hidden_units: int = 16,
    embedding_net: nn.Module | None = None,
    **kw: object,
) -> Callable[[Tensor, Tensor], object]:
    r"""Make a ``density_estimator`` for the trainers of `sbi <https://sbi-dev.github.io/sbi/>`_.

    .. math:: \epsilon = f(e^{-s(c)} (\tilde\theta - m(c)); c), \qquad c = h(\tilde x),

    with f a stack of conditional flows, h the embedding net, and the parameters and the data
    standardised by the training set, as :math:`\tilde\theta` and :math:`\tilde x`. A density is one
    pass; drawing runs the inverse.

    :param flow: "dsf" or "ddsf".
    :param num_transforms: number of flows.
    :param hidden_dims: hidden widths of the conditioners; by default two layers of 64.
    :param hidden_units: number of sigmoids.
    :param embedding_net: maps standardised data to a context, such as a
        :class:`~pyro_naf.infer.SetEncoder`; by default the data themselves, as one vector.
    :param kw: further arguments of :func:`~pyro_naf.transforms.deep_sigmoidal_flow`, or of the
        dense one.
    :return: a function of training parameters ``(N, D)`` and data ``(N, ...)``, which builds an
        ``sbi.neural_nets.estimators.ConditionalDensityEstimator`` for them.
    :raises ValueError: for another flow; when called, for parameters or data that are not finite.
    :raises ImportError: when called without sbi.

    Source: Papamakarios & Murray 2016 [arXiv:1605.06376].

    >>> from pyro_naf.infer import sbi_estimator
    >>> build = sbi_estimator("dsf", hidden_units=8)
    >>> # from sbi.inference import NPE
    >>> # posterior = NPE(prior, density_estimator=build)
    """
    if flow not in _FLOWS:
        raise ValueError(f"flow must be one of {sorted(_FLOWS)}, got {flow!r}")
    check_integers(num_transforms=(num_transforms, 1), hidden_units=(hidden_units, 1))
    widths = [64, 64] if hidden_dims is None else list(hidden_dims)
    factory = functools.partial(_FLOWS[flow], hidden_dims=widths, hidden_units=hidden_units, **kw)
    return functools.partial(_build, factory, num_transforms, embedding_net or nn.Flatten())


def _build(
    factory: Callable[..., object],
    num_transforms: int,
    embedding: nn.Module,
    theta: Tensor,
    x: Tensor,
) -> nn.Module:
    net = ConditionalDensity(factory, num_transforms, embedding, theta, x)
    return _estimator_class()(net, theta.shape[1:], x.shape[1:])


class ConditionalDensity(nn.Module):
    """The density of parameters given data, in units of a training set.

    :param factory: makes a conditional flow of D, the width of a context, and an order.
    :param num_transforms: number of flows, alternately in natural and reversed order.
    :param embedding: maps standardised data to contexts.
    :param theta: parameters ``(N, D)``.
    :param x: data ``(N, ...)``.
    """

    def __init__(
        self,
        factory: Callable[..., object],
        num_transforms: int,
        embedding: nn.Module,
        theta: Tensor,
        x: Tensor,
    ) -> None:
        super().__init__()
        self.of_theta, self.of_x = Standardize(theta), Standardize(x)
        self.embedding, self.num_axes = embedding, x.dim() - 1
        dim, context_dim = theta.shape[1], self.context(x[:2]).shape[-1]
        orders = [("natural", "reversed")[i % 2] for i in range(num_transforms)]
        flows = [factory(dim, context_dim, order=order) for order in orders]
        self.flow = ConditionalComposeTransformModule(flows)
        self.affine = ContextAffine(context_dim, dim)

    def context(self, x: Tensor) -> Tensor:
        """Contexts ``(..., C)`` of data ``(..., *shape of one)``."""
        rows = self.of_x(x)
        rows = rows.reshape(-1, *rows.shape[rows.dim() - self.num_axes :])
        return self.embedding(rows).reshape(*x.shape[: x.dim() - self.num_axes], -1)

    def posterior(self, x: Tensor) -> dist.TransformedDistribution:
        """Return the distribution of parameters given data, a batch of those of the data."""
        context = self.context(x)
        shift, log_scale = self.affine(context)
        flows = self.flow.condition(context)
        base = dist.Normal(torch.zeros_like(shift), 1.0).to_event(1)
        outer = [
            AffineTransform(shift, log_scale.exp(), event_dim=1),
            AffineTransform(self.of_theta.loc, self.of_theta.scale, event_dim=1),
        ]
        return dist.TransformedDistribution(base, [*(f.inv for f in reversed(flows.parts)), *outer])


@functools.cache
def _estimator_class() -> Callable[..., nn.Module]:
    """sbi's interface around :class:`ConditionalDensity`; sbi is imported when it is needed."""
    try:
        base: Any = importlib.import_module("sbi.neural_nets.estimators")
    except ImportError as error:
        raise ImportError(
            f"sbi_estimator needs the package sbi, which cannot be imported ({error}): "
            "pip install sbi"
        ) from error

    class FlowEstimator(base.ConditionalDensityEstimator):
        """A density of parameters given data, as sbi asks for it."""

        @property
        def embedding_net(self) -> nn.Module:
            return self.net.embedding

        def log_prob(self, input: Tensor, condition: Tensor, **kwargs: object) -> Tensor:
            """Log-density ``(S, B)`` at ``(S, B, D)`` given ``(B, ...)``."""
            input, condition, _ = self._broadcast_and_align(input, condition)
            return self.net.posterior(condition).log_prob(input)

        def loss(self, input: Tensor, condition: Tensor, **kwargs: object) -> Tensor:
            """Minus the log-density ``(B,)`` at ``(B, D)``."""
            return -self.net.posterior(condition).log_prob(input)

        def sample(
            self, sample_shape: Sequence[int], condition: Tensor, **kwargs: object
        ) -> Tensor:
            """Draws ``(*sample_shape, B, D)``."""
            return self.net.posterior(condition).sample(torch.Size(sample_shape))

    FlowEstimator.__qualname__ = "FlowEstimator"  # for pickle, which finds it here
    return FlowEstimator


def __getattr__(name: str) -> object:
    if name == "FlowEstimator":
        return _estimator_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
