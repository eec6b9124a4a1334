"""Reasons for which a case of ultrasound of the breast is not used, beside those that programs share."""

from med_assets.intake.reasons import Reason

REASONS = (
    Reason(
        "unknown_label",
        "program",
        "a segment has a label that the program does not know",
        "name it as the program's page says",
    ),
    Reason(
        "lesion_in_normal",
        "program",
        "an image labelled normal has a lesion in its mask",
        "correct the label or the mask",
    ),
    Reason(
        "empty_mask",
        "program",
        "an image labelled with a lesion has an empty mask",
        "outline the lesion, or label the image normal",
    ),
    Reason(
        "mask_outside_tissue",
        "program",
        "the mask reaches beyond the region of tissue",
        "check the regions of the image, or the mask",
    ),
    Reason("too_small", "program", "the region of tissue is too small", "send the whole image"),
)
