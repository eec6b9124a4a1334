"""The report for people: which model stands where, its cases, what came in, what was refused and why, and the splits."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from med_assets import program
from med_assets.capabilities import DataTables, HeldOutWarnings, ReportTables, Screens
from med_assets.catalog import Catalog, frame
from med_assets.dataset.stage import cases_of, dataset_version, described, finding_pictures, findings
from med_assets.dataset.stage import refused as refused_cases
from med_assets.errors import ConfigurationError
from med_assets.evaluation import analyse as analysis
from med_assets.evaluation import crossvalidation, finetuning, learning_curves
from med_assets.evaluation.replicates import SPREAD
from med_assets.evaluation.stage import (
    HELD_OUT,
    INTERVAL,
    RecordedScores,
    aggregate,
    cell,
    leaderboard,
    recorded_scores,
    side_by_side,
)
from med_assets.monitoring.drift import drift_table
from med_assets.monitoring.stage import LIMITS_RULE, draw, headline, trend_table
from med_assets.preparation.stage import pictured, quarantine_picture
from med_assets.program import Metric
from med_assets.promotion.stage import TOO_FEW, current, decision_table, decisions, shown, stood
from med_assets.records import CaseScore, CaseVersion, Champion, Checkpoint, PreparedCase
from med_assets.reporting.index import links
from med_assets.reporting.pictures import drawn, over_cases
from med_assets.screening.stage import recorded_screening
from med_assets.settings import Workspace
from med_assets.storage.files import digest, file_sha256
from med_assets.storage.provenance import provenance
from med_assets.storage.result import StageResult, reasons
from med_assets.storage.versions import versioned

if TYPE_CHECKING:
    from med_assets.reporting.html import Highlight, Section


MAX_PICTURES = 12
"""Pictures of quarantined cases in the report, the newest; all are beside it."""


MARK = "synthetic: no number here says anything about patients"
"""Words by which a report of synthetic cases is known."""


def synthetic_parts(ws: Workspace, program_name: str) -> dict[str, int]:
    """What of a report is made of synthetic cases, with how many: cases, checkpoints, thresholds, cross-validations."""
    lake = ws.lake
    found = {
        "cases": sum(case["synthetic"] for case in lake.rows("dataset", program_name)),
        "checkpoints": sum(row["synthetic"] for row in lake.rows("checkpoints", program_name)),
        "thresholds": len({row["experiment"] for row in lake.rows("thresholds", program_name) if row["synthetic"]}),
        "cross-validations": len(
            {row["experiment"] for row in lake.rows("crossval", program_name) if row["synthetic"]}
        ),
        "learning curves": learning_curves.synthetic(ws, program_name),
        "analyses": analysis.synthetic(ws, program_name),
    }
    return {name: n for name, n in found.items() if n}


def report_path(ws: Workspace, program_name: str) -> Path:
    """Where the report of a program is written."""
    return ws.reports / program_name / "report.html"


def _cell(aggregates: Sequence[dict[str, Any]], split: str, metric: Metric) -> str:
    key = (split, metric.name, metric.subject)
    return next((cell(row) for row in aggregates if (row["split"], row["metric"], row["subject"]) == key), "")


def not_evaluated(n: int, command: str) -> str:
    """The line about cases without scores, which a report does not compute."""
    return f"{n} {'case' if n == 1 else 'cases'} not evaluated; run `med-assets {command}`."


def _model_sections(
    ws: Workspace,
    program_name: str,
    model: Champion | Checkpoint,
    recorded: RecordedScores,
    promoted: bool,
    decision: str,
) -> tuple[list["Section"], list[Path]]:
    """What the report says of one model: its cases, its tables, all its scores and its model card."""
    from med_assets.reporting.html import Section, model_card

    chosen, name = program.get(program_name), str(model["experiment"])
    rows, scores = recorded.rows, frame(CaseScore, recorded.rows)
    pictures = drawn(ws, program_name, model["checkpoint"], scores)
    standing = "The champion" if promoted else "The best candidate, not promoted,"
    text = f"{standing} is {name}, checkpoint {model['checkpoint']}.\n\nLast decision of the gate: {decision}."
    if recorded.missing:
        present = Catalog(ws, program_name).checkpoint(name)
        newest = present is not None and present.checkpoint == model.checkpoint
        # Of an experiment that was trained again, evaluation scores the newest checkpoint, and monitoring the champion.
        command = f"evaluate {program_name}/{name}" if newest else f"monitor {program_name}"
        text += f"\n\n{not_evaluated(recorded.missing, command)}"
    images = [image for image, _ in pictures]
    history = ws.lake.read("champions", program_name).drop(columns=["program", "dataset_version"]) if promoted else None
    sections = [
        Section(
            "Champion" if promoted else "Best candidate", text, history, images, [caption for _, caption in pictures]
        )
    ]
    if plots := over_cases(ws, program_name, model["checkpoint"], scores):
        paths = [path for path, _ in plots]
        sections.append(Section("All held-out cases", "", None, paths, [caption for _, caption in plots]))
        images += paths
    shown = "test" if (scores["split"] == "test").any() else "val"
    of_split = scores[scores["split"] == shown]
    for table in chosen.report_tables(of_split) if isinstance(chosen, ReportTables) and rows else ():
        n = of_split["case_id"].nunique()
        sections.append(Section(table.title, f"{table.text} {n} cases of the split {shown}.", table.rows))
    conventions = scores[["metric", "convention"]].drop_duplicates()
    sections += [
        Section(
            "All scores", f"Mean over cases. {INTERVAL}.", side_by_side(aggregate(program_name, rows)), folded=True
        ),
        Section("Definitions", "How each score is computed.", conventions, folded=True),
    ]
    cases = ws.lake.rows("dataset", program_name)
    held_out = scores.drop_duplicates("case_id").groupby("split")["case_id"].count().to_dict()
    card = model_card(
        intended_use=chosen.intended_use,
        not_for=chosen.not_for,
        training_data=f"{model['n_train']} cases, dataset version {model['dataset_version']}",
        evaluation_data=", ".join(f"{split}: {n} cases" for split, n in held_out.items()),
        metrics="; ".join(f"{m.name}: {m.meaning}" for m in (chosen.primary_metric, *chosen.guarded_metrics)),
        limitations=[*chosen.limitations, *(["made of synthetic cases"] if any(c["synthetic"] for c in cases) else [])],
        owners=chosen.owners,
    )
    return [*sections, card], images


def _screening_sections(ws: Workspace, program_name: str, model: Champion | Checkpoint) -> list["Section"]:
    """What a program that looks for unusual cases says of all of them under one model."""
    from med_assets.reporting.html import Section

    chosen = program.get(program_name)
    if not isinstance(chosen, Screens):
        return []
    screening = chosen.screening()
    found, missing = recorded_screening(ws, program_name, model)
    left_out = not_evaluated(missing, f"audit-queue {program_name} --model {model.experiment}") if missing else ""
    if found.rows.empty:
        return [Section("Screening", left_out)] if missing else []
    out = report_path(ws, program_name).parent / "plots" / "screening"
    out.mkdir(parents=True, exist_ok=True)
    studies = found.rows.drop_duplicates("case_id")
    seen = int(studies["seen_in_training"].sum())
    about = f"All {len(studies)} studies under {model['experiment']}, of which {seen} had a part in its training."
    about += f" {left_out}" if left_out else ""
    return [
        Section(one.title, f"{about} {one.text}", one.rows, one.images, one.captions)
        for one in screening.sections(ws, found, out)
    ]


def _failure_section(ws: Workspace, program_name: str) -> list["Section"]:
    from med_assets.reporting.html import Section

    rows = ws.lake.read("failures", program_name)
    if rows.empty:
        return []
    text = "Cases that a model could not be applied to, with the exception; they are in no number of this report."
    return [Section("Failures", text, rows[["stage", "experiment", "case_id", "error"]])]


def _monitoring_sections(ws: Workspace, program_name: str) -> tuple[list["Section"], list[Path]]:
    """The champion over batches, and whether new cases drift from those it was trained on; nothing before the first batch."""
    from med_assets.reporting.html import Section

    table, images = trend_table(ws, program_name), list(draw(ws, program_name).values())
    if table.empty:
        return [], []
    told = "; ".join(f"{name}: {value}" for name, value in headline(ws, program_name).items())
    text = f"On cases that the champion has not seen, {told}.\n\n{LIMITS_RULE}."
    sections = [Section("Monitoring", text, table, images)]
    drifted = drift_table(ws, program_name)
    if not drifted.empty:
        about = (
            "Facts of new cases against those of the champion's training cases: numbers by the two-sample "
            "Kolmogorov-Smirnov distance, the rest by the distance of their shares; p adjusted over the facts by Holm's method."
        )
        sections.append(Section("Drift", about, drifted, folded=True))
    return sections, images


def _highlights(
    ws: Workspace,
    program_name: str,
    model: Champion | Checkpoint | None,
    recorded: RecordedScores | None,
    promoted: bool,
    n_cases: int,
    n_refused: int,
) -> list["Highlight"]:
    from med_assets.reporting.html import Highlight

    tiles = [
        Highlight("Accepted cases", str(n_cases), f"{n_refused} refused", "warn" if n_refused else "plain"),
    ]
    if model is None or recorded is None:
        return [*tiles, Highlight("Champion", "none", "no experiment has been evaluated", "warn")]
    name = str(model["experiment"])
    now = current(ws, program_name) if promoted else None
    by_mean = now is not None and str(now["reason"]).startswith(TOO_FEW)
    note = (
        f"{TOO_FEW}: promoted by the demo's policy"
        if by_mean
        else "promoted by the gate"
        if promoted
        else "the gate has promoted none"
    )
    tiles.append(
        Highlight(
            "Champion" if promoted else "Best candidate", name, note, "good" if promoted and not by_mean else "warn"
        )
    )
    metric, baseline = program.get(program_name).primary_metric, program.get(program_name).baseline
    ours = aggregate(program_name, recorded.rows)
    theirs = ws.lake.rows("evaluation", f"{program_name}/{baseline}") if baseline else []
    for split in ("val", "test"):
        value, _, interval = _cell(ours, split, metric).partition(" ")
        if value:
            other = _cell(theirs, split, metric).partition(" ")[0]
            against = f"; {baseline}: {other}" if other and baseline != name else ""
            tiles.append(
                Highlight(
                    ", ".join(filter(None, (metric.name, split, metric.shown_unit))), value, f"{interval}{against}"
                )
            )
    return tiles


def _warning(ws: Workspace, synthetic: dict[str, int], total: int) -> str:
    said = []
    if cases := synthetic.get("cases"):
        said.append(f"{cases} of {total} cases are {MARK}.")
    elif synthetic:
        said.append(f"{' and '.join(synthetic)} of this report are {MARK}.")
    if ws.profile != "full":
        said.append(f"Trained with the profile {ws.profile}, which is far smaller than the full one.")
    return " ".join(said)


def _counts(ws: Workspace, program_name: str) -> pd.DataFrame:
    splits = pd.DataFrame(cases_of(ws, program_name))
    if splits.empty:
        return pd.DataFrame(columns=["split", "cases", "patients"])
    grouped = splits.groupby("split").agg(cases=("case_id", "nunique"), patients=("patient_id", "nunique"))
    return grouped.reset_index()


def _case_links(ws: Workspace, program_name: str) -> dict[str, str]:
    """Folders of the de-identified DICOM of the held-out cases, relative to the report."""
    here = report_path(ws, program_name).parent
    raw = {row["version"]: row["artifact"] for row in ws.lake.rows("raw_cases", program_name) if row["artifact"]}
    links = {}
    for case in cases_of(ws, program_name):
        if case["split"] in HELD_OUT and case["version"] in raw:
            folder = ws.store.fetch(raw[case["version"]])
            links[f"{case['case_id']} ({case['split']})"] = Path(os.path.relpath(folder, here)).as_posix()
    return links


def _data_sections(
    ws: Workspace, program_name: str, refused: Sequence[CaseVersion | PreparedCase], total: int
) -> list["Section"]:
    from med_assets.reporting.html import Section

    text = (
        f"{total} accepted cases, {len(refused)} refused. The links lead to the de-identified DICOM of held-out cases."
    )
    sections = [Section("Cases", text, _counts(ws, program_name), links=_case_links(ws, program_name))]
    chosen = program.get(program_name)
    sections += [
        Section(table.title, table.text, table.rows)
        for table in (
            chosen.data_tables(described(ws, program_name), refused) if isinstance(chosen, DataTables) else ()
        )
    ]
    if isinstance(chosen, HeldOutWarnings) and (said := chosen.held_out_warnings(described(ws, program_name))):
        sections.append(Section("Held-out cases", " ".join(f"{one}." for one in said)))
    if found := findings(ws, program_name):
        pictures = finding_pictures(ws, program_name, found)
        rows = pd.DataFrame([{"blocks": "yes" if one.blocking else "no", "finding": one.text} for one in found])
        sections.append(
            Section("Between cases", "What one case says of another.", rows, list(pictures.values()), list(pictures))
        )
    if refused:
        quarantined = Catalog(ws, program_name).quarantined()
        shown = pictured(ws, quarantined)[-MAX_PICTURES:]
        sections.append(
            Section(
                "Quarantine",
                "What could not be used, and why.",
                reasons(quarantined),
                [quarantine_picture(ws, case) for case in shown],
                [f"{case.case_id}: {case.reason_code}" for case in shown],
            )
        )
    return sections


@versioned("7")
def report(ws: Workspace, program_name: str) -> StageResult:
    """Write `reports/<program>/report.html` and return its path, plots and hash."""
    from med_assets.reporting.html import Section, render_report

    chosen, lake, synthetic = program.get(program_name), ws.lake, synthetic_parts(ws, program_name)
    if synthetic and ws.purpose != "demo":
        raise ConfigurationError(
            f"{program_name}: expected no synthetic case in a report for {ws.purpose}, got {synthetic}; withdraw them and make "
            "what they were part of again, or set MED_ASSETS_PURPOSE=demo for a home without patients"
        )
    refused = refused_cases(ws, program_name)
    cases, now = lake.rows("dataset", program_name), current(ws, program_name)
    model, _ = shown(ws, program_name)
    verdicts = decisions(ws, program_name)
    last = stood(verdicts)
    decision = last["reason"] if last else "it has not been asked yet"
    board = leaderboard(ws, program_name)
    about = (
        f"Sorted by {chosen.primary_metric.name} on validation: {chosen.primary_metric.meaning}. "
        f"Mean over cases, in brackets its interval: {INTERVAL}."
    )
    sections = [Section("Leaderboard", about, board.tables["leaderboard"], list(board.images.values()))]
    if "replicates" in board.tables:
        sections.append(Section("Replicates", SPREAD, board.tables["replicates"]))
    if lead := links(ws, program_name):
        about = "Every run with its code, data, hardware, scores and command; a notebook and figures for print of each experiment."
        sections.append(Section("Experiments", about, links=lead))
    images: list[Path] = []
    recorded = recorded_scores(ws, program_name, model.experiment, model.checkpoint) if model else None
    if model is None or recorded is None:
        sections.append(Section("Champion", f"There is none. Last decision of the gate: {decision}."))
    else:
        described, images = _model_sections(ws, program_name, model, recorded, now is not None, decision)
        sections += described
    if model is not None:
        sections += _screening_sections(ws, program_name, model)
    sections += crossvalidation.sections(ws, program_name)
    sections += learning_curves.sections(ws, program_name)
    sections += analysis.sections(ws, program_name)
    tuned = finetuning.table(ws, program_name)
    if not tuned.empty:
        sections.append(Section("Fine-tuning", finetuning.ABOUT, tuned))
    if verdicts:
        text = (
            "The newest verdict on every evaluated experiment, by the promotion policy of the program. Difference: paired, challenger "
            "minus reference, turned so that below 0 is better, with its 95 % interval; p: that it is not better by the "
            "margin, and adjusted over all challengers of the decision (Holm), at most 0.025 to be promoted; detectable: the difference that as "
            "many patients would have shown with a chance of 80 %."
        )
        sections.append(
            Section("Decisions of the gate", text, decision_table(verdicts).drop(columns="checkpoint"), folded=True)
        )
    if now is not None:
        watched, trends = _monitoring_sections(ws, program_name)
        sections += watched
        images += trends
    path = report_path(ws, program_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] = provenance() | {
        "dataset_version": dataset_version(cases),
        "checkpoint": model["checkpoint"] if model else None,
        "purpose": ws.purpose,
        "profile": ws.profile,
        "synthetic_cases": synthetic.get("cases", 0),
    }
    render_report(
        path,
        chosen.title,
        [*sections, *_data_sections(ws, program_name, refused, len(cases)), *_failure_section(ws, program_name)],
        made,
        subtitle=chosen.description,
        highlights=_highlights(ws, program_name, model, recorded, now is not None, len(cases), len(refused)),
        warning=_warning(ws, synthetic, len(cases)),
    )
    return StageResult(
        data_version=digest(file_sha256(path)),
        counts={"cases": len(cases), "quarantined": len(refused)},
        summary={"path": str(path.relative_to(ws.home)), "champion": now["experiment"] if now else None},
        images={**board.images, **{image.stem: image for image in images}},
    )
