"""What the facts of an acceptable sagittal T2 series look like."""

from med_assets.preparation.expectations import Expectation, between
from med_assets.programs.lumbar_mr.levels import LEVELS

IN_SET = "ExpectColumnValuesToBeInSet"

LEVEL_GAP_MM = (15.0, 65.0)
"""Plausible distance of neighbouring levels: a vertebral body of 20 to 35 mm and half of two discs, with a margin on both sides."""


def expectations() -> tuple[Expectation, ...]:
    """What fails an error is quarantined, what fails a warning is shown. A case without points meets all about points."""
    low, high = LEVEL_GAP_MM
    gap = f"{low:g} to {high:g} mm between neighbouring levels"
    return (
        between("slices", 5, None, "5 slices or more"),
        between("slice_mm", 0.5, 10, "0.5 to 10 mm between slices"),
        between("pixel_mm", 0.2, 3, "0.2 to 3 mm pixels"),
        between("height_mm", 120, None, "120 mm or more from head to feet, five levels"),
        between("points_outside", None, 0, "every point lies in the volume"),
        Expectation("levels_in_order", IN_SET, {"value_set": [True]}, "error", "levels follow each other head to feet"),
        between("level_gap_min_mm", low, None, gap),
        between("level_gap_max_mm", None, high, gap),
        between("points_without_level", None, 0, "every point is named after a level or an anatomy", "warn"),
        Expectation("points_left_out", IN_SET, {"value_set": [""]}, "warn", "all level points can be used"),
        Expectation("levels", IN_SET, {"value_set": [0, len(LEVELS)]}, "warn", "all levels have a point, or none"),
        between("echo_time_ms", 60, None, "echo time of T2 weighting, 60 ms or more", "warn"),
        between("repetition_time_ms", 1500, None, "repetition time of T2 weighting, 1500 ms or more", "warn"),
    )
