"""Nightly monitoring on a real instance: one run over all batches that wait, and none when nothing does."""

import dagster as dg

from assets import keys, results
from med_assets.cli import stages
from med_assets.settings import Workspace
from resources.launcher import LauncherResource
from resources.workspace import WorkspaceResource
from sensors.monitoring import monitoring_schedule
from tests.med_assets.stages.builders import P
from tests.med_assets.stages.models import TRAIN, VAL, cases, constant, model, score

MONITORING = keys.key(P, "monitoring")


def arrive(ws: Workspace, instance: dg.DagsterInstance, batch: str) -> None:
    """A prepared batch of one new case, with the scores of every checkpoint there is."""
    name = f"{batch}-0"
    cases(ws, {"train": [name]}, batch=batch)
    for row in ws.lake.rows("checkpoints", P):
        score(ws, row["checkpoint"], name, 4.0)
    prepared(instance, batch)


def prepared(instance: dg.DagsterInstance, batch: str) -> None:
    """Tell Dagster that a batch was prepared."""
    instance.add_dynamic_partitions(keys.batches_of(P).name or "", [batch])
    instance.report_runless_asset_event(dg.AssetMaterialization(keys.key(P, "prepared_cases"), partition=batch))


def champion(ws: Workspace, experiment: str, value: float) -> None:
    """Train, evaluate and promote a model that is as good as the value is low."""
    checkpoint = model(ws, experiment, constant(value))
    for row in ws.lake.rows("dataset", P):
        if row["case_id"] not in VAL:
            score(ws, checkpoint, row["case_id"], value)
    stages.champion(ws, P)


def night(instance: dg.DagsterInstance) -> dg.RunRequest | str:
    """One tick of the schedule: the run it starts, or why it starts none."""
    with dg.build_schedule_context(instance, resources={"workspace": WorkspaceResource()}) as context:
        found = monitoring_schedule(P)(context)
    if isinstance(found, dg.SkipReason):
        return found.skip_message or ""
    assert isinstance(found, dg.RunRequest)
    return found


def launch(instance: dg.DagsterInstance, request: dg.RunRequest | str) -> dg.ExecuteInProcessResult:
    """Run what the schedule asked for."""
    assert isinstance(request, dg.RunRequest)
    given = {"workspace": WorkspaceResource(), "launcher": LauncherResource()}
    return dg.materialize([results.monitoring(P)], instance=instance, tags=dict(request.tags), resources=given)


def test_the_night_scores_all_batches_that_wait_in_one_run(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    cases(workspace, {"train": TRAIN, "val": VAL}, batch="2026-01-01T00-00-00_000001")
    prepared(instance, "2026-01-01T00-00-00_000001")
    assert night(instance) == "there is no champion yet"
    model(workspace, "mean_dose", constant(5.0))
    champion(workspace, "baseline", 4.0)
    arrive(workspace, instance, "2026-01-02T00-00-00_000002")
    arrive(workspace, instance, "2026-01-03T00-00-00_000003")

    done = launch(instance, night(instance))
    assert done.success
    assert instance.get_materialized_partitions(MONITORING) == {
        "2026-01-01T00-00-00_000001",
        "2026-01-02T00-00-00_000002",
        "2026-01-03T00-00-00_000003",
    }
    assert {row["batch"] for row in workspace.lake.rows("monitoring", P)} == {
        "2026-01-01T00-00-00_000001",
        "2026-01-02T00-00-00_000002",
        "2026-01-03T00-00-00_000003",
    }
    assert {check.check_name for check in done.get_asset_check_evaluations()} == {"in_control", "drift"}
    assert night(instance) == "the champion was scored on every batch"

    arrive(workspace, instance, "2026-01-04T00-00-00_000004")
    only = night(instance)
    assert isinstance(only, dg.RunRequest)
    assert set(only.tags.values()) == {"2026-01-04T00-00-00_000004"}
    launch(instance, only)
    assert night(instance) == "the champion was scored on every batch"


def test_after_a_promotion_the_earlier_batches_are_scored_again_and_a_manual_run_of_one_batch_works(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    cases(workspace, {"train": TRAIN, "val": VAL}, batch="2026-01-01T00-00-00_000001")
    prepared(instance, "2026-01-01T00-00-00_000001")
    model(workspace, "mean_dose", constant(5.0))
    champion(workspace, "baseline", 4.0)
    arrive(workspace, instance, "2026-01-02T00-00-00_000002")
    launch(instance, night(instance))
    champion(workspace, "grad_loss", 3.0)
    again = night(instance)
    assert isinstance(again, dg.RunRequest)
    assert sorted(again.tags.values()) == ["2026-01-01T00-00-00_000001", "2026-01-02T00-00-00_000002"]
    given = {"workspace": WorkspaceResource(), "launcher": LauncherResource()}
    assert dg.materialize(
        [results.monitoring(P)], instance=instance, partition_key="2026-01-02T00-00-00_000002", resources=given
    ).success
    left = night(instance)
    assert isinstance(left, dg.RunRequest)
    assert set(left.tags.values()) == {"2026-01-01T00-00-00_000001"}


def test_a_batch_between_two_that_wait_comes_along_in_the_one_run() -> None:
    tags = keys.one_run(
        [
            "2026-01-01T00-00-00_000001",
            "2026-01-02T00-00-00_000002",
            "2026-01-03T00-00-00_000003",
            "2026-01-04T00-00-00_000004",
        ],
        {"2026-01-01T00-00-00_000001", "2026-01-03T00-00-00_000003"},
    )
    assert sorted(tags.values()) == ["2026-01-01T00-00-00_000001", "2026-01-03T00-00-00_000003"]
