"""The audit of prepared cases: facts against expectations, case by case, and the quarantined share of a batch against a policy.

It reads facts and infers nothing from pixels, so that changed expectations or limits audit again and prepare nothing.
"""

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from med_assets import program
from med_assets.catalog import Catalog, FactValue
from med_assets.deidentification.audit_trail import Kind
from med_assets.deidentification.audited_rows import write_row
from med_assets.errors import ConfigurationError
from med_assets.preparation.expectations import INDEX, LOSSLESS, Expectation, run_suite
from med_assets.records import USABLE, BatchAudit, PreparedCase, Status
from med_assets.settings import Settings
from med_assets.storage.files import digest
from med_assets.storage.memo import Memo
from med_assets.storage.versions import part_of, version_of, versioned

KNOWN = "ExpectColumnValuesToNotBeNull"
"""The kind of expectation that is asked of labelled cases alone: facts of a label are not known of others."""


class AuditPolicy(BaseModel):
    """When a batch is kept out of the dataset as a whole: most of it refused points to a broken export, not to bad cases."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_quarantined_share: float = Field(
        default=0.5, ge=0, le=1, description="greatest share of a batch's cases that may be quarantined, 0 to 1"
    )
    min_cases: int = Field(
        default=10, ge=1, description="batches of fewer cases are never kept out, a warning is shown; count"
    )


def policy_of(program_name: str) -> AuditPolicy:
    """The policy in `conf/<program>/_program.yaml`. Raises ConfigurationError that names the field."""
    try:
        return AuditPolicy.model_validate(program.config(program_name).get("audit") or {})
    except ValidationError as error:
        raise ConfigurationError(f"conf/{program_name}/_program.yaml: audit: {error}") from error


def expectations_of(ws: Settings, program_name: str) -> list[Expectation]:
    """All that the facts of a case are held against: the program's own expectations, and what holds for every program."""
    return [*program.get(program_name).expectations(ws), LOSSLESS]


@dataclass(frozen=True)
class Audited:
    """What the facts of one case fail of the audit, as "expected ..., got FACT = VALUE": errors, and warnings."""

    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def audited(
    ws: Settings, program_name: str, facts: Sequence[Mapping[str, Any]], unlabelled: Container[str] = ()
) -> dict[str, Audited]:
    """Hold the facts of cases, with the id of each as `case_id`, against the audit; the cases that fail any of it, by id.

    That a fact is known at all is not asked of the cases that are `unlabelled`.
    """
    specs, expectations = program.get(program_name).facts, expectations_of(ws, program_name)
    columns = (INDEX, *specs)
    rows = [{name: row[name] for name in columns if name in row} for row in facts]
    key = digest(repr(expectations), columns, repr(rows))
    failing = _failing.get(key, partial(_failing_cases, expectations, columns, rows))
    of_case = {row[INDEX]: row for row in facts}
    found: dict[str, Audited] = {}
    for expectation, case_ids in zip(expectations, failing, strict=True):
        column = expectation.column
        for case_id in case_ids:
            if expectation.kind == KNOWN and case_id in unlabelled:
                continue
            value = specs[column].written(of_case[case_id].get(column))
            text, before = f"expected {expectation.meaning}, got {column} = {value}", found.get(case_id, Audited())
            found[case_id] = (
                replace(before, errors=(*before.errors, text))
                if expectation.severity == "error"
                else replace(before, warnings=(*before.warnings, text))
            )
    return found


_failing: Memo[tuple[tuple[str, ...], ...]] = Memo()
"""By expectations and facts the cases that fail each: a batch is audited whenever it is prepared again, mostly with the facts that it had."""


def _failing_cases(
    expectations: Sequence[Expectation], columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> tuple[tuple[str, ...], ...]:
    """The ids of the cases that fail each expectation, by Great Expectations."""
    import pandas as pd

    return tuple(
        outcome.failing for outcome in run_suite(pd.DataFrame(rows, columns=list(columns)), expectations).results
    )


GOT = re.compile(r", got (\w+) = ")
"""Where a text of `audited` names its fact."""


def facts_flagged(text: str) -> set[str]:
    """The facts that a reason or the warnings of an audited case name, as `audited` writes them."""
    return set(GOT.findall(text))


@versioned("1")
def audit_cases(
    ws: Settings, program_name: str, cases: Sequence[PreparedCase], facts: Mapping[str, Mapping[str, FactValue]]
) -> list[PreparedCase]:
    """The cases, those quarantined whose facts fail an expectation of severity error, and the others with their warnings."""
    measured = [{INDEX: case.case_id, **facts[case.case_id]} for case in cases if case.status in USABLE]
    unlabelled = {case.case_id for case in cases if case.status == Status.TO_PREDICT}
    found = audited(ws, program_name, measured, unlabelled) if measured else {}
    out = []
    for case in cases:
        failed = found.get(case.case_id) if case.status in USABLE else None
        if failed is not None and failed.errors:
            reason = "; ".join(failed.errors)
            out.append(replace(case, status=Status.QUARANTINED, reason_code="audit_failed", reason=reason))
        else:
            out.append(case if failed is None else replace(case, warnings="\n".join(failed.warnings)))
    return out


@part_of("preparation.audit.audit_cases")
def audit_batch(ws: Settings, program_name: str, batch: str, prepared: Sequence[PreparedCase]) -> BatchAudit:
    """Hold the quarantined share of a batch against the policy; what a person accepted before stays accepted."""
    catalog, policy = Catalog(ws, program_name), policy_of(program_name)
    raw = [row for row in catalog.case_versions(batch) if row.status != Status.NOTE]
    refused = sum(row.status == Status.QUARANTINED for row in raw)
    refused += sum(case.status == Status.QUARANTINED for case in prepared)
    earlier = catalog.audit(batch)
    accepted = earlier.accepted_because if earlier else None
    found = BatchAudit(
        program=program_name,
        batch=batch,
        n_cases=len(raw),
        n_quarantined=refused,
        max_quarantined_share=policy.max_quarantined_share,
        min_cases=policy.min_cases,
        held_back=False,
        accepted_because=accepted,
    )
    too_many = found.n_cases >= policy.min_cases and found.quarantined_share > policy.max_quarantined_share
    return replace(found, held_back=too_many and accepted is None)


def accept_batch(ws: Settings, program_name: str, batch: str, reason: str) -> BatchAudit:
    """Let a batch into the dataset whatever its quarantined share; a person looked at it, and says why.

    Raises ConfigurationError for no reason, and for a batch that was not prepared.
    """
    if not reason.strip():
        raise ConfigurationError("expected a reason why the batch is accepted, got none; it is kept with the batch")
    catalog = Catalog(ws, program_name)
    found = catalog.audit(batch)
    if found is None:
        known = [audit.batch for audit in catalog.rows(BatchAudit) if audit.held_back]
        raise ConfigurationError(
            f"expected a batch of {program_name} that was audited, got {batch}; held back are {known}"
        )
    found = replace(found, held_back=False, accepted_because=reason.strip())
    write_row(ws, Kind.ACCEPTED, found)
    return found


def version(ws: Settings, program_name: str) -> str:
    """Version of the audit: of its code, the expectations and the policy."""
    expectations = [asdict(each) for each in expectations_of(ws, program_name)]
    return f"{version_of(audit_cases)}-{digest(expectations, policy_of(program_name).model_dump(mode='json'))}"
