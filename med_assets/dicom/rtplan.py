"""Plans: what dose was prescribed to which target, in how many fractions, on which structure set, and what limits of organs it states."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset

from med_assets.dicom.elements import number, text
from med_assets.errors import CaseRejected

MAX_PRESCRIPTION_GY = 150.0
"""More than any external-beam prescription: above it a plan is likely written in cGy against the standard."""


@dataclass(frozen=True)
class OrganLimit:
    """What a plan allows one organ at risk (PS3.3 C.8.8.10, RT Prescription); what it does not state is None.

    No part of the organ is to get more than `any_part_gy`, and at most `percent` of its volume more than `dose_gy`.
    """

    roi_number: int
    any_part_gy: float | None
    dose_gy: float | None
    percent: float | None


@dataclass(frozen=True)
class Plan:
    """A plan's prescription; what the plan does not say is None.

    `prescription_gy` is the highest target dose of the whole course, `target_prescriptions` are pairs of ROI number
    (None where the plan names no ROI) and Gy in the plan's order, `fractions` counts those of all fraction groups.
    """

    sop_instance_uid: str
    prescription_gy: float | None
    target_prescriptions: tuple[tuple[int | None, float], ...]
    fractions: int | None
    structure_set_uid: str | None
    organ_limits: tuple[OrganLimit, ...] = ()


def read_plan(dataset: Dataset) -> Plan:
    """Return what an RTPLAN prescribes. Raises `CaseRejected`: "wrong_modality", "bad_prescription"."""
    if text(dataset, "Modality") != "RTPLAN":
        raise CaseRejected("wrong_modality", "Expected an RTPLAN; got another modality. Send the treatment plan.")
    targets: list[tuple[int | None, float]] = []
    for item in dataset.get("DoseReferenceSequence") or ():
        if text(item, "TargetPrescriptionDose"):
            roi = number(item, "ReferencedROINumber")
            targets.append((None if roi is None else int(roi), _prescription(item)))
    groups = dataset.get("FractionGroupSequence") or ()
    planned = [number(group, "NumberOfFractionsPlanned") for group in groups]
    known = [int(count) for count in planned if count]
    structure_sets = dataset.get("ReferencedStructureSetSequence") or ()
    uids = [text(item, "ReferencedSOPInstanceUID") for item in structure_sets]
    return Plan(
        sop_instance_uid=text(dataset, "SOPInstanceUID"),
        prescription_gy=max((dose for _, dose in targets), default=None),
        target_prescriptions=tuple(targets),
        fractions=sum(known) if known and len(known) == len(planned) else None,
        structure_set_uid=(uids[0] or None) if len(uids) == 1 else None,
        organ_limits=tuple(_organ_limits(dataset)),
    )


def _organ_limits(dataset: Dataset) -> Iterator[OrganLimit]:
    """The limits of the plan's organs in its order; a dose or percentage that can't be one is None."""
    for item in dataset.get("DoseReferenceSequence") or ():
        roi = number(item, "ReferencedROINumber")
        if text(item, "DoseReferenceType") != "ORGAN_AT_RISK" or roi is None:
            continue
        names = ("OrganAtRiskLimitDose", "OrganAtRiskMaximumDose", "OrganAtRiskOverdoseVolumeFraction")
        any_part, dose, percent = (
            value if (value := number(item, name)) is not None and 0 <= value <= most else None
            for name, most in zip(names, (MAX_PRESCRIPTION_GY, MAX_PRESCRIPTION_GY, 100.0), strict=True)
        )
        if any_part is not None or (dose is not None and percent is not None):
            yield OrganLimit(int(roi), any_part, dose, percent)


def _prescription(item: Dataset) -> float:
    dose = number(item, "TargetPrescriptionDose")
    if dose is None or not 0 < dose <= MAX_PRESCRIPTION_GY:
        raise CaseRejected(
            "bad_prescription",
            f"Expected target prescriptions above 0 and up to {MAX_PRESCRIPTION_GY:g} Gy; got "
            f"{'no number' if dose is None else f'{dose:g}'} (cGy perhaps?). Correct the plan.",
        )
    return dose
