"""Where models fail: the gamma passing rate of every evaluated experiment by region, on the validation cases."""

from pathlib import Path

import pandas as pd

from med_assets.catalog import Catalog
from med_assets.metrics.bootstrap import CONFIDENCE, RESAMPLES, SEED, Interval, mean_with_interval
from med_assets.program import ReportTable
from med_assets.records import CaseScore
from med_assets.settings import Settings

REGIONS = ("body", "ptv_margin", "oars", "elsewhere")
"""Subjects of the gamma rows; the last three are disjoint and make up the body, see `score.gamma_regions`."""

COLUMNS = ["experiment", "region", "mean", "low", "high", "n"]

ABOUT = (
    "Mean over validation cases of the share of voxels with gamma at most 1, %, in brackets its "
    f"{CONFIDENCE:.0%} percentile bootstrap interval over patients ({RESAMPLES} resamples, seed {SEED}). ptv_margin is the body within "
    "the margin of any target, oars the organs at risk outside of it, elsewhere the rest of the body. A case in which no voxel of "
    "a region reaches the cut-off is not in that region's n."
)


def rates(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean passing rate with interval by experiment and region, best in the body first.

    `rows` have experiment, patient_id, subject and value, those of one gamma convention and one split. Undefined is None.
    """
    found: list[tuple[str, str, float | None, float | None, float | None, int]] = []
    for (experiment, region), group in rows.groupby(["experiment", "subject"], sort=True):
        values = [None if pd.isna(value) else float(value) for value in group["value"]]
        one = mean_with_interval(values, SEED, groups=list(group["patient_id"]))
        found.append((str(experiment), str(region), one.mean, one.low, one.high, one.n))
    body = {experiment: mean for experiment, region, mean, *_ in found if region == "body"}
    indices = {region: index for index, region in enumerate(REGIONS)}
    found.sort(key=lambda row: (-(body.get(row[0]) or -1.0), row[0], indices.get(row[1], len(indices))))
    return pd.DataFrame(found, columns=COLUMNS)


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """A row per experiment and a column per region, `mean [low, high] (n = ...)`."""
    from med_assets.evaluation.aggregates import cell

    shown: dict[str, dict[str, str]] = {}
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        shown.setdefault(row["experiment"], {"experiment": row["experiment"]})[row["region"]] = cell(
            Interval(row["mean"], row["low"], row["high"], row["n"])
        )
    there = [region for region in REGIONS if any(region in row for row in shown.values())]
    return pd.DataFrame(list(shown.values()), columns=["experiment", *there]).fillna("")


def gamma_by_region(ws: Settings, out: Path) -> list[ReportTable]:
    """A table for people and one of numbers for each gamma convention, with a plot; none before the first evaluation."""
    from med_assets.reporting.analysis_plots import plot_intervals

    rows = Catalog(ws, "rt_dose").frame(CaseScore)
    rows = rows[(rows["split"] == "val") & rows["metric"].str.startswith("gamma_")]
    tables = []
    for number, ((metric, convention), group) in enumerate(rows.groupby(["metric", "convention"], sort=True)):
        found = rates(group)
        plot = plot_intervals(
            out / f"gamma_by_region{number or ''}.png", found, series="experiment", panel="region",
            panels=[region for region in REGIONS if region in set(found["region"])], label="passing, %",
        )  # fmt: skip
        title = "Gamma by region" if not number else f"Gamma by region, {metric}, other settings ({number + 1})"
        tables += [
            ReportTable(title, f"{ABOUT} {convention}.", side_by_side(found), (plot,)),
            ReportTable(f"{title}, as numbers", "The same, a row per experiment and region.", found),
        ]
    return tables
