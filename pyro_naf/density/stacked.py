"""A weighted mixture of densities: the parts that cross-validation has fitted and weighted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from .closed_form import Part
from .flow import NormalizingFlow
from .gaussian_mixture import GaussianMixture
from .given_classes import GivenClasses
from .mixture import ModuleDistribution

#: Steps of expectation and maximisation that find the weights.
WEIGHT_STEPS = 500


class Stacked(nn.Module):
    r"""The density :math:`p(x) = \sum_m w_m\, p_m(x)` of fitted parts.

    It has the interface of a :class:`~pyro_naf.density.flow.NormalizingFlow`.

    :param input_dim: D >= 1.
    :param parts: M >= 1 densities of D dimensions.
    :param weights: their weights ``(M,)``, of sum 1.

    Source: Smyth & Wolpert 1998, Stacked density estimation.

    >>> from pyro_naf.density.architectures import build
    >>> stacked = Stacked(2, [build("gaussian", 2), build("gmm-3", 2)], torch.tensor([0.5, 0.5]))
    >>> stacked.log_prob(stacked.rsample(5)).shape
    torch.Size([5])
    """

    log_weights: Tensor
    sampling = False
    no_inverse: str | None = None

    def __init__(self, input_dim: int, parts: Sequence[nn.Module], weights: Tensor) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.parts = nn.ModuleList(parts)
        self.register_buffer("log_weights", weights.log().to(torch.get_default_dtype()))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """:meth:`log_prob`."""
        return self.log_prob(x, context)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density ``(...)`` of x ``(..., D)`` given the context ``(..., C)``."""
        terms = [part.log_prob(x, context) for part in self._densities()]
        return torch.logsumexp(torch.stack(terms, -1) + self.log_weights, -1)

    def _densities(self) -> Iterator[NormalizingFlow | GivenClasses]:
        for part in self.parts:
            assert isinstance(part, NormalizingFlow | GivenClasses)
            yield part

    def closed_form(self) -> list[Part] | None:
        """Return the density by Gaussians; None where one of its parts is none."""
        found: list[Part] = []
        for weight, part in zip(self.log_weights.tolist(), self._densities(), strict=True):
            own = part.closed_form()
            if own is None:
                return None
            found += [replace(p, log_weight=p.log_weight + weight) for p in own]
        return found

    def rsample(self, n: int, context: Tensor | None = None) -> Tensor:
        """n draws ``(n, ..., D)``; the parts' parameters get a gradient.

        The part that a draw comes from does not depend on anything that is trained, so that the
        gradient of an expectation is unbiased.
        """
        batch = () if context is None else context.shape[:-1]
        rows = n * torch.Size(batch).numel()
        if context is not None:
            context = context.expand(n, *batch, -1).reshape(rows, -1)
        return self._rows(rows, context).reshape(n, *batch, self.input_dim)

    def _rows(self, rows: int, context: Tensor | None) -> Tensor:
        if rows == 0:
            return self.log_weights.new_zeros(0, self.input_dim)
        part = torch.multinomial(self.log_weights.exp(), rows, replacement=True)
        at, draws = [], []
        for i, density in enumerate(self._densities()):
            mine = (part == i).nonzero().squeeze(1)
            if len(mine):
                given = None if context is None else context[mine]
                at.append(mine)
                draws.append(
                    density.rsample(len(mine)) if given is None else density.rsample(1, given)[0]
                )
        return torch.cat(draws)[torch.cat(at).argsort()]

    def rsample_and_log_prob(self, n: int, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """n draws ``(n, ..., D)`` and their log-density ``(n, ...)``, both with gradients."""
        x = self.rsample(n, context)
        return x, self.log_prob(x, context)

    def distribution(self, context: Tensor | None = None) -> dist.TransformedDistribution:
        """Return the density as a Pyro distribution with batch shape ``(...)`` of the context."""
        return dist.TransformedDistribution(ModuleDistribution(_Flat(self), context), [])


@dataclass
class Folds:
    """Where the parts of a density, and the rows that it held out, come from.

    :ivar parts: candidate and fold of each part; a fit to all rows is the fold after the last.
    :ivar rows: the fold ``(N,)`` of each row.
    """

    parts: list[tuple[int, int]]
    rows: Tensor


def of_closed_form(parts: Sequence[Part]) -> tuple[Stacked, list[tuple[str, dict[str, object]]]]:
    """Build a density of these parts, and the architecture and options of each."""
    weights = torch.tensor([p.log_weight for p in parts], dtype=torch.double).softmax(0)
    kept = [i for i, weight in enumerate(weights.tolist()) if weight > 0]
    dim, made, named = parts[0].law.dim, list[nn.Module](), []
    sizes = [table.shape[1] for table in parts[0].law.tables]
    for scores, law in ((parts[i].scores, parts[i].law) for i in kept):
        number, heavy_tails = len(law.log_weights), law.degrees is not None
        base = GaussianMixture(dim, number, sizes=sizes, heavy_tails=heavy_tails)
        base.take(law)
        made.append(NormalizingFlow([] if scores is None else [scores], base))
        options: dict[str, object] = {} if scores is None else {"components": scores.components}
        kind = "copula" if scores is not None else "student" if heavy_tails else "gmm"
        named.append((f"{kind}-{number}", options))
    return Stacked(dim + len(sizes), made, weights[kept]), named


class _Flat:
    """The stack, of which one draw is made for each row of the context."""

    def __init__(self, stacked: Stacked) -> None:
        self.input_dim, self.log_prob = stacked.input_dim, stacked.log_prob
        self.rsample = stacked._rows  # noqa: SLF001


def stacking_weights(log_probs: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Find weights ``(M,)`` with which a mixture of M densities makes rows likeliest.

    Each keeps at least a share of one row in M, so that a row that one density calls impossible
    still has the others.

    :param log_probs: log-densities ``(N, M)`` of rows that the densities were not fitted to.
    :param weight: of the rows, ``(N,)``; 1 by default.

    >>> stacking_weights(torch.tensor([[0.0, -9.0], [0.0, -9.0], [0.0, -9.0]])).round(decimals=2)
    tensor([0.8700, 0.1300], dtype=torch.float64)
    """
    log_probs = log_probs.double().nan_to_num(nan=-torch.inf)
    finite = log_probs.amax(1) > -torch.inf
    log_probs = log_probs[finite]
    weight = torch.ones(len(finite)).to(log_probs) if weight is None else weight.to(log_probs)
    weight, m = weight[finite], log_probs.shape[1]
    likelihoods = (log_probs - log_probs.amax(1, keepdim=True)).exp()
    w = torch.full((m,), 1 / m, dtype=torch.double, device=log_probs.device)
    for _ in range(WEIGHT_STEPS):
        share = likelihoods * w
        share = share / share.sum(1, keepdim=True)
        w = (weight @ share + 1 / m) / (weight.sum() + 1)
    return w
