"""The shell around stages: data versions, gates, metadata and discretion."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import pytest

from assets.gates import Gate
from assets.shell import Call, Stage, build
from med_assets.dataset.checks import CheckOutcome
from med_assets.storage.result import StageResult
from resources import LauncherResource, WorkspaceResource


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MED_ASSETS_HOME", str(tmp_path))
    monkeypatch.setenv("MED_ASSETS_PSEUDONYM_KEY", "a key for tests that is long enough")


def stage(run: object, gates: Sequence[Gate] = (), **more: object) -> Stage:
    return Stage("rt_dose", "dataset", "test", "1-abc", run, gates=gates, **more)  # type: ignore[arg-type]  # the variety is the point of the test


def materialize(*assets: dg.AssetsDefinition, **more: object) -> dg.ExecuteInProcessResult:
    given = {"workspace": WorkspaceResource(), "launcher": LauncherResource()}
    return dg.materialize(list(assets), resources=given, raise_on_error=False, **more)  # type: ignore[arg-type]  # the variety is the point of the test


def gate(passed: bool, severity: str = "error") -> Gate:
    return Gate("sound", "guards", lambda ws, batch: CheckOutcome(passed, "because", severity, {"n": 3}))  # type: ignore[arg-type]  # the variety is the point of the test


def test_the_data_version_is_the_hash_that_the_stage_returns_and_provenance_is_shown() -> None:
    done = materialize(build(stage(lambda call: StageResult("hash-of-content", {"new": 1}))))
    (event,) = done.get_asset_materialization_events()
    made = event.materialization
    assert made.tags is not None
    assert made.tags["dagster/data_version"] == "hash-of-content"
    assert made.tags["dagster/code_version"] == "1-abc"
    assert made.metadata["count/new"].value == 1
    assert {"provenance/git_commit", "provenance/code_version", "provenance/data_version"} <= made.metadata.keys()


@pytest.mark.parametrize(
    ("passed", "severity", "goes_on"), [(True, "error", True), (False, "error", False), (False, "warn", True)]
)
def test_only_a_failed_gate_of_severity_error_stops_what_comes_after(
    passed: bool, severity: str, goes_on: bool
) -> None:
    first = build(stage(lambda call: StageResult("v"), [gate(passed, severity)]))

    @dg.asset(deps=[first.key])
    def after() -> None:
        """Whatever reads the dataset."""

    done = materialize(first, after)
    reached = {event.asset_key for event in done.get_asset_materialization_events()}
    assert (after.key in reached) == goes_on
    (check,) = done.get_asset_check_evaluations()
    assert (check.passed, check.description, check.metadata["n"].value) == (passed, "because", 3)


def test_an_unexpected_error_over_raw_files_keeps_names_out_of_the_event_log() -> None:
    def fail(call: Call) -> StageResult:
        raise FileNotFoundError(2, "no such file", "/landing/SMITH^JOHN/1.dcm")

    with dg.DagsterInstance.ephemeral() as instance:
        done = materialize(build(stage(fail, touches_raw_files=True)), instance=instance)
        assert not done.success
        text = str(instance.all_logs(done.run_id))
    assert "FileNotFoundError at" in text
    assert "SMITH" not in text


def test_overrides_of_the_launchpad_reach_the_stage() -> None:
    seen: list[tuple[str, ...]] = []

    def run(call: Call) -> StageResult:
        seen.append(call.overrides)
        return StageResult("v")

    asset = build(stage(run, takes_overrides=True))
    config = {"ops": {asset.op.name: {"config": {"overrides": ["schedule.epochs=2"]}}}}
    assert materialize(asset, run_config=config).success
    assert seen == [("schedule.epochs=2",)]


def test_a_batch_stage_gets_its_partition() -> None:
    seen: list[str | None] = []

    def run(call: Call) -> StageResult:
        seen.append(call.batch)
        return StageResult("v")

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("rt_dose_batches", ["2026-01-31T09-30-00_0a1b2c"])
        assert materialize(
            build(stage(run, by_batch=True)), instance=instance, partition_key="2026-01-31T09-30-00_0a1b2c"
        ).success
    assert seen == ["2026-01-31T09-30-00_0a1b2c"]
