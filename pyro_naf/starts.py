"""Where the sigmoids of a flow start: the constant part of its pseudo-parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .conditioners import MADE
from .transformers import Scaled, Transformer
from .transformers.base import SigmoidalTransformer

#: Standard deviation of the logistic distribution, whose distribution function is the sigmoid.
_LOGISTIC = math.pi / 3**0.5


@torch.no_grad()
def spread_sigmoids(made: MADE, transformer: Transformer, sharpness: float) -> None:
    r"""Starts a transformer near the identity, with sharp sigmoids at places spread over the data.

    Of the K sigmoids of a layer one stays :math:`\sigma(x)`, with half of the weight, so that far
    out the map is the identity; the others have the slope ``sharpness`` and step at the quantiles
    of the logistic distribution, so that their mean is about :math:`\sigma(x)` too. Guides start
    with K sigmoids that are all but alike; a density of many modes finds them sooner from here.

    :param made: the conditioner, whose output bias is written.
    """
    sigmoids = _inner(transformer)
    k = sigmoids.hidden_units
    if k == 1:
        return
    slopes = torch.full((k,), sharpness, dtype=torch.double)
    slopes[0] = 1.0
    places = torch.logit((torch.arange(k, dtype=torch.double) - 0.5) / (k - 1))
    places[0] = 0.0
    logits = torch.zeros(k, dtype=torch.double)
    logits[0] = math.log(k - 1)
    layer = _raw(sigmoids, slopes, places, logits)
    layers = getattr(sigmoids, "num_layers", 1)
    made.output_bias[:, : 3 * k * layers] = layer.repeat(layers)


@torch.no_grad()
def sigmoids_at(made: MADE, transformer: Transformer, draws: Tensor) -> None:
    r"""Starts a flow from data to base with the marginals of the data.

    In each dimension the K sigmoids of the first layer step at K quantiles of the draws, and are as
    wide as a K-th of the draws around there: a mixture of logistic distributions, whose parts are
    as narrow as the modes that they lie in. Training moves a slope by about a learning rate a step,
    and so does not get from one to the hundreds that narrow modes apart from each other take.

    :param made: the conditioner, whose output bias is written.
    :param transformer: a :class:`~pyro_naf.transformers.Scaled` one makes the image as wide as a
        standard normal, too.
    :param draws: shape ``(N, D)``, N at least 2 K.
    """
    sigmoids = _inner(transformer)
    k, n = sigmoids.hidden_units, len(draws)
    draws = draws.to(made.output_bias)[:, made.permutation].sort(0).values
    middles = ((torch.arange(k) + 0.5) * n / k).long()
    places = draws[middles]
    distances = (draws.unsqueeze(1) - places).abs()
    # Half of that number lies this near; a logistic distribution of twice that scale is smooth
    # beside its neighbours.
    radius = distances.kthvalue(max(n // (2 * k), 1), 0).values
    tiny = torch.finfo(radius.dtype).eps * (1 + places.abs())
    slopes = 0.5 / torch.maximum(radius, tiny)
    layer = _raw(sigmoids, slopes.T, places.T, torch.zeros_like(places.T))
    made.output_bias.zero_()
    made.output_bias[:, : 3 * k] = layer
    if isinstance(transformer, Scaled):
        made.output_bias[:, -1] = -math.log(_LOGISTIC)


def _raw(sigmoids: SigmoidalTransformer, slopes: Tensor, places: Tensor, logits: Tensor) -> Tensor:
    """A layer's raw parameters ``(..., 3 K)``; slopes, places and logits are ``(..., K)``."""
    shift, floor = sigmoids.softplus_constants()
    slopes = slopes.clamp(min=floor + 1e-3)
    above = slopes - floor
    raw = above + (-(-above).expm1()).log() - shift  # the softplus's inverse
    return torch.cat([raw, -slopes * places - sigmoids.initial_biases.to(slopes), logits], -1)


def _inner(transformer: Transformer) -> SigmoidalTransformer:
    inner = transformer.inner if isinstance(transformer, Scaled) else transformer
    if not isinstance(inner, SigmoidalTransformer):
        raise TypeError(f"transformer must be made of sigmoids, got {type(inner).__name__}")
    return inner
