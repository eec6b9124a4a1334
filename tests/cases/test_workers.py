"""Several processes take in and prepare a batch with the results of one, and none of them is left behind."""

import csv
import io
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pydicom
import pytest

from med_assets.cli import stages
from med_assets.cli.main import INTERRUPTED, main
from med_assets.errors import ConfigurationError, DiskFull
from med_assets.intake import reader
from med_assets.intake.division import Division
from med_assets.intake.reader import EntryResult, Keep, Readers, RetryAlone
from med_assets.intake.reading import Task
from med_assets.intake.stage import files_table
from med_assets.intake.workers import Workers, number, side_by_side, workers_of
from med_assets.landing import batches
from med_assets.settings import Workspace
from med_assets.storage.files import folder_hashes
from med_assets.storage.progress import Progress, duration, followed_by, lines
from tests.cases.test_kills import readers_of
from tests.cases.test_reader import P, write
from tests.conftest import settings_of
from tests.med_assets.stages.processes import ingesting
from tests.med_assets.stages.test_drills import no_file_longer_than
from tests.shared_phantoms import write_phantoms


@pytest.fixture
def faulty(workspace: Workspace, faulty_readers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace of two workers whose readers are faulty."""
    monkeypatch.setenv("PYTEST_FLAGS", str(tmp_path))
    monkeypatch.setenv("MED_ASSETS_WORKERS", "2")
    # A process with another limit than those that wait for work, so that it is started with this environment.
    monkeypatch.setenv("MED_ASSETS_INTAKE_MEMORY_GB", "3.4")
    return Workspace.from_env()


def take(ws: Workspace, name: str = P) -> str:
    return batches.take(ws, name, batches.untaken(ws, name), 1e9)


def lines_of(ws: Workspace, name: str, batch: str) -> list[list[str]]:
    """The batch's table of files, in its order."""
    with files_table(ws, name, batch).open(newline="", errors="surrogateescape") as stream:
        return list(csv.reader(stream))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "numbers"), [("breast_us", (1, 2, 3)), ("rt_dose", (1, 3)), ("retinal_oct", (1, 2))])
def test_rows_files_artifacts_and_data_versions_are_those_of_one_worker_whatever_their_number(
    name: str, numbers: tuple[int, ...], tmp_path: Path
) -> None:
    landed = tmp_path / "landed"
    write_phantoms(name, landed, 3, 1)
    broken, first = landed / "broken", next(path for path in sorted(landed.iterdir()) if path.is_dir())
    shutil.copytree(first, landed / "again")
    broken.mkdir()
    (broken / "notes.dcm").write_bytes(b"no DICOM")
    found = []
    for workers in numbers:
        ws = Workspace.from_env({**settings_of(tmp_path / str(workers)), "MED_ASSETS_WORKERS": str(workers)})
        shutil.copytree(landed, ws.landing / name)
        batch = take(ws, name)
        results = [stages.intake(ws, name, batch), stages.prepare(ws, name, batch)]
        rows = [ws.lake.rows(table, name) for table in ("raw_cases", "prepared_cases", f"{name}_facts")]
        artifacts = {path: sha for path, sha in folder_hashes(ws.home / "store").items() if not path.startswith("tmp/")}
        versions = [(result.data_version, result.counts) for result in results]
        found.append((versions, rows, lines_of(ws, name, batch), artifacts))
    assert len(found[0][1][1]) >= 3
    assert all(one == found[0] for one in found[1:])


def test_two_cases_that_crash_their_decoder_are_refused_after_one_retry_alone_and_the_others_are_accepted(
    faulty: Workspace, tmp_path: Path
) -> None:
    marks = ["", "ABORT-HEADER", "", "ABORT-HEADER", "ABORT-ONCE", ""]
    for place, mark in enumerate(marks):
        folder = write(faulty.landing / P / f"entry-{place}", place + 1, mark)
        if mark == "ABORT-HEADER":
            (folder / "us.dcm").unlink()
    assert main(["ingest", P, "--now"]) == 0
    rows = faulty.lake.rows("raw_cases", P)
    assert Counter(row["reason_code"] or "ok" for row in rows) == {"reader_crashed": 2, "ok": 4}
    (batch,) = batches.known(faulty, P)
    outcomes = {row[0]: row[2] for row in lines_of(faulty, P, batch)[1:]}
    assert [name for name, outcome in outcomes.items() if outcome == "reader_crashed"] == [
        "entry-1/seg.dcm",
        "entry-3/seg.dcm",
    ]
    begun = (tmp_path / "begun").read_text().split()
    assert len(begun) == 4, "each once beside others and once alone"


def test_a_case_whose_preparation_ends_its_process_is_quarantined_and_its_neighbours_are_prepared(
    faulty: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for place in range(3):
        write(faulty.landing / P / f"entry-{place}", place + 1)
    batch = take(faulty)
    stages.intake(faulty, P, batch)
    raw = sorted(faulty.lake.rows("raw_cases", P), key=lambda row: str(row["case_id"]))
    stored = sorted(faulty.store.fetch(str(raw[1]["artifact"])).glob("*.dcm"))
    uid = str(pydicom.dcmread(stored[0]).SOPInstanceUID)
    monkeypatch.setenv("PYTEST_CRASHES_ON", uid)
    stages.prepare(faulty, P, batch)
    prepared = {row["case_id"]: row for row in faulty.lake.rows("prepared_cases", P)}
    codes = [prepared[row["case_id"]]["reason_code"] for row in raw]
    assert codes == [None, "reader_crashed", None]


def test_what_takes_more_than_its_share_of_the_memory_is_read_again_with_all_of_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_INTAKE_MEMORY_GB", "2.8")
    monkeypatch.setenv("MED_ASSETS_WORKERS", "4")
    workspace = Workspace.from_env()
    for place in range(4):
        file = write(workspace.landing / P / f"entry-{place}", place + 1) / "us.dcm"
        if place == 2:
            dataset = pydicom.dcmread(file)
            dataset.PixelData = dataset.PixelData + bytes(300_000_000)
            dataset.save_as(file)
    read = Readers.read
    given: list[float] = []

    def kept(self: Readers, task: Task, keep: Keep, division: Division) -> EntryResult:
        given.append(self.memory_gb)
        return read(self, task, keep, division)

    monkeypatch.setattr(Readers, "read", kept)
    assert main(["ingest", P, "--now"]) == 0
    assert sorted(given) == [0.7] * 4 + [2.8]
    codes = [row["reason_code"] for row in workspace.lake.rows("raw_cases", P)]
    assert "out_of_memory" not in codes
    assert len(codes) == 4


@pytest.mark.usefixtures("ordinary_readers")
def test_a_full_disk_ends_all_workers_and_leaves_no_half_result(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MED_ASSETS_WORKERS", "2")
    workspace = Workspace.from_env()
    for place in range(3):
        write(workspace.landing / P / f"entry-{place}", place + 1)
    batch = take(workspace)
    with no_file_longer_than(2_000), pytest.raises(DiskFull, match=r"MB free .* same command"):
        stages.intake(workspace, P, batch)
    reader.end_idle()
    assert not readers_of(os.getpid())
    assert not workspace.lake.rows("raw_cases", P)
    assert not files_table(workspace, P, batch).exists()
    assert stages.intake(workspace, P, batch).counts["new"] == 3


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has started is read from /proc")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_is_ended_leaves_no_worker_and_no_half_result(
    faulty: Workspace, ordinary_readers: None, sent: signal.Signals, tmp_path: Path
) -> None:
    for place in range(3):
        write(faulty.landing / P / f"entry-{place}", place + 1, "HANG-HEADER")
    process = ingesting(P)
    assert process.pid is not None
    log = tmp_path / "begun"
    while not (log.exists() and len(set(log.read_text().split())) == 2):  # both workers hang
        assert process.exitcode is None
        time.sleep(0.05)
    assert len(readers_of(process.pid)) == 2
    os.kill(process.pid, sent)
    process.join()
    codes = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: 143, signal.SIGKILL: -signal.SIGKILL}
    assert process.exitcode == codes[sent]
    while readers_of(process.pid):  # the system ends them with the process, in its own time
        time.sleep(0.05)
    assert not faulty.lake.rows("raw_cases", P)
    assert main(["batches", P]) == 0  # any command removes what the ended one left behind
    left = [path for path in (faulty.home / "tmp").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert [path.parent.name for path in left] == ["begun"], "but that the batch was begun"


def test_what_fails_ends_the_others_and_what_is_retried_has_nothing_beside_it(workspace: Workspace) -> None:
    ws = Workspace.from_env({**settings_of(workspace.home), "MED_ASSETS_WORKERS": "3"})
    running: set[int] = set()
    beside: list[tuple[bool, int]] = []
    begun: list[int] = []

    def work(workers: Workers, item: int) -> int:
        begun.append(item)
        with workers.borrow() as readers:
            running.add(item)
            try:
                time.sleep(0.01)
                beside.append((readers.alone, len(running)))
                if item == 2 and not readers.alone:
                    raise RetryAlone
                if item == 7:
                    raise DiskFull("no space")
                return item * item
            finally:
                running.remove(item)

    assert side_by_side(ws, range(6), work, "squaring") == [0, 1, 4, 9, 16, 25]
    assert [number for alone, number in beside if alone] == [1]
    assert max(number for alone, number in beside if not alone) <= 3
    begun.clear()
    with pytest.raises(DiskFull):
        side_by_side(ws, [7, *range(50)], work, "squaring")
    assert len(begun) < 50
    assert side_by_side(ws, [], work, "squaring") == []


@pytest.mark.parametrize(
    ("asked", "cores", "free_gb", "limit_gb", "expected"),
    [
        (None, 8, 64.0, 48.0, 8),
        (None, 8, 8.1, 48.0, 4),
        (None, 8, 64.0, 4.2, 2),
        (None, 8, 0.2, 0.4, 1),
        (5, 2, 1.0, 48.0, 5),
        (5, 2, 64.0, 1.2, 2),
        (1, 8, 64.0, 48.0, 1),
    ],
)
def test_the_number_of_workers_is_that_of_cores_as_far_as_memory_goes_or_what_is_asked_for(
    asked: int | None, cores: int, free_gb: float, limit_gb: float, expected: int
) -> None:
    assert number(asked, cores, free_gb, limit_gb) == expected


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_a_number_of_workers_that_is_none_is_an_error_that_names_the_variable(workspace: Workspace, text: str) -> None:
    with pytest.raises(ConfigurationError, match="MED_ASSETS_WORKERS"):
        Workspace.from_env({**settings_of(workspace.home), "MED_ASSETS_WORKERS": text})


def test_without_a_setting_the_machine_says_how_many_there_are(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MED_ASSETS_WORKERS")
    ws = Workspace.from_env()
    assert ws.workers is None
    assert 1 <= workers_of(ws) <= (os.cpu_count() or 1)


def test_progress_is_a_line_with_rate_and_time_left() -> None:
    def text(done: int, total: int, elapsed_s: float) -> str:
        return str(Progress("preparing", "cases", done, total, elapsed_s))

    assert text(12, 40, 240.0) == "12 of 40 cases, 3.0 a minute, 9 min left"
    assert text(1, 3, 20.0) == "1 of 3 cases, 3.0 a minute, 40 s left"
    assert text(600, 10_000, 3600.0) == "600 of 10000 cases, 10 a minute, 15 h 40 min left"
    assert text(0, 40, 10.0) == "0 of 40 cases"
    assert text(40, 40, 10.0) == "40 of 40 cases"
    assert [duration(seconds) for seconds in (0.4, 59.6, 3599, 3600)] == ["0 s", "1 min", "1 h 0 min", "1 h 0 min"]


def test_a_log_has_a_line_every_so_many_seconds_and_none_of_short_work(workspace: Workspace) -> None:
    logged: list[str] = []
    follow = lines(logged.append, every_s=3600)
    with followed_by(follow):
        side_by_side(workspace, [1, 2, 3], lambda workers, item: item, "counting", "numbers")
    assert logged == []
    with followed_by(lines(logged.append, every_s=0)):
        side_by_side(workspace, [1, 2, 3], lambda workers, item: item, "counting", "numbers")
    assert logged[-1] == "counting: 3 of 3 numbers"


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_command_shows_a_bar_on_a_terminal_and_nothing_elsewhere(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for place in range(2):
        write(workspace.landing / P / f"entry-{place}", place + 1)
    file, terminal = io.StringIO(), Terminal()
    monkeypatch.setattr(sys, "__stderr__", file)
    assert main(["ingest", P, "--now"]) == 0
    assert file.getvalue() == ""
    (batch,) = batches.known(workspace, P)
    monkeypatch.setattr(sys, "__stderr__", terminal)
    assert main(["ingest", P, "--batch", batch]) == 0
    shown = terminal.getvalue()
    assert "taking in: 100%" in shown
    assert "preparing: 100%" in shown
    assert "2/2" in shown
    assert "taking in:" not in capfd.readouterr().out
