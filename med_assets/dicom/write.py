"""Writes CT, MR, RTSTRUCT, RTPLAN and RTDOSE files that refer to each other by UID, as a planning system would.

Arrays are (z, y, x); millimetres are LPS patient coordinates. All bytes follow from the arguments: UIDs are hashes of
`Identity.study_uid` and a role, so writing twice gives the same files.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, MRImageStorage, RTDoseStorage, RTPlanStorage, RTStructureSetStorage
from pydicom.valuerep import format_number_as_ds

from med_assets.dicom.contours import mask_to_contours
from med_assets.dicom.elements import image_axes, text
from med_assets.dicom.enhanced import single_frames
from med_assets.dicom.geometry import Geometry, Volume
from med_assets.dicom.objects import (
    SYNTHETIC_IMAGE_TYPE,
    Identity,
    code_item,
    derived_uid,
    image_reference,
    is_synthetic,
    item,
    new_object,
    reference,
    save,
    set_pixels,
    set_plane,
    set_position,
)

__all__ = [
    "Identity",
    "derived_uid",
    "is_synthetic",
    "mask_to_contours",
    "write_ct",
    "write_mr",
    "write_points",
    "write_predicted_masks",
    "write_rtdose",
    "write_rtplan",
    "write_rtstruct",
]

CT_INTERCEPT_HU = -1024
"""Default RescaleIntercept of written CT. Stored values are unsigned 16 bit, so no HU below the intercept can be written."""

SAME_PLANE_MM = 0.01
"""How far a contour may lie off a slice that it names: positions are written to a micrometre or better."""

DOSE_STEP_GY = 1e-4
"""Finest DoseGridScaling. Doses are written in 16 bit, which every planning system, viewer and validator reads (dciodvfy
aborts at 32 bit): over 6.5535 Gy the step is 1/65535 of the largest dose, so that one of 80 Gy is off by at most 0.6 mGy."""

DOSE_STEP_DIGITS = 9
"""Decimals of a DoseGridScaling in Gy, rounded up, so that the largest dose fits."""


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

    return write_slices(folder, stored, volume_hu.geometry, identity, ("CT", CTImageStorage, series_uid), finish)


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

    return write_slices(folder, stored, volume.geometry, identity, ("MR", MRImageStorage, series_uid), finish)


def write_slices(
    folder: Path,
    stored: np.ndarray,
    geometry: Geometry,
    identity: Identity,
    series: tuple[str, str, str],
    finish: Callable[[Dataset], None],
) -> tuple[str, ...]:
    """One file per slice of unsigned 16-bit `stored`; `series` is modality, SOP class and UID, `finish` adds the modality's own."""
    modality, sop_class, series_uid = series
    affine = geometry.affine()
    uids = [identity.uid(modality, series_uid, str(index)) for index in range(len(stored))]
    ds = new_object(identity, sop_class, modality, series_uid, "")
    for index, pixels in enumerate(stored.astype("<u2")):
        ds.SOPInstanceUID, ds.InstanceNumber = uids[index], index + 1
        set_position(ds, affine @ (index, 0, 0, 1))
        path = folder / f"{index:04d}.dcm"
        if index:  # what all slices share is written as it was read, without being encoded again
            ds["PixelData"].value = pixels.tobytes()
            save(ds, path)
            continue
        ds.SeriesNumber, ds.AcquisitionNumber = 1, 1
        ds.PatientPosition, ds.Laterality = "HFS", ""
        ds.SliceThickness = format_number_as_ds(geometry.spacing_mm[0])
        set_plane(ds, geometry, affine @ (index, 0, 0, 1))
        set_pixels(ds, pixels)
        finish(ds)
        save(ds, path)
        ds = dcmread(path)
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


def write_predicted_masks(
    path: Path,
    rois: Mapping[str, np.ndarray],
    geometry: Geometry,
    identity: Identity,
    source: Sequence[Dataset],
    model: str,
) -> str:
    """Write predicted masks (z, y, x) as an RTSTRUCT of the `source` series, holes as keyholes; returns the SOP instance UID.

    Keyholes are what the standard has for CLOSED_PLANAR and what systems without CLOSEDPLANAR_XOR read. A contour names the
    slice in whose plane it lies. ROIs are of no interpreted type, generated automatically and unapproved.
    """
    frames = single_frames(source)
    planes = _slices_in(frames, geometry)
    drawn = {
        name: ("", [_contour(points, geometry, planes) for points in mask_to_contours(mask, geometry, keyholes=True)])
        for name, mask in rois.items()
    }
    images = [image for image in planes if image is not None]
    return _write_structure_set(path, drawn, identity, text(frames[0], "SeriesInstanceUID"), images, predicted_by=model)


def _slices_in(frames: Sequence[Dataset], geometry: Geometry) -> list[Dataset | None]:
    """A reference to the image in each plane of the grid, None where none lies in it."""
    _, rows, columns = geometry.shape
    placed = [(origin, axes[0]) for origin, axes, _ in map(image_axes, frames)]
    origins, normals = (np.array(each) for each in zip(*placed, strict=True))
    found: list[Dataset | None] = []
    for plane in range(geometry.shape[0]):
        corners = geometry.to_points(np.array([[plane, 0, 0], [plane, rows - 1, 0], [plane, 0, columns - 1]], float))
        off_mm = np.abs(np.einsum("fcx,fx->fc", corners[None] - origins[:, None], normals)).max(axis=1)
        nearest = int(off_mm.argmin())
        found.append(image_reference(frames[nearest]) if off_mm[nearest] <= SAME_PLANE_MM else None)
    return found


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
    return _write_structure_set(path, drawn, identity, series_uid, references, (series_uid,), predicted_by)


def _write_structure_set(
    path: Path,
    drawn: Mapping[str, tuple[str, list[Dataset]]],
    identity: Identity,
    series_uid: str,
    images: Sequence[Dataset],
    role: tuple[str, ...] = (),
    predicted_by: str = "",
) -> str:
    """Write ROIs, each an interpreted type and contours; `role` tells several structure sets of one study apart."""
    if predicted_by:
        role = (series_uid, "predicted", predicted_by)
    ds = new_object(
        identity,
        RTStructureSetStorage,
        "RTSTRUCT",
        identity.uid("RTSTRUCT series", *role),
        identity.uid("RTSTRUCT", *role),
    )
    ds.SeriesNumber, ds.InstanceNumber = 2, 1
    ds.StructureSetLabel = "contours"
    if predicted_by:
        ds.StructureSetDescription = f"PREDICTED BY {predicted_by}, NOT FOR CLINICAL USE"
        ds.SeriesDescription, ds.ApprovalStatus = ds.StructureSetDescription[:64], "UNAPPROVED"
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
                ROIGenerationAlgorithm="AUTOMATIC" if predicted_by else "SEMIAUTOMATIC",
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
    *,
    predicted_by: str = "",
) -> str:
    """Write a plan without beams: prescription, dose per target (ROI number -> Gy) and fractions, if known. Returns its UID.

    `predicted_by` names the model of the predicted dose that the plan carries: nobody planned it, and it says so.
    """
    role = ("RTPLAN", "predicted", predicted_by) if predicted_by else ("RTPLAN",)
    series_uid = identity.uid(" ".join([*role, "series"]))
    ds = new_object(identity, RTPlanStorage, "RTPLAN", series_uid, identity.uid(*role))
    ds.SeriesNumber, ds.InstanceNumber = 3, 1
    ds.RTPlanLabel, ds.RTPlanDate, ds.RTPlanTime = "plan", identity.study_date, ""
    if predicted_by:
        ds.RTPlanLabel, ds.SeriesDescription = "PREDICTED", "PREDICTED DOSE, NOT FOR CLINICAL USE"
        ds.RTPlanDescription = f"carries a dose predicted by {predicted_by}, no beams, not for clinical use"
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
    predicted_by: str = "",
    structures: Sequence[Dataset] = (),
    images: Sequence[Dataset] = (),
) -> str:
    """Write the dose of a whole plan as unsigned 16 bit; it reads back within half of `dose_step_gy`. Returns its UID.

    `predicted_by` (at most 29 characters) names the model of a predicted dose: it gets a series of its own, and says that it was predicted in
    SeriesDescription and DoseComment. `structures` and `images` are the structure sets and slices that it is of, to refer to. Raises ValueError when a dose is negative or not finite.
    """
    dose = np.asarray(dose_gy.array, dtype=np.float64)
    if not np.isfinite(dose).all() or dose.min() < 0:
        raise ValueError(f"expected finite dose from 0 Gy, got {dose.min()} to {dose.max()}; clamp the dose")
    step_gy = dose_step_gy(float(dose.max()))
    levels = np.rint(dose / step_gy)
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
    set_pixels(ds, levels.astype("<u2"))
    normal = np.cross(geometry.direction[2], geometry.direction[1])
    step_mm = geometry.spacing_mm[0] * (1 if normal @ np.asarray(geometry.direction[0]) > 0 else -1)
    ds.NumberOfFrames = geometry.shape[0]
    ds.FrameIncrementPointer = 0x3004000C
    ds.GridFrameOffsetVector = [format_number_as_ds(round(k * step_mm, 9)) for k in range(geometry.shape[0])]
    ds.DoseUnits, ds.DoseType, ds.DoseSummationType = "GY", "PHYSICAL", "PLAN"
    ds.DoseGridScaling = format_number_as_ds(step_gy)
    ds.ReferencedRTPlanSequence = [reference(RTPlanStorage, plan_uid)]
    if structures:
        # Not ReferencedStructureSetSequence, which belongs to the module of DVHs.
        ds.ReferencedInstanceSequence = [image_reference(one) for one in structures]
        for one in ds.ReferencedInstanceSequence:
            one.PurposeOfReferenceCodeSequence = [code_item("128211", "DCM", "RT Treatment Planning Input Used")]
    if images:
        ds.ReferencedImageSequence = [image_reference(one) for one in images]
    save(ds, path)
    return str(ds.SOPInstanceUID)


def dose_step_gy(largest_gy: float) -> float:
    """The DoseGridScaling, Gy, at which a dose of up to `largest_gy` fits into 16 bit."""
    scale = 10.0**DOSE_STEP_DIGITS
    return max(DOSE_STEP_GY, float(np.ceil(largest_gy / np.iinfo(np.uint16).max * scale) / scale))


def _contour(points_mm: np.ndarray, geometry: Geometry, images: Sequence[Dataset | None]) -> Dataset:
    plane = int(np.rint(geometry.to_index(points_mm[:1])[0, 0]))
    return _outline("CLOSED_PLANAR", points_mm, images[plane])


def _outline(kind: str, points_mm: np.ndarray, image: Dataset | None) -> Dataset:
    return item(
        **({} if image is None else {"ContourImageSequence": [image]}),
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
