"""What the facts of an acceptable sagittal T2 series look like, and the table of a data set's audit."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from med_assets.catalog import Case
from med_assets.preparation.expectations import Expectation, between
from med_assets.program import ReportTable
from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.records import CaseVersion, PreparedCase

IN_SET = "ExpectColumnValuesToBeInSet"

LEVEL_GAP_MM = (15.0, 65.0)
"""Plausible distance of neighbouring levels: a vertebral body of 20 to 35 mm and half of two discs, with a margin on both sides."""

SUMMARISED = (
    "slices", "rows", "columns", "slice_mm", "pixel_mm", "height_mm", "intensity_low", "intensity_high", "echo_time_ms",
    "repetition_time_ms", "levels", "level_gap_min_mm", "level_gap_max_mm", "level_slices",
)  # fmt: skip


def expectations() -> tuple[Expectation, ...]:
    """What fails an error is quarantined, what fails a warning is shown. A case without points meets all about points."""
    low, high = LEVEL_GAP_MM
    gap = f"{low:g} to {high:g} mm between neighbouring levels"
    return (
        between("slices", 5, None, "5 slices or more"),
        between("slice_mm", 0.5, 10, "0.5 to 10 mm between slices"),
        between("pixel_mm", 0.2, 3, "0.2 to 3 mm pixels"),
        between("height_mm", 120, None, "120 mm or more from head to feet, five levels"),
        between("points_outside", None, 0, "every point lies in the volume"),
        Expectation("levels_in_order", IN_SET, {"value_set": [True]}, "error", "levels follow each other head to feet"),
        between("level_gap_min_mm", low, None, gap),
        between("level_gap_max_mm", None, high, gap),
        between("points_without_level", None, 0, "every point is named after a level or an anatomy", "warn"),
        Expectation("points_left_out", IN_SET, {"value_set": [""]}, "warn", "all level points can be used"),
        Expectation("levels", IN_SET, {"value_set": [0, len(LEVELS)]}, "warn", "all levels have a point, or none"),
        between("echo_time_ms", 60, None, "echo time of T2 weighting, 60 ms or more", "warn"),
        between("repetition_time_ms", 1500, None, "repetition time of T2 weighting, 1500 ms or more", "warn"),
    )


def tables(
    cases: Sequence[Case], refused: Sequence[CaseVersion | PreparedCase], units: Mapping[str, str]
) -> list[ReportTable]:
    """Return the tables about the data: how many cases are in and why others are not, and the range of each fact."""
    import pandas as pd

    frame = pd.DataFrame([case.facts for case in cases])
    counted = [("accepted", len(cases)), ("skipped", len(refused))]
    counted += [(f"skipped: {code}", n) for code, n in _counts(row.reason_code for row in refused)]
    counted += [("without points: predicted, not learned from", sum(not case.facts["levels"] for case in cases))]
    counted += [(f"anatomy {name}", n) for name, n in _counts(case.facts["lstv"] for case in cases)]
    counted += [(f"orientation {name}", n) for name, n in _counts(case.facts["orientation"] for case in cases)]
    rows = []
    for name in SUMMARISED:
        values = frame[name].dropna() if name in frame else pd.Series(dtype=float)
        ends = (values.min(), values.median(), values.max()) if len(values) else (None, None, None)
        least, median, greatest = (None if end is None else float(end) for end in ends)
        rows.append({"fact": name, "unit": units.get(name, ""), "least": least, "median": median, "greatest": greatest})
    return [
        ReportTable(
            "Data audit",
            "How many cases are in, and why others are not.",
            pd.DataFrame(counted, columns=["what", "cases"]),
        ),
        ReportTable("Measured facts", "Of the cases in the dataset.", pd.DataFrame(rows)),
    ]


def _counts(values: Iterable[object]) -> list[tuple[str, int]]:
    return sorted(Counter(map(str, values)).items())
