"""Preparation: stored DICOM of a batch becomes arrays and measured facts; cases that fail the audit are quarantined."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from med_assets import program
from med_assets.catalog import CaseFacts, Catalog, FactValue, usable
from med_assets.errors import CaseRejected
from med_assets.intake.reader import Readers
from med_assets.intake.reading import FACTS_FILE, Preparation
from med_assets.preparation.expectations import INDEX, LOSSLESS, Expectation, run_suite
from med_assets.records import USABLE, CaseVersion, PreparedCase, Status
from med_assets.settings import Workspace
from med_assets.storage.files import digest, read_json, replacing
from med_assets.storage.result import StageResult, reasons, tally

RAW_MISSING = "expected the case's stored DICOM, got nothing, as it is no longer in the store; `med-assets verify` says how to get it back"


def quarantine_picture(ws: Workspace, case: CaseVersion | PreparedCase) -> Path:
    """Where the picture of a quarantined case version is, if its rejection came with one."""
    return ws.reports / case.program / "quarantine" / f"{case.case_id}-{case.version}.png"


def prepared_key(ws: Workspace, program_name: str, raw: CaseVersion) -> str:
    """Key of a prepared case: the raw content, the configuration and the code that prepares it."""
    chosen = program.get(program_name)
    return "prepared/" + digest(raw.artifact, raw.case_id, chosen.settings(ws), chosen.code_versions["prepare"])


def _prepare_case(
    ws: Workspace, readers: Readers, program_name: str, raw: CaseVersion
) -> tuple[PreparedCase, Mapping[str, FactValue], str]:
    """The case, its facts, and a label (new, reused or quarantined)."""
    key, label = prepared_key(ws, program_name, raw), "reused"
    kept = {each.name: getattr(raw, each.name) for each in PreparedCase.columns() if hasattr(raw, each.name)}
    case = PreparedCase(**{**kept, "artifact": key, "warnings": None})
    try:
        if not ws.store.has(key):
            if not ws.store.has(raw.artifact):
                raise CaseRejected("raw_missing", RAW_MISSING)
            with ws.store.create(key) as folder:
                readers.prepare(Preparation(ws, program_name, raw.case_id, ws.store.fetch(raw.artifact), folder))
            label = "new"
        return case, read_json(ws.store.fetch(key) / FACTS_FILE), label
    except CaseRejected as rejected:
        code, reason = rejected.code, rejected.message
        if rejected.picture is not None:
            path = quarantine_picture(ws, case)
            with replacing(path) as temporary:
                temporary.write_bytes(rejected.picture)
            reason += f" See {path.relative_to(ws.home).as_posix()}."
    refused = replace(case, status=Status.QUARANTINED, reason_code=code, reason=reason, artifact="")
    return refused, {}, "quarantined"


def suite(ws: Workspace, program_name: str, *, labelled: bool) -> list[Expectation]:
    """What the facts of a case are held against; that a fact is known at all is asked of labelled cases alone."""
    expectations = [*program.get(program_name).expectations(ws), LOSSLESS]
    return [one for one in expectations if labelled or one.kind != "ExpectColumnValuesToNotBeNull"]


@dataclass(frozen=True)
class Audited:
    """What the facts of one case fail of the audit, as "expected ..., got FACT = VALUE": errors, and warnings."""

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def audited(
    ws: Workspace, program_name: str, facts: Sequence[Mapping[str, Any]], *, labelled: bool
) -> dict[str, Audited]:
    """Hold the facts of cases, with the id of each as `case_id`, against the audit; the cases that fail any of it, by id."""
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


def pictured(ws: Workspace, cases: Iterable[CaseVersion | PreparedCase]) -> list[CaseVersion | PreparedCase]:
    """Quarantined cases of which there is a picture."""
    return [case for case in cases if case.status == Status.QUARANTINED and quarantine_picture(ws, case).is_file()]


def _audit(
    ws: Workspace, program_name: str, cases: Sequence[PreparedCase], facts: Mapping[str, Mapping[str, FactValue]]
) -> list[PreparedCase]:
    """The cases, those quarantined whose facts fail an expectation of severity error, and the others with their warnings."""
    found: dict[str, Audited] = {}
    for status in USABLE:
        measured = [{"case_id": case.case_id, **facts[case.case_id]} for case in cases if case.status == status]
        if measured:
            found |= audited(ws, program_name, measured, labelled=status == Status.OK)
    out = []
    for case in cases:
        failed = found.get(case.case_id) if case.status in USABLE else None
        if failed is not None and failed.errors:
            reason = "; ".join(failed.errors)
            out.append(replace(case, status=Status.QUARANTINED, reason_code="audit_failed", reason=reason))
        else:
            out.append(case if failed is None else replace(case, warnings="\n".join(failed.warnings)))
    return out


def prepare(ws: Workspace, program_name: str, batch: str) -> StageResult:
    """Prepare and audit the accepted cases of one batch; work already in the store is not done again."""
    catalog = Catalog(ws, program_name)
    cases: list[PreparedCase] = []
    facts: dict[str, dict[str, FactValue]] = {}
    labels = []
    with Readers(ws) as readers:
        for raw in usable(catalog.case_versions(batch)):
            case, measured, label = _prepare_case(ws, readers, program_name, raw)
            cases.append(case)
            labels.append(label)
            if case.status != Status.QUARANTINED:
                facts[case.case_id] = {name: measured.get(name) for name in program.get(program_name).facts}
    versions = {case.case_id: case.version for case in cases}
    cases = _audit(ws, program_name, cases, facts)
    rejected = sum(case.status == Status.QUARANTINED for case in cases)
    warned = [{"case_id": case.case_id, "warning": text} for case in cases for text in case.warning_lines]
    kept = [CaseFacts(batch, case_id, versions[case_id], values) for case_id, values in facts.items()]
    catalog.replace_facts(kept, batch)
    catalog.replace(PreparedCase, cases, batch)
    return StageResult(
        data_version=digest(
            [[case.case_id, case.version, case.status, case.artifact, case.reason_code] for case in cases]
        ),
        counts=tally(labels) | {"quarantined": rejected},
        summary={
            "cases": len(cases),
            "accepted": len(cases) - rejected,
            "accepted with audit warnings": len({row["case_id"] for row in warned}),
        },
        tables={
            "quarantine": reasons(cases),
            "warnings": pd.DataFrame(warned, columns=["case_id", "warning"]),
            "facts": catalog.facts_frame(batch),
        },
        images={f"quarantine {case.case_id}": quarantine_picture(ws, case) for case in pictured(ws, cases)},
    )
