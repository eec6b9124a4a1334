"""The intake sensor: batches of what has settled, and none lost."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import JobFailureData, RunFailureReason

from assets import keys
from med_assets.landing import batches
from med_assets.settings import Workspace
from sensors import runs
from tests.sensors.builders import intake

LONG_AGO = 1_000_000_000.0


@pytest.fixture
def ws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Workspace:
    monkeypatch.setenv("MED_ASSETS_HOME", str(tmp_path))
    monkeypatch.setenv("MED_ASSETS_PSEUDONYM_KEY", "a key for tests that is long enough")
    monkeypatch.setenv("MED_ASSETS_SETTLE_S", "0")
    return Workspace.from_env()


def drop(ws: Workspace, name: str, content: bytes = b"x") -> None:
    path = ws.landing / "rt_dose" / name / "1.dcm"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (LONG_AGO, LONG_AGO))


def tick(instance: dg.DagsterInstance) -> dg.SensorResult:
    context = dg.build_sensor_context(instance=instance)
    found = intake("rt_dose")(context)
    assert isinstance(found, dg.SensorResult)
    return found


def finish(ws: Workspace, code: str | None = None) -> None:
    """Give every batch its rows, as its run does; with `code` one of an entry that was refused so."""
    for batch in batches.known(ws, "rt_dose"):
        row = {"program": "rt_dose", "batch": batch, "case_id": "a", "status": "quarantined", "reason_code": code}
        ws.lake.write("raw_cases", f"rt_dose/{batch}", [row] if code else [])
        ws.lake.write("prepared_cases", f"rt_dose/{batch}", [])


def materialize(instance: dg.DagsterInstance, batch: str) -> None:
    instance.report_runless_asset_event(
        dg.AssetMaterialization(dg.AssetKey(["rt_dose", "prepared_cases"]), partition=batch)
    )


def test_a_batch_that_lost_its_rows_is_taken_in_again_and_one_that_fails_is_tried_once(ws: Workspace) -> None:
    drop(ws, "a")
    with dg.DagsterInstance.ephemeral() as instance:
        (request,) = tick(instance).run_requests or ()
        batch = str(request.partition_key)
        instance.add_dynamic_partitions("rt_dose_batches", [batch])
        finish(ws)
        materialize(instance, batch)
        assert not tick(instance).run_requests
        ws.lake.remove("prepared_cases", f"rt_dose/{batch}")
        (again,) = tick(instance).run_requests or ()
        assert again.partition_key == batch
        going = instance.add_run(
            dg.DagsterRun(
                job_name="again",
                status=dg.DagsterRunStatus.STARTED,
                tags={**again.tags, "dagster/partition": batch},
            )
        )
        assert not tick(instance).run_requests, "a run is going"
        instance.report_run_failed(going, "a step failed", JobFailureData(None, RunFailureReason.STEP_FAILURE))
        assert not tick(instance).run_requests, "tried"
        finish(ws)
        materialize(instance, batch)
        ws.lake.remove("raw_cases", f"rt_dose/{batch}")
        assert [one.partition_key for one in tick(instance).run_requests or ()] == [batch], "lost once more"


def test_a_batch_in_work_among_others_and_one_whose_run_ended_a_moment_ago_are_not_requested(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        for name in ("a", "b", "c"):
            drop(ws, name)
            tick(instance)
        names = batches.known(ws, "rt_dose")
        instance.add_dynamic_partitions("rt_dose_batches", names)
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(runs, "end_those_of_dead_workers", lambda _: finish(ws))
            assert not tick(instance).run_requests, "their rows came after the tick had looked for them"
        for batch in names:
            ws.lake.remove("prepared_cases", f"rt_dose/{batch}")
        going = dg.DagsterRun(
            job_name="again",
            status=dg.DagsterRunStatus.STARTED,
            tags=keys.one_run(names, names[:2]),
            asset_selection=frozenset([keys.key("rt_dose", "prepared_cases")]),
        )
        instance.add_run(going)
        predicts = frozenset([keys.key("rt_dose", "predictions")])
        instance.add_run(
            dg.DagsterRun(
                job_name="x",
                status=dg.DagsterRunStatus.STARTED,
                tags=keys.one_run(names, names),
                asset_selection=predicts,
            )
        )
        assert [one.partition_key for one in tick(instance).run_requests or ()] == names[2:]


def test_what_could_not_be_read_is_tried_again_once_a_day(ws: Workspace) -> None:
    drop(ws, "a")
    with dg.DagsterInstance.ephemeral() as instance:
        (request,) = tick(instance).run_requests or ()
        batch = str(request.partition_key)
        instance.add_dynamic_partitions("rt_dose_batches", [batch])
        finish(ws, batches.UNREADABLE)
        materialize(instance, batch)
        (again,) = tick(instance).run_requests or ()
        instance.add_run(dg.DagsterRun(job_name="again", status=dg.DagsterRunStatus.SUCCESS, tags=again.tags))
        materialize(instance, batch)
        assert not tick(instance).run_requests
        finish(ws)
        assert not tick(instance).run_requests


def test_idle_ticks_read_no_rows_and_no_manifest_again(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        for number in range(5):
            drop(ws, f"case-{number}")
            tick(instance)
        instance.add_dynamic_partitions("rt_dose_batches", batches.known(ws, "rt_dose"))
        finish(ws)
        tick(instance)
        opened: list[str] = []
        for name in ("OSFile", "memory_map", "parquet.ParquetFile"):
            monkeypatch.setattr(f"pyarrow.{name}", lambda path, *_: opened.append(str(path)))
        monkeypatch.setattr(batches, "read_json", lambda path: opened.append(str(path)))
        assert tick(instance).skip_reason is not None
        assert opened == []


def test_what_has_settled_becomes_one_batch_with_one_run(ws: Workspace) -> None:
    drop(ws, "SMITH^JOHN")
    drop(ws, "DOE^JANE")
    with dg.DagsterInstance.ephemeral() as instance:
        found = tick(instance)
    (request,) = found.run_requests or ()
    (addition,) = found.dynamic_partitions_requests or ()
    assert [request.partition_key] == list(addition.partition_keys) == batches.known(ws, "rt_dose")
    assert "SMITH" not in str(found)


def test_what_is_still_changing_is_left_and_the_skip_reason_names_no_file(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(ws, "SMITH^JOHN")
    monkeypatch.setenv("MED_ASSETS_SETTLE_S", "600")
    with dg.DagsterInstance.ephemeral() as instance:
        found = tick(instance)
    assert not found.run_requests
    assert "1 entries" in str(found.skip_reason)
    assert "SMITH" not in str(found.skip_reason)


def test_a_batch_whose_tick_died_before_its_run_was_requested_is_requested_next_time(ws: Workspace) -> None:
    drop(ws, "a")
    with dg.DagsterInstance.ephemeral() as instance:
        first = tick(instance)
        again = tick(instance)
        (request,), (repeated,) = first.run_requests or (), again.run_requests or ()
        assert request.run_key == repeated.run_key
        instance.add_dynamic_partitions("rt_dose_batches", batches.known(ws, "rt_dose"))
        assert [one.partition_key for one in tick(instance).run_requests or ()] == [request.partition_key]
        finish(ws)
        assert tick(instance).skip_reason == dg.SkipReason("nothing new in the landing folder; 1 batches taken so far")


def test_the_same_content_is_not_taken_twice_and_a_changed_entry_is(ws: Workspace) -> None:
    drop(ws, "a")
    with dg.DagsterInstance.ephemeral() as instance:
        tick(instance)
        tick(instance)
        assert len(batches.known(ws, "rt_dose")) == 1
        drop(ws, "a", b"more")
        tick(instance)
        assert len(batches.known(ws, "rt_dose")) == 2


def test_an_idle_tick_asks_the_system_once_for_each_file(ws: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(40):
        drop(ws, f"case-{number}")
    with dg.DagsterInstance.ephemeral() as instance:
        tick(instance)
        instance.add_dynamic_partitions("rt_dose_batches", batches.known(ws, "rt_dose"))
        finish(ws)
        asked: list[str] = []
        for name in ("stat", "lstat", "scandir"):
            call: Callable[..., Any] = getattr(os, name)

            def counting(path: Any = ".", *more: Any, call: Callable[..., Any] = call, **options: Any) -> Any:
                asked.append(str(path))
                return call(path, *more, **options)

            monkeypatch.setattr(os, name, counting)
        assert tick(instance).skip_reason is not None
    files = [path for path in asked if path.endswith("1.dcm")]
    folders = [path for path in asked if path.startswith(str(ws.landing / "rt_dose")) and not path.endswith("1.dcm")]
    assert len(files) == 40
    assert len(folders) <= 40 * 4 + 10


def test_a_landing_folder_that_is_not_there_has_a_message_once(ws: Workspace) -> None:
    with dg.DagsterInstance.ephemeral() as instance:

        def message(cursor: str | None) -> tuple[str, str | None]:
            context = dg.build_sensor_context(instance=instance, cursor=cursor)
            found = intake("rt_dose")(context)
            assert isinstance(found, dg.SensorResult)
            return str(found.skip_reason), found.cursor

        first, cursor = message(None)
        again, cursor = message(cursor)
        assert "is not there yet" in first
        assert "is not there" not in again
        (ws.landing / "rt_dose").mkdir(parents=True)
        _, cursor = message(cursor)
        (ws.landing / "rt_dose").rmdir()
        assert "is not there" in message(cursor)[0], "it was there in between"


def test_a_landing_zone_that_is_costly_to_list_is_not_listed_at_each_tick(
    ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(ws, "a")
    monkeypatch.setattr("sensors.intake.SHARE", 1e-9)
    with dg.DagsterInstance.ephemeral() as instance:
        first = tick(instance)
        assert first.run_requests
        monkeypatch.setattr(batches, "survey", lambda *_: pytest.fail("it was listed"))
        found = intake("rt_dose")(dg.build_sensor_context(instance=instance, cursor=first.cursor))
        assert isinstance(found, dg.SensorResult)
        assert not found.run_requests
