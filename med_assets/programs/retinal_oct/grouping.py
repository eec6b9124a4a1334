"""Which files make a case: each OPT volume is one, known by its patient and its series."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from med_assets.program import RawCase, Refusal

if TYPE_CHECKING:
    from med_assets.dicom.discover import Instance


def group(instances: Sequence["Instance"]) -> tuple[list[RawCase], list[Refusal]]:
    """Group instances into a case per OPT series. Refusals: several_volumes, missing_patient_id, wrong_modality."""
    series: dict[str, list[Instance]] = defaultdict(list)
    for one in instances:
        if one.modality == "OPT":
            series[one.series_uid].append(one)
    cases, refusals = [], []
    for uid, found in sorted(series.items()):
        patient = found[0].patient_id
        if not patient.strip():
            text = "expected a PatientID, got none; without it splits can't keep a patient together"
            refusals.append(Refusal("missing_patient_id", text, len(found), patient, uid))
        elif len(found) > 1:
            text = f"expected one volume in an OPT series, got {len(found)}; send the one that counts"
            refusals.append(Refusal("several_volumes", text, len(found), patient, uid))
        else:
            cases.append(RawCase(patient, uid, tuple(found)))
    others = sum(one.modality != "OPT" for one in instances)
    if others:
        text = f"expected OPT volumes, got {others} instances of other kinds; they are not used"
        refusals.append(Refusal("wrong_modality", text, others))
    return cases, refusals
