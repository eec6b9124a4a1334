"""What the facts of an acceptable chest CT with its label look like, and the summary of a data set's audit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from med_assets.catalog import Case
from med_assets.dicom.elements import SLICE_NOISE_MM
from med_assets.preparation.expectations import Expectation, between
from med_assets.program import ReportTable
from med_assets.programs.ct import ct_expectations
from med_assets.programs.lung_ct.alignment import AS_DRAWN
from med_assets.records import CaseVersion, PreparedCase

if TYPE_CHECKING:
    import pandas as pd

IN_SET = "ExpectColumnValuesToBeInSet"

LUNG_TUMOUR = 23
TUMOUR_ML = (0.05, 500.0)
"""Plausible total volume of lung tumours, ml."""

TUMOUR_HU = (-700.0, 300.0)
"""Plausible median of lung tumours, HU: from ground glass to soft tissue with calcification."""

SUMMARISED = (
    "slices", "spacing_z_mm", "spacing_xy_mm", "hu_min", "hu_max", "label_drift_mm", "labels", "labels_without_class",
    "overlap_voxels", "target_ml", "target_components", "target_network_voxels",
    "target_hu_median", "target_contrast_hu",
)  # fmt: skip


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


def summary(cases: Sequence[Case], refused: Sequence[CaseVersion | PreparedCase]) -> dict[str, Any]:
    """Return the audit of a data set as a record: how many cases, why others are not in it, and the range of each fact.

    `cases` are the accepted, `refused` those that were not. Ranges are least,
    median and greatest, None where nothing was measured.
    """
    import pandas as pd

    frame = pd.DataFrame([case.facts for case in cases])
    ranges = {}
    for name in SUMMARISED:
        values = frame[name].dropna() if name in frame else pd.Series(dtype=float)
        ends = (values.min(), values.median(), values.max()) if len(values) else (None, None, None)
        ranges[name] = [None if end is None else float(end) for end in ends]
    return {
        "accepted": len(frame),
        "skipped": len(refused),
        "skipped_by_reason": dict(sorted(Counter(str(row.reason_code) for row in refused).items())),
        "orientations": _counts(frame, "orientation"),
        "label_kinds": _counts(frame, "label_kind"),
        "exposure": _counts(frame, "exposure"),
        "harmonised": int((frame["label_drift_mm"] > 0).sum()) if len(frame) else 0,
        "ranges": ranges,
    }


def _counts(frame: "pd.DataFrame", column: str) -> dict[str, int]:
    return {str(name): int(n) for name, n in frame[column].value_counts().sort_index().items()} if len(frame) else {}


def tables(
    cases: Sequence[Case], refused: Sequence[CaseVersion | PreparedCase], units: Mapping[str, str]
) -> list[ReportTable]:
    """Return the tables about the data: the audit, and what the foundation model has seen of each split."""
    import pandas as pd

    found = summary(cases, refused)
    counted = [
        ("accepted", found["accepted"]),
        ("skipped", found["skipped"]),
        *((f"skipped: {code}", n) for code, n in found["skipped_by_reason"].items()),
        ("label harmonised with the image's grid", found["harmonised"]),
        *((f"label as {kind}", n) for kind, n in found["label_kinds"].items()),
        *((f"orientation {name}", n) for name, n in found["orientations"].items()),
    ]
    ranges = [
        {"fact": name, "unit": units.get(name, ""), "least": low, "median": median, "greatest": high}
        for name, (low, median, high) in found["ranges"].items()
    ]
    return [
        ReportTable(
            "Data audit",
            "How many cases are in, and why others are not.",
            pd.DataFrame(counted, columns=["what", "cases"]),
        ),
        ReportTable("Measured facts", "Of the cases in the dataset.", pd.DataFrame(ranges)),
        exposure_table(cases),
    ]


def exposure_table(cases: Sequence[Case]) -> ReportTable:
    """Cases by split and by what the foundation model has seen of them."""
    import pandas as pd

    counts = Counter((case.split or "none", str(case.facts["exposure"])) for case in cases)
    columns = ["unseen", "selected", "trained"]
    rows = [
        {"split": split} | {name: counts[split, name] for name in columns}
        for split in ("train", "val", "test", "external", "none")
        if any(counts[split, name] for name in columns)
    ]
    text = (
        "What the foundation model has seen of the cases: trained on them, selected by its score on them, or neither. A score "
        "on cases that are not unseen says little about new patients. Recognised by the patient ids of MSD Task06."
    )
    return ReportTable("Pretraining exposure", text, pd.DataFrame(rows, columns=["split", *columns]))


def warnings(cases: Sequence[Case]) -> list[str]:
    """Return what makes scores of held-out cases doubtful: how many of a split the foundation model has seen."""
    messages = []
    for split in ("val", "test", "external"):
        held = [case for case in cases if case.split == split]
        seen = Counter(str(case.facts["exposure"]) for case in held if case.facts["exposure"] not in (None, "unseen"))
        if seen:
            how = ", ".join(f"{n} {name}" for name, n in sorted(seen.items()))
            messages.append(
                f"{sum(seen.values())} of {len(held)} {split} cases were in the foundation model's own training ({how}); "
                "their scores do not show how it does on new patients"
            )
    return messages
