"""From a mask to DICOM contours, such that rasterising them gives back the same voxels."""

import numpy as np

from med_assets.dicom.geometry import Geometry


def mask_to_contours(mask: np.ndarray, geometry: Geometry) -> list[np.ndarray]:
    """Closed planar contours (n, 3) in LPS mm around a (z, y, x) mask, slice by slice.

    Lines run midway between the voxel centres inside and outside, so no voxel centre lies on one and the even-odd rule
    gives back every voxel exactly. A hole is a contour of its own; diagonal neighbours get separate contours. The last
    point does not repeat the first. Each outline encloses half a pixel less than its voxels do.
    Raises ValueError when the shape of the mask is not the grid's.
    """
    from skimage.measure import find_contours

    mask = np.asarray(mask, dtype=bool)
    if mask.shape != tuple(geometry.shape):
        raise ValueError(
            f"expected a mask of shape {tuple(geometry.shape)}, got {mask.shape}; put it on the CT grid first"
        )
    affine = geometry.affine()
    contours = []
    for z in np.flatnonzero(mask.any(axis=(1, 2))):
        for closed in find_contours(np.pad(mask[z], 1).astype(np.float32), 0.5):
            in_plane = _without_collinear(closed[:-1] - 1)
            index = np.column_stack([np.full(len(in_plane), z), in_plane, np.ones(len(in_plane))])
            contours.append((index @ affine.T)[:, :3])
    return contours


def _without_collinear(points: np.ndarray) -> np.ndarray:
    """Drop the points of a closed polygon that lie on the straight line between their neighbours."""
    before = points - np.roll(points, 1, axis=0)
    after = np.roll(points, -1, axis=0) - points
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    return points[np.abs(turn) > 1e-9]
