"""Peaks of maps: where a level is, and where else it could be.

A **peak** is a highest pixel of a map together with the pixels connected to it that have at least half its value, provided that none
of them is higher than it. Pixels are connected when they touch by a side or a corner (8 in a plane, 2 along a line). So the
slope of a higher summit is no peak of its own, and two summits are two peaks when the way between them leads below half of the
lower one. Peaks lower than LOWEST of the map's maximum are left out. They are ordered by height; of equally high ones the one of more
mass is first, then the one whose highest pixel is first in reading order (from the head, from the front).

The **strongest** peak is the first: the connected part of the map at or above half its maximum that holds the maximum. Its
point is the centroid of the map over that part alone, weighted by probability. The mean over all pixels above half the maximum,
which a second peak draws to itself, lies between the two, where there is nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Point = tuple[float, float]

LOWEST = 0.05
"""Height of the lowest peak that counts, as a share of the map's maximum."""


@dataclass(frozen=True)
class Peak:
    """One peak: its centroid in pixels along each axis, its height, the sum over its pixels, and which pixels those are."""

    centre: tuple[float, ...]
    height: float
    mass: float
    inside: np.ndarray

    @property
    def point(self) -> Point:
        """The centroid (y, x) of a peak of a plane."""
        y, x = self.centre
        return y, x


def peaks(values: np.ndarray) -> list[Peak]:
    """Return the peaks of a map of any number of axes, not negative, the strongest first; none of an empty map."""
    from scipy import ndimage

    heat = np.asarray(values, np.float64)
    most = float(heat.max(initial=0.0))
    if most <= 0:
        return []
    touching = np.ones((3,) * heat.ndim, bool)
    summits = (heat == ndimage.maximum_filter(heat, footprint=touching, mode="nearest")) & (heat >= LOWEST * most)
    found: list[Peak] = []
    while summits.any():
        top = np.unravel_index(int(np.where(summits, heat, -1.0).argmax()), heat.shape)
        height = float(heat[top])
        parts, _ = ndimage.label(heat >= height / 2, touching)
        inside = parts == parts[top]
        if heat[inside].max() <= height:
            found.append(_peak(heat, inside, height))
        # Whatever else is in there is connected to something higher, at half its own height too.
        summits &= ~inside
    return sorted(found, key=lambda peak: (-peak.height, -peak.mass))


def strongest(values: np.ndarray) -> Peak | None:
    """Return the first of `peaks`; None for an empty map."""
    return next(iter(peaks(values)), None)


def _peak(heat: np.ndarray, inside: np.ndarray, height: float) -> Peak:
    weights = heat[inside]
    mass = float(weights.sum())
    centre = (np.argwhere(inside) * weights[:, None]).sum(axis=0) / mass
    return Peak(tuple(float(value) for value in centre), height, mass, inside)


@dataclass(frozen=True)
class SecondPeak:
    """The peak of most mass beside the strongest: its share of the mass of both, and how far from the strongest it is, mm."""

    share: float
    distance_mm: float


def second_peak(found: Sequence[Peak], pixel_mm: Sequence[float]) -> SecondPeak:
    """Return the second of a map's peaks; a share of 0 at 0 mm where there is one peak alone.

    `pixel_mm` is the size of a pixel of the map along (y, x). Raises ValueError when there is no peak at all.
    """
    if not found:
        raise ValueError("expected the peaks of a map that is not empty, got none")
    first, *others = found
    if not others:
        return SecondPeak(0.0, 0.0)
    second = max(others, key=lambda peak: peak.mass)
    offset = (np.array(second.centre) - first.centre) * np.asarray(pixel_mm, np.float64)
    return SecondPeak(second.mass / (first.mass + second.mass), float(np.linalg.norm(offset)))
