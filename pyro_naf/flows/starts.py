"""Where the sigmoids of a flow start: the constant part of its pseudo-parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..conditioners import MADE, AttentionConditioner
from ..formulas.affine import unbounded
from ..transformers import Scaled, Transformer
from ..transformers.sigmoids import SigmoidalTransformer

#: Minimum number of distinct draws inside the width of one sigmoid.
_DISTINCT = 12

#: Number of draws whose image is measured.
_MEASURED = 500


@torch.no_grad()
def spread_sigmoids(
    conditioner: MADE | AttentionConditioner, transformer: Transformer, sharpness: float
) -> None:
    r"""Start a transformer near the identity, with sharp sigmoids at places spread over the data.

    One of the K sigmoids of a layer stays :math:`\sigma(x)`, with half of the weight, so that far
    out the map is the identity. The others have the slope ``sharpness`` and step at the quantiles
    of the logistic distribution, so that their mean is about :math:`\sigma(x)` too. Guides start
    with K sigmoids that hardly differ; training finds many modes sooner from the sharp sigmoids.

    :param conditioner: its output bias is written.
    :param transformer: its transformer, of sigmoids; one of K = 1 stays as it is.
    :param sharpness: that slope, above the transformer's ``min_slope``.
    :raises TypeError: for a transformer without sigmoids.
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
    layers = _layer(sigmoids, slopes, places, logits).repeat(sigmoids.num_layers)
    conditioner.output_bias[:, : len(layers)] = layers


@torch.no_grad()
def sigmoids_at(
    conditioner: MADE | AttentionConditioner, transformer: Transformer, draws: Tensor
) -> None:
    r"""Start a flow from data to base with the marginals of the data.

    In each dimension the K sigmoids of the first layer step at K quantiles of the draws, and are as
    wide as a K-th of the draws around there: a mixture of logistic distributions, whose parts are
    as narrow as the modes that they lie in. Training moves a slope by about a learning rate a step,
    and so does not get from one to the hundreds that narrow modes apart from each other take.

    :param conditioner: its output bias is written.
    :param transformer: its transformer, of sigmoids; a :class:`~pyro_naf.transformers.Scaled` one
        gives the image mean 0 and standard deviation 1, too.
    :param draws: shape ``(N, D)``; a draw may come several times.
    :raises TypeError: for a transformer without sigmoids.
    :raises ValueError: for draws of another shape, or that are not finite.

    >>> from pyro_naf import deep_sigmoidal_flow
    >>> flow = deep_sigmoidal_flow(1, [8], affine=True)
    >>> draws = torch.cat([torch.randn(500, 1) - 300, torch.randn(500, 1) + 300])
    >>> sigmoids_at(flow.arn, flow.transformer, draws)
    >>> bool(flow(draws).abs().max() < 10)
    True
    """
    sigmoids = _inner(transformer)
    if draws.dim() != 2 or not len(draws) or draws.shape[1] != conditioner.input_dim:
        raise ValueError(
            f"draws must have shape (N, {conditioner.input_dim}), N >= 1, got {tuple(draws.shape)}"
        )
    if not bool(draws.isfinite().all()):
        raise ValueError("draws must be finite")
    draws = draws.to(conditioner.output_bias)[:, conditioner.permutation]
    columns = [_places_and_slopes(column, sigmoids.hidden_units) for column in draws.T]
    places, slopes = (torch.stack(parts) for parts in zip(*columns, strict=True))
    conditioner.output_bias.zero_()
    layer = _layer(sigmoids, slopes, places, torch.zeros_like(places))
    conditioner.output_bias[:, : layer.shape[-1]] = layer
    if isinstance(transformer, Scaled):
        some = draws[:: max(len(draws) // _MEASURED, 1)]
        image, _ = transformer.plain(some, conditioner.output_bias.expand(len(some), -1, -1))
        scale = image.std(0, correction=0).clamp(min=1e-3)
        conditioner.output_bias[:, -2] = -image.mean(0) / scale
        conditioner.output_bias[:, -1] = unbounded(-scale.log(), transformer.log_scale_limits)


def _places_and_slopes(column: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Where the K sigmoids of one dimension step, and how steeply, each ``(K,)``."""
    values, counts = column.unique(return_counts=True)
    masses = counts.to(values) / len(column)
    middles = (torch.arange(k).to(values) + 0.5) / k
    quantiles = torch.searchsorted(masses.cumsum(0), middles).clamp(max=len(values) - 1)
    places = values[quantiles]
    distances, nearest = (values.unsqueeze(-1) - places).abs().sort(0)
    # So many values around a place make up half of a K-th of the draws. If few do, as they were
    # drawn often, it is no narrow mode.
    number = (masses[nearest].cumsum(0) < 0.5 / k).sum(0)
    number = number.clamp(min=_DISTINCT).clamp(max=len(values) - 1)
    radius = distances.gather(0, number.unsqueeze(0)).squeeze(0)
    tiny = torch.finfo(values.dtype).eps * (1 + places.abs())
    # A logistic distribution of twice that scale is smooth beside its neighbours.
    return places, 0.5 / torch.maximum(radius, tiny)


def _layer(
    sigmoids: SigmoidalTransformer, slopes: Tensor, places: Tensor, logits: Tensor
) -> Tensor:
    """Return raw parameters ``(..., 3 K)`` of slopes, places and logits ``(..., K)`` each."""
    slopes = slopes.clamp(min=sigmoids.min_slope + 1e-3)
    return sigmoids.spec().unconstrain(slopes, -slopes * places, logits)


def _inner(transformer: Transformer) -> SigmoidalTransformer:
    inner = transformer.inner if isinstance(transformer, Scaled) else transformer
    if not isinstance(inner, SigmoidalTransformer):
        raise TypeError(f"transformer must be made of sigmoids, got {type(inner).__name__}")
    return inner
