"""Which files of a folder are DICOM objects, found by content, from their headers alone."""

from __future__ import annotations

import errno
import filecmp
import io
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)
from pydicom.valuerep import STR_VR

from med_assets.dicom.archives import is_archive
from med_assets.dicom.bounds import measure
from med_assets.dicom.enhanced import all_frames, first_frame, is_multi_frame
from med_assets.dicom.frames import identifier, number, numbers, quietly, text, texts
from med_assets.dicom.pixel_data import normalise_pixels
from med_assets.errors import CaseRejected
from med_assets.storage.files import walk

REFERENCES = ("ReferencedRTPlanSequence", "ReferencedStructureSetSequence", "ReferencedFrameOfReferenceSequence")
"""Sequences whose ReferencedSOPInstanceUIDs tie a dose to its plan, a plan to its structures, structures to a CT."""

SEG_REFERENCES = (
    "ReferencedSeriesSequence",
    "SourceImageSequence",
    "StudiesContainingOtherReferencedInstancesSequence",
)
"""Sequences that tie a segmentation to its images. Other kinds use them for other things: raw data, localizers."""

LAST_RESORT = ("ROIContourSequence", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
"""Where a structure set or a segmentation names its images contour by contour, or frame by frame (as
DerivationImageSequence), read where it names them nowhere else."""

HEADER = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID",
    "FrameOfReferenceUID", "Modality", "PatientID", "IssuerOfPatientID", "ImageType", "NumberOfFrames", "SeriesDescription", "SeriesNumber", "ImageOrientationPatient",
    "EchoTime", "RepetitionTime", "StructureSetROISequence", *REFERENCES, *SEG_REFERENCES, *LAST_RESORT,
)  # fmt: skip
"""All that `scan` reads."""


_NUMBERS = frozenset({"DS", "IS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"})
_WORDS = frozenset(STR_VR) - _NUMBERS
_PIXEL_DATA = 0x7FE00010
_PIXEL_REPRESENTATIONS = ("OB", "OW", "UN", None)
"""What PixelData may be; None where the file does not say, as in implicit VR."""


@dataclass(frozen=True)
class Weighting:
    """Orientation (six cosines), echo and repetition time of some frames of a multi-frame image."""

    orientation: tuple[float, ...]
    echo_time_ms: float | None
    repetition_time_ms: float | None


@dataclass(frozen=True)
class Instance:
    """One DICOM object, the identifiers that say to what it belongs (an absent one is empty text), and what kind of image it is.

    `description` is SeriesDescription, free text that is used for grouping alone and never stored; `orientation` holds the
    six cosines of ImageOrientationPatient, empty where they are absent or not six numbers. `issuer` is IssuerOfPatientID,
    `frames` NumberOfFrames.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    series_uid: str
    study_uid: str
    frame_of_reference_uid: str
    modality: str
    patient_id: str
    referenced_sops: tuple[str, ...]
    description: str = ""
    series_number: int | None = None
    orientation: tuple[float, ...] = ()
    echo_time_ms: float | None = None
    repetition_time_ms: float | None = None
    issuer: str = ""
    image_type: tuple[str, ...] = ()
    frames: int = 1
    frames_of_reference: tuple[str, ...] = ()
    """All frames of reference that the object names; a structure set may name several."""

    weightings: tuple[Weighting, ...] = ()
    """What the frames of a multi-frame MR image show, each kind once."""

    trailing_bytes: int = 0
    """Bytes of the file behind its dataset, which are read and stored nowhere."""


@dataclass(frozen=True)
class Rejection:
    """A file that can't be used and why. `path` may identify a patient: it is for the landing zone only."""

    code: str
    message: str
    path: Path


@dataclass(frozen=True)
class Discovery:
    """What `scan` found, both in the order of paths."""

    instances: tuple[Instance, ...]
    rejected: tuple[Rejection, ...]


def scan(folder: Path, before: Callable[[Path], None] = lambda path: None) -> Discovery:
    """Read the headers of all files under `folder`, or of one file; every file is either an instance or rejected with a reason.

    Links are not followed: they may lead out of the landing zone, or round in circles. `before` is called before each file is
    read; a CaseRejected that it raises is the reason of that file.

    Codes: "not_dicom", "truncated_file", "malformed_element", "missing_uid", "duplicate_instance", "directory_file",
    "file_link", "folder_link", "not_plain_file", "unreadable".
    """
    instances: dict[str, Instance] = {}
    rejected = []
    for path in _files(folder):
        try:
            before(path)
            instance = _header(path)
            if first := instances.get(instance.sop_instance_uid):
                raise _duplicate(filecmp.cmp(first.path, path, shallow=False))
            instances[instance.sop_instance_uid] = instance
        except CaseRejected as error:
            rejected.append(Rejection(error.code, error.message, path))
        except Exception as error:  # one file never stops its neighbours; a foreign message may hold identity
            foreign = _foreign(error)
            rejected.append(Rejection(foreign.code, foreign.message, path))
    return Discovery(tuple(instances.values()), tuple(rejected))


def load(path: Path) -> Dataset:
    """Return the whole dataset of a file, with its transfer syntax set also where the file has no meta header.

    PixelData is the one element with pixels; of compressed ones each frame is one fragment.

    Raises `CaseRejected`: "not_dicom", "truncated_file", "folder_link", "not_plain_file", "unreadable", "malformed_element",
    "unsafe_pixel_stream".
    """
    _require_readable(
        _read(path, header_only=True)[0], HEADER
    )  # sees missing pixels too, which a full read passes over
    dataset, _ = _read(path, header_only=False)
    _require_readable(dataset)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    normalise_pixels(dataset)
    return dataset


def describe(dataset: Dataset, path: Path = Path()) -> Instance:
    """Return the identifiers of a dataset; the frame of reference of a structure set is the one that it refers to."""
    frame = text(dataset, "FrameOfReferenceUID")
    frames = {frame} - {""}
    if text(dataset, "Modality") == "RTSTRUCT":
        # PS3.3 has three places for it, and exporters fill one or another.
        for sequence, keyword in (
            ("ReferencedFrameOfReferenceSequence", "FrameOfReferenceUID"),
            ("StructureSetROISequence", "ReferencedFrameOfReferenceUID"),
        ):
            frames |= {text(item, keyword) for item in dataset.get(sequence) or ()} - {""}
        frame = next(iter(frames)) if len(frames) == 1 else frame
    segmentation = text(dataset, "Modality") == "SEG"
    with quietly():
        references = _references(dataset, (*REFERENCES, *SEG_REFERENCES) if segmentation else REFERENCES)
        if not references:
            references = _references(dataset, LAST_RESORT if segmentation else LAST_RESORT[:1])
    with quietly():
        shown = first_frame(dataset)
        frames_shown = all_frames(dataset) if text(dataset, "Modality") == "MR" and is_multi_frame(dataset) else []
    series_number = number(dataset, "SeriesNumber")
    return Instance(
        path=path,
        sop_class_uid=text(dataset, "SOPClassUID"),
        sop_instance_uid=text(dataset, "SOPInstanceUID"),
        series_uid=text(dataset, "SeriesInstanceUID"),
        study_uid=text(dataset, "StudyInstanceUID"),
        frame_of_reference_uid=frame,
        frames_of_reference=tuple(sorted(frames)),
        modality=text(dataset, "Modality"),
        patient_id=identifier(text(dataset, "PatientID")),
        referenced_sops=tuple(dict.fromkeys(references)),
        description=text(dataset, "SeriesDescription"),
        series_number=None if series_number is None else int(series_number),
        orientation=_cosines(shown),
        echo_time_ms=number(shown, "EchoTime"),
        repetition_time_ms=number(shown, "RepetitionTime"),
        issuer=identifier(text(dataset, "IssuerOfPatientID")),
        image_type=tuple(value.upper() for value in texts(dataset, "ImageType")),
        frames=max(1, int(number(dataset, "NumberOfFrames") or 1)),
        weightings=tuple(
            dict.fromkeys(
                Weighting(_cosines(frame), number(frame, "EchoTime"), number(frame, "RepetitionTime"))
                for frame in frames_shown
            )
        ),
    )


def _cosines(dataset: Dataset) -> tuple[float, ...]:
    """The six cosines of ImageOrientationPatient, empty where they are absent or not six numbers."""
    cosines = numbers(dataset, "ImageOrientationPatient")
    return () if cosines is None or cosines.size != 6 else tuple(float(value) for value in cosines)


def _references(dataset: Dataset, keywords: Sequence[str]) -> list[str]:
    return [uid for keyword in keywords for item in dataset.get(keyword) or () for uid in _referenced(item)]


def _files(root: Path) -> list[Path]:
    """All that is below a folder and is no folder itself, sorted; the path itself where it is none. Links are not followed."""
    return [root] if root.is_symlink() or not root.is_dir() else sorted(walk(root))


def _header(path: Path) -> Instance:
    dataset, trailing_bytes = _read(path, header_only=True)
    if text(dataset.file_meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise CaseRejected(
            "directory_file",
            "Expected DICOM objects; got a DICOMDIR, which lists other files that are read directly. Nothing to do.",
        )
    _require_readable(dataset, HEADER)
    try:
        instance = replace(describe(dataset, path), trailing_bytes=trailing_bytes)
    except MemoryError as error:
        raise _foreign(error) from None
    except Exception as error:
        raise CaseRejected(
            "malformed_element",
            f"Expected references in sequences of items; got {type(error).__name__} from reading them. Export it again.",
        ) from None
    if not instance.sop_class_uid:
        raise CaseRejected("not_dicom", "Expected a DICOM object with a SOPClassUID; got a file without. Leave it out.")
    if not (instance.sop_instance_uid and instance.series_uid and instance.study_uid):
        raise CaseRejected(
            "missing_uid",
            "Expected SOP instance, series and study UIDs; got none for one of them. Export the file again.",
        )
    return instance


def _read(path: Path, *, header_only: bool) -> tuple[Dataset, int]:
    """The dataset of a file, and the number of bytes behind it."""
    try:
        if path.is_symlink():
            code = "folder_link" if path.is_dir() else "file_link"
            raise CaseRejected(
                code, "Expected files and folders themselves; got a link, which is not followed. Copy it."
            )
        if path.is_dir():
            raise CaseRejected(
                "unreadable", "Expected a folder that can be listed; got a refusal of the system. Check permissions."
            )
        if path.exists() and not path.is_file():
            raise CaseRejected("not_plain_file", "Expected a plain file; got a pipe, socket or device. Remove it.")
        with path.open("rb") as stream:
            _require_dicom(stream, path)
            return _parse(stream, header_only)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise CaseRejected(
                "path_too_long",
                "Expected folders nested less deep; got a path that is longer than the system reads. Move it up.",
            ) from None
        refusal = f"Expected a readable file; got {type(error).__name__} from the system. Check permissions."
    raise CaseRejected("unreadable", refusal)  # outside of `except`, since a path may hold a name


def _parse(stream: BinaryIO, header_only: bool) -> tuple[Dataset, int]:
    """The dataset, and the bytes behind it. The errors of pydicom are not chained: their texts quote values, which may identify a patient."""
    size = os.fstat(stream.fileno()).st_size
    trailing_bytes = 0
    refusal: CaseRejected | None = None
    try:
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            extent = measure(data)  # type: ignore[arg-type]  # a memory map slices to bytes
            trailing_bytes = extent.trailing_bytes
            if extent.inflated is not None:
                stream = io.BytesIO(extent.inflated)
            elif extent.end < size:
                stream, size = io.BytesIO(data[: extent.end]), extent.end
        with quietly() as caught:
            tags = list(HEADER) if header_only else None
            dataset = pydicom.dcmread(stream, force=True, stop_before_pixels=header_only, specific_tags=tags)
            syntax = text(dataset.file_meta, "TransferSyntaxUID")
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        refusal = _truncated()  # pydicom raises bare OSErrors for sequences that end too early
    except CaseRejected:
        raise
    except (InvalidDicomError, KeyError, TypeError, ValueError, struct.error) as error:
        refusal = CaseRejected(
            "not_dicom", f"Expected DICOM elements; got {type(error).__name__} from parsing. Send the original file."
        )
    except Exception as error:
        refusal = _foreign(error)
    if refusal is not None:
        raise refusal
    if any("end of file" in str(warning.message).lower() for warning in caught):
        raise _truncated()
    if syntax != DeflatedExplicitVRLittleEndian:
        little = syntax != ExplicitVRBigEndian
        if stream.tell() > size or (header_only and not _pixels_complete(stream, size, little)):
            raise _truncated()
    return dataset, trailing_bytes


def _foreign(error: Exception) -> CaseRejected:
    """The reason for an error that is not ours, without its text."""
    if isinstance(error, MemoryError):
        return CaseRejected(
            "out_of_memory",
            "Expected an object that can be read within the memory that reading may take (MED_ASSETS_INTAKE_MEMORY_GB); got one "
            "that takes more. Allow more, or export it uncompressed and in parts.",
        )
    if isinstance(error, RecursionError):
        text = "Expected sequences nested a few levels deep; got deeper ones than can be read. Export the object again."
        return CaseRejected("malformed_element", text)
    text = f"Expected elements of the types that DICOM knows; got {type(error).__name__} from reading. Export the object again."
    return CaseRejected("malformed_element", text)


def _require_readable(dataset: Dataset, keywords: Sequence[str] | None = None) -> None:
    """Read the value of each standard element (or those of `keywords`) once, numbers in text apart, which readers check.

    Of a header alone, contours and frame groups are left out: they hold a hundred thousand elements.

    Raises `CaseRejected`: "malformed_element".
    """
    with quietly():
        _read_values(dataset, keywords)


def _read_values(dataset: Dataset, keywords: Sequence[str] | None) -> None:
    tags = dataset.keys() if keywords is None else [tag for word in keywords if (tag := Tag(word)) in dataset]
    for tag in list(tags):
        if tag.is_private or (keywords is not None and keyword_for_tag(tag) in LAST_RESORT):
            continue
        try:
            representation = dataset.get_item(tag).VR
            if representation == "DS":
                continue
            if tag == _PIXEL_DATA:
                if representation not in _PIXEL_REPRESENTATIONS:
                    raise ValueError
                continue
            element = dataset[tag]
            if dictionary_has_tag(tag):
                expected = dictionary_VR(tag)
                if (element.VR == "SQ") != (expected == "SQ") or (element.VR in _WORDS and expected in _NUMBERS):
                    raise ValueError
                if keywords is not None and _kind(element.VR) != _kind(expected):
                    raise ValueError
        except MemoryError as error:
            raise _foreign(error) from None
        except Exception as error:
            raise CaseRejected(
                "malformed_element",
                f"Expected element {tag} ({keyword_for_tag(tag) or 'unknown'}) to hold a value of its value representation; "
                f"got {type(error).__name__} from reading it. Export the object again.",
            ) from None
        if element.VR == "SQ" and keywords is None:
            for item in element.value:
                _read_values(item, None)


def _kind(representation: str) -> str:
    """The value representation, all of text being one: senders confuse those, and the text is the same."""
    return "text" if representation in STR_VR else representation


def _require_dicom(stream: BinaryIO, path: Path) -> None:
    start = stream.read(132)
    stream.seek(0)
    # Without the preamble a dataset starts with an element of group 0002 or 0008, in either byte order.
    if start[128:] != b"DICM" and start[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        if is_archive(path):
            raise CaseRejected(
                "nested_archive", "Expected files in an archive; got an archive within one. Unpack the inner one."
            )
        raise CaseRejected("not_dicom", "Expected a DICOM file; got the first bytes of something else. Leave it out.")


def _pixels_complete(stream: BinaryIO, size: int, little: bool) -> bool:
    """Say whether the pixel element that `stream` stands before ends within the file, without reading the pixels."""
    order = "<" if little else ">"
    start = stream.read(12)
    if not start:
        return True
    if len(start) < 8:
        return False
    if struct.unpack(order + "HH", start[:4]) != (0x7FE0, 0x0010):
        return True
    explicit = start[4:8] in (b"OB\0\0", b"OW\0\0", b"UN\0\0")
    if explicit and len(start) < 12:
        return False
    length = struct.unpack(order + "I", start[8:12] if explicit else start[4:8])[0]
    position = stream.tell() - len(start) + (12 if explicit else 8)
    if length != 0xFFFFFFFF:
        return position + int(length) <= size
    while True:
        stream.seek(position)
        item = stream.read(8)
        if len(item) < 8:
            return False
        group, element, length = struct.unpack(order + "HHI", item)
        if (group, element) == (0xFFFE, 0xE0DD):
            return True
        position += 8 + length
        if (group, element) != (0xFFFE, 0xE000) or position > size:
            return False


def _referenced(dataset: Dataset) -> Iterator[str]:
    for element in dataset:
        if element.keyword == "ReferencedSOPInstanceUID" and element.value:
            yield str(element.value).strip()
        elif element.keyword == "RTReferencedStudySequence":
            # An item names the study itself, which is no image, beside its series.
            for study in element.value:
                for series in study.get("RTReferencedSeriesSequence") or ():
                    yield from _referenced(series)
        elif element.VR == "SQ":
            for item in element.value:
                yield from _referenced(item)


def _truncated() -> CaseRejected:
    return CaseRejected(
        "truncated_file", "Expected a whole DICOM file; got one whose bytes end too early. Send it again."
    )


def _duplicate(same: bool) -> CaseRejected:
    if same:
        return CaseRejected(
            "duplicate_instance",
            "Expected each file once; got a copy of one that is read already, byte for byte. Nothing is lost.",
        )
    return CaseRejected(
        "duplicate_instance",
        "Expected one object per SOPInstanceUID; got the UID of another file with different content. The first is read: "
        "export them again with a UID each.",
    )
