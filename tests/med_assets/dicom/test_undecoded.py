"""What is read of elements without decoding them is what pydicom decodes, and a slice like the one before takes few decodings."""

import io
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dataset as pydicom_dataset
from pydicom.data import get_testdata_files
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from med_assets.deidentification.deidentify import Deidentifier
from med_assets.dicom.bounds import measure
from med_assets.dicom.cut import cut
from med_assets.dicom.discover import load
from med_assets.dicom.elements import quietly
from med_assets.dicom.encoded import encoded, stored_text
from med_assets.dicom.geometry import check_ct_series, read_ct_series
from med_assets.dicom.undecoded import Facts, plain, plain_element, plain_integer, plain_number, tag_of_keyword
from med_assets.errors import CaseRejected
from med_assets.intake.reading import EntryReader, StoredCase, Task
from med_assets.programs.rt_dose.phantom import write_case
from med_assets.settings import Workspace
from tests.shared_phantoms import write_phantoms

KEYWORDS = {
    "UI": "SOPInstanceUID", "CS": "Modality", "DA": "StudyDate", "TM": "StudyTime", "LO": "PatientID",
    "SH": "AccessionNumber", "IS": "InstanceNumber", "DS": "SliceLocation", "US": "Rows", "PN": "PatientName",
}  # fmt: skip
PARTS = st.sampled_from(
    (b"1.2.840", b"0", b"-7", b"+12", b"007", b" ", b"\0", b"\\", b"~", b"A b", b"\xe4", b"\x1b$B", b".", b"1e5", b"_")
)
VALUES = st.lists(PARTS, max_size=4).map(b"".join)


def raw(representation: str, value: bytes, *, implicit: bool = False) -> RawDataElement:
    tag = tag_of_keyword(KEYWORDS[representation])
    return RawDataElement(tag, None if implicit else representation, len(value), value, 0, implicit, True)


def decoded(stored: RawDataElement, encoding: str) -> DataElement | None:
    """As pydicom decodes it; None where it can't."""
    ds = Dataset({stored.tag: stored})
    ds.set_original_encoding(stored.is_implicit_VR, True, [encoding])
    with quietly():
        try:
            return ds[stored.tag]
        except Exception:
            return None


@settings(max_examples=600)
@given(
    st.sampled_from(sorted(KEYWORDS)),
    VALUES,
    st.booleans(),
    st.sampled_from(("iso8859", "utf8", "shift_jis", "iso2022_jp", "gb18030")),
)
def test_plain_values_are_those_that_pydicom_decodes(
    representation: str, value: bytes, implicit: bool, encoding: str
) -> None:
    stored = raw(representation, value, implicit=implicit)
    expected = decoded(stored, encoding)
    element, number = plain_element(stored), plain_number(stored)
    if element is not None:
        assert expected is not None
        assert (element, element.VR, type(element.value)) == (expected, expected.VR, type(expected.value))
        assert plain(stored) == str(expected.value).strip()
    if number is not None:
        assert expected is not None
        assert number == float(expected.value)
    if (whole := plain_integer(stored)) is not None:
        assert expected is not None
        assert whole == expected.value


@settings(max_examples=300)
@given(
    st.sampled_from(("UI", "IS")),
    VALUES,
    st.sampled_from((ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)),
)
def test_plain_values_are_written_as_pydicom_writes_them(
    representation: str, value: bytes, syntax: pydicom.uid.UID
) -> None:
    stored = raw(representation, value)
    text, element = plain(stored), decoded(stored, "iso8859")
    if text is not None:
        assert element is not None
        with quietly():
            assert stored_text(stored.tag, representation, text, syntax) == encoded(element, syntax)


def files(tmp_path: Path) -> list[Path]:
    for name in ("breast_us", "lumbar_mr", "lung_ct", "retinal_oct", "rt_dose"):
        write_phantoms(name, tmp_path / name, 1, 2)
    return [path for path in (*map(Path, get_testdata_files()), *sorted(tmp_path.rglob("*"))) if path.is_file()]


def stored_elements(ds: Dataset) -> list[object]:
    """All elements as they are stored, without their places."""
    return [
        stored._replace(value_tell=0)
        if isinstance(stored, RawDataElement)
        else (stored, stored.VR, stored.is_undefined_length)
        for tag, stored in ds.items()
        if tag != 0x00080005  # which pydicom decodes as it reads
    ]


def test_a_file_is_cut_into_the_elements_that_pydicom_parses(tmp_path: Path) -> None:
    n_cut = 0
    for path in files(tmp_path):
        data = path.read_bytes()
        try:
            extent = measure(data)
        except (CaseRejected, EOFError):
            continue
        ours = cut(data, extent.places) if extent.regular else None
        if ours is None:
            continue
        n_cut += 1
        with quietly():
            theirs = pydicom.dcmread(io.BytesIO(data), force=True)
            assert ours.get("SpecificCharacterSet") == theirs.get("SpecificCharacterSet")
        assert stored_elements(ours) == stored_elements(theirs)
        assert ours.file_meta == theirs.file_meta
        assert ours.preamble == theirs.preamble
        assert ours.original_encoding == theirs.original_encoding
        assert ours.original_character_set == theirs.original_character_set
    assert n_cut > 60


def without(keyword: str) -> Callable[[Dataset], None]:
    return lambda ds: delattr(ds, keyword)


def having(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda ds: setattr(ds, keyword, value)


HALF = 0.5**0.5


@pytest.mark.parametrize(
    "change",
    [
        lambda ds: None,
        without("PixelData"),
        having("PixelData", b"\0\0"),
        having("BitsAllocated", 12),
        having("Rows", 31),
        without("RescaleSlope"),
        having("PhotometricInterpretation", "RGB"),
        having("SamplesPerPixel", 3),
        having("ImageOrientationPatient", [HALF, 0, HALF, 0, 1, 0]),
        having("ImagePositionPatient", [0, 0, 1000]),
        having("PixelSpacing", [1, 2]),
    ],
)
@pytest.mark.parametrize("all_slices", [True, False])
def test_a_series_is_checked_as_it_is_read(tmp_path: Path, change: Callable[[Dataset], None], all_slices: bool) -> None:
    write_case(tmp_path / "case", 1, shape=(4, 32, 32), spacing_mm=(3.0, 4.0, 4.0))

    def code(read: Callable[[list[Dataset]], object]) -> str:
        slices = [load(path) for path in sorted((tmp_path / "case" / "CT").iterdir())]
        for ds in slices if all_slices else slices[2:3]:
            change(ds)
        try:
            read(slices)
        except CaseRejected as rejected:
            return f"{rejected.code}: {rejected.message}"
        return ""

    assert code(check_ct_series) == code(read_ct_series)


def test_facts_are_of_the_named_elements_alone_and_made_once_for_equal_ones() -> None:
    made = []
    size = Facts(lambda ds: made.append(1) or (ds.get("Rows"), ds.get("Columns")), "Rows")

    def with_rows(rows: int) -> Dataset:
        columns = RawDataElement(tag_of_keyword("Columns"), "US", 2, b"\5\0", 0, False, True)
        ds = Dataset({stored.tag: stored for stored in (raw("US", rows.to_bytes(2, "little")), columns)})
        ds.set_original_encoding(False, True, "iso8859")
        return ds

    assert [size(with_rows(rows)) for rows in (3, 3, 4, 3)] == [(3, None), (3, None), (4, None), (3, None)]
    assert len(made) == 2


def test_a_slice_like_those_before_takes_few_decodings(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert, calls = pydicom_dataset.convert_raw_data_element, [0]

    def counted(*args: object, **options: object) -> DataElement:
        calls[0] += 1
        return convert(*args, **options)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(pydicom_dataset, "convert_raw_data_element", counted)

    def decodings(n_slices: int) -> int:
        folder, scratch = tmp_path / str(n_slices), tmp_path / f"scratch-{n_slices}"
        write_case(folder, 1, shape=(n_slices, 16, 16), spacing_mm=(3.0, 8.0, 8.0))
        for path in folder.iterdir():
            if path.is_file():  # all but the CT
                path.unlink()
        scratch.mkdir()
        task = Task(workspace, "lung_ct", "b", "source-x", folder, (), scratch)
        calls[0] = 0
        with quietly():
            found = list(EntryReader(task, Deidentifier(workspace.key), lambda message: None).messages())
        assert [type(one) for one in found] == [StoredCase]
        return calls[0]

    assert decodings(40) - decodings(20) <= 20 * 5
