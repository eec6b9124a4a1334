"""What the facts of an acceptable image look like."""

from med_assets.preparation.expectations import Expectation, between
from med_assets.programs.breast_us.datasets import organ_names
from med_assets.programs.breast_us.vocabulary import LABELS, ORGANS

IN_SET = "ExpectColumnValuesToBeInSet"


def expectations() -> tuple[Expectation, ...]:
    """What fails an error is quarantined, what fails a warning is shown."""
    labels = [*LABELS, ORGANS] if organ_names() else [*LABELS]
    return (
        Expectation("label", IN_SET, {"value_set": labels}, "error", f"labelled {', '.join(labels)}"),
        between("rows", 64, 4096, "64 to 4096 rows"),
        between("columns", 64, 4096, "64 to 4096 columns"),
        between("lesion_share", None, 0.8, "the mask covers at most 80 % of the picture"),
        between("pixel_mm", 0.01, 1.0, "pixels of 0.01 to 1 mm where they are calibrated"),
        between("lesion_components", None, 4, "at most 4 separate lesions", "warn"),
        between("mean_grey", 5, 200, "mean grey value 5 to 200", "warn"),
    )
