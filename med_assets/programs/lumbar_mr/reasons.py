"""Reasons for which a case of MR of the lumbar spine is not used, beside those that programs share."""

from med_assets.intake.reasons import Reason

REASONS = (
    Reason("no_sagittal_t2", "program", "a study without a sagittal T2 series", "send the series, or name it so"),
    Reason(
        "points_without_series",
        "program",
        "level points without the series that they were set on",
        "send them together",
    ),
    Reason(
        "several_point_sets", "program", "several structure sets with points for one series", "send the one that counts"
    ),
    Reason(
        "no_level_points",
        "program",
        "no point has the name of a level",
        "name the points so, or send the series without them",
    ),
    Reason("several_anatomies", "program", "points state several anatomies", "keep one"),
)
