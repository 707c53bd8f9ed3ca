r"""Which latents of a model depend on which, from the second derivatives of its log-density.

Two latents whose mixed second derivative is zero everywhere are independent given all others. The
pattern is looked for at several points, spread by different scales: at one point an entry can be
zero by accident, as in a saturated link function.

At the first point every column of the Hessian is computed. At further points of large posteriors
only those of the *hubs*, which have many neighbours, and sums over columns that share no row
(Curtis, Powell, Reid 1974), and a random combination of all columns tells the rows that hold more
than the pattern has so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ..conditioners.structure import Structure

LogDensity = Callable[[Tensor], Tensor]

#: Scales of the normal points around the start at which the Hessian is looked at.
SCALES = (0.1, 1.0, 0.5, 2.0)

#: Points that are drawn at a scale before it is given up, where the Hessian is not finite.
_TRIALS = 3

#: Fewest latents, and largest share of a full autoregressive map, with which a structure pays.
LEAST_DIM, LARGEST_SHARE = 30, 0.6

#: Number of latents from which on the columns of further Hessians are added up.
COLOURED_FROM = 500

#: Products of a Hessian with a vector in one batch.
_CHUNK = 256


def find_structure(
    target: LogDensity,
    middle: Tensor,
    scales: Sequence[float] = SCALES,
    *,
    coloured_from: int = COLOURED_FROM,
    largest_share: float = 1.0,
) -> Structure:
    """Find the structure of a log-density, from its Hessians at points around ``middle``.

    :param target: a log-density ``(N, D)`` to ``(N,)``, twice differentiable, of each row on its
        own.
    :param middle: a point ``(D,)`` where it is finite.
    :param scales: standard deviations of the points around it, one point for each.
    :param coloured_from: number of latents from which on columns are added up; see above.
    :param largest_share: the search ends once a larger share of all pairs of latents depend on
        each other, as they do in a structure whose share is larger.
    :raises ValueError: when density and Hessian are finite at none of the points.

    Source: Curtis, Powell & Reid 1974, J. Inst. Maths Applics 13, 117-119.

    A random walk of four steps:

    >>> def target(z):
    ...     return -z[:, 0].square() - (z[:, 1:] - z[:, :-1]).square().sum(-1)
    >>> find_structure(target, torch.zeros(4)).adjacency.long()
    tensor([[0, 1, 0, 0],
            [1, 0, 1, 0],
            [0, 1, 0, 1],
            [0, 0, 1, 0]])
    """
    dim = len(middle)
    pattern: Tensor | None = None
    # Of its own: the structure is a property of the model, and found alike each time.
    generator = torch.Generator().manual_seed(0)
    for scale in scales:
        for _ in range(_TRIALS):
            z = middle + scale * torch.randn(dim, generator=generator).to(middle)
            with torch.no_grad():
                if not bool(target(z[None]).isfinite()):  # derivatives may be finite all the same
                    continue
            if pattern is None or dim < coloured_from:
                found = _dense_pattern(target, z)
            else:
                found = _coloured_pattern(target, z, pattern)
            if found is not None:
                pattern = found if pattern is None else pattern | found
                break
        if pattern is not None and _share_of_pairs(pattern) > largest_share:
            break
    if pattern is None:
        raise ValueError(
            "the model's log-density and its second derivatives are not finite at any of "
            f"{len(scales) * _TRIALS} points around its start: give the structure by hand, as an "
            "adjacency, or 'full'"
        )
    return Structure.from_adjacency(pattern)


def _share_of_pairs(pattern: Tensor) -> float:
    """Return the share of the pairs of latents that depend on each other."""
    return float(pattern.tril(-1).sum()) / max(len(pattern) * (len(pattern) - 1) // 2, 1)


def check_structure(structure: str | Structure | ArrayLike | Tensor) -> str | Structure:
    """Check what a guide is asked for: "auto", "full", a Structure or an adjacency.

    :raises ValueError: for anything else.
    """
    if isinstance(structure, Structure):
        return structure
    if isinstance(structure, str) and structure in ("auto", "full"):
        return structure
    return Structure.from_adjacency(structure)


def structure_of(
    structure: str | Structure, target: Callable[[], LogDensity], middle: Tensor
) -> Structure | None:
    """Find the structure for a guide, or None for a full guide.

    :param structure: see :func:`check_structure`. "auto" looks for the structure of the model, and
        takes it where there are at least 30 latents and its share of a full map is at most 0.6.
    :param target: called for the log-density where it is needed.
    :param middle: the point ``(D,)`` to look around.
    :raises ValueError: for a structure of another size.
    """
    if structure == "full" or (structure == "auto" and len(middle) < LEAST_DIM):
        return None
    if isinstance(structure, str):
        found = find_structure(target(), middle, largest_share=LARGEST_SHARE)
        return found if found.share <= LARGEST_SHARE else None
    if structure.dim != len(middle):
        raise ValueError(
            f"structure must be for the model's {len(middle)} unconstrained latents, got one for "
            f"{structure.dim}"
        )
    return structure


def hessian(target: LogDensity, z: Tensor, directions: Tensor | None = None) -> Tensor:
    """Products of the Hessian at z ``(D,)`` with ``directions`` ``(M, D)``, shape ``(M, D)``.

    Without directions all columns, which is the Hessian ``(D, D)``. Each product is a row of one
    batch: the density is differentiated as it stands, with no need for ``torch.vmap``. A density
    that can be differentiated only once, such as a compiled one, has differences of its gradients.

    >>> hessian(lambda z: -z.square().sum(-1), torch.zeros(2))
    tensor([[-2., -0.],
            [-0., -2.]])
    """
    directions = torch.eye(len(z)).to(z) if directions is None else directions
    return _hessian(target, z, directions)[0]


def _hessian(target: LogDensity, z: Tensor, directions: Tensor) -> tuple[Tensor, float]:
    """Return the products, and the relative size from which on an entry is more than rounding.

    Where a backward pass cuts the graph, second derivatives are zero and nothing is raised: they
    are compared with the difference of two gradients, along the sum of all directions.
    """
    eps = torch.finfo(z.dtype).eps
    points = z.expand(len(directions), -1)
    total = directions.sum(0, keepdim=True)
    expected = _difference_products(target, z[None], total)
    try:
        products = hessian_products(target, points, directions)
        error = (products.sum(0) - expected[0]).abs().max()
        trusted = not bool(error > 0.1 * expected.abs().max())  # NaN is told elsewhere
    except RuntimeError:
        trusted = False
    if trusted:
        return products, eps**0.6  # 4e-10 in float64, 7e-5 in float32
    parts = zip(points.split(_CHUNK), directions.split(_CHUNK), strict=True)
    return torch.cat([_difference_products(target, *part) for part in parts]), eps**0.4


def hessian_products(
    target: LogDensity, z: Tensor, directions: Tensor, chunk: int = _CHUNK
) -> Tensor:
    """Products of the Hessians at each z ``(M, D)`` with a direction of its own ``(M, D)``."""
    parts = zip(z.split(chunk), directions.split(chunk), strict=True)
    return torch.cat([_products(target, *part) for part in parts])


def _products(target: LogDensity, z: Tensor, directions: Tensor) -> Tensor:
    z = z.detach().clone().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(target(z).sum(), z, create_graph=True)
        if not grad.requires_grad:  # linear in all latents
            return torch.zeros_like(directions)
        (products,) = torch.autograd.grad(
            grad, z, directions, allow_unused=True, materialize_grads=True
        )
    return products


def _difference_products(target: LogDensity, z: Tensor, directions: Tensor) -> Tensor:
    """Products of the Hessian with directions, from gradients at two nearby points."""
    size = directions.abs().amax(1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
    width = torch.finfo(z.dtype).eps ** (1 / 3) * z.abs().amax(1, keepdim=True).clamp(min=1)
    step = directions / size * width
    around = torch.cat([z + step, z - step]).detach().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(target(around).sum(), around)
    above, below = grad.chunk(2)
    return (above - below) / (2 * width) * size


def _dense_pattern(target: LogDensity, z: Tensor) -> Tensor | None:
    """Where the Hessian at z is not zero, None where it is not finite."""
    found, tolerance = _hessian(target, z, torch.eye(len(z)).to(z))
    return _pattern(found, tolerance) if bool(found.isfinite().all()) else None


def _pattern(found: Tensor, tolerance: float) -> Tensor:
    """Entries ``(D, D)`` that are more than rounding, beside the largest of their row and column.

    Scales of latents differ by orders of magnitude; rounding is relative to what was added up.
    """
    size = torch.maximum(found.abs(), found.abs().T)
    largest = size.amax(1)
    pattern = size > tolerance * (largest[:, None] * largest).sqrt()
    return pattern.cpu() & ~torch.eye(len(found), dtype=torch.bool)


# ------------------------------------------------------------------------------- coloured products


@dataclass(frozen=True, eq=False)
class Colouring:
    """How few products give a Hessian of known pattern: those of hubs, and sums of the others.

    :ivar hubs: latents whose columns are computed on their own.
    :ivar colours: number of the sum that each other latent's column is in ``(D,)``; -1 for hubs.
    :ivar directions: ``(M, D)``, the hubs' unit vectors and then the colours' sums of them.
    """

    hubs: Tensor
    colours: Tensor
    directions: Tensor
    pattern: Tensor

    @classmethod
    def of(cls, adjacency: Tensor) -> Colouring:
        """Find the best of several choices of hubs, by the number of products.

        >>> chain = torch.ones(9, 9).tril(1).triu(-1).bool()
        >>> len(Colouring.of(chain).directions)
        3
        """
        pattern = adjacency | torch.eye(len(adjacency), dtype=torch.bool)
        degree = pattern.sum(1)
        by_degree = degree.argsort(descending=True, stable=True)
        sorted_degree = degree[by_degree].double()
        (drops,) = (sorted_degree[1:] < 0.7 * sorted_degree[:-1]).nonzero(as_tuple=True)
        counts = {0, *(drops + 1).tolist(), *(2**k for k in range(len(degree).bit_length()))}
        best = cls._with_hubs(pattern, by_degree[:0])
        for count in sorted(counts - {0}):
            if count >= len(best.directions):
                break
            found = cls._with_hubs(pattern, by_degree[:count].sort().values)
            best = min(best, found, key=lambda colouring: len(colouring.directions))
        return best

    @classmethod
    def _with_hubs(cls, pattern: Tensor, hubs: Tensor) -> Colouring:
        dim = len(pattern)
        rest = pattern.clone()
        rest[hubs] = rest[:, hubs] = False
        # Two columns clash when they share a row.
        clash = (rest.float() @ rest.float()) > 0
        colours = torch.full((dim,), -1)
        is_hub = torch.zeros(dim, dtype=torch.bool)
        is_hub[hubs] = True
        used = 0
        for v in rest.sum(1).argsort(descending=True, stable=True).tolist():
            if is_hub[v]:
                continue
            taken = torch.zeros(used + 1, dtype=torch.bool)
            near = colours[clash[v]]
            taken[near[near >= 0]] = True
            colours[v] = int((~taken).nonzero()[0])
            used = max(used, int(colours[v]) + 1)
        directions = torch.zeros(len(hubs) + used, dim)
        directions[torch.arange(len(hubs)), hubs] = 1
        (others,) = (~is_hub).nonzero(as_tuple=True)
        directions[len(hubs) + colours[others], others] = 1
        return cls(hubs, colours, directions, rest)

    def assemble(self, products: Tensor) -> Tensor:
        """Hessians ``(..., D, D)`` from the products with ``directions``, ``(..., M, D)``."""
        count = len(self.hubs)
        of_hubs, sums = products[..., :count, :], products[..., count:, :]
        i, j = self.pattern.nonzero(as_tuple=True)
        # Of the columns in a sum only one has an entry in row i, unless i is a hub.
        others = sums[..., self.colours[j], i]
        full = products.new_zeros(*products.shape[:-2], *self.pattern.shape)
        full[..., i, j] = others
        full[..., self.hubs, :] = of_hubs
        full[..., :, self.hubs] = of_hubs.transpose(-1, -2)
        return full


def _coloured_pattern(target: LogDensity, z: Tensor, pattern: Tensor) -> Tensor | None:
    """Evaluate the pattern at z, given hubs, colours and fuller rows that were found elsewhere."""
    colouring = Colouring.of(pattern)
    probe = torch.randn(1, len(z), generator=torch.Generator().manual_seed(1)).to(z)
    directions = torch.cat([colouring.directions.to(z), probe])
    products, tolerance = _hessian(target, z, directions)
    if not bool(products.isfinite().all()):
        return None
    found = colouring.assemble(products[:-1])
    explained = probe @ found
    size = probe.abs() @ found.abs() + products[-1:].abs()
    wrong = ((products[-1:] - explained).abs() > tolerance * size).squeeze(0)
    if not bool(wrong.any()):
        return _pattern(found, tolerance)
    (rows,) = wrong.nonzero(as_tuple=True)
    more, _ = _hessian(target, z, torch.eye(len(z)).to(z)[rows])
    # What the sums have put at a wrong place is in a row that is wrong.
    found[rows], found[:, rows] = more, more.T
    return _pattern(found, tolerance)
