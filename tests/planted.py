"""Identity planted in every place of a DICOM file that can hold bytes, and the search for what is left of it."""

import os
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

MARKER = "QUIMBYZELDA47"
RAW = MARKER.encode() + b"\0"
PERSON = "Zweigärtnér", "Oswaldine"
"""Family and given name of the patient, in any order and spelling."""

NO_TEXT = bytes.fromhex("8193a7bbc5d9e3f18e9c")
"""Bytes behind an image that are no text in any encoding."""


def _forms() -> set[bytes]:
    """The bytes of the names in each spelling, encoding and order, with ASCII letters in lower case."""
    found = {NO_TEXT}
    for name in (MARKER, *PERSON):
        for text in (name, name.lower(), name.upper(), name.title()):
            for order in (text, text[::-1]):
                found |= {order.encode(encoding) for encoding in ("utf-8", "latin-1", "utf-16-le", "utf-16-be")}
            for start in (0, 1):  # words of the other byte order
                content = text.encode("latin-1")[start:]
                words = content[: len(content) // 2 * 2]
                found.add(bytes(byte for pair in zip(words[1::2], words[::2], strict=True) for byte in pair))
    return {form.lower() for form in found}


FORMS = sorted(_forms())
TEXT_VRS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT", "AS", "DA", "DS", "DT", "IS", "TM")
BYTE_VRS = ("OB", "OW", "OF", "OD", "OL", "OV", "UN")
NUMBER_VRS = {
    "US": "u2",
    "SS": "i2",
    "UL": "u4",
    "SL": "i4",
    "UV": "u8",
    "SV": "i8",
    "FL": "f4",
    "FD": "f8",
    "AT": "u4",
}


def block(size: int = 8) -> bytes:
    return RAW.ljust(-(-len(RAW) // size) * size, b"\0")


def private(ds: Dataset) -> None:
    creator = ds.private_block(0x0029, MARKER, create=True)
    for offset, vr in enumerate((*TEXT_VRS, *BYTE_VRS, *NUMBER_VRS)):
        tag = creator.get_tag(offset)
        ds._dict[tag] = RawDataElement(tag, vr, len(block()), block(), 0, False, True)
    creator.add_new(0x80, "SQ", [Dataset()])
    creator[0x80].value[0].PatientComments = MARKER
    ds.add_new(0x00991001, "LO", MARKER)


def text(ds: Dataset) -> None:
    for keyword in (
        "PatientName", "PatientComments", "PatientAddress", "InstitutionName", "StationName", "StudyDescription",
        "SeriesDescription", "ProtocolName", "ImageComments", "OperatorsName", "ReferringPhysicianName", "DeviceSerialNumber",
        "AdditionalPatientHistory", "RetrieveURI", "AcquisitionProtocolDescription", "AccessionNumber", "StudyID",
        "LUTExplanation", "TextString", "UnformattedTextValue", "ReasonForStudy",
    ):  # fmt: skip
        setattr(ds, keyword, MARKER)
    ds.StudyDescription, ds.SeriesDescription = f"CT CHEST {MARKER}", f"T2 AXIAL {' '.join(PERSON)}"
    ds.EthnicGroup = ds.SmokingStatus = ds.Occupation = ds.ContrastBolusRoute = ds.ConvolutionKernel = MARKER
    ds.SpecificCharacterSet = "ISO_IR 100"
    ds.OtherPatientNames = "^".join(PERSON)
    ds.PersonName = " ".join(reversed(PERSON))
    ds.StationAETitle = ds.RetrieveAETitle = MARKER
    ds.LongCodeValue = ds.TextValue = ds.StrainDescription = MARKER
    ds.OtherPatientIDsSequence = [Dataset()]
    ds.OtherPatientIDsSequence[0].PatientID = MARKER


def bulk(ds: Dataset) -> None:
    for keyword, vr in (
        ("EncapsulatedDocument", "OB"), ("ICCProfile", "OB"), (0x5000200C, "OW"), ("SpectroscopyData", "OF"),
        ("FloatPixelData", "OF"), ("DoubleFloatPixelData", "OD"), ("ExtendedOffsetTable", "OV"), ("RedPaletteColorLookupTableData", "OW"),
        ("SegmentedGreenPaletteColorLookupTableData", "OW"), ("PixelDataProviderURL", "UR"), ("EncryptedContent", "OB"), ("MAC", "OB"),
        ("CoefficientsSDVN", "OW"), ("VectorGridData", "OF"), ("TrackPointIndexList", "OL"), ("PointCoordinatesData", "OF"),
    ):  # fmt: skip
        ds.add_new(keyword, vr, MARKER if vr == "UR" else block())


def overlays(ds: Dataset) -> None:
    for group in (0x6000, 0x601E):
        ds.add_new(group << 16 | 0x0010, "US", 10)
        ds.add_new(group << 16 | 0x0022, "LO", MARKER)
        ds.add_new(group << 16 | 0x1500, "LO", MARKER)
        ds.add_new(group << 16 | 0x3000, "OW", block())
    ds.add_new(0x50003000, "OW", block())
    ds.add_new(0x50002500, "LO", MARKER)
    ds.add_new(0x5000200C, "OW", block())


def sequences(ds: Dataset) -> None:
    for keyword in ("IconImageSequence", "ModalityLUTSequence", "VOILUTSequence", "WaveformSequence", "ReferencedImageSequence",
                    "DerivationCodeSequence", "MACParametersSequence", "OriginalAttributesSequence"):  # fmt: skip
        nested = Dataset()
        nested.add_new("PixelData", "OW", block())
        nested.add_new("LUTData", "OW", block())
        nested.add_new("WaveformData", "OW", block())
        nested.CodeMeaning = nested.LUTExplanation = MARKER
        nested.add_new("LUTDescriptor", "US", [len(block()) // 2, 0, 16])
        private(nested)
        setattr(ds, keyword, [nested])


def padding(ds: Dataset) -> None:
    ds.add_new(0xFFFCFFFC, "OB", block())
    ds.preamble = RAW.ljust(128, b"\0")
    ds.file_meta.SourceApplicationEntityTitle = ds.file_meta.ImplementationVersionName = MARKER
    ds.add_new("SOPClassUID", "UI", f"{ds.SOPClassUID}\0")
    ds.SOPClassUID += "\0"


def pixels(ds: Dataset) -> None:
    """Bytes behind the pixels, half a letter in unused bits, and pixels where the class has none."""
    if "PixelData" not in ds:
        ds.add_new("PixelData", "OW", block())
        return
    if ds.BitsAllocated == 16 and np.frombuffer(ds.PixelData, "<u2").max() < 4096 and not ds.PixelRepresentation:
        words = np.frombuffer(ds.PixelData, "<u2")
        halves = np.resize([half for letter in RAW for half in (letter & 15, letter >> 4)], words.size)
        ds.BitsStored, ds.HighBit = 12, 11
        ds.PixelData = (words | halves << 12).astype("<u2").tobytes()
    ds.PixelData += block()


PLANTS: tuple[Callable[[Dataset], None], ...] = (private, text, bulk, overlays, sequences, padding, pixels)


def read(folder: Path) -> dict[Path, Dataset]:
    found: dict[Path, Dataset] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            found[path] = dcmread(path)
        except InvalidDicomError:
            continue
    return found


def views(content: bytes) -> list[bytes]:
    """What the four highest bits of a file's words say."""
    out = []
    for start in (0, 1):
        highest = np.frombuffer(content, np.uint8)[start::2] >> 4
        out += [
            (part[0::2][: part.size // 2] | part[1::2] << 4).astype(np.uint8).tobytes()
            for part in (highest, highest[1:])
        ]
    return out


def is_planted(content: bytes) -> bool:
    """Whether a planted name is in the bytes: in any form, or in bits above those of the pixels."""
    folded = content.lower()
    return any(form in folded for form in FORMS) or any(RAW[:-1] in view for view in views(content))


def found_in(paths: Iterable[Path]) -> list[str]:
    """Those of the files with a planted name in their content or path."""
    return [str(path) for path in paths if is_planted(os.fsencode(path)) or is_planted(path.read_bytes())]


def planted_stream(stream: bytes) -> bytes:
    """The stream with comments, application segments or boxes, and bytes behind its end."""
    text = struct.pack(">H", len(RAW) + 2) + RAW
    if stream.startswith(b"\xff\xd8"):
        extra = b"".join(b"\xff" + bytes([marker]) + text for marker in (0xFE, *range(0xE0, 0xF0)))
        return stream[:2] + extra + stream[2:] + RAW + NO_TEXT
    if stream.startswith(b"\xff\x4f"):
        place = 4 + int.from_bytes(stream[4:6])
        return stream[:place] + b"\xff\x64" + struct.pack(">HH", len(RAW) + 4, 1) + RAW + stream[place:] + RAW + NO_TEXT
    return stream + RAW
