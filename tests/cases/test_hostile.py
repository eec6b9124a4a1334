"""Nothing that lies in the landing zone stops what lies beside it, and nothing of it is lost."""

import csv
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.intake.stage import files_table
from med_assets.landing import batches
from med_assets.programs.breast_us.phantom import write_case
from med_assets.settings import Workspace
from med_assets.storage.scratch import remove_abandoned, scratch
from tests.conftest import settings_of

P = "breast_us"
NAME = b"ZZSMITH^MRN7788"


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    """An element in explicit little endian with a short length."""
    return struct.pack("<HH", group, number) + vr + struct.pack("<H", len(value)) + value


def dicom(dataset: bytes, syntax: bytes = b"1.2.840.10008.1.2.1\0") -> bytes:
    """A file of a meta header and a dataset."""
    meta = element(2, 0x10, b"UI", syntax)
    return bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta + dataset


CT_CLASS = element(8, 0x16, b"UI", b"1.2.840.10008.5.1.4.1.1.2\0")


def odd_value(folder: Path, good: bytes) -> None:
    at = good.find(b"\x10\x00\x20\x00LO")
    length = good[at + 6]
    changed = good[:at] + b"\x10\x00\x20\x00FD" + struct.pack("<H", len(NAME)) + NAME + good[at + 8 + length :]
    (folder / "a.dcm").write_bytes(changed)


def unknown_vr(folder: Path, good: bytes) -> None:
    at = good.find(b"\x10\x00\x20\x00LO")
    (folder / "a.dcm").write_bytes(good[: at + 4] + b"ZZ" + good[at + 6 :])


def nested(folder: Path, good: bytes) -> None:
    begin = struct.pack("<HH", 8, 0x1115) + b"SQ\0\0" + b"\xff" * 4 + b"\xfe\xff\x00\xe0" + b"\xff" * 4
    end = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    (folder / "a.dcm").write_bytes(dicom(CT_CLASS + begin * 300 + end * 300))


def deflate_bomb(folder: Path, good: bytes) -> None:
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = squeeze.compress(CT_CLASS + struct.pack("<HH", 0x7FE0, 0x10) + b"OB\0\0" + struct.pack("<I", 0xFFFFFFFE))
    zeros = bytes(1 << 24)
    content += b"".join(squeeze.compress(zeros) for _ in range(16)) + squeeze.flush()
    (folder / "a.dcm").write_bytes(dicom(content, b"1.2.840.10008.1.2.1.99"))


def pipe(folder: Path, good: bytes) -> None:
    os.mkfifo(folder / "f")


def unix_socket(folder: Path, good: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        before = Path.cwd()
        os.chdir(folder)  # the path of a socket may be 107 characters
        try:
            made.bind("s")
        finally:
            os.chdir(before)


def links(folder: Path, good: bytes) -> None:
    (folder / "l").symlink_to("/etc/passwd")
    (folder / "m").symlink_to(folder.parent)
    (folder / "n").symlink_to("nowhere")


def deep(folder: Path, good: bytes) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        for _ in range(1100):
            os.mkdir("d")
            os.chdir("d")
        Path("a").write_text("no image")
    finally:
        os.chdir(before)


def beyond_path_max(folder: Path, good: bytes) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        for _ in range(60):
            os.mkdir("d" * 100)
            os.chdir("d" * 100)
        Path("a").write_text("no image")
    finally:
        os.chdir(before)


def latin1(folder: Path, good: bytes) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcller")).mkdir()
    Path(os.fsdecode(os.fsencode(folder) + b"/M\xfcller/a\xff.dcm")).write_bytes(good[:-7])


KINDS: dict[Callable[[Path, bytes], None], set[str]] = {
    odd_value: {"malformed_element", "not_dicom", "missing_patient_id", "truncated_file"},
    unknown_vr: {"malformed_element", "not_dicom"},
    nested: {"malformed_element", "not_dicom"},
    deflate_bomb: {"malformed_element"},
    pipe: {"not_plain_file"},
    unix_socket: {"not_plain_file"},
    links: {"file_link", "folder_link"},
    deep: {"not_dicom"},
    beyond_path_max: {"path_too_long"},
    latin1: {"truncated_file"},
}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "case"
    write_case(folder, 100)
    return folder


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_a_hostile_entry_is_one_quarantined_row_and_the_case_beside_it_is_accepted(
    workspace: Workspace, phantom: Path, make: Callable[[Path, bytes], None], capfd: pytest.CaptureFixture[str]
) -> None:
    landing = workspace.landing / P
    shutil.copytree(phantom, landing / "good")
    (landing / "bad").mkdir()
    make(landing / "bad", next(iter(sorted(phantom.iterdir()))).read_bytes())
    assert main(["ingest", P, "--now"]) == 0
    rows = workspace.lake.rows("raw_cases", P)
    assert [row["status"] for row in rows].count("ok") == 1
    refused = {row["reason_code"] for row in rows if row["status"] != "ok"}
    assert refused
    assert refused <= KINDS[make]
    assert len(workspace.lake.rows("dataset", P)) == 1
    shown = "".join(capfd.readouterr()) + str(rows)
    assert "SMITH" not in shown
    assert "7788" not in shown
    assert "Traceback" not in shown
    if make in (deep, beyond_path_max):
        subprocess.run(["rm", "-rf", str(landing / "bad")], check=True)  # shutil calls itself for each level


@pytest.mark.parametrize("name", ["Zqxname_" + "x" * 300, "d/" * 3000 + "a"])
def test_a_member_with_a_name_that_no_file_can_have_stops_nothing(
    workspace: Workspace, phantom: Path, name: str
) -> None:
    landing = workspace.landing / P
    shutil.copytree(phantom, landing / "good")
    with zipfile.ZipFile(landing / "a.zip", "w") as archive:
        archive.writestr(name, b"x")
    assert main(["ingest", P, "--now"]) == 0
    rows = workspace.lake.rows("raw_cases", P)
    assert [row["status"] for row in rows].count("ok") == 1
    assert len(rows) == 2
    assert "Zqxname" not in str(rows)


def test_what_is_no_file_or_has_none_is_an_entry_with_a_reason_and_a_link_that_is_replaced_is_taken(
    workspace: Workspace, phantom: Path
) -> None:
    landing = workspace.landing / P
    landing.mkdir(parents=True)
    shutil.copytree(phantom, landing / "good")
    (landing / "empty" / "within").mkdir(parents=True)
    (landing / "also empty").mkdir()
    os.mkfifo(landing / "pipe.zip")
    (landing / "annex.tar.gz").symlink_to("nowhere")
    (landing / "linked").symlink_to(phantom)
    assert main(["ingest", P, "--now"]) == 0
    rows = workspace.lake.rows("raw_cases", P)
    assert sorted((row["reason_code"] or "ok", row["n_instances"]) for row in rows) == [
        ("file_link", 1),
        ("folder_link", 1),
        ("no_dicom", 0),
        ("no_dicom", 0),
        ("not_plain_file", 1),
        ("ok", 2),
    ]
    (batch,) = batches.known(workspace, P)
    with files_table(workspace, P, batch).open(newline="") as stream:
        outcomes = {row["file"]: row["outcome"] for row in csv.DictReader(stream)}
    assert {name: code for name, code in outcomes.items() if not code.startswith("case")} == {
        "pipe.zip": "not_plain_file",
        "annex.tar.gz": "file_link",
        "linked": "folder_link",
        "empty": "no_dicom",
        "also empty": "no_dicom",
    }
    assert not batches.untaken(workspace, P)
    (landing / "linked").unlink()
    write_case(landing / "linked", 101)
    shutil.rmtree(landing / "good")
    (landing / "good").mkdir()  # emptied after it was taken: nothing new
    assert [entry.name for entry in batches.untaken(workspace, P)] == ["linked"]
    assert main(["ingest", P, "--now"]) == 0
    assert len(workspace.lake.rows("dataset", P)) == 2


def test_manifests_are_found_again_when_a_share_becomes_writable_and_when_it_no_longer_is(
    tmp_path: Path, phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = tmp_path / "share"
    shutil.copytree(phantom, share / P / "good")
    for name, value in {**settings_of(tmp_path / "home"), "MED_ASSETS_LANDING": str(share)}.items():
        monkeypatch.setenv(name, value)
    access = os.access  # root, who runs some tests, may write everywhere
    with monkeypatch.context() as mounted:
        mounted.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(share) and access(path, mode))
        assert main(["ingest", P, "--now"]) == 0
    ws = Workspace.from_env()
    assert not batches.untaken(ws, P)
    assert len(batches.known(ws, P)) == 1
    write_case(share / P / "later", 101)
    assert main(["ingest", P, "--now"]) == 0
    with monkeypatch.context() as mounted:
        mounted.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(share) and access(path, mode))
        assert not batches.untaken(ws, P)
        assert len(batches.known(ws, P)) == 2
    assert len(list((share / ".batches" / P).glob("*.json"))) == 1


def test_a_loose_file_and_an_entry_whose_name_is_not_utf_8_are_taken(workspace: Workspace, phantom: Path) -> None:
    landing = workspace.landing / P
    landing.mkdir(parents=True)
    shutil.copytree(phantom, os.fsdecode(os.fsencode(landing) + b"/M\xfcller"))
    assert main(["ingest", P, "--now"]) == 0
    assert [row["status"] for row in workspace.lake.rows("raw_cases", P)] == ["ok"]
    (batch,) = batches.known(workspace, P)
    assert list(batches.manifest(workspace, P, batch)) == [os.fsdecode(b"M\xfcller")]


def test_a_batch_without_rows_is_finished_by_the_next_ingest(
    workspace: Workspace, phantom: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(phantom, workspace.landing / P / "good")
    batch = batches.take(
        workspace, P, batches.untaken(workspace, P), time.time()
    )  # what `ingest` does first; then it dies
    assert batches.unfinished(workspace, P) == [batch]
    assert main(["ingest", P, "--now"]) == 0
    assert f"batch {batch}" in capsys.readouterr().out
    assert len(workspace.lake.rows("dataset", P)) == 1
    assert batches.unfinished(workspace, P) == []
    assert main(["ingest", P, "--now"]) == 0
    assert "nothing new" in capsys.readouterr().out
    # Two homes on one landing zone, or tables that were lost: the batch has no rows here.
    shutil.rmtree(workspace.home / "lake")
    assert main(["ingest", P, "--now"]) == 0
    assert len(workspace.lake.rows("dataset", P)) == 1


def test_a_run_killed_between_intake_and_splits_is_finished_by_the_next_ingest(
    workspace: Workspace, phantom: Path
) -> None:
    shutil.copytree(phantom, workspace.landing / P / "good")
    batch = batches.take(workspace, P, batches.untaken(workspace, P), time.time())
    stages.intake(workspace, P, batch)
    assert main(["ingest", P, "--now"]) == 0
    assert len(workspace.lake.rows("splits", P)) == 1
    workspace.lake.remove("dataset", P)
    workspace.lake.remove("splits", P)
    assert main(["ingest", P, "--now"]) == 0
    assert len(workspace.lake.rows("splits", P)) == 1


@pytest.mark.parametrize("batch", ["../../evil/pwn", "..", "", "2026-01-01T00-00-00_zzzzzz", "a/b"])
def test_a_batch_is_named_as_intake_names_it_or_not_at_all(workspace: Workspace, batch: str) -> None:
    evil = workspace.landing / "evil"
    evil.mkdir(parents=True)
    (evil / "pwn.json").write_text('{"entries": {}}')
    before = sorted(workspace.home.rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        main(["ingest", P, "--batch", batch])
    assert sorted(workspace.home.rglob("pwn*")) == [evil / "pwn.json"]
    assert not set(workspace.home.rglob("*.parquet")) - set(before)


def test_originals_that_a_killed_process_was_unpacking_are_removed_by_the_next_command(
    workspace: Workspace, phantom: Path
) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom med_assets.storage.scratch import scratch\n"
        "(scratch(Path(sys.argv[1])) / 'original.dcm').write_text('PHANTOM^NAME')\nprint('there', flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(workspace.home)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        (scratch(workspace.home) / "mine").write_text("in use")
        assert main(["batches", P]) == 0
        assert len(list((workspace.home / "tmp").rglob("original.dcm"))) == 1, "its process lives"
        process.send_signal(signal.SIGKILL)
    assert main(["batches", P]) == 0
    assert not list((workspace.home / "tmp").rglob("original.dcm"))
    assert (scratch(workspace.home) / "mine").is_file()
    assert remove_abandoned(workspace.home) == 0


def test_the_manifests_of_a_landing_zone_that_can_not_be_written_to_lie_in_the_home(
    tmp_path: Path, phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = tmp_path / "share"
    shutil.copytree(phantom, share / P / "good")
    for name, value in {**settings_of(tmp_path / "home"), "MED_ASSETS_LANDING": str(share)}.items():
        monkeypatch.setenv(name, value)
    access = os.access  # root, who runs some tests, may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).is_relative_to(share) and access(path, mode))
    before = sorted(share.rglob("*"))
    assert main(["ingest", P, "--now"]) == 0
    assert sorted(share.rglob("*")) == before
    ws = Workspace.from_env()
    assert len(ws.lake.rows("dataset", P)) == 1
    (batch,) = batches.known(ws, P)
    assert list(batches.manifest(ws, P, batch)) == ["good"]
