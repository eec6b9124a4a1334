"""What the facts of an acceptable chest CT with its label look like."""

from med_assets.dicom.tolerances import SLICE_NOISE_MM
from med_assets.preparation.expectations import Expectation, between
from med_assets.programs.ct import ct_expectations

IN_SET = "ExpectColumnValuesToBeInSet"

AS_DRAWN = "as drawn"
"""Fact of a label that lies where the image has its edge."""

LUNG_TUMOUR = 23
TUMOUR_ML = (0.05, 500.0)
"""Plausible total volume of lung tumours, ml."""

TUMOUR_HU = (-700.0, 300.0)
"""Plausible median of lung tumours, HU: from ground glass to soft tissue with calcification."""


def expectations(target: int, name: str) -> tuple[Expectation, ...]:
    """Expectations for one target: what fails an error is quarantined, what fails a warning is shown."""
    tissue = between(
        "target_hu_median",
        *TUMOUR_HU,
        f"median of {TUMOUR_HU[0]:g} to {TUMOUR_HU[1]:g} HU in {name}; air there is a label that lies elsewhere",
        "warn",
    )
    here = Expectation(
        "target_better_at",
        IN_SET,
        {"value_set": [AS_DRAWN]},
        "warn",
        f"the edge of {name} lies on an edge of the image; a slice beside, or mirrored, it does so better",
    )
    volume = between("target_ml", *TUMOUR_ML, f"{TUMOUR_ML[0]} to {TUMOUR_ML[1]:g} ml of {name}")
    return (
        between("hu_min", None, -500, "air in the CT: lowest CT number at most -500 HU"),
        between("hu_max", 0, None, "tissue in the CT: highest CT number at least 0 HU"),
        between("spacing_xy_mm", 0.2, 5, "0.2 to 5 mm pixels"),
        between("spacing_z_mm", 0.3, 10, "0.3 to 10 mm between slices"),
        between("label_drift_mm", None, SLICE_NOISE_MM, f"label within {SLICE_NOISE_MM:g} mm of the image's grid"),
        Expectation("target_present", IN_SET, {"value_set": [True]}, "error", f"the label has {name}"),
        *((volume, tissue, here) if target == LUNG_TUMOUR else ()),
        between("target_components", 1, 20, f"1 to 20 separate parts of {name}", "warn"),
        between("target_network_voxels", 1, None, f"{name} is left on the network's grid", "warn"),
        between("labels_without_class", None, 0, "every label's name has a class", "warn"),
        Expectation(
            "rois_left_out", IN_SET, {"value_set": [""]}, "warn", "all ROIs and contours can be used, and lie in the CT"
        ),
        between("overlap_voxels", None, 0, "no voxel has labels of two classes", "warn"),
        *ct_expectations(),
        Expectation("orientation", IN_SET, {"value_set": ["LPS"]}, "warn", "stored as axial slices, LPS"),
    )
