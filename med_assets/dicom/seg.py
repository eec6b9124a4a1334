"""DICOM segmentations: labels that arrive, predictions that go back, and whether a label lies on an image's grid.

Arrays are (z, y, x); millimetres are LPS patient coordinates. What a reader needs survives de-identification: a label
that is not in the program's vocabulary is `UNRECOGNISED_<k>` afterwards, and is read like any other.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.valuerep import format_number_as_ds

from med_assets import __version__
from med_assets.dicom.discover import describe
from med_assets.dicom.enhanced import Frame, is_multi_frame, single_frames
from med_assets.dicom.frames import (
    DUPLICATE_DISTANCE_MM,
    SPACING_TOLERANCE_MM,
    Axes,
    decoding,
    image_axes,
    number,
    text,
)
from med_assets.dicom.geometry import IN_PLANE_TOLERANCE_MM, SAME_AXES_TOLERANCE, Geometry, placed
from med_assets.dicom.objects import PHANTOM_SOFTWARE, derived_uid, item, save
from med_assets.dicom.pixel_data import require_syntax
from med_assets.errors import CaseRejected

IDENTICAL_MM = 1e-6
"""Largest difference between two affines (LPS mm, or mm per voxel) that are called identical."""

FLOAT_NOISE_MM = 1e-3
"""Largest difference between two affines that single precision or decimal text explains; more is another grid."""

FLOAT_NOISE_VOXELS = 0.1
"""How far any voxel centre may be off, in voxels: a noise of 1e-3 mm per voxel adds up across a wide image."""

SLICE_NOISE_MM = 2 * SPACING_TOLERANCE_MM
"""How far a frame of a label may lie from its slice of the image: each may be off its even stack by the tolerance of the readers."""

SAME_STRIDE = 0.05
"""How far the distance of frames may be from a whole number of image slices, in slices."""

LABEL_CHARS = 64
"""Longest SegmentLabel and algorithm name, since their VR is LO."""

ABNORMAL = {"nodule": "Nodule", "lesion": "Lesion", "mass": "Mass"}
"""Words of a label, and the type that it is coded with in the category of morphologically abnormal structures."""

TUMOUR_WORDS = ("tumor", "tumour", "cancer", "neoplasm", "gtv", "carcinoma", "metastasis")
"""Parts of a label that make it a neoplasm."""

_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_PLACE = (
    ("PlanePositionSequence", "ImagePositionPatient"),
    ("PlaneOrientationSequence", "ImageOrientationPatient"),
    ("PixelMeasuresSequence", "PixelSpacing"),
)


@dataclass(frozen=True, eq=False)
class Segment:
    """One segment: its number in the file, its label, and its bool mask (z, y, x) on the grid of the file."""

    number: int
    label: str
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class Segments:
    """All segments of a file, by number, on one canonical grid, and the SOP instances that the file says it was made on.

    The grid reaches from the first to the last frame stored. `spacing_known` is False where the file does not give the
    distance of its slices, so that it follows from the frames stored, between which others may have been left out.
    """

    geometry: Geometry
    segments: tuple[Segment, ...]
    source_sops: tuple[str, ...]
    spacing_known: bool = True


@dataclass(frozen=True)
class Agreement:
    """How a label's grid lies to an image's. `drift_mm` is the largest difference between the entries of both affines."""

    kind: Literal["identical", "float_noise", "mismatch"]
    drift_mm: float
    text: str


def read_segments(dataset: Dataset) -> Segments:
    """Return the segments of a binary or labelmap SEG; one without frames has an empty mask.

    Empty frames may be left out of a file, so slices without a frame are empty. Raises `CaseRejected`:
    "wrong_modality", "fractional_segmentation", "missing_segments", "duplicate_segment", "missing_geometry",
    "inconsistent_geometry", "nonuniform_spacing", "not_axial", "truncated_file", "undecodable_pixels".
    """
    kind = _kind(dataset)
    labels = _labels(dataset)
    frames = list(dataset.get(_PER_FRAME) or ())
    count = int(number(dataset, "NumberOfFrames") or 0)
    if not frames or len(frames) != count:
        raise CaseRejected(
            "missing_geometry",
            f"Expected functional groups for each of {count} frames of a segmentation; got {len(frames)}. Export again.",
        )
    shared = next(iter(dataset.get(_SHARED) or ()), Dataset())
    axes, slices, spacing_mm, known = _stack([_axes(frame, shared) for frame in frames], _declared(frames, shared))
    size = (int(slices.max()) + 1, int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0))
    masks = {key: np.zeros(size, bool) for key in labels}
    numbers = [None if kind == "LABELMAP" else _segment_number(frame, shared) for frame in frames]
    if {key for key in numbers if key is not None} - set(labels):
        raise CaseRejected("missing_segments", "Expected frames of listed segments; some belong to none. Export again.")
    for row, key, pixels in zip(slices, numbers, _frames(dataset, count, size[1:]), strict=True):
        if key is not None:
            masks[key][row] |= pixels != 0
            continue
        for value in np.unique(pixels):
            if int(value) in masks:
                masks[int(value)][row] |= pixels == value
            elif value != 0:
                raise CaseRejected("missing_segments", "Expected a segment for each value of a labelmap; one has none.")
    volumes = {key: placed(mask, axes, spacing_mm) for key, mask in masks.items()}
    segments = tuple(Segment(key, labels[key], volumes[key].array) for key in sorted(labels))
    return Segments(next(iter(volumes.values())).geometry, segments, describe(dataset).referenced_sops, known)


def write_seg(
    path: Path,
    masks: Mapping[str, np.ndarray],
    geometry: Geometry,
    source: Sequence[Dataset],
    *,
    made_by: str | None = None,
    synthetic: bool = False,
) -> None:
    """Write masks (z, y, x) on `geometry` as one binary SEG of the `source` series; the same input gives the same bytes.

    Segments are numbered from 1 in the order of `masks`, which is gone through once. Empty frames are left out, save
    the first and the last slice, so that the file tells the extent of its grid. `made_by` names the model of a
    predicted segmentation; without it the segments are declared manual. Dates are the source's. Raises ValueError where
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
    if several:
        _refer_to_frames(ds, originals)
    first = source[0]
    date = next((text(first, key) for key in ("ContentDate", "SeriesDate", "StudyDate") if text(first, key)), "")
    ds.InstanceCreationDate = ds.ContentDate = ds.SeriesDate = date
    ds.InstanceCreationTime = ds.ContentTime = ds.SeriesTime = "000000" if date else ""
    ds.SeriesDescription = "PREDICTED SEGMENTATION, NOT FOR CLINICAL USE" if made_by else "SEGMENTATION"
    ds.ContentDescription = f"predicted by {made_by}"[:LABEL_CHARS] if made_by else None
    for equipment in ds.get("ContributingEquipmentSequence") or ():
        equipment.pop("ContributionDateTime", None)  # the time of writing
    if synthetic:
        ds.ManufacturerModelName = ds.SoftwareVersions = PHANTOM_SOFTWARE
    for keyword in ("ClinicalTrialProtocolID", "ClinicalTrialSiteID"):
        if text(first, keyword):
            setattr(ds, keyword, text(first, keyword))
    content = hashlib.sha256(ds.PixelData + repr((list(masks), geometry)).encode()).hexdigest()
    organization = derived_uid(ds.SeriesInstanceUID, "dimensions", content)
    ds.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in ds.DimensionIndexSequence:
        index.DimensionOrganizationUID = organization
    ds.SOPInstanceUID = derived_uid(ds.SeriesInstanceUID, "SEG", content)
    save(ds, path)


def agreement(image: Geometry, label: Geometry) -> Agreement:
    """Say whether a label's grid is the image's, or whole slices of it, and by how much the two differ."""
    first = int(np.rint(image.to_index(np.asarray(label.origin_mm))[0, 0]))
    expected, found = image.affine(), label.affine()
    expected[:3, 3] = image.to_points(np.array([first, 0, 0]))[0]
    columns = slice(1 if label.shape[0] == 1 else 0, None)  # one slice has no distance to the next
    drift_mm = float(np.abs(expected - found)[:, columns].max())
    if label.shape[1:] != image.shape[1:]:
        return _mismatch(drift_mm, f"its slices have {_by(label)} voxels (y, x) and the image's {_by(image)}")
    # Seen along the image's own axes: slices of both may lie a little off their even stacks, voxels within a slice may not.
    along = np.asarray(image.direction) @ (expected - found)[:3]
    in_plane_mm = float(np.abs(np.delete(along.ravel(), (0, 3)).reshape(-1)[1 if label.shape[0] == 1 else 0 :]).max())
    slices_mm = float(np.abs(along[0, 3] + along[0, 0] * np.array([0, label.shape[0] - 1])).max())
    if in_plane_mm > FLOAT_NOISE_MM or slices_mm > min(SLICE_NOISE_MM, image.spacing_mm[0] / 2):
        return _mismatch(
            drift_mm,
            f"the affines differ by {drift_mm:.3g} mm (spacing z, y, x of the label "
            f"{_numbers(label.spacing_mm)} mm, of the image {_numbers(image.spacing_mm)} mm)",
        )
    last = first + label.shape[0]
    if first < 0 or last > image.shape[0]:
        return _mismatch(
            drift_mm, f"it has {max(-first, 0) + max(last - image.shape[0], 0)} slices outside the image's"
        )
    off = _farthest_voxels(image, label, first)
    if off > FLOAT_NOISE_VOXELS:
        return _mismatch(
            drift_mm, f"the affines differ by {drift_mm:.3g} mm only, but voxels by up to {off:.2f} voxels"
        )
    kind: Literal["identical", "float_noise"] = "identical" if drift_mm <= IDENTICAL_MM else "float_noise"
    where = "" if label.shape[0] == image.shape[0] else f", slices {first + 1} to {last} of {image.shape[0]}"
    noise = "" if kind == "identical" else f", but for float noise of {drift_mm:.2g} mm"
    return Agreement(kind, drift_mm, f"The label lies on the image's grid{noise}{where}.")


def place(segments: Segments, image: Geometry) -> tuple[dict[str, np.ndarray], Agreement]:
    """Return the bool masks (z, y, x) by label on the image's grid; segments of one label are united.

    Nothing is resampled. Raises `CaseRejected("grid_mismatch")` where the label's grid is not the image's.
    """
    label, stride = _at_spacing(segments, image)
    found = agreement(image, label)
    if found.kind == "mismatch":
        raise CaseRejected("grid_mismatch", found.text)
    first = int(np.rint(image.to_index(np.asarray(label.origin_mm))[0, 0]))
    masks: dict[str, np.ndarray] = {}
    for segment in segments.segments:
        mask = masks.setdefault(segment.label, np.zeros(image.shape, bool))
        mask[first : first + label.shape[0] : stride] |= segment.mask
    return masks, found


def _at_spacing(segments: Segments, image: Geometry) -> tuple[Geometry, int]:
    """The label's grid at the image's slice spacing, where the file gave none and its frames lie n image slices apart."""
    label = segments.geometry
    ratio = label.spacing_mm[0] / image.spacing_mm[0]
    stride = int(np.rint(ratio))
    if segments.spacing_known or stride < 2 or label.shape[0] == 1 or abs(ratio - stride) > SAME_STRIDE:
        return label, 1
    shape = ((label.shape[0] - 1) * stride + 1, *label.shape[1:])
    spacing = (label.spacing_mm[0] / stride, *label.spacing_mm[1:])
    return Geometry(shape, spacing, label.origin_mm, label.direction), stride


def _mismatch(drift_mm: float, why: str) -> Agreement:
    return Agreement(
        "mismatch",
        drift_mm,
        f"Expected a label on the image's grid, or on whole slices of it; {why}. Send the label that was drawn on this "
        "image: labels are not resampled.",
    )


def _by(geometry: Geometry) -> str:
    return " by ".join(map(str, geometry.shape[1:]))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _farthest_voxels(image: Geometry, label: Geometry, first: int) -> float:
    """How far a voxel of the label may be off within its slice, in voxels."""
    extent = np.asarray(label.shape, float) - 1
    corners = np.array(np.meshgrid(*[(0.0, end) for end in extent])).reshape(3, -1).T
    return float(np.abs(image.to_index(label.to_points(corners)) - corners - (first, 0, 0))[:, 1:].max())


def _kind(dataset: Dataset) -> str:
    if text(dataset, "Modality") != "SEG":
        raise CaseRejected("wrong_modality", "Expected a SEG; got another modality. Send the segmentation.")
    kind = text(dataset, "SegmentationType")
    if kind not in ("BINARY", "LABELMAP"):
        raise CaseRejected(
            "fractional_segmentation",
            f"Expected a segmentation of type BINARY or LABELMAP; got {kind or 'none'}. Export it as binary: where a "
            "probability becomes a label is not decided here.",
        )
    return kind


def _labels(dataset: Dataset) -> dict[int, str]:
    items = dataset.get("SegmentSequence") or ()
    numbers = [int(number(one, "SegmentNumber") or 0) for one in items]
    labels = {key: text(one, "SegmentLabel") for key, one in zip(numbers, items, strict=True) if key > 0}
    if not labels:
        raise CaseRejected("missing_segments", "Expected at least one numbered segment; got none. Export it again.")
    if len(set(numbers)) != len(numbers):
        raise CaseRejected("duplicate_segment", "Expected each segment number once; one repeats. Export it again.")
    return labels


def _group(keyword: str, frame: Dataset, shared: Dataset) -> Dataset:
    return next(iter(frame.get(keyword) or shared.get(keyword) or ()), Dataset())


def _segment_number(frame: Dataset, shared: Dataset) -> int:
    return int(number(_group("SegmentIdentificationSequence", frame, shared), "ReferencedSegmentNumber") or 0)


def _axes(frame: Dataset, shared: Dataset) -> Axes:
    place = Dataset()
    for group, keyword in _PLACE:
        found = _group(group, frame, shared)
        if keyword in found:
            place.add(found[keyword])
    return image_axes(place)


def _declared(frames: Sequence[Dataset], shared: Dataset) -> tuple[float | None, float | None]:
    """SpacingBetweenSlices and SliceThickness in mm, None where the file has none."""
    measures = _group("PixelMeasuresSequence", frames[0], shared)
    spacing, thickness = (number(measures, key) for key in ("SpacingBetweenSlices", "SliceThickness"))
    return (abs(spacing) if spacing else None), thickness


def _stack(frames: Sequence[Axes], declared: tuple[float | None, float | None]) -> tuple[Axes, np.ndarray, float, bool]:
    """Axes of the lowest slice, the slice of each frame, their spacing in mm, and whether the file gives the spacing."""
    _, direction, pixel_mm = frames[0]
    if any(
        np.abs(other - direction).max() > SAME_AXES_TOLERANCE or np.abs(size - pixel_mm).max() > SAME_AXES_TOLERANCE
        for _, other, size in frames
    ):
        raise CaseRejected(
            "inconsistent_geometry", "Expected one orientation and pixel spacing in a segmentation; got several."
        )
    origins = np.array([origin for origin, _, _ in frames])
    along = origins @ direction[0]
    order = np.argsort(along, kind="stable")
    lowest = frames[order[0]]
    drift = origins - lowest[0] - np.outer(along - along[order[0]], direction[0])
    if np.abs(drift).max() > IN_PLANE_TOLERANCE_MM:
        raise CaseRejected(
            "inconsistent_geometry",
            f"Expected frames stacked straight along their normal; corners shift by up to {np.abs(drift).max():.2f} mm. "
            "Segment a series reconstructed without tilt.",
        )
    gaps = np.diff(along[order])
    gaps = gaps[gaps >= DUPLICATE_DISTANCE_MM]
    spacing, thickness = declared
    usual = spacing or (float(gaps.min()) if gaps.size else thickness)
    if not usual or usual <= 0:
        raise CaseRejected(
            "missing_geometry", "Expected SpacingBetweenSlices in a segmentation of one slice; got none. Export again."
        )
    steps = (along - along[order[0]]) / usual
    slices = np.rint(steps).astype(int)
    between = np.abs(gaps - np.maximum(np.rint(gaps / usual), 1) * usual)
    if between.size and between.max() > SPACING_TOLERANCE_MM:
        raise CaseRejected(
            "nonuniform_spacing",
            f"Expected frames at multiples of {usual:.3f} mm; one is {between.max():.3f} mm off. Export it again, with "
            "the slices of one series.",
        )
    count = int(np.rint(gaps / usual).sum())
    mean = float(gaps.sum()) / count if count else usual
    slices = np.rint((along - along[order[0]]) / mean).astype(int)
    return lowest, slices, mean, spacing is not None


def _frames(dataset: Dataset, count: int, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Stored values of each frame, one at a time: a segmentation of many structures is larger unpacked than memory."""
    from pydicom.pixels import iter_pixels

    if "PixelData" not in dataset:
        raise CaseRejected("truncated_file", "Expected pixel data; got none: the file was cut or stripped. Send again.")
    require_syntax(dataset.file_meta.TransferSyntaxUID)
    if number(dataset, "BitsAllocated") == 1 and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from _bits(dataset.PixelData, count, shape)
        return
    frames = iter_pixels(dataset, raw=True)
    for _ in range(count):
        with decoding():
            pixels = np.asarray(next(frames))
        if pixels.shape != shape:
            raise CaseRejected("undecodable_pixels", f"Expected frames of {shape}; decoding gave {pixels.shape}.")
        yield pixels


def _bits(data: bytes, count: int, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Frames of one bit per voxel, packed without a gap, so that a frame may begin within a byte."""
    size = int(np.prod(shape))
    if len(data) * 8 < count * size:
        raise CaseRejected("truncated_file", "Expected all frames of a segmentation; some are missing. Send it again.")
    for start in range(0, count * size, size):
        packed = np.frombuffer(data, np.uint8, (start % 8 + size + 7) // 8, start // 8)
        yield np.unpackbits(packed, bitorder="little")[start % 8 : start % 8 + size].reshape(shape)


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
    """Take back the corner voxel of segment 1 that `_pixels` set in the `marked` slices."""
    shared, data = ds.SharedFunctionalGroupsSequence[0], bytearray(ds.PixelData)
    for place_in_file, frame in enumerate(ds.PerFrameFunctionalGroupsSequence):
        origin = _axes(frame, shared)[0]
        row = int(np.rint(geometry.to_index(origin)[0, 0]))
        if row in marked and _segment_number(frame, shared) == 1:
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
        SegmentDescription(key, label, *_coded(label), algorithm_type=kind, algorithm_identification=algorithm)
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


def _coded(label: str) -> tuple[Any, Any]:
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
