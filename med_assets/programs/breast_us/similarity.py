"""Images that are the same picture, exactly or nearly: by a perceptual hash, then by their pixels.

Near duplicates are the same frame saved again: resized, cropped by a little, or with other grey values. Two frames of one clip
a moment apart count too, where they hardly differ.
"""

from collections.abc import Sequence

import numpy as np

HASH_SIDE = 8
"""The hash has this many rows and columns of bits."""

HASH_BITS = 10
"""Most bits of 64 in which the hashes of near duplicates differ; two unrelated images differ in about 32."""

PIXEL_SIDE = 48
"""Rows and columns that the pixel check compares."""

CORRELATION = 0.93
"""Least correlation of the pixels of near duplicates. Of 4465 pairs of real images of BUSI, those with near hashes have 0.94 and
more, and all others but frames of one lesion stay below 0.88."""


def shrunk(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return a grey image resized by area, float64 (rows, columns)."""
    from PIL import Image

    small = Image.fromarray(np.asarray(image, np.uint8)).resize((columns, rows), Image.Resampling.BOX)
    return np.asarray(small, np.float64)


def dhash(image: np.ndarray) -> str:
    """Return the difference hash of a grey image: 64 bits as 16 hex digits, whether each of 8 x 8 areas is darker than the next."""
    small = shrunk(image, HASH_SIDE, HASH_SIDE + 1)
    return np.packbits(small[:, :-1] < small[:, 1:]).tobytes().hex()


def candidates(hashes: Sequence[str], bits: int = HASH_BITS) -> list[tuple[int, int]]:
    """Return the pairs of positions whose hashes differ in at most so many bits, sorted."""
    if not hashes:
        return []
    codes = np.array([int(one, 16) for one in hashes], np.uint64)
    found = []
    for index in range(len(codes) - 1):
        near = np.bitwise_count(codes[index] ^ codes[index + 1 :]) <= bits
        found += [(index, index + 1 + int(other)) for other in np.flatnonzero(near)]
    return found


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return the correlation of the grey values of two images, both resized to PIXEL_SIDE; 0 where one has no contrast."""
    a, b = (shrunk(image, PIXEL_SIDE, PIXEL_SIDE).ravel() for image in (first, second))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else 0.0


def groups(images: Sequence[np.ndarray]) -> list[int]:
    """Return for each image the position of the first image of its group; near duplicates of near duplicates are one group."""
    first = list(range(len(images)))

    def root(index: int) -> int:
        while first[index] != index:
            index = first[index]
        return index

    for one, other in candidates([dhash(image) for image in images]):
        if root(one) != root(other) and correlation(images[one], images[other]) >= CORRELATION:
            low, high = sorted((root(one), root(other)))
            first[high] = low
    return [root(index) for index in range(len(images))]
