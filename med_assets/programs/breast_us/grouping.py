"""Which files are one case: an ultrasound image, and the segmentations that name it."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from med_assets.intake.left_out import shown
from med_assets.program import RawCase, Refusal

if TYPE_CHECKING:
    from med_assets.dicom.discover import Instance


def group(instances: Sequence["Instance"]) -> tuple[list[RawCase], list[Refusal]]:
    """Group instances into a case per image, to be predicted where no SEG is of it; what makes no case is refused with a reason."""
    by_kind: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        by_kind[instance.modality].append(instance)
    images, masks = by_kind.pop("US", []), by_kind.pop("SEG", [])
    alone, used = len(images) == 1, set()
    cases, refusals = [], []
    for image in sorted(images, key=lambda one: one.sop_instance_uid):
        found = [one for one in masks if image.sop_instance_uid in one.referenced_sops]
        if not found and alone:
            found = [one for one in masks if not one.referenced_sops]
        used |= {one.sop_instance_uid for one in found}
        whole, code, text = (image, *found), "", ""
        if not image.patient_id.strip():
            code, text = (
                "missing_patient_id",
                "expected a PatientID, got none; without it splits can't keep a patient together",
            )
        if code:
            refusals.append(Refusal(code, text, len(whole), image.patient_id, image.sop_instance_uid))
        else:
            cases.append(RawCase(image.patient_id, image.sop_instance_uid, whole))
    left = sum(one.sop_instance_uid not in used for one in masks)
    if left:
        text = "expected the image that each SEG was drawn on, got none beside it; send them together"
        refusals.append(Refusal("no_image", text, left))
    for modality in sorted(by_kind):
        n = len(by_kind[modality])
        text = f"expected ultrasound images and their SEG, got {n} instances of {shown(modality)}; they are not used"
        refusals.append(Refusal("wrong_modality", text, n))
    return cases, refusals
