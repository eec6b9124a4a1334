"""Frames of CT and MR images, one by one: those of multi-frame objects become like single-frame images, and acquisitions are split.

Readers work on frames alone. Functional groups are looked for per frame, then shared, then at the top of the object.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import partial

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from med_assets.dicom.elements import image_axes, number, regular_spacing, text, texts
from med_assets.dicom.pixel_data import require_syntax
from med_assets.dicom.tolerances import SPACING_TOLERANCE_MM
from med_assets.errors import CaseRejected

CLASSIC = {
    "1.2.840.10008.5.1.4.1.1.2.1": "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.2.2": "1.2.840.10008.5.1.4.1.1.2",
    "1.2.840.10008.5.1.4.1.1.4.1": "1.2.840.10008.5.1.4.1.1.4",
    "1.2.840.10008.5.1.4.1.1.4.4": "1.2.840.10008.5.1.4.1.1.4",
}
"""Single-frame SOP class of each multi-frame class that is read: Enhanced and Legacy Converted Enhanced, CT and MR."""

_SHARED, _PER_FRAME = "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"

_WHOLE = (
    "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "Modality", "PatientID", "Rows",
    "Columns", "AcquisitionNumber", "ImageType", "EchoTime", "RepetitionTime", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept",
)  # fmt: skip
"""Elements of the object that hold for each of its frames unless a functional group says otherwise."""

_CONVERTED = ("UnassignedSharedConvertedAttributesSequence", "UnassignedPerFrameConvertedAttributesSequence")

_GROUPS = (
    ("PlanePositionSequence", "ImagePositionPatient"), ("PlaneOrientationSequence", "ImageOrientationPatient"),
    ("PixelMeasuresSequence", "PixelSpacing"), ("PixelMeasuresSequence", "SliceThickness"),
    ("PixelValueTransformationSequence", "RescaleSlope"), ("PixelValueTransformationSequence", "RescaleIntercept"),
    ("MRTimingAndRelatedParametersSequence", "RepetitionTime"), ("MRDiffusionSequence", "DiffusionBValue"),
    ("FrameContentSequence", "FrameAcquisitionNumber"), ("FrameContentSequence", "TemporalPositionIndex"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
    *((sequence, keyword) for sequence in _CONVERTED
      for keyword in ("EchoTime", "RepetitionTime", "AcquisitionNumber", "EchoNumbers", "TemporalPositionIdentifier")),
)  # fmt: skip
"""Functional groups and the elements of theirs that a frame takes."""

_FRAME_TYPES = ("CTImageFrameTypeSequence", "MRImageFrameTypeSequence")
_IN_SPACE = (Tag("ImagePositionPatient"), Tag("InStackPositionNumber"))

SPLITTING = (
    "ImageType", "DiffusionBValue", "EchoTime", "EchoNumbers", "TemporalPositionIndex", "TemporalPositionIdentifier",
    "NominalCardiacTriggerDelayTime", "TriggerTime", "AcquisitionNumber", "FrameAcquisitionNumber",
)  # fmt: skip
"""Elements that tell volumes of one series apart, in the order in which they are tried."""


class Frame(Dataset):
    """One frame of a multi-frame object, with the elements of a single-frame image; its pixels are decoded when asked for."""

    source: Dataset
    index: int
    dimensions: tuple[int, ...]

    @property
    def pixel_array(self) -> np.ndarray:
        """The stored values of this frame alone, (rows, columns)."""
        from pydicom.pixels import pixel_array

        return pixel_array(self.source, index=self.index)


def is_multi_frame(dataset: Dataset) -> bool:
    """Whether a dataset is a multi-frame CT or MR image that is read frame by frame."""
    return text(dataset, "SOPClassUID") in CLASSIC


def single_frames(datasets: Sequence[Dataset]) -> list[Dataset]:
    """Return the frames of all datasets: single-frame ones as they are.

    Raises `CaseRejected`: "missing_geometry", and "undecodable_pixels" for a transfer syntax that is not decoded here.
    """
    for dataset in datasets:
        meta = getattr(dataset, "file_meta", None)
        if meta is not None and (syntax := text(meta, "TransferSyntaxUID")):
            require_syntax(syntax)
    return [frame for dataset in datasets for frame in (_frames(dataset) if is_multi_frame(dataset) else [dataset])]


def first_frame(dataset: Dataset) -> Dataset:
    """Return the first frame of a multi-frame object as far as its header says; any other dataset as it is."""
    groups = dataset.get(_PER_FRAME)
    return _frame(dataset, groups[0], 0) if is_multi_frame(dataset) and groups else dataset


def all_frames(dataset: Dataset) -> list[Dataset]:
    """Return the frames of a multi-frame object as far as its header says; any other dataset as it is."""
    groups = dataset.get(_PER_FRAME)
    if not is_multi_frame(dataset) or not groups:
        return [dataset]
    return [_frame(dataset, one, index) for index, one in enumerate(groups)]


def referenced_frames(label: Dataset) -> frozenset[tuple[str, int]]:
    """Return the frames that a label refers to: SOP instance UID and number of the frame, from 1."""
    found: set[tuple[str, int]] = set()
    if uid := text(label, "ReferencedSOPInstanceUID"):
        found |= {(uid, int(value)) for value in texts(label, "ReferencedFrameNumber") if value.isdecimal()}
    for element in label:
        if element.VR == "SQ":
            found = found.union(*(referenced_frames(one) for one in element.value))
    return frozenset(found)


def _frames(dataset: Dataset) -> list[Frame]:
    groups = dataset.get(_PER_FRAME) or ()
    count = int(number(dataset, "NumberOfFrames") or 0)
    if not groups or len(groups) != count:
        raise CaseRejected(
            "missing_geometry",
            f"Expected functional groups for each of {count} frames of a multi-frame image; got {len(groups)}. Export again.",
        )
    return [_frame(dataset, frame, index) for index, frame in enumerate(groups)]


def _frame(dataset: Dataset, groups: Dataset, index: int) -> Frame:
    shared = next(iter(dataset.get(_SHARED) or ()), Dataset())

    def group(name: str) -> Dataset:
        return next(iter(groups.get(name) or shared.get(name) or ()), Dataset())

    frame = Frame()
    frame.SOPClassUID = CLASSIC[text(dataset, "SOPClassUID")]
    for keyword in _WHOLE:
        if keyword in dataset:
            _copy(dataset, keyword, frame)
    for name, keyword in _GROUPS:
        found = group(name)
        if keyword in found:
            _copy(found, keyword, frame)
    for name in _FRAME_TYPES:
        if types := texts(group(name), "FrameType"):
            frame.ImageType = list(types)
    echo = number(group("MREchoSequence"), "EffectiveEchoTime")
    if echo is not None:
        frame.EchoTime = echo
    frame.source, frame.index = dataset, index
    values = group("FrameContentSequence").get("DimensionIndexValues")
    values = [values] if isinstance(values, int) else list(values or ())
    pointers = [one.get("DimensionIndexPointer") for one in dataset.get("DimensionIndexSequence") or ()]
    pairs = zip(pointers, values, strict=True) if len(pointers) == len(values) else ()
    frame.dimensions = tuple(int(value) for pointer, value in pairs if pointer not in _IN_SPACE)
    return frame


def _copy(source: Dataset, keyword: str, frame: Frame) -> None:
    """Give a frame an element of its own: what is set in it must not change the object that it is stored in."""
    element = source[keyword]
    frame.add_new(element.tag, element.VR, element.value)


def one_volume(
    frames: Sequence[Dataset],
    wanted: Callable[[Dataset], bool] | None = None,
    referenced: Collection[str] = (),
    label: Dataset | None = None,
) -> list[Dataset]:
    """Return the frames of the one volume of a series that is meant.

    Frames on one regular stack are all returned. Otherwise stacks of several orientations in a multi-frame object, and
    acquisitions, echoes, b-values or phases whose positions repeat, are distinguished; of several volumes that one is taken
    whose frames are all `wanted`, or that has the SOP instances `referenced` by a label, or the frames by number. What can't be distinguished is returned
    as it is. Raises `CaseRejected`: "several_acquisitions", "duplicate_slice", and the codes of `image_axes`.
    """
    parts, names = _split(list(frames))
    if len(parts) == 1:
        return parts[0]
    fitting = [part for part in parts if wanted is None or all(wanted(frame) for frame in part)] or parts
    sops = set(referenced)
    if len(fitting) > 1 and sops:
        fitting = [part for part in fitting if any(frame.get("SOPInstanceUID") in sops for frame in part)] or fitting
    if len(fitting) > 1 and label is not None and (numbered := referenced_frames(label)):
        fitting = [part for part in fitting if any(_numbered(frame) in numbered for frame in part)] or fitting
    if len(fitting) > 1:
        sizes = sorted({len(part) for part in fitting})
        of = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        raise CaseRejected(
            "several_acquisitions",
            f"Expected one acquisition in the series; got {len(fitting)} acquisitions of {of} slices, which differ in "
            f"{', '.join(names)}. Send one.",
        )
    return fitting[0]


def _numbered(frame: Dataset) -> tuple[str, int]:
    return text(frame, "SOPInstanceUID"), getattr(frame, "index", 0) + 1


def _split(frames: list[Dataset]) -> tuple[list[list[Dataset]], list[str]]:
    """Volumes of a series, and the names of the elements in which they differ."""
    if len(frames) < 2:
        return [frames], []
    if all(isinstance(frame, Frame) for frame in frames):
        stacks = _by(frames, lambda frame: str(np.round(image_axes(frame)[1], 2).tolist()))
        if len(stacks) > 1:
            found = [_split(stack) for stack in stacks]
            return [part for parts, _ in found for part in parts], [
                "orientation",
                *dict.fromkeys(name for _, names in found for name in names),
            ]
    if not _repeats(frames):
        return [frames], []
    keys: list[Callable[[Dataset], str]] = [partial(_value, name) for name in SPLITTING]
    keys.append(lambda frame: str(getattr(frame, "dimensions", ())))
    best: tuple[int, list[list[Dataset]], str] | None = None
    for name, key in zip((*SPLITTING, "DimensionIndexValues"), keys, strict=True):
        parts = _by(frames, key)
        if len(parts) < 2 or min(map(len, parts)) < 2:
            continue
        left = sum(_repeats(part) for part in parts)
        if best is None or left < best[0]:
            best = (left, parts, name)
    if best is None:
        return [frames], []
    found = [_split(part) for part in best[1]]
    return [part for parts, _ in found for part in parts], list(
        dict.fromkeys([best[2], *(name for _, names in found for name in names)])
    )


def _value(keyword: str, frame: Dataset) -> str:
    return str(texts(frame, keyword))


def _by(frames: Sequence[Dataset], key: Callable[[Dataset], str]) -> list[list[Dataset]]:
    parts: dict[str, list[Dataset]] = defaultdict(list)
    for frame in frames:
        parts[key(frame)].append(frame)
    return list(parts.values())


def _repeats(frames: Sequence[Dataset]) -> bool:
    """Whether two frames lie at one place, or nearer to each other than the noise of positions beside the usual distance."""
    axes = [image_axes(frame) for frame in frames]
    along = np.sort([origin @ axes[0][1][0] for origin, _, _ in axes])
    return repeated(along) > 0


def repeated(positions_mm: np.ndarray) -> int:
    """Return how many of ascending positions repeat the one before, but for noise of up to 0.12 mm."""
    gaps = np.diff(positions_mm)
    apart = gaps[gaps > SPACING_TOLERANCE_MM]
    if not apart.size:
        return 0 if gaps.size and _regular(positions_mm) else int((gaps < SPACING_TOLERANCE_MM).sum())
    return int((gaps < min(SPACING_TOLERANCE_MM, float(np.median(apart)) / 2)).sum())


def _regular(positions_mm: np.ndarray) -> bool:
    try:
        regular_spacing(positions_mm)
    except CaseRejected:
        return False
    return True
