"""Whether a label lies where the image has its edge, or a slice beside it, or mirrored."""

from collections.abc import Iterator

import numpy as np

AS_DRAWN = "as drawn"

GAIN = 0.1
"""Share by which the contrast elsewhere must be above that of the label as drawn, so that a rough outline is none."""

LEAST_GAIN_HU = 20.0
"""The same in HU, so that noise is none."""

MIRRORED_GAIN = 4.0
"""How many times the contrast of the mirrored label must be that of the label as drawn: the other side has edges of its own."""


def contrast_hu(hu: np.ndarray, mask: np.ndarray) -> float | None:
    """Size of the difference between the mean HU in a mask and in the shell of one voxel around it; arrays are (z, y, x).

    None where the mask is empty or has no shell.
    """
    from scipy.ndimage import binary_dilation

    if not mask.any():
        return None
    places = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(max(int(one[0]) - 1, 0), int(one[-1]) + 2) for one in places)
    inside, values = mask[box], hu[box]
    shell = binary_dilation(inside, np.ones((3, 3, 3))) & ~inside
    return abs(float(values[inside].mean()) - float(values[shell].mean())) if shell.any() else None


def _elsewhere(mask: np.ndarray) -> Iterator[tuple[str, np.ndarray, float]]:
    """The mask where mistakes of exporters put it, and how many times the contrast must be higher there."""
    for step, name in ((1, "one slice higher"), (-1, "one slice lower")):
        moved = np.zeros_like(mask)
        moved[max(step, 0) : mask.shape[0] + min(step, 0)] = mask[max(-step, 0) : mask.shape[0] + min(-step, 0)]
        yield name, moved, 1 + GAIN
    for axis, name in enumerate(("mirrored head to feet", "mirrored front to back", "mirrored left to right")):
        yield name, np.flip(mask, axis), MIRRORED_GAIN


def better_place(hu: np.ndarray, mask: np.ndarray) -> str | None:
    """Where the contrast of the mask is clearly higher than as drawn, else AS_DRAWN; None where the mask has no contrast.

    A right label has its edge on an edge of the image; one that is a slice off or mirrored has less contrast than at its place.
    """
    drawn = contrast_hu(hu, mask)
    if drawn is None:
        return None
    found = [
        (value, name)
        for name, moved, times in _elsewhere(mask)
        if (value := contrast_hu(hu, moved)) is not None and value > max(times * drawn, drawn + LEAST_GAIN_HU)
    ]
    return max(found, default=(0.0, AS_DRAWN))[1]
