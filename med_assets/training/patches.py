"""What the patches of all programs have in common: which case is next, and where a patch lies in its volume."""

from collections.abc import Sequence

import numpy as np


def case_order(seed: int, epoch: int, cases: int, length: int) -> np.ndarray:
    """Return which of so many cases each position of an epoch takes: all equally often, up to one, in a shuffled order."""
    rng = np.random.default_rng([seed, epoch, 0])
    rounds = -(-length // cases)
    return np.concatenate([rng.permutation(cases) for _ in range(rounds)])[:length]


def corner_near(centre: Sequence[int], size: Sequence[int], shape: Sequence[int]) -> list[int]:
    """Return the first voxel of a patch whose centre is as near to a voxel as the borders of the volume allow.

    It is negative along an axis where the volume is smaller than the patch, which is then centred.
    """
    slack = [extent - side for extent, side in zip(shape, size, strict=True)]
    return [
        min(max(int(middle) - side // 2, 0), spare) if spare > 0 else spare // 2
        for middle, side, spare in zip(centre, size, slack, strict=True)
    ]


def window(
    corner: Sequence[int], size: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, ...], list[tuple[int, int]]]:
    """Return where a patch lies within a volume, and by how much it reaches beyond it at the two ends of each axis."""
    spans = tuple(
        slice(max(start, 0), min(start + side, extent)) for start, side, extent in zip(corner, size, shape, strict=True)
    )
    pads = [
        (span.start - start, start + side - span.stop) for span, start, side in zip(spans, corner, size, strict=True)
    ]
    return spans, pads
