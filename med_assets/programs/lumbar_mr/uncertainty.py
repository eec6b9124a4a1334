"""How unsure heat maps are: the published measures, to compare with, and others that are not the size of a blob.

A heat map is the probability of one level at each pixel, float (y, x), 0 to 1. The published formulas are those of the
LSTV uncertainty work with Point Net. For a crisp disc the published entropy is the logarithm of its area and says nothing
else; and of an empty map it is -0.0, below every threshold. Here an empty map has no entropy: it is None, "not found", and
never "normal".
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lumbar_mr.measures import MEASURES
from med_assets.programs.lumbar_mr.peaks import Peak, Point, peaks, second_peak, strongest

EPSILON = 1e-9
"""Added to sums and inside logarithms, as published."""

GRID = 10
"""Cells along each side of the grid that the spatial entropy sums over, as published."""

ABOVE = 0.5
"""Probability that a pixel of the published point must exceed, as published."""

STRONG_SHARE = 0.4
"""Share of the mass from which a second peak is strong: two thirds of the strongest. Chosen on 27 real volumes, docs/lumbar-mr.md."""

ONE_LEVEL_MM = (20.0, 50.0)
"""Distance of a second peak that is about one level away: a vertebral body of 20 to 35 mm and a disc of 5 to 15 mm, with no margin
for two levels."""


def confidence(heat: np.ndarray) -> float:
    """Return the highest probability of a map (y, x)."""
    return float(np.max(heat))


def entropy(heat: np.ndarray) -> float | None:
    """Return -sum p ln(p + 1e-9) with p = heat / (sum + 1e-9), nat, at most ln(pixels); None for an empty map."""
    values = np.asarray(heat, np.float64)
    total = float(values.sum())
    if total <= 0:
        return None
    p = values / (total + EPSILON)
    return float(-(p * np.log(p + EPSILON)).sum())


def spatial_entropy(heat: np.ndarray) -> float | None:
    """Return the entropy of the sums over GRID x GRID cells, nat, at most ln 100; None for an empty map.

    Raises ValueError for a map whose sides are no multiples of GRID: a remainder left out would be lost silently.
    """
    values = np.asarray(heat, np.float64)
    if any(side % GRID for side in values.shape):
        raise ValueError(f"expected a map whose sides are multiples of {GRID}, got {values.shape}")
    rows, columns = (side // GRID for side in values.shape)
    return entropy(values.reshape(GRID, rows, GRID, columns).sum(axis=(1, 3)))


def point(heat: np.ndarray) -> tuple[int, int] | None:
    """Return the published point: the rounded mean (y, x) of the pixels above 0.5; None where there is none."""
    where = np.argwhere(np.asarray(heat) > ABOVE)
    if not len(where):
        return None
    y, x = np.rint(where.mean(axis=0)).astype(int)
    return int(y), int(x)


def num_pixels_above_threshold(heat: np.ndarray) -> int:
    """Return the number of pixels above 0.5."""
    return int(np.count_nonzero(np.asarray(heat) > ABOVE))


def core(heat: np.ndarray) -> np.ndarray:
    """Return the map, float64, with all below half its maximum set to 0."""
    values = np.asarray(heat, np.float64)
    return np.where(values >= values.max() / 2, values, 0.0)


def excess_entropy(heat: np.ndarray) -> float | None:
    """Return entropy - ln(pixels above 0.5), nat: what a map is more spread than a disc of that area.

    None for an empty map, and where no pixel is above 0.5: there is no disc to compare with.
    """
    area, found = num_pixels_above_threshold(heat), entropy(heat)
    return None if found is None or area == 0 else found - math.log(area)


def share_entropy(amounts: Sequence[float] | np.ndarray) -> float | None:
    """Return the entropy of amounts as shares of their sum, nat, at most ln(count); None where all are 0."""
    values = np.asarray(amounts, np.float64)
    total = values.sum()
    if total <= 0:
        return None
    p = values[values > 0] / total
    return abs(float(-(p * np.log(p)).sum()))


def level_entropy(heats: np.ndarray, index: int) -> float | None:
    """Return the entropy over the levels of maps (level, y, x) at the strongest peak of one of them, nat; None if it is empty."""
    return _entropy_at(heats, strongest(heats[index]))


def _entropy_at(heats: np.ndarray, peak: Peak | None) -> float | None:
    return None if peak is None else share_entropy(heats[:, round(peak.point[0]), round(peak.point[1])])


def region_entropy(heats: np.ndarray, index: int) -> float | None:
    """Return the entropy over the levels of their mass where one map is at or above half its maximum, nat.

    All of its peaks that are so high count, not the strongest alone. None if it is empty.
    """
    inside = core(heats[index]) > 0
    return share_entropy(np.asarray(heats, np.float64)[:, inside].sum(axis=1)) if inside.any() else None


def spread_mm(points: Sequence[Point | None], pixel_mm: Sequence[float]) -> float | None:
    """Return the root mean square distance of points (y, x) from their mean, mm; None for fewer than two that exist.

    `pixel_mm` is the size of a pixel of the map along (y, x).
    """
    there = [one for one in points if one is not None]
    if len(there) < 2:
        return None
    found = np.array(there, np.float64) * np.asarray(pixel_mm, np.float64)
    return float(np.sqrt(((found - found.mean(axis=0)) ** 2).sum(axis=1).mean()))


def divergence(heats: Sequence[np.ndarray] | np.ndarray) -> float | None:
    """Return the Jensen-Shannon divergence of maps (view, y, x), each divided by its sum, nat: 0 when all are alike.

    At most ln(views). None for fewer than two views, and when one of them is empty. Lin, IEEE Trans. Inf. Theory 37 (1991).
    """
    views = np.asarray(heats, np.float64).reshape(len(heats), -1)
    totals = views.sum(axis=1, keepdims=True)
    if len(views) < 2 or (totals <= 0).any():
        return None
    p = views / totals
    mixed = share_entropy(p.mean(axis=0))
    own = [share_entropy(one) for one in p]
    assert mixed is not None
    return max(0.0, mixed - math.fsum(one for one in own if one is not None) / len(own))


def measure(
    heats: np.ndarray,
    slices: np.ndarray,
    views: np.ndarray,
    pixel_mm: Sequence[float],
    found_above: float,
) -> dict[str, dict[str, float | None]]:
    """Return all MEASURES of each level, by level and measure.

    `heats` are the combined maps (level, y, x), `slices` those of single slices (slice, level, y, x), `views` the
    combined maps of augmented views (view, level, y, x); either of the last two may hold none. A level whose confidence
    is not above `found_above` is not found: it has a confidence and nothing else. A single slice or view in which it is
    not found has no point.
    """
    table: dict[str, dict[str, float | None]] = {}
    for index, level in enumerate(LEVELS):
        heat = heats[index]
        row: dict[str, float | None] = dict.fromkeys(MEASURES)
        row["confidence"] = confidence(heat)
        if confidence(heat) > found_above:
            own = [[_point(one[index], found_above) for one in maps] for maps in (slices, views)]
            places = peaks(heat)
            second = second_peak(places, pixel_mm)
            row |= {
                "entropy": entropy(heat),
                "spatial_entropy": spatial_entropy(heat),
                "excess_entropy": excess_entropy(heat),
                "level_entropy": _entropy_at(heats, places[0]),
                "region_entropy": region_entropy(heats, index),
                "slice_spread": spread_mm(own[0], pixel_mm),
                "augmented_spread": spread_mm(own[1], pixel_mm),
                "augmented_divergence": divergence(views[:, index]) if len(views) else None,
                "second_peak_share": second.share,
                "second_peak_distance": second.distance_mm,
            }
        table[level] = row
    return table


def _point(heat: np.ndarray, found_above: float) -> Point | None:
    peak = strongest(heat) if confidence(heat) > found_above else None
    return None if peak is None else peak.point


def shifted_levels(table: Mapping[str, Mapping[str, float | None]]) -> tuple[str, ...]:
    """Return the levels whose second peak is strong and about one level away: there the count of levels may be shifted.

    A second peak is strong from STRONG_SHARE of the mass on. `table` has the measures by level.
    """
    low, high = ONE_LEVEL_MM
    found = []
    for level in LEVELS:
        row = table[level]
        share, distance_mm = row["second_peak_share"], row["second_peak_distance"]
        if share is not None and distance_mm is not None and share >= STRONG_SHARE and low <= distance_mm <= high:
            found.append(level)
    return tuple(found)


def least_certain(table: Mapping[str, Mapping[str, float | None]], name: str) -> float | None:
    """Return the value of a measure at the level that it says is least certain; None unless all levels have one."""
    values = [row[name] for row in table.values()]
    found = [value for value in values if value is not None]
    if not found or len(found) < len(values):
        return None
    return max(found) if MEASURES[name].high_is_unsure else min(found)
