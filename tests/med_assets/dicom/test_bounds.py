"""What a file asks of its reader is bounded, and what lies behind its dataset is no part of it."""

import struct
import zlib
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from med_assets.dicom.bounds import MAX_DEPTH, measure
from med_assets.dicom.discover import load, scan
from med_assets.errors import CaseRejected

MARK = b"ZZSMITH^MRN7788"


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH", group, number) + vr + struct.pack("<H", len(value)) + value


def meta(syntax: bytes) -> bytes:
    content = element(2, 0x10, b"UI", syntax + b"\0" * (len(syntax) % 2))
    return bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(content))) + content


def nested(depth: int, stated: bool, vr: bytes = b"SQ") -> bytes:
    """A CT's class and then sequences inside each other, of undefined or of stated length."""
    inner = b""
    for _ in range(depth):
        if stated:
            item = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(inner)) + inner
            inner = b"\x08\x00\x15\x11" + vr + b"\0\0" + struct.pack("<I", len(item)) + item
        else:
            item = b"\xfe\xff\x00\xe0" + b"\xff" * 4 + inner + b"\xfe\xff\x0d\xe0\0\0\0\0"
            inner = b"\x08\x00\x15\x11" + vr + b"\0\0" + b"\xff" * 4 + item + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return meta(b"1.2.840.10008.1.2.1") + element(8, 0x16, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0") + inner


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 300, 3000])
@pytest.mark.parametrize("stated", [True, False])
def test_deep_sequences_are_refused_without_recursion(tmp_path: Path, depth: int, stated: bool) -> None:
    (tmp_path / "a").write_bytes(nested(depth, stated))
    (rejection,) = scan(tmp_path).rejected
    assert rejection.code == "malformed_element"
    assert f"at most {MAX_DEPTH} deep" in rejection.message


@pytest.mark.parametrize("stated", [True, False])
def test_sequences_as_deep_as_reports_have_them_are_read(tmp_path: Path, stated: bool) -> None:
    data = nested(MAX_DEPTH, stated)
    assert measure(data).end == len(data)


def test_a_deflated_bomb_is_refused_before_it_is_inflated(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = element(8, 0x16, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0") + b"\xe0\x7f\x10\x00OB\0\0\xfe\xff\xff\xff"
    content = packer.compress(start) + b"".join(packer.compress(bytes(1 << 22)) for _ in range(12)) + packer.flush()
    (tmp_path / "a").write_bytes(meta(b"1.2.840.10008.1.2.1.99") + content)
    assert [one.code for one in scan(tmp_path).rejected] == ["malformed_element"]


def test_a_deflated_object_is_read(tmp_path: Path) -> None:
    path = Path(get_testdata_file("image_dfl.dcm"))
    assert load(path).pixel_array.shape == (512, 512)


@pytest.mark.parametrize("source", ["CT_small.dcm", "693_J2KI.dcm", "rtdose.dcm", "rtplan.dcm", "rtstruct.dcm"])
@pytest.mark.parametrize("behind", [bytes(2), bytes(5000), MARK, MARK * 300, b"\n" + MARK])
def test_bytes_behind_the_dataset_are_not_read(tmp_path: Path, source: str, behind: bytes) -> None:
    plain = Path(get_testdata_file(source))
    path = tmp_path / "a"
    path.write_bytes(plain.read_bytes() + behind)
    assert scan(tmp_path).rejected == ()
    assert load(path) == load(plain)


BAD_VALUES = {
    "odd length": b"\x10\x00\x20\x00FD\x0f\x00" + MARK,
    "unknown VR": b"\x10\x00\x20\x00QQ\x0f\x00" + MARK,
    "a sequence": b"\x10\x00\x20\x00SQ\0\0\x0f\0\0\0" + MARK,
    "tag": b"\x10\x00\x20\x00AT\x0f\x00" + MARK,
    "too long": b"\x10\x00\x20\x00UN\0\0\xf0\xff\xff\xff" + MARK,
}


@pytest.mark.parametrize("bad", BAD_VALUES)
def test_a_bad_header_value_is_refused_and_not_quoted(
    tmp_path: Path, bad: str, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    path = tmp_path / "a"
    ds.save_as(path)
    data = path.read_bytes()
    at = data.index(b"\x10\x00\x20\x00LO")
    (length,) = struct.unpack("<H", data[at + 6 : at + 8])
    path.write_bytes(data[:at] + BAD_VALUES[bad] + data[at + 8 + length :])
    (rejection,) = scan(tmp_path).rejected
    assert rejection.code in {"malformed_element", "truncated_file", "not_dicom"}
    assert "SMITH" not in rejection.message + caplog.text + "".join(str(one.message) for one in recwarn)
    with pytest.raises(CaseRejected) as caught:
        load(path)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_different_objects_with_one_uid_are_said_to_be_different(tmp_path: Path) -> None:
    ds = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    ds.save_as(tmp_path / "1")
    ds.save_as(tmp_path / "2")
    ds.InstanceNumber = 77
    ds.save_as(tmp_path / "3")
    same, different = scan(tmp_path).rejected
    assert (same.code, different.code) == ("duplicate_instance", "duplicate_instance")
    assert "copy" in same.message
    assert "different content" in different.message
