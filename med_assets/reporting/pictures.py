"""Pictures of single cases under one checkpoint: for the report, and beside each evaluation in Dagster."""

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from med_assets import program
from med_assets.capabilities import ModelImages
from med_assets.dataset.stage import cases_of, described
from med_assets.evaluation.predicting import prediction_key
from med_assets.program import Metric, Predicted
from med_assets.settings import Workspace
from med_assets.storage.files import read_json


def typical_cases(scores: pd.DataFrame, metric: Metric, labels: Collection[str]) -> dict[str, pd.Series]:
    """The rows of the best, the median and the worst held-out case by a metric, as asked for; each case at most once."""
    if scores.empty:
        return {}
    of_metric = scores[(scores["metric"] == metric.name) & (scores["subject"] == metric.subject)]
    ordered = of_metric.dropna(subset=["value"]).sort_values(
        ["value", "case_id"], ascending=[metric.lower_is_better, True]
    )
    places = {"best": 0, "median": (len(ordered) - 1) // 2, "worst": len(ordered) - 1}
    chosen: dict[str, pd.Series] = {}
    for label in [label for label in places if label in labels and len(ordered)]:
        row = ordered.iloc[places[label]]
        if all(row["case_id"] != other["case_id"] for other in chosen.values()):
            chosen[label] = row
    return chosen


def drawn(
    ws: Workspace,
    program_name: str,
    checkpoint: str,
    scores: pd.DataFrame,
    labels: Collection[str] = ("best", "median", "worst"),
    out: Path | None = None,
) -> list[tuple[Path, str]]:
    """Plots of the best, median and worst held-out case of a checkpoint, each with a caption.

    `scores` has a row per case and score, as in the table evaluation_cases. Cases without stored arrays or scores are left out.
    Files go to `out`, by default the checkpoint's folder beside the report.
    """
    chosen = program.get(program_name)
    metric = chosen.primary_metric
    artifacts = {case["case_id"]: case["artifact"] for case in cases_of(ws, program_name)}
    pictures = []
    for label, row in typical_cases(scores, metric, labels).items():
        artifact = artifacts.get(row["case_id"])
        if artifact is None:  # taken out of the dataset since it was scored
            continue
        if not ws.store.has(artifact):
            continue
        key = prediction_key(ws, program_name, checkpoint, artifact)
        if ws.store.has(key):
            folder = out or ws.reports / program_name / "plots" / checkpoint.rpartition("/")[2]
            caption = (
                f"{label.capitalize()} held-out case ({row['split']}): {metric.name} {row['value']:.2f}{metric.after}"
            )
            images = chosen.report_images(ws, ws.store.fetch(artifact), ws.store.fetch(key), folder)
            pictures += [(image, caption) for image in images]
    return pictures


def over_cases(ws: Workspace, program_name: str, checkpoint: str, scores: pd.DataFrame) -> list[tuple[Path, str]]:
    """Plots of a checkpoint over all its held-out cases, each with a caption; `scores` as for `drawn`."""
    chosen = program.get(program_name)
    if scores.empty or not isinstance(chosen, ModelImages):
        return []
    teacher = read_json(ws.store.fetch(checkpoint) / "provenance.json").get("teacher")
    of_subject = scores[scores["subject"] == chosen.primary_metric.subject]
    values = {
        case_id: {metric: None if pd.isna(value) else float(value) for metric, value in zip(rows["metric"], rows["value"], strict=True)}
        for case_id, rows in of_subject.groupby("case_id")
    }  # fmt: skip
    cases = []
    for row in described(ws, program_name):
        if row["case_id"] not in values or not ws.store.has(row["artifact"]):
            continue
        key = prediction_key(ws, program_name, checkpoint, row["artifact"])
        if ws.store.has(key):
            theirs = prediction_key(ws, program_name, teacher, row["artifact"]) if teacher else ""
            taught = ws.store.fetch(theirs) if theirs and ws.store.has(theirs) else None
            places = ws.store.fetch(row["artifact"]), ws.store.fetch(key)
            cases.append(Predicted(row, *places, values[row["case_id"]], taught))
    return chosen.model_images(ws, cases, ws.reports / program_name / "plots" / checkpoint.rpartition("/")[2])
