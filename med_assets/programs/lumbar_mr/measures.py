"""What is measured of a case: the names of its scores, and the uncertainty measures of a level with their units."""

from collections.abc import Mapping
from dataclasses import dataclass

ALL = "all"
"""Subject of scores over all levels of a case."""

ERROR = "localisation_error"
ERROR_3D = "localisation_error_3d"
FOUND = "found"
TRANSITIONAL = "transitional"
"""Known anatomy of a case as a score: 1 sacralised or lumbarised, 0 normal, undefined without a reader label."""

Table = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class Measure:
    """One measure of a level: its unit, what it means, and whether a high value says unsure."""

    unit: str
    high_is_unsure: bool
    meaning: str


MEASURES = {
    "confidence": Measure("1", False, "highest probability of the level's map (published)"),
    "entropy": Measure("nat", True, "-sum p ln(p + 1e-9), p the map over its sum + 1e-9 (published); ln(area) of a crisp disc"),
    "spatial_entropy": Measure("nat", True, "the same of the map's sums over a grid of 10 x 10 cells (published)"),
    "excess_entropy": Measure("nat", True, "entropy - ln(pixels above 0.5): 0 for a crisp disc of any size"),
    "level_entropy": Measure("nat", True, "entropy of the five levels' probabilities at the level's strongest peak, as shares of their sum"),
    "region_entropy": Measure("nat", True, "entropy of the five levels' mass within the level's map above half its maximum"),
    "slice_spread": Measure("mm", True, "root mean square distance of the points of single slices from their mean"),
    "augmented_spread": Measure("mm", True, "root mean square distance of the points of augmented views from their mean"),
    "augmented_divergence": Measure("nat", True, "Jensen-Shannon divergence of the maps of augmented views"),
    "second_peak_share": Measure("1", True, "mass of the level's second peak as a share of that of the strongest and the second; 0 where there is one peak"),
    "second_peak_distance": Measure("mm", True, "distance of the second peak from the strongest, 0 where there is one peak"),
}  # fmt: skip
"""All measures of a level; the first three are the published ones. A measure that is undefined is None."""

PUBLISHED = ("confidence", "entropy", "spatial_entropy")
