r"""Affine maps :math:`z = \mathrm{loc} + S x` whose factor has the pattern of a structure.

Row v of S holds the latent v itself and its ancestors. A Gaussian whose precision has the pattern
of the graph has exactly one such factor with a positive diagonal, so that it is reached exactly.
"""

from __future__ import annotations

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.transforms import Transform

from ..conditioners.structure import Structure

#: Entries of a matrix, as a share of its largest, that count as rounding.
_ROUNDING = 1e-5


class StructuredAffine(Transform):
    r"""The map :math:`y = \mathrm{loc} + S x`; S is triangular in the structure's order.

    Its log-determinant is the sum of :math:`\log |S_{vv}|`; the inverse is a triangular solve.

    :param loc: shape ``(D,)``.
    :param factor: S, shape ``(D, D)``: zero but for the diagonal and the ancestors, see
        :func:`factor_of` and :meth:`~pyro_naf.conditioners.Structure.ancestors`.
    :param order: the structure's order ``(D,)``.

    >>> structure = Structure.from_adjacency(torch.ones(4, 4).tril(1).triu(-1))
    >>> factor = factor_of(structure, precision=2 * torch.eye(4) - 0.5 * structure.adjacency)
    >>> affine = StructuredAffine(torch.zeros(4), factor, structure.order)
    >>> x = torch.randn(5, 4)
    >>> torch.allclose(affine.inv(affine(x)), x, atol=1e-5)
    True
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, loc: Tensor, factor: Tensor, order: Tensor, cache_size: int = 1) -> None:
        super().__init__(cache_size=cache_size)
        self.loc, self.factor, self.order = loc, factor, order

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + x @ self.factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        order = self.order
        lower = self.factor[order[:, None], order]
        centred = (y - self.loc)[..., order]
        # Right-hand sides are rows: X L^T = Y.
        flat = centred.reshape(-1, len(order))
        solved = torch.linalg.solve_triangular(lower.mT, flat, upper=True, left=False)
        found: Tensor = solved.view(centred.shape)[..., order.argsort()]
        return found

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log-determinant at x ``(..., D)``, a constant of shape ``(...)``."""
        return self.factor.diagonal().abs().log().sum().expand(x.shape[:-1])

    def with_cache(self, cache_size: int = 1) -> StructuredAffine:
        """Return the map itself where it has such a cache, or a copy that has."""
        if cache_size == self._cache_size:
            return self
        return StructuredAffine(self.loc, self.factor, self.order, cache_size)


def triangular(structure: Structure, diagonal: Tensor, coupling: Tensor) -> Tensor:
    """Return the matrix ``diag(diagonal) (I + A)``, ``(D, D)``, with A filled at the ancestors.

    :param coupling: one number for each pair of a latent and an ancestor, ``(n,)``, row by row.
    """
    dim = structure.dim
    places = structure.places.to(coupling.device)
    entries = coupling.new_zeros(dim * dim).index_put((places,), coupling)
    return diagonal[:, None] * (torch.eye(dim).to(coupling) + entries.view(dim, dim))


def factor_of(
    structure: Structure,
    *,
    precision: Tensor | None = None,
    covariance: Tensor | None = None,
) -> Tensor:
    r"""Compute a factor S ``(D, D)``, in a structure's pattern, of a covariance S S^T.

    It is exact where the Gaussian has the structure. Where a covariance has not, the result is the
    Gaussian q of the structure that is closest in :math:`\mathrm{KL}(p \| q)`: each latent has p's
    conditional given its parents. Of a precision, what lies outside of the pattern is dropped.

    :param precision: symmetric and positive definite, ``(D, D)``.
    :param covariance: or its inverse.
    :raises ValueError: when not exactly one of the two is given, and for one of another size or
        that is not positive definite.

    Source: Schaefer, Katzfuss & Owhadi 2021 [arXiv:2004.14455], for the closest Gaussian.
    """
    given = {"precision": precision, "covariance": covariance}
    chosen = [(name, matrix) for name, matrix in given.items() if matrix is not None]
    if len(chosen) != 1:
        raise ValueError(
            f"exactly one of precision and covariance must be given, got {[n for n, _ in chosen]}"
        )
    ((name, matrix),) = chosen
    if matrix.shape != (structure.dim, structure.dim):
        raise ValueError(
            f"{name} must have shape ({structure.dim}, {structure.dim}) like the structure, got "
            f"{tuple(matrix.shape)}"
        )
    order = structure.order.to(matrix.device)
    if name == "covariance":
        return _closest(structure, matrix)
    lower = _cholesky(matrix, order.flip(0), name)
    parents = structure.parents.to(matrix.device)[order][:, order]
    return _from_conditionals(lower.flip(0, 1).mT, parents, order)


def _from_conditionals(inverse: Tensor, parents: Tensor, order: Tensor) -> Tensor:
    """S from its inverse, lower triangular in autoregressive order, cut to the parents."""
    eye = torch.eye(len(order)).to(inverse)
    kept = torch.where(parents | eye.bool(), inverse, 0.0)
    factor = torch.linalg.solve_triangular(kept, eye, upper=False)
    back = order.argsort()
    found: Tensor = factor[back[:, None], back]
    return found


def _closest(structure: Structure, covariance: Tensor) -> Tensor:
    order = structure.order.to(covariance.device)
    parents = structure.parents.to(covariance.device)[order][:, order]
    sorted_ = covariance[order[:, None], order]
    if structure.is_dense:
        factor = _cholesky(covariance, order, "covariance")
        back = order.argsort()
        return factor[back[:, None], back]
    inverse = torch.zeros_like(covariance)
    for v, row in enumerate(parents):
        (read,) = row.nonzero(as_tuple=True)
        block = sorted_[read[:, None], read]
        weights = torch.linalg.solve(block, sorted_[read, v]) if len(read) else block.new_zeros(0)
        variance = sorted_[v, v] - weights @ sorted_[read, v]
        if not bool(variance > 0):
            raise ValueError(_NOT_POSITIVE.format(name="covariance"))
        inverse[v, v] = variance.rsqrt()
        inverse[v, read] = -weights * variance.rsqrt()
    return _from_conditionals(inverse, parents, order)


_NOT_POSITIVE = "{name} must be symmetric and positive definite"


def _cholesky(matrix: Tensor, order: Tensor, name: str) -> Tensor:
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix[order[:, None], order])
    if bool(failed):
        raise ValueError(_NOT_POSITIVE.format(name=name))
    return factor


def has_pattern(structure: Structure, factor: Tensor) -> bool:
    """Whether a factor ``(D, D)`` is zero, but for rounding, outside of diagonal and ancestors."""
    eye = torch.eye(structure.dim, dtype=torch.bool)
    outside = factor.detach().cpu()[~(structure.ancestors | eye)]
    return not len(outside) or float(outside.abs().max()) <= _ROUNDING * float(factor.abs().max())
