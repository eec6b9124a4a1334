"""Assets whose stage runs as a job: the same materialization, checks and versions, and who dies with whom."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import resources
from assets import build_program, keys
from med_assets.launch.follow import Event, Submitted
from med_assets.launch.local import running
from med_assets.settings import Workspace
from resources.launcher import STAGE_JOB_TAG, LauncherResource
from tests.med_assets.stages.builders import P, drop, take


@pytest.fixture
def batch(workspace: Workspace) -> str:
    drop(workspace, 6)
    return take(workspace)


def materialize(
    instance: dg.DagsterInstance, stage: str, batch: str | None, launcher: LauncherResource | None = None
) -> dg.ExecuteInProcessResult:
    instance.add_dynamic_partitions(keys.batches_of(P).name or "", [batch] if batch else [])
    return dg.materialize(
        build_program(P),
        selection=[keys.key(P, stage)],
        partition_key=batch,
        instance=instance,
        resources={**resources.build(), "launcher": launcher or LauncherResource(poll_s=0.05)},
        raise_on_error=False,
    )


def seen(result: dg.ExecuteInProcessResult) -> tuple[Mapping[str, Any], Mapping[str, str], list[object]]:
    """Metadata, tags and checks of the one materialization of a run."""
    (event,) = result.get_asset_materialization_events()
    made = event.materialization
    tags = {name: text for name, text in (made.tags or {}).items() if "pointer" not in name}
    return dict(made.metadata), tags, [(one.check_name, one.passed) for one in result.get_asset_check_evaluations()]


@pytest.mark.slow
def test_an_asset_is_the_same_wherever_its_stage_ran(
    workspace: Workspace, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        for stage, partition in (("raw_cases", batch), ("dataset", None)):
            materialize(instance, stage, partition)
            here = materialize(instance, stage, partition)
            monkeypatch.setenv("MED_ASSETS_STAGE_LAUNCHER", "local")
            there = materialize(instance, stage, partition)
            monkeypatch.delenv("MED_ASSETS_STAGE_LAUNCHER")
            assert here.success
            assert there.success
            assert seen(here) == seen(there)
            record = instance.get_run_by_id(there.run_id)
            assert record is not None
            assert record.tags[STAGE_JOB_TAG].startswith("process ")


def test_an_asset_fails_with_the_error_of_its_job(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MED_ASSETS_STAGE_LAUNCHER", "local")
    batch = "2026-01-31T09-30-00_0a1b2c"  # which nobody took
    with dg.DagsterInstance.ephemeral() as instance:
        failed = materialize(instance, "raw_cases", batch)
        assert not failed.success
        text = "\n".join(str(entry) for entry in instance.all_logs(failed.run_id))
    assert "ConfigurationError" in text


@pytest.mark.slow
def test_a_job_that_was_killed_is_started_again_in_the_same_run(
    workspace: Workspace, batch: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MED_ASSETS_STAGE_LAUNCHER", "local")
    killed = tmp_path / "killed"

    class Killing(LauncherResource):
        def show(self, context: dg.AssetExecutionContext, event: Event, tag: str = "") -> None:
            super().show(context, event, tag)
            if isinstance(event, Submitted) and not killed.exists():
                killed.touch()
                process = running(event.handle.job)
                assert process is not None
                os.killpg(process.pid, signal.SIGKILL)

    with dg.DagsterInstance.ephemeral() as instance:
        done = materialize(instance, "raw_cases", batch, Killing(poll_s=0.05))
        assert done.success
        assert killed.exists()
        assert done.get_asset_materialization_events()[0].materialization.metadata["count/new"].value == 1
