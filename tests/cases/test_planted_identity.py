"""A marker planted in every place of a DICOM file that can hold bytes: none of it is in the home after intake and preparation,
and the pixels are those that were sent.
"""

import logging
import struct
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_fragments
from pydicom.errors import InvalidDicomError
from pydicom.pixels import compress
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from med_assets import program as programs
from med_assets.settings import Workspace
from tests.invented import ingest, plan_case, write

MARKER = "QUIMBYZELDA47"
RAW = MARKER.encode() + b"\0"
FORMS = [
    form
    for text in (MARKER, MARKER.lower())
    for form in (text.encode(), text.encode("utf-16-le"), text.encode("utf-16-be"))
]
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
    ds.file_meta.PrivateInformationCreatorUID, ds.file_meta.PrivateInformation = "1.2.3", block()
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
PROGRAMS = ("rt_dose", "lung_ct", "lumbar_mr", "breast_us", "retinal_oct")


def read(folder: Path) -> dict[Path, Dataset]:
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            found[path] = dcmread(path)
        except InvalidDicomError:
            continue
    return found


def views(content: bytes) -> list[bytes]:
    """A file's bytes, and what the four highest bits of its words say."""
    out = [content]
    for start in (0, 1):
        highest = np.frombuffer(content, np.uint8)[start::2] >> 4
        out += [
            (part[0::2][: part.size // 2] | part[1::2] << 4).astype(np.uint8).tobytes()
            for part in (highest, highest[1:])
        ]
    return out


def hits(ws: Workspace) -> list[str]:
    """Files of the home, other than those of the landing zone, with the marker in their content or name."""
    paths = [path for path in ws.home.rglob("*") if path.is_file() and not path.is_relative_to(ws.landing)]
    assert any(path.suffix == ".dcm" for path in paths)
    names = [str(path) for path in paths if MARKER.lower() in str(path).lower()]
    return names + [
        str(path) for path in paths if any(form in view for view in views(path.read_bytes()) for form in FORMS)
    ]


def sent(ds: Dataset) -> bytes:
    return np.ascontiguousarray(ds.pixel_array).tobytes()


def kept_pixels(ws: Workspace, rows: list[dict]) -> Counter[bytes]:
    folders = [ws.store.fetch(row["artifact"]) for row in rows]
    return Counter(sent(ds) for folder in folders for ds in read(folder).values() if keeps_all(ds))


def keeps_all(ds: Dataset) -> bool:
    """Whether an object has pixels that are stored as they are: text beside the tissue of ultrasound is blanked."""
    return "PixelData" in ds and ds.Modality not in ("US", "RTSTRUCT", "RTPLAN")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_of_a_marker_in_every_place_is_in_the_home(
    program: str, workspace: Workspace, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    programs.get(program).write_phantoms(workspace.landing / program, 1, 3)
    expected: Counter[bytes] = Counter()
    with disable_value_validation():
        for path, ds in read(workspace.landing / program).items():
            if keeps_all(ds):
                expected[sent(ds)] += 1
            for plant in PLANTS:
                plant(ds)
            ds.save_as(path, enforce_file_format=True)
            assert RAW[:-1] in path.read_bytes()
    raw, prepared = ingest(workspace, program)
    assert {(row["status"], row["reason"]) for row in (*raw, *prepared)} == {("ok", None)}
    assert hits(workspace) == []
    assert kept_pixels(workspace, raw) == expected
    assert MARKER.lower() not in (caplog.text + "".join(capsys.readouterr())).lower()


def planted_stream(stream: bytes) -> bytes:
    """The stream with comments, application segments or boxes, and bytes behind its end."""
    text = struct.pack(">H", len(RAW) + 2) + RAW
    if stream.startswith(b"\xff\xd8"):
        extra = b"".join(b"\xff" + bytes([marker]) + text for marker in (0xFE, *range(0xE0, 0xF0)))
        return stream[:2] + extra + stream[2:] + RAW
    if stream.startswith(b"\xff\x4f"):
        place = 4 + int.from_bytes(stream[4:6])
        return stream[:place] + b"\xff\x64" + struct.pack(">HH", len(RAW) + 4, 1) + RAW + stream[place:] + RAW
    return stream + RAW


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless])
def test_nothing_of_a_marker_in_a_compressed_stream_is_in_the_home(syntax: str, workspace: Workspace) -> None:
    case = plan_case("planted")
    expected = Counter(sent(ds) for ds in case if keeps_all(ds))
    for ds in case:
        if ds.Modality == "CT":
            compress(ds, syntax, generate_instance_uid=False)
            stream = next(part for part in reversed(list(generate_fragments(ds.PixelData))) if part)
            ds.PixelData = encapsulate([planted_stream(stream), RAW])
            ds.ExtendedOffsetTable = block()
    write(case, workspace.landing / "rt_dose" / "planted")
    raw, prepared = ingest(workspace, "rt_dose")
    assert {(row["status"], row["reason"]) for row in (*raw, *prepared)} == {("ok", None)}
    assert hits(workspace) == []
    assert kept_pixels(workspace, raw) == expected


@pytest.mark.filterwarnings("ignore")
def test_dropped_bytes_do_not_make_another_case_of_the_same_images(workspace: Workspace) -> None:
    for name in ("first", "second"):
        case = plan_case("same")
        for ds in case:
            if name == "second":
                ds.PatientID, ds.StudyInstanceUID = "SOMEBODY-ELSE", "1.2.3.4.5"
                if ds.Modality == "CT":
                    ds.PixelData += block()
        write(case, workspace.landing / "rt_dose" / name)
        raw, _ = ingest(workspace, "rt_dose")
    assert [row["reason_code"] for row in raw] == ["duplicate_case"]


def test_a_file_in_memory_is_searched_too() -> None:
    """The search itself finds each form of the marker."""
    halves = np.array([half for letter in RAW for half in (letter & 15, letter >> 4)], "<u2") << 12
    for content in (*FORMS, (halves | 5).astype("<u2").tobytes()):
        stream = BytesIO(b"some bytes " + b"\0" + content).getvalue()
        assert any(form in view for view in views(stream) for form in FORMS)
