"""What happened to one case, from file to model, read from the tables alone."""

import json
from collections.abc import Sequence

import pandas as pd

from med_assets import program
from med_assets.capabilities import RequiredStructures
from med_assets.catalog import Catalog, accepted
from med_assets.errors import CaseRejected, ConfigurationError, LandingUnreadable, RemoteFailed
from med_assets.intake.original_names import original_roi_names
from med_assets.intake.reasons import remedy
from med_assets.preparation.labels import label_rows
from med_assets.records import (
    CORRECT,
    EXCLUDE,
    USABLE,
    CaseScore,
    CaseVersion,
    DatasetCase,
    MonitoredScore,
    Prediction,
    PreparedCase,
    ReaderDecision,
    SplitAssignment,
    Status,
    Withdrawal,
)
from med_assets.review.decisions import is_excluded
from med_assets.settings import Settings, Workspace
from med_assets.storage import names


def find_case(ws: Settings, start: str) -> tuple[str, str]:
    """Program and full id of the only case whose id starts so; raises ConfigurationError for none or several."""
    names.CASE.check(start)
    found = sorted(
        {
            (name, case.case_id)
            for name in program.registered()
            for case in Catalog(ws, name).case_versions()
            if case.case_id.startswith(start)
        }
    )
    if len(found) != 1:
        what = "none" if not found else f"{len(found)} of them"
        raise ConfigurationError(
            f"expected exactly one case whose id starts with {start!r}, got {what}; see `med-assets cases PROGRAM`"
        )
    return found[0]


def _outcome(case: CaseVersion | PreparedCase) -> str:
    if case.status in USABLE:
        return "accepted" if case.status == Status.OK else "accepted without a label, to be predicted"
    if case.status == Status.NOTE:
        return f"note ({case.reason_code}): {case.reason}"
    advice = remedy(case.program, case.reason_code)
    return f"quarantined ({case.reason_code}): {case.reason}" + (f"\n  what to do: {advice}" if advice else "")


def _arrivals(catalog: Catalog, case_id: str) -> list[str]:
    lines = []
    prepared = {(case.batch, case.version): case for case in catalog.rows(PreparedCase, where={"case_id": [case_id]})}
    corrections = [row for row in catalog.rows(ReaderDecision, case_id) if row.decision == CORRECT]
    for case in catalog.rows(CaseVersion, where={"case_id": [case_id]}):
        arrived = f"{case.n_instances} DICOM instances, version {case.version or '-'}"
        lines.append(f"batch {case.batch}: {arrived}, {_outcome(case)}")
        if case.parent:
            lines.append(f"  a label that came alone: corrects version {case.parent}{_by(corrections, case.parent)}")
        if case.synthetic:
            lines.append("  marked synthetic in the data")
        if case.deidentified_by:
            lines.append(f"  de-identified by the profile {case.deidentified_by}")
        lines += [f"  note ({note.reason_code}): {note.reason}" for note in _notes(catalog, case)]
        after = prepared.get((case.batch, case.version))
        if after:
            lines.append(f"  prepared as {after.artifact or '-'}: {_outcome(after)}")
            lines += [f"  audit warning: {text}" for text in after.warning_lines]
        elif case.status in USABLE:
            lines.append("  not prepared yet")
    return lines


def _by(corrections: Sequence[ReaderDecision], parent: str) -> str:
    """Who submitted corrections of a version, and what they wrote."""
    found = [
        f"{row.reader or 'somebody'} at {row.read_at} ({row.note})" for row in corrections if row.version == parent
    ]
    return f", submitted by {'; '.join(found)}" if found else ""


def _notes(catalog: Catalog, case: CaseVersion) -> list[CaseVersion]:
    """What of the same patient and batch was left out, such as localizers."""
    found = catalog.case_versions(case.batch)
    return [one for one in found if one.status == Status.NOTE and one.patient_id == case.patient_id != ""]


def _facts(catalog: Catalog, case_id: str) -> list[str]:
    found = [row for row in catalog.facts() if row.case_id == case_id]
    if not found:
        return []
    specs = program.get(catalog.program).facts
    return ["facts measured:"] + [f"  {fact}: {spec.written(found[-1].values[fact])}" for fact, spec in specs.items()]


def _labels(catalog: Catalog, case_id: str) -> list[str]:
    """The labels of the newest version that was prepared, as its source has them; of one that is still in the store."""
    store = catalog.ws.store
    kept = [
        case.artifact
        for case in catalog.rows(PreparedCase, where={"case_id": [case_id]})
        if case.artifact and store.has(case.artifact)
    ]
    rows = label_rows(catalog.program, store.fetch(kept[-1])) if kept else []
    frame = pd.DataFrame([row.shown() for row in rows])
    lines = frame.to_string(index=False, na_rep="-").splitlines() if rows else []
    return ["labels of its source:", *(f"  {line}" for line in lines)] if lines else []


def batches_by_version(catalog: Catalog) -> dict[tuple[str, str], str]:
    """By case id and version of an accepted case the newest batch that holds it."""
    cases = sorted(accepted(catalog.prepared()), key=lambda case: case.batch)
    return {(case.case_id, case.version): case.batch for case in cases}


def _newest(catalog: Catalog, case_id: str) -> CaseVersion | PreparedCase:
    """What came last of a case, as prepared where it came so far."""
    sent = catalog.rows(CaseVersion, where={"case_id": [case_id]})[-1]
    prepared = catalog.rows(PreparedCase, sent.batch, where={"case_id": [case_id]})
    return prepared[-1] if prepared and sent.status in USABLE else sent


def _roi_names(ws: Workspace, catalog: Catalog, case_id: str) -> list[str]:
    """Names of the original structure set that mean nothing here, with proposals; they may identify a patient and go no further."""
    name, sent = catalog.program, catalog.rows(CaseVersion, where={"case_id": [case_id]})
    chosen = program.get(name)
    if not sent or not isinstance(chosen, RequiredStructures):
        return []
    try:
        names = original_roi_names(ws, name, sent[-1].batch, case_id)
    except (LandingUnreadable, RemoteFailed, ConfigurationError, CaseRejected) as error:
        return [f"ROI names of the original file can't be read now: {error}"]
    found = chosen.roi_proposals(ws, names)
    lines = [f"  {one!r}: {f'perhaps {proposal}' if proposal else 'close to no structure'}" for one, proposal in found]
    head = "ROI names of the original file that match no structure (read from the landing zone now, stored nowhere):"
    return [head, *lines] if lines else []


def _held_back(catalog: Catalog, case_id: str) -> list[str]:
    """Why an accepted case is not in the dataset: the audit holds its batch back."""
    audits = [
        audit
        for case in accepted(catalog.rows(PreparedCase, where={"case_id": [case_id]}))
        if (audit := catalog.audit(case.batch))
    ]
    return [
        f"not in the dataset: of its batch {audit.batch} {audit.n_quarantined} of {audit.n_cases} cases are quarantined, more than "
        f"a share of {audit.max_quarantined_share:g}; `med-assets accept-batch {catalog.program} {audit.batch} --reason TEXT` lets it in"
        for audit in audits[-1:]
        if audit.held_back
    ]


def _membership(catalog: Catalog, case_id: str) -> list[str]:
    withdrawn = catalog.rows(Withdrawal, case_id)
    member = catalog.rows(DatasetCase, where={"case_id": [case_id]})
    if withdrawn:
        return [f"withdrawn: {withdrawn[-1].reason}"]
    decisions = catalog.rows(ReaderDecision, case_id)
    if is_excluded(decisions):
        last = next(row for row in reversed(decisions) if row.decision == EXCLUDE)
        return [
            f"excluded by {last.reader or 'a reader'} at {last.read_at}: {last.note}; `med-assets decide {catalog.program} {case_id} accept` lets it in again"
        ]
    if not member:
        return _prediction(catalog, case_id) or _held_back(catalog, case_id) or ["not in the dataset"]
    version = member[0].version
    lines = [f"in the dataset as version {version}"]
    newest = _newest(catalog, case_id)
    if newest.status == Status.QUARANTINED:
        counts = batches_by_version(catalog).get((case_id, version), "-")
        lines.append(
            f"  what came last, in batch {newest.batch}, is quarantined and changed nothing: version {version} of batch {counts} "
            "counts, for training and evaluation, until a correction is accepted or the case is withdrawn"
        )
    of_patient = catalog.rows(SplitAssignment, where={"patient_id": [member[0].patient_id]})
    assignment = of_patient[0] if of_patient else None
    if assignment is None:
        return [*lines, "its patient has no split yet"]
    return [
        *lines,
        f"its patient is in split {assignment.split} (fold {assignment.fold}), assigned by: {assignment.assigned_by}",
    ]


def _prediction(catalog: Catalog, case_id: str) -> list[str]:
    """What the champion says of a case to predict; nothing for other cases."""
    if _newest(catalog, case_id).status != Status.TO_PREDICT:
        return []
    made = catalog.rows(Prediction, where={"case_id": [case_id]})
    if not made:
        return [
            f"in no dataset, since it has no label; it waits for the champion: `med-assets predict {catalog.program}`"
        ]
    last = made[-1]
    if last.error:
        return [f"in no dataset, since it has no label; {last.experiment} failed on it: {last.error}"]
    measured = [f"  {what}: {value}" for what, value in json.loads(last.measured or "{}").items()]
    return [
        f"in no dataset, since it has no label; predicted by {last.experiment} ({last.checkpoint}), files in {last.folder}",
        *measured,
    ]


def _models(catalog: Catalog, case_id: str) -> list[str]:
    primary = program.get(catalog.program).primary_metric
    deciding = primary.name, primary.subject
    lines = []
    for score in catalog.rows(CaseScore, where={"case_id": [case_id]}):
        if (score.metric, score.subject) == deciding:
            value = "undefined" if score.value is None else f"{score.value:.3f} {score.unit}"
            lines.append(f"  {score.experiment} ({score.checkpoint}): {primary.name} {primary.subject} {value}")
    for watched in catalog.rows(MonitoredScore, where={"case_id": [case_id]}):
        if (watched.metric, watched.subject) == deciding and watched.value is not None:
            seen = "seen in training" if watched.seen_in_training else "not seen in training"
            text = f"{primary.name} {primary.subject} {watched.value:.3f} {watched.unit}"
            lines.append(f"  champion {watched.checkpoint} ({seen}): {text}")
    return ["scored by models:", *lines] if lines else ["no model was scored on it"]


def history(catalog: Catalog, case_id: str) -> list[str]:
    """What happened to a case as lines, without its facts: arrivals, labels, whether it is in the dataset, and models scored on it."""
    return [
        *_arrivals(catalog, case_id),
        *_labels(catalog, case_id),
        *_membership(catalog, case_id),
        *_models(catalog, case_id),
    ]


def explain_case(ws: Workspace, start: str) -> str:
    """The story of the case whose id starts so, as lines for a person."""
    name, case_id = find_case(ws, start)
    catalog, lines = Catalog(ws, name), [f"case {case_id} of {name}"]
    lines += _arrivals(catalog, case_id) + _facts(catalog, case_id) + _labels(catalog, case_id)
    lines += _roi_names(ws, catalog, case_id) + _membership(catalog, case_id) + _models(catalog, case_id)
    return "\n".join(lines)
