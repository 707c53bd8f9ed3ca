"""BSDS300: patches of 8 x 8 pixels from natural images (Martin et al. 2001)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .pictures import grey_pixels
from .split import DataError, Split

SIDE = 8

#: Rows of the published set: to train, to validate and to test on.
ROWS = (1_000_000, 50_000, 250_000)

#: Images that the patches for validation come from.
VALIDATION_IMAGES = 20


def patches(images: np.ndarray, rows: int, rng: np.random.Generator) -> np.ndarray:
    """Patches ``(rows, 63)`` at uniform positions of grey images ``(M, height, width)`` of bytes.

    Noise U[0, 1) is added to each pixel, the patch divided by 256, its mean taken off, and the last
    pixel left out, which the others then determine.
    """
    m, height, width = images.shape
    image = rng.integers(m, size=rows)
    top, left = (rng.integers(size - SIDE + 1, size=rows) for size in (height, width))
    result = np.empty((rows, SIDE * SIDE - 1), np.float32)
    step = np.arange(SIDE)
    for i in range(0, rows, 65_536):  # a million patches at once would take half a gigabyte
        part = slice(i, min(i + 65_536, rows))
        at = (
            image[part, None, None],
            top[part, None, None] + step[:, None],
            left[part, None, None] + step,
        )
        pixels = images[at].reshape(-1, SIDE * SIDE).astype(np.float64)
        pixels = (pixels + rng.random(pixels.shape)) / 256
        result[part] = (pixels - pixels.mean(1, keepdims=True))[:, :-1]
    return result


def patch_split(
    train: np.ndarray,
    test: np.ndarray,
    rows: tuple[int, int, int] = ROWS,
) -> Split:
    """Patches from all but 20 of the training images, from those 20, and from the test images.

    :param train: grey images ``(M, height, width)`` of bytes, M > 20.
    :param test: others.
    """
    if len(train) <= VALIDATION_IMAGES:
        raise DataError(f"more than {VALIDATION_IMAGES} images are needed, got {len(train)}")
    rng = np.random.default_rng(42)
    shuffled = train[rng.permutation(len(train))]
    parts = (shuffled[VALIDATION_IMAGES:], shuffled[:VALIDATION_IMAGES], test)
    return Split(*(patches(images, n, rng) for images, n in zip(parts, rows, strict=True)))


def load_bsds300(root: Path, check: bool = True) -> Split:
    """BSDS300 from the owner's images, ``images/train/*.jpg`` and ``images/test/*.jpg``.

    :raises DataError: when they are not there, or cannot be read without pillow.
    """
    places = (root, root / "BSDS300", root / "bsds300", root / "bsds300" / "BSDS300")
    folder = next((p / "images" for p in places if (p / "images").is_dir()), None)
    if folder is None:
        raise DataError(
            f"images/train and images/test are not in {root}: download bsds300 "
            "(BSDS300-images.tgz) from https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/"
            f"bsds/, unpack it, and put BSDS300 into {root / 'bsds300'}"
        )
    parts = []
    for part, expected in (("train", 200), ("test", 100)):
        paths = sorted((folder / part).glob("*.jpg"))
        if len(paths) != expected and (check or not paths):
            raise DataError(f"{folder / part} must hold {expected} images, got {len(paths)}")
        parts.append(np.stack([_grey(path) for path in paths]))
    return patch_split(parts[0], parts[1], ROWS if check else (1000, 100, 200))


def _grey(path: Path) -> np.ndarray:
    """Its pixels ``(321, 481)``, bytes; those that stand upright are laid down."""
    pixels = grey_pixels(path)
    return pixels if pixels.shape[0] <= pixels.shape[1] else np.rot90(pixels)
