"""The gates of dataset and splits."""

from collections import defaultdict

from med_assets import program
from med_assets.capabilities import HeldOutWarnings
from med_assets.catalog import Catalog
from med_assets.dataset.stage import finding_pictures, findings
from med_assets.records import SplitAssignment
from med_assets.settings import Settings
from med_assets.storage.result import CheckOutcome


def patient_leakage(ws: Settings, program_name: str) -> CheckOutcome:
    """No patient and no image content in two splits, and every accepted case in one."""
    catalog, splits, contents = Catalog(ws, program_name), defaultdict(set), defaultdict(set)
    placed = catalog.cases()
    for case in placed:
        splits[case.patient_id].add(case.split)
        contents[case.content_hash].add(case.split)
    for assignment in catalog.rows(SplitAssignment):
        splits[assignment.patient_id].add(assignment.split)
    leaks = sorted(patient for patient, found in splits.items() if len(found) > 1)
    copies = sum(len(found) > 1 for found in contents.values())
    unplaced = len(catalog.dataset()) - len(placed)
    metadata = {"patients": len(splits), "patients_in_two_splits": leaks, "unassigned_cases": unplaced}
    if leaks or copies:
        return CheckOutcome(
            False, f"{len(leaks)} patients and {copies} image contents are in two splits", metadata=metadata
        )
    if unplaced:
        return CheckOutcome(
            False, f"{unplaced} cases have no split; see the asset's metadata for why", "warn", metadata
        )
    return CheckOutcome(True, f"{len(splits)} patients, each in one split", metadata=metadata)


def between_cases(ws: Settings, program_name: str) -> CheckOutcome:
    """Nothing is wrong between cases or with the splits as a whole, such as one picture in two splits, or a class missing in one."""
    found = findings(ws, program_name)
    blocking = [finding for finding in found if finding.blocking]
    metadata = {"blocking": len(blocking), "findings": [finding.text for finding in found]}
    images = finding_pictures(ws, program_name, found)
    if blocking:
        first = "; ".join(finding.text for finding in blocking[:3])
        more = f"; and {len(blocking) - 3} more" if len(blocking) > 3 else ""
        return CheckOutcome(False, first + more, metadata=metadata, images=images)
    if found:
        return CheckOutcome(False, f"to check: {len(found)} findings, none of which blocks", "warn", metadata, images)
    return CheckOutcome(True, "nothing found between cases", metadata=metadata)


def held_out(ws: Settings, program_name: str) -> CheckOutcome:
    """Warn where a program knows that scores of its held-out cases mean less than they seem to."""
    chosen = program.get(program_name)
    described = Catalog(ws, program_name).described
    warnings = chosen.held_out_warnings(described()) if isinstance(chosen, HeldOutWarnings) else []
    reason = "; ".join(warnings) or "nothing known makes scores of held-out cases doubtful"
    return CheckOutcome(not warnings, reason, "warn", {"warnings": warnings})


def synthetic_data(ws: Settings, program_name: str) -> CheckOutcome:
    """No synthetic case in a production dataset."""
    dataset = Catalog(ws, program_name).dataset()
    n = len(dataset.synthetic)
    passed = n == 0 or ws.purpose == "demo"
    reason = f"{n} of {len(dataset)} cases are synthetic; purpose is {ws.purpose}"
    if not passed:
        reason += "; withdraw them, or set MED_ASSETS_PURPOSE=demo for a home without patients"
    return CheckOutcome(passed, reason, metadata={"synthetic": n, "cases": len(dataset)})
