"""Ophthalmic tomography (OPT): one multi-frame object is a stack of B-scans with its spacing in functional groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydicom.uid import OphthalmicTomographyImageStorage
from pydicom.valuerep import format_number_as_ds

from med_assets.dicom.elements import decoded, number, numbers, regular_spacing, text
from med_assets.dicom.objects import (
    SYNTHETIC_IMAGE_TYPE,
    UNDATED,
    Identity,
    code_item,
    item,
    new_object,
    save,
    set_labels,
    set_pixels,
)
from med_assets.errors import CaseRejected

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PARALLEL_DEGREES = 5.0
"""How far the line of a B-scan on the fundus may be turned against the first one's in a raster scan."""

SAME_DISTANCE = 1e-3
"""Share by which distances of frames may differ that are stated frame by frame."""

LATERALITIES = ("R", "L")

FRAME_S = 0.001
"""Duration of a written B-scan in seconds, which the standard requires and no source states: that of a nominal device."""


@dataclass(frozen=True)
class Tomogram:
    """B-scans as float32 (frame, row, column): across the retina, into its depth, along a B-scan.

    `spacing_mm` is in that order. `frames_from` says what the distance of frames was read from: "positions" of the frames,
    "spacing" between slices as stated, or "thickness", a nominal one, of which the audit warns. `laterality` is R, L or empty.
    `raster` is None where the frames do not say where on the fundus they lie.
    """

    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    frames_from: str
    laterality: str
    raster: bool | None


def read_opt(ds: Dataset) -> Tomogram:
    """Return the frames of an OPT object and their spacing, which stands in its functional groups.

    Frames come in the order of their positions, else of their numbers in the stack, whatever the order that they are stored in.
    Raises CaseRejected: "wrong_modality", "single_frame", "missing_geometry" (no spacing is ever made up, nor a group of a frame), "not_raster" (a
    ring or radial scan), and the codes of `decoded` and `regular_spacing`.
    """
    if text(ds, "SOPClassUID") != OphthalmicTomographyImageStorage:
        raise CaseRejected("wrong_modality", "Expected an Ophthalmic Tomography Image; got another kind. Leave it out.")
    frames, rows, columns = (int(number(ds, name) or 0) for name in ("NumberOfFrames", "Rows", "Columns"))
    if frames < 2:
        raise CaseRejected(
            "single_frame", f"Expected a volume of 2 B-scans or more; got {frames}. Send the volume scan."
        )
    shared, per_frame = _groups(ds, "Shared"), _groups(ds, "PerFrame")
    if len(per_frame) != frames:
        raise CaseRejected(
            "missing_geometry",
            f"Expected functional groups for each of {frames} frames; got {len(per_frame)}. Export the original object.",
        )
    pixel, stated, stated_from = _measures(shared, per_frame)
    positions = [numbers(one, "ImagePositionPatient") for group in per_frame for one in _in(group, "PlanePosition")]
    distance: float | None
    order = _stored_order(per_frame)
    places = [one for one in positions if one is not None and one.size == 3]
    if len(places) == frames:
        along = _along_the_stack(np.array(places))
        distance, source = regular_spacing(np.sort(along)), "positions"
        order = np.argsort(along, kind="stable")
    else:
        distance, source = stated, stated_from
    if distance is None or distance <= 0:
        raise CaseRejected(
            "missing_geometry",
            "Expected the distance of frames in PlanePosition, SpacingBetweenSlices or SliceThickness of the functional groups; got none. Export the "
            "original object: no spacing is made up here.",
        )
    raster = _is_raster(per_frame)
    if raster is False:
        raise CaseRejected("not_raster", "Expected parallel B-scans; got a ring or radial scan. Send the raster scan.")
    stored, array = decoded(ds, (frames, rows, columns)), np.empty((frames, rows, columns), np.float32)
    for frame, index in enumerate(order):
        array[frame] = stored[index]
    side = text(ds, "ImageLaterality") or next(
        (text(one, "FrameLaterality") for one in _in(shared[0], "FrameAnatomy")), ""
    )
    return Tomogram(array, (float(distance), *pixel), source, side if side in LATERALITIES else "", raster)


def write_opt(
    path: Path,
    array: np.ndarray,
    spacing_mm: tuple[float, float, float],
    identity: Identity,
    *,
    role: str,
    laterality: str,
    extra: Mapping[str, str] | None = None,
) -> str:
    """Write frames (frame, row, column), rounded to unsigned 16 bit, as one OPT raster scan; returns the SOP instance UID.

    `role` tells several scans of one study apart. `extra` sets elements at the top, by keyword. The frame of reference is the
    scan's own: the first frame lies at its origin, and its position in the patient is unknown. Raises ValueError for
    values that do not fit, or a laterality other than R and L.
    """
    stored = np.rint(np.asarray(array, dtype=np.float64))
    if stored.ndim != 3 or not np.isfinite(stored).all() or stored.min() < 0 or stored.max() > np.iinfo(np.uint16).max:
        raise ValueError(
            f"expected finite values from 0 to 65535 in three axes, got {np.shape(array)}; scale them first"
        )
    if laterality not in LATERALITIES:
        raise ValueError(f"expected a laterality of {LATERALITIES}, got {laterality!r}")
    series, uid = identity.uid("OPT series", role), identity.uid("OPT", role)
    ds = new_object(identity, OphthalmicTomographyImageStorage, "OPT", series, uid)
    frames, _, columns = stored.shape
    organisation = identity.uid("OPT dimensions", role)
    when = f"{identity.study_date or UNDATED}000000"
    ds.ImageType = ["ORIGINAL", "PRIMARY", SYNTHETIC_IMAGE_TYPE] if identity.synthetic else ["ORIGINAL", "PRIMARY"]
    ds.SeriesNumber, ds.InstanceNumber, ds.ImageLaterality = 1, 1, laterality
    ds.ContentDate, ds.ContentTime, ds.AcquisitionDateTime = when[:8], "000000", when
    # Enumerated as 1 of 1 for OPT (PS3.3 C.8.17.7), though dciodvfy takes them for a concatenation.
    ds.InConcatenationNumber, ds.InConcatenationTotalNumber, ds.ConcatenationFrameOffsetNumber = 1, 1, 0
    ds.AcquisitionNumber, ds.AcquisitionDuration, ds.DetectorType = 1, FRAME_S * frames, "CCD"
    ds.AcquisitionDeviceTypeCodeSequence = [code_item("392012008", "SCT", "Optical Coherence Tomography Scanner")]
    ds.AcquisitionContextSequence = ds.RefractiveStateSequence = ds.LightPathFilterTypeStackCodeSequence = []
    ds.PupilDilated, ds.IntraOcularPressure, ds.EmmetropicMagnification = "", None, None
    ds.DeviceSerialNumber = "0"
    for keyword in ("ManufacturerModelName", "SoftwareVersions"):
        if keyword not in ds:
            setattr(ds, keyword, "med_assets")
    ds.BurnedInAnnotation, ds.LossyImageCompression, ds.PresentationLUTShape = "NO", "00", "IDENTITY"
    ds.AxialLengthOfTheEye = ds.HorizontalFieldOfView = None
    ds.AnatomicRegionSequence = [_retina()]
    ds.DimensionOrganizationSequence = [item(DimensionOrganizationUID=organisation)]
    ds.DimensionIndexSequence = [
        item(DimensionOrganizationUID=organisation, DimensionIndexPointer=0x00209057, FunctionalGroupPointer=0x00209111)
    ]
    frame_mm, depth_mm, lateral_mm = (format_number_as_ds(float(step)) for step in spacing_mm)
    ds.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[item(PixelSpacing=[depth_mm, lateral_mm], SliceThickness=frame_mm)],
            PlaneOrientationSequence=[item(ImageOrientationPatient=["1", "0", "0", "0", "1", "0"])],
            FrameAnatomySequence=[item(FrameLaterality=laterality, AnatomicRegionSequence=[_retina()])],
        )
    ]
    place = item(
        ReferencedSOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.5.1", ReferencedSOPInstanceUID=identity.uid("fundus")
    )
    ds.PerFrameFunctionalGroupsSequence = [
        item(
            FrameContentSequence=[
                item(
                    FrameAcquisitionDateTime=when,
                    FrameReferenceDateTime=when,
                    FrameAcquisitionDuration=FRAME_S * 1000,
                    StackID="1",
                    InStackPositionNumber=index + 1,
                    DimensionIndexValues=[index + 1],
                )
            ],
            PlanePositionSequence=[
                item(ImagePositionPatient=["0", "0", format_number_as_ds(round(index * float(spacing_mm[0]), 9))])
            ],
            OphthalmicFrameLocationSequence=[
                item(
                    ReferencedSOPClassUID=place.ReferencedSOPClassUID,
                    ReferencedSOPInstanceUID=place.ReferencedSOPInstanceUID,
                    ReferenceCoordinates=[float(index + 1), 1.0, float(index + 1), float(columns)],
                    OphthalmicImageOrientation="LINEAR",
                )
            ],
        )
        for index in range(frames)
    ]
    ds.NumberOfFrames = frames
    set_pixels(ds, stored.astype("<u2"))
    set_labels(ds, extra or {})
    save(ds, path)
    return uid


def _retina() -> Dataset:
    return item(CodeValue="81745001", CodingSchemeDesignator="SCT", CodeMeaning="Eye")


def _groups(ds: Dataset, which: str) -> list[Dataset]:
    found = list(ds.get(f"{which}FunctionalGroupsSequence") or ())
    if not found:
        raise CaseRejected(
            "missing_geometry",
            f"Expected {which}FunctionalGroupsSequence, which holds spacing; got none. Export the original.",
        )
    return found


def _in(group: Dataset, name: str) -> list[Dataset]:
    return list(group.get(f"{name}Sequence") or ())


def _measures(
    shared: list[Dataset], per_frame: list[Dataset]
) -> tuple[tuple[float, float], float | None, Literal["spacing", "thickness"]]:
    """Pixel spacing (into the depth, along the B-scan), the stated distance of frames, mm, and which element states it."""
    given = [one for group in (*shared, *per_frame) for one in _in(group, "PixelMeasures")]
    spacings = {tuple(map(float, found)) for one in given if (found := numbers(one, "PixelSpacing")) is not None}
    if len(spacings) != 1 or len(only := next(iter(spacings))) != 2 or min(only) <= 0:
        raise CaseRejected(
            "missing_geometry",
            f"Expected one PixelSpacing of two numbers above 0 in PixelMeasuresSequence (5200,9229); got {len(spacings)}. Export "
            "the original object: no spacing is made up here.",
        )
    spacing = _one_distance(given, "SpacingBetweenSlices")
    if spacing is not None:
        return (only[0], only[1]), abs(spacing), "spacing"
    return (only[0], only[1]), _one_distance(given, "SliceThickness"), "thickness"


def _one_distance(measures: list[Dataset], keyword: str) -> float | None:
    """The one value that all frames state, None where none does."""
    values = {value for one in measures if (value := number(one, keyword))}
    if values and max(values) - min(values) > SAME_DISTANCE * abs(max(values)):
        raise CaseRejected(
            "inconsistent_geometry",
            f"Expected one {keyword} for all frames; got {len(values)} values from {min(values):.4g} to {max(values):.4g} mm. Export the "
            "original object with positions of its frames.",
        )
    return max(values, default=None)


def _along_the_stack(places: np.ndarray) -> np.ndarray:
    """Distance in mm of each position (n, 3) from the first along the line that they lie on, towards left, posterior or superior."""
    offsets = places - places[0]
    far = offsets[int(np.linalg.norm(offsets, axis=1).argmax())]
    normal = far / max(float(np.linalg.norm(far)), 1e-9)
    return np.asarray(offsets @ normal * (1 if normal[np.abs(normal).argmax()] > 0 else -1))


def _stored_order(per_frame: list[Dataset]) -> np.ndarray:
    """Frames by InStackPositionNumber, else by the last of their dimension indices, else as they are stored."""
    contents = [next(iter(_in(group, "FrameContent")), item()) for group in per_frame]
    by_stack = [number(one, "InStackPositionNumber") for one in contents]
    by_index = [
        None if (found := numbers(one, "DimensionIndexValues")) is None else float(found[-1]) for one in contents
    ]
    for places in (by_stack, by_index):
        if None not in places and len(set(places)) == len(places):
            return np.argsort(np.array(places, float), kind="stable")
    return np.arange(len(per_frame))


def _is_raster(per_frame: list[Dataset]) -> bool | None:
    found = [_line(one) for group in per_frame for one in _in(group, "OphthalmicFrameLocation")]
    lines = [line for line in found if line is not None]
    if len(lines) < len(per_frame) or not lines:
        return None
    along = np.array([line[-2:] - line[:2] for line in lines], dtype=float)
    lengths = np.linalg.norm(along, axis=1)
    if lengths.min() <= 0:
        return False
    cosines = np.abs(along @ along[0]) / (lengths * lengths[0])
    return bool(cosines.min() >= np.cos(np.radians(PARALLEL_DEGREES)))


def _line(location: Dataset) -> np.ndarray | None:
    """The points (row, column) of a frame on its localizer, (2n,); None where they are not pairs of numbers, two or more."""
    try:
        found = np.asarray(location.get("ReferenceCoordinates"), dtype=float).reshape(-1)
    except (TypeError, ValueError):
        return None
    return found if found.size >= 4 and found.size % 2 == 0 and np.isfinite(found).all() else None
