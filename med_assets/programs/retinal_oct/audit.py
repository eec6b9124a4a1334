"""The tables about a data set: cohort, shapes and outliers."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from med_assets.catalog import Case
from med_assets.program import ReportTable
from med_assets.programs.retinal_oct.cohort import CLASSES, SPLITS, Cohort
from med_assets.records import CaseVersion, PreparedCase

OUTLIER = 5.0
"""A value is an outlier beyond so many robust standard deviations (1.4826 times the median absolute deviation) of its protocol."""

LEAST_FOR_OUTLIERS = 8
"""Volumes of a protocol below which nothing is called an outlier, count."""

WATCHED = ("intensity_median", "intensity_high", "resized_std", "frame_mm", "depth_mm", "lateral_mm")


def tables(cases: Sequence[Case], refused: Sequence[CaseVersion | PreparedCase], rules: Cohort) -> list[ReportTable]:
    """Return the tables about the data: the cohort by split, class and site; shapes by protocol; outliers; what was refused."""
    return [cohort_table(cases, rules), shape_table(cases), outlier_table(cases), refused_table(cases, refused)]


def cohort_table(cases: Sequence[Case], rules: Cohort) -> ReportTable:
    """The labelled scans by split and class beside what a whole cohort has, and by site."""
    import pandas as pd

    labelled = [case for case in cases if case.facts["protocol"] == rules.labelled.protocol]
    counts = Counter((case.split, case.facts["study_group"]) for case in labelled)
    sites = Counter((case.split, case.facts["site"]) for case in labelled)
    rows = [
        {"split": split}
        | {group: counts[split, group] for group in CLASSES}
        | {f"site {site}": sites[split, site] for site in rules.sites}
        | {"whole cohort": " / ".join(map(str, rules.expected[split]))}
        for split in SPLITS
    ]
    text = f"Scans of the protocol {rules.labelled.protocol}, one of each participant; beside them the counts of a whole cohort."
    return ReportTable("Cohort", text, pd.DataFrame(rows))


def shape_table(cases: Sequence[Case]) -> ReportTable:
    """How many volumes of each protocol have which shape and spacing."""
    import pandas as pd

    counts = Counter(
        (
            facts["protocol"],
            facts["device"],
            f"{facts['frames']} x {facts['rows']} x {facts['columns']}",
            f"{facts['frame_mm']:.4g} x {facts['depth_mm']:.4g} x {facts['lateral_mm']:.4g}",
        )
        for facts in (case.facts for case in cases)
    )
    rows = [
        {"protocol": key[0], "device": key[1], "frames x depth x width": key[2], "spacing, mm": key[3], "volumes": n}
        for key, n in sorted(counts.items())
    ]
    return ReportTable("Shapes", "Volumes as they were stored, before they are resized.", pd.DataFrame(rows))


def outliers(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return the values far from those of their protocol: case, fact, value, the median there, and how many deviations away."""
    found = []
    for protocol in sorted({str(case.facts["protocol"]) for case in cases}):
        mine = [case for case in cases if case.facts["protocol"] == protocol]
        if len(mine) < LEAST_FOR_OUTLIERS:
            continue
        for name in WATCHED:
            values = np.array([case.facts[name] for case in mine], dtype=float)
            median = float(np.median(values))
            deviation = 1.4826 * float(np.median(np.abs(values - median)))
            for case, value in zip(mine, values.tolist(), strict=True):
                off = abs(value - median)
                if off > OUTLIER * max(deviation, 0.01 * abs(median), 1e-12):
                    found.append(
                        {"case": case.case_id, "protocol": protocol, "fact": name, "value": value, "median": median}
                    )
    return found


def outlier_table(cases: Sequence[Case]) -> ReportTable:
    """The outliers for people."""
    import pandas as pd

    text = (
        f"Facts beyond {OUTLIER:g} robust standard deviations from the median of their protocol: look at these volumes."
    )
    return ReportTable(
        "Outliers", text, pd.DataFrame(outliers(cases), columns=["case", "protocol", "fact", "value", "median"])
    )


def refused_table(cases: Sequence[Case], refused: Sequence[CaseVersion | PreparedCase]) -> ReportTable:
    """How many cases are in, and why others are not."""
    import pandas as pd

    counted = [("accepted", len(cases)), ("skipped", len(refused))]
    counted += [(f"skipped: {code}", n) for code, n in sorted(Counter(str(row.reason_code) for row in refused).items())]
    return ReportTable(
        "Data audit",
        "How many volumes are in, and why others are not.",
        pd.DataFrame(counted, columns=["what", "cases"]),
    )
