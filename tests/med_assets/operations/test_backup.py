"""A home is backed up while work goes on, and a restored one gives the same answers; nothing half is taken for whole."""

import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from med_assets.cli.main import main
from med_assets.deidentification.audit_trail import Kind, record
from med_assets.errors import ArtifactCorrupt, ConfigurationError
from med_assets.operations import backup
from med_assets.operations.destination import BucketDestination, Destination, FolderDestination, destination
from med_assets.operations.restore import restore
from med_assets.settings import Workspace
from med_assets.storage.files import folder_hashes, write_text
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.lease import Leases
from tests.code import Code
from tests.conftest import settings_of
from tests.med_assets.homes.unpacked import unpack
from tests.med_assets.s3.faults import Faults

P = "rt_dose"
SECRET_FILES = {"review_logins": "a hash of a password", "demo.env": "export MED_ASSETS_PSEUDONYM_KEY=secret"}


@pytest.fixture
def ws(workspace: Workspace) -> Workspace:
    """A home with two phantoms, a model, its scores and a report, Dagster's records and what a person put there."""
    unpack("0.2.0", workspace.home)
    records = workspace.home / "dagster" / "history"
    records.mkdir(parents=True)
    with sqlite3.connect(records / "runs.db") as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE runs (id TEXT)")
        database.execute("INSERT INTO runs VALUES ('one')")
    write_text(workspace.home / "dagster" / "dagster.yaml", "telemetry:\n  enabled: false\n")
    write_text(workspace.home / "network.yaml", "receiver: {}\n")
    for name, text in SECRET_FILES.items():
        write_text(workspace.home / name, text)
    return workspace


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Destination:
    """A destination of each kind."""
    if request.param == "folder":
        return FolderDestination(tmp_path / "backups")
    request.getfixturevalue("faults")
    return BucketDestination(Location(request.getfixturevalue("name"), "some/prefix"))


def other(home: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Another home, which the environment names from now on."""
    for name, value in settings_of(home).items():
        monkeypatch.setenv(name, value)
    return Workspace.from_env()


def answers(capsys: pytest.CaptureFixture[str]) -> str:
    """What the commands answer that a person asks first."""
    capsys.readouterr()
    for words in (["leaderboard", P], ["cases", P], ["query", "select * from evaluation_cases"], ["audit-trail"]):
        assert main(words) == 0
    return capsys.readouterr().out


def content(home: Path) -> dict[str, str]:
    """Hashes of all that a backup holds."""
    found = folder_hashes(home)
    return {
        name: value
        for name, value in found.items()
        if name.startswith(("lake/", "store/", "audit/", "reports/", "predictions/", "network.yaml"))
        and not name.startswith("store/tmp")
        and "/." not in name
    }


def test_a_restored_home_is_verified_and_gives_the_same_answers(
    ws: Workspace,
    place: Destination,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, expected = answers(capsys), content(ws.home)
    assert main(["backup", str(place)]) == 0
    assert "MED_ASSETS_PSEUDONYM_KEY" in capsys.readouterr().out
    assert main(["backup", str(place), "--verify"]) == 0
    new = other(tmp_path / "restored", monkeypatch)
    assert main(["restore", str(place)]) == 0
    assert main(["verify"]) == 0
    assert answers(capsys) == before
    assert content(new.home) == expected
    with sqlite3.connect(new.home / "dagster" / "history" / "runs.db") as database:
        assert database.execute("SELECT id FROM runs").fetchall() == [("one",)]
    assert not any((new.home / name).exists() for name in SECRET_FILES)
    assert main(["restore", str(place)]) == 1, "the home is no longer empty"


def test_the_next_backup_copies_what_is_new_alone_and_each_can_be_restored(
    ws: Workspace, place: Destination, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = backup.make(ws, place)
    again = backup.make(ws, place)
    assert first.n_copied > 50
    assert again.n_copied == 0
    assert again.backup.parts == first.backup.parts
    ws.lake.write("splits", "another", ws.lake.rows("splits")[:1])
    later = backup.make(ws, place)
    assert later.n_copied == 2, "a partition and the list of parts"
    for made, n in ((first, 1), (later, 2)):
        new = other(tmp_path / f"restored-{n}", monkeypatch)
        restore(new, place, made.backup.name)
        assert len(new.lake.partitions("splits")) == n


def test_earlier_backups_go_with_what_only_they_need(
    ws: Workspace,
    place: Destination,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = backup.make(ws, place).backup
    (score,) = ws.store.keys("score")
    ws.store.remove(score)
    for n in (1, 2):
        ws.lake.write("splits", f"another/{n}", ws.lake.rows("splits")[:1])
        backup.make(ws, place)
    n_objects = len(place.objects())
    assert main(["backup", str(place), "--keep", "2"]) == 0
    assert "removed 2 earlier backups" in capsys.readouterr().out
    assert len(place.names()) == 2
    assert first.name not in place.names()
    assert len(place.objects()) < n_objects
    assert backup.verify(place)[1] == []
    new = other(tmp_path / "restored", monkeypatch)
    restore(new, place, place.names()[0])
    assert content(new.home) == content(ws.home)
    assert main(["backup", str(place), "--keep", "0"]) == 1


def test_no_secret_is_in_a_backup(ws: Workspace, tmp_path: Path) -> None:
    settings = ws.home / "dagster" / "dagster.yaml"
    write_text(settings, "schedule_storage:\n  config:\n    x: {password: hunter2}\n")
    made = backup.make(ws, FolderDestination(tmp_path / "backups"))
    found = b"".join(path.read_bytes() for path in (tmp_path / "backups").rglob("*") if path.is_file())
    for secret in (*SECRET_FILES.values(), "hunter2", ws.key.decode()):
        assert secret.encode() not in found
    assert [text for text in made.left_out if "password" in text]
    assert [text for text in made.left_out if "logins" in text]


def test_damage_of_a_backup_is_named_and_the_next_one_mends_it(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = FolderDestination(tmp_path / "backups")
    made = backup.make(ws, place).backup
    (checkpoint,) = ws.store.keys("checkpoint")
    sha256 = ws.store.file_hashes(checkpoint)["provenance.json"]
    victim = tmp_path / "backups" / "objects" / sha256[:2] / sha256
    victim.write_bytes(victim.read_bytes() + b" ")
    assert main(["backup", str(place), "--verify"]) == 1
    assert f"damaged: {checkpoint} of {made.name}" in capsys.readouterr().out
    new = other(tmp_path / "restored", monkeypatch)
    with pytest.raises(ArtifactCorrupt, match=checkpoint):
        restore(new, place)
    assert not (new.home / "lake").exists()
    assert backup.make(ws, place).n_copied == 1
    assert backup.verify(place)[1] == []
    restore(new, place)
    assert content(new.home) == content(ws.home)
    (tmp_path / "backups" / "backups" / f"{made.name}.json").write_text("{}")
    assert [loss.backups for loss in backup.verify(place)[1]] == [(made.name,)]


def test_damage_of_the_home_is_named_and_the_rest_is_backed_up(ws: Workspace, tmp_path: Path) -> None:
    place = FolderDestination(tmp_path / "backups")
    key, lost = ws.store.keys("prepared")[:2]
    (ws.store.fetch(key) / "dose.npy").write_bytes(b"damaged")
    ws.store.remove(lost)
    made = backup.make(ws, place).backup
    assert made.damaged == (key,)
    assert made.missing == (lost,)
    assert {part.name for part in backup.parts_of(place, made)} >= set(ws.store.all_keys()) - {key}


KILLED = """
import sys, os, signal
from pathlib import Path
from med_assets.operations import backup, restore
from med_assets.operations.destination import FolderDestination
from med_assets.settings import Workspace
place, n = FolderDestination(Path(sys.argv[2])), int(sys.argv[3])
def after(function):
    def called(*given):
        global n
        n -= 1
        if n < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given)
    return called
place.put, place.get = after(place.put), after(place.get)
ws = Workspace.from_env()
backup.make(ws, place) if sys.argv[1] == "backup" else restore.restore(ws, place)
"""


def killed(what: str, place: Path, n: int) -> int:
    """Back up or restore in a process that is killed before the nth transfer; returns its exit status."""
    process = Code(KILLED, what, str(place), str(n))
    process.communicate()
    return process.wait()


def test_a_backup_that_is_killed_is_none_and_the_next_goes_on(ws: Workspace, tmp_path: Path) -> None:
    place = FolderDestination(tmp_path / "backups")
    assert killed("backup", place.root, 1) == -signal.SIGKILL
    assert place.names() == []
    there = len(place.objects())
    assert there > 10
    made = backup.make(ws, place)
    assert 0 < made.n_copied < len(place.objects())
    assert backup.verify(place)[1] == []


def test_a_restore_that_is_killed_leaves_no_tables_and_goes_on(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = FolderDestination(tmp_path / "backups")
    backup.make(ws, place)
    expected = content(ws.home)
    new = other(tmp_path / "restored", monkeypatch)
    assert killed("restore", place.root, 8) == -signal.SIGKILL
    assert not (new.home / "lake").exists()
    assert new.store.all_keys()
    restore(new, place)
    assert content(new.home) == expected


def test_tables_are_those_of_one_moment_while_others_write(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process writes the same number to two partitions, one after the other: a backup never has them two apart."""
    stop, begun = threading.Event(), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            for partition in ("first", "second"):
                rows = [{"program": P, "patient_id": str(number), "split": "train", "fold": 0, "assigned_by": "test"}]
                ws.lake.write("splits", partition, rows)
            begun.set()
            time.sleep(0.03)

    writer = threading.Thread(target=write)
    writer.start()
    assert begun.wait(60)
    place = FolderDestination(tmp_path / "backups")
    try:
        made = [backup.make(ws, place).backup for _ in range(3)]
    finally:
        stop.set()
        writer.join()
    for one in made:
        new = other(tmp_path / one.name, monkeypatch)
        restore(new, place, one.name)
        first, second = (int(new.lake.rows("splits", partition)[0]["patient_id"]) for partition in ("first", "second"))
        assert first - second in (0, 1)


def test_a_backup_of_paths_that_lead_elsewhere_is_refused(
    ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = FolderDestination(tmp_path / "backups")

    def files(copy: Path, copies: Any) -> Iterator[backup.Part]:
        sha256 = next(iter(copies.there))
        yield backup.Part(backup.FILE, "lake/../../stolen", sha256, 1)

    with monkeypatch.context() as patch:
        patch.setattr(backup, "_files", files)
        backup.make(ws, place)
    new = other(tmp_path / "restored", monkeypatch)
    with pytest.raises(ConfigurationError, match="files of a home"):
        restore(new, place)


def test_a_place_within_the_home_and_one_without_backups_are_refused(ws: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="outside"):
        backup.make(ws, destination(str(ws.home / "backups"), "TO"))
    with pytest.raises(ConfigurationError, match="got none"):
        backup.verify(FolderDestination(tmp_path / "none"))
    shutil.rmtree(tmp_path / "none", ignore_errors=True)


def test_a_shared_home_is_backed_up_from_any_machine_and_restored_to_a_bucket_or_a_folder(
    ws: Workspace,
    faults: Faults,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record(ws, Kind.LINK, P, "a case", {"asked": "by a test"})
    expected = content(ws.home)
    before = answers(capsys)
    monkeypatch.setenv("MED_ASSETS_STORE", f"s3://{name}/home")
    assert main(["--debug", "share", "--yes"]) == 0
    another = other(tmp_path / "another machine", monkeypatch)
    place = FolderDestination(tmp_path / "backups")
    made = backup.make(another, place)
    assert (made.backup.damaged, made.backup.missing) == ((), ())
    assert backup.make(another, place).n_copied == 0
    monkeypatch.setenv("MED_ASSETS_STORE", f"s3://{name}/restored")
    restoring = other(tmp_path / "restoring machine", monkeypatch)
    assert restoring.store_location is not None
    assert killed("restore", place.root, 8) == -signal.SIGKILL
    # The lock of the killed process is waited for a second in place of half a minute.
    restoring.__dict__["leases"] = Leases(restoring.store_location, lease_s=1.0)
    restore(restoring, place)
    assert main(["verify"]) == 0
    other(tmp_path / "third machine", monkeypatch)
    assert answers(capsys) == before
    assert main(["restore", str(place)]) == 1, "there are tables"
    monkeypatch.delenv("MED_ASSETS_STORE")
    new = other(tmp_path / "restored", monkeypatch)
    restore(new, place)
    kept = content(new.home)
    assert {key: text for key, text in kept.items() if key.startswith(("lake/", "store/", "audit/"))} == {
        key: text for key, text in expected.items() if key.startswith(("lake/", "store/", "audit/"))
    }
    assert answers(capsys) == before
