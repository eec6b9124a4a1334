"""Files of a few MB that ask for gigabytes: refused for what they are, in seconds and little memory, and nothing else is lost."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.pixels import compress
from pydicom.uid import UID, JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from med_assets.cli.main import main
from med_assets.dicom.archives import MAX_DIRECTORY_BYTES
from med_assets.errors import CaseRejected, ConfigurationError
from med_assets.landing.importing.volume_files import read_volume
from med_assets.landing.importing.volumes import datalist_pairs
from med_assets.programs.breast_us.importer import import_images
from med_assets.programs.breast_us.phantom import write_case
from med_assets.programs.lumbar_mr.importer import read_case
from med_assets.settings import Workspace
from tests.cases.test_hostile import CT_CLASS, dicom
from tests.fuzz.rounds import Memory
from tests.streams import lossless_jpeg

P = "breast_us"
GB = 1 << 30
MEMORY_BYTES, SECONDS = 2 * GB, 60
ZEROS = bytes(1 << 20)


def zeros(n_bytes: int, start: bytes = b"", form: int = zlib.MAX_WBITS | 16) -> bytes:
    """So many zeros behind `start`, deflated; blocks of a MiB are alike, and packed once."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, form)
    first = squeeze.compress(start) + squeeze.flush(zlib.Z_FULL_FLUSH)
    block = squeeze.compress(ZEROS) + squeeze.flush(zlib.Z_FULL_FLUSH)
    return first + block * (n_bytes >> 20) + squeeze.flush()


def zip_of(content: bytes, n_bytes: int) -> bytes:
    """A zip of one member `a`, deflated as `content`, that says to hold `n_bytes`."""
    sizes = struct.pack("<5H3I2H", 20, 0, 8, 0, 33, 0, len(content), n_bytes, 1, 0)
    entry = b"PK\1\2" + struct.pack("<H", 20) + sizes + struct.pack("<3H2I", 0, 0, 0, 0, 0) + b"a"
    start = b"PK\3\4" + sizes + b"a" + content
    return start + entry + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(start), 0)


def deflated_dataset(folder: Path) -> None:
    start = CT_CLASS + struct.pack("<HH", 0x7FE0, 0x10) + b"OB\0\0" + struct.pack("<I", 0xFFFFFFFE)
    (folder / "a").write_bytes(dicom(zeros(6 * GB, start, -15), b"1.2.840.10008.1.2.1.99"))


def zip_of_zeros(folder: Path) -> None:
    (folder / "a").write_bytes(zip_of(zeros(3 * GB, form=-15), 3 * GB))


def zip_of_many(folder: Path) -> None:
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count = MAX_DIRECTORY_BYTES // len(entry) + 1
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 65535, 65535, count * len(entry), 30, 0)
    (folder / "a").write_bytes(struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 0, 0) + entry * count + end)


def zip_with_dictionary(folder: Path) -> None:
    with zipfile.ZipFile(folder / "a", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", b"x" * 1000)
    content = bytearray((folder / "a").read_bytes())
    content[30 + 1 + 5 : 30 + 1 + 9] = (0xFFFFFFF0).to_bytes(4, "little")
    (folder / "a").write_bytes(content)


def xz_with_dictionary(folder: Path) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    content = bytearray(lzma.compress(target.getvalue(), filters=filters))
    place = content.index(b"\x21\x01") + 2  # the filter's one property: the dictionary, here 3 GiB
    content[place] = 39
    size = 4 * (content[12] + 1)
    content[12 + size - 4 : 12 + size] = zlib.crc32(bytes(content[12 : 12 + size - 4])).to_bytes(4, "little")
    (folder / "a").write_bytes(content)


def tar_header(kind: bytes, size: int) -> bytes:
    info = tarfile.TarInfo("a")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


def tar_of_zeros(kind: bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / "a").write_bytes(zeros(5 * GB, tar_header(kind, 5 * GB)))

    make.__name__ = f"tar_of_zeros_{kind.decode()}"
    return make


def tar_bz2(folder: Path) -> None:
    (folder / "a").write_bytes(bz2.compress(tar_header(b"0", 5 * GB)) + bz2.compress(ZEROS * 8) * (5 << 7))


def sparse_tar(folder: Path) -> None:
    header = bytearray(tar_header(b"S", 0))
    header[386:398], header[398:410] = b"%011o\0" % 0, b"%011o\0" % 0
    header[483:495] = b"%011o\0" % (7 * GB)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    (folder / "a").write_bytes(bytes(header) + bytes(1024))


def in_parts(folder: Path) -> None:
    (folder / "a").write_bytes(tar_header(b"M", 0) + bytes(1024))


def zip_in_parts(folder: Path) -> None:
    (folder / "a").write_bytes(b"PK\x07\x08" + b"PK\3\4" + bytes(100))


def nested(folder: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a", b"x")
    with zipfile.ZipFile(folder / "a", "w") as archive:
        archive.writestr("b", inner.getvalue())


def declared_large(syntax: UID, rows: int = 65535, *, header: bool = True) -> Callable[[Path], None]:
    """A small compressed image whose stream, and with `header` its header, say that it is of 65535 x 65535 pixels."""

    def make(folder: Path) -> None:
        folder.rmdir()  # a phantom is written into a new folder
        write_case(folder, 2)
        path = folder / "us.dcm"
        ds = pydicom.dcmread(path)
        if syntax == JPEGLosslessSV1:
            ds.PixelData = encapsulate([lossless_jpeg(ds.pixel_array, 8)])
            ds["PixelData"].is_undefined_length = True
            ds.file_meta.TransferSyntaxUID = syntax
        else:
            compress(ds, syntax, generate_instance_uid=False)
        size = struct.pack(">HH", rows, rows)
        stream, old = bytes(ds.PixelData), struct.pack(">HH", ds.Rows, ds.Columns)
        if syntax == JPEG2000Lossless:
            at = stream.index(b"\xff\x4f\xff\x51") + 8
            grid = struct.pack(">II", rows, rows)
            stream = stream[:at] + grid + stream[at + 8 : at + 16] + grid + stream[at + 24 :]
        elif syntax != RLELossless:
            stream = stream.replace(old, size, 1)
        if header:
            ds.Rows = ds.Columns = rows
        ds.PixelData = stream
        ds.save_as(path)

    make.__name__ = f"declared_{'large' if header else 'otherwise'}_{syntax.keyword}_{rows}"
    return make


BOMBS: dict[Callable[[Path], None], str] = {
    deflated_dataset: "malformed_element",
    zip_of_zeros: "archive_too_large",
    zip_of_many: "archive_too_many_files",
    zip_with_dictionary: "archive_too_large",
    xz_with_dictionary: "archive_too_large",
    tar_of_zeros(b"0"): "archive_too_large",
    tar_of_zeros(b"x"): "archive_too_large",
    tar_of_zeros(b"L"): "archive_too_large",
    tar_bz2: "archive_too_large",
    sparse_tar: "archive_too_large",
    in_parts: "archive_in_parts",
    zip_in_parts: "archive_in_parts",
    nested: "nested_archive",
    declared_large(RLELossless): "pixels_too_large",
    declared_large(JPEGLosslessSV1): "pixels_too_large",
    declared_large(JPEGLSLossless): "pixels_too_large",
    declared_large(JPEG2000Lossless): "pixels_too_large",
    declared_large(JPEG2000Lossless, 12000): "pixels_too_large",
    declared_large(JPEGLosslessSV1, header=False): "undecodable_pixels",
    declared_large(JPEGLSLossless, header=False): "undecodable_pixels",
    declared_large(JPEGLSLossless, 0, header=False): "undecodable_pixels",
    declared_large(JPEG2000Lossless, header=False): "undecodable_pixels",
}


@pytest.mark.parametrize("make", BOMBS, ids=lambda make: make.__name__)
def test_a_bomb_is_refused_for_what_it_is_and_the_case_beside_it_is_accepted(
    workspace: Workspace, make: Callable[[Path], None]
) -> None:
    landing = workspace.landing / P
    write_case(landing / "good", 1)
    (landing / "bomb").mkdir()
    make(landing / "bomb")
    begin, memory = time.monotonic(), Memory.now()
    assert main(["ingest", P, "--now"]) == 0
    assert time.monotonic() - begin < SECONDS
    assert memory.peak_bytes() < MEMORY_BYTES
    rows = workspace.lake.rows("raw_cases", P)
    assert sorted(row["reason_code"] or row["status"] for row in rows if row["reason_code"] != "no_image") == sorted(
        ["ok", BOMBS[make]]
    )
    assert sum(path.stat().st_size for path in (landing / "bomb").iterdir()) < 40 << 20


def nifti(folder: Path, shape: tuple[int, int, int], content: bytes, name: str) -> Path:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path = folder / name
    path.write_bytes((gzip.compress if name.endswith(".gz") else bytes)(header.binaryblock + bytes(4) + content))
    return path


def test_a_volume_of_more_voxels_than_its_file_can_hold_is_refused(tmp_path: Path) -> None:
    for name, content in (("a.nii.gz", bytes(1000)), ("a.nii", bytes(1000))):
        with pytest.raises(CaseRejected) as caught:
            read_volume(nifti(tmp_path, (20000, 20000, 20), content, name))
        assert caught.value.code == "volume_too_large"
    whole = np.arange(24, dtype="<i2")
    longer = nifti(tmp_path, (2, 3, 4), whole.tobytes() + bytes(64 << 20), "longer.nii.gz")
    assert read_volume(longer).array.size == 24  # what lies behind the voxels is not read


def test_an_nrrd_that_inflates_to_more_than_it_declares_or_names_another_file_is_refused(tmp_path: Path) -> None:
    space = {"space": "left-posterior-superior", "space directions": np.eye(3), "space origin": [0, 0, 0]}
    nrrd.write(str(tmp_path / "a.nrrd"), np.zeros((2, 3, 4), np.int16), space)
    head = (tmp_path / "a.nrrd").read_bytes().partition(b"\n\n")[0] + b"\n\n"
    (tmp_path / "b.nrrd").write_bytes(head + zeros(5 * GB))
    (tmp_path / "c.nrrd").write_bytes(head[:-1] + b"data file: a.nrrd\n\n")
    assert read_volume(tmp_path / "a.nrrd").array.size == 24
    begin = time.monotonic()
    for name, code in (("b.nrrd", "volume_too_large"), ("c.nrrd", "unreadable_volume")):
        with pytest.raises(CaseRejected) as caught:
            read_volume(tmp_path / name)
        assert caught.value.code == code
    assert time.monotonic() - begin < SECONDS


def test_numpy_archives_that_unpack_to_more_than_a_volume_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz.xz").write_bytes(lzma.compress(ZEROS * 16, preset=0))
    (tmp_path / "a.npz").write_bytes(zip_of(zeros(5 << 20, form=-15), 4 * GB - 1))
    for name, code in (("a.npz.xz", "unreadable_volume"), ("a.npz", "volume_too_large")):
        with pytest.raises(CaseRejected) as caught:
            read_case(tmp_path / name)
        assert caught.value.code == code


def test_a_picture_of_billions_of_pixels_is_skipped_and_the_others_are_imported(tmp_path: Path) -> None:
    folder = tmp_path / "src" / "benign"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in (1, 2):
        Image.fromarray(rng.integers(0, 255, (60, 80), np.uint8)).save(folder / f"benign ({number}).png")
        Image.fromarray(np.zeros((60, 80), np.uint8)).save(folder / f"benign ({number})_mask.png")
    content = bytearray((folder / "benign (2).png").read_bytes())
    content[16:24] = struct.pack(">II", 60000, 60000)
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4)
    (folder / "benign (2).png").write_bytes(content)
    report = import_images("busi", tmp_path / "src", tmp_path / "out")
    assert report.imported == ("busi-benign-0001",)
    assert report.skipped["busi-benign-0002"].startswith("unreadable_image")


def test_a_list_nested_a_hundred_thousand_deep_is_no_list(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(ConfigurationError):
        datalist_pairs(tmp_path / "a.json")
