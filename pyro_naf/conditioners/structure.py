"""Who depends on whom in a posterior: elimination order, elimination tree, ancestors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

#: Rule that chooses the next latent to eliminate: from numbers of neighbours ``(D,)``, heights of
#: the trees below ``(D,)`` and D to a cost for each latent; the smallest wins.
_Rule = Callable[[np.ndarray, np.ndarray, int], np.ndarray]

#: Fewest neighbours first is the classical rule. It eliminates a chain from its ends, which makes a
#: tree as deep as the chain is long; lowest tree first halves the chain each time.
_RULES: tuple[_Rule, ...] = (
    lambda degree, height, dim: degree * dim + height,
    lambda degree, height, dim: height * dim + degree,
    lambda degree, height, dim: (degree + height) * dim + degree,
)


@dataclass(frozen=True, eq=False)
class Structure:
    r"""The elimination tree of D latents, and the autoregressive order that it leads to.

    Latents that are not adjacent are independent given all others. Eliminating one joins its
    remaining neighbours, its *parents*, to one another; the first of them to be eliminated is its
    parent in the *tree*, and what lies on the way from there to the root are its *ancestors*.
    Then the density is :math:`\prod_v p(z_v \mid z_{\mathrm{parents}(v)})`, and
    :math:`z_v` is a function of its own noise :math:`\epsilon_v` and of those of its ancestors
    alone. A Gaussian is the linear case: with the precision :math:`\Lambda = L L^T`, rows and
    columns in order of elimination, L has the pattern of the parents and :math:`L^{-T}` that of the
    ancestors.

    Maps with the pattern of the ancestors can be composed and inverted, and keep the pattern.

    :ivar adjacency: symmetric booleans ``(D, D)``, the diagonal false.
    :ivar order: the autoregressive order ``(D,)``, roots first and then by depth: entry t is the
        latent that comes t-th. Backwards it is the order of elimination.
    :ivar tree: parent of each latent in the tree ``(D,)``, -1 for a root.
    :ivar parents: booleans ``(D, D)``; row v holds the neighbours of v when v is eliminated.
    :ivar ancestors: booleans ``(D, D)``; row v holds the ancestors of v, the parents among them.

    Source: Davis, *Direct Methods for Sparse Linear Systems* (2006), chapter 4; Webb et al. 2018
    [arXiv:1712.00287].

    A chain of five latents: its middle is the root.

    >>> chain = torch.ones(5, 5).tril(1).triu(-1)
    >>> structure = Structure.from_adjacency(chain)
    >>> int(structure.ancestors.sum()), int(Structure.dense(5).ancestors.sum())
    (6, 10)
    """

    adjacency: Tensor
    order: Tensor
    tree: Tensor
    parents: Tensor
    ancestors: Tensor

    @classmethod
    def from_adjacency(cls, adjacency: ArrayLike | Tensor) -> Structure:
        """Return the structure of a graph, by the elimination rule that gives the fewest ancestors.

        :param adjacency: symmetric booleans, or zeros and ones, ``(D, D)``; the diagonal is
            ignored.
        :raises ValueError: when that is not what is given.
        """
        adjacency = check_adjacency(adjacency)
        rows = _to_bits(adjacency)
        found = [_of_elimination(adjacency, *_eliminate(rows, rule)) for rule in _RULES]
        return min(found, key=lambda structure: int(structure.ancestors.sum()))

    @classmethod
    def dense(cls, dim: int) -> Structure:
        """Structure of D latents that all depend on one another, in their natural order."""
        order = torch.arange(dim)
        before = torch.ones(dim, dim, dtype=torch.bool).tril(-1)
        return cls(before | before.T, order, order - 1, before, before)

    @property
    def dim(self) -> int:
        """The number D of latents."""
        return len(self.order)

    @cached_property
    def places(self) -> Tensor:
        """Where the pairs of a latent and an ancestor are in a matrix, row by row, ``(n,)``."""
        return self.ancestors.flatten().nonzero().flatten()

    @property
    def depth(self) -> Tensor:
        """Number of ancestors of each latent ``(D,)``, which is its depth in the tree."""
        return self.ancestors.sum(1)

    @property
    def is_dense(self) -> bool:
        """Whether every latent has all preceding ones as ancestors, as in a full MADE."""
        return 2 * int(self.ancestors.sum()) == self.dim * (self.dim - 1)

    @property
    def mean_ancestors(self) -> float:
        """Mean number of ancestors."""
        return float(self.ancestors.sum()) / max(self.dim, 1)

    @property
    def share(self) -> float:
        """Number of ancestors as a share of those in a full autoregressive map, in [0, 1]."""
        return 2 * float(self.ancestors.sum()) / max(self.dim * (self.dim - 1), 1)

    def __repr__(self) -> str:
        deepest = int(self.depth.max()) if self.dim else 0
        return (
            f"Structure(dim={self.dim}, mean_ancestors={self.mean_ancestors:.1f}, "
            f"share={self.share:.2f}, depth={deepest})"
        )


def check_adjacency(adjacency: ArrayLike | Tensor) -> Tensor:
    """Booleans ``(D, D)`` with a false diagonal, or a ValueError that says what is wrong."""
    expected = "structure must be 'auto', 'full', a Structure or an adjacency"
    try:
        given = torch.as_tensor(adjacency).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{expected}, got {adjacency!r}") from None
    if given.dim() != 2 or given.shape[0] != given.shape[1] or not len(given):
        raise ValueError(
            f"an adjacency must be a square matrix (D, D), got shape {tuple(given.shape)}"
        )
    if given.is_complex() or not bool(((given == 0) | (given == 1)).all()):
        raise ValueError(
            "an adjacency must hold booleans, or zeros and ones, got other numbers; of a "
            "precision or Hessian give the pattern, matrix != 0"
        )
    given = given.bool()
    if not torch.equal(given, given.T):
        i, j = (given != given.T).nonzero()[0].tolist()
        raise ValueError(
            f"an adjacency must be symmetric, got {bool(given[i, j])} at ({i}, {j}) and "
            f"{bool(given[j, i])} at ({j}, {i}); make it so with adjacency | adjacency.T"
        )
    return given & ~torch.eye(len(given), dtype=torch.bool)


def _eliminate(rows: list[int], rule: _Rule) -> tuple[list[int], list[int]]:
    """Order of elimination, and of each latent its parents; sets are the bits of integers."""
    dim, rows = len(rows), list(rows)
    degree = np.array([row.bit_count() for row in rows], dtype=np.int64)
    height = np.zeros(dim, dtype=np.int64)
    alive = np.ones(dim, dtype=bool)
    order: list[int] = []
    while len(order) < dim:
        if degree[alive].min() == dim - len(order) - 1:  # a clique, whose order is of no matter
            order += _finish(rows, np.flatnonzero(alive).tolist())
            break
        cost = np.where(alive, rule(degree, height, dim), np.iinfo(np.int64).max)
        v = int(cost.argmin())
        order.append(v)
        alive[v] = False
        for u in _members(rows[v]):
            rows[u] = (rows[u] | rows[v]) & ~(1 << u) & ~(1 << v)
            degree[u] = rows[u].bit_count()
            height[u] = max(height[u], height[v] + 1)
    return order, rows


def _finish(rows: list[int], clique: list[int]) -> list[int]:
    """Eliminate a clique from its last member on."""
    remaining = sum(1 << v for v in clique)
    for v in reversed(clique):
        remaining &= ~(1 << v)
        rows[v] = remaining
    return clique[::-1]


def _of_elimination(adjacency: Tensor, order: list[int], rows: list[int]) -> Structure:
    dim = len(order)
    place = {v: i for i, v in enumerate(order)}
    tree = [-1] * dim
    ancestors = [0] * dim
    for v in reversed(order):
        if rows[v]:
            tree[v] = min(_members(rows[v]), key=place.__getitem__)
            ancestors[v] = ancestors[tree[v]] | (1 << tree[v])
    # Of equal depth those that are eliminated last come first.
    order = sorted(order, key=lambda v: (ancestors[v].bit_count(), -place[v]))
    return Structure(
        adjacency,
        torch.tensor(order),
        torch.tensor(tree),
        _from_bits(rows),
        _from_bits(ancestors),
    )


def _members(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest


def _to_bits(matrix: Tensor) -> list[int]:
    packed = np.packbits(matrix.numpy(), axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in packed]


def _from_bits(rows: list[int]) -> Tensor:
    dim = len(rows)
    size = -(-dim // 8)
    packed = np.frombuffer(b"".join(row.to_bytes(size, "little") for row in rows), dtype=np.uint8)
    bits = np.unpackbits(packed.reshape(dim, size), axis=1, count=dim, bitorder="little")
    return torch.from_numpy(bits.astype(bool))
