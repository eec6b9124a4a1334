"""Bounding boxes of masks."""

import numpy as np


def box_of(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Return the smallest box that holds all that is True in a bool mask, a slice for each axis; None where nothing is.

    The mask is read twice, whatever its number of axes.
    """
    first = np.any(mask, axis=tuple(range(1, mask.ndim)))
    across = np.asarray(np.any(mask, axis=0))
    if not first.any():
        return None
    others = [tuple(other for other in range(across.ndim) if other != axis) for axis in range(across.ndim)]
    return tuple(_span(np.asarray(filled)) for filled in (first, *(np.any(across, axis=axes) for axes in others)))


def _span(filled: np.ndarray) -> slice:
    return slice(int(filled.argmax()), len(filled) - int(filled[::-1].argmax()))
