"""What programs share in making cases of files: each case is of one patient and one study, and a series with what belongs to it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from med_assets.dicom.sop_classes import MODALITIES
from med_assets.intake.left_out import kind_of, notes, set_aside, shown
from med_assets.program import Program, RawCase, Refusal

if TYPE_CHECKING:
    from med_assets.dicom.discover import Instance

Others = Mapping[str, Sequence["Instance"]]
"""Instances by modality."""

Picked = tuple[list["Instance"], str, str]
"""What belongs to a series, and code and message of why it makes no case, both empty when it does."""


def referring(instances: Sequence["Instance"], targets: Collection[str], frame: str, alone: bool) -> list["Instance"]:
    """Return those that name one of the SOP instances `targets`.

    Where none does and the series is the only one (`alone`), those in its frame of reference, else all: whether they
    belong to it is then for the program to verify.
    """
    linked = [one for one in instances if not set(one.referenced_sops).isdisjoint(targets)]
    if linked or not alone:
        return linked
    return [one for one in instances if one.frame_of_reference_uid in ("", frame)] or list(instances)


Pick = Callable[[list["Instance"], Others, bool], Picked]
"""Says what of the other modalities belongs to the slices of one series, and is given whether that series is the only one."""


def one_label(kinds: Sequence[str]) -> Pick:
    """Pick the one object of these modalities, such as SEG and RTSTRUCT, that labels a series; one without is to be predicted."""

    def pick(slices: list["Instance"], others: Others, alone: bool) -> Picked:
        targets, frame = {one.sop_instance_uid for one in slices}, slices[0].frame_of_reference_uid
        found = referring([one for kind in kinds for one in others.get(kind, ())], targets, frame, alone)
        if len(found) <= 1:
            return found, "", ""
        counts = ", ".join(f"{sum(one.modality == kind for one in found)} {kind}" for kind in kinds)
        text = f"expected one {' or '.join(kinds)} for the {slices[0].modality} series, got {counts}; send the one that counts"
        return found, "several_labels", text

    return pick


def around_series(
    instances: Sequence["Instance"], images: str, parts: Collection[str], pick: Pick, expected: str
) -> tuple[list[RawCase], list[Refusal]]:
    """Group instances into a case per series of the modality `images`; what does not make a case is refused with a reason.

    `parts` are the other modalities of a case; `expected` names all of them to people.
    """
    others: dict[str, list[Instance]] = defaultdict(list)
    series: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        (series[instance.series_uid] if instance.modality == images else others[instance.modality]).append(instance)
    cases, refusals = [], []
    used: set[str] = set()
    owner = _owners(others, series)
    for uid in sorted(series):
        slices = series[uid]
        own = {
            modality: [one for one in found if owner.get(one.sop_instance_uid, uid) == uid]
            for modality, found in others.items()
        }
        found, code, text = pick(slices, own, len(series) == 1)
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
            text = (
                f"expected the {images} series that this {modality} belongs to, got none beside it; send them together"
            )
            refusals.append(Refusal("no_ct" if images == "CT" else "no_image", text, len(left)))
        elif left:
            text = f"expected {expected}, got {len(left)} instances of {shown(modality)}; they are not used"
            refusals.append(Refusal("wrong_modality", text, len(left)))
    return cases, refusals


def _owners(others: Others, series: Mapping[str, Sequence["Instance"]]) -> dict[str, str]:
    """By SOP instance UID of what refers to slices the UID of the series that it refers to most: it is in one case alone."""
    holder = {one.sop_instance_uid: uid for uid, slices in series.items() for one in slices}
    found = {}
    for one in (one for of_modality in others.values() for one in of_modality):
        named = Counter(holder[sop] for sop in one.referenced_sops if sop in holder)
        if named:
            found[one.sop_instance_uid] = min(named, key=lambda uid: (-named[uid], uid))
    return found


LEFT_OVER = ("other_series", "wrong_modality")
"""Codes of files that no case needs: where the study has a case, they are a note."""


def group_by_patient(program: Program, instances: Sequence["Instance"]) -> tuple[list[RawCase], list[Refusal]]:
    """Group the instances of an entry into cases, each of one patient and one study, whatever the program.

    Instances that belong together by their own identifiers (one series, or one refers to the other) and are of several
    patients or studies make no case: "wrong_patient", "missing_patient_id", "wrong_study". All others go to
    `Program.group`, patient by patient and study by study. Localizers, screen captures and reports are notes.
    """
    parts: dict[tuple[str, str, str], list[Instance]] = defaultdict(list)
    cases: list[RawCase] = []
    refusals: list[Refusal] = []
    clusters = _tied(instances)
    issuers: dict[str, set[str]] = defaultdict(set)
    for one in instances:
        issuers[one.patient_id] |= {one.issuer} - {""}
    for cluster in clusters:
        refusal = _mixed(cluster)
        if refusal is not None:
            refusals.append(refusal)
            continue
        patient = cluster[0].patient_id
        issuer = max(one.issuer for one in cluster) if len(issuers[patient]) > 1 else ""
        parts[patient, issuer, cluster[0].study_uid] += cluster
    images = program.modalities[0]
    usual = any(one.modality == images and not kind_of(one) for one in instances)
    for (patient, _, _), part in sorted(parts.items()):
        kept, aside = set_aside(part) if usual else set_aside(part, images)
        made, refused = program.group(kept) if kept else ([], [])
        cases += made
        refusals += [
            replace(one, note=True, patient_id=patient) if made and one.code in LEFT_OVER else one for one in refused
        ]
        refusals += notes(aside, patient)
    if not cases and all(one.note for one in refusals):  # nothing else would say that the entry holds no case
        refusals = [replace(one, note=False) for one in refusals]
    return cases, refusals


def _tied(instances: Sequence["Instance"]) -> list[list["Instance"]]:
    """Instances in groups that belong together by their own identifiers, in the order in which they came.

    Those of one series do, and an object with what it refers to: with that of its own patient and study, or where there is
    none with that of another. One that refers to nothing here belongs to the images in its frame of reference likewise.
    """
    parent = list(range(len(instances)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    by_sop = {one.sop_instance_uid: index for index, one in enumerate(instances)}
    in_frame: dict[str, list[int]] = defaultdict(list)
    first_of_series: dict[str, int] = {}
    for index, one in enumerate(instances):
        in_frame[one.frame_of_reference_uid].append(index)
        parent[root(index)] = root(first_of_series.setdefault(one.series_uid, index))
    for index, one in enumerate(instances):
        if one.modality not in DERIVED:
            continue
        named = [by_sop[uid] for uid in one.referenced_sops if uid in by_sop]
        if not named and one.frame_of_reference_uid:
            named = [
                other for other in in_frame[one.frame_of_reference_uid] if instances[other].modality not in DERIVED
            ]
        own = [other for other in named if _whose(instances[other]) == _whose(one)]
        for other in own or named:
            parent[root(other)] = root(index)
    groups: dict[int, list[Instance]] = defaultdict(list)
    for index, one in enumerate(instances):
        groups[root(index)].append(one)
    return list(groups.values())


DERIVED = frozenset(name for name, kind in MODALITIES.items() if kind.derived)
"""Modalities of objects that are about others."""


def _whose(one: "Instance") -> tuple[str, str]:
    return one.patient_id, one.study_uid


def _mixed(cluster: Sequence["Instance"]) -> Refusal | None:
    """Why instances that belong together are not of one patient and one study; None where they are."""
    patients = Counter(one.patient_id for one in cluster)
    together = f"{len(cluster)} objects that belong together (of one series, or one refers to the other)"
    if len(patients) == 1:
        whose = Counter(one.issuer for one in cluster if one.issuer)
        if len(whose) > 1:
            text = f"expected {together} of one patient, got {len(whose)} different IssuerOfPatientID; send each patient apart"
            return Refusal("wrong_patient", text, len(cluster))
    elif "" in patients:
        text = (
            f"expected a PatientID in each of {together}, got none in {patients['']}; export with an id or a pseudonym"
        )
        return Refusal("missing_patient_id", text, len(cluster))
    else:
        parts = "; ".join(_contents(cluster, patient) for patient, _ in patients.most_common())
        text = f"expected {together} of one patient, got {len(patients)} PatientIDs ({parts}); send each patient apart"
        return Refusal("wrong_patient", text, len(cluster))
    studies = Counter(one.study_uid for one in cluster)
    if len(studies) > 1:
        text = (
            f"expected {together} of one study, got {len(studies)} StudyInstanceUIDs; export them from the study that they "
            "were made in"
        )
        return Refusal("wrong_study", text, len(cluster), cluster[0].patient_id)
    return None


def _contents(cluster: Sequence["Instance"], patient: str) -> str:
    counts = Counter(shown(one.modality) for one in cluster if one.patient_id == patient)
    return ", ".join(f"{n} {modality}" for modality, n in sorted(counts.items()))
