"""Writes DICOM segmentations: predictions that go back, and labels of phantoms and importers."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from med_assets import __version__
from med_assets.dicom.elements import number, text
from med_assets.dicom.enhanced import Frame, is_multi_frame, single_frames
from med_assets.dicom.geometry import SAME_AXES_TOLERANCE, Geometry
from med_assets.dicom.objects import PHANTOM_SOFTWARE, derived_uid, item, save, set_dates, set_trial
from med_assets.dicom.seg import frame_axes, frame_segment

LABEL_CHARS = 64
"""Longest SegmentLabel and algorithm name, since their VR is LO."""

ABNORMAL = {"nodule": "Nodule", "lesion": "Lesion", "mass": "Mass"}
"""Words of a label, and the type that it is coded with in the category of morphologically abnormal structures."""

TUMOUR_WORDS = ("tumor", "tumour", "cancer", "neoplasm", "gtv", "carcinoma", "metastasis")
"""Parts of a label that make it a neoplasm."""


def write_seg(
    path: Path,
    masks: Mapping[str, np.ndarray],
    geometry: Geometry,
    source: Sequence[Dataset],
    *,
    made_by: str | None = None,
    synthetic: bool = False,
    values: Mapping[str, int] | None = None,
) -> None:
    """Write masks (z, y, x) on `geometry` as one binary SEG of the `source` series; the same input gives the same bytes.

    Segments are numbered from 1 in the order of `masks`, which is gone through once. Empty frames are left out, save
    the first and the last slice, so that the file tells the extent of its grid. `made_by` names the model of a
    predicted segmentation; without it the segments are declared manual. `values` are the values that the masks have in the
    label file that they come from, and are kept as SegmentDescription. Dates are the source's. Raises ValueError where
    the masks are not on the grid, or something has no place in a SEG: no mask, a label or name of over 64 characters.
    """
    if not masks or not source:
        raise ValueError(f"expected at least one mask and one source image, got {len(masks)} and {len(source)}")
    for name in [*masks, *([made_by] if made_by is not None else [])]:
        if not 0 < len(name) <= LABEL_CHARS:
            raise ValueError(f"expected labels and model names of 1 to {LABEL_CHARS} characters, got {name!r}")
    _require_right_angles(geometry)
    pixels, marked = _pixels(masks, geometry)
    several = len(source) > 1 and any(map(is_multi_frame, source))  # of which highdicom takes one alone
    sources = single_frames(source) if several else source
    originals = _as_images(sources) if several else {}
    ds = _segmentation(pixels, list(masks), geometry, [plain_source(one) for one in sources], made_by)
    _clear(ds, geometry, marked)
    for segment, name in zip(ds.SegmentSequence, masks, strict=True):
        if values is not None:
            segment.SegmentDescription = f"source value {values[name]}"
    if several:
        _refer_to_frames(ds, originals)
    first = source[0]
    date = next((text(first, key) for key in ("ContentDate", "SeriesDate", "StudyDate") if text(first, key)), "")
    set_dates(ds, date)
    ds.SeriesDescription = "PREDICTED SEGMENTATION, NOT FOR CLINICAL USE" if made_by else "SEGMENTATION"
    ds.ContentDescription = f"predicted by {made_by}"[:LABEL_CHARS] if made_by else None
    for equipment in ds.get("ContributingEquipmentSequence") or ():
        equipment.pop("ContributionDateTime", None)  # the time of writing
    if synthetic:
        ds.ManufacturerModelName = ds.SoftwareVersions = PHANTOM_SOFTWARE
    if protocol := text(first, "ClinicalTrialProtocolID"):
        set_trial(ds, protocol, text(first, "ClinicalTrialSiteID"))
    content = hashlib.sha256(
        ds.PixelData + repr((list(masks), geometry, *([values] if values else []))).encode()
    ).hexdigest()
    organization = derived_uid(ds.SeriesInstanceUID, "dimensions", content)
    ds.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in ds.DimensionIndexSequence:
        index.DimensionOrganizationUID = organization
    ds.SOPInstanceUID = derived_uid(ds.SeriesInstanceUID, "SEG", content)
    save(ds, path)


def _require_right_angles(geometry: Geometry) -> None:
    direction = np.asarray(geometry.direction, float)
    if np.abs(direction @ direction.T - np.eye(3)).max() > SAME_AXES_TOLERANCE:
        raise ValueError("expected a grid with perpendicular axes, got a sheared one, which DICOM slices can't hold")


def _pixels(masks: Mapping[str, np.ndarray], geometry: Geometry) -> tuple[np.ndarray, set[int]]:
    """One array of segment numbers (z, y, x), or where masks overlap bools (z, y, x, segment); and the end slices that
    are empty, in which the corner voxel is marked as segment 1.
    """
    labels = np.zeros(geometry.shape, np.uint8 if len(masks) < 256 else np.uint16)
    stack: list[np.ndarray] = []
    for key, (name, mask) in enumerate(masks.items(), start=1):
        mask = np.asarray(mask, bool)
        if mask.shape != tuple(geometry.shape):
            raise ValueError(f"expected the mask of {name!r} on the grid {geometry.shape}, got {mask.shape}")
        if not stack and labels[mask].any():
            stack = [labels == earlier for earlier in range(1, key)]
        if stack:
            stack.append(mask)
        else:
            labels[mask] = key
    pixels = np.stack(stack, axis=-1) if stack else labels
    # highdicom leaves empty frames out: one voxel makes it keep this one, and `_clear` takes it back.
    marked = {end for end in (0, geometry.shape[0] - 1) if not pixels[end].any()}
    for end in marked:
        pixels[(end, 0, 0, 0) if stack else (end, 0, 0)] = 1
    return pixels, marked


def _clear(ds: Dataset, geometry: Geometry, marked: Collection[int]) -> None:
    """Clear the corner voxel of segment 1 that `_pixels` set in the `marked` slices."""
    shared, data = ds.SharedFunctionalGroupsSequence[0], bytearray(ds.PixelData)
    for place_in_file, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        origin = frame_axes(frame, shared)[0]
        row = int(np.rint(geometry.to_index(origin)[0, 0]))
        if row in marked and frame_segment(frame, shared) == 1:
            bit = place_in_file * ds.Rows * ds.Columns
            data[bit // 8] &= ~(1 << bit % 8) & 0xFF
    ds.PixelData = bytes(data)


def _segmentation(
    pixels: np.ndarray, labels: Sequence[str], geometry: Geometry, source: Sequence[Dataset], made_by: str | None
) -> Any:
    import highdicom
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    algorithm = None
    if made_by is not None:
        family = codes.DCM.ArtificialIntelligence
        algorithm = highdicom.AlgorithmIdentificationSequence(name=made_by, family=family, version=__version__)
    kind = SegmentAlgorithmTypeValues.MANUAL if algorithm is None else SegmentAlgorithmTypeValues.AUTOMATIC
    descriptions = [
        SegmentDescription(key, label, *coded(label), algorithm_type=kind, algorithm_identification=algorithm)
        for key, label in enumerate(labels, start=1)
    ]
    affine = geometry.affine()
    positions = [_decimal(affine @ (index, 0, 0, 1)) for index in range(geometry.shape[0])]
    series_uid = derived_uid(text(source[0], "SeriesInstanceUID"), "SEG series", made_by or "")
    logging.getLogger("highdicom").setLevel(logging.WARNING)  # below that it names the original's UIDs
    with warnings.catch_warnings():
        # A pseudonym has one component.
        warnings.filterwarnings("ignore", message=".*unlikely to represent the intended person name.*")
        return highdicom.seg.Segmentation(
            source_images=source,
            pixel_array=pixels,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=series_uid,
            series_number=int(number(source[0], "SeriesNumber") or 0) + (200 if made_by else 100),
            sop_instance_uid=derived_uid(series_uid, "SEG"),
            instance_number=1,
            manufacturer="med_assets",
            manufacturer_model_name="med_assets",
            software_versions=__version__,
            device_serial_number="0",
            content_label="SEGMENTATION",
            plane_positions=[highdicom.PlanePositionSequence("PATIENT", place) for place in positions],
            plane_orientation=highdicom.PlaneOrientationSequence(
                "PATIENT", [float(value) for axis in (2, 1) for value in geometry.direction[axis]]
            ),
            pixel_measures=highdicom.PixelMeasuresSequence(
                pixel_spacing=geometry.spacing_mm[1:],
                slice_thickness=geometry.spacing_mm[0],
                spacing_between_slices=geometry.spacing_mm[0],
            ),
        )


def _decimal(point: np.ndarray) -> list[float]:
    """A position as the decimal text of DICOM holds it: a picometre, in 16 characters."""
    return [float(format_number_as_ds(round(float(value), 9))) for value in point[:3]]


def _as_images(frames: Sequence[Dataset]) -> dict[str, Frame]:
    """Give each frame of multi-frame objects a UID of its own, as single-frame images have; returns the frames by it."""
    named = {}
    for frame in frames:
        if isinstance(frame, Frame):
            frame.SOPInstanceUID = derived_uid(frame.SOPInstanceUID, "frame", str(frame.index))
            named[str(frame.SOPInstanceUID)] = frame
    return named


def _refer_to_frames(ds: Dataset, frames: Mapping[str, Frame]) -> None:
    """Put the objects and frame numbers in place of the UIDs that `_as_images` gave."""
    for element in ds:
        if element.VR != "SQ":
            continue
        kept: dict[str, Dataset] = {}
        for number_in_file, one in enumerate(element.value):
            frame = frames.get(text(one, "ReferencedSOPInstanceUID"))
            if frame is None:
                _refer_to_frames(one, frames)
                kept[str(number_in_file)] = one
                continue
            one.ReferencedSOPClassUID = frame.source.SOPClassUID
            one.ReferencedSOPInstanceUID = frame.source.SOPInstanceUID
            if element.keyword == "SourceImageSequence":
                one.ReferencedFrameNumber = frame.index + 1
            kept.setdefault(f"{one.ReferencedSOPInstanceUID} {one.get('ReferencedFrameNumber', '')}", one)
        element.value = list(kept.values())


def plain_source(source: Dataset) -> Dataset:
    """A source image with the elements that highdicom takes from it; those that may be absent are empty."""
    plain = item(
        PatientID="", PatientName="", PatientBirthDate="", PatientSex="", AccessionNumber="", StudyID="",
        StudyDate="", StudyTime="", ReferringPhysicianName="",
    )  # fmt: skip
    for element in source:
        if element.keyword and element.keyword not in ("PixelData", "WindowCenter", "WindowWidth"):
            plain[element.tag] = element
    plain.SpecificCharacterSet = "ISO_IR 192"
    return plain


def coded(label: str) -> tuple[Any, Any]:
    """Category and type of a label: abnormal structures by their words, organs by the standard's list, else a tissue."""
    from pydicom.sr.codedict import codes

    words = label.lower().replace("_", " ").replace("-", " ").split()
    abnormal = codes.SCT.MorphologicallyAbnormalStructure
    for word, keyword in ABNORMAL.items():
        if any(one.startswith(word) for one in words):
            return abnormal, getattr(codes.SCT, keyword)
    if any(word in one for one in words for word in TUMOUR_WORDS):
        return abnormal, codes.SCT.Neoplasm
    structure = "".join(word.capitalize() for word in words)
    if structure in dir(codes.cid7192):
        return codes.SCT.AnatomicalStructure, getattr(codes.cid7192, structure)
    return codes.SCT.Tissue, codes.SCT.Tissue
