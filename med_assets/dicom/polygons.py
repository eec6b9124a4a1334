"""Closed contours of one slice as an area: holes by nesting, the same contour once, overlaps united.

Polygons are (n, 2) arrays of (y, x) in pixels; pixel centres lie at whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

INDEX_DECIMALS = 6
"""Decimals of a voxel kept of contour points, so that the noise of decimal text can't move a voxel across a line."""

SAME_CONTOUR_PIXELS = 0.05
"""Two contours whose points all lie this near to each other's lines are one contour, sent twice."""

NESTED_SHARE = 0.95
"""Share of a contour's pixels that lie in what larger ones enclose from which it is a hole; in a hole it is an island."""


def area(polygon: np.ndarray) -> float:
    """Area of a polygon in square pixels, without sign."""
    y, x = polygon[:, 0], polygon[:, 1]
    before_y, before_x = (np.concatenate([one[-1:], one[:-1]]) for one in (y, x))
    return float(abs(np.dot(x, before_y) - np.dot(y, before_x)) / 2)


def clipped_area(polygon: np.ndarray, low: Sequence[float], high: Sequence[float]) -> float:
    """Area in square pixels of the part of a polygon within a rectangle (Sutherland and Hodgman 1974)."""
    for axis in (0, 1):
        for limit, sign in ((low[axis], 1.0), (high[axis], -1.0)):
            if not len(polygon):
                return 0.0
            inside = sign * (polygon[:, axis] - limit) >= 0
            following, next_inside = np.roll(polygon, -1, axis=0), np.roll(inside, -1)
            kept = []
            for start, end, here, there in zip(polygon, following, inside, next_inside, strict=True):
                if here:
                    kept.append(start)
                if here != there:
                    kept.append(start + (limit - start[axis]) / (end[axis] - start[axis]) * (end - start))
            polygon = np.array(kept).reshape(-1, 2)
    return area(polygon) if len(polygon) else 0.0


def fill_even_odd(polygons: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Return the even-odd fill of closed polygons at pixel centres, bool (y, x); the doubled line of a keyhole encloses nothing."""
    whole = np.zeros(shape, bool)
    box, inside = _even_odd_in_box(polygons, shape)
    whole[box] = inside
    return whole


def _even_odd_in_box(polygons: Sequence[np.ndarray], shape: tuple[int, ...]) -> tuple[tuple[slice, slice], np.ndarray]:
    """The part of an image beyond which `fill_even_odd` is empty, and the fill there: small contours cost no whole slice."""
    ny, nx = shape
    starts = np.concatenate(polygons)
    ends = np.concatenate([np.roll(polygon, -1, axis=0) for polygon in polygons])
    down = starts[:, 0] > ends[:, 0]
    # Both ways along one line must give the same crossings to the last bit, or keyholes leave specks.
    starts[down], ends[down] = ends[down], starts[down]
    first = np.clip(np.ceil(starts[:, 0]), 0, ny).astype(int)
    count = np.clip(np.ceil(ends[:, 0]), 0, ny).astype(int) - first
    edges = np.repeat(np.arange(len(starts)), count)
    if not len(edges):
        return (slice(0, 0), slice(0, 0)), np.zeros((0, 0), bool)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(count) - count, count) + first[edges]
    (y0, x0), (y1, x1) = starts[edges].T, ends[edges].T
    crossings = np.round(x0 + (rows - y0) * (x1 - x0) / (y1 - y0), INDEX_DECIMALS)
    columns = np.clip(np.ceil(crossings), 0, nx).astype(int)
    # A closed line crosses each row an even number of times: beyond the last crossing nothing is inside.
    box = slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()))
    height, width = (int(side.stop - side.start) for side in box)
    at = (rows - box[0].start) * (width + 1) + columns - box[1].start
    toggles = np.bincount(at, minlength=height * (width + 1)).reshape(height, width + 1)
    # Sums may wrap around in 8 bits: only whether they are odd counts.
    return box, (np.cumsum(toggles[:, :width], axis=1, dtype=np.uint8) & 1).astype(bool)


class Filled(NamedTuple):
    """Pixels that contours enclose, bool (y, x), how many contours overlap without nesting, and the area in square pixels.

    `area` is that of the polygons, not of the pixels; where they overlap, the share of pixels in both is taken for that of area.
    """

    mask: np.ndarray
    overlaps: int
    area: float


def fill_nested(polygons: Sequence[np.ndarray], shape: tuple[int, ...]) -> Filled:
    """Return what contours enclose that are each closed by themselves.

    A contour within another is a hole, one within the hole an island. A contour that repeats another counts once. Contours that
    overlap and do not nest are united.
    """
    if len(polygons) == 1:
        return Filled(fill_even_odd(polygons, shape), 0, _area_within(polygons[0], shape))
    drawn, overlaps, total = np.zeros(shape, bool), 0, 0.0
    for polygon in _distinct(polygons):
        box, mask, share = _filled_share(polygon, drawn)
        overlaps += 1 - NESTED_SHARE < share < NESTED_SHARE
        hole = share >= NESTED_SHARE
        drawn[box] = drawn[box] & ~mask if hole else drawn[box] | mask
        total += _area_within(polygon, shape) * (-share if hole else 1 - share)
    return Filled(drawn, overlaps, total)


def fill_xor(polygons: Sequence[np.ndarray], shape: tuple[int, ...]) -> Filled:
    """Return what an odd number of contours encloses."""
    drawn, total = np.zeros(shape, bool), 0.0
    for polygon in polygons:
        box, mask, share = _filled_share(polygon, drawn)
        drawn[box] ^= mask
        total += _area_within(polygon, shape) * (1 - 2 * share)
    return Filled(fill_even_odd(polygons, shape), 0, total)


def _distinct(polygons: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The polygons by falling area, without those that repeat a larger one; equal areas by what does not depend on their order."""
    ordered = sorted(polygons, key=_rank)
    bounds = np.array([[*polygon.min(0), *polygon.max(0)] for polygon in ordered])
    distinct: list[int] = []
    for number, polygon in enumerate(ordered):
        # Only contours of the same bounds can be the same, and their points are compared with every line.
        alike = np.abs(bounds[distinct] - bounds[number]).max(axis=1, initial=0) <= SAME_CONTOUR_PIXELS
        if not any(_same(polygon, ordered[distinct[other]]) for other in np.flatnonzero(alike)):
            distinct.append(number)
    return [ordered[number] for number in distinct]


def _rank(polygon: np.ndarray) -> tuple[float, list[list[float]]]:
    """Sorts larger areas first and equal ones by their points, whichever point a contour starts at and in which direction."""
    return -round(area(polygon), 6), sorted(polygon.tolist())


def _filled_share(polygon: np.ndarray, drawn: np.ndarray) -> tuple[tuple[slice, slice], np.ndarray, float]:
    """Where the pixels of a polygon lie, they, and the share of them that is drawn already; 0 where it encloses no pixel's centre."""
    box, mask = _even_odd_in_box([polygon], drawn.shape)
    pixels = int(mask.sum())
    return box, mask, float((mask & drawn[box]).sum() / pixels) if pixels else 0.0


def _area_within(polygon: np.ndarray, shape: tuple[int, ...]) -> float:
    """Area of the part of a polygon that lies on the pixels of an image."""
    last = np.asarray(shape, float) - 0.5
    if (polygon >= -0.5).all() and (polygon <= last).all():
        return area(polygon)
    return clipped_area(polygon, (-0.5, -0.5), (float(last[0]), float(last[1])))


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return max(_farthest(one, other), _farthest(other, one)) <= SAME_CONTOUR_PIXELS


def _farthest(points: np.ndarray, polygon: np.ndarray) -> float:
    """Largest distance of points from the lines of a polygon, in pixels."""
    start, along = polygon[None], (np.roll(polygon, -1, axis=0) - polygon)[None]
    length = np.maximum((along**2).sum(-1), 1e-12)
    at = np.clip(((points[:, None] - start) * along).sum(-1) / length, 0, 1)
    return float(np.sqrt((((start + at[..., None] * along) - points[:, None]) ** 2).sum(-1)).min(axis=1).max())
