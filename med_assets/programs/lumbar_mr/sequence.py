"""All levels decoded together: of the peaks of each level's map, the ones that are probable and follow each other as discs do.

Of the levels that are found, from head to feet, one peak each is chosen so that

    sum over levels of ln(height of the peak)  -  sum over neighbours of ((distance - n * gap) / (sqrt(n) * sd))^2 / 2

is greatest: the probability of the peaks times a Gaussian prior on the distances of neighbours in the sagittal plane, mm. `n` is 1 for
neighbouring levels, and one more for each level between that is not found. A peak that is not below the one before it (nearer
to the feet) can't follow it. Where no sequence is in order, each level has its strongest peak.

The greatest sum is found exactly, by dynamic programming over the peaks of one level after another (Viterbi). Of equal sums the one with
the stronger peaks wins, from head to feet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from med_assets.programs.lumbar_mr.peaks import Peak


@dataclass(frozen=True)
class Gaps:
    """What is expected of the distance of neighbouring levels: mean and standard deviation, mm."""

    mean_mm: float
    sd_mm: float


def decode(found: Sequence[Sequence[Peak]], pixel_mm: Sequence[float], gaps: Gaps) -> list[Peak | None]:
    """Return the chosen peak of each level, head to feet, None for a level without a peak.

    `found` are the peaks of each level, the strongest first; `pixel_mm` is the size of a pixel of the map along (y, x).
    """
    chosen: list[Peak | None] = [peaks[0] if peaks else None for peaks in found]
    present = [index for index, peaks in enumerate(found) if peaks]
    if not present:
        return chosen
    best = np.log([peak.height for peak in found[present[0]]])
    before: list[np.ndarray] = []
    for above, level in pairwise(present):
        steps = best[:, None] + _steps(found[above], found[level], pixel_mm, gaps, level - above)
        before.append(steps.argmax(axis=0))
        best = steps.max(axis=0) + np.log([peak.height for peak in found[level]])
    if not np.isfinite(best.max()):
        return chosen
    place = int(best.argmax())
    for index in reversed(range(len(present))):
        chosen[present[index]] = found[present[index]][place]
        if index:
            place = int(before[index - 1][place])
    return chosen


def _steps(upper: Sequence[Peak], lower: Sequence[Peak], pixel_mm: Sequence[float], gaps: Gaps, n: int) -> np.ndarray:
    """Log prior (upper, lower) of the distances between two levels that are `n` apart; -inf where they are out of order."""
    places = [np.array([peak.centre for peak in peaks]) * np.asarray(pixel_mm, np.float64) for peaks in (upper, lower)]
    offsets = places[1][None] - places[0][:, None]
    off = (np.linalg.norm(offsets, axis=2) - n * gaps.mean_mm) / (np.sqrt(n) * gaps.sd_mm)
    return np.where(offsets[..., 0] > 0, -(off**2) / 2, -np.inf)
