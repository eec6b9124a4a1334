"""Reasons for which a case of OCT of the retina is not used, beside those that programs share."""

from med_assets.intake.reasons import Reason

REASONS = (
    Reason(
        "no_study_group",
        "program",
        "the volume carries no study group, site or protocol",
        "import it with `med-assets import ai-readi`",
    ),
)
