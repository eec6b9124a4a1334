"""Which files of a folder are DICOM objects, found by content, from their headers alone."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from med_assets.dicom.enhanced import first_frame
from med_assets.dicom.frames import identifier, number, numbers, quietly, text, texts
from med_assets.dicom.pixel_data import normalise_pixels
from med_assets.errors import CaseRejected
from med_assets.files import walk

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


MAX_INFLATED = 4 << 30
"""Bytes to which a deflated dataset may inflate."""

MAX_META = 1 << 16
"""Bytes of one element of a meta header; none of the standard's needs more."""

MAX_RATIO = 100
"""Inflated bytes per byte of a deflated dataset: real images stay under 20, bombs pass 900."""


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


def scan(folder: Path) -> Discovery:
    """Read the headers of all files under `folder`, or of one file; every file is either an instance or rejected with a reason.

    Links are not followed: they may lead out of the landing zone, or round in circles.

    Codes: "not_dicom", "truncated_file", "malformed_element", "missing_uid", "duplicate_instance", "directory_file",
    "file_link", "folder_link", "not_plain_file", "unreadable".
    """
    instances: dict[str, Instance] = {}
    rejected = []
    for path in _files(folder):
        try:
            instance = _header(path)
            if instance.sop_instance_uid in instances:
                raise CaseRejected(
                    "duplicate_instance", "Expected each SOPInstanceUID once; this repeats one. Send each file once."
                )
            instances[instance.sop_instance_uid] = instance
        except CaseRejected as error:
            rejected.append(Rejection(error.code, error.message, path))
        except Exception as error:  # one file never stops its neighbours; a foreign message may hold identity
            rejected.append(Rejection("malformed_element", _malformed(error), path))
    return Discovery(tuple(instances.values()), tuple(rejected))


def load(path: Path) -> Dataset:
    """Return the whole dataset of a file, with its transfer syntax set also where the file has no meta header.

    PixelData is the one element with pixels; of compressed ones each frame is one fragment.

    Raises `CaseRejected`: "not_dicom", "truncated_file", "folder_link", "not_plain_file", "unreadable", "malformed_element",
    "unsafe_pixel_stream".
    """
    _read(path, header_only=True)  # sees missing pixels, which a full read passes over
    dataset = _read(path, header_only=False)
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
    series_number, cosines = number(dataset, "SeriesNumber"), numbers(shown, "ImageOrientationPatient")
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
        orientation=() if cosines is None or cosines.size != 6 else tuple(float(value) for value in cosines),
        echo_time_ms=number(shown, "EchoTime"),
        repetition_time_ms=number(shown, "RepetitionTime"),
        issuer=identifier(text(dataset, "IssuerOfPatientID")),
        image_type=tuple(value.upper() for value in texts(dataset, "ImageType")),
        frames=max(1, int(number(dataset, "NumberOfFrames") or 1)),
    )


def _references(dataset: Dataset, keywords: Sequence[str]) -> list[str]:
    return [uid for keyword in keywords for item in dataset.get(keyword) or () for uid in _referenced(item)]


def _files(root: Path) -> list[Path]:
    """All that is below a folder and is no folder itself, sorted; the path itself where it is none. Links are not followed."""
    return [root] if root.is_symlink() or not root.is_dir() else sorted(walk(root))


def _header(path: Path) -> Instance:
    dataset = _read(path, header_only=True)
    if text(dataset.file_meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise CaseRejected("directory_file", "A DICOMDIR lists other files, which are read directly. Nothing to do.")
    instance = describe(dataset, path)
    if not instance.sop_class_uid:
        raise CaseRejected("not_dicom", "Expected a DICOM object with a SOPClassUID; got a file without. Leave it out.")
    if not (instance.sop_instance_uid and instance.series_uid and instance.study_uid):
        raise CaseRejected(
            "missing_uid", "Expected SOP instance, series and study UIDs; one is absent. Export the file again."
        )
    return instance


def _read(path: Path, *, header_only: bool) -> Dataset:
    try:
        if path.is_symlink():
            code = "folder_link" if path.is_dir() else "file_link"
            raise CaseRejected(
                code, "Expected files and folders themselves; got a link, which is not followed. Copy it."
            )
        if path.is_dir():
            raise CaseRejected(
                "unreadable", "Expected a folder that can be listed; the system refused. Check permissions."
            )
        if path.exists() and not path.is_file():
            raise CaseRejected("not_plain_file", "Expected a plain file; got a pipe, socket or device. Remove it.")
        with path.open("rb") as stream:
            _require_dicom(stream)
            return _parse(stream, header_only)
    except OSError as error:
        refusal = f"Expected a readable file; the system refused ({type(error).__name__}). Check permissions."
    raise CaseRejected("unreadable", refusal)  # outside of `except`, since a path may hold a name


def _parse(stream: BinaryIO, header_only: bool) -> Dataset:
    size = os.fstat(stream.fileno()).st_size
    refusal: CaseRejected | None = None
    try:
        _require_bounded(stream, size)
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
            "not_dicom", f"Expected DICOM elements; parsing failed ({type(error).__name__}). Send the original file."
        )
    except Exception as error:
        refusal = CaseRejected("malformed_element", _malformed(error))
    if refusal is not None:
        raise refusal
    if any("end of file" in str(warning.message).lower() for warning in caught):
        raise _truncated()
    if syntax != DeflatedExplicitVRLittleEndian:
        little = syntax != ExplicitVRBigEndian
        if stream.tell() > size or (header_only and not _pixels_complete(stream, size, little)):
            raise _truncated()
    return dataset


def _malformed(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "Expected sequences nested a few levels deep; these are nested deeper than can be read. Export the object again."
    if isinstance(error, MemoryError):
        return "Expected an object that fits into memory; this declares more than that. Export the object again."
    return f"Expected elements of the types that DICOM knows; reading failed ({type(error).__name__}). Export the object again."


def _require_bounded(stream: BinaryIO, size: int) -> None:
    """Raise CaseRejected for a deflated dataset that inflates beyond MAX_INFLATED or MAX_RATIO; the stream is rewound."""
    try:
        if not _is_deflated(stream):
            return
        inflater, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
        most = min(MAX_INFLATED, MAX_RATIO * size)
        while chunk := stream.read(1 << 16):
            while chunk:
                inflated += len(inflater.decompress(chunk, 1 << 20))
                chunk = inflater.unconsumed_tail
                if inflated > most:
                    raise CaseRejected(
                        "malformed_element",
                        f"Expected a deflated dataset of at most {most >> 20} MiB; it inflates to more, as a bomb does. Send it "
                        "uncompressed.",
                    )
    finally:
        stream.seek(0)


def _is_deflated(stream: BinaryIO) -> bool:
    """Whether the meta header names the deflated transfer syntax; the stream is then where the deflated bytes begin."""
    if stream.read(132)[128:] != b"DICM":
        return False
    deflated = False
    while len(head := stream.read(8)) == 8 and head[:2] == b"\x02\x00":
        length = int.from_bytes(head[6:8], "little")
        if head[4:6] in (b"OB", b"OW", b"UN", b"UT", b"SQ"):
            length = int.from_bytes(stream.read(4), "little")
        if length > MAX_META:
            return False
        value = stream.read(length)
        deflated |= head[2:4] == b"\x10\x00" and value.rstrip(b"\0 ") == DeflatedExplicitVRLittleEndian.encode()
    stream.seek(-len(head), os.SEEK_CUR)
    return deflated


def _require_dicom(stream: BinaryIO) -> None:
    start = stream.read(132)
    stream.seek(0)
    # Without the preamble a dataset starts with an element of group 0002 or 0008, in either byte order.
    if start[128:] != b"DICM" and start[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        raise CaseRejected("not_dicom", "Expected a DICOM file; its first bytes are of something else. Leave it out.")


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
    return CaseRejected("truncated_file", "Expected a whole DICOM file; its bytes end too early. Send it again.")
