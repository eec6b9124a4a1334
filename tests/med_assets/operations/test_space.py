"""What is nearly used up is a warning where people look, and a batch that can't fit is not begun."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import dagster as dg
import pytest

import resources
from assets import build_program, keys
from med_assets.catalog import Catalog
from med_assets.cli import stages
from med_assets.cli.main import main
from med_assets.errors import DiskFull
from med_assets.landing import space
from med_assets.operations import pruning
from med_assets.operations.metrics import Collector
from med_assets.records import CaseVersion
from med_assets.settings import Workspace
from med_assets.storage.exposition import text
from med_assets.storage.s3.store import S3Store
from tests.med_assets.homes.unpacked import unpack
from tests.med_assets.s3.faults import Faults
from tests.med_assets.stages.builders import P, drop, take


class Disk(NamedTuple):
    """What the system says of a disk."""

    total: int
    used: int
    free: int


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets every disk have so many bytes free."""

    def set_free(n_bytes: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Disk(10**12, 10**12 - int(n_bytes), int(n_bytes)))

    return set_free


def test_a_batch_that_can_not_fit_is_not_begun_and_one_that_was_begun_goes_on(
    workspace: Workspace, free: Callable[[float], None]
) -> None:
    folder = drop(workspace, 1)
    n_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    batch = take(workspace)
    free(n_bytes - 1)
    with pytest.raises(DiskFull, match="nothing of it is taken in"):
        stages.intake(workspace, P, batch)
    assert workspace.store.all_keys() == []
    assert not Catalog(workspace, P).has(CaseVersion, batch)
    space_before = workspace.home / "tmp" / "begun"
    assert not list(space_before.glob("*"))
    free(n_bytes)
    space.demand(workspace, P, batch, n_bytes)
    free(0)
    assert stages.intake(workspace, P, batch).counts["new"] == 1
    assert not list(space_before.glob("*"))


def test_little_space_is_a_warning_of_the_doctor_and_of_the_run_of_a_stage(
    workspace: Workspace, free: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    unpack("0.2.0", workspace.home)
    free(space.MIN_FREE_GB * space.GB)
    assert space.warnings(workspace) == []
    free(3.2e9)
    main(["doctor"])
    assert "the disk of the home has 3.2 GB free" in capsys.readouterr().out
    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize(
            build_program(P), selection=[keys.key(P, "dataset")], instance=instance, resources=resources.build()
        )
        logged = [entry.user_message for entry in instance.all_logs(done.run_id) if not entry.dagster_event]
    assert done.success
    assert [line for line in logged if "the disk of the home has 3.2 GB free" in line]


def test_the_quota_of_a_bucket_is_counted_by_gc_warned_of_and_kept(
    workspace: Workspace, faults: Faults, name: str, good: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unpack("0.2.0", workspace.home)
    monkeypatch.setenv("MED_ASSETS_STORE", f"s3://{name}/home")
    monkeypatch.setenv("MED_ASSETS_QUOTA_GB", "0.003")
    assert main(["share", "--yes"]) == 0
    ws = Workspace.from_env()
    assert isinstance(ws.store, S3Store)
    assert space.usage(ws) is None
    assert space.warnings(ws) == []
    pruning.examine(ws, 7)
    used = space.usage(ws)
    assert used is not None
    listed = good.list_objects_v2(Bucket=name, Prefix="home/")
    whole = sum(one["Size"] for one in listed["Contents"])
    assert used.bytes == pytest.approx(whole, rel=0.02)
    (warning,) = space.warnings(ws)
    assert "MED_ASSETS_QUOTA_GB=0.003" in warning
    shown = text(Collector(ws).families())
    assert f"med_assets_bucket_bytes {used.bytes}\n" in shown
    assert "med_assets_bucket_quota_bytes 3000000\n" in shown
    with pytest.raises(DiskFull, match="MED_ASSETS_QUOTA_GB"):
        space.demand(ws, P, "2026-01-01T00-00-00_000000", 10**6)
