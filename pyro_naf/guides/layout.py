"""Where the sites of a model lie in a guide's latent vectors: one vector for each row.

Rows are the elements of the plates that a guide's context has axes for (none without context). A
site inside further plates has several entries in each row: its *own* batch shape, with length one
at the rows' plates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from pyro.poutine.runtime import Message
from torch import Tensor
from torch.distributions import biject_to


class Place(NamedTuple):
    """One site in a row: its unconstrained shape is ``own + event``."""

    site: Message
    own: tuple[int, ...]
    event: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of entries in a row's vector."""
        return torch.Size(self.own + self.event).numel()


class Layout:
    """The places of all latent sites.

    :param sites: sites of the prototype trace, in their order in the vectors.
    :param unconstrained_shapes: name to shape of the unconstrained value there.
    :param row_dims: dims, counted from the right, of the plates whose elements are rows.
    """

    def __init__(
        self,
        sites: Sequence[Message],
        unconstrained_shapes: Mapping[str, Sequence[int]],
        row_dims: Sequence[int] = (),
    ) -> None:
        self.row_dims = tuple(row_dims)
        self.places: dict[str, Place] = {}
        for site in sites:
            shape = tuple(unconstrained_shapes[site["name"]])
            rank = site["value"].dim() - site["fn"].event_dim
            own = tuple(1 if i - rank in self.row_dims else n for i, n in enumerate(shape[:rank]))
            self.places[site["name"]] = Place(site, own, shape[rank:])
        self.latent_dim = sum(place.size for place in self.places.values())

    def unpack(self, latent: Tensor) -> Iterator[tuple[Message, Tensor]]:
        """Sites with their unconstrained values, from latent vectors ``(*rows, D)``.

        The axes of rows and values are aligned at the right, as Pyro's plates are.

        :raises ValueError: when an axis of the vectors lies where a plate of a site does.
        """
        parts = latent.split([place.size for place in self.places.values()], -1)
        for place, part in zip(self.places.values(), parts, strict=True):
            _check_rows(place, latent)
            yield place.site, unpack(part, place.own, place.event)

    def pack(self, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        r"""Latent vectors of the sites' values z, and :math:`\log|\det \partial z/\partial u|`.

        :param values: site to ``(..., *site shape)``, the leading axes the same for all.
        :return: vectors ``(..., *rows, D)`` and log-determinants ``(..., *rows)``; where a plate
            lies to the right of the rows', there is an axis of length one.
        :raises ValueError: when sites are missing or unknown, or a value's shape does not fit.
        """
        if values.keys() != self.places.keys():
            raise ValueError(
                f"latents must hold the sites {sorted(self.places)}, got {sorted(values)}"
            )
        packed = [self._pack(place, values[name]) for name, place in self.places.items()]
        shape = torch.broadcast_shapes(*(log_det.shape for _, log_det in packed))
        vectors = torch.cat([vector.expand(*shape, -1) for vector, _ in packed], -1)
        return vectors, sum((log_det for _, log_det in packed), vectors.new_zeros(shape))

    def _pack(self, place: Place, value: Tensor) -> tuple[Tensor, Tensor]:
        self._check(place, value)
        transform = biject_to(place.site["fn"].support)
        u = transform.inv(value)
        rank = u.dim() - len(place.event)
        log_det = transform.log_abs_det_jacobian(u, value)
        log_det = log_det.reshape(*u.shape[:rank], -1).sum(-1)
        # Axes of plates to the left of all rows hold own entries only.
        lead, rows = rank - len(place.own), -min(self.row_dims, default=0)
        packed = (pack(u, place.own, len(place.event)), pack(log_det, place.own, 0))
        vector, terms = (p.reshape(*p.shape[:lead], *p.shape[rank - rows :]) for p in packed)
        return vector, terms.sum(-1)

    def _check(self, place: Place, value: Tensor) -> None:
        expected = place.site["value"].shape
        rank = len(expected) - place.site["fn"].event_dim
        given = value.shape[max(value.dim() - len(expected), 0) :]
        if len(given) != len(expected) or any(
            n != m and i - rank not in self.row_dims
            for i, (n, m) in enumerate(zip(given, expected, strict=True))
        ):
            raise ValueError(
                f"latents[{place.site['name']!r}] must have shape (..., *{tuple(expected)}), got "
                f"{tuple(value.shape)}"
            )


def _check_rows(place: Place, latent: Tensor) -> None:
    """Refuse a further axis at a plate's dim: it would be taken for more of that plate."""
    pairs = zip(latent.shape[-2::-1], place.own[::-1], strict=False)  # both from the right
    if any(row > 1 and own > 1 for row, own in pairs):
        raise ValueError(
            f"latent vectors must have axes of length one at the plates of site "
            f"{place.site['name']!r}, whose batch shape is {place.own}, got {tuple(latent.shape)}; "
            "batch axes go to the left of them: latent.unsqueeze(-2) for a plate at dim -1"
        )


def unpack(part: Tensor, own: Sequence[int], event: Sequence[int]) -> Tensor:
    """``(*rows, size)`` to ``(*rows * own, *event)``.

    Counted from the right, the axes of rows and own belong to the same plates; one of each two has
    length one.
    """
    rank = max(part.dim() - 1, len(own))
    rows, own = _padded(part.shape[:-1], rank), _padded(own, rank)
    value = part.reshape((*rows, *own, *event))
    pairs = [axis for i in range(rank) for axis in (i, rank + i)]
    value = value.permute((*pairs, *range(2 * rank, value.dim())))
    return value.reshape((*(r * o for r, o in zip(rows, own, strict=True)), *event))


def pack(value: Tensor, own: Sequence[int], event_dim: int) -> Tensor:
    """Invert :func:`unpack`: ``(*rows, size)``, an axis of rows for each batch axis.

    >>> x = torch.randn(4, 1, 6)
    >>> torch.equal(pack(unpack(x, (3,), (2,)), (3,), 1), x)
    True
    """
    rank = value.dim() - event_dim
    own = _padded(own, rank)
    rows = [n // o for n, o in zip(value.shape[:rank], own, strict=True)]
    pairs = [n for pair in zip(rows, own, strict=True) for n in pair]
    value = value.reshape((*pairs, *value.shape[rank:]))
    order = [*range(0, 2 * rank, 2), *range(1, 2 * rank, 2), *range(2 * rank, value.dim())]
    return value.permute(order).reshape((*rows, -1))


def _padded(shape: Sequence[int], rank: int) -> tuple[int, ...]:
    return (1,) * (rank - len(shape)) + tuple(shape)
