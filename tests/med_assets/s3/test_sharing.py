"""`med-assets share`: a home of one machine is copied whole or counts as not copied, and stays as it is."""

from pathlib import Path
from typing import Any

import pytest

from med_assets.cli.main import main
from med_assets.deidentification import audit_trail
from med_assets.errors import ArtifactCorrupt, ConfigurationError, RemoteFailed
from med_assets.landing import batches
from med_assets.landing.folder import Entry
from med_assets.operations import sharing
from med_assets.settings import Workspace
from med_assets.storage.files import folder_hashes, write_text
from med_assets.storage.s3 import shared_files
from med_assets.storage.s3.lake import S3Lake
from tests.med_assets.s3.faults import Faults

P = "rt_dose"


@pytest.fixture
def home(workspace: Workspace) -> Path:
    """A home of one machine with two artifacts and some tables."""
    for key in ("prepared/0123456789abcdef", "checkpoint/0123456789abcdef"):
        with workspace.store.create(key) as folder:
            (folder / "below").mkdir()
            (folder / "below" / "file.txt").write_text(key)
    row = {"program": P, "case_id": "c", "reason": "x"}
    workspace.lake.write("withdrawals", P, [row])
    workspace.lake.write("withdrawals", "breast_us", [])
    workspace.lake.write("reads", f"{P}/c", [])
    return workspace.home


@pytest.fixture
def shared(home: Path, faults: Faults, name: str, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The same home with a bucket; nothing is there yet."""
    monkeypatch.setenv("MED_ASSETS_STORE", f"s3://{name}/site")
    return Workspace.from_env()


def another(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A machine that has nothing but the bucket."""
    monkeypatch.setenv("MED_ASSETS_HOME", str(ws.home.parent / "another"))
    return Workspace.from_env()


def test_a_home_is_copied_whole_and_another_machine_has_its_tables_and_artifacts(
    shared: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], good: Any, name: str
) -> None:
    before = folder_hashes(shared.home)
    assert main(["query", "select 1 as one from withdrawals"]) == 1
    assert "med-assets share" in capsys.readouterr().err
    assert main(["share"]) == 0
    assert "nothing was copied" in capsys.readouterr().out
    assert good.list_objects_v2(Bucket=name)["KeyCount"] == 0
    assert main(["share", "--yes"]) == 0
    two = another(shared, monkeypatch)
    assert two.lake.rows("withdrawals") == [{"program": P, "case_id": "c", "reason": "x"}]
    assert two.lake.has("reads", f"{P}/c")
    assert two.store.keys("prepared") == ["prepared/0123456789abcdef"]
    assert (two.store.fetch("checkpoint/0123456789abcdef") / "below" / "file.txt").read_text().startswith("checkpoint")
    after = folder_hashes(shared.home)
    assert {path: after[path] for path in before} == before
    assert isinstance(two.lake, S3Lake)
    assert two.lake.number == 1


def test_a_copy_that_was_stopped_is_not_seen_and_goes_on(
    shared: Workspace, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as stopped:
        stopped.setattr(S3Lake, "adopt", lambda *_: (_ for _ in ()).throw(RemoteFailed("stopped")))
        with pytest.raises(RemoteFailed, match="stopped"):
            sharing.share(shared, dry_run=False)
    assert another(shared, monkeypatch).lake.partitions("withdrawals") == []
    artifacts, *_, tables = sharing.share(shared, dry_run=True)
    assert (artifacts.n, artifacts.n_there) == (2, 2)
    assert (tables.n, tables.n_there) == (3, 3)
    faults.bodies.clear()
    sharing.share(shared, dry_run=False)
    two = another(shared, monkeypatch)
    two.lake.refresh()
    assert two.lake.partitions("withdrawals") == ["breast_us", P]


def test_a_bucket_with_these_tables_is_left_alone_and_one_with_others_is_refused(shared: Workspace) -> None:
    sharing.share(shared, dry_run=False)
    assert sharing.share(shared, dry_run=False)[-1].bytes == 0
    assert isinstance(shared.lake, S3Lake)
    assert shared.lake.number == 1
    shared.lake.write("withdrawals", P, [])
    with pytest.raises(ConfigurationError, match=r"those of 2 commits, which are others.*another prefix"):
        sharing.share(shared, dry_run=True)


def test_nothing_damaged_is_shared(shared: Workspace, home: Path, good: Any, name: str) -> None:
    (path,) = (home / "store" / "checkpoint").rglob("file.txt")
    path.chmod(0o600)
    path.write_text("other")
    with pytest.raises(ArtifactCorrupt):
        sharing.share(shared, dry_run=False)
    assert good.list_objects_v2(Bucket=name, Prefix="site/tables/log/")["KeyCount"] == 0


def test_without_a_bucket_it_says_which_setting_names_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["share"]) == 1
    assert "MED_ASSETS_STORE=s3://bucket/prefix" in capsys.readouterr().err


def test_faults_of_the_bucket_change_no_byte(
    shared: Workspace, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults.failing, faults.truncated, faults.lost = 0.1, 0.1, 0.1
    sharing.share(shared, dry_run=False)
    two = another(shared, monkeypatch)
    two.store.verify("prepared/0123456789abcdef")
    assert two.lake.rows("withdrawals") == [{"program": P, "case_id": "c", "reason": "x"}]


def test_audit_trail_manifests_reports_and_predictions_are_shared_too(
    workspace: Workspace, faults: Faults, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MED_ASSETS_LANDING", f"s3://{name}/landing")
    one = Workspace.from_env()
    batch = batches.take(one, P, [Entry("MUSTERMANN^ERIKA", "0" * 16, 0.0, 1)], 1.75e9)
    write_text(one.landing_zone(P).manifests.beside(P) / f"{batch}.files.csv", "file,member,outcome,kind")
    audit_trail.record(one, audit_trail.Kind.BATCH, P, batch, {"cases": {}})
    write_text(one.reports / P / "report.html", "a report")
    write_text(one.predictions / P / "case1" / "dose.txt", "1 Gy")

    def kept() -> dict[str, str]:
        return {path: text for path, text in folder_hashes(one.home).items() if not path.startswith("tmp/")}

    before = kept()
    monkeypatch.setenv("MED_ASSETS_STORE", f"s3://{name}/site")
    for _ in range(2):
        assert main(["share", "--yes"]) == 0
    assert kept() == before
    two = another(one, monkeypatch)
    assert batches.known(two, P) == [batch]
    two.landing_zone(P).manifests.fetch(P, batch)
    assert (two.home / "landing" / ".batches" / P / f"{batch}.files.csv").is_file()
    assert [entry.subject for entry in audit_trail.entries(two)] == [batch]
    assert audit_trail.verify(two) == []
    shared_files.pull(two, P)
    shared_files.pull_predictions(two, P, ["case1"])
    assert (two.reports / P / "report.html").read_text() == "a report"
    assert (two.predictions / P / "case1" / "dose.txt").read_text() == "1 Gy"
    capsys.readouterr()
    assert main(["share"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row for row in rows if "reports" in row]
