"""The dataset's manifest and the split of its patients."""

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from med_assets import program
from med_assets.capabilities import DatasetFindings, DataTables, FixedSplits
from med_assets.catalog import Catalog, Dataset, accepted, decided_anew, frame, to_predict, usable
from med_assets.dataset.splits import SplitPolicy, assign, split_policy
from med_assets.deidentification.audit_trail import Kind
from med_assets.deidentification.audited_rows import write_row
from med_assets.deidentification.scan import Scan
from med_assets.records import (
    BatchAudit,
    CaseVersion,
    DatasetCase,
    PreparedCase,
    ReaderDecision,
    SplitAssignment,
    Withdrawal,
)
from med_assets.settings import Settings
from med_assets.storage import names
from med_assets.storage.files import digest
from med_assets.storage.locks import alone
from med_assets.storage.memo import Memo
from med_assets.storage.memory import without_collecting
from med_assets.storage.result import StageResult, tally
from med_assets.storage.versions import versioned

BEFORE_PROFILES = "strict"
"""Profile of cases that were taken in before there was another."""

MAX_PICTURED = 6
"""Findings between cases that are shown as pictures; all are in the table."""


def withdraw(ws: Settings, program_name: str, case_id: str, reason: str) -> None:
    """Take a case out of the dataset for good; its rows and artifacts stay for those who ask what happened."""
    names.CASE.check(case_id)
    write_row(ws, Kind.WITHDRAWAL, Withdrawal(program=program_name, case_id=case_id, reason=reason))


@versioned("2")
def dataset(ws: Settings, program_name: str) -> StageResult:
    """Write the manifest: the newest accepted version of every case that nobody withdrew or excluded, sorted by case.

    Batches that the audit holds back are not in it. A case in whose stored files the scan found anything that may identify a patient is left out, whatever its batch's gate
    has stopped so far: another batch may have started this run. Of cases with the same images and contours, which batches
    taken in at once or out of order do not see of each other, one is in: that of the present manifest, else the first batch's.

    Of several processes at once the last to write has read what all of them prepared.
    """
    with alone(ws, f"dataset-{program_name}"):
        return decided_anew(ws, partial(_dataset, ws, program_name))


@dataclass(frozen=True)
class _Candidate:
    """An accepted case, with its batch and the key of its de-identified files, which is None where it has none."""

    batch: str
    case: DatasetCase
    raw: str | None


def _candidates(catalog: Catalog) -> tuple[dict[str, _Candidate], Counter[str]]:
    """The newest accepted version of each case by id, without batches that are held back; and counts of what was left out."""
    held_back, raw = catalog.held_back(), catalog.raw_artifacts()
    latest: dict[str, _Candidate] = {}
    counts = Counter({"superseded": 0, "batches_held_back": len(held_back)})
    for batch, case in catalog.accepted():
        if batch in held_back:
            continue
        earlier = latest.get(case.case_id)
        counts["superseded"] += earlier is not None and earlier.case.version != case.version
        latest[case.case_id] = _Candidate(batch, case, raw.get((batch, case.case_id)))
    return latest, counts


def _dataset(ws: Settings, program_name: str) -> StageResult:
    catalog, scan = Catalog(ws, program_name), Scan(ws, program_name)
    decided_on = catalog.stamp(DatasetCase)
    with without_collecting():
        latest, counts = _candidates(catalog)
    findings = scan.findings([(one.batch, one.raw) for one in latest.values() if one.raw])
    with without_collecting():
        withdrawn, excluded = catalog.withdrawn(), catalog.excluded()
        identified = {case_id for case_id, one in latest.items() if one.raw in findings}
        before = {case.case_id: case.artifact for case in catalog.dataset().cases}
        duplicates = _duplicates(latest, before)
        left_out = withdrawn | excluded | identified | duplicates
        found = Dataset(tuple(latest[case_id].case for case_id in sorted(latest) if case_id not in left_out))
        catalog.replace(DatasetCase, found.cases, expected=decided_on)
        return StageResult(
            data_version=found.version,
            counts=tally("reused" if before.get(case.case_id) == case.artifact else "new" for case in found.cases)
            | {
                "superseded": counts["superseded"],
                "withdrawn": len(withdrawn),
                "excluded": len(excluded - withdrawn),
                "identified": len(identified),
                "duplicates": len(duplicates),
                "batches_held_back": counts["batches_held_back"],
            },
            summary={
                "cases": len(found),
                "patients": len({case.patient_id for case in found.cases}),
                "synthetic": len(found.synthetic),
            },
            tables={"cases": frame(DatasetCase, found.cases)},
        )


def unlabelled(ws: Settings, program_name: str) -> list[PreparedCase]:
    """The cases to predict: the newest version of each that never came with a label.

    What people withdrew or excluded, may hold identity or came in a batch that is held back is left out, as are copies of cases of the dataset.
    """
    catalog = Catalog(ws, program_name)
    batches = [_cases_of(catalog, batch) for batch in catalog.batches()]
    latest = {case.case_id: (case, one.raw[case.case_id]) for one in batches for case in one.unlabelled}
    left_out = catalog.left_out().union(*(one.labelled for one in batches))
    stored = [(case.batch, raw) for case, raw in latest.values() if case.case_id not in left_out]
    identified = Scan(ws, program_name).findings(stored)
    return [
        case for case_id, (case, raw) in sorted(latest.items()) if case_id not in left_out and raw not in identified
    ]


@dataclass(frozen=True)
class _BatchCases:
    """The prepared cases of a batch, none where the audit holds it back: ids of those with a label, those without, and the raw artifacts of these by case."""

    labelled: frozenset[str]
    unlabelled: tuple[PreparedCase, ...]
    raw: Mapping[str, str]


_batches: Memo[_BatchCases] = Memo()
"""By home, program, batch and the stamps of its tables: sensors ask at each tick, and a batch hardly ever changes."""


def _cases_of(catalog: Catalog, batch: str) -> _BatchCases:
    """The prepared cases of a batch, read once as long as its tables are the same."""

    def read() -> _BatchCases:
        audit = catalog.audit(batch)
        prepared = [] if audit and audit.held_back else catalog.rows(PreparedCase, batch)
        unlabelled = tuple(to_predict(prepared))
        raw = usable(catalog.rows(CaseVersion, batch)) if unlabelled else []
        ids = frozenset(case.case_id for case in accepted(prepared))
        return _BatchCases(ids, unlabelled, {case.case_id: case.artifact for case in raw})

    stamps = [catalog.stamp(table, batch) for table in (CaseVersion, PreparedCase, BatchAudit)]
    return _batches.get((catalog.ws.home, catalog.program, batch, *stamps), read)


def findings(ws: Settings, program_name: str) -> list[program.Finding]:
    """What is wrong between the cases of the dataset, in every program and in this one alone, the blocking first."""
    chosen, found = program.get(program_name), mixed_profiles(ws, program_name)
    if isinstance(chosen, DatasetFindings):
        found += chosen.dataset_findings(ws, Catalog(ws, program_name).described())
    return sorted(found, key=lambda finding: (not finding.blocking, finding.cases))


def profiles_of_cases(ws: Settings, program_name: str) -> dict[str, str]:
    """The profile of de-identification of each case of the dataset, as name and version, by case."""
    catalog = Catalog(ws, program_name)
    rows = catalog.frame(CaseVersion, columns=("case_id", "version", "deidentified_by"))
    stated = {
        (case, version): profile
        for case, version, profile in zip(rows["case_id"], rows["version"], rows["deidentified_by"], strict=True)
        if isinstance(profile, str)
    }
    return {case.case_id: stated.get((case.case_id, case.version), BEFORE_PROFILES) for case in catalog.dataset().cases}


def mixed_profiles(ws: Settings, program_name: str) -> list[program.Finding]:
    """A blocking finding where cases of the dataset were de-identified by different profiles: what one keeps and the other does not would tell them apart."""
    by_name: dict[str, list[str]] = {}
    for case, profile in profiles_of_cases(ws, program_name).items():
        by_name.setdefault(profile.partition(" ")[0], []).append(case)
    if len(by_name) < 2:
        return []
    numbers = ", ".join(f"{len(cases)} by {name}" for name, cases in sorted(by_name.items()))
    other = [
        case
        for name, cases in sorted(by_name.items())
        if name != ws.deidentification_of(program_name)
        for case in cases
    ]
    text = (
        f"cases of one dataset were de-identified by different profiles: {numbers}. Take the batches of the {len(other)} that do not have "
        f"the present profile in again (med-assets ingest {program_name} --batch BATCH), or withdraw these cases"
    )
    return [program.Finding("mixed_profiles", text, tuple(sorted(other)), blocking=True)]


def finding_pictures(ws: Settings, program_name: str, found: Sequence[program.Finding]) -> dict[str, Path]:
    """Pictures of the first MAX_PICTURED findings, by their text, plotted where they are not yet."""
    pictures = {}
    for finding in found[:MAX_PICTURED]:
        path = ws.reports / program_name / "findings" / f"{digest(finding.code, finding.text)}.png"
        if finding.plot is not None:
            pictures[finding.text] = path if path.is_file() else finding.plot(path)
    return pictures


def _duplicates(latest: Mapping[str, _Candidate], present: Container[str]) -> set[str]:
    """Cases whose images and contours another case has too, all but the one that counts."""
    owner: dict[str, str] = {}
    for case_id in sorted(latest, key=lambda case_id: (case_id not in present, latest[case_id].batch, case_id)):
        owner.setdefault(latest[case_id].case.content_hash, case_id)
    return {case_id for case_id, one in latest.items() if owner[one.case.content_hash] != case_id}


def splits(ws: Settings, program_name: str) -> StageResult:
    """Assign new patients; what was assigned before stays where it is, also when another process assigns at once.

    The dataset is kept as it is now, with splits and facts: `Catalog.dataset_at` reads it whatever comes later.
    """
    with alone(ws, f"dataset-{program_name}"), without_collecting():
        return decided_anew(ws, partial(_splits, ws, program_name))


def _splits(ws: Settings, program_name: str) -> StageResult:
    catalog = Catalog(ws, program_name)
    decided_on = catalog.stamp(SplitAssignment)
    cases, earlier = catalog.dataset(), catalog.assignments()
    policy = split_policy(program_name)
    given = ws.option(program_name, "split_policy", policy.policy)
    policy = SplitPolicy.model_validate(policy.model_dump() | {"policy": given})
    chosen = program.get(program_name)
    fixed = chosen.fixed_splits(ws) if given == "fixed" and isinstance(chosen, FixedSplits) else {}
    rows, problems = assign(program_name, cases.cases, earlier.values(), policy, fixed)
    catalog.replace(SplitAssignment, rows, expected=decided_on)
    catalog.keep_version(cases, {row.patient_id: row for row in rows})
    tables = []
    if isinstance(chosen, DataTables):
        described = catalog.described_as(cases, {row.patient_id: row for row in rows})
        tables = chosen.data_tables(described, catalog.quarantined())
    present = {case.patient_id for case in cases.cases}
    sizes = pd.Series([row.split for row in rows if row.patient_id in present], dtype=str).value_counts().to_dict()
    return StageResult(
        # What depends on the splits reads their cases too: a corrected label of a held-out case changes no assignment.
        data_version=digest(cases.version, SplitAssignment.dictionaries(rows), sorted(problems)),
        counts=tally("reused" if row.patient_id in earlier else "new" for row in rows),
        summary={"patients_per_split": sizes, "unassigned": problems},
        tables={
            **{table.title: table.rows for table in tables},
            "splits": frame(SplitAssignment, rows),
        },
    )


def up_to_date(ws: Settings, program_name: str) -> bool:
    """Whether dataset and splits were written after all that they are made of, by the times of files, and every patient is assigned."""
    catalog = Catalog(ws, program_name)
    inputs = [
        stamp[0]
        for table in (PreparedCase, BatchAudit, Withdrawal)
        for key in catalog.keys(table)
        if (stamp := catalog.stamp(table, *key)) is not None
    ]
    made, assigned = (catalog.stamp(table) for table in (DatasetCase, SplitAssignment))
    if not inputs:
        return True
    if made is None or assigned is None or made[0] < max(inputs) or assigned[0] < made[0]:
        return False
    if _decided_since(catalog, made[0]):
        return False
    return {case.patient_id for case in catalog.dataset().cases} <= catalog.assignments().keys()


def _decided_since(catalog: Catalog, time_ns: int) -> bool:
    """Whether readers decided, since a dataset was written at a time of the tables, who is in it: no machine's clock is asked."""
    inside = {case.case_id for case in catalog.dataset().cases}
    for case_id, n in catalog.exclusion_changes().items():
        if n % 2 and case_id in inside:
            return True
        if n % 2 == 0 and case_id not in inside:
            stamp = catalog.stamp(ReaderDecision, case_id)
            if stamp is not None and stamp[0] >= time_ns:
                return True
    return False
