"""The mean Hessian of a log-density of known pattern, from draws and their scores."""

from __future__ import annotations

import torch
from torch import Tensor

#: Number of entries in the matrices of regressors that are solved at once.
_NUMBERS = 2**26


class ScoreRegression:
    """Regressions of an entry of the score on the latents adjacent to it, one for each row.

    The row of a latent that is no hub is a regression of its own. A hub's row follows from
    the other rows, by symmetry, but for the hubs' own block, which is one more regression.

    :param adjacency: booleans ``(D, D)``, symmetric.
    :ivar most: number of regressors of the largest regression.
    :ivar hubs: chosen so that this number is the smallest.

    >>> regression = ScoreRegression(torch.zeros(2, 2, dtype=torch.bool), torch.device("cpu"))
    >>> z = torch.randn(50, 2)
    >>> torch.allclose(regression.regress(z, -3 * z), -3 * torch.eye(2))
    True
    """

    def __init__(self, adjacency: Tensor, device: torch.device) -> None:
        pattern = adjacency | torch.eye(len(adjacency), dtype=torch.bool)
        degree = pattern.sum(1)
        by_degree = degree.argsort(descending=True, stable=True)
        # The k latents of the highest degree are hubs: k regressors for them, or the others' most.
        largest_other = torch.cat([degree[by_degree], degree.new_ones(1)])
        number = torch.arange(len(degree) + 1)
        cost = torch.maximum(number, largest_other)
        self.most = int(cost.min())
        count = int((cost == self.most).nonzero().amax())  # hubs share one regression
        self.pattern = pattern.to(device)
        self.hubs = by_degree[:count].sort().values.to(device)
        is_hub = torch.zeros(len(degree), dtype=torch.bool)
        is_hub[self.hubs.cpu()] = True
        self.is_hub = is_hub.to(device)
        self.others = (~is_hub).nonzero().flatten().to(device)
        self.index = self._padded(pattern[~is_hub]).to(device)

    def _padded(self, rows: Tensor) -> Tensor:
        """Return the indices of each row's regressors ``(n, A)``; D stands for none."""
        size = int(rows.sum(1).max()) if len(rows) else 0
        index = torch.full((len(rows), size), rows.shape[-1])
        for i, row in enumerate(rows):
            (read,) = row.nonzero(as_tuple=True)
            index[i, : len(read)] = read
        return index

    def regress(self, z: Tensor, scores: Tensor) -> Tensor:
        """Estimate the mean Hessian ``(D, D)`` from centred draws and scores, ``(N, D)`` each."""
        scale = z.square().mean(0).sqrt()
        z = z / scale
        z = z - z.mean(0)
        scores = scores - scores.mean(0)
        gram, right = z.mT @ z / len(z), z.mT @ scores / len(z)
        found = torch.zeros_like(gram)
        if len(self.others):
            rows = max(_NUMBERS // self.index.shape[1] ** 2, 1)
            parts = zip(self.others.split(rows), self.index.split(rows), strict=True)
            for others, index in parts:
                found[others] = _rows(gram, right, others, index)
        either = self.is_hub[:, None] ^ self.is_hub
        neither = ~self.is_hub[:, None] & ~self.is_hub
        scaled = found / scale  # the columns' units
        found = torch.where(neither, (scaled + scaled.mT) / 2, 0.0)
        from_others = torch.where(either, scaled, 0.0)
        found = found + from_others + from_others.mT
        if len(self.hubs):
            found = self._add_hubs(found, z * scale, scores)
        return torch.where(self.pattern, found, 0.0)

    def _add_hubs(self, found: Tensor, z: Tensor, scores: Tensor) -> Tensor:
        hubs = self.hubs
        left = scores[:, hubs] - z @ found[:, hubs]
        x = z[:, hubs]
        gram, right = x.mT @ x, x.mT @ left
        root = gram.diagonal().sqrt()
        scaled = torch.linalg.solve(gram / root / root[:, None], right / root[:, None])
        block = scaled / root[:, None]
        found[hubs[:, None], hubs] = (block + block.mT) / 2
        return found


def _rows(gram: Tensor, right: Tensor, others: Tensor, index: Tensor) -> Tensor:
    """Rows of the Hessian ``(n, D)``, each a regression on the latents ``index`` ``(n, A)``."""
    dim = len(gram)
    padded = torch.eye(dim + 1).to(gram)
    padded[:dim, :dim] = gram
    blocks = padded[index[:, :, None], index[:, None, :]]
    # Padding: a regressor of its own, whose weight is zero.
    pad = index == dim
    blocks = torch.where(pad[:, :, None] | pad[:, None, :], 0.0, blocks)
    blocks = blocks + torch.diag_embed(pad.to(blocks))
    right = torch.cat([right, right.new_zeros(1, dim)])
    weights = torch.linalg.solve(blocks, right[index, others[:, None]])
    return gram.new_zeros(len(others), dim + 1).scatter_(1, index, weights)[:, :dim]
