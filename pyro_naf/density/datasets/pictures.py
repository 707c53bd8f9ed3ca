"""A picture as a density."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .split import DataError


class Picture:
    """The density whose height is a picture's darkness, constant in every pixel.

    :param brightness: ``(height, width)``, any real numbers; the darkest are most likely.
    :raises ValueError: when it is no picture, or all of one brightness.

    The picture's longer side is [-1, 1], its first row on top.

    >>> picture = Picture(torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
    >>> x = picture.sample(100, torch.Generator().manual_seed(0))
    >>> bool((x[:, 0] < 0).all() and (x[:, 1] > 0).all())
    True
    """

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Picture:
        """Read the picture in an image file, as grey.

        :raises DataError: when it cannot be read without pillow.
        """
        return cls(torch.from_numpy(grey_pixels(Path(path)).astype(np.float64)))

    def __init__(self, brightness: Tensor) -> None:
        if brightness.dim() != 2 or brightness.numel() == 0:
            raise ValueError(f"brightness must have shape (H, W), got {tuple(brightness.shape)}")
        dark = (brightness.max() - brightness).double()
        if not torch.isfinite(dark).all() or dark.sum() == 0:
            raise ValueError("brightness must be finite, and not the same everywhere")
        self.mass = dark / dark.sum()
        self.pixel = 2 / max(dark.shape)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws ``(n, 2)``: a pixel, and a place in it."""
        height, width = self.mass.shape
        # Not multinomial: that takes 2^24 pixels at most.
        levels = self.mass.flatten().cumsum(0)
        at = torch.rand(n, generator=generator, dtype=torch.double) * levels[-1]
        index = torch.searchsorted(levels, at, right=True).clamp(max=levels.numel() - 1)
        place = torch.rand(n, 2, generator=generator, dtype=torch.double)
        column, row = index % width + place[:, 0], height - 1 - index // width + place[:, 1]
        centre = torch.tensor([width, height]) / 2
        return ((torch.stack([column, row], 1) - centre) * self.pixel).float()

    def log_likelihood_bound(self) -> float:
        """Return the best mean log-likelihood of any density: minus the entropy, in nats."""
        mass = self.mass[self.mass > 0]
        return float((mass * (mass / self.pixel**2).log()).sum())


def grey_pixels(path: Path) -> np.ndarray:
    """Read the bytes ``(height, width)`` of an image file.

    :raises DataError: without pillow.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DataError("reading images needs pillow: pip install 'pyro_naf[plots]'") from None
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))
