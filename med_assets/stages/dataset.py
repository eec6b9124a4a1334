"""The dataset's manifest and the split of its patients."""

from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from med_assets import program
from med_assets.files import digest
from med_assets.settings import Workspace
from med_assets.splits import SplitPolicy, assign
from med_assets.stages.alone import alone
from med_assets.stages.result import QUARANTINED, StageResult, accepted, tally, to_predict, usable
from med_assets.stages.scan import identity_left
from med_assets.versions import versioned

DATASET_COLUMNS = (
    "program",
    "case_id",
    "patient_id",
    "version",
    "content_hash",
    "artifact",
    "given_split",
    "synthetic",
)


MAX_PICTURED = 6
"""Findings between cases that are shown as pictures; all are told."""


def withdraw(ws: Workspace, program_name: str, case_id: str, reason: str) -> None:
    """Take a case out of the dataset for good; its rows and artifacts stay for those who ask what happened."""
    row = {"program": program_name, "case_id": case_id, "reason": reason}
    ws.lake.write("withdrawals", f"{program_name}/{case_id}", [row])


@versioned("1")
def dataset(ws: Workspace, program_name: str) -> StageResult:
    """Write the manifest: the newest accepted version of every case that was not withdrawn, sorted by case.

    A case in whose stored files the scan found anything that may identify a patient is left out, whatever its batch's gate
    has stopped so far: another batch may have started this run. Of cases with the same images and contours, which batches
    taken in at once or out of order do not see of each other, one is in: that of the present manifest, else the first batch's.

    Of several processes at once the last to write has read what all of them prepared.
    """
    with alone(ws, f"dataset-{program_name}"):
        return _dataset(ws, program_name)


def _dataset(ws: Workspace, program_name: str) -> StageResult:
    withdrawn = {row["case_id"] for row in ws.lake.rows("withdrawals", program_name)}
    latest: dict[str, dict[str, Any]] = {}
    superseded = 0
    for row in sorted(accepted(ws.lake.rows("prepared_cases", program_name)), key=lambda row: row["batch"]):
        earlier = latest.get(row["case_id"])
        superseded += earlier is not None and earlier["version"] != row["version"]
        latest[row["case_id"]] = row
    raw = {(row["batch"], row["case_id"]): row["artifact"] for row in accepted(ws.lake.rows("raw_cases", program_name))}
    identified = {
        case_id
        for case_id, row in latest.items()
        if (row["batch"], case_id) in raw and identity_left(ws, program_name, raw[row["batch"], case_id])
    }
    before = {row["case_id"]: row["artifact"] for row in ws.lake.rows("dataset", program_name)}
    duplicates = _duplicates(latest, before)
    rows = [
        {name: latest[case_id][name] for name in DATASET_COLUMNS}
        for case_id in sorted(latest)
        if case_id not in withdrawn | identified | duplicates
    ]
    ws.lake.write("dataset", program_name, rows)
    ws.lake.write_catalog(ws.home / "catalog.duckdb")
    labels = ["reused" if before.get(row["case_id"]) == row["artifact"] else "new" for row in rows]
    return StageResult(
        data_version=dataset_version(rows),
        counts=tally(labels)
        | {
            "superseded": superseded,
            "withdrawn": len(withdrawn),
            "identified": len(identified),
            "duplicates": len(duplicates),
        },
        summary={
            "cases": len(rows),
            "patients": len({row["patient_id"] for row in rows}),
            "synthetic": sum(row["synthetic"] for row in rows),
        },
        tables={
            **{table.title: table.rows for table in _data_tables(ws, program_name)},
            "cases": pd.DataFrame(rows, columns=list(DATASET_COLUMNS)),
        },
    )


def unlabelled(ws: Workspace, program_name: str) -> list[dict[str, Any]]:
    """Rows like those of the dataset of the cases to predict: the newest version of each that never came with a label.

    What was withdrawn, or may hold identity, is left out, as are copies of cases of the dataset.
    """
    prepared = ws.lake.rows("prepared_cases", program_name)
    latest = {row["case_id"]: row for row in sorted(to_predict(prepared), key=lambda row: row["batch"])}
    raw = {(row["batch"], row["case_id"]): row["artifact"] for row in usable(ws.lake.rows("raw_cases", program_name))}
    left_out = {row["case_id"] for row in ws.lake.rows("withdrawals", program_name)}
    left_out |= {row["case_id"] for row in accepted(prepared)}
    return [
        {name: row[name] for name in (*DATASET_COLUMNS, "batch")}
        for case_id, row in sorted(latest.items())
        if case_id not in left_out and not identity_left(ws, program_name, raw[row["batch"], case_id])
    ]


def _data_tables(ws: Workspace, program_name: str) -> list[program.ReportTable]:
    return program.get(program_name).data_tables(described(ws, program_name), refused(ws, program_name))


def described(ws: Workspace, program_name: str) -> list[dict[str, Any]]:
    """Rows of the dataset with split and fold, None where the patient has none yet, and the facts of the case."""
    places = {row["patient_id"]: row for row in ws.lake.rows("splits", program_name)}
    facts = {
        (row["case_id"], row["version"]): row for row in ws.lake.rows(program.fact_table(program_name), program_name)
    }
    names = program.get(program_name).facts
    return [
        row
        | {name: places.get(row["patient_id"], {}).get(name) for name in ("split", "fold")}
        | {name: facts.get((row["case_id"], row["version"]), {}).get(name) for name in names}
        for row in ws.lake.rows("dataset", program_name)
    ]


def findings(ws: Workspace, program_name: str) -> list[program.Finding]:
    """What the program finds wrong between the cases of the dataset, the blocking first."""
    cases = described(ws, program_name)
    found = program.get(program_name).dataset_findings(ws, cases)
    return sorted(found, key=lambda finding: (not finding.blocking, finding.cases))


def finding_pictures(ws: Workspace, program_name: str, found: Sequence[program.Finding]) -> dict[str, Path]:
    """Pictures of the first MAX_PICTURED findings, by their text, drawn where they are not yet."""
    pictures = {}
    for finding in found[:MAX_PICTURED]:
        path = ws.reports / program_name / "findings" / f"{digest(finding.code, finding.text)}.png"
        if finding.draw is not None:
            pictures[finding.text] = path if path.is_file() else finding.draw(path)
    return pictures


def refused(ws: Workspace, program_name: str) -> list[dict[str, Any]]:
    """Rows of everything that intake or preparation quarantined."""
    rows = [*ws.lake.rows("raw_cases", program_name), *ws.lake.rows("prepared_cases", program_name)]
    return [row for row in rows if row["status"] == QUARANTINED]


def _duplicates(latest: Mapping[str, Mapping[str, Any]], present: Container[str]) -> set[str]:
    """Cases whose images and contours another case has too, all but the one that counts."""
    owner: dict[str, str] = {}
    for case_id in sorted(latest, key=lambda case_id: (case_id not in present, latest[case_id]["batch"], case_id)):
        owner.setdefault(latest[case_id]["content_hash"], case_id)
    return {case_id for case_id, row in latest.items() if owner[row["content_hash"]] != case_id}


def dataset_version(rows: list[dict[str, Any]]) -> str:
    """Hash of what the cases are: ids, patients, versions and prepared content."""
    return digest(
        [[row["case_id"], row["patient_id"], row["version"], row["artifact"], row["synthetic"]] for row in rows]
    )


def split_policy(program_name: str) -> SplitPolicy:
    """The policy in `conf/<program>/_program.yaml`."""
    return SplitPolicy.model_validate(program.config(program_name).get("splits", {}))


def splits(ws: Workspace, program_name: str) -> StageResult:
    """Assign new patients; what was assigned before stays where it is, also when another process assigns at once."""
    with alone(ws, f"dataset-{program_name}"):
        return _splits(ws, program_name)


def _splits(ws: Workspace, program_name: str) -> StageResult:
    cases = ws.lake.rows("dataset", program_name)
    earlier = ws.lake.rows("splits", program_name)
    policy = split_policy(program_name)
    given = ws.option(program_name, "split_policy", policy.policy)
    policy = SplitPolicy.model_validate(policy.model_dump() | {"policy": given})
    fixed = program.get(program_name).fixed_splits(ws) if given == "fixed" else {}
    rows, problems = assign(cases, earlier, policy, fixed)
    rows = [{"program": program_name} | row for row in rows]
    ws.lake.write("splits", program_name, rows)
    present = {case["patient_id"] for case in cases}
    sizes = (
        pd.Series([row["split"] for row in rows if row["patient_id"] in present], dtype=str).value_counts().to_dict()
    )
    return StageResult(
        # What depends on the splits reads their cases too: a corrected label of a held-out case changes no assignment.
        data_version=digest(dataset_version(cases), rows, sorted(problems)),
        counts=tally(
            "new" if row["patient_id"] not in {old["patient_id"] for old in earlier} else "reused" for row in rows
        ),
        summary={"patients_per_split": sizes, "unassigned": problems},
        tables={
            **{table.title: table.rows for table in _data_tables(ws, program_name)},
            "splits": pd.DataFrame(rows),
        },
    )


def up_to_date(ws: Workspace, program_name: str) -> bool:
    """Whether dataset and splits were written after all that they are made of, by the times of files, and every patient is assigned."""
    lake = ws.lake
    inputs = [
        stamp[0]
        for table in ("prepared_cases", "withdrawals")
        for partition in lake.partitions(table, program_name)
        if (stamp := lake.stamp(table, partition)) is not None
    ]
    made, assigned = (lake.stamp(table, program_name) for table in ("dataset", "splits"))
    if not inputs:
        return True
    if made is None or assigned is None or made[0] < max(inputs) or assigned[0] < made[0]:
        return False
    return {row["patient_id"] for row in lake.rows("dataset", program_name)} <= {
        row["patient_id"] for row in lake.rows("splits", program_name)
    }


def cases_of(ws: Workspace, program_name: str) -> list[dict[str, Any]]:
    """Rows of the dataset with the split and fold of their patient; cases of unassigned patients are left out."""
    places = {row["patient_id"]: row for row in ws.lake.rows("splits", program_name)}
    return [
        row | {"split": places[row["patient_id"]]["split"], "fold": places[row["patient_id"]]["fold"]}
        for row in ws.lake.rows("dataset", program_name)
        if row["patient_id"] in places
    ]
