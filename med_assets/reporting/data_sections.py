"""Sections about the data: cases and splits, what the program says of them, what is wrong between cases, and what was refused."""

import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from med_assets.capabilities import DataTables, HeldOutWarnings
from med_assets.catalog import reasons
from med_assets.dataset.stage import finding_pictures, findings
from med_assets.evaluation.scoring import HELD_OUT
from med_assets.preparation.stage import pictured, quarantine_picture
from med_assets.reporting.html import Section
from med_assets.reporting.report_facts import ReportFacts
from med_assets.review.address import review_url

MAX_PICTURES = 12
"""Pictures of quarantined cases in the report, the newest; all are beside it."""


def cases(facts: ReportFacts) -> Iterable[Section]:
    """Cases and patients by split, with links to the DICOM of the held-out cases."""
    text = f"{len(facts.cases)} accepted cases, {len(facts.refused)} refused. The links lead to the de-identified DICOM of held-out cases."
    page = review_url(facts.name)
    review = {"Look through these cases in the browser (med-assets review)": page} if page else {}
    yield Section("Cases", text, _counts(facts), links=review | _case_links(facts))


def _counts(facts: ReportFacts) -> pd.DataFrame:
    placed = [(case.split, case.case_id, case.patient_id) for case in facts.placed]
    if not placed:
        return pd.DataFrame(columns=["split", "cases", "patients"])
    grouped = pd.DataFrame(placed, columns=["split", "case_id", "patient_id"]).groupby("split")
    return grouped.agg(cases=("case_id", "nunique"), patients=("patient_id", "nunique")).reset_index()


def _case_links(facts: ReportFacts) -> dict[str, str]:
    """Folders of the de-identified DICOM of the held-out cases, relative to the report."""
    raw = {case.version: case.artifact for case in facts.catalog.case_versions() if case.artifact}
    links = {}
    for case in facts.placed:
        if case.split in HELD_OUT and case.version in raw:
            folder = facts.ws.store.fetch(raw[case.version])
            links[f"{case.case_id} ({case.split})"] = Path(os.path.relpath(folder, facts.folder)).as_posix()
    return links


def program_tables(facts: ReportFacts) -> Iterable[Section]:
    """The program's own tables about its data."""
    chosen = facts.program
    if isinstance(chosen, DataTables):
        for table in chosen.data_tables(facts.cases, facts.refused):
            yield Section(table.title, table.text, table.rows)


def held_out_warnings(facts: ReportFacts) -> Iterable[Section]:
    """What makes the scores of held-out cases doubtful, whatever the model."""
    chosen = facts.program
    if isinstance(chosen, HeldOutWarnings) and (warnings := chosen.held_out_warnings(facts.cases)):
        yield Section("Held-out cases", " ".join(f"{warning}." for warning in warnings))


def between_cases(facts: ReportFacts) -> Iterable[Section]:
    """What is wrong between cases, such as one picture twice."""
    if found := findings(facts.ws, facts.name):
        pictures = finding_pictures(facts.ws, facts.name, found)
        rows = pd.DataFrame([{"blocks": "yes" if one.blocking else "no", "finding": one.text} for one in found])
        yield Section("Between cases", "What one case says of another.", rows, list(pictures.values()), list(pictures))


def quarantine(facts: ReportFacts) -> Iterable[Section]:
    """What could not be used, with the reasons and the newest pictures."""
    if facts.refused:
        newest = pictured(facts.ws, facts.refused)[-MAX_PICTURES:]
        yield Section(
            "Quarantine",
            "What could not be used, and why.",
            reasons(facts.refused),
            [quarantine_picture(facts.ws, case) for case in newest],
            [f"{case.case_id}: {case.reason_code}" for case in newest],
        )
