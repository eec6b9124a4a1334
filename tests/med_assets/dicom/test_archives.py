"""An archive unpacks whole inside its folder, or is refused and leaves nothing."""

import gzip
import io
import os
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from med_assets.dicom.archives import expand, is_archive
from med_assets.errors import ArchiveRejected

LIMITS = {"max_bytes": 1_000_000, "max_files": 10, "max_ratio": 100.0}


def make_zip(path: Path, members: dict[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return path


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w", kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.type = kind
            info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(data))
    return path


def refused(archive: Path, **limits) -> str:
    into = archive.parent / "into"
    with pytest.raises(ArchiveRejected) as caught:
        expand(archive, into, **{**LIMITS, **limits})
    assert not into.exists()
    assert [path for path in archive.parent.iterdir() if path.name.startswith(".expand")] == []
    return caught.value.code


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz", "w:xz", "w:bz2"])
def test_every_format_is_recognised_by_content_and_unpacks_to_the_same_bytes(tmp_path, mode):
    members = {"a/1": b"one" * 100, "a/b/2.dcm": bytes(range(256)), "3": b""}
    archive = tmp_path / "no-suffix"
    make_zip(archive, members) if mode == "zip" else make_tar(archive, members, mode)
    assert is_archive(archive)
    expand(archive, tmp_path / "into", **LIMITS)
    unpacked = [path.read_bytes() for path in sorted((tmp_path / "into").iterdir())]
    assert unpacked == list(members.values())


def test_dicom_files_zeros_text_and_nothing_are_no_archives(tmp_path):
    assert not is_archive(Path(get_testdata_file("CT_small.dcm")))
    for index, data in enumerate((b"", b"\0" * 4096, b"hello", b"\x1f\x8b not gzip", os.urandom(4096))):
        path = tmp_path / str(index)
        path.write_bytes(data)
        assert not is_archive(path)
        assert refused(path) in {"not_archive", "archive_corrupt"}


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "c:evil"])
def test_names_that_point_outside_are_refused(tmp_path, name):
    assert refused(make_zip(tmp_path / "z", {"good": b"1", name: b"2"})) == "archive_traversal"
    assert refused(make_tar(tmp_path / "t", {"good": b"1", name: b"2"})) == "archive_traversal"
    assert not (tmp_path.parent / "evil").exists()


def test_links_and_devices_are_refused(tmp_path):
    assert refused(make_tar(tmp_path / "t", {"link": b""}, kind=tarfile.SYMTYPE)) == "archive_link"
    assert refused(make_tar(tmp_path / "t", {"link": b""}, kind=tarfile.LNKTYPE)) == "archive_link"
    assert refused(make_tar(tmp_path / "t", {"device": b""}, kind=tarfile.CHRTYPE)) == "archive_device"
    assert refused(make_tar(tmp_path / "t", {"pipe": b""}, kind=tarfile.FIFOTYPE)) == "archive_device"
    assert refused(make_zip(tmp_path / "z", {"link": b"/etc/passwd"}, stat.S_IFLNK | 0o777)) == "archive_link"
    assert refused(make_zip(tmp_path / "z", {"pipe": b""}, stat.S_IFIFO | 0o666)) == "archive_device"


def test_bombs_are_refused_by_bytes_ratio_and_number_of_files(tmp_path):
    zeros = {"zeros": bytes(5_000_000)}
    for make, mode in ((make_zip, ()), (make_tar, ("w:gz",)), (make_tar, ("w:xz",))):
        archive = make(tmp_path / "bomb", zeros, *mode)
        assert refused(archive) == "archive_too_large"
        assert refused(archive, max_bytes=10**9) == "archive_too_large"
    many = {str(index): b"x" for index in range(11)}
    assert refused(make_zip(tmp_path / "many", many)) == "archive_too_many_files"
    assert refused(make_tar(tmp_path / "many", many), max_ratio=1e9) == "archive_too_many_files"


def test_a_bomb_in_a_tar_header_counts_like_any_other_bytes(tmp_path):
    with tarfile.open(tmp_path / "t", "w:gz", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("n" * 5_000_000))
    assert refused(tmp_path / "t", max_ratio=1e9) == "archive_too_large"


def unpacked_bytes(archive: Path) -> list[bytes]:
    into = archive.parent / f"{archive.name}-into"
    expand(archive, into, **LIMITS)
    return [path.read_bytes() for path in sorted(into.iterdir())]


def test_members_of_one_name_are_all_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("same", "1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("same", "2")
    assert unpacked_bytes(tmp_path / "z") == [b"1", b"2"]
    assert unpacked_bytes(make_tar(tmp_path / "t", {"same": b"1", "./same": b"2"})) == [b"1", b"2"]
    assert unpacked_bytes(make_tar(tmp_path / "u", {"same": b"1", "same/below": b"2", "SAME": b"3"})) == [
        b"1",
        b"2",
        b"3",
    ]


@pytest.mark.parametrize(
    "name", ["n" * 300, "d/" * 1500 + "a", "M\u00fcller\udcfc".encode("utf-8", "surrogateescape").decode("latin-1")]
)
def test_names_that_no_file_system_has_are_of_no_account(tmp_path, name):
    assert unpacked_bytes(make_zip(tmp_path / "z", {name: b"1"})) == [b"1"]
    assert unpacked_bytes(make_tar(tmp_path / "t", {name: b"1"})) == [b"1"]


def test_a_sparse_tar_pays_for_its_holes(tmp_path):
    info = tarfile.TarInfo("hole")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 1
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (5 << 20, 1)
    header[483:495] = b"%011o\0" % ((5 << 20) + 1)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "t").write_bytes(bytes(header) + b"x".ljust(512, b"\0") + bytes(1024))
    assert refused(tmp_path / "t") == "archive_too_large"


def test_a_long_comment_is_not_read_to_know_an_archive(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 5 << 30
    (tmp_path / "t").write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(4 << 20)))
    assert is_archive(tmp_path / "t")
    assert refused(tmp_path / "t") == "archive_too_large"


@pytest.mark.parametrize("mode", ["zip", "w", "w:gz", "w:xz", "w:bz2"])
def test_a_truncated_archive_is_refused(tmp_path, mode):
    members = {"a": os.urandom(20_000), "b": os.urandom(20_000)}
    archive = make_zip(tmp_path / "z", members) if mode == "zip" else make_tar(tmp_path / "t", members, mode)
    archive.write_bytes(archive.read_bytes()[:30_000])
    assert refused(archive) == "archive_corrupt"


def test_a_zip_with_a_password_is_refused(tmp_path):
    archive = make_zip(tmp_path / "z", {"a": b"1"})
    data = bytearray(archive.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(data)
    assert refused(archive) == "archive_encrypted"


def test_a_header_that_inflates_to_gigabytes_is_not_inflated_to_be_recognised(tmp_path):
    info = tarfile.TarInfo("x")
    info.size, info.type = 5 << 30, tarfile.XHDTYPE
    zeros = gzip.compress(bytes(1 << 24), 9)
    with (tmp_path / "a.tar.gz").open("wb") as stream:
        stream.write(gzip.compress(info.tobuf(tarfile.GNU_FORMAT)))
        for _ in range(32):
            stream.write(zeros)
    tracemalloc.start()
    assert is_archive(tmp_path / "a.tar.gz")
    with pytest.raises(ArchiveRejected):
        expand(tmp_path / "a.tar.gz", tmp_path / "out")
    assert tracemalloc.get_traced_memory()[1] < 300 << 20
    tracemalloc.stop()
