"""Failure drills: what breaks in a night is found, explained, and mended by the same command."""

import dataclasses
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from med_assets import program
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.errors import DiskFull
from med_assets.intake.reading import Preparation, prepare_case
from med_assets.landing import batches
from med_assets.settings import Workspace
from med_assets.storage.files import folder_hashes
from tests.conftest import settings_of
from tests.med_assets.stages.builders import P, drop, edit, files, ingest, stored_now, take
from tests.med_assets.stages.processes import at_once, start


def flip(path: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def stored(ws: Workspace) -> dict[str, str]:
    """Hashes of all artifacts; what lies in scratch is none."""
    found = folder_hashes(ws.home / "store")
    return {name: value for name, value in found.items() if not name.startswith("tmp/")}


def damaged_file(ws: Workspace, kind: str) -> Path:
    """A file with content of the first artifact of one kind."""
    folder = ws.store.fetch(ws.store.keys(kind)[0])
    return max(
        (path for path in folder.rglob("*") if path.name != "manifest.json"), key=lambda path: path.stat().st_size
    )


@pytest.mark.parametrize("kind", ["raw", "prepared", "intake", "manifest"])
def test_a_flipped_byte_is_found_and_what_it_hit_is_made_again_bit_equal(
    ingested: Workspace, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    workspace = ingested
    (batch,) = batches.known(workspace, P)
    before = stored(workspace)
    assert main(["verify"]) == 0
    key = workspace.store.keys("prepared" if kind == "manifest" else kind)[0]
    if kind == "manifest":
        (workspace.store.fetch(key) / "manifest.json").write_text('{"cut off')
    else:
        flip(damaged_file(workspace, kind))
    broken = stored(workspace)
    capsys.readouterr()
    assert main(["verify"]) == 1
    output = capsys.readouterr().out
    assert f"corrupt  {key}" in output
    assert "verify --repair" in output
    assert stored(workspace) == broken
    assert main(["verify", "--repair"]) == 0
    output = capsys.readouterr().out
    assert f"removed  {key}" in output
    if kind != "intake":
        assert f"med-assets ingest {P} --batch {batch}" in output
    assert not workspace.store.has(key)
    assert main(["ingest", P, "--batch", batch]) == 0
    assert stored(workspace) == before
    assert main(["verify"]) == 0


def test_corrupt_dicom_is_kept_when_the_landing_zone_no_longer_has_its_files(
    ingested: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = ingested
    shutil.rmtree(workspace.landing / P / "export-1")
    flip(damaged_file(workspace, "raw"))
    (key,) = workspace.store.keys("raw")
    capsys.readouterr()
    assert main(["verify", "--repair"]) == 1
    assert "restore it from a backup" in capsys.readouterr().out
    assert workspace.store.has(key)


def test_an_artifact_that_was_lost_is_found_and_said_and_comes_back(
    ingested: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = ingested
    (batch,) = batches.known(workspace, P)
    before = stored(workspace)
    for kind in ("raw", "prepared"):
        (workspace.store.fetch(workspace.store.keys(kind)[0]) / "manifest.json").unlink()
    capsys.readouterr()
    assert main(["verify"]) == 1
    assert capsys.readouterr().out.count("missing ") == 2
    quarantined = stages.prepare(workspace, P, batch).tables["quarantine"]
    assert "raw_missing" in json.dumps(quarantined.to_dict("records"))
    assert main(["ingest", P, "--batch", batch]) == 0
    assert stored(workspace) == before


@contextmanager
def no_file_longer_than(n_bytes: int) -> Iterator[None]:
    """A real limit of this process: a write beyond it fails half way, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def rows(ws: Workspace) -> dict[str, list[str]]:
    """Rows of the tables of cases, without the batch."""
    tables = ("raw_cases", "prepared_cases", f"{P}_facts", "dataset", "splits")
    return {
        table: sorted(json.dumps({**row, "batch": None}, sort_keys=True) for row in ws.lake.rows(table, P))
        for table in tables
    }


def content(ws: Workspace) -> tuple[dict[str, str], dict[str, list[str]]]:
    """All that is kept of the cases: artifacts and rows."""
    return stored_now(ws), rows(ws)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The content that the first two phantoms come to when nothing goes wrong."""
    ws = Workspace.from_env(settings_of(tmp_path_factory.mktemp("undisturbed")))
    for seed in (1, 2):
        drop(ws, seed)
    ingest(ws)
    return content(ws)


def state(ws: Workspace) -> tuple[dict[str, str], ...]:
    """Tables, half ones too, and the list of batches."""
    return folder_hashes(ws.lake.root), folder_hashes(ws.landing / ".batches")


def step(ws: Workspace, name: str, batch: str) -> str:
    """Take a batch, or run one stage of it; returns the batch."""
    if name == "take":
        return take(ws)
    getattr(stages, name)(ws, P, *((batch,) if name in ("intake", "prepare") else ()))
    return batch


@pytest.mark.parametrize(("stage", "n_bytes"), [("take", 16), ("intake", 2_000), ("prepare", 4_000), ("dataset", 300)])
def test_a_full_disk_is_said_and_leaves_nothing_half_written_and_the_same_command_goes_on(
    ingested: Workspace, undisturbed: object, stage: str, n_bytes: int
) -> None:
    workspace, full, batch = ingested, False, ""
    drop(workspace, 2)
    for name in ("take", "intake", "prepare", "dataset", "splits"):
        if name == stage:
            before = state(workspace)
            with no_file_longer_than(n_bytes), pytest.raises(DiskFull, match=r"MB free .* same command") as caught:
                step(workspace, name, batch)
            assert str(workspace.home) in str(caught.value)
            assert state(workspace) == before
            assert main(["verify"]) == 0
            left = [*(workspace.home / "store" / "tmp").rglob("*"), *(workspace.home / "tmp").glob("scratch-*/*")]
            assert not left
            full = True
        batch = step(workspace, name, batch)
    assert full
    assert content(workspace) == undisturbed


def test_a_full_disk_while_an_array_is_saved_is_no_fault_of_the_case(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numpy reports a short write without an errno."""

    def short(*_: object) -> dict[str, object]:
        raise OSError("12800 requested and 3000 written")

    monkeypatch.setattr(type(program.get(P)), "prepare", short)
    with pytest.raises(DiskFull):
        prepare_case(Preparation(workspace, P, "case", workspace.home, workspace.home))


def written(ws: Workspace) -> int:
    """How many files are in the home, scratch included: a clock that stands still while nothing happens."""
    return sum(len(names) for _, _, names in os.walk(ws.home))


def test_intake_and_prepare_killed_at_any_moment_give_what_an_undisturbed_run_gives(
    workspace: Workspace, undisturbed: tuple[dict[str, str], object]
) -> None:
    for seed in (1, 2):
        drop(workspace, seed)
    batch = take(workspace)
    chance, killed = random.Random(7), 0
    for _ in range(4):
        first, more = written(workspace), chance.randint(3, 60)
        running = start(workspace, batch, "intake", "prepare")
        while running.is_alive() and written(workspace) < first + more:
            time.sleep(0.002)
        running.kill()
        running.join()
        killed += running.exitcode == -signal.SIGKILL
        assert set(stored_now(workspace).items()) <= set(undisturbed[0].items())
    assert killed >= 3
    for name in ("intake", "prepare"):
        getattr(stages, name)(workspace, P, batch)
    finish(workspace)
    assert content(workspace) == undisturbed
    assert len(workspace.lake.partitions("raw_cases")) == 1


def test_two_processes_that_want_the_same_checkpoint_train_it_once(workspace: Workspace) -> None:
    for seed in (1, 2):
        drop(workspace, seed)
    ingest(workspace)
    first, second = workspace.lake.rows("splits", P)
    workspace.lake.write("splits", P, [first | {"split": "val"}, second | {"split": "train"}])
    versions, trained, checkpoints = zip(*at_once(workspace, ("", "train"), ("", "train")), strict=True)
    assert sorted(trained) == [0, 1]
    assert len(set(versions)) == len(set(checkpoints)) == 1
    assert workspace.store.keys("checkpoint") == [checkpoints[0]]
    assert len(workspace.lake.rows("checkpoints", P)) == 1
    (job,) = [folder for folder in workspace.jobs.iterdir() if folder.is_dir()]
    begun = [line for line in (job / "events.jsonl").read_text().splitlines() if json.loads(line)["event"] == "start"]
    assert len(begun) == 1, (job / "events.jsonl").read_text()


def finish(ws: Workspace) -> None:
    """What follows when all batches are prepared."""
    stages.dataset(ws, P)
    stages.splits(ws, P)


def test_two_batches_at_once_give_what_one_after_the_other_gives(
    workspace: Workspace, ingested_home: Path, tmp_path: Path
) -> None:
    one_by_one = Workspace.from_env(settings_of(shutil.copytree(ingested_home, tmp_path / "one-by-one")))
    drop(one_by_one, 2)
    ingest(one_by_one)
    taken = []
    for seed in (1, 2):
        drop(workspace, seed)
        taken.append(take(workspace))
    at_once(workspace, *((batch, "intake", "prepare") for batch in taken))
    finish(workspace)
    assert content(workspace) == content(one_by_one)


def test_one_batch_in_two_processes_at_once_is_taken_in_once(workspace: Workspace, undisturbed: object) -> None:
    drop(workspace, 1)
    drop(workspace, 2)
    batch = take(workspace)
    at_once(workspace, *[(batch, "intake", "prepare")] * 2)
    finish(workspace)
    assert content(workspace) == undisturbed
    assert main(["verify"]) == 0


def test_the_same_images_in_two_batches_that_do_not_see_each_other_are_in_the_dataset_once(
    workspace: Workspace,
) -> None:
    drop(workspace, 1)
    first = take(workspace)
    again = drop(workspace, 1, "again")
    for path in files(again, "CT") + files(again, "RTSTRUCT") + files(again, "RTDOSE") + files(again, "RTPLAN"):
        edit(path, lambda ds: setattr(ds, "PatientID", "another"))
    second = take(workspace)
    for batch in (second, first):
        stages.intake(workspace, P, batch)
        stages.prepare(workspace, P, batch)
    assert len({row["case_id"] for row in workspace.lake.rows("prepared_cases", P)}) == 2
    found = stages.dataset(workspace, P)
    (kept,) = workspace.lake.rows("dataset", P)
    assert found.counts["duplicates"] == 1
    assert kept["case_id"] == workspace.lake.rows("prepared_cases", f"{P}/{first}")[0]["case_id"]


def test_names_of_batches_stay_in_order_while_the_clock_jumps_both_ways(workspace: Workspace) -> None:
    names = []
    for number, now in enumerate([1_000_000_000.0, 1_900_000_000.0, 1_000_000_000.0, 1_500_000_000.0]):
        (drop(workspace, 1, f"export-{number}") / "note").write_text(str(number))
        names.append(batches.take(workspace, P, batches.untaken(workspace, P), now))
    assert names == sorted(set(names)) == batches.known(workspace, P)
    assert [list(batches.manifest(workspace, P, name)) for name in names] == [[f"export-{n}"] for n in range(4)]
    assert not batches.untaken(workspace, P)


def test_files_from_the_future_are_taken_when_they_were_seen_at_rest_and_not_before(workspace: Workspace) -> None:
    ws = dataclasses.replace(workspace, settle_s=30.0)
    folder, now = drop(ws, 1), time.time() + 1
    path = next(path for path in sorted(folder.rglob("*")) if path.is_file())
    os.utime(path, (now + 1e6, now + 1e6))
    assert batches.settled(ws, P, now) == []
    assert "1 of them bear a time in the future" in batches.waiting(ws, P, now)
    assert batches.settled(ws, P, now + 29) == []
    os.utime(path, (now + 2e6, now + 2e6))
    assert batches.settled(ws, P, now + 30) == []
    assert batches.settled(ws, P, now - 1e5) == []
    assert batches.settled(ws, P, now - 1e5 + 29) == []
    (entry,) = batches.settled(ws, P, now - 1e5 + 30)
    batches.take(ws, P, [entry], now)
    assert batches.settled(ws, P, now) == []
    assert batches.known(ws, P) == [path.stem for path in (ws.landing / ".batches").rglob("*.json")]
