"""Whether the objects of a case, such as a plan, its dose and its CT, belong to each other, by their own identifiers."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset

from med_assets.dicom.discover import Instance, describe
from med_assets.errors import CaseRejected


def verify_chain(
    plan: Instance | Dataset | None,
    structure_set: Instance | Dataset,
    dose: Instance | Dataset | None,
    ct_instances: Sequence[Instance | Dataset],
) -> None:
    """Return where dose refers to plan, plan to structure set and structure set to images of the CT, of one patient.

    Raises `CaseRejected`: "wrong_patient", "missing_patient_id", "broken_uid_chain", "frame_of_reference_mismatch",
    "zero_slices". A plan may leave its frame of reference out; all others must name the same one. A plan, a dose or both may
    be None where there is none yet.
    """
    if not ct_instances:
        raise CaseRejected("zero_slices", "Expected a CT series; got no slices. Send the planning CT with the plan.")
    the_structures, images = _instance(structure_set), [_instance(image) for image in ct_instances]
    the_plan, the_dose = (None if one is None else _instance(one) for one in (plan, dose))
    made = [one for one in (the_plan, the_dose) if one is not None]
    _require_one_patient([*made, the_structures, *images])
    if the_dose and (the_plan is None or the_plan.sop_instance_uid not in the_dose.referenced_sops):
        raise _broken("the dose to refer to this plan", "Send the dose that was calculated for it.")
    if the_plan and the_structures.sop_instance_uid not in the_plan.referenced_sops:
        raise _broken("the plan to refer to this structure set", "Send the structure set that was planned on.")
    present = {image.sop_instance_uid for image in images}
    absent = sum(uid not in present for uid in the_structures.referenced_sops)
    if absent or not the_structures.referenced_sops:
        raise CaseRejected(
            "broken_uid_chain",
            f"Expected the structure set to refer to slices of this CT only; got references to "
            f"{len(the_structures.referenced_sops)} images, {absent} of which are not there. Send the CT that was "
            "contoured, whole.",
        )
    framed = [one for one in made if one is the_dose or one.frame_of_reference_uid]
    _require_one_frame([*images, the_structures, *framed], "CT, structure set and dose")


def verify_label(label: Instance | Dataset, images: Sequence[Instance | Dataset], kind: str = "CT") -> None:
    """Return where a segmentation or structure set was made on images of a series, of one patient, in one frame of reference.

    A label may refer to other images too, or to none. `kind` is what messages call the series. Raises `CaseRejected`:
    "wrong_patient", "missing_patient_id", "broken_uid_chain", "frame_of_reference_mismatch", "zero_slices".
    """
    if not images:
        raise CaseRejected("zero_slices", f"Expected the {kind} series; got no slices. Send it with its label.")
    the_label, slices = _instance(label), [_instance(image) for image in images]
    _require_one_patient([the_label, *slices])
    named = set(the_label.referenced_sops)
    if named and named.isdisjoint(image.sop_instance_uid for image in slices):
        raise _broken(f"the {the_label.modality} to refer to slices of this {kind}", "Send the images it was drawn on.")
    _require_one_frame([the_label, *slices], f"{kind} and label")


def _require_one_frame(instances: Sequence[Instance], what: str) -> None:
    """A structure set may name other frames beside the one of all others."""
    images = {one.frame_of_reference_uid for one in instances if one.modality != "RTSTRUCT"}
    named = [
        set(one.frames_of_reference or (one.frame_of_reference_uid,)) - {""}
        for one in instances
        if one.modality == "RTSTRUCT"
    ]
    if len(images) == 1 and "" not in images and all(images <= frames for frames in named):
        return
    without = sum(not frames for frames in named) + ("" in images)
    others = len(set().union(images, *named) - {""})
    raise CaseRejected(
        "frame_of_reference_mismatch",
        f"Expected {what} in one named frame of reference; got {len(images - {''})} in the images and the dose, {others} in all "
        f"objects{f', and {without} objects name none' if without else ''}. Export them from one registration.",
    )


def _require_one_patient(instances: Sequence[Instance]) -> None:
    patients = {instance.patient_id for instance in instances}
    without = sum(not one.patient_id for one in instances)
    if without:
        raise CaseRejected(
            "missing_patient_id",
            f"Expected a PatientID in every object, by which patients are kept apart; got {without} of {len(instances)} objects without. Export with "
            "an id or a pseudonym.",
        )
    if len(patients) != 1:
        raise CaseRejected(
            "wrong_patient",
            f"Expected objects of one patient; got {len(patients)}. Send each patient in a folder of their own.",
        )


def _instance(item: Instance | Dataset) -> Instance:
    return item if isinstance(item, Instance) else describe(item)


def _broken(expected: str, remedy: str) -> CaseRejected:
    return CaseRejected("broken_uid_chain", f"Expected {expected}; got a reference to another or none. {remedy}")
