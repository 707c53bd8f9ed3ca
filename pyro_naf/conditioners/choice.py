"""Conditioners by name, as the factories of flows and guides take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..support.checks import check_integers
from .attention import AttentionConditioner
from .made import MADE

CONDITIONERS: dict[str, Callable[..., MADE | AttentionConditioner]] = {
    "made": MADE,
    "attention": AttentionConditioner,
}

#: Keyword arguments of the conditioners, but for ``context_dim``.
OPTIONS = ("order", "residual", "head_dim", "activation", "num_heads", "dropout")

#: Blocks of an attention conditioner where no ``hidden_dims`` are given.
BLOCKS = (32, 32)


def check_name(name: object) -> str:
    """Check the name of a conditioner.

    :raises ValueError: when there is no such conditioner.
    """
    if not isinstance(name, str) or name not in CONDITIONERS:
        raise ValueError(f"conditioner must be one of {', '.join(CONDITIONERS)}, got {name!r}")
    return name


def make(
    name: object,
    input_dim: int,
    hidden_dims: Sequence[int] | None,
    num_params: int,
    **options: object,
) -> MADE | AttentionConditioner:
    """Make the named conditioner, freshly initialised.

    :param name: "made" or "attention".
    :param hidden_dims: as in the conditioner; by default one layer of 3 D + 1 units, but at least
        32 and at most 512, or two blocks of 32 with "attention".
    :param options: further arguments of the conditioner.
    :raises ValueError: when there is no such conditioner.

    >>> make("attention", 3, [16], 2, order="natural").get_permutation()
    tensor([0, 1, 2])
    """
    check_integers(input_dim=(input_dim, 1))
    if hidden_dims is None:
        made = (min(max(3 * input_dim + 1, 32), 512),)
        hidden_dims = made if name == "made" else BLOCKS
    return CONDITIONERS[check_name(name)](input_dim, hidden_dims, num_params, **options)
