"""Each file of a batch has a line in its list, and is counted once in its rows."""

import csv
import io
import shutil
import struct
import zipfile
from collections import Counter
from pathlib import Path

import pydicom
import pytest
from pydicom.datadict import tag_for_keyword

from med_assets import program
from med_assets.cli.main import main
from med_assets.intake.stage import files_table
from med_assets.landing import batches
from med_assets.settings import Workspace
from tests.fuzz.__main__ import PROGRAMS
from tests.fuzz.seeds import files_below
from tests.invented import Study, ct, volume_seg, write
from tests.shared_phantoms import write_phantoms


def account(ws: Workspace, name: str) -> tuple[Counter[str], int, int]:
    """Codes of the rows (status where there is none), lines of files in the batch's list, and files that the rows count."""
    (batch,) = batches.known(ws, name)
    with files_table(ws, name, batch).open(newline="", errors="surrogateescape") as stream:
        lines = list(csv.DictReader(stream))
    rows = ws.lake.rows("raw_cases", name)
    files = [(line["file"], line["member"]) for line in lines if line["kind"] in ("file", "member")]
    assert len(set(files)) == len(files)
    assert len({row["case_id"] for row in rows}) == len(rows)
    return Counter(row["reason_code"] or row["status"] for row in rows), len(files), sum(r["n_instances"] for r in rows)


@pytest.mark.parametrize("name", PROGRAMS)
def test_copies_and_parts_of_a_case_in_other_entries_are_counted(
    workspace: Workspace, tmp_path: Path, name: str
) -> None:
    landing = workspace.landing / name
    write_phantoms(name, tmp_path, 1, 100)
    files = files_below(tmp_path)
    for entry in ("a", "b"):
        for path, content in files.items():
            (landing / entry / path).parent.mkdir(parents=True, exist_ok=True)
            (landing / entry / path).write_bytes(content)
    with zipfile.ZipFile(landing / "c.zip", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    (landing / "d").mkdir()
    for number, content in enumerate(files.values()):
        if number % 2:
            (landing / "d" / f"x{number}").write_bytes(content[:-7] if number % 4 == 1 else content)
    assert main(["ingest", name, "--now"]) == 0
    codes, listed, counted = account(workspace, name)
    assert listed == counted == 3 * len(files) + len(files) // 2
    assert codes["ok"] + codes["two_versions"] >= 1  # half of a series is another version of it
    assert codes["repeated_case"] == codes["ok"]


def test_two_versions_of_a_case_count_the_files_of_both(workspace: Workspace) -> None:
    landing = workspace.landing / "breast_us"
    program.get("breast_us").write_phantoms(landing / "a", 1, 100)
    for name in ("b", "c"):
        shutil.copytree(landing / "a", landing / name)
        for path in (landing / name).rglob("us.dcm"):
            ds = pydicom.dcmread(path)
            middle = len(ds.PixelData) // 2  # within the tissue
            ds.PixelData = ds.PixelData[:middle] + name.encode() * 40 + ds.PixelData[middle + 40 :]
            ds.save_as(path)
    assert main(["ingest", "breast_us", "--now"]) == 0
    assert account(workspace, "breast_us") == (Counter(two_versions=1), 6, 6)


def test_a_member_whose_place_lies_before_the_archive_is_a_corrupt_archive(workspace: Workspace) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("a", b"x" * 100)
    content = bytearray(target.getvalue())
    end = content.rfind(b"PK\5\6")
    content[end + 12 : end + 16] = (200).to_bytes(4, "little")  # the directory is longer than what lies before it
    (workspace.landing / "breast_us").mkdir(parents=True)
    (workspace.landing / "breast_us" / "a.zip").write_bytes(content)
    assert main(["ingest", "breast_us", "--now"]) == 0
    assert account(workspace, "breast_us") == (Counter(archive_corrupt=1), 1, 1)


@pytest.mark.parametrize(
    ("keyword", "vr"),
    [
        ("DimensionIndexValues", "FD"),
        ("DimensionIndexValues", "PN"),
        ("DimensionIndexValues", "ZZ"),
        ("PixelMeasuresSequence", "US"),
    ],
)
def test_a_value_of_a_frame_that_is_none_of_its_kind_is_malformed(workspace: Workspace, keyword: str, vr: str) -> None:
    st = Study("frames")
    slices = ct(st, n=12)
    seg = volume_seg(st, slices, [("lung tumor", slices[0].pixel_array[None].repeat(12, 0) > 1000)])
    seg.PerFrameFunctionalGroupsSequence[0].DimensionIndexValues = [1, 1, 1]
    folder = write([*slices, seg], workspace.landing / "lung_ct" / "a")
    path = sorted(folder.iterdir())[-1]
    found = b"\x20\x00\x57\x91UL"
    place = tag_for_keyword(keyword)
    assert place is not None
    changed = struct.pack("<HH", place >> 16, place & 0xFFFF) + vr.encode()
    content = path.read_bytes()
    assert content.count(found) == 1
    path.write_bytes(content.replace(found, changed))
    assert main(["ingest", "lung_ct", "--now"]) == 0
    codes, listed, counted = account(workspace, "lung_ct")
    assert codes == Counter(malformed_element=1)
    assert listed == counted == 13


@pytest.mark.parametrize("behind", [bytes(512), b"QUIMBYZELDA47", b"\1"])
def test_bytes_behind_a_dataset_are_a_note_and_stored_nowhere(workspace: Workspace, behind: bytes) -> None:
    folder = workspace.landing / "breast_us" / "a"
    program.get("breast_us").write_phantoms(folder, 1, 3)
    n_files = 0
    for path in (path for path in folder.rglob("*.dcm") if path.is_file()):
        path.write_bytes(path.read_bytes() + behind)
        n_files += 1
    assert main(["ingest", "breast_us", "--now"]) == 0
    codes, lines, counted = account(workspace, "breast_us")
    assert codes == {"ok": 1, "trailing_bytes": 1}
    assert lines == counted
    (note,) = [row for row in workspace.lake.rows("raw_cases", "breast_us") if row["reason_code"] == "trailing_bytes"]
    assert note["status"] == "note"
    assert f"{n_files * len(behind)} bytes behind it in {n_files} of {n_files} objects" in note["reason"]
    assert not any(
        b"QUIMBYZELDA47" in path.read_bytes() for path in (workspace.home / "store").rglob("*") if path.is_file()
    )
