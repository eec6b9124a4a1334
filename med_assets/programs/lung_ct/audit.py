"""The summary of a data set's audit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from med_assets.catalog import Case
from med_assets.program import ReportTable
from med_assets.records import CaseVersion, PreparedCase

if TYPE_CHECKING:
    import pandas as pd

SUMMARISED = (
    "slices", "spacing_z_mm", "spacing_xy_mm", "hu_min", "hu_max", "label_drift_mm", "labels", "labels_without_class",
    "overlap_voxels", "target_ml", "target_components", "target_network_voxels",
    "target_hu_median", "target_contrast_hu",
)  # fmt: skip


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
