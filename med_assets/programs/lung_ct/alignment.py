"""Whether a label lies where the image has its edge, or a slice beside it, or mirrored."""

import numpy as np

from med_assets.metrics.boxes import box_of
from med_assets.programs.lung_ct.expectations import AS_DRAWN

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
    box = box_of(mask)
    return None if box is None else _contrast_in_box(hu, mask[box], box)


def _contrast_in_box(hu: np.ndarray, inside: np.ndarray, box: tuple[slice, ...]) -> float | None:
    """`contrast_hu` of a mask that is nowhere but within a box of the image, where it is `inside`."""
    from scipy.ndimage import binary_dilation

    if not inside.any():
        return None
    sides = zip(box, hu.shape, strict=True)
    around = tuple(slice(max(side.start - 1, 0), min(side.stop + 1, size)) for side, size in sides)
    more = [(side.start - wide.start, wide.stop - side.stop) for side, wide in zip(box, around, strict=True)]
    inside, values = np.pad(inside, more), hu[around]
    shell = binary_dilation(inside, np.ones((3, 3, 3))) & ~inside
    return abs(float(values[inside].mean()) - float(values[shell].mean())) if shell.any() else None


def _contrast_moved(hu: np.ndarray, inside: np.ndarray, box: tuple[slice, ...], step: int) -> float:
    """The contrast of the mask moved by a number of slices; what leaves the image is cut. 0 where there is none."""
    first = box[0].start + step
    low, high = max(first, 0), max(0, min(box[0].stop + step, len(hu)))
    return _contrast_in_box(hu, inside[low - first : high - first], (slice(low, high), *box[1:])) or 0.0


def _contrast_mirrored(hu: np.ndarray, inside: np.ndarray, box: tuple[slice, ...], axis: int) -> float:
    """The contrast of the mask mirrored in the image along an axis; 0 where there is none."""
    sides, size = list(box), hu.shape[axis]
    sides[axis] = slice(size - box[axis].stop, size - box[axis].start)
    return _contrast_in_box(hu, np.flip(inside, axis), tuple(sides)) or 0.0


def better_place(hu: np.ndarray, mask: np.ndarray) -> str | None:
    """Where the contrast of the mask is clearly higher than as drawn, else AS_DRAWN; None where the mask has no contrast.

    A right label has its edge on an edge of the image. One that is a slice off has more contrast a slice on and less a slice
    back, while one that is too narrow or too wide has as much on both sides; a mirrored one has hardly any.
    """
    box = box_of(mask)
    drawn = None if box is None else _contrast_in_box(hu, mask[box], box)
    if box is None or drawn is None:
        return None
    inside = mask[box]
    higher, lower = (_contrast_moved(hu, inside, box, step) for step in (1, -1))
    found = [(higher, lower, "one slice higher"), (lower, higher, "one slice lower")]
    for value, back, name in found:
        if back < drawn and value > drawn + max(GAIN * drawn, LEAST_GAIN_HU):
            return name
    for axis, name in enumerate(("mirrored head to feet", "mirrored front to back", "mirrored left to right")):
        value = _contrast_mirrored(hu, inside, box, axis)
        if value > max(MIRRORED_GAIN * drawn, drawn + LEAST_GAIN_HU):
            return name
    return AS_DRAWN
