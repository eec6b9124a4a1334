"""What happened to one case, from file to model, told from the lake alone."""

import json
from typing import Any

import pandas as pd

from med_assets import program
from med_assets.capabilities import RequiredStructures
from med_assets.errors import CaseRejected, ConfigurationError, LandingUnreadable, RemoteFailed
from med_assets.intake.original_names import original_roi_names
from med_assets.intake.reasons import remedy
from med_assets.records import PreparedCase
from med_assets.settings import Workspace
from med_assets.storage import names
from med_assets.storage.result import NOTE, OK, QUARANTINED, TO_PREDICT, accepted


def find_case(ws: Workspace, start: str) -> tuple[str, str]:
    """Program and full id of the only case whose id starts so; raises ConfigurationError for none or several."""
    names.CASE.check(start)
    found = sorted(
        {
            (name, row["case_id"])
            for name in program.registered()
            for row in ws.lake.rows("raw_cases", name)
            if row["case_id"].startswith(start)
        }
    )
    if len(found) != 1:
        what = "none" if not found else f"{len(found)} of them"
        raise ConfigurationError(
            f"expected exactly one case whose id starts with {start!r}, got {what}; see `med-assets cases PROGRAM`"
        )
    return found[0]


def _of(ws: Workspace, table: str, prefix: str, case_id: str) -> list[dict[str, Any]]:
    rows = [row for row in ws.lake.rows(table, prefix) if row["case_id"] == case_id]
    return sorted(rows, key=lambda row: row.get("batch", ""))


def _outcome(row: dict[str, Any]) -> str:
    if row["status"] in (OK, TO_PREDICT):
        return "accepted" if row["status"] == OK else "accepted without a label, to be predicted"
    if row["status"] == NOTE:
        return f"note ({row['reason_code']}): {row['reason']}"
    advice = remedy(row["reason_code"])
    return f"quarantined ({row['reason_code']}): {row['reason']}" + (f"\n  what to do: {advice}" if advice else "")


def _arrivals(ws: Workspace, name: str, case_id: str) -> list[str]:
    lines = []
    prepared = {(row["batch"], row["version"]): row for row in _of(ws, "prepared_cases", name, case_id)}
    for row in _of(ws, "raw_cases", name, case_id):
        arrived = f"{row['n_instances']} DICOM instances, version {row['version'] or '-'}"
        lines.append(f"batch {row['batch']}: {arrived}, {_outcome(row)}")
        if row["synthetic"]:
            lines.append("  marked synthetic in the data")
        lines += [f"  note ({note['reason_code']}): {note['reason']}" for note in _notes(ws, name, row)]
        after = prepared.get((row["batch"], row["version"]))
        if after:
            lines.append(f"  prepared as {after['artifact'] or '-'}: {_outcome(after)}")
            lines += [f"  audit warning: {text}" for text in PreparedCase.of(after).warning_lines]
        elif row["status"] in (OK, TO_PREDICT):
            lines.append("  not prepared yet")
    return lines


def _notes(ws: Workspace, name: str, row: dict[str, Any]) -> list[dict[str, Any]]:
    """What of the same patient and batch was left out, such as localizers."""
    rows = ws.lake.rows("raw_cases", f"{name}/{row['batch']}")
    return [one for one in rows if one["status"] == NOTE and one["patient_id"] == row["patient_id"] != ""]


def _facts(ws: Workspace, name: str, case_id: str) -> list[str]:
    rows = _of(ws, program.fact_table(name), name, case_id)
    if not rows:
        return []
    specs = program.get(name).facts
    return ["facts measured:"] + [f"  {fact}: {spec.written(rows[-1][fact])}" for fact, spec in specs.items()]


def _labels(ws: Workspace, name: str, case_id: str) -> list[str]:
    """The labels of the newest version that was prepared, as its source has them; of one that is still in the store."""
    rows_of = _of(ws, "prepared_cases", name, case_id)
    kept = [row["artifact"] for row in rows_of if row["artifact"] and ws.store.has(row["artifact"])]
    rows = program.get(name).label_rows(ws.store.fetch(kept[-1])) if kept else []
    frame = pd.DataFrame([row.shown() for row in rows])
    lines = frame.to_string(index=False, na_rep="-").splitlines() if rows else []
    return ["labels of its source:", *(f"  {line}" for line in lines)] if lines else []


def batches_by_version(ws: Workspace, name: str) -> dict[tuple[str, str], str]:
    """By case id and version of an accepted case the newest batch that brought it."""
    rows = sorted(accepted(ws.lake.rows("prepared_cases", name)), key=lambda row: row["batch"])
    return {(row["case_id"], row["version"]): row["batch"] for row in rows}


def _newest(ws: Workspace, name: str, case_id: str) -> dict[str, Any]:
    """The row of what came last of a case, as prepared where it came so far."""
    raw = _of(ws, "raw_cases", name, case_id)[-1]
    prepared = [row for row in _of(ws, "prepared_cases", name, case_id) if row["batch"] == raw["batch"]]
    return prepared[-1] if prepared and raw["status"] in (OK, TO_PREDICT) else raw


def _roi_names(ws: Workspace, name: str, case_id: str) -> list[str]:
    """Names of the original structure set that mean nothing here, with proposals; they may identify a patient and go no further."""
    rows = _of(ws, "raw_cases", name, case_id)
    chosen = program.get(name)
    if not rows or not isinstance(chosen, RequiredStructures):
        return []
    try:
        names = original_roi_names(ws, name, rows[-1]["batch"], case_id)
    except (LandingUnreadable, RemoteFailed, ConfigurationError, CaseRejected) as error:
        return [f"ROI names of the original file can't be read now: {error}"]
    found = chosen.roi_proposals(ws, names)
    lines = [f"  {one!r}: {f'perhaps {proposal}' if proposal else 'close to no structure'}" for one, proposal in found]
    head = "ROI names of the original file that match no structure (read from the landing zone now, stored nowhere):"
    return [head, *lines] if lines else []


def _membership(ws: Workspace, name: str, case_id: str) -> list[str]:
    withdrawn = _of(ws, "withdrawals", name, case_id)
    member = _of(ws, "dataset", name, case_id)
    if withdrawn:
        return [f"withdrawn: {withdrawn[-1]['reason']}"]
    if not member:
        return _prediction(ws, name, case_id) or ["not in the dataset"]
    version = member[0]["version"]
    lines = [f"in the dataset as version {version}"]
    newest = _newest(ws, name, case_id)
    if newest["status"] == QUARANTINED:
        counts = batches_by_version(ws, name).get((case_id, version), "-")
        lines.append(
            f"  what came last, in batch {newest['batch']}, is quarantined and changed nothing: version {version} of batch {counts} "
            "counts, for training and evaluation, until a correction is accepted or the case is withdrawn"
        )
    places = [row for row in ws.lake.rows("splits", name) if row["patient_id"] == member[0]["patient_id"]]
    lines += [
        f"its patient is in split {row['split']} (fold {row['fold']}), assigned by: {row['assigned_by']}"
        for row in places
    ]
    return lines or ["its patient has no split yet"]


def _prediction(ws: Workspace, name: str, case_id: str) -> list[str]:
    """What the champion says of a case to predict; nothing for other cases."""
    if _newest(ws, name, case_id)["status"] != TO_PREDICT:
        return []
    rows = _of(ws, "predictions", name, case_id)
    if not rows:
        return [f"in no dataset, since it has no label; it waits for the champion: `med-assets predict {name}`"]
    row = rows[-1]
    if row["error"]:
        return [f"in no dataset, since it has no label; {row['experiment']} failed on it: {row['error']}"]
    said = [f"  {what}: {value}" for what, value in json.loads(row["measured"] or "{}").items()]
    return [
        f"in no dataset, since it has no label; predicted by {row['experiment']} ({row['checkpoint']}), files in {row['folder']}",
        *said,
    ]


def _models(ws: Workspace, name: str, case_id: str) -> list[str]:
    primary = program.get(name).primary_metric
    lines = []
    for row in _of(ws, "evaluation_cases", name, case_id):
        if (row["metric"], row["subject"]) == (primary.name, primary.subject):
            value = "undefined" if row["value"] is None else f"{row['value']:.3f} {row['unit']}"
            lines.append(f"  {row['experiment']} ({row['checkpoint']}): {primary.name} {primary.subject} {value}")
    for row in _of(ws, "monitoring", name, case_id):
        if (row["metric"], row["subject"]) == (primary.name, primary.subject) and row["value"] is not None:
            seen = "seen in training" if row["seen_in_training"] else "not seen in training"
            score = f"{primary.name} {primary.subject} {row['value']:.3f} {row['unit']}"
            lines.append(f"  champion {row['checkpoint']} ({seen}): {score}")
    return ["scored by models:", *lines] if lines else ["no model was scored on it"]


def explain_case(ws: Workspace, start: str) -> str:
    """The story of the case whose id starts so, as lines for a person."""
    name, case_id = find_case(ws, start)
    lines = [f"case {case_id} of {name}"]
    lines += _arrivals(ws, name, case_id) + _facts(ws, name, case_id) + _labels(ws, name, case_id)
    lines += _roi_names(ws, name, case_id)
    lines += _membership(ws, name, case_id) + _models(ws, name, case_id)
    return "\n".join(lines)
