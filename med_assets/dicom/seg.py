"""DICOM segmentations that arrive, and where their frames lie in an image.

Arrays are (z, y, x); millimetres are LPS patient coordinates. What a reader needs survives de-identification: a label
that is not in the program's vocabulary is `UNRECOGNISED_<k>` afterwards, and is read like any other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset

from med_assets.dicom.discover import describe
from med_assets.dicom.elements import (
    Axes,
    decoding,
    image_axes,
    number,
    text,
)
from med_assets.dicom.geometry import IN_PLANE_TOLERANCE_MM, SAME_AXES_TOLERANCE, Geometry, Planes
from med_assets.dicom.pixel_data import require_syntax
from med_assets.dicom.tolerances import DUPLICATE_DISTANCE_MM, SLICE_NOISE_MM
from med_assets.errors import CaseRejected

SOURCE_VALUE = re.compile(r"source value ([0-9]{1,5})\Z")
"""Form of a SegmentDescription that may stay: the value that a segment has in the label file that it was imported from.

Segments of a binary SEG are numbered from 1 without gaps (PS3.3 C.8.20.4), so that SegmentNumber can't hold it.
"""

LARGEST_SOURCE_VALUE = 65535
"""Largest label value that is written so: labels of 16 bits, as label maps of DICOM have."""

IDENTICAL_MM = 1e-6
"""Largest distance of a label's voxel from the image's (mm, along any axis) at which two grids are called identical."""

IN_PLANE_NOISE_VOXELS = 0.1
"""How far any voxel centre of a label may be off within its slice, in voxels, and at most by the tolerance of the readers."""

_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"
_PLACE = (
    ("PlanePositionSequence", "ImagePositionPatient"),
    ("PlaneOrientationSequence", "ImageOrientationPatient"),
    ("PixelMeasuresSequence", "PixelSpacing"),
)


@dataclass(frozen=True, eq=False)
class Segment:
    """One segment: its number in the file, its label, and its frames: the index of the plane, and a bool mask (row, column).

    `value` is the value that it has in its source: that of the label file that it was imported from, else its number.
    `concept` is its coded type, as in `SCT:108369006`, empty where it has none.
    """

    number: int
    label: str
    frames: Mapping[int, np.ndarray]
    value: int
    concept: str = ""


@dataclass(frozen=True, eq=False)
class Segments:
    """All segments of a file, by number, the planes that their frames lie in, and the SOP instances that it says it was made on."""

    planes: Planes
    segments: tuple[Segment, ...]
    source_sops: tuple[str, ...]

    def union(self) -> np.ndarray:
        """Return the bool mask (plane, row, column) of all segments."""
        mask = np.zeros(self.planes.shape, bool)
        for segment in self.segments:
            for plane, pixels in segment.frames.items():
                mask[plane] |= pixels
        return mask


@dataclass(frozen=True)
class Agreement:
    """How a label lies to an image's grid. `drift_mm` is how far a voxel of it lies from the image's at most, along any axis."""

    kind: Literal["identical", "float_noise", "mismatch"]
    drift_mm: float
    text: str


def read_segments(dataset: Dataset) -> Segments:
    """Return the segments of a SEG: binary, label map, or fractional with no value between 0 and the greatest.

    Frames are not asked to be evenly spaced: empty ones may be left out of a file, and `place` lays each on its slice. A segment
    without frames has none. Raises `CaseRejected`: "wrong_modality", "fractional_segmentation", "missing_segments",
    "duplicate_segment", "missing_geometry", "inconsistent_geometry", "truncated_file", "undecodable_pixels".
    """
    coding = segment_coding(dataset)
    frames = list(dataset.get(_PER_FRAME) or ())
    count = int(number(dataset, "NumberOfFrames") or 0)
    if not frames or len(frames) != count:
        raise CaseRejected(
            "missing_geometry",
            f"Expected NumberOfFrames in a segmentation and functional groups for each; got {count or 'none'} and {len(frames)} groups. "
            "Export again.",
        )
    shared = next(iter(dataset.get(_SHARED) or ()), Dataset())
    size = (int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0))
    planes, plane_of_frame = _planes(
        [frame_axes(frame, shared) for frame in frames], size, _declared(frames[0], shared)
    )
    numbers = [None if coding.kind == "LABELMAP" else frame_segment(frame, shared) for frame in frames]
    found: dict[int, dict[int, np.ndarray]] = {key: {} for key in coding.labels}
    for plane, key, pixels in zip(plane_of_frame, numbers, stored_frames(dataset, count, size), strict=True):
        for segment, mask in coding.masks(pixels, key):
            before = found[segment].get(int(plane))
            found[segment][int(plane)] = mask if before is None else before | mask
    origins = _origins(dataset, coding.labels)
    segments = tuple(Segment(key, coding.labels[key], found[key], *origins[key]) for key in sorted(coding.labels))
    return Segments(planes, segments, describe(dataset).referenced_sops)


def agreement(image: Geometry, label: Planes, slices: Planes | None = None) -> Agreement:
    """Say whether each frame of a label lies on a slice of the image, along whichever axis of it, and by how much it is off.

    Slices may be off as the image's reader allows, and voxels within a slice by IN_PLANE_NOISE_VOXELS. Of an image whose `slices` were
    shifted onto its grid, a label may lie on these: each frame then follows its slice, to the nearest voxel.
    """
    return _laid(image, label, slices)[0]


def place(segments: Segments, image: Geometry, slices: Planes | None = None) -> tuple[dict[str, np.ndarray], Agreement]:
    """Return the bool masks (z, y, x) by label on the image's grid; segments of one label are united.

    Each frame is laid on the slice that it lies on; nothing is resampled. Raises `CaseRejected("grid_mismatch")` where a frame
    lies on none, see `agreement`.
    """
    found, layout = _laid(image, segments.planes, slices)
    if layout is None:
        raise CaseRejected("grid_mismatch", found.text)
    masks: dict[str, np.ndarray] = {}
    for segment in segments.segments:
        mask = masks.setdefault(segment.label, np.zeros(image.shape, bool))
        for plane, pixels in segment.frames.items():
            layout.draw(mask, plane, pixels)
    return masks, found


@dataclass(frozen=True, eq=False)
class _Layout:
    """Where the frames of a label go in an image: the array axis that planes, rows and columns run along, in which sense, and the
    (z, y, x) index of the first voxel of each plane.
    """

    axes: tuple[int, int, int]
    signs: tuple[int, int, int]
    first: np.ndarray

    def draw(self, mask: np.ndarray, plane: int, pixels: np.ndarray) -> None:
        """Add the voxels of a frame to a mask (z, y, x)."""
        where: list[int | slice] = [0, 0, 0]
        where[self.axes[0]] = int(self.first[plane, self.axes[0]])
        for axis, sign, size in zip(self.axes[1:], self.signs[1:], pixels.shape, strict=True):
            start = int(self.first[plane, axis]) - (size - 1 if sign < 0 else 0)
            where[axis] = slice(start, start + size)
        turned = pixels[:: self.signs[1], :: self.signs[2]]
        mask[tuple(where)] |= turned if self.axes[1] < self.axes[2] else turned.T


def _laid(image: Geometry, label: Planes, slices: Planes | None) -> tuple[Agreement, _Layout | None]:
    """How the frames of a label lie on an image, and where they go if each lies on a slice."""
    along = label.direction @ np.asarray(image.direction, float).T
    nearest = np.abs(along).argmax(axis=1)
    if sorted(nearest) != [0, 1, 2]:
        return _mismatch(np.inf, "its frames are turned half-way between two axes of the image"), None
    axes = (int(nearest[0]), int(nearest[1]), int(nearest[2]))
    signs = [1 if along[axis, nearest[axis]] > 0 else -1 for axis in range(3)]
    rows, columns = label.size
    shape = (image.shape[axes[1]], image.shape[axes[2]])
    follows = (
        slices is not None
        and label.size == slices.size
        and bool(np.abs(label.direction - slices.direction).max() <= SAME_AXES_TOLERANCE)
    )
    if label.size != shape and not follows:
        return _mismatch(
            np.inf,
            f"its frames have {rows} by {columns} voxels (rows, columns) and the image's {shape[0]} by {shape[1]}",
        ), None
    corners = np.array([(row, column) for row in (0, rows - 1) for column in (0, columns - 1)])
    points = label.origins_mm[:, None] + (corners * label.spacing_mm) @ label.direction[1:]
    index = image.to_index(points.reshape(-1, 3)).reshape(*points.shape)
    first = np.rint(index[:, 0])
    if label.size == shape and not follows:
        first[:, axes[1:]] = [0 if sign > 0 else size - 1 for sign, size in zip(signs[1:], shape, strict=True)]
    first[:, axes[0]] = np.rint(index[:, :, axes[0]].mean(axis=1))
    expected = np.repeat(first[:, None], len(corners), axis=1)
    for axis, sign, steps in zip(axes[1:], signs[1:], corners.T, strict=True):
        expected[..., axis] += sign * steps
    off = np.abs(index - expected)
    if slices is not None and follows:
        own = slices.to_index(points.reshape(-1, 3), np.inf).reshape(*points.shape)[..., 1:]
        off[..., axes[1:]] = np.abs(own - corners)
    off_mm = off * image.spacing_mm
    drift_mm = float(off_mm.max())
    beyond = (expected < 0) | (expected > np.array(image.shape) - 1)
    if outside := len(set(np.nonzero(beyond)[0].tolist())):
        return _mismatch(drift_mm, f"{outside} of its {len(off)} planes lie outside the image"), None
    slice_mm = image.spacing_mm[axes[0]]
    slices_mm = off_mm[..., axes[0]].max(axis=1)
    if slices_mm.max() > min(SLICE_NOISE_MM, slice_mm / 2):
        worst = int(slices_mm.argmax())
        return _mismatch(
            drift_mm,
            f"plane {worst + 1} of {len(slices_mm)} lies {slices_mm[worst]:.3g} mm from the nearest slice ({SLICE_NOISE_MM:g} mm are "
            f"allowed; slices are {slice_mm:.6g} mm apart)",
        ), None
    in_plane, in_plane_mm = (np.delete(values, axes[0], axis=2).max() for values in (off, off_mm))
    if in_plane > IN_PLANE_NOISE_VOXELS or in_plane_mm > IN_PLANE_TOLERANCE_MM:
        return _mismatch(
            drift_mm,
            f"its voxels lie up to {in_plane_mm:.3g} mm ({in_plane:.2g} voxels) beside the image's within a slice "
            f"({IN_PLANE_TOLERANCE_MM:g} mm and {IN_PLANE_NOISE_VOXELS:g} voxels are allowed)",
        ), None
    gap, declared = label.least_gap_mm(), label.declared_mm
    if gap and declared and declared > slice_mm + SLICE_NOISE_MM and gap > declared - SLICE_NOISE_MM:
        return _mismatch(
            drift_mm,
            f"its slices are {declared:.6g} mm apart and the image's {slice_mm:.6g} mm: nothing says what lies between",
        ), None
    kind: Literal["identical", "float_noise"] = "identical" if drift_mm <= IDENTICAL_MM else "float_noise"
    labelled = len(np.unique(first[:, axes[0]]))
    where = "" if labelled == image.shape[axes[0]] else f", {labelled} slices of {image.shape[axes[0]]}"
    noise = "" if kind == "identical" else f", but for noise of {drift_mm:.2g} mm"
    layout = _Layout(axes, (signs[0], signs[1], signs[2]), first.astype(int))
    return Agreement(kind, drift_mm, f"The label lies on the image's grid{noise}{where}."), layout


def _mismatch(drift_mm: float, why: str) -> Agreement:
    return Agreement(
        "mismatch",
        drift_mm,
        f"Expected a label whose frames lie on slices of the image; {why}. Send the label that was drawn on this image: labels are "
        "not resampled.",
    )


@dataclass(frozen=True)
class SegmentCoding:
    """How the pixels of a SEG stand for segments: its type, the label of each segment number, and the pixel value of no segment.

    `full` is the pixel value of a voxel within a segment of a fractional SEG.
    """

    kind: Literal["BINARY", "FRACTIONAL", "LABELMAP"]
    labels: Mapping[int, str]
    background: int = 0
    full: int = 1

    def masks(self, pixels: np.ndarray, segment: int | None) -> Iterator[tuple[int, np.ndarray]]:
        """Return the segments that a frame (row, column) shows, and the bool mask of each; `segment` is the frame's own number.

        Raises `CaseRejected`: "missing_segments", "fractional_segmentation".
        """
        if self.kind != "LABELMAP":
            if segment is None or segment not in self.labels:
                raise CaseRejected(
                    "missing_segments",
                    f"Expected frames of listed segments, {sorted(self.labels)}; got a frame of {'none' if segment is None else segment}. "
                    "Export again.",
                )
            if self.kind == "FRACTIONAL" and (between := int(((pixels != 0) & (pixels != self.full)).sum())):
                raise CaseRejected(
                    "fractional_segmentation",
                    f"Expected a fractional segmentation with 0 and {self.full} (MaximumFractionalValue) alone, which is a mask; got "
                    f"{between} voxels between in a frame of segment {segment}. Export it as binary: where a probability becomes a "
                    "label is not decided here.",
                )
            yield segment, pixels != 0
            return
        for value in map(int, np.unique(pixels)):
            if value in self.labels:
                yield value, pixels == value
            elif value != self.background:
                raise CaseRejected(
                    "missing_segments",
                    f"Expected a segment for each value of a label map; got value {value} without one. Export again.",
                )


def segment_coding(dataset: Dataset) -> SegmentCoding:
    """Return how the pixels of a SEG stand for its segments.

    Raises `CaseRejected`: "wrong_modality", "fractional_segmentation", "missing_segments", "duplicate_segment".
    """
    if text(dataset, "Modality") != "SEG":
        raise CaseRejected("wrong_modality", "Expected a SEG; got another modality. Send the segmentation.")
    kind = text(dataset, "SegmentationType")
    full = int(number(dataset, "MaximumFractionalValue") or 0)
    items = dataset.get("SegmentSequence") or ()
    numbers = [number(one, "SegmentNumber") for one in items]
    if None in numbers or len(set(numbers)) != len(numbers):
        raise CaseRejected(
            "duplicate_segment" if None not in numbers else "missing_segments",
            f"Expected a SegmentNumber of its own for each of {len(numbers)} segments; got {len(set(numbers) - {None})} numbers. Export it again.",
        )
    found = {int(key): text(one, "SegmentLabel") for key, one in zip(numbers, items, strict=True) if key is not None}
    match kind:
        case "BINARY":
            coding = SegmentCoding("BINARY", _positive(found))
        case "FRACTIONAL" if full > 0:
            coding = SegmentCoding("FRACTIONAL", _positive(found), full=full)
        case "LABELMAP":
            background = int(number(dataset, "PixelPaddingValue") or 0)
            coding = SegmentCoding(
                "LABELMAP", {key: name for key, name in found.items() if key != background}, background
            )
        case _:
            without = " without MaximumFractionalValue" if kind == "FRACTIONAL" else ""
            raise CaseRejected(
                "fractional_segmentation",
                f"Expected a segmentation of type BINARY or LABELMAP, or FRACTIONAL with 0 and MaximumFractionalValue alone; got "
                f"{kind if kind == 'FRACTIONAL' else 'another or none'}{without}. Export it as binary.",
            )
    if not coding.labels:
        raise CaseRejected("missing_segments", "Expected at least one numbered segment; got none. Export it again.")
    return coding


def _origins(dataset: Dataset, listed: Collection[int]) -> dict[int, tuple[int, str]]:
    """By number of the `listed` segments the value in the source, and the coded type. Raises CaseRejected: "duplicate_segment"."""
    found = {}
    for one in dataset.get("SegmentSequence") or ():
        key = int(number(one, "SegmentNumber") or 0)
        if key not in listed:
            continue
        imported = SOURCE_VALUE.match(text(one, "SegmentDescription"))
        found[key] = (int(imported[1]) if imported else key, coded_concept(one, "SegmentedPropertyTypeCodeSequence"))
    values = [value for value, _ in found.values()]
    if repeated := sorted({value for value in values if values.count(value) > 1}):
        raise CaseRejected(
            "duplicate_segment",
            f"Expected a source value of its own for each segment; got {repeated} for two. Import the label file again.",
        )
    return found


def coded_concept(item: Dataset, keyword: str) -> str:
    """Return the first code of a sequence as `SCHEME:CODE`, empty where there is none."""
    code = next(iter(item.get(keyword) or ()), Dataset())
    scheme, value = text(code, "CodingSchemeDesignator"), text(code, "CodeValue")
    return f"{scheme}:{value}" if scheme and value else ""


def _positive(labels: Mapping[int, str]) -> dict[int, str]:
    return {key: name for key, name in labels.items() if key > 0}


def _group(keyword: str, frame: Dataset, shared: Dataset) -> Dataset:
    return next(iter(frame.get(keyword) or shared.get(keyword) or ()), Dataset())


def frame_segment(frame: Dataset, shared: Dataset) -> int:
    """Return the number of the segment that a frame of a SEG shows, 0 where it says none."""
    return int(number(_group("SegmentIdentificationSequence", frame, shared), "ReferencedSegmentNumber") or 0)


def frame_axes(frame: Dataset, shared: Dataset) -> Axes:
    """Return where a frame of a SEG lies, see `image_axes`."""
    place = Dataset()
    for group, keyword in _PLACE:
        found = _group(group, frame, shared)
        if keyword in found:
            place.add(found[keyword])
    return image_axes(place)


def _declared(frame: Dataset, shared: Dataset) -> float | None:
    """SpacingBetweenSlices in mm, None where the file has none."""
    spacing = number(_group("PixelMeasuresSequence", frame, shared), "SpacingBetweenSlices")
    return abs(spacing) if spacing else None


def _planes(frames: Sequence[Axes], size: tuple[int, int], declared_mm: float | None) -> tuple[Planes, np.ndarray]:
    """The distinct planes of frames, and the plane of each frame."""
    _, direction, pixel_mm = frames[0]
    off = sum(
        bool(
            np.abs(other - direction).max() > SAME_AXES_TOLERANCE or np.abs(size - pixel_mm).max() > SAME_AXES_TOLERANCE
        )
        for _, other, size in frames
    )
    if off:
        raise CaseRejected(
            "inconsistent_geometry",
            f"Expected one orientation and pixel spacing in a segmentation; got {off} of {len(frames)} frames that differ from the first. "
            "Export the segments of one series.",
        )
    origins = np.array([origin for origin, _, _ in frames])
    along = origins @ direction[0]
    order = np.argsort(along, kind="stable")
    apart = np.concatenate([[False], np.diff(along[order]) > DUPLICATE_DISTANCE_MM])
    # Frames of several segments on one slice are one plane, unless they lie beside each other.
    apart[1:] |= np.abs(np.diff(origins[order], axis=0)).max(axis=1) > DUPLICATE_DISTANCE_MM
    plane_of_frame = np.empty(len(frames), int)
    plane_of_frame[order] = np.cumsum(apart)
    first = order[np.concatenate([[0], np.flatnonzero(apart)])]
    return Planes(
        origins[first], direction, (float(pixel_mm[0]), float(pixel_mm[1])), size, declared_mm
    ), plane_of_frame


def stored_frames(dataset: Dataset, count: int, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Stored values of each frame, one at a time: a segmentation of many structures is larger unpacked than memory."""
    from pydicom.pixels import iter_pixels

    if "PixelData" not in dataset:
        raise CaseRejected("truncated_file", "Expected pixel data; got none: the file was cut or stripped. Send again.")
    if min(shape) < 1:
        raise CaseRejected(
            "undecodable_pixels",
            f"Expected frames of one pixel or more; got {shape} as Rows and Columns. Export again.",
        )
    require_syntax(dataset.file_meta.TransferSyntaxUID)
    if number(dataset, "BitsAllocated") == 1 and not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        yield from _bits(dataset.PixelData, count, shape)
        return
    frames = iter_pixels(dataset, raw=True)
    for _ in range(count):
        with decoding(dataset.file_meta.TransferSyntaxUID):
            pixels = np.asarray(next(frames))
        if pixels.shape != shape:
            raise CaseRejected(
                "undecodable_pixels", f"Expected frames of {shape}; got {pixels.shape} from decoding. Export again."
            )
        yield pixels


def _bits(data: bytes, count: int, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Frames of one bit per voxel, packed without a gap, so that a frame may start within a byte."""
    size = int(np.prod(shape))
    if len(data) * 8 < count * size:
        raise CaseRejected(
            "truncated_file", f"Expected {count} frames of a segmentation; got {len(data) * 8 // size}. Send it again."
        )
    for start in range(0, count * size, size):
        packed = np.frombuffer(data, np.uint8, (start % 8 + size + 7) // 8, start // 8)
        yield np.unpackbits(packed, bitorder="little")[start % 8 : start % 8 + size].reshape(shape)
