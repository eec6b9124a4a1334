"""Files of strangers parsed by pydicom: what makes a file unreadable, and which stay in memory so that they are opened once."""

from __future__ import annotations

import errno
import io
import mmap
import os
import struct
import warnings
import zlib
from collections.abc import Hashable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
)
from pydicom.valuerep import STR_VR

from med_assets.dicom.alike import MOST_BYTES, Alike
from med_assets.dicom.archives import START_BYTES, is_archive
from med_assets.dicom.bounds import Extent, measure
from med_assets.dicom.copies import with_elements
from med_assets.dicom.cut import cut
from med_assets.dicom.elements import quietly, text
from med_assets.dicom.pixel_data import DEFLATED_FRAMES
from med_assets.dicom.repeated import Repeated
from med_assets.dicom.undecoded import is_private, plain, representation_of, tag_of, tag_of_keyword
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
    "FrameOfReferenceUID", "Modality", "PatientID", "IssuerOfPatientID", "ImageType", "NumberOfFrames", "SeriesDescription", "SeriesNumber", "ImageOrientationPatient",
    "EchoTime", "RepetitionTime", "StructureSetROISequence", *REFERENCES, *SEG_REFERENCES, *LAST_RESORT,
)  # fmt: skip
"""All that `scan` reads."""

_HEADER_TAGS, _LAST_RESORT_TAGS = (frozenset(map(tag_of_keyword, words)) for words in (HEADER, LAST_RESORT))

_NUMBERS = frozenset({"DS", "IS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"})
_WORDS = frozenset(STR_VR) - _NUMBERS
_PIXEL_DATA = 0x7FE00010
_PIXELS = (0x7FE00008, 0x7FE00009, _PIXEL_DATA)
_PIXEL_REPRESENTATIONS = ("OB", "OW", "UN", None)
"""What PixelData may be; None where the file does not say, as in implicit VR."""


MOST_SERIES = 256
"""Headers that are kept at a time; beyond them it starts anew."""


class Shelf:
    """The files of an entry, kept in memory from when they are first opened, up to `most_bytes` in all."""

    def __init__(self, most_bytes: int) -> None:
        self.bytes_left = most_bytes
        self.readable: Repeated[None] = Repeated()
        self.described: dict[Hashable, Any] = {}
        """What `discover` made of the headers of files, by all that is the same in the slices of a series: of MOST_SERIES at a time."""

        self.alike = Alike()
        self._contents: dict[Path, bytes | Cut] = {}

    def start(self, path: Path) -> bytes:
        """Return the first bytes of a plain file, which is kept where it is a DICOM file and memory allows it. Raises OSError."""
        with path.open("rb", buffering=0) as stream:
            first = stream.read(MOST_BYTES) or b""
            size = os.fstat(stream.fileno()).st_size
            if first[128:132] == b"DICM" and size <= self.bytes_left:
                dataset = self.alike.cut(first, size, lambda at, n_bytes: os.pread(stream.fileno(), n_bytes, at))
                if dataset is not None:
                    self._contents[path] = Cut(dataset, size)
                    self.bytes_left -= size
                else:
                    stream.seek(0)
                    content = stream.read()
                    self._contents[path] = content
                    self.bytes_left -= len(content)
        return first[:START_BYTES]

    def take(self, path: Path) -> bytes | Cut | None:
        """Return the content of a file and keep it no longer; None where it was not kept."""
        content = self._contents.pop(path, None)
        if isinstance(content, bytes):
            self.bytes_left += len(content)
        return content


@dataclass(frozen=True)
class Cut:
    """A file whose elements are known already, and its bytes, which are not given back yet."""

    dataset: FileDataset
    n_bytes: int


@dataclass
class Parsed:
    """The elements of a file as they are stored, parsed once; each who reads them gets a dataset of its own."""

    shelf: Shelf
    n_bytes: int
    source: FileDataset | None
    readable: bool = False

    def dataset(self) -> FileDataset | None:
        """A dataset of the file, every value readable, None when it is no longer kept. Long values are decoded once for all.

        Raises CaseRejected("malformed_element").
        """
        if self.source is not None and not self.readable:
            require_readable(self.source, shelf=self.shelf)
            self.readable = True
        if self.source is None:
            return None
        return _like(self.source, dict(self.source.items()), _copied(self.source.file_meta))

    def drop(self) -> None:
        """Keep the file no longer."""
        if self.source is not None:
            self.source = None
            self.shelf.bytes_left += self.n_bytes


def _copied(meta: FileMetaDataset) -> FileMetaDataset:
    elements = meta.items()
    return with_elements(meta, {tag: one if type(one) is RawDataElement else copy(one) for tag, one in elements})


def _like(
    source: FileDataset, elements: dict[BaseTag, DataElement | RawDataElement], meta: FileMetaDataset
) -> FileDataset:
    dataset = with_elements(source, elements)
    dataset.file_meta = meta
    return dataset


@dataclass(frozen=True)
class Reading:
    """The dataset of a file or of its header, the number of bytes behind it, and the whole file where it is kept, whose dataset it is."""

    dataset: FileDataset
    trailing_bytes: int
    parsed: Parsed | None = None

    def header_elements(self) -> dict[BaseTag, DataElement | RawDataElement]:
        """The elements of the header, as they are stored."""
        return {tag: stored for tag, stored in self.dataset.items() if tag in _HEADER_TAGS}

    def header(self) -> FileDataset:
        """The dataset of the header, whose values may be read."""
        if self.parsed is None:
            return self.dataset
        return _like(self.dataset, self.header_elements(), _copied(self.dataset.file_meta))


def read(path: Path, *, header_only: bool, shelf: Shelf | None = None) -> Reading:
    kept = None if shelf is None else shelf.take(path)
    if shelf is not None and isinstance(kept, Cut):
        return Reading(kept.dataset, 0, Parsed(shelf, kept.n_bytes, kept.dataset))
    content = kept if isinstance(kept, bytes) else None
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
        with path.open("rb") if content is None else io.BytesIO(content) as stream:
            _require_dicom(stream, path)
            if content is None and shelf is not None and os.fstat(stream.fileno()).st_size <= shelf.bytes_left:
                content = stream.read()
            if content is not None:
                return _parse(io.BytesIO(content), content, header_only, shelf)
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _parse(stream, data, header_only)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise CaseRejected(
                "path_too_long",
                "Expected folders nested less deep; got a path that is longer than the system reads. Move it up.",
            ) from None
        refusal = f"Expected a readable file; got {type(error).__name__} from the system. Check permissions."
    raise CaseRejected("unreadable", refusal)  # outside of `except`, since a path may hold a name


def _parse(stream: BinaryIO, data: bytes | mmap.mmap, header_only: bool, shelf: Shelf | None = None) -> Reading:
    """What is read of `data`, to which `stream` stands. The errors of pydicom are not chained: their texts quote values, which may identify a patient."""
    size = len(data)
    trailing_bytes = 0
    refusal: CaseRejected | None = None
    try:
        extent = measure(data)
        trailing_bytes = extent.trailing_bytes
        if shelf is not None and extent.regular and (whole := _whole(bytes(data), extent)) is not None:
            shelf.bytes_left -= size
            shelf.alike.learn(bytes(data), extent.places, whole)
            return Reading(whole, 0, Parsed(shelf, size, whole))
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
        refusal = truncated()  # pydicom raises bare OSErrors for sequences that end too early
    except CaseRejected:
        raise
    except (InvalidDicomError, KeyError, TypeError, ValueError, struct.error) as error:
        refusal = CaseRejected(
            "not_dicom", f"Expected DICOM elements; got {type(error).__name__} from parsing. Send the original file."
        )
    except Exception as error:
        refusal = foreign(error)
    if refusal is not None:
        raise refusal
    if _ends_early(caught):
        raise truncated()
    if syntax != DeflatedExplicitVRLittleEndian:
        little = syntax != ExplicitVRBigEndian
        if stream.tell() > size or (header_only and not _pixels_complete(stream, size, little)):
            raise truncated()
    return Reading(dataset, trailing_bytes)


def _whole(data: bytes, extent: Extent) -> FileDataset | None:
    """All elements of a regular file; None where it takes more than parsing them, or its header alone gives the reason for a refusal."""
    try:
        with quietly() as caught:
            dataset = _cut(data, extent) or _without_stream(pydicom.dcmread(io.BytesIO(data), force=True))
            syntax = text(dataset.file_meta, "TransferSyntaxUID")
    except Exception:  # the header is then read alone, and gives the reason
        return None
    if _ends_early(caught) or syntax in ("", DeflatedExplicitVRLittleEndian, DEFLATED_FRAMES):
        return None
    elements = dict(dataset.items())
    pixels = next((elements[tag] for tag in map(tag_of, _PIXELS) if tag in elements), None)
    if isinstance(pixels, DataElement):
        return None
    if pixels is not None:
        stream = io.BytesIO(data)
        stream.seek(next(place.start for place in extent.places if place.tag == pixels.tag))
        if not _pixels_complete(stream, len(data), syntax != ExplicitVRBigEndian):
            return None
    return dataset


def _without_stream(dataset: FileDataset) -> FileDataset:
    implicit, little = dataset.original_encoding
    out = FileDataset("", dict(dataset.items()), dataset.preamble, dataset.file_meta, bool(implicit), bool(little))
    encoding = dataset.original_character_set
    out.set_original_encoding(implicit, little, encoding if isinstance(encoding, str) else list(encoding))
    return out


def _cut(data: bytes, extent: Extent) -> FileDataset | None:
    """The file as pydicom parses it; None where pydicom has to, and perhaps goes on where its parts alone are no elements."""
    try:
        return cut(data, extent.places)
    except MemoryError:
        raise
    except Exception:
        return None


def _ends_early(caught: list[warnings.WarningMessage]) -> bool:
    return any("end of file" in str(warning.message).lower() for warning in caught)


def foreign(error: Exception) -> CaseRejected:
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


def require_readable(dataset: Dataset, keywords: Sequence[str] | None = None, shelf: Shelf | None = None) -> None:
    """Read the value of each standard element (or those of `keywords`) once, numbers in text apart, which readers check.

    Of a header alone, contours and frame groups are left out: they hold a hundred thousand elements.

    Raises `CaseRejected`: "malformed_element".
    """
    with quietly():
        _read_values(dataset, keywords, shelf)


def _read_values(
    dataset: Dataset, keywords: Sequence[str] | None, shelf: Shelf | None = None, *, plain_stay: bool = False
) -> None:
    """Read values; those of elements that repeat, and if `plain_stay` plain ones, stay undecoded."""
    elements = dict(dataset.items())
    tags = elements.keys() if keywords is None else map(tag_of_keyword, keywords)
    left_out = _LAST_RESORT_TAGS if keywords is not None else ()
    standard = [elements[tag] for tag in tags if tag in elements and not is_private(tag) and tag not in left_out]
    if shelf is None:
        for stored in standard:
            if not (plain_stay and _is_readable(stored)):
                _read_value(dataset, keywords, stored, plain_stay)
    else:
        around = shelf.readable.surroundings(dataset, keywords is None)

        def read_once(stored: DataElement | RawDataElement) -> None:
            if not _is_readable(stored):
                _read_value(dataset, keywords, stored, plain_stay=True)

        for _ in shelf.readable.each(dataset, standard, around, read_once):
            pass


def _is_readable(stored: DataElement | RawDataElement) -> bool:
    """Whether an undecoded element is readable at sight."""
    return plain(stored) is not None and stored.VR in (None, representation_of(stored.tag))


def _read_value(
    dataset: Dataset, keywords: Sequence[str] | None, stored: DataElement | RawDataElement, plain_stay: bool
) -> None:
    tag = stored.tag
    try:
        representation = stored.VR
        if representation == "DS":
            return
        if tag == _PIXEL_DATA:
            if representation not in _PIXEL_REPRESENTATIONS:
                raise ValueError
            return
        element = dataset[tag]
        if dictionary_has_tag(tag):
            expected = dictionary_VR(tag)
            if (element.VR == "SQ") != (expected == "SQ") or (element.VR in _WORDS and expected in _NUMBERS):
                raise ValueError
            if keywords is not None and _kind(element.VR) != _kind(expected):
                raise ValueError
    except MemoryError as error:
        raise foreign(error) from None
    except Exception as error:
        raise CaseRejected(
            "malformed_element",
            f"Expected element {tag} ({keyword_for_tag(tag) or 'unknown'}) to hold a value of its value representation; "
            f"got {type(error).__name__} from reading it. Export the object again.",
        ) from None
    if element.VR == "SQ" and keywords is None:
        for item in element.value:
            _read_values(item, None, plain_stay=plain_stay)


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


def truncated() -> CaseRejected:
    return CaseRejected(
        "truncated_file", "Expected a whole DICOM file; got one whose bytes end too early. Send it again."
    )
