"""Reasons for which a case of chest CT is not used, beside those that programs share."""

from med_assets.intake.reasons import Reason

REASONS = (
    Reason("no_tissue", "program", "a CT without values above 0 HU", "check rescale and modality"),
    Reason(
        "augmentation",
        "program",
        "a class with a side is not predicted in a mirror",
        "take flip_x out of the experiment",
    ),
)
