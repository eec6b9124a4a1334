"""Preparation: stored DICOM of a batch becomes arrays and measured facts; cases that fail the audit are quarantined."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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

RAW_MISSING = "expected the case's stored DICOM, got nothing, as it is no longer in the store; `med-assets verify` says how to get it back"


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


@dataclass(frozen=True)
class Audited:
    """What the facts of one case fail of the audit, as "expected ..., got FACT = VALUE": errors, and warnings."""

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def audited(
    ws: Workspace, program_name: str, facts: Sequence[Mapping[str, Any]], *, labelled: bool
) -> dict[str, Audited]:
    """Hold the facts of cases, with the id of each as `case_id`, against the audit; the cases that fail any of it, by id."""
    from med_assets.audit.expectations import INDEX, run_suite

    specs = program.get(program_name).facts
    frame = pd.DataFrame([dict(row) for row in facts], columns=[INDEX, *specs])
    of_case = {row[INDEX]: row for row in facts}
    found: dict[str, Audited] = {}
    for outcome in run_suite(frame, suite(ws, program_name, labelled=labelled)).results:
        expectation, column = outcome.expectation, outcome.expectation.column
        for case_id in outcome.failing:
            value = specs[column].written(of_case[case_id].get(column))
            text, before = f"expected {expectation.meaning}, got {column} = {value}", found.get(case_id, Audited())
            found[case_id] = (
                replace(before, errors=(*before.errors, text))
                if expectation.severity == "error"
                else replace(before, warnings=(*before.warnings, text))
            )
    return found


def warnings_of(row: Mapping[str, Any]) -> list[str]:
    """The audit's warnings in a row of `prepared_cases`."""
    return (row.get("warnings") or "").splitlines()


def pictured(ws: Workspace, rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Quarantined rows of which there is a picture."""
    return [row for row in rows if row["status"] == QUARANTINED and quarantine_picture(ws, row).is_file()]


def _audit(ws: Workspace, program_name: str, rows: list[dict[str, Any]], facts: list[dict[str, Any]]) -> None:
    """Quarantine rows whose facts fail an expectation of severity error, and write the warnings into the others."""
    for status in (OK, TO_PREDICT):
        chosen = {row["case_id"]: row for row in rows if row["status"] == status}
        measured = [row for row in facts if row["case_id"] in chosen]
        found = audited(ws, program_name, measured, labelled=status == OK) if measured else {}
        for case_id, failed in found.items():
            if failed.errors:
                reason = {"reason_code": "audit_failed", "reason": "; ".join(failed.errors)}
                chosen[case_id] |= {"status": QUARANTINED} | reason
            else:
                chosen[case_id]["warnings"] = "\n".join(failed.warnings)


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
    warned = [{"case_id": row["case_id"], "warning": text} for row in rows for text in warnings_of(row)]
    ws.lake.write(program.fact_table(program_name), partition, facts)
    ws.lake.write("prepared_cases", partition, rows)
    versions = [[row["case_id"], row["version"], row["status"], row["artifact"], row["reason_code"]] for row in rows]
    return StageResult(
        data_version=digest(versions),
        counts=tally(labels) | {"quarantined": rejected},
        summary={
            "cases": len(rows),
            "accepted": len(rows) - rejected,
            "accepted with audit warnings": len({row["case_id"] for row in warned}),
        },
        tables={
            "quarantine": reasons(rows),
            "warnings": pd.DataFrame(warned, columns=["case_id", "warning"]),
            "facts": pd.DataFrame(facts),
        },
        images={f"quarantine {row['case_id']}": quarantine_picture(ws, row) for row in pictured(ws, rows)},
    )
