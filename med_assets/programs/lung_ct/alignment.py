"""Whether a label lies where the image has its edge, or a slice beside it, or mirrored."""

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


def _moved(mask: np.ndarray, step: int) -> np.ndarray:
    """The mask moved by a number of slices; what leaves the image is cut."""
    moved = np.zeros_like(mask)
    moved[max(step, 0) : mask.shape[0] + min(step, 0)] = mask[max(-step, 0) : mask.shape[0] + min(-step, 0)]
    return moved


def better_place(hu: np.ndarray, mask: np.ndarray) -> str | None:
    """Where the contrast of the mask is clearly higher than as drawn, else AS_DRAWN; None where the mask has no contrast.

    A right label has its edge on an edge of the image. One that is a slice off has more contrast a slice on and less a slice
    back, while one that is too narrow or too wide has as much on both sides; a mirrored one has hardly any.
    """
    drawn = contrast_hu(hu, mask)
    if drawn is None:
        return None
    higher, lower = (contrast_hu(hu, _moved(mask, step)) or 0.0 for step in (1, -1))
    found = [(higher, lower, "one slice higher"), (lower, higher, "one slice lower")]
    for value, back, name in found:
        if back < drawn and value > drawn + max(GAIN * drawn, LEAST_GAIN_HU):
            return name
    for axis, name in enumerate(("mirrored head to feet", "mirrored front to back", "mirrored left to right")):
        value = contrast_hu(hu, np.flip(mask, axis)) or 0.0
        if value > max(MIRRORED_GAIN * drawn, drawn + LEAST_GAIN_HU):
            return name
    return AS_DRAWN
