"""DICOM files from elements of which most are encoded already: only the others are encoded, and pixels are copied once."""

import struct
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO

from pydicom.config import disable_value_validation
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from med_assets.dicom.elements import text
from med_assets.dicom.repeated import MOST, in_order
from med_assets.dicom.undecoded import LONGEST_BYTES, is_short

CHARACTER_SET = "ISO_IR 192"
"""The character set of what is written: UTF-8."""

_PIXEL_DATA = 0x7FE00010
_ITEM, _SEQUENCE_END, _UNDEFINED = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0", 0xFFFFFFFF
_META = (0x00020001, 0x00020002, 0x00020003, 0x00020010, 0x00020012, 0x00020013)
_FIRST_GROUP = 8
_LONGEST_SHORT = 0xFFFF


def encoded(element: DataElement, syntax: UID) -> DataElement | RawDataElement:
    """The element as it is written in a transfer syntax; the element itself where it is long, or would not read as the same again.

    What the value of an element was before is lost: no one can change an encoded element for all who have it.
    """
    if not _fits(element, syntax):
        return element
    try:
        content = b"".join(_parts(element, syntax))
    except Exception:  # writing the object raises it too
        return element
    header = len(_header(element.tag, element.VR, 0, *_encoding(syntax)))
    if len(content) - header > LONGEST_BYTES:
        return element
    value = content[header:]
    stored = RawDataElement(element.tag, element.VR, len(value), value, 0, *_encoding(syntax))
    again = Dataset()
    again.SpecificCharacterSet = CHARACTER_SET
    again[element.tag] = stored
    return stored if again[element.tag] == element else element


def stored_decimals(tag: BaseTag, text: bytes, syntax: UID) -> RawDataElement:
    """An element of decimal text, as it is written in a transfer syntax."""
    value = text + b" " * (len(text) % 2)
    return RawDataElement(tag, "DS", len(value), value, 0, *_encoding(syntax))


def stored_text(tag: BaseTag, representation: str, text: str, syntax: UID) -> RawDataElement:
    """An element of one plain value (`undecoded.plain`), as it is written in a transfer syntax."""
    value = text.encode("ascii")
    if len(value) % 2:
        value += b"\0" if representation == "UI" else b" "
    return RawDataElement(tag, representation, len(value), value, 0, *_encoding(syntax))


def to_bytes(ds: Dataset) -> bytes:
    """The DICOM file of what `Deidentifier.apply` returned: empty preamble, file meta as given, no time of writing."""
    return b"".join(to_parts(ds))


def to_parts(ds: Dataset) -> tuple[bytes, ...]:
    """The file in parts that follow each other, of which one is the value of PixelData, which is not copied."""
    with disable_value_validation():  # numbers keep the digits they came with, even where a DS has more than 16
        syntax = UID(text(ds.file_meta, "TransferSyntaxUID"))
        elements = [element for _, element in in_order(ds)]
        if (
            syntax == DeflatedExplicitVRLittleEndian
            or getattr(ds, "preamble", None)
            or not _is_complete(ds)
            or not all(_fits(element, syntax) for element in elements)
        ):
            buffer = BytesIO()
            ds.save_as(buffer, enforce_file_format=True)
            return (buffer.getvalue(),)
        before = [bytes(128), b"DICM", _meta(ds.file_meta)]
        pixels, behind = b"", list[bytes]()
        for element in elements:
            part = before if not pixels else behind
            if is_short(element):
                part.append(_stored_bytes(element))
            elif isinstance(element, DataElement) and element.tag == _PIXEL_DATA:
                header, pixels, end = _parts(element, syntax)
                before.append(header)
                behind.append(end)
            else:
                part += _parts(element, syntax)
        return b"".join(before), pixels, b"".join(behind)


@lru_cache(MOST)
def _stored_bytes(element: RawDataElement) -> bytes:
    """A short encoded element with its header, as it is written from slice to slice."""
    value = element.value or b""
    return (
        _header(element.tag, str(element.VR), len(value), bool(element.is_implicit_VR), bool(element.is_little_endian))
        + value
    )


def _is_complete(ds: Dataset) -> bool:
    """Whether the file meta has what a file must have, and is of the object."""
    meta = dict(ds.file_meta.items())
    return (
        tuple(map(int, meta)) == _META
        and all(element.value for element in meta.values())
        and text(ds.file_meta, "MediaStorageSOPClassUID") == text(ds, "SOPClassUID")
        and text(ds.file_meta, "MediaStorageSOPInstanceUID") == text(ds, "SOPInstanceUID")
    )


def _fits(element: DataElement | RawDataElement, syntax: UID) -> bool:
    """Whether an element can be written on its own."""
    if not element.tag & 0xFFFF or element.tag >> 16 < _FIRST_GROUP:
        return False
    if isinstance(element, RawDataElement):
        return (element.is_implicit_VR, element.is_little_endian) == _encoding(syntax)
    if element.tag == _PIXEL_DATA:
        value = element.value
        whole = isinstance(value, bytes) and value and len(value) % 2 == 0
        return bool(whole and element.VR in ("OB", "OW") and (value.startswith(_ITEM) or not syntax.is_compressed))
    if element.VR == "SQ":
        return not element.is_undefined_length and all(_item_fits(item, syntax) for item in element.value)
    return len(element.VR) == 2


def _item_fits(item: Dataset, syntax: UID) -> bool:
    return not item.is_undefined_length_sequence_item and all(_fits(element, syntax) for element in item.values())


def _parts(element: DataElement | RawDataElement, syntax: UID) -> Iterator[bytes]:
    encoding = _encoding(syntax)
    if isinstance(element, RawDataElement):
        yield _header(element.tag, str(element.VR), len(element.value or b""), *encoding)
        yield element.value or b""
    elif element.tag == _PIXEL_DATA:
        yield _header(element.tag, element.VR, _UNDEFINED if syntax.is_compressed else len(element.value), *encoding)
        yield element.value
        yield _SEQUENCE_END if syntax.is_compressed else b""
    elif element.VR == "SQ":
        items = [
            b"".join(part for _, inner in in_order(item) for part in _parts(inner, syntax)) for item in element.value
        ]
        yield _header(element.tag, "SQ", sum(8 + len(content) for content in items), *encoding)
        for content in items:
            yield struct.pack("<HHL" if syntax.is_little_endian else ">HHL", 0xFFFE, 0xE000, len(content))
            yield content
    else:
        yield _bytes(element, syntax)


@lru_cache
def _encoding(syntax: UID) -> tuple[bool, bool]:
    return syntax.is_implicit_VR, syntax.is_little_endian


def _header(tag: BaseTag, representation: str, length: int, implicit: bool, little: bool) -> bytes:
    order = "<" if little else ">"
    if implicit:
        return struct.pack(f"{order}HHL", tag >> 16, tag & 0xFFFF, length)
    if representation not in EXPLICIT_VR_LENGTH_32 and length > _LONGEST_SHORT:
        representation = "UN"  # PS3.5, 6.2.2
    if representation in EXPLICIT_VR_LENGTH_32:
        return struct.pack(f"{order}HH2sHL", tag >> 16, tag & 0xFFFF, representation.encode(), 0, length)
    return struct.pack(f"{order}HH2sH", tag >> 16, tag & 0xFFFF, representation.encode(), length)


def _bytes(element: DataElement, syntax: UID) -> bytes:
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = syntax.is_implicit_VR, syntax.is_little_endian
    write_data_element(buffer, element, CHARACTER_SET)
    return buffer.getvalue()


def _meta(meta: FileMetaDataset) -> bytes:
    """The file meta with its length, which is always in explicit VR and little endian (PS3.10, 7.1)."""
    content = b"".join(
        [
            _stored_bytes(element) if isinstance(element, RawDataElement) else _bytes(element, ExplicitVRLittleEndian)
            for element in dict(meta.items()).values()
        ]
    )
    return struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(content)) + content
