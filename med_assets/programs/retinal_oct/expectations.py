"""What the facts of an acceptable OPT volume look like."""

from med_assets.preparation.expectations import Expectation, between
from med_assets.programs.retinal_oct.cohort import CLASSES
from med_assets.programs.retinal_oct.network_inputs import TOLERANCE

IN_SET = "ExpectColumnValuesToBeInSet"


def expectations() -> tuple[Expectation, ...]:
    """What fails an error is quarantined, what fails a warning is shown."""
    return (
        between("frames", 8, None, "8 B-scans or more"),
        between("rows", 32, None, "32 pixels or more into the depth"),
        between("columns", 32, None, "32 pixels or more along a B-scan"),
        between("frame_mm", 0.002, 1.0, "0.002 to 1 mm between B-scans"),
        between("depth_mm", 0.001, 0.03, "0.001 to 0.03 mm into the depth"),
        between("lateral_mm", 0.002, 0.2, "0.002 to 0.2 mm along a B-scan"),
        # What the shared transform gives, as the released encoders saw it.
        between("network_mean", -TOLERANCE, TOLERANCE, "mean of the network's input 0"),
        between("network_std", 1 - TOLERANCE, 1 + TOLERANCE, "standard deviation of the network's input 1"),
        # Below it nearly all contrast was lost in the resize: noise without a retina.
        between("resized_std", 0.3, None, "standard deviation of 0.3 or more after the resize", "warn"),
        Expectation("study_group", IN_SET, {"value_set": list(CLASSES)}, "error", "a study group of the cohort"),
        Expectation(
            "frames_from",
            IN_SET,
            {"value_set": ["positions", "spacing"]},
            "warn",
            "the distance of B-scans is stated, and not taken from the nominal SliceThickness",
        ),
        Expectation("laterality", IN_SET, {"value_set": ["L", "R"]}, "warn", "the eye is stated"),
        Expectation("raster", IN_SET, {"value_set": [True]}, "warn", "the frames state parallel lines on the fundus"),
    )
