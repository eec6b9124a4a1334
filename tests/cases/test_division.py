"""A folder or archive with many patients is read by several processes, with the results of one."""

import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from threading import Condition
from typing import cast

import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless

from med_assets import program
from med_assets.cli import stages
from med_assets.dicom.discover import Instance, scan
from med_assets.intake import division, stage
from med_assets.intake.division import Division
from med_assets.intake.parts import CASES, FILES, FILES_PER_PART, MEMBERS, Part
from med_assets.intake.reader import CRASHED
from med_assets.intake.reading import StoredCase
from med_assets.intake.stage import _Intake
from med_assets.records import CaseVersion
from med_assets.settings import Settings, Workspace
from med_assets.storage.files import folder_hashes
from tests.cases.test_reader import P, write
from tests.cases.test_workers import lines_of, take
from tests.conftest import settings_of
from tests.shared_phantoms import write_phantoms


@pytest.fixture
def helped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Parts that helpers take; of each kind they take one before who reads the entry begins, where there are several processes."""
    taken: list[tuple[str, int]] = []
    begin, last = Division.begin, Division.last

    def begin_when_helped(self: Division, kind: str, parts: list[Part]) -> int | None:
        first = begin(self, kind, parts)
        if self.task is not None and self.task.shared and self.left:
            with self.changed:
                self.changed.wait_for(lambda: any(of == kind for of, _ in taken) or self.over())
        return first

    def noted(self: Division, stay: Callable[[], bool]) -> tuple[str, int] | None:
        order = last(self, stay)
        if order is not None:
            with self.changed:
                taken.append(order)
                self.changed.notify_all()
        return order

    monkeypatch.setattr(division, "HELP_S", 0.0)
    monkeypatch.setattr(Division, "begin", begin_when_helped)
    monkeypatch.setattr(Division, "last", noted)
    return taken


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the cases that intake keeps, each as often as it does."""
    found: list[str] = []
    keep = _Intake._keep

    def counted(self: _Intake, stored: StoredCase) -> None:
        found.append(stored.case.case_id)
        keep(self, stored)

    monkeypatch.setattr(_Intake, "_keep", counted)
    return found


def patients(folder: Path) -> None:
    """A folder of five patients, one of them twice and one with an image that is sent again under its UID, and many other files."""
    for seed in range(1, 6):
        write(folder / f"patient-{seed}", seed)
    shutil.copytree(folder / "patient-1", folder / "z" / "again")
    image = pydicom.dcmread(folder / "patient-2" / "us.dcm")
    image.PixelData = bytes(len(image.PixelData))
    image.save_as(folder / "z" / "other.dcm")
    notes(folder / "y")


def notes(folder: Path) -> None:
    """So many files that several processes read their headers."""
    folder.mkdir()
    for number in range(2 * FILES_PER_PART):
        (folder / f"{number}.txt").write_text("no DICOM")


def packed(folder: Path, kind: str) -> None:
    """Put a folder in its place as an archive, within a folder or alone."""
    if kind == "folder":
        return
    name = "names.zip" if kind == "zip" else "names.tar.gz"
    archive = folder.parent / name
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as opened:
            for path in sorted(folder.rglob("*.*")):
                opened.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(folder, "all")
    shutil.rmtree(folder)
    if kind == "tar":
        folder.mkdir()
        archive.rename(folder / name)
        write(folder / "beside", 9)


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_many_patients_in_one_entry_are_taken_in_by_several_processes_with_the_bytes_of_one(
    kind: str, tmp_path: Path, helped: list[tuple[str, int]]
) -> None:
    patients(tmp_path / "landed" / "all")
    packed(tmp_path / "landed" / "all", kind)
    found = []
    for workers in (1, 2, 3):
        assert bool(helped) == (workers == 3)
        ws = Workspace.from_env({**settings_of(tmp_path / str(workers)), "MED_ASSETS_WORKERS": str(workers)})
        shutil.copytree(tmp_path / "landed", ws.landing / P)
        batch = take(ws)
        result = stages.intake(ws, P, batch)
        artifacts = {path: sha for path, sha in folder_hashes(ws.home / "store").items() if not path.startswith("tmp/")}
        rows = ws.lake.rows("raw_cases", P)
        found.append((result.data_version, result.counts, rows, lines_of(ws, P, batch), artifacts))
    assert found[0][1]["new"] == (6 if kind == "tar" else 5)
    assert found[0] == found[1] == found[2]
    assert {of for of, _ in helped} == {CASES, FILES if kind == "folder" else MEMBERS}


@pytest.mark.parametrize("place", [0, 4])
@pytest.mark.parametrize("fault", ["abort", "header"])
def test_a_patient_of_a_folder_who_ends_a_process_is_refused_alone_and_no_other_is_read_twice(
    fault: str,
    place: int,
    workspace: Workspace,
    faulty_readers: None,
    monkeypatch: pytest.MonkeyPatch,
    helped: list[tuple[str, int]],
    kept: list[str],
) -> None:
    folder = workspace.landing / P / "all"
    monkeypatch.setenv("PYTEST_FAULTY_PIXELS", "abort")
    monkeypatch.setenv("MED_ASSETS_WORKERS", "2")
    monkeypatch.setenv("MED_ASSETS_INTAKE_MEMORY_GB", "3.7")  # no process that waits for work has this limit
    ws = Workspace.from_env()
    files = [write(folder / f"patient-{seed}", seed) / "us.dcm" for seed in range(5)]
    image = pydicom.dcmread(files[place])
    if fault == "header":
        image.SeriesDescription = "ABORT-HEADER"
        notes(folder / ("z" if place == 0 else "a"))  # who reads the entry takes the first files, who helps the last
    else:
        image.compress(JPEG2000Lossless, generate_instance_uid=False)
    image.save_as(files[place])
    batch = take(ws)
    assert stages.intake(ws, P, batch).counts["new"] == 4
    assert sorted(kept) == sorted(set(kept))
    assert len(kept) == 4
    rows = ws.lake.rows("raw_cases", P)
    (refused,) = [row for row in rows if row["reason_code"] == CRASHED]
    assert bool(refused["patient_id"]) == (fault == "abort"), "the case is named, where it is one"
    assert helped
    for path in (ws.home / "tmp").rglob("*"):
        assert not path.is_file() or path.suffix == ".lock"


def test_what_is_sent_again_is_read_again_only_where_a_case_of_it_is_no_longer_stored(
    workspace: Workspace, kept: list[str]
) -> None:
    files = [path for seed in (1, 2) for path in write(workspace.landing / P / "all" / f"{seed}", seed).iterdir()]
    found = []
    for number in range(3):
        for path in files:
            os.utime(path, (number, number))
        batch = take(workspace)
        assert stages.intake(workspace, P, batch).counts["reused" if number else "new"] == 2
        rows = [row for row in workspace.lake.rows("raw_cases", P) if row["batch"] == batch]
        found.append(([{**row, "batch": ""} for row in rows], lines_of(workspace, P, batch)))
        assert len(kept) == (2, 2, 4)[number]
        if number == 1:
            workspace.store.remove(str(rows[0]["artifact"]))
    assert found[0] == found[1] == found[2]
    assert workspace.store.has(str(found[0][0][0]["artifact"]))


def test_where_an_entry_turns_out_to_be_known_its_headers_are_read_and_none_of_its_cases() -> None:
    asked: list[str] = []

    def needless() -> bool:
        asked.append("asked")
        return True

    known = Division(Condition(), {}, needless=needless)
    assert known.begin(FILES, [Part("files", 1.0)]) == 0
    assert known.next() is None
    assert not asked
    assert known.begin(CASES, [Part("a", 1.0), Part("b", 1.0)]) is None
    assert known.next() is None
    assert known.cases() == []


@pytest.mark.parametrize("name", program.registered())
def test_an_object_is_the_same_in_another_process(name: str, tmp_path: Path) -> None:
    write_phantoms(name, tmp_path / "é\udce9", 1, 3)
    found = scan(tmp_path).instances
    assert found
    assert tuple(Instance.of(json.loads(json.dumps(one.row()))) for one in found) == found


def test_who_read_the_headers_of_files_reads_their_case_too() -> None:
    """Who reads an entry takes its first files and their cases, who helps takes the last ones, in whatever order the cases are kept."""
    divided = Division(Condition(), {"b": cast(CaseVersion, None)})
    parts = [Part(key, 1.0, place) for key, place in (("a", 30), ("b", 0), ("c", 20), ("d", 10))]
    assert divided.begin(CASES, parts) == 3
    assert divided.last(lambda: True) == (CASES, 0)
    assert divided.next() == 2


@pytest.mark.parametrize(("n_files", "expected"), [(5, [1]), (300, [1, 2])])
def test_processes_that_help_start_while_the_first_one_does(
    n_files: int, expected: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = Workspace.from_env({**settings_of(tmp_path), "MED_ASSETS_WORKERS": "2"})
    write(ws.landing / P / "all", 1)
    for number in range(n_files):
        (ws.landing / P / "all" / f"{number}.txt").write_text("no DICOM")
    started: list[int] = []

    def noted(ws: Settings, n: int) -> None:
        started.append(n)

    monkeypatch.setattr(stage, "start_ahead", noted)
    stages.intake(ws, P, take(ws))
    assert started == expected
