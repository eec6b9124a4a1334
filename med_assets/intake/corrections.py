"""Labels that come alone: a corrected segmentation or structure set of a case that is stored.

A label may name the original images, as one from a PACS does, or the stored ones, as one does that was drawn on downloaded files.
What it refers to is looked for among the stored cases of its patient. The case gets a new version: the stored objects with the
new label in the place of the old one, which names the version that it corrects.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydicom.uid import UID

from med_assets.catalog import Catalog, usable
from med_assets.deidentification.deidentify import Deidentifier
from med_assets.deidentification.profiles import STRICT
from med_assets.dicom.discover import Instance, load, scan
from med_assets.dicom.elements import text
from med_assets.errors import CaseRejected
from med_assets.records import CaseVersion
from med_assets.settings import Workspace

if TYPE_CHECKING:
    from pydicom import Dataset

LABELS = frozenset({"SEG", "RTSTRUCT"})
"""Modalities of labels that may come alone."""


@dataclass(frozen=True)
class Corrected:
    """A stored case that a label corrects: the version that counted, its stored objects without the label that is replaced, and that one."""

    parent: CaseVersion
    kept: tuple[Instance, ...]
    replaced: tuple[Instance, ...]


def are_labels_alone(instances: Sequence[Instance]) -> bool:
    """Whether an entry holds labels and no image, plan or dose."""
    return bool(instances) and all(one.modality in LABELS for one in instances)


def find(
    ws: Workspace, program: str, batch: str, keys: Deidentifier, labels: Sequence[Instance]
) -> dict[Path, Corrected | CaseRejected]:
    """Return by path of each label of a patient who is known the stored case that it refers to, or why there is none.

    Versions of earlier batches alone are looked at, so that a batch that is taken in again finds the same.
    """
    current: dict[str, CaseVersion] = {}
    for row in sorted(usable(Catalog(ws, program).case_versions()), key=lambda row: row.batch):
        if row.batch < batch:
            current[row.case_id] = row
    found: dict[Path, Corrected | CaseRejected] = {}
    stored: dict[str, tuple[Instance, ...]] = {}
    for label in labels:
        names = {label.patient_id.strip(), keys.pseudonym(label.patient_id)}
        of_patient = [row for row in current.values() if row.patient_id in names]
        wanted = {*label.referenced_sops, *map(keys.uid, label.referenced_sops)}
        hits = []
        for row in of_patient:
            if row.artifact not in stored:
                stored[row.artifact] = scan(ws.store.fetch(row.artifact)).instances
            images = [one for one in stored[row.artifact] if one.modality not in LABELS]
            if count := sum(one.sop_instance_uid in wanted for one in images):
                hits.append((count, row, stored[row.artifact]))
        other = [row for _, row, _ in hits if profile_name(row.deidentified_by) != keys.profile.name]
        if other:
            message = (
                f"expected a label of a case of the profile {keys.profile.name}, got one of case {other[0].case_id}, which is stored with the profile "
                f"{profile_name(other[0].deidentified_by)}; send it with its images"
            )
            found[label.path] = CaseRejected("other_profile", message)
        elif hits:
            most = max(count for count, *_ in hits)
            best = [(row, instances) for count, row, instances in hits if count == most]
            if len(best) > 1:
                cases = ", ".join(sorted(row.case_id for row, _ in best))
                message = f"expected a label of one stored case, got one that refers to {cases} alike; send it with its images"
                found[label.path] = CaseRejected("several_cases_corrected", message)
                continue
            row, instances = best[0]
            old = tuple(one for one in instances if one.modality in LABELS)
            found[label.path] = Corrected(row, tuple(one for one in instances if one not in old), old)
        elif of_patient:
            message = (
                f"expected a {label.modality} that refers to images of a stored case of this patient, got one that refers to none of "
                f"{len(of_patient)}; send it with its images, or draw it on the images that are stored"
            )
            found[label.path] = CaseRejected("no_case_to_correct", message)
    return found


def profile_name(deidentified_by: str | None) -> str:
    """Name of the profile that a row says; rows of an earlier version say none and had the strict one."""
    return (deidentified_by or STRICT.label).split()[0]


class StoredDeidentifier(Deidentifier):
    """De-identifies an object that was made from the stored files of a case: its pseudonym, its UIDs and its dates stay."""

    def __init__(self, keys: Deidentifier, patient: str, uids: Collection[str]) -> None:
        super().__init__(keys.key, keys.vocabulary, keys.profile)
        self._patient, self._uids = patient, frozenset(uids)

    @property
    def stand_ins(self) -> frozenset[str]:
        """The pseudonym and the UIDs of the stored case."""
        return self._uids | {self._patient}

    def pseudonym(self, patient_id: str) -> str:
        """The pseudonym itself."""
        return self._patient if patient_id.strip() == self._patient else super().pseudonym(patient_id)

    def uid(self, original: str) -> str:
        """A UID of the stored case itself."""
        return original if original.strip() in self._uids else super().uid(original)

    def days(self, patient_id: str) -> int:
        """None: dates of what is stored were shifted before."""
        return 0 if patient_id.strip() == self._patient else super().days(patient_id)


def deidentifier_for(keys: Deidentifier, label: Instance, corrected: Corrected) -> Deidentifier:
    """Return what de-identifies a label: the usual for one that names the original patient."""
    patient = corrected.parent.patient_id
    if label.patient_id.strip() != patient:
        return keys
    return StoredDeidentifier(keys, patient, set(_uids(corrected)))


def _uids(corrected: Corrected) -> Iterable[str]:
    for one in corrected.kept:
        yield from (one.sop_instance_uid, one.series_uid, one.study_uid, one.frame_of_reference_uid)
        yield from one.frames_of_reference
    for one in corrected.replaced:
        for element in load(one).iterall():
            if element.VR == "UI" and element.value:
                yield from map(str, [element.value] if isinstance(element.value, str) else element.value)


def take_the_place(new: "Dataset", corrected: Corrected) -> None:
    """Give the new label the SOPInstanceUID of the one of its modality that it replaces, to which a plan may refer."""
    old = [one for one in corrected.replaced if one.modality == text(new, "Modality")]
    if len(old) == 1:
        new.SOPInstanceUID = old[0].sop_instance_uid
        new.file_meta.MediaStorageSOPInstanceUID = UID(old[0].sop_instance_uid)


def whole(corrected: Corrected, label: Instance) -> tuple[Instance, ...]:
    """The objects of the new version, in the order in which they are stored."""
    return tuple(sorted((*corrected.kept, label), key=lambda one: one.sop_instance_uid))
