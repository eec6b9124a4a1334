"""Sensors on a real instance: what they request, and what they leave alone."""

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.events import RunFailureReason
from dagster._core.storage.tags import RUN_FAILURE_REASON_TAG

from assets import build_program, keys
from med_assets.settings import Workspace
from sensors.retrain import retrain_sensor
from tests.med_assets.stages.builders import P, drop, ingest, take
from tests.med_assets.stages.models import TRAIN, VAL, cases, configure, constant, model
from tests.sensors.builders import intake


def tick(instance: dg.DagsterInstance, cursor: str | None) -> dg.SensorResult:
    with dg.build_sensor_context(instance=instance, cursor=cursor) as context:
        found = retrain_sensor(P, build_program(P))(context)
    assert isinstance(found, dg.SensorResult)
    return found


def skip_reason(result: dg.SensorResult) -> str:
    return (
        result.skip_reason.skip_message or ""
        if isinstance(result.skip_reason, dg.SkipReason)
        else str(result.skip_reason)
    )


def test_retraining_starts_once_enough_cases_are_unseen_and_then_cools_down(
    workspace: Workspace, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, retraining={"min_new_cases": 1})
    assert "no validation case" in skip_reason(tick(instance, None))
    for seed in (6, 8):  # with the tests' key, one patient for training and one for validation
        drop(workspace, seed)
    ingest(workspace)
    started = tick(instance, None)
    assert [request.tags[keys.PROGRAM_TAG] for request in started.run_requests or ()] == [P]
    assert "cool-down" in skip_reason(tick(instance, started.cursor))
    configure(tmp_path, monkeypatch, retraining={"min_new_cases": 2})
    assert "1 new training cases that no checkpoint has seen, 2 are needed" in skip_reason(tick(instance, None))


def test_cases_that_a_checkpoint_was_trained_on_are_not_new_and_its_age_is_known(
    workspace: Workspace, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, retraining={"min_new_cases": 2, "max_age_days": 30})
    cases(workspace, {"train": TRAIN, "val": VAL})
    model(workspace, "baseline", constant(4.0), trained_at=datetime.now(UTC).isoformat())
    assert "0 new training cases" in skip_reason(tick(instance, None))
    cases(workspace, {"train": ["n0"]}, batch="b2")
    assert "1 new training cases" in skip_reason(tick(instance, None))
    assert "0.0 days old, 30 are allowed" in skip_reason(tick(instance, None))
    model(workspace, "baseline", {**constant(4.0), "n0": 4.0}, trained_at="2026-01-01T00:00:00+00:00")
    assert tick(instance, None).run_requests


def test_a_batch_that_the_command_line_took_is_found_and_run_once(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    drop(workspace, 6)
    batch = take(workspace)

    def requests() -> list[dg.RunRequest]:
        with dg.build_sensor_context(instance=instance) as context:
            found = intake(P)(context)
        assert isinstance(found, dg.SensorResult)
        for addition in found.dynamic_partitions_requests or ():
            instance.add_dynamic_partitions(addition.partitions_def_name, list(addition.partition_keys))
        return list(found.run_requests or ())

    (first,) = requests()
    assert instance.has_dynamic_partition(keys.batches_of(P).name or "", batch)
    assert first.partition_key == batch
    (again,) = requests()  # its run died before it wrote anything
    assert again.partition_key == batch
    reason = {RUN_FAILURE_REASON_TAG: RunFailureReason.STEP_FAILURE.value}
    instance.add_run(dg.DagsterRun(job_name="tried", status=dg.DagsterRunStatus.FAILURE, tags={**again.tags, **reason}))
    assert requests() == []  # what failed is tried again when something changed, or by a person
    instance.report_runless_asset_event(dg.AssetMaterialization(keys.key(P, "prepared_cases"), partition=batch))
    for table in ("raw_cases", "prepared_cases"):
        workspace.lake.write(table, f"{P}/{batch}", [])
    assert requests() == []
