"""The tables of a data set's audit."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from med_assets.catalog import Case
from med_assets.program import ReportTable
from med_assets.records import CaseVersion, PreparedCase

SUMMARISED = (
    "slices", "rows", "columns", "slice_mm", "pixel_mm", "height_mm", "intensity_low", "intensity_high", "echo_time_ms",
    "repetition_time_ms", "levels", "level_gap_min_mm", "level_gap_max_mm", "level_slices",
)  # fmt: skip


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
