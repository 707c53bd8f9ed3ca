"""A guide as a short table: its latents, its flows, its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from torch import nn

from ..conditioners import Structure
from ..support.tables import Table
from .layout import Place


class FlowGuide(Protocol):
    """What the table shows of a guide."""

    full_rank: bool
    inverse: bool
    heavy_tails: bool
    context_dim: int
    latent_dim: int
    structure: Structure | None

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Modules of the guide, its flow among them, by name."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights."""


def guide_table(guide: FlowGuide, places: Mapping[str, Place] | None) -> Table:
    """Sites with their shapes and supports; notes on the rest.

    :param places: site to its place in the latent vector; None for a guide that was never run.
    """
    kind = type(guide).__name__
    if places is None:
        return Table([], [], ["no parameters yet: call it once with the model's arguments"], kind)
    rows = []
    for name, place in places.items():
        value, fn = place.site["value"], place.site["fn"]
        support = str(fn.support).removeprefix("Independent")
        rows.append([name, str(tuple(value.shape)), support])
    flows = getattr(dict(guide.named_children())["flow"], "parts", [])
    kinds = ", ".join(sorted({type(flow).__name__ for flow in flows}))
    weights = sum(weight.numel() for weight in guide.parameters())
    affine = "full-rank" if guide.full_rank else "diagonal"
    notes = [
        f"{guide.latent_dim} unconstrained entries{' a row' if guide.context_dim else ''}; "
        f"{len(flows)} flows{f' ({kinds})' if kinds else ''}"
        f"{', inverse' if guide.inverse else ''}{', heavy tails' if guide.heavy_tails else ''}, "
        f"{affine} affine map; {weights:,} weights"
    ]
    if guide.structure is not None:
        notes.append(f"structure: {guide.structure.mean_ancestors:.1f} ancestors a latent")
    if guide.context_dim:
        notes.append(f"context of {guide.context_dim} numbers")
    return Table(["site", "shape", "support"], rows, notes, kind)
