"""Preparation: stored DICOM of a batch becomes arrays and measured facts; cases that fail the audit are quarantined."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pandas as pd

from med_assets import program
from med_assets.catalog import CaseFacts, Catalog, FactValue, reasons, usable
from med_assets.errors import CaseRejected
from med_assets.intake.reading import FACTS_FILE, Preparation
from med_assets.intake.workers import Workers, side_by_side
from med_assets.landing import batches
from med_assets.preparation import audit
from med_assets.preparation.expectations import import_ahead
from med_assets.records import BatchAudit, CaseVersion, PreparedCase, Status
from med_assets.settings import Settings, Workspace
from med_assets.storage.files import digest, read_json, replacing, write_json
from med_assets.storage.result import StageResult, tally
from med_assets.storage.versions import declared

ORIGIN_FILE = "origin.json"

RAW_MISSING = "expected the case's stored DICOM, got nothing, as it is no longer in the store; `med-assets verify` says how to get it back"


def quarantine_picture(ws: Settings, case: CaseVersion | PreparedCase) -> Path:
    """Where the picture of a quarantined case version is, if its rejection came with one."""
    return ws.reports / case.program / "quarantine" / f"{case.case_id}-{case.version}.png"


def prepared_key(ws: Settings, program_name: str, raw: CaseVersion) -> str:
    """Key of a prepared case: the raw content, the configuration and the code that prepares it."""
    chosen = program.get(program_name)
    return "prepared/" + digest(raw.artifact, raw.case_id, chosen.settings(ws), chosen.code_versions["prepare"])


def _prepare_case(
    ws: Workspace, program_name: str, workers: Workers, raw: CaseVersion
) -> tuple[PreparedCase, Mapping[str, FactValue], str]:
    """The case, its facts, and a label (new, reused or quarantined)."""
    key, label = prepared_key(ws, program_name, raw), "reused"
    kept = {each.name: getattr(raw, each.name) for each in PreparedCase.columns() if hasattr(raw, each.name)}
    case = PreparedCase(**{**kept, "artifact": key, "warnings": None})
    try:
        if not ws.store.has(key):
            if not ws.store.has(raw.artifact):
                raise CaseRejected("raw_missing", RAW_MISSING)
            with ws.store.create(key) as folder, workers.borrow() as readers:
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


def pictured(ws: Settings, cases: Iterable[CaseVersion | PreparedCase]) -> list[CaseVersion | PreparedCase]:
    """Quarantined cases of which there is a picture."""
    return [case for case in cases if case.status == Status.QUARANTINED and quarantine_picture(ws, case).is_file()]


def origin(ws: Settings, raw: str) -> Mapping[str, FactValue]:
    """Facts of what made the images of a stored case, read once; none where the case is no longer in the store."""
    key = "origin/" + digest(raw, declared("med_assets.dicom.origin", "origin_of"))
    if not ws.store.has(key):
        if not ws.store.has(raw):
            return {}
        from med_assets.dicom.origin import origin_of

        with ws.store.create(key) as folder:
            write_json(folder / ORIGIN_FILE, asdict(origin_of(ws.store.fetch(raw))))
    found: dict[str, FactValue] = read_json(ws.store.fetch(key) / ORIGIN_FILE)
    return found


def prepare(ws: Workspace, program_name: str, batch: str) -> StageResult:
    """Prepare and audit the accepted cases of one batch; work already in the store is not done again.

    In a shared home a process that comes second waits, and finds what the first one stored.
    """
    with batches.alone_with(ws, program_name, batch):
        return _prepare(ws, program_name, batch)


def _prepare(ws: Workspace, program_name: str, batch: str) -> StageResult:
    catalog = Catalog(ws, program_name)
    cases: list[PreparedCase] = []
    facts: dict[str, dict[str, FactValue]] = {}
    labels = []
    to_prepare = usable(catalog.case_versions(batch))
    raw_artifacts = {raw.case_id: raw.artifact for raw in to_prepare}
    work = partial(_prepare_case, ws, program_name)
    if to_prepare:
        import_ahead()
    prepared = side_by_side(ws, to_prepare, work, "preparing", size=lambda raw: raw.n_instances)
    for case, measured, label in prepared:
        cases.append(case)
        labels.append(label)
        if case.status != Status.QUARANTINED:
            found = {**measured, **origin(ws, raw_artifacts[case.case_id])}
            facts[case.case_id] = {name: found.get(name) for name in program.get(program_name).facts}
    versions = {case.case_id: case.version for case in cases}
    cases = audit.audit_cases(ws, program_name, cases, facts)
    rejected = sum(case.status == Status.QUARANTINED for case in cases)
    warned = [{"case_id": case.case_id, "warning": text} for case in cases for text in case.warning_lines]
    kept = [CaseFacts(batch, case_id, versions[case_id], values) for case_id, values in facts.items()]
    catalog.replace_facts(kept, batch)
    batch_audit = audit.audit_batch(ws, program_name, batch, cases)
    catalog.replace(BatchAudit, [batch_audit], batch)
    catalog.replace(PreparedCase, cases, batch)
    return StageResult(
        data_version=digest(
            [[case.case_id, case.version, case.status, case.artifact, case.reason_code] for case in cases],
            *(["held back"] if batch_audit.held_back else []),
        ),
        counts=tally(labels) | {"quarantined": rejected},
        summary={
            "cases": len(cases),
            "accepted": len(cases) - rejected,
            "quarantined of the batch": f"{batch_audit.n_quarantined} of {batch_audit.n_cases}",
            "accepted with audit warnings": len({row["case_id"] for row in warned}),
        },
        tables={
            "quarantine": reasons(cases),
            "warnings": pd.DataFrame(warned, columns=["case_id", "warning"]),
            "facts": catalog.facts_frame(batch),
        },
        images={f"quarantine {case.case_id}": quarantine_picture(ws, case) for case in pictured(ws, cases)},
    )
