"""The dataset's manifest and the split of its patients."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from operator import eq
from pathlib import Path

import pandas as pd

from med_assets import program
from med_assets.capabilities import DatasetFindings, DataTables, FixedSplits
from med_assets.catalog import Catalog, accepted, decided_anew, to_predict, usable
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
from med_assets.storage.canonical import canonical_table
from med_assets.storage.files import digest
from med_assets.storage.lake import Columns
from med_assets.storage.locks import alone
from med_assets.storage.memo import Memo
from med_assets.storage.memory import without_collecting
from med_assets.storage.result import StageResult, tally
from med_assets.storage.together import Stamp
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


@dataclass(frozen=True, eq=False)
class _Candidates:
    """The newest accepted version of each case, without batches that are held back: its row in `accepted`, and the key of its de-identified
    files, by case id; `n_superseded` are the versions that a later one replaced."""

    accepted: Columns
    rows: Mapping[str, int]
    raw: Mapping[str, str]
    n_superseded: int
    n_held_back: int

    @property
    def stored(self) -> list[tuple[str, str]]:
        """Batch and key of the de-identified files of each case that has any."""
        batches = self.accepted["batch"]
        return [(batches[self.rows[case_id]], raw) for case_id, raw in self.raw.items()]


def _candidates(catalog: Catalog) -> _Candidates:
    held_back, raw, found = catalog.held_back(), catalog.raw_artifacts(), catalog.accepted()
    ids, batches, versions = found["case_id"], found["batch"], found["version"]
    rows: Sequence[int] = range(len(ids))
    if held_back:
        rows = [row for row in rows if batches[row] not in held_back]
    latest = {ids[row]: row for row in rows}
    n_superseded = 0
    if len(latest) < len(rows):
        earlier: dict[str, str] = {}
        for row in rows:
            n_superseded += earlier.get(ids[row], versions[row]) != versions[row]
            earlier[ids[row]] = versions[row]
    stored = {case_id: key for case_id, row in latest.items() if (key := raw.get((batches[row], case_id)))}
    return _Candidates(found, latest, stored, n_superseded, len(held_back))


def _dataset(ws: Settings, program_name: str) -> StageResult:
    catalog, scan = Catalog(ws, program_name), Scan(ws, program_name)
    decided_on = catalog.stamp(DatasetCase)
    with without_collecting():
        latest = _candidates(catalog)
        stored = latest.stored
    findings = scan.findings(stored)
    with without_collecting():
        withdrawn, excluded = catalog.withdrawn(), catalog.excluded()
        identified = {case_id for case_id, raw in latest.raw.items() if raw in findings} if findings else set()
        before = catalog.dataset().columns
        artifacts = dict(zip(before["case_id"], before["artifact"], strict=True))
        duplicates = _duplicates(latest, artifacts)
        left_out = withdrawn | excluded | identified | duplicates
        rows = [latest.rows[case_id] for case_id in sorted(latest.rows) if case_id not in left_out]
        found = catalog.dataset_of(latest.accepted, rows)
        catalog.replace_dataset(found, expected=decided_on)
        columns = found.columns
        return StageResult(
            data_version=found.version,
            counts=_tally(sum(map(eq, map(artifacts.get, columns["case_id"]), columns["artifact"])), len(found))
            | {
                "superseded": latest.n_superseded,
                "withdrawn": len(withdrawn),
                "excluded": len(excluded - withdrawn),
                "identified": len(identified),
                "duplicates": len(duplicates),
                "batches_held_back": latest.n_held_back,
            },
            summary={
                "cases": len(found),
                "patients": len(set(columns["patient_id"])),
                "synthetic": sum(columns["synthetic"]),
            },
            tables={"cases": _frame(columns)},
        )


def unlabelled(ws: Settings, program_name: str) -> list[PreparedCase]:
    """The cases to predict: the newest version of each that never came with a label.

    What people withdrew or excluded, may hold identity or came in a batch that is held back is left out, as are copies of cases of the dataset.
    """
    catalog = Catalog(ws, program_name)
    stamps = [catalog.stamps(table) for table in (PreparedCase, CaseVersion, BatchAudit)]
    batches = [_cases_of(catalog, key[0], [of.get(key) for of in stamps]) for key in stamps[0]]
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


def _cases_of(catalog: Catalog, batch: str, stamps: Sequence[Stamp | None]) -> _BatchCases:
    """The prepared cases of a batch, read once as long as its tables have these stamps."""

    def read() -> _BatchCases:
        audit = catalog.audit(batch)
        prepared = [] if audit and audit.held_back else catalog.rows(PreparedCase, batch)
        unlabelled = tuple(to_predict(prepared))
        raw = usable(catalog.rows(CaseVersion, batch)) if unlabelled else []
        ids = frozenset(case.case_id for case in accepted(prepared))
        return _BatchCases(ids, unlabelled, {case.case_id: case.artifact for case in raw})

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


def _duplicates(latest: _Candidates, present: Container[str]) -> set[str]:
    """Cases whose images and contours another case has too, all but the one that counts."""
    batches, hashes = latest.accepted["batch"], latest.accepted["content_hash"]
    content = {case_id: hashes[row] for case_id, row in latest.rows.items()}
    if len(set(content.values())) == len(content):
        return set()
    owner: dict[str, str] = {}
    for case_id in sorted(
        content, key=lambda case_id: (case_id not in present, batches[latest.rows[case_id]], case_id)
    ):
        owner.setdefault(content[case_id], case_id)
    return {case_id for case_id, hashed in content.items() if owner[hashed] != case_id}


def _tally(n_reused: int, n_all: int) -> dict[str, int]:
    """What `tally` gives of rows of which so many were there before."""
    return tally(()) | {"new": n_all - n_reused, "reused": n_reused}


def splits(ws: Settings, program_name: str) -> StageResult:
    """Assign new patients; what was assigned before stays where it is, also when another process assigns at once.

    The dataset is kept as it is now, with splits and facts: `Catalog.dataset_at` reads it whatever comes later.
    """
    with alone(ws, f"dataset-{program_name}"), without_collecting():
        return decided_anew(ws, partial(_splits, ws, program_name))


def _splits(ws: Settings, program_name: str) -> StageResult:
    catalog = Catalog(ws, program_name)
    decided_on = catalog.stamp(SplitAssignment)
    cases, earlier = catalog.dataset(), catalog.assigned()
    policy = split_policy(program_name)
    given = ws.option(program_name, "split_policy", policy.policy)
    policy = SplitPolicy.model_validate(policy.model_dump() | {"policy": given})
    chosen = program.get(program_name)
    fixed = chosen.fixed_splits(ws) if given == "fixed" and isinstance(chosen, FixedSplits) else {}
    patients = set(cases.columns["patient_id"])
    new = [row for row, patient in enumerate(cases.columns["patient_id"]) if patient not in earlier.rows]
    added, problems = assign(  # what was assigned earlier does not change
        program_name, DatasetCase.of_columns(cases.columns.taken(new)), (), policy, fixed
    )
    assigned, known = catalog.assign(earlier, added, expected=decided_on), catalog.known_facts()
    catalog.keep_version(cases, assigned, known)
    tables = []
    if isinstance(chosen, DataTables):
        tables = chosen.data_tables(catalog.described_as(cases, assigned, known), catalog.quarantined())
    columns = assigned.columns
    inside = compress(columns["split"], map(patients.__contains__, columns["patient_id"]))
    sizes = pd.Series(list(inside), dtype=str).value_counts().to_dict()
    return StageResult(
        # What depends on the splits reads their cases too: a corrected label of a held-out case changes no assignment.
        data_version=digest(cases.version, canonical_table(columns.arrow, as_objects=True), sorted(problems)),
        counts=_tally(len(earlier.rows), len(assigned.rows)),
        summary={"patients_per_split": sizes, "unassigned": problems},
        tables={**{table.title: table.rows for table in tables}, "splits": _frame(columns)},
    )


def _frame(columns: Columns) -> pd.DataFrame:
    """A data frame of rows; columns without empty values go there from Arrow, with the same type."""
    whole = [name for name in columns if len(columns.arrow) and not columns.arrow[name].null_count]
    return pd.DataFrame({name: columns.arrow[name].to_pandas() if name in whole else columns[name] for name in columns})


def up_to_date(ws: Settings, program_name: str) -> bool:
    """Whether dataset and splits were written after all that they are made of, by the times of files, and every patient is assigned."""
    catalog = Catalog(ws, program_name)
    inputs = [stamp[0] for table in (PreparedCase, BatchAudit, Withdrawal) for stamp in catalog.stamps(table).values()]
    made, assigned = (catalog.stamp(table) for table in (DatasetCase, SplitAssignment))
    if not inputs:
        return True
    if made is None or assigned is None or made[0] < max(inputs) or assigned[0] < made[0]:
        return False
    if _decided_since(catalog, made[0]):
        return False
    return set(catalog.dataset().columns["patient_id"]) <= catalog.assignments().keys()


def _decided_since(catalog: Catalog, time_ns: int) -> bool:
    """Whether readers decided, since a dataset was written at a time of the tables, who is in it: no machine's clock is asked."""
    inside = set(catalog.dataset().columns["case_id"])
    for case_id, n in catalog.exclusion_changes().items():
        if n % 2 and case_id in inside:
            return True
        if n % 2 == 0 and case_id not in inside:
            stamp = catalog.stamp(ReaderDecision, case_id)
            if stamp is not None and stamp[0] >= time_ns:
                return True
    return False
