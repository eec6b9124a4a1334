"""From a mask to DICOM contours, such that rasterising them gives back the same voxels."""

import numpy as np

from med_assets.dicom.geometry import Geometry


def mask_to_contours(mask: np.ndarray, geometry: Geometry, *, keyholes: bool = False) -> list[np.ndarray]:
    """Closed planar contours (n, 3) in LPS mm around a (z, y, x) mask, slice by slice.

    Lines run midway between the voxel centres inside and outside, so no voxel centre lies on one and the even-odd rule
    gives back every voxel exactly. A hole is a contour of its own, or with `keyholes` joined to the outline around it by a
    line that runs there and back midway between rows (PS3.3 C.8.8.6.3); diagonal neighbours get separate contours. The last
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
        rings = [closed[:-1] - 1 for closed in find_contours(np.pad(mask[z], 1).astype(np.float32), 0.5)]
        for in_plane in joined(rings) if keyholes else map(_without_collinear, rings):
            index = np.column_stack([np.full(len(in_plane), z), in_plane, np.ones(len(in_plane))])
            contours.append((index @ affine.T)[:, :3])
    return contours


def joined(rings: list[np.ndarray]) -> list[np.ndarray]:
    """Return the outlines of `rings`, (n, 2) as (row, column) midway between pixels, each with its holes as keyholes.

    `find_contours` runs around what is inside one way and around holes the other, which distinguishes them.
    """
    outlines = [ring for ring in rings if _signed_area(ring) < 0]
    holes = sorted((ring for ring in rings if _signed_area(ring) > 0), key=lambda ring: float(ring[:, 1].min()))
    for hole in holes:
        # Half rows pass through no pixel's centre; left of the leftmost such point lies what is inside.
        start = min(np.flatnonzero(hole[:, 0] % 1 == 0.5), key=lambda place: float(hole[place, 1]))
        around = [number for number, ring in enumerate(outlines) if _even_odd(ring, hole[start] - (0, 0.25))]
        (number,) = around
        outlines[number] = _with_keyhole(outlines[number], np.roll(hole, -int(start), axis=0))
    return [_without_collinear(ring) for ring in outlines]


def _with_keyhole(outline: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """The outline with a hole, which begins at its leftmost point on a half row, joined by a line to the left."""
    (row, column), following = hole[0], np.roll(outline, -1, axis=0)
    across = (np.minimum(outline[:, 0], following[:, 0]) <= row) & (np.maximum(outline[:, 0], following[:, 0]) >= row)
    height = following[:, 0] - outline[:, 0]
    share = np.divide(row - outline[:, 0], height, out=np.zeros(len(outline)), where=height != 0)
    met = outline[:, 1] + share * (following[:, 1] - outline[:, 1])
    met = np.where(height == 0, np.maximum(outline[:, 1], following[:, 1]), met)
    met[~across | (met >= column)] = -np.inf
    place = int(met.argmax())
    there = np.array([[row, met[place]]])
    return np.concatenate([outline[: place + 1], there, hole, hole[:1], there, outline[place + 1 :]])


def _even_odd(ring: np.ndarray, point: np.ndarray) -> bool:
    """Whether a point is within a ring that may have keyholes."""
    ends = np.roll(ring, -1, axis=0)
    crossing = (ring[:, 0] > point[0]) != (ends[:, 0] > point[0])
    start, end = ring[crossing], ends[crossing]
    at = start[:, 1] + (point[0] - start[:, 0]) / (end[:, 0] - start[:, 0]) * (end[:, 1] - start[:, 1])
    return bool((at > point[1]).sum() % 2)


def _signed_area(ring: np.ndarray) -> float:
    return float(np.sum(ring[:, 0] * np.roll(ring[:, 1], -1) - np.roll(ring[:, 0], -1) * ring[:, 1]) / 2)


def _without_collinear(points: np.ndarray) -> np.ndarray:
    """Drop the points of a closed polygon that repeat the one before or lie straight between their neighbours."""
    points = points[np.abs(points - np.roll(points, 1, axis=0)).max(axis=1) > 1e-9]
    before = points - np.roll(points, 1, axis=0)
    after = np.roll(points, -1, axis=0) - points
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    onwards = (before * after).sum(axis=1) > 0  # a keyhole's line turns back
    return points[(np.abs(turn) > 1e-9) | ~onwards]
