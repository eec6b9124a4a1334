"""Which files of a folder are DICOM objects, found by content, from their headers alone."""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
)

from med_assets.dicom.elements import identifier, number, numbers, quietly, text, texts
from med_assets.dicom.enhanced import all_frames, first_frame, is_multi_frame
from med_assets.dicom.parsing import (
    HEADER,
    LAST_RESORT,
    MOST_SERIES,
    REFERENCES,
    SEG_REFERENCES,
    Parsed,
    Reading,
    Shelf,
    foreign,
    read,
    require_readable,
)
from med_assets.dicom.pixel_data import normalise_pixels
from med_assets.dicom.undecoded import anywhere, is_short, plain, tag_of_keyword
from med_assets.errors import CaseRejected
from med_assets.storage.files import walk


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

    parsed: Parsed | None = field(default=None, compare=False, repr=False)
    """What was read of the file, as long as it is kept in memory."""

    def row(self) -> dict[str, Any]:
        """The fields as JSON has them, for another process; `parsed` is not among them."""
        row = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "parsed"}
        return row | {"path": str(self.path), "weightings": [asdict(one) for one in self.weightings]}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """The instance whose `row` this is."""
        values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in row.items()}
        shown = (Weighting(**{**one, "orientation": tuple(one["orientation"])}) for one in row["weightings"])
        return cls(**values | {"path": Path(row["path"]), "weightings": tuple(shown)})


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


def scan(folder: Path, before: Callable[[Path], None] = lambda path: None, shelf: Shelf | None = None) -> Discovery:
    """Read the headers of all files under `folder`, or of one file; every file is either an instance or rejected with a reason.

    Links are not followed: they may lead out of the landing zone, or round in circles. `before` is called before each file is
    read; a CaseRejected that it raises is the reason of that file. On a `shelf` whole files are kept, so that `load` opens none
    again.

    Codes: "not_dicom", "truncated_file", "malformed_element", "missing_uid", "duplicate_instance", "directory_file",
    "file_link", "folder_link", "not_plain_file", "unreadable".
    """
    return without_repeats([scan_file(path, before, shelf) for path in files_of(folder)])


def scan_file(
    path: Path, before: Callable[[Path], None] = lambda path: None, shelf: Shelf | None = None
) -> Instance | Rejection:
    """Read the header of one file, see `scan`."""
    try:
        before(path)
        return _header(path, shelf)
    except CaseRejected as error:
        return Rejection(error.code, error.message, path)
    except Exception as error:  # one file never stops its neighbours; a foreign message may hold identity
        reason = foreign(error)
        return Rejection(reason.code, reason.message, path)


def without_repeats(
    files: Iterable[Instance | Rejection], before: Callable[[Path], None] = lambda path: None
) -> Discovery:
    """What is found in files that are read together, in the order of paths: of each SOPInstanceUID the first is an instance.

    `before` is called before the content of a file is compared.
    """
    instances: dict[str, Instance] = {}
    rejected = []
    for one in files:
        if isinstance(one, Rejection):
            rejected.append(one)
        elif (first := instances.setdefault(one.sop_instance_uid, one)) is not one:
            if one.parsed is not None:
                one.parsed.drop()
            try:
                before(one.path)
                reason = _duplicate(filecmp.cmp(first.path, one.path, shallow=False))
            except CaseRejected as error:
                reason = error
            except OSError as error:
                reason = foreign(error)
            rejected.append(Rejection(reason.code, reason.message, one.path))
    return Discovery(tuple(instances.values()), tuple(rejected))


def load(file: Path | Instance) -> Dataset:
    """Return the whole dataset of a file, with its transfer syntax set also where the file has no meta header.

    PixelData is the one element with pixels; of compressed ones each frame is one fragment. A file that is still kept since
    `scan` is not opened. Each call returns a dataset of its own, whose values are not to be changed in place.

    Raises `CaseRejected`: "not_dicom", "truncated_file", "folder_link", "not_plain_file", "unreadable", "malformed_element",
    "unsafe_pixel_stream".
    """
    parsed = file.parsed if isinstance(file, Instance) else None
    dataset = None if parsed is None else parsed.dataset()
    if dataset is None:
        path = file.path if isinstance(file, Instance) else file
        # The header alone sees missing pixels too, which a full read passes over.
        require_readable(read(path, header_only=True).dataset, HEADER)
        dataset = read(path, header_only=False).dataset
        require_readable(dataset)
    if tag_of_keyword("TransferSyntaxUID") not in dataset.file_meta:
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


def files_of(root: Path) -> list[Path]:
    """All that is below a folder and is no folder itself, sorted; the path itself where it is none. Links are not followed."""
    return [root] if root.is_symlink() or not root.is_dir() else sorted(walk(root))


def _header(path: Path, shelf: Shelf | None) -> Instance:
    reading = read(path, header_only=True, shelf=shelf)
    try:
        return _described(path, reading)
    except BaseException:
        if reading.parsed is not None:
            reading.parsed.drop()
        raise


def _described(path: Path, reading: Reading) -> Instance:
    """The instance of a file; of one whose header has been read but for its SOPInstanceUID, that with another UID."""
    if reading.parsed is None:
        return _read_header(path, reading)
    shelf, elements = reading.parsed.shelf, reading.header_elements()
    stored = elements.pop(tag_of_keyword("SOPInstanceUID"), None)
    uid = plain(stored) if stored is not None and stored.VR in ("UI", None) else None
    if uid is None or not all(map(is_short, elements.values())):
        return _read_header(path, reading)
    encoding = reading.dataset.original_character_set
    key = (
        tuple([anywhere(element) for element in elements.values()]),
        encoding if isinstance(encoding, str) else tuple(encoding),
        text(reading.dataset.file_meta, "MediaStorageSOPClassUID"),
    )
    known = shelf.described.get(key)
    if known is None:
        if len(shelf.described) >= MOST_SERIES:
            shelf.described.clear()
        known = shelf.described[key] = replace(_read_header(path, reading), parsed=None)
    return replace(known, path=path, sop_instance_uid=uid, parsed=reading.parsed)


def _read_header(path: Path, reading: Reading) -> Instance:
    dataset = reading.header()
    if text(dataset.file_meta, "MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        raise CaseRejected(
            "directory_file",
            "Expected DICOM objects; got a DICOMDIR, which lists other files that are read directly. Nothing to do.",
        )
    require_readable(dataset, HEADER, None if reading.parsed is None else reading.parsed.shelf)
    try:
        instance = replace(describe(dataset, path), trailing_bytes=reading.trailing_bytes, parsed=reading.parsed)
    except MemoryError as error:
        raise foreign(error) from None
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
