"""What programs share in making cases of files: one CT series and what belongs to it is one case."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from med_assets.program import RawCase, Refusal

if TYPE_CHECKING:
    from med_assets.dicom.discover import Instance

Others = Mapping[str, Sequence["Instance"]]
"""Instances by modality."""

Picked = tuple[list["Instance"], str, str]
"""What belongs to a CT series, and code and message of why it makes no case, both empty when it does."""


def referring(instances: Sequence["Instance"], targets: Collection[str], frame: str, alone: bool) -> list["Instance"]:
    """Return those that name one of the SOP instances `targets`.

    Where none does and the CT series is the only one (`alone`), those in its frame of reference, else all: whether they
    belong to it is then for the program to verify.
    """
    linked = [one for one in instances if not set(one.referenced_sops).isdisjoint(targets)]
    if linked or not alone:
        return linked
    return [one for one in instances if one.frame_of_reference_uid in ("", frame)] or list(instances)


def around_ct(
    instances: Sequence["Instance"],
    parts: Collection[str],
    pick: Callable[[list["Instance"], Others, bool], Picked],
    expected: str,
) -> tuple[list[RawCase], list[Refusal]]:
    """Group instances into a case per CT series; what does not make a case is refused with a reason.

    `pick` says what of the other modalities belongs to the slices of one series, and whether that series is the only one.
    `parts` are the other modalities of a case; `expected` names all of them to people.
    """
    others: dict[str, list[Instance]] = defaultdict(list)
    series: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        (series[instance.series_uid] if instance.modality == "CT" else others[instance.modality]).append(instance)
    cases, refusals = [], []
    used: set[str] = set()
    for uid in sorted(series):
        slices = series[uid]
        found, code, text = pick(slices, others, len(series) == 1)
        patient = slices[0].patient_id
        if not patient.strip():
            code = "missing_patient_id"
            text = "expected a PatientID, got none; without it splits can't keep a patient together"
        used |= {one.sop_instance_uid for one in found}
        whole = (*slices, *found)
        if code:
            refusals.append(Refusal(code, text, len(whole), patient, uid))
        else:
            cases.append(RawCase(patient, uid, whole))
    for modality in sorted(others):
        left = [one for one in others[modality] if one.sop_instance_uid not in used]
        if left and modality in parts:
            text = f"expected the CT series that this {modality} belongs to, got none beside it; send them together"
            refusals.append(Refusal("no_ct", text, len(left)))
        elif left:
            text = f"expected {expected}, got {len(left)} instances of {modality}; they are not used"
            refusals.append(Refusal("wrong_modality", text, len(left)))
    return cases, refusals
