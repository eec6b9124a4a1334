"""A file that ends the process that reads it, or never ends, is refused, and all that lies beside it is taken in."""

import csv
import zipfile
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless

from med_assets.cli.main import main
from med_assets.deidentification.relink import Header, Origin
from med_assets.intake.reader import Readers
from med_assets.intake.stage import files_table
from med_assets.landing import batches
from med_assets.programs.breast_us.phantom import write_case
from med_assets.settings import Workspace

P = "breast_us"


@pytest.fixture
def faulty(workspace: Workspace, faulty_readers: None, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace in which readers are faulty, and files have 3 seconds."""
    monkeypatch.setenv("MED_ASSETS_INTAKE_FILE_S", "3")
    # A process with another limit than those that wait for work, so that it is started with this environment.
    monkeypatch.setenv("MED_ASSETS_INTAKE_MEMORY_GB", "3.5")
    return Workspace.from_env()


def write(folder: Path, seed: int, mark: str = "") -> Path:
    """Write a phantom, with a mark in the description of each file's series."""
    write_case(folder, seed)
    for path in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.SeriesDescription = mark
        dataset.save_as(path)
    return folder


def account(ws: Workspace) -> dict[tuple[str, str], str]:
    """The landing zone's own list: outcome by file and member."""
    rows = []
    for batch in batches.known(ws, P):
        with files_table(ws, P, batch).open(newline="", errors="surrogateescape") as stream:
            rows += list(csv.DictReader(stream))
    return {(row["file"], row["member"]): row["outcome"] for row in rows}


def test_files_that_crash_or_hang_are_refused_by_count_and_name_and_cases_of_the_same_entry_are_accepted(
    faulty: Workspace,
) -> None:
    entry = faulty.landing / P / "SMITH^JOHN"
    write(entry / "good", 1)
    write(entry / "other", 2)
    (write(entry / "crash", 3, "ABORT-HEADER") / "us.dcm").unlink()
    (write(entry / "hang", 4, "HANG-HEADER") / "us.dcm").unlink()
    assert main(["ingest", P, "--now"]) == 0
    rows = faulty.lake.rows("raw_cases", P)
    refused = [row for row in rows if row["status"] != "ok"]
    assert sorted((row["reason_code"], row["n_instances"]) for row in refused) == [
        ("reader_crashed", 1),
        ("reader_time_limit", 1),
    ]
    assert "SMITH" not in str(rows)
    cases = [f"case {row['case_id']}" for row in rows if row["status"] == "ok"]
    assert len(cases) == 2
    outcomes = account(faulty)
    assert outcomes.pop(("SMITH^JOHN/crash/seg.dcm", "")) == "reader_crashed"
    assert outcomes.pop(("SMITH^JOHN/hang/seg.dcm", "")) == "reader_time_limit"
    assert sorted(outcomes.values()) == sorted(cases * 2)


@pytest.mark.parametrize(("fault", "code"), [("abort", "reader_crashed"), ("hang", "reader_time_limit")])
def test_a_case_whose_pixels_crash_or_hang_their_decoder_is_refused_and_the_next_case_of_its_archive_is_accepted(
    faulty: Workspace, fault: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_FAULTY_PIXELS", fault)
    folder = faulty.home / "away"
    for path in write(folder / "a", 1).iterdir():
        if (dataset := pydicom.dcmread(path)).Modality == "US":
            dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
            dataset.save_as(path)
    write(folder / "b", 2)
    (faulty.landing / P).mkdir(parents=True)
    with zipfile.ZipFile(faulty.landing / P / "a.zip", "w") as archive:
        for path in sorted(folder.rglob("*.dcm")):
            archive.write(path, path.relative_to(folder))
    assert main(["ingest", P, "--now"]) == 0
    rows = {row["reason_code"] or "ok": row for row in faulty.lake.rows("raw_cases", P)}
    assert set(rows) == {"ok", code}
    assert rows[code]["patient_id"], "the case is named, not the entry alone"
    assert not [path for path in (faulty.home / "tmp").rglob("*") if path.is_file() and path.suffix != ".lock"]
    outcomes = account(faulty)
    assert outcomes.pop(("a.zip", "")) == "unpacked, 4 files"
    assert sorted(outcomes.values()) == sorted(f"case {row['case_id']}" for row in rows.values() for _ in range(2))
    # The decoder is mended: the batch is read again, not remembered.
    with pytest.MonkeyPatch.context() as mended:
        mended.delenv("PYTEST_FAULTY_PIXELS")
        assert main(["ingest", P, "--batch", batches.known(faulty, P)[0]]) == 0
    assert [row["status"] for row in faulty.lake.rows("raw_cases", P)] == ["ok", "ok"]


def test_what_takes_more_memory_than_allowed_is_refused_and_the_case_beside_it_is_accepted(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_INTAKE_MEMORY_GB", "0.4")
    workspace = Workspace.from_env()
    write(workspace.landing / P / "good", 1)
    file = write(workspace.landing / P / "large", 2) / "us.dcm"
    dataset = pydicom.dcmread(file)
    dataset.PixelData = dataset.PixelData + bytes(300_000_000)
    dataset.save_as(file)
    assert main(["ingest", P, "--now"]) == 0
    rows = workspace.lake.rows("raw_cases", P)
    assert sorted(row["reason_code"] or "ok" for row in rows) == ["ok", "out_of_memory"]


def test_headers_of_originals_are_read_by_the_process_that_may_end_and_a_file_that_ends_it_costs_itself(
    faulty: Workspace, tmp_path: Path
) -> None:
    good = write(tmp_path / "good", 1) / "us.dcm"
    crash, hang = (
        write(tmp_path / mark, seed, f"{mark}-HEADER") / "us.dcm" for seed, mark in ((2, "ABORT"), (3, "HANG"))
    )
    (tmp_path / "notes.dcm").write_bytes(b"no DICOM")
    with Readers(faulty) as readers:
        rows = readers.originals([crash, good, hang, tmp_path / "notes.dcm", tmp_path / "gone.dcm"])
    ds = pydicom.dcmread(good, stop_before_pixels=True)
    (header,) = (Header(**row) for row in rows)
    assert header.study == ds.StudyInstanceUID
    assert {ds.SOPInstanceUID, ds.SeriesInstanceUID} <= set(header.uids)
    assert header.texts["PatientID"] == ds.PatientID
    origin = Origin.of([header], b"k" * 32)
    assert set(origin.uids.values()) == set(header.uids)
    (study,) = origin.studies.values()
    assert str(study.PatientName) == str(ds.PatientName)
