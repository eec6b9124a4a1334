"""Writes CT, MR, RTSTRUCT, RTPLAN and RTDOSE files that refer to each other by UID, as a planning system would.

Arrays are (z, y, x); millimetres are LPS patient coordinates. All bytes follow from the arguments: UIDs are hashes of
`Identity.study_uid` and a role, so writing twice gives the same files.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage, RTDoseStorage, RTPlanStorage, RTStructureSetStorage
from pydicom.valuerep import format_number_as_ds

from med_assets.dicom.contours import mask_to_contours
from med_assets.dicom.geometry import Geometry, Volume
from med_assets.dicom.objects import (
    SYNTHETIC_IMAGE_TYPE,
    Identity,
    derived_uid,
    is_synthetic,
    item,
    new_object,
    reference,
    save,
    set_pixels,
    set_plane,
)

__all__ = [
    "Identity",
    "derived_uid",
    "is_synthetic",
    "mask_to_contours",
    "write_ct",
    "write_mr",
    "write_points",
    "write_rtdose",
    "write_rtplan",
    "write_rtstruct",
]

CT_INTERCEPT_HU = -1024
"""Default RescaleIntercept of written CT. Stored values are unsigned 16 bit, so no HU below the intercept can be written."""

DOSE_SCALING_GY = 1e-4
"""Default DoseGridScaling: a written dose is off by at most 0.05 mGy. It is coarser than float32 at 70 Gy (0.004 mGy),
so that reading back into float32 does not exceed the stated error."""


def write_ct(
    folder: Path, volume_hu: Volume, identity: Identity, series_uid: str, *, intercept_hu: int = CT_INTERCEPT_HU
) -> tuple[str, ...]:
    """Write one file per slice into `folder`; HU are rounded to integers. Returns SOP instance UIDs in slice order.

    Raises ValueError when a value is not finite or does not fit unsigned 16 bit after the intercept.
    """
    stored = np.rint(np.asarray(volume_hu.array, dtype=np.float64)) - intercept_hu
    if not np.isfinite(stored).all() or stored.min() < 0 or stored.max() > np.iinfo(np.uint16).max:
        raise ValueError(
            f"expected finite HU from {intercept_hu} to {np.iinfo(np.uint16).max + intercept_hu}, "
            f"got {np.min(volume_hu.array)} to {np.max(volume_hu.array)}; clip the volume first"
        )

    def finish(ds: Dataset) -> None:
        ds.ImageType = ["DERIVED", "SECONDARY", SYNTHETIC_IMAGE_TYPE if identity.synthetic else "AXIAL"]
        ds.KVP = None
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = str(intercept_hu), "1", "HU"
        ds.WindowCenter, ds.WindowWidth = "40", "400"

    return _write_slices(folder, stored, volume_hu.geometry, identity, ("CT", CTImageStorage, series_uid), finish)


def write_mr(
    folder: Path,
    volume: Volume,
    identity: Identity,
    series_uid: str,
    *,
    description: str = "",
    echo_time_ms: float | None = None,
    repetition_time_ms: float | None = None,
) -> tuple[str, ...]:
    """Write one file per slice into `folder`; values are rounded to integers. Returns SOP instance UIDs in slice order.

    Slices lie on the volume's own axes, so a (s, y, x) volume whose first axis runs left-right is a sagittal series.
    EchoTime and RepetitionTime are left out, or empty, where they are not known. Raises ValueError when a value is not
    finite or does not fit unsigned 16 bit.
    """
    stored = np.rint(np.asarray(volume.array, dtype=np.float64))
    if not np.isfinite(stored).all() or stored.min() < 0 or stored.max() > np.iinfo(np.uint16).max:
        raise ValueError(
            f"expected finite values from 0 to {np.iinfo(np.uint16).max}, got {np.min(volume.array)} to "
            f"{np.max(volume.array)}; scale the volume first"
        )
    low, high = float(stored.min()), float(stored.max())

    def finish(ds: Dataset) -> None:
        ds.ImageType = ["DERIVED", "SECONDARY", SYNTHETIC_IMAGE_TYPE if identity.synthetic else "OTHER"]
        if description:
            ds.SeriesDescription = description
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "SE", "NONE", "", "2D"
        ds.EchoTime, ds.RepetitionTime = (
            "" if value is None else format_number_as_ds(float(value)) for value in (echo_time_ms, repetition_time_ms)
        )
        ds.EchoTrainLength = None
        ds.WindowCenter, ds.WindowWidth = format_number_as_ds((low + high) / 2), format_number_as_ds(high - low + 1)

    return _write_slices(folder, stored, volume.geometry, identity, ("MR", MRImageStorage, series_uid), finish)


def _write_slices(
    folder: Path,
    stored: np.ndarray,
    geometry: Geometry,
    identity: Identity,
    series: tuple[str, str, str],
    finish: Callable[[Dataset], None],
) -> tuple[str, ...]:
    """One file per slice of unsigned 16-bit `stored`; `series` is modality, SOP class and UID, `finish` adds the modality's own."""
    modality, sop_class, series_uid = series
    folder.mkdir(parents=True, exist_ok=True)
    affine = geometry.affine()
    uids = []
    for index, pixels in enumerate(stored.astype("<u2")):
        uids.append(identity.uid(modality, series_uid, str(index)))
        ds = new_object(identity, sop_class, modality, series_uid, uids[-1])
        ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = 1, 1, index + 1
        ds.PatientPosition = "HFS"
        ds.SliceThickness = format_number_as_ds(geometry.spacing_mm[0])
        set_plane(ds, geometry, affine @ (index, 0, 0, 1))
        set_pixels(ds, pixels)
        finish(ds)
        save(ds, folder / f"{index:04d}.dcm")
    return tuple(uids)


def write_rtstruct(
    path: Path,
    rois: Mapping[str, np.ndarray],
    geometry: Geometry,
    identity: Identity,
    ct_series_uid: str,
    ct_sop_uids: Sequence[str],
) -> str:
    """Write masks on the CT grid as closed planar contours; ROI numbers count from 1 in the order of `rois`.

    An empty mask becomes an ROI without contours. Returns the SOP instance UID. Raises ValueError when a mask is not on
    the grid or the slices do not match `ct_sop_uids`.
    """
    if len(ct_sop_uids) != geometry.shape[0]:
        raise ValueError(f"expected one CT instance for each of {geometry.shape[0]} slices, got {len(ct_sop_uids)}")
    images = [reference(CTImageStorage, uid) for uid in ct_sop_uids]
    drawn = {
        name: (_kind(name), [_contour(points, geometry, images) for points in mask_to_contours(mask, geometry)])
        for name, mask in rois.items()
    }
    return _write_structure_set(path, drawn, identity, ct_series_uid, images)


def write_points(
    path: Path,
    points_mm: Mapping[str, np.ndarray],
    identity: Identity,
    series_uid: str,
    images: Sequence[tuple[str, np.ndarray]],
    *,
    sop_class: str = MRImageStorage,
    predicted_by: str = "",
) -> str:
    """Write LPS points in mm as one POINT contour for each name, ROI numbers from 1. Returns the SOP instance UID.

    `images` are the slices of the series that the points were set on, (SOP instance UID, position (3,) in LPS mm of any
    pixel of it); each point names the slice whose position is nearest along the stack. `predicted_by` names the
    model of predicted points: they get a series of their own and say so. Raises ValueError without two slices or with a
    point that is not three finite numbers.
    """
    wrong = [name for name, point in points_mm.items() if np.shape(point) != (3,) or not np.isfinite(point).all()]
    if len(images) < 2 or wrong:
        raise ValueError(f"expected two slices or more and points of three finite numbers, got {len(images)}, {wrong}")
    references = [reference(sop_class, uid) for uid, _ in images]
    positions = np.array([position for _, position in images], dtype=float)
    stack = positions[-1] - positions[0]
    drawn = {}
    for name, point in points_mm.items():
        nearest = int(np.abs((positions - np.asarray(point, dtype=float)) @ stack).argmin())
        drawn[name] = ("MARKER", [_outline("POINT", np.asarray(point, dtype=float)[None], references[nearest])])
    role = (series_uid, "predicted", predicted_by) if predicted_by else (series_uid,)
    said = f"PREDICTED BY {predicted_by}, NOT FOR CLINICAL USE" if predicted_by else ""
    return _write_structure_set(path, drawn, identity, series_uid, references, role, said)


def _write_structure_set(
    path: Path,
    drawn: Mapping[str, tuple[str, list[Dataset]]],
    identity: Identity,
    series_uid: str,
    images: Sequence[Dataset],
    role: tuple[str, ...] = (),
    description: str = "",
) -> str:
    """Write ROIs, each an interpreted type and contours; `role` tells several structure sets of one study apart."""
    ds = new_object(
        identity,
        RTStructureSetStorage,
        "RTSTRUCT",
        identity.uid("RTSTRUCT series", *role),
        identity.uid("RTSTRUCT", *role),
    )
    ds.SeriesNumber, ds.InstanceNumber = 2, 1
    ds.StructureSetLabel = "contours"
    if description:
        ds.SeriesDescription, ds.StructureSetDescription = description[:64], description
    ds.StructureSetDate, ds.StructureSetTime = identity.study_date, ""
    series = item(SeriesInstanceUID=series_uid, ContourImageSequence=list(images))
    # Detached Study Management, retired but still what this sequence refers to.
    study = reference("1.2.840.10008.3.1.2.3.1", identity.study_uid)
    study.RTReferencedSeriesSequence = [series]
    ds.ReferencedFrameOfReferenceSequence = [
        item(FrameOfReferenceUID=identity.frame_of_reference_uid, RTReferencedStudySequence=[study])
    ]
    ds.StructureSetROISequence, ds.ROIContourSequence, ds.RTROIObservationsSequence = [], [], []
    for number, (name, (kind, contours)) in enumerate(drawn.items(), start=1):
        ds.StructureSetROISequence.append(
            item(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=identity.frame_of_reference_uid,
                ROIName=name,
                ROIGenerationAlgorithm="SEMIAUTOMATIC",
            )
        )
        outline = item(ReferencedROINumber=number)
        if contours:
            outline.ContourSequence = contours
        ds.ROIContourSequence.append(outline)
        ds.RTROIObservationsSequence.append(
            item(ObservationNumber=number, ReferencedROINumber=number, RTROIInterpretedType=kind, ROIInterpreter="")
        )
    save(ds, path)
    return str(ds.SOPInstanceUID)


def write_rtplan(
    path: Path,
    prescription_gy: float,
    fractions: int | None,
    targets: Mapping[int, float],
    identity: Identity,
    structure_set_uid: str,
) -> str:
    """Write a plan without beams: prescription, dose per target (ROI number -> Gy) and fractions, if known. Returns its UID."""
    ds = new_object(identity, RTPlanStorage, "RTPLAN", identity.uid("RTPLAN series"), identity.uid("RTPLAN"))
    ds.SeriesNumber, ds.InstanceNumber = 3, 1
    ds.RTPlanLabel, ds.RTPlanDate, ds.RTPlanTime = "plan", identity.study_date, ""
    ds.RTPlanGeometry = "PATIENT"
    ds.ReferencedStructureSetSequence = [reference(RTStructureSetStorage, structure_set_uid)]
    ds.DoseReferenceSequence = [_target(gy, roi) for roi, gy in targets.items()]
    if prescription_gy not in targets.values():
        ds.DoseReferenceSequence.append(_target(prescription_gy, None))
    for number, target in enumerate(ds.DoseReferenceSequence, start=1):
        target.DoseReferenceNumber = number
    ds.FractionGroupSequence = [
        item(
            FractionGroupNumber=1,
            NumberOfFractionsPlanned=fractions,
            NumberOfBeams=0,
            NumberOfBrachyApplicationSetups=0,
        )
    ]
    save(ds, path)
    return str(ds.SOPInstanceUID)


def write_rtdose(
    path: Path,
    dose_gy: Volume,
    identity: Identity,
    plan_uid: str,
    *,
    scaling_gy: float = DOSE_SCALING_GY,
    predicted_by: str = "",
) -> str:
    """Write the dose of a whole plan as unsigned 32 bit; it reads back within `scaling_gy` / 2. Returns its UID.

    `predicted_by` (at most 29 characters) names the model of a predicted dose: it gets a series of its own, and says that it was predicted in
    SeriesDescription and DoseComment. Raises ValueError when a dose is negative, not finite, or too large for the scaling.
    """
    levels = np.rint(np.asarray(dose_gy.array, dtype=np.float64) / scaling_gy)
    if not np.isfinite(levels).all() or levels.min() < 0 or levels.max() > np.iinfo(np.uint32).max:
        raise ValueError(
            f"expected finite dose from 0 to {np.iinfo(np.uint32).max * scaling_gy:.0f} Gy, "
            f"got {np.min(dose_gy.array)} to {np.max(dose_gy.array)}; clamp the dose or raise scaling_gy"
        )
    geometry = dose_gy.geometry
    role = ("RTDOSE", "predicted", predicted_by) if predicted_by else ("RTDOSE",)
    series_uid = identity.uid(" ".join([*role, "series"]))
    ds = new_object(identity, RTDoseStorage, "RTDOSE", series_uid, identity.uid(*role, plan_uid))
    ds.SeriesNumber, ds.InstanceNumber = 5 if predicted_by else 4, 1
    if predicted_by:
        ds.SeriesDescription = "PREDICTED DOSE, NOT FOR CLINICAL USE"
        ds.DoseComment = f"predicted by {predicted_by}, not for clinical use"
    ds.SliceThickness = format_number_as_ds(geometry.spacing_mm[0])
    set_plane(ds, geometry, np.append(geometry.origin_mm, 1.0))
    set_pixels(ds, levels.astype("<u4"))
    normal = np.cross(geometry.direction[2], geometry.direction[1])
    step_mm = geometry.spacing_mm[0] * (1 if normal @ np.asarray(geometry.direction[0]) > 0 else -1)
    ds.NumberOfFrames = geometry.shape[0]
    ds.FrameIncrementPointer = 0x3004000C
    ds.GridFrameOffsetVector = [format_number_as_ds(round(k * step_mm, 9)) for k in range(geometry.shape[0])]
    ds.DoseUnits, ds.DoseType, ds.DoseSummationType = "GY", "PHYSICAL", "PLAN"
    ds.DoseGridScaling = format_number_as_ds(scaling_gy)
    ds.ReferencedRTPlanSequence = [reference(RTPlanStorage, plan_uid)]
    save(ds, path)
    return str(ds.SOPInstanceUID)


def _contour(points_mm: np.ndarray, geometry: Geometry, images: Sequence[Dataset]) -> Dataset:
    plane = int(np.rint(geometry.to_index(points_mm[:1])[0, 0]))
    return _outline("CLOSED_PLANAR", points_mm, images[plane])


def _outline(kind: str, points_mm: np.ndarray, image: Dataset) -> Dataset:
    return item(
        ContourImageSequence=[image],
        ContourGeometricType=kind,
        NumberOfContourPoints=len(points_mm),
        # 1 nm, which keeps each number within the 16 characters of a DS.
        ContourData=np.round(points_mm, 6).ravel().tolist(),
    )


def _kind(name: str) -> str:
    lowered = name.lower()
    if lowered.startswith(("ptv", "ctv", "gtv")):
        return lowered[:3].upper()
    if "dose" in lowered:
        return "DOSE_REGION"
    return "EXTERNAL" if lowered in {"body", "external"} else "ORGAN"


def _target(gy: float, roi_number: int | None) -> Dataset:
    target = item(DoseReferenceType="TARGET", TargetPrescriptionDose=format_number_as_ds(gy))
    target.DoseReferenceStructureType = "SITE" if roi_number is None else "VOLUME"
    if roi_number is not None:
        target.ReferencedROINumber = roi_number
    return target
