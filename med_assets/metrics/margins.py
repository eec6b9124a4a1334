"""Margins around structures."""

import numpy as np
from numpy.typing import NDArray

from med_assets.metrics.boxes import box_of


def grow(mask: NDArray[np.bool_], margin_mm: float, spacing_mm: tuple[float, float, float]) -> NDArray[np.bool_]:
    """Return a mask (z, y, x) grown by a Euclidean margin: voxels whose centre is within it of a centre inside."""
    from scipy.ndimage import distance_transform_edt

    grown, box = np.zeros_like(mask), box_of(mask)
    if box is None:
        return grown
    reach = [int(np.ceil(margin_mm / step)) + 1 for step in spacing_mm]
    cut = tuple(slice(max(0, side.start - more), side.stop + more) for side, more in zip(box, reach, strict=True))
    grown[cut] = distance_transform_edt(~mask[cut], sampling=spacing_mm) <= margin_mm
    return grown
