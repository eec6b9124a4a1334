"""Preparation: stored DICOM of a batch becomes arrays and measured facts; cases that fail the audit are quarantined."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from med_assets import program
from med_assets.errors import CaseRejected
from med_assets.files import digest, read_json, replacing
from med_assets.settings import Workspace
from med_assets.stages.reader import Readers
from med_assets.stages.reading import FACTS_FILE, Preparation
from med_assets.stages.result import OK, QUARANTINED, TO_PREDICT, StageResult, reasons, tally, usable

if TYPE_CHECKING:
    from med_assets.audit.expectations import Expectation

RAW_MISSING = (
    "expected the case's stored DICOM, but it is no longer in the store; `med-assets verify` says how to get it back"
)


def quarantine_picture(ws: Workspace, row: Mapping[str, Any]) -> Path:
    """Where the picture of a quarantined case version is, if its rejection came with one."""
    return ws.reports / row["program"] / "quarantine" / f"{row['case_id']}-{row['version']}.png"


def prepared_key(ws: Workspace, program_name: str, raw: dict[str, Any]) -> str:
    """Key of a prepared case: the raw content, the configuration and the code that prepares it."""
    chosen = program.get(program_name)
    return "prepared/" + digest(raw["artifact"], raw["case_id"], chosen.settings(ws), chosen.code_versions["prepare"])


def _prepare_case(
    ws: Workspace, readers: Readers, program_name: str, raw: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Row, facts and label (new, reused or quarantined) of one case."""
    columns = ("program", "batch", "case_id", "patient_id", "version", "content_hash", "given_split", "synthetic")
    row = {name: raw[name] for name in (*columns, "status")} | {"reason_code": None, "reason": None}
    key, label = prepared_key(ws, program_name, raw), "reused"
    try:
        if not ws.store.has(key):
            if not ws.store.has(raw["artifact"]):
                raise CaseRejected("raw_missing", RAW_MISSING)
            with ws.store.create(key) as folder:
                readers.prepare(Preparation(ws, program_name, raw["case_id"], ws.store.fetch(raw["artifact"]), folder))
            label = "new"
        return row | {"artifact": key}, read_json(ws.store.fetch(key) / FACTS_FILE), label
    except CaseRejected as rejected:
        failure = {"reason_code": rejected.code, "reason": rejected.message}
        if rejected.picture is not None:
            path = quarantine_picture(ws, row)
            with replacing(path) as temporary:
                temporary.write_bytes(rejected.picture)
            failure["reason"] += f" See {path.relative_to(ws.home).as_posix()}."
    return row | failure | {"status": QUARANTINED, "artifact": ""}, {}, "quarantined"


def suite(ws: Workspace, program_name: str, *, labelled: bool) -> list["Expectation"]:
    """What the facts of a case are held against; that a fact is known at all is asked of labelled cases alone."""
    return [
        one for one in program.get(program_name).audit(ws) if labelled or one.kind != "ExpectColumnValuesToNotBeNull"
    ]


def audited(ws: Workspace, program_name: str, case_id: str, facts: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What the facts of one case without a label fail of the audit: expectations of severity error, and those worth a look."""
    from med_assets.audit.expectations import run_suite

    chosen = program.get(program_name)
    frame = pd.DataFrame([{"case_id": case_id} | {name: facts.get(name) for name in chosen.facts}])
    failed: dict[str, list[str]] = {"error": [], "warn": []}
    for one in run_suite(frame, suite(ws, program_name, labelled=False)).results:
        if one.failing:
            expectation = one.expectation
            value = chosen.facts[expectation.column].written(facts.get(expectation.column))
            failed[expectation.severity].append(f"expected {expectation.meaning}, got {expectation.column} = {value}")
    return failed["error"], failed["warn"]


def pictured(ws: Workspace, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Quarantined rows of which there is a picture."""
    return [row for row in rows if row["status"] == QUARANTINED and quarantine_picture(ws, row).is_file()]


def _audit(ws: Workspace, program_name: str, rows: list[dict[str, Any]], facts: list[dict[str, Any]]) -> None:
    """Quarantine rows whose facts fail an expectation of severity error."""
    for status in (OK, TO_PREDICT):
        chosen = [row for row in rows if row["status"] == status]
        known = {row["case_id"] for row in chosen}
        _audit_alike(ws, program_name, chosen, [row for row in facts if row["case_id"] in known], status == OK)


def _audit_alike(
    ws: Workspace, program_name: str, rows: list[dict[str, Any]], facts: list[dict[str, Any]], labelled: bool
) -> None:
    from med_assets.audit.expectations import run_suite

    if not facts:
        return
    specs, of_case = program.get(program_name).facts, {row["case_id"]: row for row in facts}
    result = run_suite(pd.DataFrame(facts), suite(ws, program_name, labelled=labelled))
    failed: dict[str, list[str]] = {}
    for outcome in result.results:
        expectation = outcome.expectation
        if expectation.severity == "error":
            for case_id in outcome.failing:
                value = specs[expectation.column].written(of_case[case_id][expectation.column])
                failed.setdefault(case_id, []).append(
                    f"expected {expectation.meaning}, got {expectation.column} = {value}"
                )
    for row in rows:
        if row["case_id"] in failed:
            row |= {"status": QUARANTINED, "reason_code": "audit_failed", "reason": "; ".join(failed[row["case_id"]])}


def prepare(ws: Workspace, program_name: str, batch: str) -> StageResult:
    """Prepare and audit the accepted cases of one batch; work already in the store is not done again."""
    partition = f"{program_name}/{batch}"
    rows, facts, labels = [], [], []
    with Readers(ws) as readers:
        for raw in usable(ws.lake.rows("raw_cases", partition)):
            row, measured, label = _prepare_case(ws, readers, program_name, raw)
            rows.append(row)
            labels.append(label)
            if row["status"] != QUARANTINED:
                keys = {name: row[name] for name in ("program", "batch", "case_id", "version")}
                facts.append(keys | {name: measured.get(name) for name in program.get(program_name).facts})
    _audit(ws, program_name, rows, facts)
    rejected = sum(row["status"] == QUARANTINED for row in rows)
    ws.lake.write(program.fact_table(program_name), partition, facts)
    ws.lake.write("prepared_cases", partition, rows)
    versions = [[row["case_id"], row["version"], row["status"], row["artifact"], row["reason_code"]] for row in rows]
    return StageResult(
        data_version=digest(versions),
        counts=tally(labels) | {"quarantined": rejected},
        summary={"cases": len(rows), "accepted": len(rows) - rejected},
        tables={"quarantine": reasons(rows), "facts": pd.DataFrame(facts)},
        images={f"quarantine {row['case_id']}": quarantine_picture(ws, row) for row in pictured(ws, rows)},
    )
