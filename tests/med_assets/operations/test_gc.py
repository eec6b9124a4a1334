"""What nothing needs goes from the bucket of a shared home, after two looks, and nothing that any machine needs does."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from med_assets.catalog import Catalog
from med_assets.cli.main import main
from med_assets.operations import bucket_pruning, integrity, pruning
from med_assets.operations.stored import DAY_S, Stored
from med_assets.records import Champion
from med_assets.settings import Workspace
from med_assets.storage.files import digest, file_sha256, write_json, write_text
from med_assets.storage.s3.bucket import Location
from med_assets.storage.s3.states import JobState
from med_assets.storage.s3.store import S3Store
from tests.med_assets.s3.faults import Faults
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import VAL, artifact, cases, constant, model

FEW = VAL[:2]
HOUR_S = 3600.0


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds pass for whoever looks; the times of objects stay those of now."""
    now, passed = time.time, [0.0]

    def go_on(seconds: float) -> None:
        passed[0] += seconds

    monkeypatch.setattr(time, "time", lambda: now() + passed[0])
    return go_on


@pytest.fixture
def ws(workspace: Workspace, faults: Faults, name: str, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A shared home with an earlier, a former and a present model."""
    cases(workspace, {"train": ["t0"], "val": FEW})
    for case in ("t0", *FEW):
        for key in (artifact(case), "raw/" + digest(case)):
            made(workspace, key)
    monkeypatch.setenv("MED_ASSETS_STORE", f"s3://{name}/home")
    for seed in (7.0, 6.0, 5.0):
        checkpoint = trained(workspace, seed)
        if seed == 7.0:
            row = {
                "program": P, "experiment": "baseline", "checkpoint": checkpoint, "dataset_version": "d", "n_train": 1,
                "promoted_at": "2026-01-01", "action": "promoted", "reason": "a test",
            }  # fmt: skip
            Catalog(workspace, P).replace(Champion, [Champion.of(row)])
    assert main(["share", "--yes"]) == 0
    return Workspace.from_env()


def trained(ws: Workspace, seed: float) -> str:
    return model(ws, "baseline", constant(seed, FEW), train=["t0"])


def made(ws: Workspace, key: str) -> str:
    with ws.store.create(key) as folder:
        write_text(folder / "case.json", "{}")
    return key


def store_of(ws: Workspace) -> S3Store:
    assert isinstance(ws.store, S3Store)
    return ws.store


def put(ws: Workspace, name: str, text: str = "x") -> str:
    """An object below the prefix of the home."""
    location = store_of(ws).location
    store_of(ws).client.put_object(Bucket=location.bucket, Key=location.key(name), Body=text.encode())
    return name


def state(ws: Workspace, name: str, tmp_path: Path, content: Any) -> str:
    """The state of a job, as the machine that runs it saves it."""
    folder = tmp_path / name
    write_json(folder / "cases.json", content)
    saved = JobState(store_of(ws), name)
    saved.claim()
    saved.save(folder, {"cases.json": file_sha256(folder / "cases.json")}, 1, "a job")
    return f"jobs/{name}"


def going(found: list[Stored]) -> set[str]:
    return {one.name for one in found if not one.kept and one.kind != pruning.TABLES}


def test_what_nothing_needs_goes_after_two_looks_and_all_else_stays(
    ws: Workspace, tmp_path: Path, passes: Callable[[float], None]
) -> None:
    champion, latest = Catalog(ws, P).champion(), Catalog(ws, P).checkpoint("baseline")
    assert champion is not None
    assert latest is not None
    former, present = champion.checkpoint, latest.checkpoint
    (earlier,) = set(ws.store.keys("checkpoint")) - {former, present}
    stray = made(ws, "prediction/" + digest("of a version before"))
    needed = made(ws, "prepared/" + digest("of a job of another machine"))
    versioned = made(ws, "prepared/" + digest("of a version of the dataset"))
    with ws.store.create("dataset/" + digest("a version")) as folder:
        pq.write_table(pa.table({"artifact": [versioned]}), folder / "dataset.parquet")
    leftovers = {
        put(ws, f"files/prediction/{digest('never published')}/aaaa/x").rpartition("/")[0],
        put(ws, f"files/{present}/aaaa/weights.pt").rpartition("/")[0],
    }
    finished = state(ws, earlier.split("/")[1], tmp_path, [])
    running = state(ws, digest("a training"), tmp_path, [{"version": needed}])
    put(ws, "runs/0123456789abcdef/aaaa/result.json")
    expected = {earlier, stray, finished, "runs/0123456789abcdef", *leftovers, *locks(ws)}
    expected |= {key for key in ws.store.keys("score") if key not in scores_of(ws, former, present)}
    assert going(pruning.examine(ws, 0)) == set(), "all is younger than a day"
    passes(40 * DAY_S)
    first = pruning.examine(ws, 7)
    assert going(first) == set()
    assert {one.name for one in first if one.kept == bucket_pruning.FIRST_LOOK} == expected
    assert going(pruning.examine(ws, 7)) == set(), "an hour has not passed"
    passes(2 * HOUR_S)
    found = pruning.examine(ws, 7)
    assert going(found) == expected
    pruning.remove(ws, found)
    again = Workspace.from_env()
    assert going(pruning.examine(again, 7)) == set()
    assert integrity.examine(again) == []
    for kept in (former, present, artifact("t0"), needed, versioned):
        assert again.store.has(kept)
    assert running in {one.name for one in pruning.examine(again, 7) if one.kept == "unfinished"}


def locks(ws: Workspace) -> set[str]:
    location = store_of(ws).location
    listed = store_of(ws).client.list_objects_v2(Bucket=location.bucket, Prefix=location.key("locks/"))
    return {location.name(each["Key"]) for each in listed.get("Contents", ())}


def test_runs_and_locks_of_a_home_of_dagster_that_is_gone_go_with_age_and_what_somebody_took_since_stays(
    ws: Workspace, passes: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    leases, run = ws.leases, "runs/fedcba9876543210"
    assert leases is not None
    put(ws, f"{run}/request.json")
    put(ws, f"{run}/aaaa/heartbeat.json")
    for name in ("run-fedcba9876543210", "run-of-yesterday"):
        with leases.hold(name):
            pass
    of_both = {"locks/run-fedcba9876543210.json", "locks/run-of-yesterday.json"}
    for days, going_by_age in ((20.0, of_both), (20.0, {run, *of_both})):
        passes(days * DAY_S)
        pruning.examine(ws, 7)
        passes(2 * HOUR_S)
        found = pruning.examine(ws, 7)
        assert {one.name for one in found if not one.kept and one.name in {run, *of_both}} == going_by_age
    assert {one.kept for one in found if one.name == run} == {""}
    old = [one for one in found if one.name in {run, *of_both}]
    passes(-41 * DAY_S)  # one is taken again before the removal
    with leases.hold("run-of-yesterday") as lease:
        removed = {one.name for one in pruning.remove(ws, old)}
        lease.check()
    assert removed == {run}
    assert of_both <= locks(ws)
    passes(41 * DAY_S)
    assert {one.name for one in pruning.remove(ws, old)} >= {"locks/run-fedcba9876543210.json"}
    with leases.hold("run-fedcba9876543210", wait=False) as lease:
        lease.check()


def scores_of(ws: Workspace, *checkpoints: str) -> set[str]:
    from med_assets.evaluation.scoring import score_key

    return {score_key(ws, P, checkpoint, artifact(case)) for checkpoint in checkpoints for case in FEW}


def test_what_a_machine_named_between_look_and_removal_stays(ws: Workspace, passes: Callable[[float], None]) -> None:
    stray = made(ws, "prepared/" + digest("old"))
    passes(40 * DAY_S)
    pruning.examine(ws, 7)
    passes(2 * HOUR_S)
    found = pruning.examine(ws, 7)
    assert stray in going(found)
    row = ws.lake.rows("dataset", P)[0] | {"case_id": "again", "artifact": stray}
    ws.lake.write("dataset", P, [*ws.lake.rows("dataset", P), row])
    assert stray not in {one.name for one in pruning.remove(ws, found)}
    assert ws.store.has(stray)


def test_the_command_shows_first_and_has_its_earlier_name_too(
    ws: Workspace, capsys: pytest.CaptureFixture[str], passes: Callable[[float], None]
) -> None:
    stray = made(ws, "prediction/" + digest("stray"))
    passes(40 * DAY_S)
    capsys.readouterr()
    assert main(["gc"]) == 0
    assert "first look" in capsys.readouterr().out
    passes(2 * HOUR_S)
    assert main(["prune", "--list"]) == 0
    shown = capsys.readouterr().out
    assert stray in shown
    assert "nothing was removed" in shown
    assert main(["gc", "--yes"]) == 0
    assert "all artifacts that the tables name are there" in capsys.readouterr().out
    location = store_of(ws).location
    listed = store_of(ws).client.list_objects_v2(
        Bucket=location.bucket, Prefix=Location.key(location, f"files/{stray}")
    )
    assert listed["KeyCount"] == 0
