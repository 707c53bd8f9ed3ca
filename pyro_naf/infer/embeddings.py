"""Modules between data and the context of an amortised guide: units, normal scores, and sets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..support.checks import check_integers

#: Quantiles between which normal scores are linear, and the outermost of them. More would follow
#: the noise of a thousand simulations.
_KNOTS, _OUTERMOST = 21, 2.5


class Standardize(nn.Module):
    r"""Subtract the means of data and divide by their standard deviations, entry by entry.

    .. math:: x \mapsto (x - m) / s

    For the first layer of a ``context_fn``: m and s are those of data sets simulated from the
    model. They are buffers, in the ``state_dict`` and not trained. An entry that never changes is
    divided by one.

    :param data: N data sets, shape ``(N, ...)``; m and s have the shape ``(...)`` of one of them.
    :param each: for data sets of exchangeable rows, the number of last axes that one row has: m
        and s are then taken over the rows too. With ``each=1`` data ``(N, n, C)`` have ``(C,)``.
    :raises ValueError: when there are fewer than two numbers for each entry, or numbers that are
        not finite.

    >>> _ = torch.manual_seed(0)
    >>> y = 100.0 + 5.0 * torch.randn(1000, 3)
    >>> z = Standardize(y)(y)
    >>> z.mean(0).abs().max().item() < 1e-3, z.std(0).round(decimals=3).tolist()
    (True, [1.0, 1.0, 1.0])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, data: Tensor, *, each: int | None = None) -> None:
        super().__init__()
        rows = _rows_of(data, each)
        scale = rows.std(0)
        self.register_buffer("loc", rows.mean(0))
        self.register_buffer("scale", torch.where(scale > 0, scale, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Standardised data, of the shape of ``x``."""
        return (x - self.loc) / self.scale


class NormalScores(nn.Module):
    r"""Map each entry of data to the normal quantile of its rank, whatever its distribution.

    .. math:: x \mapsto \Phi^{-1}(\hat F(x))

    with the distribution function :math:`\hat F` of data sets simulated from the model, linear
    between 21 quantiles and the extremes, and logarithmic beyond them. In place of
    :class:`Standardize` for counts, for data within bounds, and for heavy tails, of which standard
    units show a network little more than the extremes; normal data come out as from
    :class:`Standardize`. The quantiles are buffers, in the ``state_dict`` and not trained. Tied
    values get their middle rank, and an entry that never changes gets zero.

    :param data: N data sets, shape ``(N, ...)``, as for :class:`Standardize`.
    :param each: as there.
    :raises ValueError: as there.

    >>> _ = torch.manual_seed(0)
    >>> y = torch.randn(1000, 3).exp()
    >>> z = NormalScores(y)(y)
    >>> z.mean(0).abs().max().item() < 0.02, z.std(0).round(decimals=1).tolist()
    (True, [1.0, 1.0, 1.0])
    """

    places: Tensor
    scores: Tensor
    ends: Tensor

    def __init__(self, data: Tensor, *, each: int | None = None) -> None:
        super().__init__()
        rows = _rows_of(data, each)
        knots = (
            [_knots(column) for column in rows.flatten(1).T] if rows.dim() > 1 else [_knots(rows)]
        )
        width = max(len(places) for places, _ in knots)

        def padded(values: Tensor) -> Tensor:
            return nn.functional.pad(values, (0, width - len(values)), value=torch.inf)

        self.register_buffer("places", torch.stack([padded(places) for places, _ in knots]))
        self.register_buffer("scores", torch.stack([padded(scores) for _, scores in knots]))
        self.register_buffer("ends", torch.tensor([[len(places) - 1] for places, _ in knots]))

    def forward(self, x: Tensor) -> Tensor:
        """Compute normal scores, shaped like ``x``."""
        columns = x.to(self.places.dtype).reshape(-1, len(self.places)).T.contiguous()
        right = torch.searchsorted(self.places, columns).clamp(min=1).minimum(self.ends)
        a, b = self.places.gather(1, right - 1), self.places.gather(1, right)
        low, high = self.scores.gather(1, right - 1), self.scores.gather(1, right)
        score = low + (high - low) * (columns - a) / (b - a)
        least, most = self.scores[:, :1], self.scores.gather(1, self.ends)
        beyond = (score - most).relu().log1p() - (least - score).relu().log1p()
        return (score.clamp(least, most) + beyond).T.reshape(x.shape)


def _rows_of(data: Tensor, each: int | None) -> Tensor:
    """Put data sets, or their rows, in the first axis."""
    shape = data.shape[1:] if each is None else data.shape[data.dim() - each :]
    rows = data.detach().reshape(-1, *shape)
    rows = rows if rows.is_floating_point() else rows.to(torch.get_default_dtype())
    if len(rows) < 2 or not bool(rows.isfinite().all()):
        raise ValueError(
            "data must be at least two data sets of finite numbers, got "
            f"{int((~rows.isfinite()).sum())} that are not finite in shape {tuple(data.shape)}"
        )
    return rows


def _knots(column: Tensor) -> tuple[Tensor, Tensor]:
    """Increasing values of a column, at most ``_KNOTS`` + 2, and their normal scores."""
    places, counts = column.unique(return_counts=True)
    if len(places) == 1:
        return torch.cat([places, places + 1]), torch.zeros_like(places).repeat(2)
    ranks = (counts.cumsum(0) - 0.5 * counts).double() / len(column)
    scores = torch.special.ndtri(ranks)
    if len(places) > _KNOTS:
        levels = torch.linspace(-_OUTERMOST, _OUTERMOST, _KNOTS, device=scores.device)
        chosen = torch.searchsorted(scores, levels.double()).clamp(max=len(scores) - 1)
        ends = chosen.new_tensor([0, len(scores) - 1])
        chosen = torch.cat([chosen, ends]).unique()
        places, scores = places[chosen], scores[chosen]
    return places, scores.to(column.dtype)


class SetEncoder(nn.Module):
    r"""A summary of exchangeable observations, whatever their order and their number.

    .. math:: c = \rho\Bigl(\frac1n \sum_{i=1}^n \phi(x_i), \; \log(1 + n)\Bigr)

    with networks :math:`\phi` and :math:`\rho`. Every function of a set has this form, if they are
    wide enough; the mean and the number of observations are kept apart, so that numbers between
    those of training are no surprise.

    :param in_dim: width C of an observation; 0 for observations that are single numbers.
    :param out_dim: width of the summary, the ``context_dim`` of a guide.
    :param hidden_dim: width of the hidden layers, and of the mean.
    :raises ValueError: when called, for observations of another width or a mask of another shape.

    Shapes: observations ``(..., n, C)``, or ``(..., n)`` for single numbers; mask ``(..., n)``,
    true where an observation is there; summary ``(..., out_dim)``.

    Source: Zaheer et al. 2017 [arXiv:1703.06114].

    >>> _ = torch.manual_seed(0)
    >>> encoder = SetEncoder(2, 5)
    >>> x = torch.randn(7, 4, 2)
    >>> encoder(x).shape, torch.allclose(encoder(x), encoder(x.flip(1)), atol=1e-6)
    (torch.Size([7, 5]), True)
    >>> mask = torch.tensor([True, True, True, False])
    >>> torch.allclose(encoder(x, mask), encoder(x[:, :3]), atol=1e-6)
    True
    """

    def __init__(self, in_dim: int, out_dim: int, *, hidden_dim: int = 64) -> None:
        super().__init__()
        check_integers(in_dim=(in_dim, 0), out_dim=(out_dim, 1), hidden_dim=(hidden_dim, 1))
        self.in_dim = in_dim
        self.phi = nn.Sequential(
            nn.Linear(max(in_dim, 1), hidden_dim),
            nn.SiLU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.SiLU(),
        )
        self.rho = nn.Sequential(
            nn.Linear(hidden_dim + 1, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, out_dim)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Summaries of sets ``x``; with ``mask`` those of its observations that are there."""
        if not self.in_dim:
            x = x.unsqueeze(-1)
        if x.dim() < 2 or x.shape[-1] != max(self.in_dim, 1):
            raise ValueError(
                f"x must have shape (..., n{f', {self.in_dim}' if self.in_dim else ''}), got "
                f"{tuple(x.shape)}"
            )
        mask = x.new_ones(x.shape[-2], dtype=torch.bool) if mask is None else mask
        try:
            there = mask.bool().expand(x.shape[:-1]).unsqueeze(-1)
        except RuntimeError:
            raise ValueError(
                f"mask must have shape {tuple(x.shape[:-1])}, got {tuple(mask.shape)}"
            ) from None
        # What is not there may be anything, NaN as well.
        features = self.phi(torch.where(there, x, 0.0))
        number = there.sum(-2).to(x.dtype)
        mean = torch.where(there, features, 0.0).sum(-2) / number.clamp(min=1)
        return self.rho(torch.cat([mean, number.log1p()], -1))
