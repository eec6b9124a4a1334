"""Tables about a model: how far off each level is, what the confidence is worth, and what tells transitional anatomy apart."""

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from med_assets.metrics.bootstrap import SEED
from med_assets.metrics.classification import Auroc, auroc
from med_assets.metrics.multiple import holm
from med_assets.program import ReportTable
from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lumbar_mr.measures import ALL, ERROR, FOUND, MEASURES, PUBLISHED, TRANSITIONAL
from med_assets.programs.lumbar_mr.score import within
from med_assets.programs.lumbar_mr.uncertainty import ONE_LEVEL_MM, STRONG_SHARE

if TYPE_CHECKING:
    import pandas as pd

BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Ends of the bins of confidence."""

NOISE = 0.05
"""Chance that any measure of pure noise is reported to carry information."""

NEAR_MM, FAR_MM = 5.0, 10.0
"""Distances within which a level counts as located, mm."""


def tables(rows: "pd.DataFrame") -> list[ReportTable]:
    """What the report says of one model on one split."""
    return [localisation(rows), calibration(rows), second_peaks(rows)]


def localisation(rows: "pd.DataFrame") -> ReportTable:
    """Median and 95th percentile of the error of each level, and the shares found and within 5 and 10 mm."""
    import pandas as pd

    table = []
    for level in LEVELS:
        errors = values(rows, ERROR, level).dropna()
        table.append(
            {
                "level": level,
                "marked": len(values(rows, FOUND, level)),
                "found": share(values(rows, FOUND, level)),
                "median, mm": number(float(errors.median()) if len(errors) else None, 1),
                "95th percentile, mm": number(float(errors.quantile(0.95)) if len(errors) else None, 1),
                "within 5 mm": share(values(rows, within(NEAR_MM), level)),
                "within 10 mm": share(values(rows, within(FAR_MM), level)),
            }
        )
    text = (
        "Distance of the predicted from the marked point in the sagittal plane. Median and percentile are of the levels that "
        "were found; the shares are of all marked ones, so a level that is not found is within no distance."
    )
    return ReportTable("Localisation", text, pd.DataFrame(table))


def calibration(rows: "pd.DataFrame") -> ReportTable:
    """How often a level is within 10 mm, by the confidence it was predicted with."""
    import pandas as pd

    wide = rows[rows["subject"].isin(LEVELS) & rows["metric"].isin(["confidence", within(FAR_MM)])].pivot_table(
        index=["case_id", "subject"], columns="metric", values="value"
    )
    wide = wide.reindex(columns=["confidence", within(FAR_MM)]).dropna()
    table = []
    for low, high in pairwise(BINS):
        last = high == BINS[-1]
        inside = wide[(wide["confidence"] >= low) & (wide["confidence"] <= high if last else wide["confidence"] < high)]
        table.append(
            {
                "confidence": f"{low:g} to {high:g}",
                "levels": len(inside),
                "mean confidence": number(float(inside["confidence"].mean()) if len(inside) else None, 3),
                "within 10 mm": share(inside[within(FAR_MM)]),
            }
        )
    text = (
        "Marked levels by the highest probability of their map. Where the share within 10 mm is lower than the mean confidence, "
        "the model is surer than it should be. The confidence is that of a pixel, not of a distance, so the two need not be equal."
    )
    return ReportTable("Calibration of the confidence", text, pd.DataFrame(table))


def second_peaks(rows: "pd.DataFrame") -> ReportTable:
    """How many levels have a strong second peak about one level away, and how many of those are within 10 mm."""
    import pandas as pd

    wide = rows[
        rows["subject"].isin(LEVELS)
        & rows["metric"].isin(["second_peak_share", "second_peak_distance", within(FAR_MM)])
    ].pivot_table(index=["case_id", "subject"], columns="metric", values="value")
    wide = wide.reindex(columns=["second_peak_share", "second_peak_distance", within(FAR_MM)])
    strong = (wide["second_peak_share"] >= STRONG_SHARE) & wide["second_peak_distance"].between(*ONE_LEVEL_MM)
    subject = wide.index.get_level_values("subject")
    table = [
        {
            "level": level,
            "found": int(wide.loc[subject == level, "second_peak_share"].notna().sum()),
            "the count may be shifted": int((strong & (subject == level)).sum()),
            "of these within 10 mm": share(wide.loc[strong & (subject == level), within(FAR_MM)]),
            "of the others within 10 mm": share(wide.loc[~strong & (subject == level), within(FAR_MM)]),
        }
        for level in LEVELS
    ]
    low, high = ONE_LEVEL_MM
    text = (
        f"The count of levels may be shifted where the map of a level has a second peak with {STRONG_SHARE:g} or more of the mass, "
        f"{low:g} to {high:g} mm from the strongest, which is about one level."
    )
    return ReportTable("Second peaks", text, pd.DataFrame(table))


def separation(rows: "pd.DataFrame") -> ReportTable:
    """AUROC of each measure at L5/S1 and of the least certain level, transitional against normal anatomy."""
    import pandas as pd

    areas = {(name, subject): auroc_of(rows, name, subject) for name in MEASURES for subject in (LEVELS[-1], ALL)}
    areas = {key: found for key, found in areas.items() if found.value is not None}
    table = []
    for ((name, subject), found), p in zip(areas.items(), holm([one.p for one in areas.values()]), strict=True):
        table.append(
            {
                "measure": name,
                "published": "yes" if name in PUBLISHED else "",
                "level": "least certain" if subject == ALL else subject,
                "transitional": found.n_positive,
                "normal": found.n_negative,
                "AUROC": number(found.value, 3),
                "95 % interval": "" if found.low is None else f"{found.low:.3f} to {found.high:.3f}",
                "adjusted p": "" if p is None else f"{p:.2g}",
                "tells them apart": verdict(found, p),
            }
        )
    informative = [f"{row['measure']} ({row['level']})" for row in table if row["tells them apart"] == "yes"]
    tested = any(row["adjusted p"] for row in table)
    text = (
        "Which measures carry information is unknown here: too few cases are known to be transitional, or to be normal."
    )
    if tested:
        text = (
            f"Carry information here, with p of at most {NOISE:g} over all {len(table)} rows: "
            + (", ".join(informative) or "none")
            + "."
        )
    text = (
        f"{text}\n\nAUROC: the probability that a transitional spine is less certain than a normal one, 0.5 for a measure that says "
        "nothing; bootstrap "
        "over patients. p by permutation of patients, two-sided, adjusted over all rows (Holm): measures of pure noise are called "
        "informative in at most 5 % of such tables. Cases whose anatomy has no reader label, and those without a value, are left out; a measure without a case on one side too."
    )
    return ReportTable("Transitional against normal anatomy", text, pd.DataFrame(table))


def auroc_of(rows: "pd.DataFrame", measure: str, subject: str) -> Auroc:
    """Return the AUROC of a measure at a level (or all), where a high one says that transitional spines are less certain."""
    known = rows.loc[(rows["metric"] == TRANSITIONAL) & rows["value"].notna(), ["case_id", "value"]]
    anatomy = dict(zip(known["case_id"], known["value"], strict=True))
    own = rows[(rows["metric"] == measure) & (rows["subject"] == subject)]
    own = own.assign(anatomy=own["case_id"].map(anatomy)).dropna(subset=["anatomy"])
    sign = 1 if MEASURES[measure].high_is_unsure else -1
    sides = [own[own["anatomy"] == value] for value in (1.0, 0.0)]
    values = [(sign * side["value"].astype(float)).tolist() for side in sides]
    groups = [side["patient_id"].tolist() for side in sides]
    return auroc(values[0], values[1], SEED, positive_groups=groups[0], negative_groups=groups[1])


def verdict(found: Auroc, p: float | None) -> str:
    """Say in words what an AUROC shows, by its p adjusted over all measures."""
    if found.value is None:
        return "undefined: one side has no case"
    if p is None:
        return "too few cases"
    if p > NOISE:
        return "not shown"
    return "yes" if found.value > 0.5 else "the wrong way"


def values(rows: "pd.DataFrame", metric: str, subject: str) -> "pd.Series":
    return rows.loc[(rows["metric"] == metric) & (rows["subject"] == subject), "value"].astype(float)


def share(values: "pd.Series") -> str:
    defined = values.dropna()
    return f"{int(np.rint(defined.sum()))} of {len(defined)}" if len(defined) else ""


def number(value: float | None, digits: int) -> str:
    import pandas as pd

    return "" if value is None or pd.isna(value) else f"{value:.{digits}f}"
