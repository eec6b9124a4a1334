"""Predictions on a real instance: one run when cases without a label arrive, one for a new champion, and none when nothing waits."""

from pathlib import Path

import dagster as dg

from assets import keys, outcome
from med_assets.settings import Workspace
from resources import LauncherResource, WorkspaceResource
from sensors.predictions import predictions_sensor
from tests.cases.test_to_predict import champion, phantoms, strip
from tests.invented import ingest

P = "breast_us"
PREDICTIONS = keys.key(P, "predictions")


def tick(instance: dg.DagsterInstance) -> dg.RunRequest | str:
    """One tick of the sensor: the run it starts, or why it starts none."""
    with dg.build_sensor_context(instance, resources={"workspace": WorkspaceResource()}) as context:
        found = predictions_sensor(P)(context)
    if isinstance(found, dg.SkipReason):
        return found.skip_message or ""
    assert isinstance(found, dg.RunRequest)
    return found


def launch(instance: dg.DagsterInstance, request: dg.RunRequest | str) -> dg.ExecuteInProcessResult:
    """Run what the sensor asked for."""
    assert isinstance(request, dg.RunRequest)
    given = {"workspace": WorkspaceResource(), "launcher": LauncherResource()}
    return dg.materialize([outcome.predictions(P)], instance=instance, tags=dict(request.tags), resources=given)


def arrive(ws: Workspace, instance: dg.DagsterInstance, source: Path, *, labelled: bool) -> str:
    """A batch of one case, taken in and prepared; returns its name."""
    (ws.landing / P).mkdir(parents=True, exist_ok=True)
    if not labelled:
        strip(source, P)
    source.rename(ws.landing / P / source.name)
    batch = str(ingest(ws, P)[0][0]["batch"])
    instance.add_dynamic_partitions(keys.batches_of(P).name or "", [batch])
    instance.report_runless_asset_event(dg.AssetMaterialization(keys.key(P, "prepared_cases"), partition=batch))
    return batch


def test_cases_without_a_label_are_predicted_as_they_arrive_and_by_each_new_champion(
    workspace: Workspace, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    first, second, third = phantoms(tmp_path / "cases", P, 3, 5)
    batch = arrive(workspace, instance, first, labelled=False)
    assert tick(instance) == "there is no champion yet"
    champion(workspace, P)
    request = tick(instance)
    assert launch(instance, request).success
    assert instance.get_materialized_partitions(PREDICTIONS) == {batch}
    assert tick(instance) == "the champion predicted every case that came without a label"

    arrive(workspace, instance, second, labelled=True)
    assert tick(instance) == "the champion predicted every case that came without a label"
    later = arrive(workspace, instance, third, labelled=False)
    assert launch(instance, tick(instance)).success
    rows = workspace.lake.rows("predictions", P)
    assert {row["batch"]: row["status"] for row in rows} == {batch: "predicted", later: "predicted"}

    key = champion(workspace, P, seed=1)
    assert launch(instance, tick(instance)).success
    assert {row["checkpoint"] for row in workspace.lake.rows("predictions", P)} == {key}
    assert isinstance(tick(instance), str)
