"""Tables of the report: how far off each level is, what the confidence is worth, and what tells transitional anatomy apart."""

from itertools import pairwise

import numpy as np
import pandas as pd

from med_assets.metrics.classification import Auroc, auroc
from med_assets.program import ReportTable
from med_assets.programs.lumbar_mr.levels import LEVELS
from med_assets.programs.lumbar_mr.score import ALL, ERROR, FOUND, TRANSITIONAL, Table, within
from med_assets.programs.lumbar_mr.thresholds import Thresholds, tables_of
from med_assets.programs.lumbar_mr.uncertainty import MEASURES, PUBLISHED

SEED = 0
"""Seed of the bootstrap of these tables."""

BINS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Ends of the bins of confidence."""

NEAR_MM, FAR_MM = 5.0, 10.0
"""Distances within which a level counts as located, mm."""


def tables(rows: pd.DataFrame) -> list[ReportTable]:
    """All tables of the program, from the scores of one model on one split."""
    return [localisation(rows), calibration(rows), statistics(rows), separation(rows)]


def localisation(rows: pd.DataFrame) -> ReportTable:
    """Median and 95th percentile of the error of each level, and the shares found and within 5 and 10 mm."""
    table = []
    for level in LEVELS:
        errors = _values(rows, ERROR, level).dropna()
        table.append(
            {
                "level": level,
                "marked": len(_values(rows, FOUND, level)),
                "found": _share(_values(rows, FOUND, level)),
                "median, mm": _number(float(errors.median()) if len(errors) else None, 1),
                "95th percentile, mm": _number(float(errors.quantile(0.95)) if len(errors) else None, 1),
                "within 5 mm": _share(_values(rows, within(NEAR_MM), level)),
                "within 10 mm": _share(_values(rows, within(FAR_MM), level)),
            }
        )
    text = (
        "Distance of the predicted from the marked point in the sagittal plane. Median and percentile are of the levels that "
        "were found; the shares are of all marked ones, so a level that is not found is within no distance."
    )
    return ReportTable("Localisation", text, pd.DataFrame(table))


def calibration(rows: pd.DataFrame) -> ReportTable:
    """How often a level is within 10 mm, by the confidence it was predicted with."""
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
                "mean confidence": _number(float(inside["confidence"].mean()) if len(inside) else None, 3),
                "within 10 mm": _share(inside[within(FAR_MM)]),
            }
        )
    text = (
        "Marked levels by the highest probability of their map. Where the share within 10 mm is lower than the mean confidence, "
        "the model is surer than it should be. The confidence is that of a pixel, not of a distance, so the two need not be equal."
    )
    return ReportTable("Calibration of the confidence", text, pd.DataFrame(table))


def statistics(rows: pd.DataFrame) -> ReportTable:
    """Mean, standard deviation and range of each measure by level, and how many cases have none."""
    table = []
    for name, spec in MEASURES.items():
        for level in LEVELS:
            values = _values(rows, name, level)
            known = values.dropna()
            table.append(
                {
                    "measure": f"{name}, {spec.unit}",
                    "level": level,
                    "cases": len(known),
                    "undefined": len(values) - len(known),
                    "mean": _number(float(known.mean()) if len(known) else None, 3),
                    "standard deviation": _number(float(known.std()) if len(known) > 1 else None, 3),
                    "lowest": _number(float(known.min()) if len(known) else None, 3),
                    "highest": _number(float(known.max()) if len(known) else None, 3),
                }
            )
    meanings = "; ".join(f"{name}: {spec.meaning}" for name, spec in MEASURES.items())
    text = f"Of all cases, whatever their anatomy. A level that is not found has a confidence and nothing else. {meanings}."
    return ReportTable("Uncertainty by level", text, pd.DataFrame(table))


def candidates(rows: pd.DataFrame, thresholds: Thresholds, most: int = 20) -> ReportTable:
    """The cases that a radiologist should see first: by the thresholds' own measure and level, the least certain first.

    A case whose level is not found comes before all others, since nothing at all is known of it.
    """
    name, level = thresholds.settings.measure, thresholds.settings.level
    found = [(case, table, table[level][name]) for case, table in tables_of(rows).items()]
    sign = 1 if MEASURES[name].high_is_unsure else -1

    def order(item: tuple[str, Table, float | None]) -> tuple[float, str]:
        return (-np.inf if item[2] is None else -sign * item[2], item[0])

    table = [
        {"rank": rank, "case": case, "risk": thresholds.risk(own), name: _number(value, 3)}
        | {f"{level} {measure}": _number(own[level][measure], 3) for measure in PUBLISHED if measure != name}
        for rank, (case, own, value) in enumerate(sorted(found, key=order)[:most], 1)
    ]
    settings = thresholds.settings
    text = (
        f"By {name} at {level}. High and Medium are beyond thresholds fitted on {len(thresholds.case_ids)} normal cases to "
        f"false-alarm rates of {settings.high_rate:g} and {settings.medium_rate:g} (record {thresholds.version[:12]}); so few "
        f"can promise no rate below {thresholds.achievable_rate:.3f}."
    )
    columns = ["rank", "case", "risk", name, *(f"{level} {measure}" for measure in PUBLISHED if measure != name)]
    return ReportTable("Candidates for a radiologist", text, pd.DataFrame(table, columns=columns))


def separation(rows: pd.DataFrame) -> ReportTable:
    """AUROC of each measure at L5/S1 and of the least certain level, transitional against normal anatomy."""
    table = []
    for name in MEASURES:
        for subject in (LEVELS[-1], ALL):
            found = auroc_of(rows, name, subject)
            table.append(
                {
                    "measure": name,
                    "published": "yes" if name in PUBLISHED else "",
                    "level": "least certain" if subject == ALL else subject,
                    "transitional": found.n_positive,
                    "normal": found.n_negative,
                    "AUROC": _number(found.value, 3),
                    "95 % interval": "" if found.low is None else f"{found.low:.3f} to {found.high:.3f}",
                    "tells them apart": verdict(found),
                }
            )
    text = (
        "Probability that a transitional spine is less certain than a normal one, 0.5 for a measure that says nothing; bootstrap "
        "over patients. Cases whose anatomy nobody judged, and those without a value, are left out."
    )
    return ReportTable("Transitional against normal anatomy", text, pd.DataFrame(table))


def auroc_of(rows: pd.DataFrame, measure: str, subject: str) -> Auroc:
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


def verdict(found: Auroc) -> str:
    """Say in words what an AUROC shows."""
    if found.value is None:
        return "undefined: one side has no case"
    if found.low is None or found.high is None:
        return "too few cases"
    if found.low > 0.5:
        return "yes"
    return "the wrong way" if found.high < 0.5 else "not shown"


def wide(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per case: case_id, then `LEVEL_MEASURE` for each level, the published measures first; NaN if undefined."""
    found = rows[rows["subject"].isin(LEVELS) & rows["metric"].isin(list(MEASURES))]
    names = [f"{level}_{name}" for level in LEVELS for name in PUBLISHED]
    names += [f"{level}_{name}" for level in LEVELS for name in MEASURES if name not in PUBLISHED]
    flat = found.assign(column=found["subject"].astype(str) + "_" + found["metric"].astype(str))
    table = flat.pivot_table(index="case_id", columns="column", values="value", dropna=False)
    return table.reindex(columns=names).rename_axis(columns=None).reset_index()


def _values(rows: pd.DataFrame, metric: str, subject: str) -> pd.Series:
    return rows.loc[(rows["metric"] == metric) & (rows["subject"] == subject), "value"].astype(float)


def _share(values: pd.Series) -> str:
    judged = values.dropna()
    return f"{int(np.rint(judged.sum()))} of {len(judged)}" if len(judged) else ""


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or pd.isna(value) else f"{value:.{digits}f}"
