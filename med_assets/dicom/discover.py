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

from med_assets.dicom.frames import number, numbers, quietly, text
from med_assets.dicom.pixel_data import normalise_pixels
from med_assets.errors import CaseRejected

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
    "FrameOfReferenceUID", "Modality", "PatientID", "SeriesDescription", "SeriesNumber", "ImageOrientationPatient",
    "EchoTime", "RepetitionTime", *REFERENCES, *SEG_REFERENCES, *LAST_RESORT,
)  # fmt: skip
"""All that `scan` reads."""


@dataclass(frozen=True)
class Instance:
    """One DICOM object, the identifiers that say to what it belongs (an absent one is empty text), and what kind of image it is.

    `description` is SeriesDescription, free text that is used for grouping alone and never stored; `orientation` holds the
    six cosines of ImageOrientationPatient, empty where they are absent or not six numbers.
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
    """Read the headers of all files under `folder`; every file is either an instance or rejected with a reason.

    Links to files are followed, those to folders are not, since they may go round in circles.

    Codes: "not_dicom", "truncated_file", "missing_uid", "duplicate_instance", "directory_file", "folder_link",
    "not_plain_file", "unreadable".
    """
    instances: dict[str, Instance] = {}
    rejected = []
    paths = sorted(_files(folder))
    for path in paths:
        try:
            instance = _header(path)
            if instance.sop_instance_uid in instances:
                raise CaseRejected(
                    "duplicate_instance", "Expected each SOPInstanceUID once; this repeats one. Send each file once."
                )
            instances[instance.sop_instance_uid] = instance
        except CaseRejected as error:
            rejected.append(Rejection(error.code, error.message, path))
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
    if text(dataset, "Modality") == "RTSTRUCT":
        frames = {text(item, "FrameOfReferenceUID") for item in dataset.get("ReferencedFrameOfReferenceSequence") or ()}
        frame = frames.pop() if len(frames) == 1 else frame
    segmentation = text(dataset, "Modality") == "SEG"
    with quietly():
        references = _references(dataset, (*REFERENCES, *SEG_REFERENCES) if segmentation else REFERENCES)
        if not references:
            references = _references(dataset, LAST_RESORT if segmentation else LAST_RESORT[:1])
    series_number, cosines = number(dataset, "SeriesNumber"), numbers(dataset, "ImageOrientationPatient")
    return Instance(
        path=path,
        sop_class_uid=text(dataset, "SOPClassUID"),
        sop_instance_uid=text(dataset, "SOPInstanceUID"),
        series_uid=text(dataset, "SeriesInstanceUID"),
        study_uid=text(dataset, "StudyInstanceUID"),
        frame_of_reference_uid=frame,
        modality=text(dataset, "Modality"),
        patient_id=text(dataset, "PatientID"),
        referenced_sops=tuple(dict.fromkeys(references)),
        description=text(dataset, "SeriesDescription"),
        series_number=None if series_number is None else int(series_number),
        orientation=() if cosines is None or cosines.size != 6 else tuple(float(value) for value in cosines),
        echo_time_ms=number(dataset, "EchoTime"),
        repetition_time_ms=number(dataset, "RepetitionTime"),
    )


def _references(dataset: Dataset, keywords: Sequence[str]) -> list[str]:
    return [uid for keyword in keywords for item in dataset.get(keyword) or () for uid in _referenced(item)]


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        yield from (Path(root) / name for name in names)
        yield from (Path(root) / name for name in folders if (Path(root) / name).is_symlink())


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
        if path.is_dir():
            raise CaseRejected("folder_link", "Expected folders themselves; got a link to one, not followed. Copy it.")
        if path.exists() and not path.is_file():
            raise CaseRejected("not_plain_file", "Expected a plain file; got a pipe, socket or device. Remove it.")
        with path.open("rb") as stream:
            _require_dicom(stream)
            return _parse(stream, header_only)
    except OSError as error:
        raise CaseRejected(
            "unreadable", f"Expected a readable file; the system refused ({type(error).__name__}). Check permissions."
        ) from error


def _parse(stream: BinaryIO, header_only: bool) -> Dataset:
    size = os.fstat(stream.fileno()).st_size
    try:
        with quietly() as caught:
            tags = list(HEADER) if header_only else None
            dataset = pydicom.dcmread(stream, force=True, stop_before_pixels=header_only, specific_tags=tags)
    except (InvalidDicomError, KeyError, NotImplementedError, TypeError, ValueError, struct.error) as error:
        raise CaseRejected(
            "not_dicom", f"Expected DICOM elements; parsing failed ({type(error).__name__}). Send the original file."
        ) from error
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _truncated() from error  # pydicom raises bare OSErrors for sequences that end too early
    syntax = text(dataset.file_meta, "TransferSyntaxUID")
    if any("end of file" in str(warning.message).lower() for warning in caught):
        raise _truncated()
    if syntax != DeflatedExplicitVRLittleEndian:
        little = syntax != ExplicitVRBigEndian
        if stream.tell() > size or (header_only and not _pixels_complete(stream, size, little)):
            raise _truncated()
    return dataset


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
