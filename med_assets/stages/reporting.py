"""The report for people: what came in, what was refused and why, the split, the leaderboard, the champion and its cases."""

from pathlib import Path
from typing import Any

import pandas as pd

from med_assets import program
from med_assets.files import digest, file_sha256
from med_assets.provenance import provenance
from med_assets.settings import Workspace
from med_assets.stages.dataset import cases_of, dataset_version
from med_assets.stages.evaluation import HELD_OUT, INTERVAL, leaderboard, score_key
from med_assets.stages.promotion import current
from med_assets.stages.result import QUARANTINED, StageResult, reasons

SHOWN_CASES = 3
"""Cases drawn in the report: enough to look at, few enough to open at once."""


def report_path(ws: Workspace, program_name: str) -> Path:
    """Where the report of a program is written."""
    return ws.reports / program_name / "report.html"


def _drawn(ws: Workspace, program_name: str, checkpoint: str) -> list[Path]:
    images: list[Path] = []
    cases = [case for case in cases_of(ws, program_name) if case["split"] in HELD_OUT]
    for case in cases[:SHOWN_CASES]:
        key = score_key(ws, program_name, checkpoint, case["artifact"])
        if ws.store.has(key):
            out = ws.reports / program_name / "plots"
            images += program.get(program_name).report_images(
                ws, ws.store.fetch(case["artifact"]), ws.store.fetch(key), out
            )
    return images


def report(ws: Workspace, program_name: str) -> StageResult:
    """Write `reports/<program>/report.html` and return its path, plots and hash."""
    from med_assets.reports.html import Section, render_report

    chosen, lake = program.get(program_name), ws.lake
    raw, prepared = lake.rows("raw_cases", program_name), lake.rows("prepared_cases", program_name)
    refused = [row for row in [*raw, *prepared] if row["status"] == QUARANTINED]
    cases, now = lake.rows("dataset", program_name), current(ws, program_name)
    board = leaderboard(ws, program_name)
    synthetic = sum(case["synthetic"] for case in cases)
    splits = pd.DataFrame(cases_of(ws, program_name))
    per_split = (
        splits.groupby("split").agg(cases=("case_id", "nunique"), patients=("patient_id", "nunique")).reset_index()
        if not splits.empty
        else pd.DataFrame(columns=["split", "cases", "patients"])
    )
    note = f" {synthetic} of them are synthetic." if synthetic else ""
    sections = [
        Section("Cases", f"{len(cases)} accepted cases, {len(refused)} refused.{note}", per_split, []),
        Section("Quarantine", "What could not be used, and why.", reasons(refused), []),
        Section(
            "Leaderboard",
            f"Sorted by {chosen.primary_metric.name} on validation: {chosen.primary_metric.meaning}. Intervals: {INTERVAL}.",
            board.tables["leaderboard"],
            list(board.images.values()),
        ),
    ]
    decisions = lake.rows("promotions", program_name)
    text = decisions[-1]["reason"] if decisions else "The gate has not been asked yet."
    images: list[Path] = []
    if now:
        images = _drawn(ws, program_name, now["checkpoint"])
        scores = lake.read("evaluation", f"{program_name}/{now['experiment']}")
        shown = scores[["split", "metric", "subject", "mean", "low", "high", "n", "unit", "convention"]]
        sections.append(
            Section(
                "Champion",
                f"{now['experiment']} ({now['checkpoint']}). Last decision: {text}.",
                lake.read("champions", program_name),
                images,
            )
        )
        sections.append(
            Section("Scores of the champion", f"Mean over cases per split. Intervals: {INTERVAL}.", shown, [])
        )
    else:
        sections.append(Section("Champion", f"There is none. Last decision: {text}.", None, []))
    path = report_path(ws, program_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] = provenance() | {
        "dataset_version": dataset_version(cases),
        "purpose": ws.purpose,
        "synthetic_cases": synthetic,
    }
    title = f"{chosen.title}{' (synthetic data)' if synthetic else ''}"
    render_report(path, title, sections, made)
    return StageResult(
        data_version=digest(file_sha256(path)),
        counts={"cases": len(cases), "quarantined": len(refused)},
        summary={"path": str(path.relative_to(ws.home)), "champion": now["experiment"] if now else None},
        images={**board.images, **{image.stem: image for image in images}},
    )
