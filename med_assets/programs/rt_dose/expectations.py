"""What the facts of an acceptable radiotherapy case look like."""

from med_assets.preparation.expectations import Expectation, between
from med_assets.programs.ct import ct_expectations
from med_assets.programs.rt_dose.site import Site

NOT_NULL = "ExpectColumnValuesToNotBeNull"


def _none(column: str, meaning: str) -> Expectation:
    """A warning where a text is not empty, such as a list of what was left out."""
    return Expectation(column, "ExpectColumnValuesToBeInSet", {"value_set": [""]}, "warn", meaning)


def expectations(site: Site) -> tuple[Expectation, ...]:
    """Expectations for one site: what fails an error is quarantined, what fails a warning is shown."""
    prescribed = site.targets[site.main_target]
    return (
        Expectation("target_mean_ratio", NOT_NULL, {}, "error", "the main target has a mean dose"),
        between("slices", 5, 2000, "5 to 2000 CT slices"),
        between("spacing_z_mm", 0.3, 10, "0.3 to 10 mm between slices"),
        between("spacing_xy_mm", 0.2, 8, "0.2 to 8 mm pixels"),
        between("hu_min", None, -200, "some air in the CT: lowest CT number at most -200 HU"),
        between("hu_max", 100, None, "some bone in the CT: highest CT number at least 100 HU"),
        between("body_ml", 500, 200_000, "a region that may get dose of 0.5 to 200 l"),
        between("target_ml", 1, 3000, "a main target of 1 to 3000 ml"),
        between(
            "prescription_gy",
            0.5 * prescribed,
            1.5 * prescribed,
            f"a prescription within 50% of the site's {prescribed:g} Gy",
            "warn",
        ),
        between(
            "target_mean_ratio",
            *site.target_mean_ratio,
            f"a mean dose of the main target of {_range(site.target_mean_ratio)} of the prescription",
        ),
        between(
            "dose_max_ratio",
            *site.dose_max_ratio,
            f"a highest dose of {_range(site.dose_max_ratio)} of the prescription",
        ),
        between("dose_outside_ratio", None, 0.9, "less dose outside the targets than inside"),
        between(
            "sdf_sign_agreement", 0.95, None, "signed distances agree in sign with masks in at least 95% of voxels"
        ),
        between("target_d95_ratio", 0.914, None, "D95 of the main target at least 91.4% of the prescription", "warn"),
        *ct_expectations(),
        between("contours_left_out", None, 0, "no contour item that encloses nothing", "warn"),
        between("contour_overlaps", None, 0, "no contours of an ROI that overlap without nesting", "warn"),
        between("contour_outside_share", None, 0, "all contours within the CT", "warn"),
        _none("contour_volumes_off", "volumes of voxels as those of their contours"),
        _none("rois_unusable", "each contour belongs to one listed ROI"),
        between(
            "dose_coverage",
            site.min_dose_coverage,
            None,
            f"a dose grid that covers {site.min_dose_coverage:.0%} of the body",
            "warn",
        ),
        _none("structures_expected_missing", f"all of {', '.join(site.expected) or 'no structures'}"),
        _none("rois_passed_over", "one ROI for each structure"),
        _none("structures_excluded", "all drawn structures can be used"),
        between("rois_unmatched", None, 40, "at most 40 ROIs that match no structure", "warn"),
        Expectation(
            "prescription_in_plan",
            "ExpectColumnValuesToBeInSet",
            {"value_set": [True]},
            "warn",
            "the plan states its prescription",
        ),
    )


def _range(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.0%} to {bounds[1]:.0%}"
